"""Results as Captum gives them: plain tensors, the gap to completeness, and a warning in place of an error estimate."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from conductance.errors import ConvergenceWarning
from conductance.neuron_results import NeuronConductance
from conductance.results import TotalConductance

#: Part of the conductance from which on an estimated error is warned of, for Captum's results have no place for it.
DOUBTFUL = 0.1


def single(tensors: Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
    """A tensor by itself, several as a tuple."""
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def gap(attributions: Tensor | tuple[Tensor, ...], change: Tensor) -> Tensor:
    """Sum of attributions less the change of the output, ``(batch,)``."""
    parts = (attributions,) if isinstance(attributions, Tensor) else attributions
    rows = {len(part) for part in parts}
    if rows != {len(change)}:
        raise ValueError(f"attributions have {sorted(rows)} examples, but the points have {len(change)}")
    return torch.stack([part.reshape(len(part), -1).sum(1).to(change.device) for part in parts]).sum(0) - change


def settle(result: TotalConductance | NeuronConductance, error: Tensor, frames: int) -> None:
    """Pass an interruption on, for there is no place for a part of the result; warn of results that say nothing.

    ``frames`` is how far above the user is.
    """
    if result.settings["interrupted"]:
        raise KeyboardInterrupt
    doubtful = [
        f"{n} ({one:.0%}, {status})"
        for n, (one, status) in enumerate(zip(error.tolist(), result.status, strict=True))
        if one > DOUBTFUL and status in ("budget", "jump", "gradient")
    ]
    if doubtful:
        more = " and more" if len(doubtful) > 5 else ""
        warnings.warn(
            f"the estimated error of examples {', '.join(doubtful[:5])}{more} is above {DOUBTFUL:.0%} of the "
            "conductance: raise n_steps if it is the budget, or try another baseline; conductance.total_conductance "
            "tells more (jump: the output jumps along the path; gradient: it is not the derivative of the output)",
            ConvergenceWarning,
            stacklevel=frames + 1,
        )
