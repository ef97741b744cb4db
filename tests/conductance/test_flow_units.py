"""Nodes: the strongest units, named ones, all of them, heads, tokens; the rest keeps the balance."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance import total_conductance
from conductance.flow import conductance_flow
from conductance.flow_results import REST, SINK, SOURCE, ConductanceFlow
from conductance.hooks import HookPoint
from tests.conductance.flows import assert_balanced, assert_near
from tests.helpers import AttentionNet, ConvNet, ResidualNet, TwoInputNet, normal, seeded

X = normal(3, 7, seed=2)
IMAGES = normal(2, 3, 8, 10, seed=3)
TOKENS = normal(3, 5, 6, seed=4)


def _flow(model: nn.Module, inputs: Any, layers: Any, **options: Any) -> ConductanceFlow:
    flow = conductance_flow(model, inputs, layers, **{"target": 1, "n_steps": 6, **options})
    assert_balanced(flow)
    return flow


def _grouped(edge: Tensor, axis: int, all_units: int, labels: list[int | str]) -> Tensor:
    """Sum an edge of all units over what the labels stand for."""
    own = [int(label) for label in labels if label != REST]
    others = [unit for unit in range(all_units) if unit not in own]
    parts = [edge.index_select(axis, torch.tensor(own))]
    if REST in labels:
        parts.append(edge.index_select(axis, torch.tensor(others)).sum(axis, keepdim=True))
    return torch.cat(parts, axis)


@pytest.mark.parametrize(
    "options",
    [
        {"top": 1},
        {"top": 3},
        {"top": 8},  # as many as act2 has: no rest there
        {"units": {"act1": [4, -1], "act2": slice(1, 6, 2)}},
        {"top": None, "units": {"act1": 3}},
        {"top": 2, "units": {"stem": "all", "act1": torch.tensor([8, 0])}},
    ],
    ids=str,
)
def test_nodes_are_sums_of_the_flow_between_all_units(options: dict[str, Any]) -> None:
    model, layers = seeded(ResidualNet), ["stem", "act1", "act2"]
    sizes = {"stem": 6, "act1": 9, "act2": 8, SOURCE: 1, SINK: 1}
    every, some = _flow(model, X, layers, top=None), _flow(model, X, layers, **options)
    assert [every.units[layer] for layer in layers] == [list(range(sizes[layer])) for layer in layers]
    assert list(some.edges) == list(every.edges)
    for (start, stop), edge in every.edges.items():
        expected = edge
        if start != SOURCE:
            expected = _grouped(expected, 1, sizes[start], some.units[start])
        if stop != SINK:
            expected = _grouped(expected, 2, sizes[stop], some.units[stop])
        assert_near(some.edges[start, stop], expected, 1e-10)


def test_the_units_named_are_the_nodes_in_their_order() -> None:
    units: dict[str, Any] = {"stem": "all", "act1": [4, -1, 4], "act2": slice(1, 6, 2)}
    flow = _flow(seeded(ResidualNet), X, ["stem", "act1", "act2", "down2"], top=2, units=units)
    assert flow.units["stem"] == [0, 1, 2, 3, 4, 5]
    assert flow.units["act1"] == [4, 8, REST]
    assert flow.units["act2"] == [1, 3, 5, REST]
    assert len(flow.units["down2"]) == 3
    assert flow.units["down2"][-1] == REST


@pytest.mark.parametrize("top", [1, 4, 6, 50])
def test_top_units_have_the_largest_mean_absolute_conductance(top: int) -> None:
    model, layers = seeded(ConvNet), ["conv", "fc"]
    flow = _flow(model, IMAGES, layers, top=top)
    total = total_conductance(model, IMAGES, layers, target=1, n_steps=6)
    for layer, count in (("conv", 5), ("fc", 7)):
        size = total.per_unit(layer).abs().mean(0)
        expected = size.argsort(descending=True)[:top].tolist()
        assert flow.units[layer] == [*expected, *([REST] if top < count else [])]
        assert len(flow.units[layer]) == min(top, count) + (top < count)


def test_heads_are_groups_of_the_projection_s_input() -> None:
    model, layers = seeded(AttentionNet), ["query", "value", HookPoint("out", side="in", unit_groups=2), "act"]
    heads = _flow(model, TOKENS, layers, top=None)
    single = _flow(model, TOKENS, ["query", "value", "out:in", "act"], top=None)
    assert heads.units["out:in"] == [0, 1]
    edge = single.edges["value", "out:in"]
    assert_near(heads.edges["value", "out:in"], edge.unflatten(2, (2, 3)).sum(3), 1e-10)
    assert_near(heads.edges["out:in", "act"], single.edges["out:in", "act"].unflatten(1, (2, 3)).sum(2), 1e-10)
    assert_near(heads.edges["query", "out:in"].sum(2), single.edges["query", "out:in"].sum(2), 1e-10)
    # values of one head reach no other head: features 0 to 2 of value belong to head 0
    between = heads.edges["value", "out:in"]
    assert float(between[:, :3, 1].abs().max()) == float(between[:, 3:, 0].abs().max()) == 0.0
    assert bool((between[:, :3, 0].abs().sum(1) > 1e-6).all())


def test_tokens_as_units_and_as_inputs() -> None:
    model = seeded(AttentionNet)
    layers = [HookPoint("norm1", unit_axis=1), HookPoint("value", unit_axis=1), HookPoint("act", unit_axis=1)]
    flow = _flow(model, TOKENS, layers, top=None, feature_groups="token")
    assert flow.units[SOURCE] == flow.units["norm1"] == flow.units["act"] == [0, 1, 2, 3, 4]
    for pair in ((SOURCE, "norm1"), ("norm1", "value")):  # norm and projection work on each token alone
        edge = flow.edges[pair]
        assert float((edge - torch.diag_embed(edge.diagonal(dim1=1, dim2=2))).abs().max()) == 0.0
        assert bool((edge.diagonal(dim1=1, dim2=2).abs() > 0).all())
    mixed = flow.edges["value", "act"]  # attention mixes them
    assert bool((mixed.abs() > 0).all())
    total = total_conductance(model, TOKENS, ["norm1", "value", "act"], target=1, n_steps=6)
    for layer in flow.layers:
        assert_near(flow.conductance[layer], total[layer].sum(2), 1e-10)


def test_several_inputs_and_their_features() -> None:
    model, first, second = seeded(TwoInputNet), normal(3, 3), normal(3, 5, seed=1)
    layers = ["left", "right", "joint"]
    one = _flow(model, (first, second), layers)
    masks = (torch.tensor([0, 0, 5]), torch.tensor([7, 7, 5, 0, 7]))
    several = _flow(model, (first, second), layers, feature_groups=masks)
    assert one.units[SOURCE] == ["input"]
    assert several.units[SOURCE] == [0, 5, 7]
    assert bool((several.edges[SOURCE, "left"][:, 2] == 0).all())  # group 7 lies in the second input alone
    assert bool((several.edges[SOURCE, "right"].abs().sum(2) > 0).all())
    for pair, edge in one.edges.items():
        found = several.edges[pair]
        assert_near(found.sum(1, keepdim=True) if pair[0] == SOURCE else found, edge, 1e-10)
    for name, groups in (("axis", 1), ("dict", {"first": torch.arange(3), "second": torch.arange(3, 8)})):
        inputs: Any = {"first": first, "second": second} if name == "dict" else (first, second)
        each = _flow(model, inputs, layers, feature_groups=groups)
        assert each.units[SOURCE] == list(range(8))
        assert float(each.edges[SOURCE, "left"][:, 3:].abs().max()) == 0.0
        assert_near(each.edges[SOURCE, "left"].sum(1, keepdim=True), one.edges[SOURCE, "left"], 1e-10)


def test_a_mask_for_each_example() -> None:
    mask = torch.stack([torch.arange(7) % 2, torch.arange(7) // 4, torch.zeros(7, dtype=torch.int64)])
    model = seeded(ResidualNet)
    flow = _flow(model, X, ["stem"], feature_groups=mask, top=None)
    assert flow.units[SOURCE] == [0, 1]
    assert float(flow.conductance[SOURCE][2, 1]) == 0.0
    for example in range(3):
        alone = _flow(model, X[example : example + 1], ["stem"], feature_groups=mask[example : example + 1], top=None)
        found = flow.edges[SOURCE, "stem"][example : example + 1, : len(alone.units[SOURCE])]
        assert_near(found, alone.edges[SOURCE, "stem"], 1e-10)


def test_several_baselines_are_averaged() -> None:
    model, layers = seeded(ResidualNet), ["stem", "act1", "act2"]
    baselines = [normal(3, 7, seed=20), 0.3, normal(1, 7, seed=21)]
    together = _flow(model, X, layers, baselines=baselines, top=None)
    alone = [_flow(model, X, layers, baselines=one, top=None) for one in baselines]
    for pair, edge in together.edges.items():
        assert_near(edge, sum(one.edges[pair] for one in alone) / 3, 1e-10)  # type: ignore[arg-type]
    assert_near(together.output_change[:, None], sum(f.output_change for f in alone)[:, None] / 3, 1e-10)  # type: ignore[index]
    adaptive = conductance_flow(model, X, layers, baselines=baselines, top=None, target=1, rtol=1e-5)
    assert adaptive.converged.all()
    assert_balanced(adaptive)
    for layer in layers:
        assert_near(adaptive.inflow(layer), adaptive.conductance[layer], 1e-5)


@pytest.mark.parametrize("steps", [{"n_steps": 4}, {"rtol": 1e-3, "n_steps": None}], ids=str)
def test_targets_of_each_example(steps: dict[str, Any]) -> None:
    model, layers = seeded(ConvNet), ["conv", "pool", "fc"]
    images = torch.cat([IMAGES, IMAGES + 0.1])
    together = _flow(model, images, layers, target=[0, 3, 1, 0], top=None, **steps)
    for example, target in enumerate([0, 3, 1, 0]):
        alone = _flow(model, images[example : example + 1], layers, target=target, top=None, **steps)
        for pair, edge in alone.edges.items():
            assert_near(together.edges[pair][example : example + 1], edge, 1e-9)


def test_a_target_of_the_users_own() -> None:
    model, layers = seeded(ResidualNet), ["stem", "act1"]
    contrast = _flow(model, X, layers, top=None, target=lambda out: out[:, 2] - out[:, 0])
    sides = [_flow(model, X, layers, top=None, target=target) for target in (2, 0)]
    for pair, edge in contrast.edges.items():
        assert_near(edge, sides[0].edges[pair] - sides[1].edges[pair], 1e-10)


def test_a_layer_that_is_the_target_itself() -> None:
    flow = _flow(seeded(ResidualNet), X, ["act2", "head"], target=lambda out: out.sum(1), top=None)
    assert_near(flow.edges["head", SINK].sum((1, 2))[:, None], flow.output_change[:, None], 1e-12)
