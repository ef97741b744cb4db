"""Whether a baseline is one: a model that is sure of the target there has little left to explain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from conductance._outputs import chosen
from conductance._telling import tell
from conductance.path import StraightPath
from conductance.targeting import TargetFunction

#: Probability of the target from which on a baseline counts as confident.
CONFIDENT = 0.95
#: Paths whose baselines are tried, at most.
TRIED = 16


def warn_if_confident(model: Callable[..., Any], path: StraightPath, function: TargetFunction, most: int) -> None:
    """Warn where the model gives the target class a high probability at the baseline.

    Columns of an output are taken for logits, or for probabilities if they are such; an output of other than two axes,
    or of one column, is not judged.

    Parameters
    ----------
    model, path
        What is run, and from where.
    function
        Looks up the target in the output's columns.
    most
        Rows of a call at most, 0 for any number.
    """
    count = min(path.count, TRIED, most or TRIED)
    if _shared(path):
        count = min(path.per_example, count)
    paths = torch.arange(count, device=path.device)
    with torch.no_grad():
        output = chosen(path.rows(paths, torch.zeros(count, device=path.device)).through(model))
        if output.dim() != 2 or output.shape[1] < 2:
            return
        probabilities, paths = _probabilities(output.float().cpu()), paths.cpu()
        if _shared(path):  # the targets may differ all the same
            paths = torch.arange(path.count)
            paths = paths[paths % path.per_example < count]
            probabilities = probabilities[paths % path.per_example]
        sure = function(probabilities, paths // path.per_example)
    if not bool((sure > CONFIDENT).any()):
        return
    worst = int(paths[sure.argmax()])
    told = f"baseline {worst % path.per_example} of " if path.per_example > 1 else ""
    tell(
        f"the baseline is itself confident: at {told}example {worst // path.per_example} the model gives the target a "
        f"probability of {float(sure.max()):.3f}, so that little of the prediction is left to explain; choose another "
        "baseline (the mean of the batch, a blurred or permuted input), several of them, or a target such as the "
        "difference of two logits",
        UserWarning,
        stacklevel=5,
    )


def _shared(path: StraightPath) -> bool:
    """Whether the model is given the same at the baseline for all examples."""
    alone = len(path.arguments.entries) == len(path.moving) and all(
        key in path.arguments.entries for key in path.moving
    )
    return alone and all(bool((one == one[:1]).all()) for start in path.starts for one in start.values())


def _probabilities(output: Tensor) -> Tensor:
    given = bool((output >= 0).all()) and bool(((output.sum(1) - 1).abs() < 1e-3).all())
    return output if given else output.softmax(1)
