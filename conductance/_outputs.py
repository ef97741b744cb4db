"""Which tensor of a model's output is looked at: the output itself, its ``logits``, or the one that a key names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

Key: TypeAlias = str | int | None


def chosen(output: Any, key: Key = None) -> Tensor:
    """Choose the tensor of an output.

    Parameters
    ----------
    output
        What a model returned: a tensor, a dict, a tuple, or an object with tensors as attributes.
    key
        Name of the entry or attribute, or its place in a tuple; None is the output itself, or its ``logits``.

    Returns
    -------
    Tensor
        Floating-point numbers.

    Raises
    ------
    TypeError
        If there is no such tensor, or no floating-point numbers are in it; the message names those that are there.
    ValueError
        If it is one number for the whole batch.

    Examples
    --------
    >>> import torch
    >>> chosen({"logits": torch.ones(2, 3), "depth": torch.zeros(2, 4)}, key="depth").shape
    torch.Size([2, 4])
    """
    if isinstance(output, Tensor):
        if key is not None:
            raise TypeError(
                f"key={key!r} is given, but the model returned a tensor {tuple(output.shape)}; leave key out"
            )
        found: Any = output
    else:
        found = member(output, "logits" if key is None else key)
    if not isinstance(found, Tensor):
        raise TypeError(_missing(output, key, found))
    if not found.is_floating_point():
        raise TypeError(
            f"the model's output holds {found.dtype} numbers, which have no gradient (classes or a decision instead of "
            "scores?); explain the scores before argmax, rounding or comparison"
        )
    if found.dim() == 0:
        raise ValueError(
            "the model's output is one number, shape (), for the whole batch, such as a mean loss; return one value "
            "per example: a loss with reduction='none', a mean over all axes but the first"
        )
    return found


def member(output: Any, key: str | int) -> Any:
    """One part of an output, or None where it has no such part."""
    if isinstance(output, Mapping):
        return output.get(key)
    if isinstance(key, str):
        return getattr(output, key, None)
    if isinstance(output, (tuple, list)) and -len(output) <= key < len(output):
        return output[key]
    return None


def classes_of(output: Any) -> Tensor | None:
    """Scores of two classes or more, if the output has them: the larger of one says nothing."""
    try:
        scores = chosen(output)
    except TypeError:  # the target takes what it explains from the output itself
        return None
    return scores if scores.dim() == 2 and scores.shape[1] > 1 else None


def everything(output: Any, examples: Tensor) -> Tensor:
    """A target that depends on all of the output, for what depends on none."""
    rows = len(examples)
    parts = [output] if isinstance(output, Tensor) else [each for _, each in tensors_of(output)]
    found = [each for each in parts if each.is_floating_point() and each.shape[:1] == (rows,)] or [chosen(output)]
    return torch.stack([each.reshape(rows, -1).sum(1) for each in found]).sum(0)


def rowless(output: Tensor) -> str:
    """Shape of an output in words, whatever the number of rows."""
    return f"({', '.join(['batch', *map(str, output.shape[1:])])})"


def _missing(output: Any, key: Key, found: Any) -> str:
    kind = type(output).__name__
    there = ", ".join(f"{name!r} {tuple(tensor.shape)}" for name, tensor in tensors_of(output)) or "none"
    if key is None:
        return (
            f"the model returned a {kind} without 'logits'; give target as a callable of the output that returns one "
            f"number a row, or as a function of conductance.targets with key= (its tensors are: {there})"
        )
    what = "nothing" if found is None else f"a {type(found).__name__}"
    return f"key={key!r} finds {what} in the {kind} that the model returned; its tensors are: {there}"


def tensors_of(output: Any) -> Iterator[tuple[str | int, Tensor]]:
    """The tensors of an output by their keys."""
    if isinstance(output, Mapping):
        parts = list(output.items())
    elif isinstance(output, (tuple, list)):
        parts = list(enumerate(output))
    else:
        parts = list(getattr(output, "__dict__", {}).items())
    return ((name, part) for name, part in parts if isinstance(part, Tensor))
