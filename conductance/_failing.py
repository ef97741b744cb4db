"""Why a model fails on rows of its inputs, in words: what was taken for the batch, and what follows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from conductance.path import Rows, StraightPath


def taken_for_batch(path: StraightPath) -> str:
    """What was taken for the batch, a sentence.

    Examples
    --------
    >>> taken_for_batch(StraightPath(torch.ones(4, 3), None))
    'inputs[0] of shape (4, 3) was taken for a batch of 4 examples of shape (3,)'
    """
    key = path.moving[0]
    shape = tuple(path.ends[key].shape)
    return f"inputs[{key!r}] of shape {shape} was taken for a batch of {shape[0]} examples of shape {shape[1:]}"


def why_failing(
    model: Callable[..., Any], path: StraightPath, rows: Rows, count: int, ran: int, error: Exception
) -> str:
    """Why the model fails on some rows; "" where all that is known is the error itself.

    Parameters
    ----------
    model, path
        What is run.
    rows, count
        The rows that the model failed on, and their number.
    ran
        Another number of rows that it ran on, 0 if there was none.
    error
        What it failed with.
    """
    told = f"{type(error).__name__}: {error}"
    if not ran and _runs(model, *_with_a_batch_axis(path, rows)):
        return (
            f"{taken_for_batch(path)}, and the model fails on {count} of these ({told}); it runs where the batch axis "
            "is added: for a single example give inputs.unsqueeze(0), a batch of one"
        )
    given = _as_given(path)
    if not ran and count != path.batch and _runs(model, given.args, given.kwargs):
        ran = path.batch
    if not ran:
        return ""
    return (
        f"the model runs on {ran} rows but not on {count} ({told}): it takes batches of one size only, while the "
        "points of the path are run in calls of any number of rows; give a model without a fixed batch size "
        f"(x.shape[0] in place of a number){_others(path, rows, given)}"
    )


def not_rows(path: StraightPath, value: Tensor, count: int) -> str:
    """The way out where a target gave numbers for something else than the rows; "" where nothing is known."""
    for key, end in path.ends.items():
        axes = [axis for axis in range(1, end.dim()) if value.shape == end.shape[axis : axis + 1] != (count,)]
        if axes:
            return (
                f"; {taken_for_batch(path)}, but the model gave one number for each place on axis {axes[0]} of "
                f"inputs[{key!r}]: the inputs must have the batch first; wrap a model that takes another order in one "
                f"that swaps the axes (x.transpose(0, {axes[0]})) before it calls it"
            )
    return ""


def _as_given(path: StraightPath) -> Rows:
    every = torch.arange(path.batch, device=path.device) * path.per_example
    return path.rows(every, torch.ones(len(every), device=path.device))


def _with_a_batch_axis(path: StraightPath, rows: Rows) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Two rows of the inputs as if they were one example each."""

    def one(key: int | str, value: Any) -> Any:
        return torch.stack([path.ends[key]] * 2) if key in path.ends else value

    args = tuple(one(place, value) for place, value in enumerate(rows.args))
    return args, {name: one(name, value) for name, value in rows.kwargs.items()}


def _runs(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception:
        return False
    return True


def _others(path: StraightPath, rows: Rows, given: Rows) -> str:
    """Say of the arguments that do not move whether they follow the rows, where that may be wrong."""
    told = ""
    whole = _entries(given)
    for key, value in _entries(rows).items():
        if key in path.moving:
            continue
        if isinstance(value, Tensor) and value.shape != whole[key].shape:
            told += (
                f"; argument {key!r} of shape {tuple(whole[key].shape)} was taken to have one entry for each example, "
                "and follows the rows: name it in fixed if its first axis is not the batch"
            )
        elif not isinstance(value, (Tensor, str)) and hasattr(value, "__len__") and len(value) == path.batch > 1:
            told += (
                f"; argument {key!r}, a {type(value).__name__} of {len(value)}, is handed on as it is: if it has one "
                "entry for each example, give a tensor, which follows the rows"
            )
    return told


def _entries(rows: Rows) -> dict[int | str, Any]:
    entries: dict[int | str, Any] = dict(enumerate(rows.args))
    entries.update(rows.kwargs)
    return entries
