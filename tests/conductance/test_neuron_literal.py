"""Neuron conductance at given nodes against the definition taken literally: a Jacobian a node."""

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from conductance import neuron_conductance
from conductance.hooks import HookPoint
from conductance.quadrature import fixed_nodes, fixed_panels
from tests.conductance.neuron_nets import TARGETS, assert_same, case, flat, one
from tests.reference import Inputs, interpolatory_weights, literal_neuron

LSTM = HookPoint("lstm", index=(0,), batch_axis=1)


def _rule(n_steps: int, *, kinked: bool) -> tuple[list[float], list[float]]:
    """Nodes of the fixed rule, and weights of straight integrals on them, panel by panel."""
    alphas = fixed_nodes(n_steps, kinked=kinked).tolist()
    spans = [(k, k + 1) for k in range(n_steps - 1)]
    if not kinked:
        spans = [(panel.start, panel.stop) for panel in fixed_panels(n_steps)]
    weights = [0.0] * n_steps
    for start, stop in spans:
        for k, weight in enumerate(interpolatory_weights(alphas[start : stop + 1]), start):
            weights[k] += weight
    assert sum(weights) == pytest.approx(1.0)
    return alphas, weights


def _single(parts: tuple[Tensor, ...], example: int) -> Inputs:
    rows = tuple(part[example : example + 1] for part in parts)
    return rows if len(rows) > 1 else rows[0]


def _everywhere(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every place of a layer as an index tuple."""
    return [tuple(place) for place in torch.cartesian_prod(*map(torch.arange, shape)).reshape(-1, len(shape)).tolist()]


@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize(
    ("name", "layer", "n_steps"),
    [
        ("gelu", "fc1", 2),
        ("gelu", "act1", 3),
        ("tanh", "act2", 8),
        ("tanh", "fc1", 40),
        ("relu", "act1", 2),
        ("relu", "act2", 11),
        ("residual", "act1", 5),
        ("conv", "pool", 3),
        ("attention", "out", 4),
        ("attention", "softmax", 3),
        ("two-inputs", "left", 7),
        ("two-inputs", "joint", 3),
        ("lstm", LSTM, 4),
    ],
)
def test_agrees_with_jacobians_at_equal_nodes(
    name: str, layer: Any, n_steps: int, mode: Literal["reverse", "forward"]
) -> None:
    """Each element of the layer by its index, and the layer's units, which sum up positions."""
    net = case(name)
    alphas, weights = _rule(n_steps, kinked=net.kinked)
    if name == "lstm":
        shape: tuple[int, ...] = (5, 7)
    else:
        shape = one(net.model, layer, **net.whole, n_steps=2, neurons=0, feature_groups=None).info.shape
    apart = one(net.model, layer, **net.whole, n_steps=n_steps, mode=mode, neurons=_everywhere(shape))
    units = one(net.model, layer, **net.whole, n_steps=n_steps, mode=mode)
    axis = units.info.unit_axis - 1
    for example in (0, 2):
        literal = literal_neuron(
            net.model,
            _single(net.inputs, example),
            _single(net.baselines, example),
            int(TARGETS[example]),
            layer if isinstance(layer, str) else layer.module,
            alphas,
            weights,
        )
        assert_same(flat(apart)[example], literal, 1e-9)
        per_unit = literal.reshape(*shape, -1).movedim(axis, 0)
        assert_same(flat(units)[example], per_unit.reshape(shape[axis], -1, literal.shape[1]).sum(1), 1e-9)


@pytest.mark.parametrize("name", ["gelu", "tanh", "two-inputs"])
def test_a_tight_tolerance_agrees_with_jacobians_on_many_nodes(name: str) -> None:
    net = case(name)
    layer = net.layers[1]
    found = one(net.model, layer, **net.whole, rtol=1e-9)
    assert bool(found.converged.all())
    alphas, weights = _rule(33, kinked=False)
    literal = literal_neuron(
        net.model, _single(net.inputs, 1), _single(net.baselines, 1), 0, layer, alphas, weights
    ).reshape(*found.info.shape, -1)
    axis = found.info.unit_axis - 1
    literal = literal.movedim(axis, 0).reshape(found.info.shape[axis], -1, literal.shape[-1]).sum(1)
    assert_same(flat(found)[1], literal, 1e-8)


@pytest.mark.parametrize("name", ["gelu", "relu", "lstm"])
def test_nodes_are_counted_once_in_each_run(name: str) -> None:
    net = case(name)
    layer = LSTM if name == "lstm" else net.layers[0]
    found = neuron_conductance(net.model, net.inputs[0], layer, target=TARGETS, n_steps=6)
    assert not isinstance(found, dict)
    assert found.evaluations.tolist() == [12] * 3
