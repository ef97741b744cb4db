"""Edges that are read off a weight, against those that are pulled back."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from conductance import ConductanceFlow, conductance_flow
from conductance.flow_weights import ThroughWeights
from tests.conductance.flows import assert_balanced, assert_near
from tests.helpers import normal, seeded


def conv() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(5, 7, 2), nn.GELU(),
        nn.ConvTranspose2d(7, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(27, 6), nn.Tanh(), nn.Linear(6, 4),
    )  # fmt: skip


def tokens() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 5), nn.GELU(), nn.Flatten(), nn.Linear(15, 3))


def grouped() -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(4, 6, 2), nn.Tanh(), nn.Conv1d(6, 8, 2, groups=2), nn.Flatten(), nn.Linear(24, 3))


def _flow(model: nn.Module, x: Tensor, layers: list[str], **options: Any) -> tuple[ConductanceFlow, set[str]]:
    """A flow, and the layers whose edges were read off a weight."""
    used: set[str] = set()
    edges = ThroughWeights.edges

    def noted(self: ThroughWeights, layer: int, *others: Any) -> Any:
        used.add(flow_layers[layer])
        return edges(self, layer, *others)

    flow_layers = layers
    with patch.object(ThroughWeights, "edges", noted):
        flow = conductance_flow(model, x, layers, target=1, **options)
    assert flow.layers == layers
    return flow, used


NETS = {
    "conv": (conv, normal(3, 2, 6, 6, seed=3), ["0", "1", "2", "3", "4", "5", "7", "8", "9"], {"2", "4", "9"}),
    "tokens": (tokens, normal(3, 3, 4, seed=4), ["0", "1", "2", "3"], {"2"}),
    "between ends": (tokens, normal(3, 3, 4, seed=4), ["1", "2", "5:in", "5"], {"2", "5"}),
    "grouped": (grouped, normal(3, 4, 5, seed=5), ["1", "2"], set()),
}


@pytest.mark.parametrize("options", [{"n_steps": 6}, {"n_steps": 40}, {"n_steps": 7, "internal_batch_size": 3}])
@pytest.mark.parametrize("name", NETS)
def test_they_are_what_pull_backs_give(name: str, options: dict[str, Any]) -> None:
    make, x, layers, expected = NETS[name]
    model = seeded(make)
    flow, used = _flow(model, x, layers, top=3, **options)
    assert used == expected
    with patch.object(ThroughWeights, "__contains__", lambda _self, _layer: False):
        pulled, none = _flow(model, x, layers, top=3, **options)
    assert not none
    assert flow.units == pulled.units
    for pair, edge in pulled.edges.items():
        assert float(edge.abs().sum()) > 1e-6
        assert_near(flow.edges[pair], edge, 1e-10)
    assert_balanced(flow)


class Masked(nn.Linear):
    """A linear map of part of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * (self.weight > 0), self.bias)


def test_a_layer_with_a_forward_of_its_own_is_pulled_back() -> None:
    def net(kind: type[nn.Linear]) -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), kind(6, 5), nn.Tanh(), nn.Linear(5, 3))

    masked, plain = (seeded(lambda kind=kind: net(kind)) for kind in (Masked, nn.Linear))  # type: ignore[misc]
    with torch.no_grad():
        plain.get_parameter("2.weight").clamp_(min=0.0)
    x = normal(3, 4, seed=6)
    own, used = _flow(masked, x, ["1", "2"], top=None, n_steps=5)
    same, through = _flow(plain, x, ["1", "2"], top=None, n_steps=5)
    assert (used, through) == (set(), {"2"})
    order = [same.units["1"].index(unit) for unit in own.units["1"]]
    behind = [same.units["2"].index(unit) for unit in own.units["2"]]
    assert float(own.edges["1", "2"].abs().sum()) > 0.01
    assert_near(own.edges["1", "2"], same.edges["1", "2"][:, order][:, :, behind], 1e-10)
