"""Numbers beyond all measure, inputs of the wrong kind and long work: said clearly, without warnings of others."""

import sys
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from conductance import ConvergenceWarning, total_conductance
from conductance.hooks import HookPoint
from tests.helpers import normal, seeded

X = normal(3, 4, seed=1)
HUGE = 10**400


def net(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 5))).double()


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"rtol": HUGE}, ValueError, "rtol is beyond the range"),
    ({"atol": HUGE}, ValueError, "atol is beyond the range"),
    ({"n_steps": HUGE}, ValueError, "n_steps is more than"),
    ({"target": HUGE}, TypeError, r"target is no index \(int: "),
    ({"target": [HUGE] * 3}, TypeError, r"target is no index \(list: "),
    ({"baselines": HUGE}, ValueError, "baselines is a number beyond the range of torch.float64"),
    ({"baselines": X * 1j}, TypeError, r"baseline of inputs\[0\] is complex"),
    ({"baselines": X.to_sparse()}, TypeError, r"baseline of inputs\[0\] is sparse"),
    ({"inputs": X * 1j}, TypeError, r"inputs\[0\] is a complex128 tensor.*view_as_real"),
    ({"inputs": X.to_sparse()}, TypeError, r"inputs\[0\] is sparse.*to_dense\(\)"),
    ({"layers": HookPoint("0", unit_axis=0)}, ValueError, "'0' has unit_axis=0, the axis of the examples"),
    ({"layers": HookPoint("0", unit_axis=-2)}, ValueError, "'0' has unit_axis=-2, the axis of the examples"),
]


@pytest.mark.parametrize(("changed", "kind", "message"), BAD)
def test_what_cannot_be_used_is_named_before_the_run(
    changed: dict[str, Any], kind: type[Exception], message: str
) -> None:
    model, runs = net(), []
    model.register_forward_hook(lambda _module, _args, output: runs.append(len(output)))
    arguments: dict[str, Any] = {"inputs": X, "target": 0, **changed}
    with pytest.raises(kind, match=message):
        total_conductance(model, arguments.pop("inputs"), **arguments)
    assert len(runs) <= 3


@pytest.mark.parametrize("name", ["max_evaluations", "internal_batch_size"])
def test_budgets_without_end_are_fine(name: str) -> None:
    expected = total_conductance(net(), X, target=0)
    for number in (sys.maxsize, HUGE):
        options: Any = {name: number}
        torch.testing.assert_close(total_conductance(net(), X, target=0, **options)["1"], expected["1"])


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Tanh])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_tolerance_below_rounding_is_a_matter_of_precision(activation: type[nn.Module], dtype: torch.dtype) -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 60), activation(), nn.Linear(60, 50), activation()))
    with pytest.warns(ConvergenceWarning, match="use float64 or a larger rtol"):
        total = total_conductance(model.to(dtype), normal(20, 4, seed=7).to(dtype), target=0, rtol=1e-16)
    assert set(total.status) == {"precision"}


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])
@pytest.mark.parametrize("size", [1e200, 1e300, 5e307])
def test_numbers_near_overflow_leak_no_warnings(activation: type[nn.Module], size: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        for how in ({}, {"n_steps": 5}):
            steep = total_conductance(net(activation), X, target=lambda out: out[:, 0] ** 2 * size, **how)  # type: ignore[arg-type]
            large = total_conductance(net(activation), X * size, target=1, **how)  # type: ignore[arg-type]
            assert float(steep.output_change.abs().max()) > 1e-6 * size
            assert float(large.output_change.abs().max()) > 0.01


def test_the_bar_moves_with_evaluations(capsys: pytest.CaptureFixture[str]) -> None:
    total = total_conductance(net(), X, target=0, rtol=1e-6, internal_batch_size=2, progress=True)
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert f"evaluations={int(total.evaluations.sum())}" in shown
    total_conductance(net(), X, target=0)
    assert not capsys.readouterr().err


def test_the_targets_of_a_large_batch_are_kept_in_the_settings() -> None:
    x = normal(100, 4)
    targets = torch.arange(100) % 5
    total = total_conductance(net(), x, "1", target=targets, baselines=torch.zeros_like(x))
    assert total.settings["target"] == targets.tolist()
    assert total.settings["baselines"] == "tensor of shape (100, 4)"
