"""Results made by hand, of random numbers: no two axes are of one size."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from conductance.results import LayerInfo, TotalConductance

EXAMPLES = 5
CONV, HEADS, DENSE = "stem.conv", "attn.out:in", "fc"
#: Type, shape without the batch, unit axis, groups, whether a cut.
LAYERS: dict[str, tuple[str, tuple[int, ...], int, int | None, bool]] = {
    CONV: ("Conv2d", (3, 2, 4), 1, None, True),
    HEADS: ("Linear", (7, 6), 2, 2, False),
    DENSE: ("Linear", (11,), 1, None, True),
}


def random_result(seed: int = 0, **changes: Any) -> TotalConductance:
    """Make a result in float64; ``changes`` replaces fields."""
    numbers = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=numbers, dtype=torch.float64)

    info = {
        name: LayerInfo(name, kind, shape, axis, groups, is_cut=cut, moves=True, used=True)
        for name, (kind, shape, axis, groups, cut) in LAYERS.items()
    }
    fields: dict[str, Any] = {
        "conductance": {name: normal(EXAMPLES, *each.shape) for name, each in info.items()},
        "unit_error": {name: 0.01 * normal(EXAMPLES, each.units).abs() for name, each in info.items()},
        "error": {name: 0.01 * normal(EXAMPLES).abs() for name in info},
        "info": info,
        "output": normal(EXAMPLES),
        "baseline_output": normal(EXAMPLES),
        "unattributed": torch.zeros(EXAMPLES, dtype=torch.float64),
        "status": ("ok",) * EXAMPLES,
        "jumps": ((),) * EXAMPLES,
        "evaluations": torch.tensor([9, 12, 5, 33, 17]),
        "converged": torch.ones(EXAMPLES, dtype=torch.bool),
        "spread": None,
        "settings": {"rtol": 1e-2, "n_steps": None, "seconds": 1.5},
    }
    return TotalConductance(**{**fields, **changes})


def interrupted_result(seed: int = 0, unfinished: Sequence[int] = (1, 3)) -> TotalConductance:
    """Make a result in which some examples are NaN."""
    result = random_result(seed)
    for tensors in (result.conductance, result.unit_error, result.error):
        for tensor in tensors.values():
            tensor[list(unfinished)] = float("nan")
    status = tuple("interrupted" if n in unfinished else "ok" for n in range(EXAMPLES))
    converged = torch.tensor([n not in unfinished for n in range(EXAMPLES)])
    same = {name: getattr(result, name) for name in ("conductance", "unit_error", "error")}
    return random_result(seed, **same, status=status, converged=converged)


def renamed(result: TotalConductance, old: str, new: str) -> TotalConductance:
    """Give a layer another name."""
    names = {name: new if name == old else name for name in result}
    kind, shape, axis, groups, cut = LAYERS[old]
    info = {names[name]: each for name, each in result.info.items()}
    info[new] = LayerInfo(new, kind, shape, axis, groups, is_cut=cut, moves=True, used=True)
    tables: dict[str, Any] = {
        field: {names[name]: each for name, each in getattr(result, field).items()}
        for field in ("conductance", "unit_error", "error")
    }
    return random_result(**tables, info=info)
