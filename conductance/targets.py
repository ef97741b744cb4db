"""What is explained: one number for each row of a model's output.

A target is an index into the output, one for each example, or a function of the output. It is applied to *any*
rows of any examples, in any order, so it must treat rows independently.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Target: TypeAlias = int | tuple[int, ...] | Tensor | Sequence[Any] | Callable[..., Tensor] | None
#: Applied to a model output and the example number of each row.
TargetFunction: TypeAlias = Callable[[Any, Tensor], Tensor]


def target_function(target: Target, batch: int) -> TargetFunction:
    """Turn a target as users give it into a function of output and example numbers.

    Parameters
    ----------
    target
        None (the output is one number a row already), an int (column), a tuple of ints (index into an output of
        more axes), a tensor or list of one int (or tuple) for each example, or a callable of the output, or of the
        output and the example number of each row, that returns one number a row.
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
    if callable(target):
        return _called(target)
    if target is None:
        return lambda output, _: _only(_logits(output))
    index = _index(target, batch)
    if index.dim() == 1:  # the same place for all examples
        place = tuple(index.tolist())
        return lambda output, _: _picked(_logits(output), place)
    return lambda output, examples: _picked_each(_logits(output), index, examples)


def _called(target: Callable[..., Tensor]) -> TargetFunction:
    try:
        kinds = [p.kind for p in inspect.signature(target).parameters.values() if p.default is p.empty]
    except (TypeError, ValueError):  # some builtins have no signature
        kinds = [inspect.Parameter.POSITIONAL_ONLY]
    positional = [k for k in kinds if k in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    if len(positional) >= 2:
        return lambda output, examples: _checked(_told(target, output, examples), len(examples))
    return lambda output, examples: _checked(_told(target, output), len(examples))


def _told(target: Callable[..., Tensor], output: Any, *examples: Tensor) -> Any:
    """Call it; an error in it tells what it was called with, where that is no plain tensor."""
    try:
        return target(output, *examples)
    except Exception as error:
        if not isinstance(output, Tensor):
            logits = _of(output)
            where = f"; its logits are output.logits, {tuple(logits.shape)}" if isinstance(logits, Tensor) else ""
            error.add_note(f"the callable given as target received the model's {type(output).__name__}{where}")
        raise


def _checked(value: Any, rows: int) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"the callable given as target returned a {type(value).__name__}; expected a tensor ({rows},)")
    if tuple(value.shape) == (rows, 1):
        value = value[:, 0]
    if tuple(value.shape) != (rows,):
        raise ValueError(
            f"the callable given as target returned shape {tuple(value.shape)} for {rows} rows; expected ({rows},): "
            "one number a row (a loss needs reduction='none')"
        )
    if not value.is_floating_point():
        raise TypeError(f"the callable given as target returned {value.dtype}; expected floating-point numbers")
    checked: Tensor = value
    return checked


def _logits(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    logits = _of(output)
    if isinstance(logits, Tensor):
        return logits
    raise TypeError(
        f"the model returned a {type(output).__name__} without 'logits'; give target as a callable of the output that "
        "returns one number a row"
    )


def _of(output: Any) -> Any:
    return output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)


def _only(output: Tensor) -> Tensor:
    if output.dim() == 2 and output.shape[1] == 1:
        return output[:, 0]
    if output.dim() <= 1:
        return output
    kind = f"an index (0 … {output.shape[1] - 1})" if output.dim() == 2 else _tuple_of(output)
    raise ValueError(
        f"target is missing: the model's output has shape {_rowless(output)} and one number a row is explained; "
        f"give target as {kind}, one of these an example, or a callable"
    )


def _index(target: Any, batch: int) -> Tensor:
    """Indices as a tensor: (axes,) for one place, (batch, axes) for one place an example."""
    if isinstance(target, (bool, str, bytes, float)):
        raise TypeError(f"target is {target!r}; expected an int, a tuple of ints, one int an example, or a callable")
    if isinstance(target, int):
        return _integers([target])
    if isinstance(target, tuple):
        return _integers(target).reshape(-1)
    index = _integers(target)
    if index.dim() == 0:
        return index.reshape(1)
    if index.shape[0] != batch:
        raise ValueError(
            f"target has {index.shape[0]} entries for {batch} examples; give one for each, or a single int"
        )
    if index.dim() > 2:
        raise ValueError(f"target has shape {tuple(index.shape)}; expected ({batch},) or ({batch}, axes of the output)")
    return index.reshape(batch, -1)


def _integers(target: Any) -> Tensor:
    try:
        index = target.detach().cpu() if isinstance(target, Tensor) else torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(
            f"target is a {type(target).__name__} that is no index ({error}); expected an int, a tuple of ints, "
            "one int an example, or a callable"
        ) from error
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise TypeError(f"target holds {index.dtype} numbers; expected integers")
    return index.long()


def _picked(output: Tensor, place: tuple[int, ...]) -> Tensor:
    _check_place(output, [place])
    for index in place:
        output = output.select(1, index)
    return output


def _picked_each(output: Tensor, index: Tensor, examples: Tensor) -> Tensor:
    _check_place(output, [index.amin(0).tolist(), index.amax(0).tolist()])
    each = index.to(output.device)[examples.to(output.device)]
    flat = output.reshape(len(each), -1)
    sizes = output.shape[1:]
    place = torch.zeros_like(each[:, 0])
    for axis, size in enumerate(sizes):
        place = place * size + each[:, axis] % size
    return flat.gather(1, place[:, None])[:, 0]


def _check_place(output: Tensor, places: Sequence[Sequence[int]]) -> None:
    axes = tuple(output.shape[1:])
    if len(places[0]) != len(axes):
        expected = {0: "no target", 1: "one index"}.get(len(axes)) or _tuple_of(output)
        given = "1 index" if len(places[0]) == 1 else f"{len(places[0])} indices"
        raise ValueError(
            f"target gives {given} but the model's output has shape {_rowless(output)}: expected {expected}, or a "
            "callable"
        )
    for place in places:
        for one, size in zip(place, axes, strict=True):
            if not -size <= one < size:
                raise ValueError(
                    f"target {place[0] if len(place) == 1 else tuple(place)} is out of range for an output of shape "
                    f"{_rowless(output)}; expected 0 … {size - 1}"
                )


def _tuple_of(output: Tensor) -> str:
    axes = output.dim() - 1
    return f"a tuple of {axes} indices such as ({', '.join(['0'] * axes)})"


def _rowless(output: Tensor) -> str:
    return f"({', '.join(['batch', *map(str, output.shape[1:])])})"
