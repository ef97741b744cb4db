"""The critiques of 1805.12233 on toy networks: saturation, sign, overshoot."""

import pytest
import torch
from torch import Tensor, nn

from conductance.analysis import measure_values
from tests.helpers import AddedAndTakenAway, Clipped, Negated, frozen

ONE = torch.ones(1, 1, dtype=torch.float64)


class NeverOn(nn.Module):
    """``f(x) = x + max(x - 1, 0)``: the unit is off up to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.tap = nn.Identity()
        self.unit = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.tap(x)
        output: Tensor = x + self.unit(x - 1)
        return output


def on_toy(model: nn.Module, layers: list[str], x: Tensor) -> dict[str, float]:
    """Values of the last of the layers."""
    measures = ["conductance", "gradient_x_activation", "gradient_x_difference", "activation", "internal_influence"]
    found = measure_values(frozen(model), x, layers, target=0, measures=measures, rtol=1e-9)
    return {measure: float(values[layers[-1]]) for measure, values in found.items()}


def test_a_saturated_unit_still_conducts() -> None:
    """``min(y, 1)`` of ``y = 2 x``: no gradient at the input, though y made all of the output."""
    found = on_toy(Clipped(), ["twice"], ONE)
    assert found["conductance"] == pytest.approx(1, abs=1e-9)
    assert found["gradient_x_activation"] == found["gradient_x_difference"] == 0
    assert found["internal_influence"] == pytest.approx(0.5, abs=1e-9)
    assert found["activation"] == pytest.approx(2, abs=1e-12)


def test_influence_has_the_sign_of_the_gradient_conductance_that_of_the_effect() -> None:
    """``g = -x`` is the output: the unit takes 1 away, its gradient is 1."""
    found = on_toy(Negated(), ["hidden"], ONE)
    assert found["conductance"] == pytest.approx(-1, abs=1e-9)
    assert found["internal_influence"] == pytest.approx(1, abs=1e-6)  # Captum's weights are float32


def test_influence_credits_a_unit_that_stays_off() -> None:
    """``f = x + max(x - 1, 0)`` from 0 to 1 - 1e-9: whatever is behind the unit, it is silent."""
    found = on_toy(NeverOn(), ["tap", "unit"], ONE - 1e-9)
    assert found["conductance"] == found["gradient_x_difference"] == found["activation"] == 0
    assert found["internal_influence"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("x", [2.0, 3.5])
def test_activation_credits_a_unit_that_is_taken_away_again(x: float) -> None:
    """``f = x`` with ``max(x - 1, 0)`` added and taken away."""
    found = on_toy(AddedAndTakenAway(), ["tap", "unit"], ONE * x)
    assert found["conductance"] == pytest.approx(0, abs=1e-9)
    assert found["gradient_x_activation"] == pytest.approx(0, abs=1e-12)
    assert found["activation"] == pytest.approx(x - 1, abs=1e-12)
