"""Total conductance at given nodes against the definition taken literally, node by node."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conductance import total_conductance
from conductance.quadrature import fixed_nodes, fixed_panels
from tests.benchmarks.nets import digits, hidden_layers, trained
from tests.helpers import AttentionNet, ChunkNet, ConvNet, ResidualNet, TwoInputNet, normal, seeded
from tests.reference import Inputs, jacobian_total, lagrange_matrix, literal_total, relative_error


@dataclass(frozen=True)
class Setting:
    """A network with a few examples and the layers to look at."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    baselines: tuple[Tensor, ...]
    layers: list[str]
    kinked: bool


def _setting(model: nn.Module, *shapes: tuple[int, ...], layers: list[str], kinked: bool) -> Setting:
    inputs = tuple(normal(3, *shape, seed=number) for number, shape in enumerate(shapes))
    baselines = tuple(normal(3, *shape, seed=9 + number, scale=0.4) for number, shape in enumerate(shapes))
    return Setting(model, inputs, baselines, layers, kinked)


SETTINGS = {
    "conv": _setting(seeded(ConvNet), (3, 8, 10), layers=["conv", "norm", "act", "pool", "fc", "head"], kinked=True),
    "attention": _setting(
        seeded(AttentionNet),
        (5, 6),
        layers=["norm1", "query", "key", "value", "softmax", "out", "norm2", "act", "down", "head"],
        kinked=False,
    ),
    "residual": _setting(seeded(ResidualNet), (7,), layers=["stem", "act1", "sum1", "down2"], kinked=False),
    "two-inputs": _setting(seeded(TwoInputNet), (3,), (5,), layers=["left", "right", "joint", "act"], kinked=False),
    "chunk": _setting(seeded(ChunkNet), (6,), layers=["fc", "gated", "side", "joined"], kinked=False),
}


def _rule(n_steps: int, *, kinked: bool) -> tuple[list[float], list[list[float]]]:
    """Nodes of the fixed rule, and its matrix on all of them, made panel by panel of Lagrange polynomials."""
    alphas = fixed_nodes(n_steps, kinked=kinked)
    spans = [(k, k + 1) for k in range(n_steps - 1)] if kinked else _spans(n_steps)
    matrix = np.zeros((n_steps, n_steps))
    for start, stop in spans:
        matrix[start : stop + 1, start : stop + 1] += np.array(lagrange_matrix(alphas[start : stop + 1].tolist()))
    return alphas.tolist(), matrix.tolist()


def _spans(n_steps: int) -> list[tuple[int, int]]:
    return [(panel.start, panel.stop) for panel in fixed_panels(n_steps)]


def _one(inputs: tuple[Tensor, ...], example: int) -> Inputs:
    row = tuple(part[example : example + 1] for part in inputs)
    return row if len(row) > 1 else row[0]


def _whole(inputs: tuple[Tensor, ...]) -> Inputs:
    return inputs if len(inputs) > 1 else inputs[0]


@pytest.mark.parametrize("n_steps", [2, 3, 8, 17, 40])
@pytest.mark.parametrize("name", SETTINGS)
def test_agrees_with_the_literal_definition_at_equal_nodes(name: str, n_steps: int) -> None:
    setting = SETTINGS[name]
    targets = [2, 0, 3]
    total = total_conductance(
        setting.model,
        _whole(setting.inputs),
        setting.layers,
        target=torch.tensor(targets),
        baselines=_whole(setting.baselines),
        n_steps=n_steps,
    )
    alphas, matrix = _rule(n_steps, kinked=setting.kinked)
    assert total.evaluations.tolist() == [n_steps] * 3
    for example, target in enumerate(targets if n_steps < 17 else targets[:1]):
        x, baseline = _one(setting.inputs, example), _one(setting.baselines, example)
        for layer in setting.layers:
            literal = literal_total(setting.model, x, baseline, target, layer, alphas, matrix)
            assert float(literal.abs().sum()) > 1e-4
            assert relative_error(total[layer][example], literal) < 1e-10


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if not setting.kinked])
def test_tight_tolerance_agrees_with_jacobians(name: str) -> None:
    setting = SETTINGS[name]
    total = total_conductance(
        setting.model,
        _whole(setting.inputs),
        setting.layers,
        target=1,
        baselines=_whole(setting.baselines),
        rtol=1e-9,
    )
    x, baseline = _one(setting.inputs, 1), _one(setting.baselines, 1)
    for layer in setting.layers:
        jacobian = jacobian_total(setting.model, x, baseline, 1, layer, points=80)
        assert relative_error(total[layer][1], jacobian) < 1e-8


def test_fixed_rule_sees_every_unit_of_a_trained_network() -> None:
    model, image = trained("mlp", "tanh"), digits().test[:1]
    layers = hidden_layers(model)
    total = total_conductance(model, image, layers, target=4, n_steps=9)
    alphas, matrix = _rule(9, kinked=False)
    for layer in layers:
        literal = literal_total(model, image, torch.zeros_like(image), 4, layer, alphas, matrix)
        assert relative_error(total[layer][0], literal) < 1e-10


def test_fixed_rule_has_the_nodes_it_is_asked_for() -> None:
    for n_steps in (2, 3, 7, 33, 34, 100):
        for kinked in (False, True):
            alphas, matrix = _rule(n_steps, kinked=kinked)
            assert (len(alphas), alphas[0], alphas[-1]) == (n_steps, 0.0, 1.0)
            ends = np.zeros((n_steps, n_steps))
            ends[0, 0], ends[-1, -1] = -1, 1
            found = np.array(matrix)
            np.testing.assert_allclose(found + found.T, ends, atol=1e-12)
