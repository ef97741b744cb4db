"""The ends of the path are the true ones: what F does right at them is attributed or said, never overlooked."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance import ConductanceError, ConvergenceWarning, TotalConductance, total_conductance
from tests.helpers import normal
from tests.hooks.nets import Lambda

X = normal(3, 4, seed=1).abs() + 0.5


class Kinked(nn.Module):
    """A function of the input, beside a kink that takes no part in it."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.tap = nn.Identity()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """One number a row."""
        x = self.tap(x)
        return (self.function(x) + (x + 9).relu() - (x + 9)).sum(1)


def _total(function: Callable[[Tensor], Tensor], inputs: Tensor = X, **options: Any) -> TotalConductance:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return total_conductance(Kinked(function), inputs, target=None, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("how", [{"rtol": 1e-3}, {"rtol": 1e-2}, {"n_steps": 200}], ids=str)
def test_a_steep_end_is_not_called_converged_unless_it_is_right(dtype: torch.dtype, how: dict[str, Any]) -> None:
    total = _total(lambda x: x.pow(0.25), X.to(dtype), **how)
    true = X.to(dtype).pow(0.25)
    torch.testing.assert_close(total.output_change, true.sum(1), rtol=1e-6, atol=0)
    off = (total["tap"] - true).abs().sum(1) / true.sum(1)
    assert (off[total.converged] <= how.get("rtol", 1e-2)).all()
    torch.testing.assert_close(total.unattributed, (true - total["tap"]).sum(1), rtol=0, atol=1e-3)
    if dtype == torch.float32:
        assert not total.converged.any()
    if dtype == torch.float32 and "rtol" in how:
        assert set(total.status) == {"jump"}
        assert [jumps[0][:2] for jumps in total.jumps] == [(0.0, 1e-6)] * 3


@pytest.mark.parametrize("how", [{}, {"n_steps": 9}], ids=str)
@pytest.mark.parametrize("at", ["baseline", "input"])
def test_a_jump_exactly_at_an_end_is_seen(at: str, how: dict[str, Any]) -> None:
    edge = torch.zeros_like(X) if at == "baseline" else X

    def jumps(x: Tensor) -> Tensor:
        there = (x[:, None] == edge).all(2).any(1, keepdim=True)
        return 2 * x + there.to(x) * torch.tensor([3.0, 0, 0, 0], dtype=x.dtype)

    total = _total(jumps, **how)
    size = -3.0 if at == "baseline" else 3.0
    torch.testing.assert_close(total.output_change, 2 * X.sum(1) + size)
    torch.testing.assert_close(total.unattributed, torch.full((3,), size, dtype=torch.float64))
    assert set(total.status) == {"jump"}
    assert not total.converged.any()
    for found in total.jumps:
        (jump,) = found
        assert jump[2] == pytest.approx(size)
        assert jump[:2] == ((0.0, 1e-12) if at == "baseline" else (1 - 1e-12, 1.0))


@pytest.mark.parametrize("rtol", [1e-2, 1e-4])
def test_a_path_taken_inside_where_its_gradient_is_infinite_is_judged_at_its_true_ends(rtol: float) -> None:
    """Smooth, so that only the infinite gradient moves the ends: by 1e-9, of which the fourth root is 5.6e-3."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        total = total_conductance(nn.Sequential(nn.Identity()), X, target=lambda y: y.pow(0.25).sum(1), rtol=rtol)
    torch.testing.assert_close(total.output_change, X.pow(0.25).sum(1), rtol=1e-12, atol=0)
    share = total.unattributed / total.output_change
    assert (share > 5e-3).all()
    assert set(total.status) == ({"ok"} if rtol == 1e-2 else {"jump"})


def test_outputs_are_those_at_the_true_ends() -> None:
    total = _total(torch.sin, baselines=[0.25, X.flip(1)])
    assert total.converged.all()
    torch.testing.assert_close(total.output, X.sin().sum(1), rtol=1e-15, atol=0)
    starts = (torch.full_like(X, 0.25).sin().sum(1) + X.flip(1).sin().sum(1)) / 2
    torch.testing.assert_close(total.baseline_output, starts, rtol=1e-14, atol=0)


def test_an_end_where_the_function_is_not_defined_is_refused() -> None:
    with pytest.raises(ConductanceError, match=r"example 0, at 0 of the path.*choose a baseline"):
        _total(torch.log)


def test_an_end_without_a_gradient_on_both_sides_is_refused() -> None:
    class Flat(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return torch.where(x < 1e-3, torch.nan, grad)

    with pytest.raises(ConductanceError, match="gradient"):
        _total(Flat.apply)


@pytest.mark.parametrize("waves", [2, 4, 8])
def test_periodic_functions_do_not_look_constant(waves: int) -> None:
    """``F = y1 y2`` of ``y = (sin, cos)(2π waves a)``: both units come back to where they were at even places."""

    def circle(x: Tensor) -> Tensor:
        angle = 2 * math.pi * waves * x
        return torch.cat([angle.sin(), angle.cos()], 1)

    model = nn.Sequential(Lambda(lambda _, x: circle(x)), Kinked(lambda y: 0.5 * y[:, :1] * y[:, 1:]))
    total = total_conductance(model, torch.ones(1, 1).double(), "1.tap", target=None, rtol=0.01)
    assert total.converged.all()
    expected = torch.tensor([[math.pi * waves, -math.pi * waves]], dtype=torch.float64)
    torch.testing.assert_close(total["1.tap"], expected, rtol=0.015, atol=0)


def test_forward_rows_at_the_ends_keep_to_the_size_of_a_call() -> None:
    rows = []
    model = Kinked(torch.sin)
    model.tap.register_forward_pre_hook(lambda _module, args: rows.append(len(args[0])))
    total = total_conductance(model, normal(7, 4), target=None, internal_batch_size=3)
    assert total.converged.all()
    assert max(rows[3:]) <= 3
