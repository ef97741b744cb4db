"""The tolerance asked for is kept: true error Σ|C - C_ref| / Σ|C_ref| within rtol for 95 % of the images."""

import warnings
from functools import cache

import pytest
import torch
from torch import Tensor

from conductance import total_conductance
from tests.benchmarks.nets import Activation, digits, hidden_layers, trained
from tests.reference import exact_piecewise_linear, relative_error, trapezoid_total

IMAGES = 20
KEPT = 0.95
WIDE = ("mlp", "mlp3x128", "mlp6x128", "conv")
NARROW = ("narrow1", "narrow2", "narrow4", "thin1", "thin2", "thin4")
TOLERANCES = (1e-1, 1e-2, 1e-3)

pytestmark = pytest.mark.filterwarnings("ignore:the baseline is itself confident")


@cache
def _images(name: str, activation: Activation) -> Tensor:
    """The first test images whose predicted logit is not the baseline's: no tolerance is relative to 0."""
    model, images = trained(name, activation), digits().test
    targets = model(images).argmax(1)
    changes = (model(images) - model(torch.zeros_like(images))).gather(1, targets[:, None])[:, 0]
    chosen: Tensor = images[changes.abs() > 0.05][:IMAGES]
    assert len(chosen) == IMAGES
    return chosen


@cache
def _targets(name: str, activation: Activation) -> Tensor:
    labels: Tensor = trained(name, activation)(_images(name, activation)).argmax(1)
    return labels


@cache
def _reference(name: str, activation: Activation) -> dict[str, Tensor]:
    """Conductance of every hidden layer: exact if piecewise linear, else to 1e-9 (1e-5 with max-pools)."""
    model, images, targets = trained(name, activation), _images(name, activation), _targets(name, activation)
    layers = hidden_layers(model)
    if activation != "relu":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # baselines may be sure of the target, too
            total = total_conductance(model, images, layers, target=targets, rtol=1e-5 if name == "conv" else 1e-9)
        return {layer: total[layer] for layer in layers}
    rows = [
        exact_piecewise_linear(model, image[None], torch.zeros(1, 64, dtype=torch.float64), int(target), layers)
        for image, target in zip(images, targets, strict=True)
    ]
    return {layer: torch.stack([row[layer] for row in rows]) for layer in layers}


def _assert_kept(name: str, activation: Activation, layers: list[str], rtol: float) -> None:
    model, reference = trained(name, activation), _reference(name, activation)
    total = total_conductance(model, _images(name, activation), layers, target=_targets(name, activation), rtol=rtol)
    assert bool(total.converged.all())
    errors = torch.tensor(
        [[relative_error(total[layer][k], reference[layer][k]) for k in range(IMAGES)] for layer in layers]
    )
    kept = (errors <= rtol) | (torch.stack([reference[layer].flatten(1).abs().sum(1) for layer in layers]) == 0)
    assert float(kept.all(0).double().mean()) >= KEPT, errors.amax(1)


@pytest.mark.parametrize("rtol", TOLERANCES)
@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
@pytest.mark.parametrize("name", WIDE)
def test_tolerance_is_kept_for_all_layers_at_once(name: str, activation: Activation, rtol: float) -> None:
    _assert_kept(name, activation, hidden_layers(trained(name, activation)), rtol)


@pytest.mark.parametrize("rtol", TOLERANCES)
@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
@pytest.mark.parametrize("name", NARROW)
def test_tolerance_is_kept_for_narrow_layers_alone(name: str, activation: Activation, rtol: float) -> None:
    model = trained(name, activation)
    narrow = "2" if name.startswith("narrow") else "1"
    for layer in (f"fc{narrow}", f"act{narrow}"):
        _assert_kept(name, activation, [layer], rtol)
    _assert_kept(name, activation, hidden_layers(model), rtol)


@pytest.mark.slow
@pytest.mark.parametrize("rtol", TOLERANCES)
@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
@pytest.mark.parametrize("name", WIDE)
def test_tolerance_is_kept_for_every_layer_alone(name: str, activation: Activation, rtol: float) -> None:
    for layer in hidden_layers(trained(name, activation)):
        _assert_kept(name, activation, [layer], rtol)


@pytest.mark.parametrize(("name", "activation"), [("mlp", "gelu"), ("mlp3x128", "tanh"), ("narrow1", "gelu")])
def test_tight_tolerance_is_a_reference(name: str, activation: Activation) -> None:
    """What smooth networks are compared with, against a hundred thousand steps."""
    model, target = trained(name, activation), int(_targets(name, activation)[0])
    layers = hidden_layers(model)
    zero = torch.zeros(1, 64, dtype=torch.float64)
    slow = trapezoid_total(model, _images(name, activation)[:1], zero, target, layers)
    for layer in layers:
        assert relative_error(_reference(name, activation)[layer][0], slow[layer]) < 1e-7


@pytest.mark.parametrize(("name", "activation"), [("mlp", "relu"), ("mlp", "gelu"), ("conv", "relu")])
def test_estimated_errors_cover_the_true_ones(name: str, activation: Activation) -> None:
    """Twice the estimate of a layer is above its true error nearly always."""
    model, reference = trained(name, activation), _reference(name, activation)
    layers = hidden_layers(model)
    total = total_conductance(model, _images(name, activation), layers, target=_targets(name, activation), rtol=1e-2)
    for layer in layers:
        true = torch.tensor([relative_error(total[layer][k], reference[layer][k]) for k in range(IMAGES)])
        assert bool((total.error[layer] <= 1e-2).all())
        assert float((true <= 2 * total.error[layer].to(true)).double().mean()) >= 0.9


def test_tighter_tolerances_take_more_evaluations() -> None:
    model = trained("mlp")
    targets = _targets("mlp", "relu")
    cost = [
        total_conductance(model, _images("mlp", "relu"), "act2", target=targets, rtol=rtol)
        .evaluations.double()
        .median()
        for rtol in TOLERANCES
    ]
    assert cost[0] < cost[1] < cost[2]
    assert cost[0] <= 40
