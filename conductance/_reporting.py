"""What is said of a run: how it was computed, and a warning where the tolerance was missed."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from conductance._findings import findings_of
from conductance._telling import unwarned
from conductance.errors import ConvergenceWarning
from conductance.flights import Rules
from conductance.results import TotalConductance
from conductance.running import Prepared
from conductance.targeting import OutputTarget


def settings_of(ready: Prepared, rules: Rules, n_steps: int | None, target: Any, baselines: Any) -> dict[str, Any]:
    """The settings that every quantity keeps with its result."""
    return {
        "target": described(target),
        "baselines": described(baselines),
        "moving": list(ready.path.labels.values()),
        "rtol": None if n_steps is not None else rules.rtol,
        "atol": rules.atol,
        "n_steps": n_steps,
        "left_out": ready.left_out,
        "scheme": "kinked" if ready.kinked else "smooth",
        "kinked_operators": list(ready.found.kinked),
    }


def described(value: Any) -> Any:
    """A value as it can stand in a saved result."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        whole = value.numel() <= 64 or (value.dim() == 1 and value.dtype in (torch.int64, torch.int32))
        return value.tolist() if whole else f"tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return [described(one) for one in value]
    if isinstance(value, OutputTarget):
        return repr(value)
    return getattr(value, "__qualname__", type(value).__name__)


def warn(result: TotalConductance, rules: Rules, n_steps: int | None) -> None:
    """Say which examples missed the tolerance, by how much, why, and what to do; not for a fixed budget."""
    bad = [n for n, good in enumerate(result.converged.tolist()) if not good]
    if not bad or n_steps is not None or unwarned.get():
        return
    kinds = {kind: sum(result.status[n] == kind for n in bad) for kind in dict.fromkeys(result.status[n] for n in bad)}
    known = [n for n in bad if result.status[n] != "interrupted"]
    if not known:
        warnings.warn(f"the run was interrupted: {len(bad)} examples are missing", ConvergenceWarning, stacklevel=3)
        return
    worst = {name: float(torch.nan_to_num(result.error[name][known]).max()) for name in result.layers}
    layers = sorted((name for name in worst if worst[name] > rules.rtol), key=lambda name: -worst[name])[:3]
    told = ", ".join(f"{name!r} {worst[name]:.1e}" for name in layers) or "none beyond the tolerance"
    change = float(result.unattributed[known].abs().max())
    kinks = str(result.settings["kinked_operators"]) if result.settings["scheme"] == "kinked" else ""
    advice = {
        "budget": "raise max_evaluations or rtol" + (f" (kinks, of {kinks}, take many evaluations)" if kinks else ""),
        "jump": "F jumps along the path (rounding, argmax, routing): see .jumps and .unattributed",
        "gradient": "the gradient is not the derivative of F (a detach, a straight-through trick): see .unattributed",
        "precision": "rounding hides the rest: use float64 or a larger rtol",
        "interrupted": "the run was interrupted",
    }
    if any(not one.layers for one in findings_of(result.settings.get("diagnosis"))):
        advice["gradient"] = "the target as a whole is to blame: see .diagnosis"
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    warnings.warn(
        f"{len(bad)} of {len(result.status)} examples did not converge to rtol={rules.rtol:g} ({counts}); "
        f"estimated error by layer: {told}; largest unattributed change of the output {change:.1e}. "
        + "; ".join(advice[kind] for kind in kinds),
        ConvergenceWarning,
        stacklevel=3,
    )
