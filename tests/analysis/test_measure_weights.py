"""Incoming weights of units: norms by hand, the producer behind other modules, layers that have none."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance.analysis import measure_values
from conductance.errors import ConductanceError
from conductance.hooks import HookPoint
from tests.helpers import normal, seeded


@pytest.mark.parametrize(("norm", "power"), [("l1", 1), ("l2", 2)])
def test_norms_of_rows_and_filters_also_behind_what_keeps_the_units(norm: Any, power: int) -> None:
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 5, (3, 4)), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d((2, 1)), nn.Flatten(),
            nn.Linear(50, 7), nn.Dropout(), nn.Tanh(), nn.Linear(7, 3),
        )
    )  # fmt: skip
    layers = ["0", "1", "2", "3", "5", "6", "7", "8"]
    given: dict[str, Any] = {"target": 0, "measures": "weight_magnitude", "norm": norm}
    found = measure_values(model, normal(4, 2, 6, 8), layers, **given)["weight_magnitude"]
    for layer, source in zip(layers, ("0", "0", "0", "0", "5", "5", "5", "8"), strict=True):
        expected = [float((row.abs() ** power).sum() ** (1 / power)) for row in model.get_parameter(f"{source}.weight")]
        assert found[layer].shape == (4, len(expected))
        assert (found[layer] - torch.tensor(expected, dtype=torch.float64)).abs().max() < 1e-12


@pytest.mark.parametrize("groups", [1, 2])
def test_weight_magnitude_of_transposed_convolutions_in_groups_and_of_groups_of_units(groups: int) -> None:
    model = seeded(lambda: nn.Sequential(nn.ConvTranspose1d(4, 6, 3, groups=groups), nn.ReLU(inplace=True)))
    weight = model.get_parameter("0.weight")
    per_group = 6 // groups
    expected = []
    for unit in range(6):
        first = (unit // per_group) * (4 // groups)
        expected.append(weight[first : first + 4 // groups, unit % per_group].norm())
    given: dict[str, Any] = {"target": lambda output: output.sum((1, 2)), "measures": "weight_magnitude"}
    found = measure_values(model, normal(2, 4, 5), ["0", "1"], **given)["weight_magnitude"]
    assert (found["0"][0] - torch.stack(expected)).abs().max() < 1e-12
    assert (found["1"] == found["0"]).all()
    halves = measure_values(model, normal(2, 4, 5), HookPoint("0", unit_groups=2), **given)["weight_magnitude"]["0"]
    assert (halves[0] - torch.stack(expected).reshape(2, 3).norm(dim=1)).abs().max() < 1e-12


@pytest.mark.parametrize("layer", ["flat", "sum"])
def test_a_layer_without_weights_is_told(layer: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.flat, self.fc, self.sum = nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(9, 4), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.sum(torch.relu(self.fc(self.flat(self.conv(x)))))
            return output

    with pytest.raises(ConductanceError, match=rf"'weight_magnitude' needs.*'{layer}'.*name the Linear or convolution"):
        measure_values(seeded(Net), normal(2, 2, 4), layer, target=0, measures="weight_magnitude")


def test_a_norm_over_another_axis_than_that_of_the_weights_is_told() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(16, 2)))
    with pytest.raises(ConductanceError, match="the 4 rows of weights before it are none for the units"):
        measure_values(model, normal(3, 4, 2), "1", target=0, measures="weight_magnitude")
