"""Flows agree with their definition: explicit Jacobians, every other layer held, at equal nodes."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from conductance.flow import conductance_flow
from conductance.flow_results import SINK, SOURCE
from conductance.hooks import LayerSpec
from tests.conductance.flows import assert_balanced
from tests.conductance.test_total_literal import _rule
from tests.helpers import AttentionNet, ChunkNet, ConvNet, ResidualNet, TwoInputNet, normal, seeded
from tests.reference import LEAF, TARGET, Inputs, lagrange_matrix, literal_flow, relative_error


@dataclass(frozen=True)
class Setting:
    """A network, its input shapes, layers with the number of their units, and the pairs that are connected."""

    model: nn.Module
    shapes: tuple[tuple[int, ...], ...]
    layers: dict[str, int]
    wired: set[tuple[str, str]]
    kinked: bool = False
    steps: tuple[int, ...] = (2, 3, 6)


SETTINGS = {
    "residual": Setting(
        seeded(ResidualNet),
        ((7,),),
        {"stem": 6, "act1": 9, "down1": 6, "sum1": 6, "act2": 8},
        {
            (LEAF, "stem"),
            ("stem", "act1"),
            ("act1", "down1"),
            ("stem", "sum1"),
            ("down1", "sum1"),
            ("sum1", "act2"),
            ("sum1", TARGET),
            ("act2", TARGET),
        },
    ),
    "residual, layers passed by": Setting(
        seeded(ResidualNet),
        ((7,),),
        {"act1": 9, "act2": 8},
        {(LEAF, "act1"), (LEAF, "act2"), ("act1", "act2"), (LEAF, TARGET), ("act1", TARGET), ("act2", TARGET)},
    ),
    "conv": Setting(
        seeded(ConvNet),
        ((3, 8, 10),),
        {"conv": 5, "pool": 5, "fc": 7},
        {(LEAF, "conv"), ("conv", "pool"), ("pool", "fc"), ("fc", TARGET)},
        kinked=True,
        steps=(2, 3),
    ),
    "two branches": Setting(
        seeded(TwoInputNet),
        ((3,), (5,)),
        {"left": 7, "right": 6, "joint": 8},
        {(LEAF, "left"), (LEAF, "right"), ("left", "joint"), ("right", "joint"), ("joint", TARGET)},
        steps=(2, 5, 19),
    ),
    "chunks": Setting(
        seeded(ChunkNet),
        ((6,),),
        {"fc": 10, "gated": 5, "side": 3},
        {(LEAF, "fc"), ("fc", "gated"), (LEAF, "side"), ("gated", TARGET), ("side", TARGET)},
    ),
    "attention": Setting(
        seeded(AttentionNet),
        ((5, 6),),
        {"query": 6, "key": 6, "value": 6, "act": 11},
        {
            (LEAF, "query"),
            (LEAF, "key"),
            (LEAF, "value"),
            (LEAF, "act"),
            (LEAF, TARGET),
            ("act", TARGET),
            *((name, end) for name in ("query", "key", "value") for end in ("act", TARGET)),
        },
        steps=(2, 4),
    ),
}


def _points(setting: Setting, seed: int, scale: float) -> tuple[Tensor, ...]:
    return tuple(normal(2, *shape, seed=seed + n, scale=scale) for n, shape in enumerate(setting.shapes))


def _grouped(edge: Tensor, units: tuple[int, int], channels: bool) -> Tensor:
    """Sum elements over units: channels come first in an image, else units are the last axis."""
    rows, columns = units
    if channels:
        return edge.reshape(rows, edge.shape[0] // rows, columns, edge.shape[1] // columns).sum((1, 3))
    return edge.reshape(edge.shape[0] // rows, rows, edge.shape[1] // columns, columns).sum((0, 2))


CASES = [(name, steps) for name, setting in SETTINGS.items() for steps in setting.steps]


@pytest.mark.parametrize(("name", "n_steps"), CASES)
def test_agrees_with_jacobians_at_equal_nodes(name: str, n_steps: int) -> None:
    setting = SETTINGS[name]
    inputs, baselines = _points(setting, 0, 1.0), _points(setting, 9, 0.4)
    targets, single = [2, 0], len(setting.shapes) == 1
    flow = conductance_flow(
        setting.model,
        inputs[0] if single else inputs,
        list(setting.layers),
        top=None,
        target=torch.tensor(targets),
        baselines=baselines[0] if single else baselines,
        n_steps=n_steps,
    )
    wired = {(SOURCE if a == LEAF else a, SINK if b == TARGET else b) for a, b in setting.wired}
    assert set(flow.edges) == wired
    assert_balanced(flow)
    alphas, matrix = _rule(n_steps, kinked=setting.kinked)
    example = n_steps % 2
    x, baseline = (_one(points, example) for points in (inputs, baselines))
    literal = literal_flow(setting.model, x, baseline, targets[example], list(setting.layers), alphas, matrix)
    counts = {LEAF: 1, TARGET: 1, **setting.layers}
    for (start, stop), elements in literal.items():
        expected = _grouped(elements, (counts[start], counts[stop]), channels=name == "conv")
        pair = (SOURCE if start == LEAF else start, SINK if stop == TARGET else stop)
        if pair not in wired:
            assert float(elements.abs().max()) == 0.0
            continue
        assert float(expected.abs().sum()) > 1e-4
        assert relative_error(flow.edges[pair][example], expected) < 1e-9


def _one(points: tuple[Tensor, ...], example: int) -> Inputs:
    row = tuple(part[example : example + 1] for part in points)
    return row if len(row) > 1 else row[0]


@pytest.mark.parametrize("layers", [["stem", "act1", "act2"], ["act1"]])
def test_tight_tolerance_agrees_with_jacobians_on_many_nodes(layers: LayerSpec) -> None:
    """The adaptive nodes of every example end at the same integral as one rule of thirty nodes."""
    model, x = seeded(ResidualNet), normal(2, 7, seed=3)
    flow = conductance_flow(model, x, layers, top=None, target=1, rtol=1e-10)
    assert flow.converged.all()
    alphas, _ = _rule(30, kinked=False)
    names = list(flow.layers)
    for example in range(2):
        row = x[example : example + 1]
        literal = literal_flow(model, row, torch.zeros_like(row), 1, names, alphas, lagrange_matrix(alphas))
        for (start, stop), edge in flow.edges.items():
            elements = literal[LEAF if start == SOURCE else start, TARGET if stop == SINK else stop]
            expected = elements.sum(0, keepdim=True) if start == SOURCE else elements
            assert relative_error(edge[example], expected) < 1e-9
