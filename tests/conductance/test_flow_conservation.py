"""Nothing is lost or made up: outflow is conductance exactly at any nodes, inflow within the tolerance."""

import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance import total_conductance
from conductance.flow import conductance_flow
from conductance.flow_results import SINK, SOURCE
from tests.benchmarks.nets import digits, hidden_layers, trained
from tests.conductance.flows import assert_balanced, assert_near
from tests.helpers import AttentionNet, ChunkNet, ConvNet, ResidualNet, TwoInputNet, normal, seeded


@dataclass(frozen=True)
class Setting:
    """A network, its input shapes and layers; those in ``cuts`` carry all of dF."""

    model: nn.Module
    shapes: tuple[tuple[int, ...], ...]
    layers: list[str]
    cuts: list[str]


class LateInput(nn.Module):
    """``join`` takes a tensor that was made before, and that fed, the layer tapped first."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 3)
        self.join = nn.Bilinear(3, 5, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        early = torch.tanh(x * 1.3)
        output: Tensor = self.head(torch.sigmoid(self.join(self.fc(early).tanh(), early)))
        return output


SETTINGS = {
    "conv": Setting(seeded(ConvNet), ((3, 8, 10),), ["conv", "act", "pool", "fc"], ["conv", "act", "pool", "fc"]),
    "attention": Setting(
        seeded(AttentionNet),
        ((5, 6),),
        ["norm1", "query", "key", "value", "softmax", "out:in", "act", "head"],
        ["head"],
    ),
    "residual": Setting(seeded(ResidualNet), ((7,),), ["stem", "act1", "sum1", "down2"], ["stem", "sum1"]),
    "two inputs": Setting(seeded(TwoInputNet), ((3,), (5,)), ["left", "right", "joint"], ["joint"]),
    "chunks": Setting(seeded(ChunkNet), ((6,),), ["fc", "gated", "side", "joined"], ["joined"]),
    "late input": Setting(seeded(LateInput), ((5,),), ["fc", "join:in[1]", "join"], ["join:in[1]", "join"]),
}


def _inputs(setting: Setting, seed: int = 0, scale: float = 1.0) -> Tensor | tuple[Tensor, ...]:
    parts = tuple(normal(3, *shape, seed=seed + n, scale=scale) for n, shape in enumerate(setting.shapes))
    return parts if len(parts) > 1 else parts[0]


@pytest.mark.parametrize("n_steps", [2, 3, 5, 8, 17])
@pytest.mark.parametrize("name", SETTINGS)
def test_outflow_is_total_conductance_at_the_same_nodes(name: str, n_steps: int) -> None:
    setting = SETTINGS[name]
    inputs, baselines, target = _inputs(setting), _inputs(setting, 7, 0.3), torch.tensor([1, 0, 1])
    flow = conductance_flow(
        setting.model, inputs, setting.layers, top=3, target=target, baselines=baselines, n_steps=n_steps
    )
    total = total_conductance(
        setting.model, inputs, setting.layers, target=target, baselines=baselines, n_steps=n_steps
    )
    assert sorted(flow.layers) == sorted(setting.layers)
    assert_balanced(flow)
    for layer in flow.layers:
        per_unit = total.per_unit(layer)
        own = [int(unit) for unit in flow.units[layer] if unit != "rest"]
        rest = [per_unit.sum(1) - per_unit[:, own].sum(1)] if "rest" in flow.units[layer] else []
        expected = torch.cat([per_unit[:, own], *(one[:, None] for one in rest)], 1)
        assert_near(flow.outflow(layer), expected, 1e-10, per_unit)
        assert_near(flow.conductance[layer], expected, 1e-10, per_unit)
    assert_near(flow.conductance[SINK][:, 0, None], total.output_change[:, None], 1e-12)


@pytest.mark.parametrize("name", SETTINGS)
def test_inflow_is_conductance_within_the_tolerance(name: str) -> None:
    setting = SETTINGS[name]
    flow = conductance_flow(setting.model, _inputs(setting), setting.layers, top=None, target=1, rtol=1e-4)
    assert flow.converged.all()
    assert flow.status == ("ok",) * 3
    assert_balanced(flow)
    for layer in flow.layers:
        assert_near(flow.inflow(layer), flow.conductance[layer], 1.1e-4)
        assert float(flow.error[layer].max()) <= 1.1e-4
        if layer in setting.cuts:
            assert_near(
                flow.outflow(layer).sum(1, keepdim=True), flow.output_change[:, None], 1e-3, flow.outflow(layer)
            )
    assert_near(flow.conductance[SOURCE], flow.output_change[:, None], 1e-2)
    assert_near(flow.inflow(SINK), flow.output_change[:, None], 1e-2)


@pytest.mark.parametrize("name", ["conv", "residual"])
def test_input_groups_share_what_enters(name: str) -> None:
    """Sums over the groups are the flow of one group; each group has its integrated gradients."""
    setting = SETTINGS[name]
    inputs, shape = _inputs(setting), setting.shapes[0]
    generator = torch.Generator().manual_seed(2)
    mask = torch.randint(0, 4, shape, generator=generator)
    options: dict[str, Any] = {"top": 2, "target": 1, "n_steps": 6}
    whole = conductance_flow(setting.model, inputs, setting.layers, **options)
    split = conductance_flow(setting.model, inputs, setting.layers, feature_groups=mask, **options)
    assert split.units[SOURCE] == [0, 1, 2, 3]
    assert whole.units[SOURCE] == ["input"]
    assert_balanced(split)
    for pair, edge in whole.edges.items():
        found = split.edges[pair]
        assert_near(found.sum(1, keepdim=True) if pair[0] == SOURCE else found, edge, 1e-10)
    integrated = _integrated_gradients(setting.model, inputs, 6, kinked=name == "conv")
    grouped = torch.stack([(integrated * (mask == group)).flatten(1).sum(1) for group in range(4)], 1)
    assert_near(split.conductance[SOURCE], grouped, 1e-9, integrated)


def _integrated_gradients(model: nn.Module, inputs: Tensor | tuple[Tensor, ...], n: int, *, kinked: bool) -> Tensor:
    """Of target 1 from zero, by the weights of the rule that total conductance takes."""
    assert isinstance(inputs, Tensor)
    first = nn.Identity()
    total = total_conductance(nn.Sequential(first, model), inputs, "0", target=1, n_steps=n)
    assert (total.settings["scheme"] == "kinked") == kinked
    return total["0"]


def test_a_tight_tolerance_is_kept_by_every_edge() -> None:
    setting = SETTINGS["attention"]
    rough, fine = (
        conductance_flow(
            setting.model, _inputs(setting), setting.layers, target=1, rtol=rtol, units=dict.fromkeys(setting.layers, 0)
        )
        for rtol in (1e-3, 1e-10)
    )
    for layer in (*rough.layers, SINK):
        missed = sum((rough.edges[p] - fine.edges[p]).abs().sum((1, 2)) for p in fine.edges if p[1] == layer)
        size = sum(fine.edges[p].abs().sum((1, 2)) for p in fine.edges if p[1] == layer)
        assert bool(torch.as_tensor(missed <= 1e-3 * size).all())
    assert fine.converged.all()
    assert_near(fine.inflow("out:in"), fine.conductance["out:in"], 1e-9)
    assert bool((fine.evaluations > rough.evaluations).all())


def test_an_exact_flow_of_a_piecewise_linear_network() -> None:
    model, images = trained("mlp", "relu"), digits().test[:1]
    flow = conductance_flow(model, images, hidden_layers(model), top=4, target=3, rtol=1e-9)
    assert flow.converged.all()
    assert_balanced(flow)
    for layer in flow.layers:
        assert_near(flow.inflow(layer), flow.conductance[layer], 1e-8)
        assert_near(flow.outflow(layer).sum(1, keepdim=True), flow.output_change[:, None], 1e-8)


@pytest.mark.parametrize("name", ["conv", "residual"])
def test_single_precision_balances_to_its_rounding(name: str) -> None:
    setting = SETTINGS[name]
    model = (ConvNet() if name == "conv" else ResidualNet()).eval()
    model.load_state_dict(setting.model.state_dict())
    inputs, start = _inputs(setting), _inputs(setting, 7, 0.3)  # at zero all positions of the pool would tie
    assert isinstance(inputs, Tensor)
    assert isinstance(start, Tensor)
    options: dict[str, Any] = {"top": 3, "target": 1, "n_steps": 9}
    flow = conductance_flow(model, inputs.float(), setting.layers, baselines=start.float(), **options)
    assert flow.edges[flow.layers[0], flow.layers[1]].dtype == torch.float32
    assert_balanced(flow, 2e-6)
    wide = conductance_flow(setting.model, inputs, setting.layers, baselines=start, **options)
    for pair, edge in wide.edges.items():
        assert_near(flow.edges[pair].double(), edge, 1e-4)


def test_evaluations_stay_within_reach_of_the_budget() -> None:
    setting = SETTINGS["conv"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for most in (10, 40, 160, 640):
            flow = conductance_flow(
                setting.model, _inputs(setting), setting.layers, target=1, rtol=1e-5, max_evaluations=most
            )
            assert int(flow.evaluations.max()) <= 2 * most
            assert [status == "ok" for status in flow.status] == flow.converged.tolist()
    assert "budget" in flow.status or flow.converged.all()
