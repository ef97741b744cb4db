"""Precision: what is claimed holds against the same weights in float64, in every dtype, with autocast or without."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import conductance as cd
from conductance import ConvergenceWarning, TotalConductance, total_conductance
from tests.helpers import normal, seeded

X = normal(4, 6, seed=11)
LOW = [torch.float32, torch.bfloat16, torch.float16]


def net(activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), activation(), nn.Linear(16, 12), activation(), nn.Linear(12, 3))


def quietly(model: nn.Module, x: Tensor, **options: Any) -> TotalConductance:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return total_conductance(model, x, target=0, **options)


def pair(activation: type[nn.Module], dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """A model in a dtype, and the same weights, as rounded there, in float64."""
    low = seeded(lambda: net(activation)).to(dtype)
    return low, copy.deepcopy(low).double()


def ratios(found: TotalConductance, true: TotalConductance) -> list[float]:
    """True over claimed error, of each example and layer."""
    result: list[float] = []
    for layer in found:
        values = found[layer].double()
        wrong = (values - true[layer]).flatten(1).abs().sum(1)
        claimed = found.error[layer].double() * values.flatten(1).abs().sum(1)
        result += (wrong / claimed.clamp(min=1e-300)).tolist()
    return result


@pytest.mark.parametrize("n_steps", [None, 9])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
@pytest.mark.parametrize("dtype", LOW)
def test_half_precision_claims_no_less_than_the_true_error(
    dtype: torch.dtype, activation: type[nn.Module], n_steps: int | None
) -> None:
    low, exact = pair(activation, dtype)
    x = X.to(dtype)
    for near in (None, 2**-3, 2**-6):  # a near baseline: activations change by little of what they are
        baseline = None if near is None else (x.double() * (1 - near)).to(dtype)
        found = quietly(low, x, baselines=baseline, n_steps=n_steps)
        wide = None if baseline is None else baseline.double()
        known = ratios(found, quietly(exact, x.double(), baselines=wide, rtol=1e-6))
        assert max(known) > 1e-3  # there is an error to be claimed
        assert np.mean(np.array(known) <= 1) >= 0.95
        assert max(known) <= 3


@pytest.mark.parametrize("dtype", [*LOW, torch.float64])
def test_results_are_in_at_least_float32_and_in_float64_where_the_model_is(dtype: torch.dtype) -> None:
    low, _ = pair(nn.Tanh, dtype)
    found = quietly(low, X.to(dtype))
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for tensor in (found["1"], found.unit_error["1"], found.error["1"], found.output, found.unattributed):
        assert tensor.dtype == expected
    assert float(found["1"].abs().sum()) > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_with_a_baseline_that_it_hardly_tells_from_the_input_says_so(dtype: torch.dtype) -> None:
    # Rows between them coincide after rounding; the error claimed says that nothing is known.
    low, _ = pair(nn.Tanh, dtype)
    x, eps = X.to(dtype), torch.finfo(dtype).eps
    with pytest.warns(ConvergenceWarning, match="precision.*use float64 or a larger rtol"):
        found = total_conductance(low, x, "1", target=0, baselines=(X * (1 - 2 * eps)).to(dtype))
    assert set(found.status) == {"precision"}
    assert float(found.error["1"].min()) > 0.1


class Inside(nn.Module):
    """Runs its layers under autocast of its own."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output: Tensor = self.body(x)
        return output


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("n_steps", [None, 9])
def test_autocast_claims_no_less_than_the_true_error(inside: bool, n_steps: int | None) -> None:
    low, exact = pair(nn.Tanh, torch.float32)
    x = X.float()
    true = quietly(exact, x.double(), rtol=1e-6)
    if inside:
        found = quietly(Inside(low), x, n_steps=n_steps)
        assert found.layers == [f"body.{name}" for name in true]
        pairs = [(found[f"body.{name}"], found.error[f"body.{name}"], true[name]) for name in true]
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = quietly(low, x, n_steps=n_steps)
        pairs = [(found[name], found.error[name], true[name]) for name in true]
    for values, error, wanted in pairs:
        wrong = (values.double() - wanted).flatten(1).abs().sum(1)
        claimed = error.double() * values.double().flatten(1).abs().sum(1)
        assert values.dtype == torch.float32
        assert float(wrong.max()) > 1e-6  # autocast did something
        assert bool((wrong <= 2 * claimed).all())
        assert float(wrong.max()) < 0.1 * float(wanted.flatten(1).abs().sum(1).max())


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_default_dtype_changes_nothing(default: torch.dtype, dtype: torch.dtype) -> None:
    low, _ = pair(nn.ReLU, dtype)
    routes: list[Callable[[], dict[str, Tensor]]] = [
        lambda: dict(total_conductance(low, X.to(dtype), target=0)),
        lambda: dict(total_conductance(low, X.to(dtype), target=0, baselines=[0.0, 0.5])),
        lambda: dict(quietly(low, X.to(dtype), n_steps=9)),
        lambda: dict(cd.weight_conductance(low, X.to(dtype), ["2"], target=0)),
        lambda: {"": cd.neuron_conductance(low, X.to(dtype), "1", target=0).values},  # type: ignore[dict-item]
    ]
    expected = [route() for route in routes]
    torch.set_default_dtype(default)
    for route, wanted in zip(routes, expected, strict=True):
        found = route()
        assert found.keys() == wanted.keys()
        for name in wanted:
            assert found[name].dtype == wanted[name].dtype == dtype
            assert torch.equal(found[name], wanted[name])
            assert bool(found[name].any())


class NoFloat64(TorchDispatchMode):
    """Fails where an operator makes float64 numbers, as it would on a device without them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        of_host = func is torch.ops.aten.lift_fresh.default  # wraps an array of the host's, and computes nothing
        if isinstance(result, Tensor) and result.dtype == torch.float64 and not of_host:
            raise TypeError(f"{func} made a float64 tensor of shape {tuple(result.shape)}")
        return result


def test_no_float64_is_made_for_a_device_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # What such a device has is simulated: sums in float32, and what goes to the host goes by way of numpy.
    for module in ("engine", "sums", "smooth", "kinked", "fixed", "increments", "diagnosis"):
        name = f"conductance.{module}.wide_dtype"
        monkeypatch.setattr(name, lambda _device: torch.float32, raising=False)
    monkeypatch.setattr("conductance.engine._on_host", lambda values: values.detach().numpy().astype(np.float64))
    for activation in (nn.ReLU, nn.Tanh):
        low, _ = pair(activation, torch.float32)
        x = X.float()
        every: list[dict[str, Any]] = [
            {},
            {"n_steps": 9},
            {"n_steps": 40},
            {"baselines": [0.0, 0.5]},
            {"internal_batch_size": 3},
        ]
        for options in every:
            expected = quietly(low, x, **options)
            with NoFloat64():  # type: ignore[no-untyped-call]
                found = quietly(low, x, **options)
            torch.testing.assert_close(found["1"], expected["1"])
    with pytest.raises(TypeError, match="made a float64 tensor"), NoFloat64():  # type: ignore[no-untyped-call]
        torch.ones(2).double()
