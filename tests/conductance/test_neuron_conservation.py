"""Sums of neuron conductance: over units integrated gradients, over inputs total conductance."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance import neuron_conductance, total_conductance
from conductance.hooks import HookPoint
from tests.conductance.neuron_nets import TARGETS, Mlp, assert_same, case, flat, one, tensor
from tests.helpers import TwoInputNet, normal, seeded

LSTM = HookPoint("net.lstm", index=(0,), batch_axis=1)
CUTS: list[tuple[str, Any]] = [
    ("gelu", "net.fc1"),
    ("gelu", "net.head"),
    ("tanh", "net.act2"),
    ("relu", "net.act1"),
    ("residual", "net.sum1"),
    ("conv", "net.conv"),
    ("conv", "net.pool"),
    ("attention", "net.down"),
    ("lstm", LSTM),
    ("multihead", "net.mix"),
    ("encoder", "net.encoder"),
    ("two-inputs", "net.act"),
    ("bert", "net.bert.encoder.layer.0.output"),
]


class Started(nn.Module):
    """A network with its inputs as layers of their own, ``start.0`` and so on."""

    def __init__(self, net: nn.Module, inputs: int) -> None:
        super().__init__()
        self.start = nn.ModuleList(nn.Identity() for _ in range(inputs))
        self.net = net

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.net(*(start(one) for start, one in zip(self.start, inputs, strict=True)))
        return logits


def _integrated(model: nn.Module, count: int, **arguments: Any) -> Tensor:
    """Integrated gradients of all inputs joined, ``(batch, elements)``: total conductance of what they are."""
    names = [f"start.{number}" for number in range(count)]
    total = total_conductance(model, arguments.pop("inputs"), names, **arguments)
    return torch.cat([total[name].flatten(1) for name in names], 1)


@pytest.mark.parametrize("n_steps", [2, 3, 9])
@pytest.mark.parametrize(("name", "layer"), CUTS)
def test_units_of_a_cut_sum_to_integrated_gradients(name: str, layer: Any, n_steps: int) -> None:
    net = case(name)
    model = Started(net.model, len(net.inputs))
    layer = "net.head" if layer == "net.down" else layer  # a residual stream is cut behind the block
    found = one(model, layer, **net.whole, n_steps=n_steps)
    assert found.info.is_cut
    assert_same(flat(found).sum(1), _integrated(model, len(net.inputs), **net.whole, n_steps=n_steps))


@pytest.mark.parametrize("name", ["gelu", "relu", "attention", "two-inputs"])
def test_units_of_a_cut_sum_to_integrated_gradients_on_nodes_of_a_tolerance(name: str) -> None:
    """Not on the same nodes, so within the tolerance, which integrated gradients are judged by too."""
    net = case(name)
    model = Started(net.model, len(net.inputs))
    found = one(model, "net.head", **net.whole, rtol=1e-4)
    exact = _integrated(model, len(net.inputs), **net.whole, rtol=1e-8)
    assert_same(flat(found).sum(1), exact, 2e-4)


@pytest.mark.parametrize("rtol", [1e-2, 1e-4])
@pytest.mark.parametrize("name", ["gelu", "tanh", "relu", "residual", "attention", "two-inputs", "multihead", "bert"])
def test_inputs_sum_to_total_conductance(name: str, rtol: float) -> None:
    net = case(name)
    layer = net.layers[-1]
    found = one(net.model, layer, **net.whole, rtol=rtol)
    arguments = net.whole
    total = total_conductance(net.model, arguments.pop("inputs"), layer, **arguments, rtol=rtol / 100)
    expected = total.per_unit(layer)
    assert bool(found.converged.all())
    for example in range(3):
        scale = float(flat(found)[example].abs().sum())
        for summed in (flat(found)[example].sum(1), found.total[example]):
            assert float(expected[example].abs().sum()) > 1e-3
            assert float((summed - expected[example]).abs().sum()) <= 2 * rtol * scale
        assert float(found.gap[example].abs().sum()) <= rtol * scale
    torch.testing.assert_close(found.gap, found.total - flat(found).sum(2))


def test_total_is_total_conductance_on_the_same_nodes() -> None:
    for name, layer in [("gelu", "act1"), ("relu", "act2"), ("conv", "act"), ("attention", "softmax")]:
        net = case(name)
        found = one(net.model, layer, **net.whole, n_steps=6)
        arguments = net.whole
        total = total_conductance(net.model, arguments.pop("inputs"), layer, **arguments, n_steps=6)
        assert_same(found.total, total.per_unit(layer))
        torch.testing.assert_close(found.output_change, total.output_change)


def test_several_baselines_give_the_mean() -> None:
    net = case("attention")
    inputs = net.inputs[0]
    baselines: list[Any] = [net.baselines[0], 0.0, normal(5, 6, seed=3, scale=0.7)]
    for mode in ("reverse", "forward"):
        several = one(net.model, "out", inputs=inputs, baselines=baselines, target=TARGETS, n_steps=5, mode=mode)
        singles = [
            one(net.model, "out", inputs=inputs, baselines=baseline, target=TARGETS, n_steps=5)
            for baseline in baselines
        ]
        assert_same(tensor(several), torch.stack([tensor(single) for single in singles]).mean(0))
        assert_same(several.total, torch.stack([single.total for single in singles]).mean(0))
        assert several.evaluations.tolist() == [30] * 3
    tight = one(net.model, "out", inputs=inputs, baselines=baselines, target=TARGETS, rtol=1e-6)
    exact = [one(net.model, "out", inputs=inputs, baselines=b, target=TARGETS, rtol=1e-8) for b in baselines]
    assert_same(tensor(tight), torch.stack([tensor(single) for single in exact]).mean(0), 1e-5)


def test_inputs_as_a_dict_are_the_same_as_a_tuple() -> None:
    net = case("two-inputs")
    both = one(net.model, "joint", **net.whole, n_steps=5)
    named = one(
        net.model,
        "joint",
        inputs={"first": net.inputs[0], "second": net.inputs[1]},
        baselines={"first": net.baselines[0], "second": net.baselines[1]},
        target=TARGETS,
        n_steps=5,
    )
    assert isinstance(both.values, tuple)
    assert isinstance(named.values, tuple)
    assert [part.shape for part in both.values] == [(3, 8, 3), (3, 8, 5)]
    for mine, other in zip(named.values, both.values, strict=True):
        assert_same(mine, other)


class Scaled(nn.Module):
    """A network whose logits are scaled by what it is told, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Mlp(nn.Tanh)

    def forward(self, x: Tensor, scale: Tensor, double: bool) -> Tensor:
        logits: Tensor = self.net(x) * scale[:, None] * (2 if double else 1)
        return logits


