"""What a user asked, checked before the long work: tolerance and budgets, the model's mode, the layers."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import nn

from conductance._telling import tell
from conductance.flights import Rules
from conductance.hooks import HookPoint, LayerSpec, PointInfo, PointTable, Probe, Selection

#: Tolerance where none is asked.
DEFAULT_RTOL = 1e-2
#: More steps than this are a slip of the pen.
MOST_STEPS = 10**8
_NEVER_RAN = "never ran in a forward pass, or gave no floating-point tensor"
#: Rows that a model is tried on first.
PROBED = 2


def checked_rules(
    rtol: float | None, atol: float, n_steps: int | None, max_evaluations: int, internal_batch_size: int | None
) -> Rules:
    """Tolerance and budgets, or an error that names the argument."""
    if rtol is not None and n_steps is not None:
        raise ValueError(
            f"rtol={rtol} and n_steps={n_steps} are both given; give a tolerance or a fixed budget, not both"
        )
    rtol = DEFAULT_RTOL if rtol is None else rtol
    for name, number in (("rtol", rtol), ("atol", atol)):
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise TypeError(f"{name} is a {type(number).__name__}; expected a number such as 1e-3")
        if isinstance(number, int) and abs(number) > sys.float_info.max:
            raise ValueError(f"{name} is beyond the range of floating-point numbers; expected one such as 1e-3")
    if not 0 < rtol < np.inf:
        raise ValueError(f"rtol is {rtol}; expected a number above 0, such as 1e-3 (exact on ReLU networks: 1e-9)")
    if not 0 <= atol < np.inf:
        raise ValueError(f"atol is {atol}; expected 0 or a positive number")
    for name, count, least in (
        ("n_steps", n_steps, 2),
        ("max_evaluations", max_evaluations, 5),
        ("internal_batch_size", internal_batch_size, 1),
    ):
        if count is None and name != "max_evaluations":
            continue
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"{name} is {count!r}; expected a whole number of at least {least}")
        if count < least:
            raise ValueError(f"{name} is {count}; expected at least {least}")
    if n_steps is not None and n_steps > MOST_STEPS:
        raise ValueError(f"n_steps is more than {MOST_STEPS}; expected a number of evaluations, such as 50")
    budget, rows = min(max_evaluations, sys.maxsize), min(internal_batch_size or 0, sys.maxsize)
    return Rules(float(rtol), float(atol), budget, rows)


def check_mode(model: Callable[..., Any], modules: Mapping[str, nn.Module], on_train: str) -> list[nn.Module]:
    """Refuse modules whose rows depend on chance or on each other, or warn and give those: dropout, batch norm."""
    roots = {"": model} if isinstance(model, nn.Module) else modules
    named = {
        (f"{prefix}.{name}".strip(".") or type(module).__name__): module
        for prefix, root in roots.items()
        for name, module in root.named_modules()
    }
    found = {name: module for name, module in named.items() if _is_noisy(module)}
    if not found:
        return []
    told = ", ".join(f"{name} ({type(module).__name__})" for name, module in [*found.items()][:5])
    told += " and more" if len(found) > 5 else ""
    if any(module.training for module in found.values()):
        text = f"the model is in train mode: {told}; results would be random"
        way_out = "Call model.eval() first"
    else:
        text = f"{told}: batch norm without running statistics normalises by the other rows of a call, in eval mode too"
        way_out = "Build it with track_running_stats=True and calibrate it"
    if on_train == "error":
        raise ValueError(f'{text}. {way_out}, or pass on_train="warn"')
    tell(f"{text}; results depend on chance and on the other rows of a call", UserWarning, stacklevel=5)
    return [*found.values()]


def fewest_rows(noisy: list[nn.Module]) -> int:
    """Rows that a call needs at least: two where batch norm takes its statistics from them."""
    return 2 if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in noisy) else 1


def _is_noisy(module: nn.Module) -> bool:
    """Whether rows of this module depend on chance or on the other rows of a call."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.training or not module.track_running_stats
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return module.training and module.dropout > 0
    return module.training and isinstance(module, (nn.modules.dropout._DropoutNd, nn.RReLU))


def named_points(layers: LayerSpec, selection: Selection) -> set[str]:
    """Names of the points asked one by one, not by a glob, a type, a whole table of points or None."""
    names: set[str] = set()
    if isinstance(layers, PointTable):
        return names
    for one in layers if isinstance(layers, (list, tuple)) else [layers]:
        if isinstance(one, (HookPoint, PointInfo)):
            names.add(one.name)
        elif isinstance(one, str) and not any(sign in one for sign in "*?"):
            names.add(HookPoint.parse(one).name)
        elif isinstance(one, nn.Module):
            names |= {HookPoint(name).name for name, module in selection.modules.items() if module is one}
    return names


def usable_points(found: Probe, named: set[str], ran: Callable[[], list[str]]) -> tuple[list[PointInfo], list[str]]:
    """The points that can be explained, and the names of those that globs, types or None brought in for nothing.

    ``ran`` lists what the model runs, for the message where something does not.
    """
    unusable = dict.fromkeys(found.never_run, _NEVER_RAN)
    points = []
    for info in found.points:
        if reason := info.unbatched or info.shared:
            unusable[info.name] = reason
        else:
            points.append(info)
    bad = [name for name in unusable if name in named or not points]
    if bad:
        reasons = dict.fromkeys(unusable[name] for name in bad[:5])
        alike = {reason: [repr(name) for name in bad[:5] if unusable[name] == reason] for reason in reasons}
        told = "; ".join(
            f"{first}, which {reason}" + (f"; {', '.join(more)} too" if more else "")
            for reason, (first, *more) in alike.items()
        )
        if _NEVER_RAN in reasons and (known := ran()):
            told += f"; what ran: {_some(known, bad[0])}"
        raise ValueError(f"layers names {told}; conductance.hooks.list_points(model, inputs) lists what can be tapped")
    return points, list(unusable)


def _some(names: list[str], wanted: str) -> str:
    """Names for a message: all if they are few, else those that are like the one wanted, else the first."""
    few = names if len(names) <= 8 else difflib.get_close_matches(wanted, names, n=5) or names[:8]
    others = len(names) - len(few)
    return ", ".join(map(repr, few)) + (f" and {others} more" if others else "")
