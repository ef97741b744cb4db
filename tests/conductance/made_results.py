"""Results of random numbers, and their comparison field by field."""

from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor

from conductance.results import LayerInfo, TotalConductance

SHAPES: dict[str, tuple[tuple[int, ...], int, int | None]] = {
    "conv": ((5, 3, 7), 1, None),  # channels first
    "attn.o_proj:in": ((11, 6), 2, 2),  # positions, then heads
    "output": ((), 0, None),  # one number an example, and the name of a field
    "<script>alert('ü')</script>[0]": ((4,), 1, None),
}


def make(batch: int = 3, seed: int = 0, spread: bool = True, dtype: torch.dtype = torch.float64) -> TotalConductance:
    """Random numbers in every field; only the shapes mean anything."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator, dtype=torch.float64).to(dtype)

    info = {
        name: LayerInfo(name, "Conv2d", shape, axis, groups, is_cut=name == "output", moves=True, used=True)
        for name, (shape, axis, groups) in SHAPES.items()
    }
    return TotalConductance(
        conductance={name: random(*each.shape) for name, each in info.items()},
        unit_error={name: random(each.units).abs() for name, each in info.items()},
        error={name: random().abs() for name in info},
        info=info,
        output=random(),
        baseline_output=random(),
        unattributed=random(),
        status=("ok", "jump", "budget", "ok", "ok")[:batch],
        jumps=((), ((0.25, 0.5, 1 / 3), (0.75, 1.0, -2.0)), (), (), ())[:batch],
        evaluations=torch.tensor([9, 5, 65, 33, 17])[:batch],
        converged=torch.tensor([True, False, False, True, True])[:batch],
        spread={name: random(*each.shape).abs() for name, each in info.items()} if spread else None,
        settings={"target": [1, None], "rtol": 0.1, "scheme": "kinked", "seconds": 1.5},
    )


def leaves(result: TotalConductance) -> dict[str, Any]:
    """Every field, with the entries of dicts on their own, in order."""
    found: dict[str, Any] = {}
    for field in fields(result):
        value = getattr(result, field.name)
        if isinstance(value, dict):
            found |= {f"{field.name}/{key}": each for key, each in value.items()}
        else:
            found[field.name] = value
    return found


def assert_identical(result: TotalConductance, expected: TotalConductance) -> None:
    """Compare bits, dtypes, order and metadata."""
    assert list(leaves(result)) == list(leaves(expected))
    for key, value in leaves(expected).items():
        other = leaves(result)[key]
        if isinstance(value, Tensor):
            assert other.dtype == value.dtype, key
            torch.testing.assert_close(other, value, rtol=0, atol=0, equal_nan=True)
        elif isinstance(value, LayerInfo):
            assert asdict(other) == asdict(value)
        else:
            assert other == value, key
