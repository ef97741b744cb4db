"""Why a model fails on rows of its inputs, in words: what was taken for the batch, and what follows it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from conductance._outputs import member
from conductance.arguments import Key
from conductance.errors import ConductanceError
from conductance.path import StraightPath


def taken_for_batch(path: StraightPath) -> str:
    """What was taken for the batch, a sentence.

    Examples
    --------
    >>> taken_for_batch(StraightPath(torch.ones(4, 3), None))
    'inputs[0] of shape (4, 3) was taken for a batch of 4 examples of shape (3,)'
    """
    entries = path.arguments.entries
    keys = [key for key in (*path.moving, *path.arguments.candidates) if _is_batched(entries.get(key), path)]
    key = keys[0] if keys else path.moving[0]
    label, shape = (f"inputs[{key!r}]", entries[key].shape) if keys else (path.labels[key], path.ends[key].shape)
    shape = tuple(shape)
    return f"{label} of shape {shape} was taken for a batch of {path.batch} examples of shape {shape[1:]}"


def raise_failed(error: Exception, told: str) -> NoReturn:
    """Raise a model's error on: one of torch about shapes or indices as an error that tells what was given, too."""
    if type(error) in (RuntimeError, IndexError):
        raise ConductanceError(f"the model fails on these inputs ({type(error).__name__}: {error}); {told}") from error
    error.add_note(told)
    raise error


def why_failing(model: Callable[..., Any], path: StraightPath, count: int, ran: int, error: Exception) -> str:
    """Why the model fails on some rows; "" where all that is known is the error itself.

    Parameters
    ----------
    model, path
        What is run.
    count
        Number of rows that the model failed on.
    ran
        Another number of rows that it ran on, 0 if there was none.
    error
        What it failed with.
    """
    told = f"{type(error).__name__}: {error}"
    if not ran:
        whole = _rows_as_given(model, path)
        if whole != path.batch and _runs_with_a_batch_axis(model, path):
            return (
                f"{taken_for_batch(path)}, and the model fails on {count} of these ({told}); it runs where a batch "
                "axis is added: for a single example give inputs.unsqueeze(0), a batch of one"
            )
        ran = path.batch if whole and count != path.batch else 0
    if not ran:
        return ""
    return (
        f"the model runs on {ran} rows but not on {count} ({told}): it takes batches of one size only, while the "
        "points of the path are run in calls of any number of rows; give a model without a fixed batch size "
        f"(x.shape[0] in place of a number){_others(path)}"
    )


def not_rows(path: StraightPath, value: Any, count: int) -> str:
    """The way out where a model's output, or a target's, has something else than the rows first; "" if it has them."""
    if not isinstance(value, Tensor) or value.dim() == 0 or len(value) == count:
        return ""
    for key, end in path.ends.items():
        axes = [axis for axis in range(1, end.dim()) if end.shape[axis] == len(value)]
        if axes:
            return (
                f"; {taken_for_batch(path)}, but {path.labels[key]} has {len(value)} places on axis {axes[0]}: the "
                "inputs must have the batch first; wrap a model that takes another order in one that swaps the axes, "
                f"x.transpose(0, {axes[0]}), before it calls it"
            )
    return ""


def _is_batched(value: Any, path: StraightPath) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == path.batch


def _rows_as_given(model: Callable[..., Any], path: StraightPath) -> int:
    """Size of the first axis of what the model gives for all examples; 0 if it does not run on them."""
    paths = torch.arange(path.batch, device=path.device) * path.per_example
    rows = path.rows(paths, torch.ones(path.batch, device=path.device))
    ran, output = _output(partial(rows.through, model))
    parts = [output] if isinstance(output, Tensor) else [member(output, "logits"), member(output, 0)]
    first = [part for part in parts if isinstance(part, Tensor) and part.dim() > 0]
    return 0 if not ran else len(first[0]) if first else path.batch


def _runs_with_a_batch_axis(model: Callable[..., Any], path: StraightPath) -> bool:
    """Whether the model runs on two examples each of which is what was taken for the batch."""
    entries, fixed = path.arguments.entries, path.arguments.fixed
    twice: dict[Key, Any] = {
        key: torch.stack([value] * 2) for key, value in entries.items() if key not in fixed and _is_batched(value, path)
    }
    args, kwargs = path.arguments.call(torch.arange(path.batch, device=path.device), path.batch, twice)
    return _output(partial(model, *args, **kwargs))[0]


def _output(run: Callable[[], Any]) -> tuple[bool, Any]:
    """Whether the model runs, and what it gives; with its graph, for some causes show there only."""
    try:
        return True, run()
    except Exception:
        return False, None


def _others(path: StraightPath) -> str:
    """Say of the arguments that do not move whether they follow the rows, where that may be wrong."""
    told = ""
    for key, value in path.arguments.entries.items():
        if key in path.moving:
            continue
        if key in path.arguments.fixed:
            if _is_batched(value, path):
                told += (
                    f"; argument {key!r} of shape {tuple(value.shape)} is named in fixed and does not follow the rows: "
                    "take it out of fixed if it has one entry for each example"
                )
        elif _is_batched(value, path):
            told += (
                f"; argument {key!r} of shape {tuple(value.shape)} was taken to have one entry for each example, and "
                "follows the rows: name it in fixed if its first axis is not the batch"
            )
        elif isinstance(value, (list, tuple)) and len(value) == path.batch and not isinstance(value[0], Tensor):
            told += (
                f"; argument {key!r}, a {type(value).__name__} of {len(value)}, is handed on as it is: if it has one "
                "entry for each example, give a tensor, which follows the rows"
            )
    return told
