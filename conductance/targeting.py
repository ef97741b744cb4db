"""What is explained: one number for each row of a model's output.

A target is an index into the output, one for each example, or a function of the output. It is applied to *any*
rows of any examples, in any order, so it must treat rows independently.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from conductance._outputs import Key, chosen, member, rowless
from conductance._places import Examples, places, tuple_of
from conductance.errors import ConductanceError

Target: TypeAlias = int | tuple[int, ...] | Tensor | Sequence[Any] | Callable[..., Tensor] | None
#: Applied to a model output and the example number of each row.
TargetFunction: TypeAlias = Callable[[Any, Tensor], Tensor]


def target_function(target: Target, batch: int) -> TargetFunction:
    """Turn a target as users give it into a function of output and example numbers.

    Parameters
    ----------
    target
        None (the output is one number a row already), an int (column), a tuple of ints (index into an output of
        more axes), a tensor or list of one int (or tuple) for each example, a target of `conductance.targets`, or a
        callable of the output, or of the output and the example number of each row, that returns one number a row.
    batch
        Number of examples.

    Raises
    ------
    TypeError, ValueError
        If it is none of these, or does not match the batch.

    Examples
    --------
    >>> pick = target_function(torch.tensor([1, 0]), batch=2)
    >>> pick(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([0, 1, 1]))
    tensor([2., 3., 5.])
    """
    if isinstance(target, OutputTarget):
        return partial(target.of_rows, batch=batch)
    if callable(target):
        return _called(target)
    if target is None:
        return lambda output, _: _only(chosen(output))
    place = places("target", target, expected="an int, a tuple of ints, one int an example, or a callable")
    place.check(batch)
    return partial(OutputTarget("target", place.pick).of_rows, batch=batch)


@dataclass(frozen=True, eq=False, repr=False)
class OutputTarget:
    """A target that knows its name: a function of a model's output, one number a row (see `conductance.targets`).

    Attributes
    ----------
    text
        How it is called; a result keeps it in ``settings["target"]``.
    function
        Applied to the tensor that is looked at and to the examples of its rows.
    key
        Which tensor of the output that is: None for the output itself, or its ``logits``.
    """

    text: str
    function: Callable[[Tensor, Examples], Tensor]
    key: Key = None

    def __call__(self, output: Any, examples: Tensor | None = None) -> Tensor:
        """One number for each row of an output, ``(rows,)``, to look at what is explained.

        Parameters
        ----------
        output
            What the model returned.
        examples
            Example number of each row; None for all examples in their order.
        """
        if examples is not None:
            return self.of_rows(output, examples)
        rows = len(chosen(output, self.key))
        return self.of_rows(output, torch.arange(rows), batch=rows)

    def of_rows(self, output: Any, examples: Tensor, batch: int | None = None) -> Tensor:
        """One number for each row, of any of ``batch`` examples, if their number is known."""
        tensor, rows = chosen(output, self.key), len(examples)
        if tensor.dim() == 0 or tensor.shape[0] != rows:
            raise ValueError(
                f"{self.text} looks at an output of shape {tuple(tensor.shape)} for {rows} rows; expected ({rows}, …): "
                "the model must keep its rows apart, on the first axis"
            )
        try:
            return self.function(tensor, Examples(examples, batch))
        except RuntimeError as error:
            if type(error) is not RuntimeError:
                raise
            raise ConductanceError(
                f"{self.text} fails on an output of shape {tuple(tensor.shape)} for {rows} rows "
                f"({type(error).__name__}: {error}); the shapes of output and labels, of one example, must go together"
            ) from error

    def __repr__(self) -> str:
        """How it is called."""
        return self.text


def _called(target: Callable[..., Tensor]) -> TargetFunction:
    try:
        kinds = [p.kind for p in inspect.signature(target).parameters.values() if p.default is p.empty]
    except (TypeError, ValueError):  # some builtins have no signature
        kinds = [inspect.Parameter.POSITIONAL_ONLY]
    positional = [k for k in kinds if k in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    if len(positional) >= 2:
        return lambda output, examples: _checked(_told(target, output, examples), output, len(examples))
    return lambda output, examples: _checked(_told(target, output), output, len(examples))


def _told(target: Callable[..., Tensor], output: Any, *examples: Tensor) -> Any:
    """Call it; an error in it tells what it was called with, where that is no plain tensor."""
    try:
        return target(output, *examples)
    except Exception as error:
        if not isinstance(output, Tensor):
            logits = member(output, "logits")
            where = f"; its logits are output.logits, {tuple(logits.shape)}" if isinstance(logits, Tensor) else ""
            error.add_note(f"the callable given as target received the model's {type(output).__name__}{where}")
        if type(error) is RuntimeError:
            raise _fails("the callable given as target", output, error) from error
        raise


def _fails(name: str, output: Any, error: Exception) -> ConductanceError:
    """The error for a target that fails, as it does that has the whole batch in mind."""
    shape = f" of shape {tuple(output.shape)}" if isinstance(output, Tensor) else ""
    return ConductanceError(
        f"{name} fails on an output{shape} ({type(error).__name__}: {error}): it receives rows of any examples, not "
        "the batch in its order; with two parameters it is told the example of each row, such as "
        "target=lambda output, n: (output[:, 0] - y[n]) ** 2"
    )


def _checked(value: Any, output: Any, rows: int) -> Tensor:
    if isinstance(value, OutputTarget):
        name = value.text.partition("(")[0]
        raise TypeError(f"target is the function {name} itself; call it, such as target={name}()")
    if not isinstance(value, Tensor):
        raise TypeError(f"the callable given as target returned a {type(value).__name__}; expected a tensor ({rows},)")
    if tuple(value.shape) == (rows, 1):
        value = value[:, 0]
    if tuple(value.shape) != (rows,):
        raise ValueError(
            f"the callable given as target returned shape {tuple(value.shape)} for {rows} rows; expected ({rows},): "
            f"one number a row{_hint(value, output, rows)}"
        )
    if not value.is_floating_point():
        raise TypeError(
            f"the callable given as target returned {value.dtype}; expected floating-point numbers (a comparison, a "
            "class number or a count has no gradient: return the scores that it is made from)"
        )
    checked: Tensor = value
    return checked


def _hint(value: Tensor, output: Any, rows: int) -> str:
    """What a shape that is not one number a row comes from."""
    shape, of_output = tuple(value.shape), tuple(output.shape) if isinstance(output, Tensor) else None
    if not shape:
        return (
            "; return one value per example, not one for the batch (a loss needs reduction='none', a mean "
            ".flatten(1).mean(1); conductance.targets.loss does so)"
        )
    if shape == (rows, rows) and shape != of_output:
        return "; every row is compared with every other: (rows, 1) with (rows,) broadcasts, so take the column first"
    if shape[0] == rows:
        given = f" of the model's output, {of_output}" if of_output == shape else ""
        return f"; choose or sum over the further axes{given}, such as by [:, k] or .flatten(1).sum(1)"
    return "; the rows must stay apart, on the first axis (a loss needs reduction='none')"


def _only(output: Tensor) -> Tensor:
    if output.dim() == 2 and output.shape[1] == 1:
        return output[:, 0]
    if output.dim() <= 1:
        return output
    kind = f"an index (0 … {output.shape[1] - 1})" if output.dim() == 2 else tuple_of(output.dim() - 1)
    raise ValueError(
        f"target is missing: the model's output has shape {rowless(output)} and one number a row is explained; "
        f"give target as {kind}, one of these an example, or a callable (conductance.targets has ready ones)"
    )