def test_additional_arguments_reach_the_model_row_by_row() -> None:
    model, inputs = seeded(Scaled), normal(3, 5)
    scale = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    for mode in ("reverse", "forward"):
        found = one(
            model, "net.act1", inputs=inputs, target=1, additional_forward_args=(scale, True), n_steps=7, mode=mode
        )
        plain = one(model.get_submodule("net"), "act1", inputs=inputs, target=1, n_steps=7)
        assert_same(tensor(found), tensor(plain) * (2 * scale)[:, None, None])


def test_a_tensor_that_is_an_integer_is_passed_as_it_is() -> None:
    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 6)

        def forward(self, x: Tensor, which: Tensor) -> Tensor:
            squared: Tensor = torch.tanh(self.fc(x)) ** 2
            return squared.gather(1, which[:, None])

    which = torch.tensor([4, 0, 2])
    found = one(seeded(Picks), "fc", inputs=(normal(3, 5), which), target=0, n_steps=9)
    values = tensor(found)
    assert values.shape == (3, 6, 5)
    for example, unit in enumerate(which.tolist()):
        others = [other for other in range(6) if other != unit]
        assert float(values[example, unit].abs().sum()) > 1e-3
        assert float(values[example, others].abs().max()) == 0.0


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_groups_of_units_are_sums_of_units(mode: Any) -> None:
    """Two heads of three features each, tokens summed; the unit axis is the last one."""
    net = case("attention")
    single = one(net.model, "value", **net.whole, n_steps=4)
    heads = one(net.model, HookPoint("value", unit_groups=2), **net.whole, n_steps=4, mode=mode)
    assert heads.neurons == [0, 1]
    assert heads.info.unit_groups == 2
    assert_same(tensor(heads), tensor(single).reshape(3, 2, 3, 5, 6).sum(2))
    assert_same(heads.total, single.total.reshape(3, 2, 3).sum(2))
    tokens = one(net.model, HookPoint("value", unit_axis=1), **net.whole, n_steps=4, mode=mode)
    assert tokens.neurons == [0, 1, 2, 3, 4]
    assert_same(tensor(tokens).sum(1), tensor(single).sum(1))
    assert float((tensor(tokens)[:, 0] - tensor(single)[:, 0]).abs().max()) > 1e-4


def test_the_batch_axis_may_be_another_one() -> None:
    """The recurrent layer gives time, batch, units; a first layer of it is not mistaken for the batch."""
    model = case("lstm").model
    inputs = normal(3, 5, 6)
    found = one(model, HookPoint("lstm", index=(0,), batch_axis=1), inputs=inputs, target=TARGETS, n_steps=9)
    assert tensor(found).shape == (3, 7, 5, 6)
    by_time = one(
        model, HookPoint("lstm", index=(0,), batch_axis=1), inputs=inputs, target=TARGETS, n_steps=9,
        neurons=[(t, slice(None)) for t in range(5)],
    )  # fmt: skip
    assert_same(tensor(by_time).sum(1), tensor(found).sum(1))
    early = tensor(by_time)[:, 0]  # the first step has not seen the later inputs
    assert float(early[:, 1:].abs().max()) == 0.0
    assert float(early[:, 0].abs().sum()) > 1e-3


def test_two_inputs_of_several_shapes_move_together() -> None:
    class Times(nn.Module):
        """A second input of one number a row."""

        def __init__(self) -> None:
            super().__init__()
            self.net = TwoInputNet()

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            logits: Tensor = self.net(x, time[:, None] * torch.arange(1, 6).to(x))
            return logits

    found = neuron_conductance(seeded(Times), (normal(4, 3), normal(4, seed=1)), "net.joint", target=2, rtol=1e-6)
    assert not isinstance(found, dict)
    assert isinstance(found.values, tuple)
    assert [part.shape for part in found.values] == [(4, 8, 3), (4, 8)]
    assert_same(flat(found).sum(2), found.total, 1e-5)
    assert_same(found.total.sum(1), found.output_change, 1e-5)
    assert found.to_dataframe()["feature"].unique().tolist() == ["0: 0", "0: 1", "0: 2", "1: 0"]
