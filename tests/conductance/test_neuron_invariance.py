"""What must not change neuron conductance, and what it is linear in."""

from typing import Any

import pytest
import torch
from torch import nn

from conductance import NeuronConductance, neuron_conductance
from conductance.hooks import HookPoint
from tests.conductance.neuron_nets import TARGETS, Mlp, assert_same, case, flat, one, tensor
from tests.helpers import frozen, normal, seeded

HOW: list[dict[str, Any]] = [{"n_steps": 9}, {"rtol": 1e-3}]
IDS = ["n_steps", "rtol"]
LSTM = HookPoint("lstm", index=(0,), batch_axis=1)
_FEW = torch.tensor([0, 0, 1, 1, 0])[:, None].expand(5, 6)
NETS: list[tuple[str, Any, Any]] = [
    ("gelu", "act1", None),
    ("relu", "act2", None),
    ("attention", "out", _FEW),
    ("conv", "pool", "channel"),
    ("lstm", LSTM, "token"),
    ("two-inputs", "joint", 1),
]


@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize("how", HOW, ids=IDS)
@pytest.mark.parametrize(("name", "layer", "groups"), NETS, ids=[net[0] for net in NETS])
def test_chunk_size_changes_nothing(name: str, layer: Any, groups: Any, how: dict[str, Any], mode: Any) -> None:
    """One to seven rows are fewer than a panel of nine nodes has."""
    net = case(name)
    arguments = {**net.whole, **how, "feature_groups": groups, "neurons": [1, 0], "mode": mode}
    whole = one(net.model, layer, **arguments)
    for rows in (1, 2, 3, 7) if "n_steps" in how else (2, 7):
        chunked = one(net.model, layer, **arguments, internal_batch_size=rows)
        assert_same(flat(chunked), flat(whole), 1e-9)
        assert_same(chunked.total, whole.total, 1e-9)
        assert chunked.status == whole.status
        assert chunked.settings["internal_batch_size"] == rows
        if "n_steps" in how:
            torch.testing.assert_close(chunked.error, whole.error, rtol=1e-6, atol=1e-12)
        else:
            assert whole.status == ("ok",) * 3


def test_no_call_is_larger_than_asked() -> None:
    net = case("gelu")
    sizes: list[int] = []
    handle = net.model.register_forward_pre_hook(lambda _module, args: sizes.append(len(args[0])))
    try:
        for mode in ("reverse", "forward"):
            one(net.model, "act1", **net.whole, rtol=1e-6, internal_batch_size=4, mode=mode)
    finally:
        handle.remove()
    assert max(sizes) <= 4
    assert len(sizes) > 20


@pytest.mark.parametrize("how", HOW, ids=IDS)
@pytest.mark.parametrize(("name", "layer", "groups"), NETS, ids=[net[0] for net in NETS])
def test_examples_do_not_know_of_each_other(name: str, layer: Any, groups: Any, how: dict[str, Any]) -> None:
    net = case(name)
    order = [2, 0, 1, 2]
    whole = one(net.model, layer, **net.whole, **how, feature_groups=groups)
    inputs, baselines = (tuple(part[order] for part in parts) for parts in (net.inputs, net.baselines))
    single = len(inputs) == 1
    shuffled = one(
        net.model, layer, inputs=inputs[0] if single else inputs, baselines=baselines[0] if single else baselines,
        target=TARGETS[order], **how, feature_groups=groups,
    )  # fmt: skip
    assert_same(flat(shuffled), flat(whole)[order], 1e-9)
    if not ("rtol" in how and name == "conv"):  # where rounding may decide that one panel more is split
        assert shuffled.evaluations.tolist() == whole.evaluations[order].tolist()
    assert shuffled.status == tuple(whole.status[n] for n in order)


@pytest.mark.parametrize("name", ["gelu", "relu", "attention"])
def test_a_subset_of_neurons_is_the_same_at_fixed_nodes(name: str) -> None:
    net = case(name)
    layer = net.layers[1]
    whole = one(net.model, layer, **net.whole, n_steps=8)
    for neurons in ([4, 1], [0], [3, 3]):
        assert_same(flat(one(net.model, layer, **net.whole, n_steps=8, neurons=neurons)), flat(whole)[:, neurons])


@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize("name", ["gelu", "conv", "attention"])
def test_several_layers_are_the_same_as_one(name: str, mode: Any) -> None:
    net = case(name)
    arguments = {**net.whole, "n_steps": 5, "neurons": [2, 0], "mode": mode, "feature_groups": 1}
    inputs = arguments.pop("inputs")
    for layers in (list(net.layers), list(net.layers)[::-1]):
        several = neuron_conductance(net.model, inputs, layers, **arguments)
        assert isinstance(several, dict)
        assert list(several) == list(net.layers)  # in the order of the forward pass
        for layer in net.layers:
            alone = one(net.model, layer, inputs=inputs, **arguments)
            assert several[layer].layer == alone.layer == layer
            assert_same(tensor(several[layer]), tensor(alone))
            assert_same(several[layer].total, alone.total)
            assert several[layer].settings["layer"] == layer


def test_several_layers_keep_the_tolerance_each() -> None:
    net = case("relu")
    arguments = net.whole
    several = neuron_conductance(net.model, arguments.pop("inputs"), ["fc1", "act2"], **arguments, rtol=1e-3)
    assert isinstance(several, dict)
    for layer, found in several.items():
        exact = one(net.model, layer, **net.whole, rtol=1e-9)
        for example in range(3):
            assert_same(tensor(found)[example], tensor(exact)[example], 1e-3)


def test_one_hook_point_is_one_result_however_it_is_named() -> None:
    net = case("gelu")
    by_name = one(net.model, "act1", **net.whole, n_steps=3)
    for layer in (["act1"], net.model.get_submodule("act1"), HookPoint("act1"), "act1*"):
        assert torch.equal(tensor(one(net.model, layer, **net.whole, n_steps=3)), tensor(by_name))
    several = neuron_conductance(net.model, net.inputs[0], nn.GELU, target=TARGETS, n_steps=3)
    assert isinstance(several, dict)
    assert list(several) == ["act1", "act2"]


def test_a_plain_callable_with_modules_as_layers() -> None:
    net = case("gelu")
    expected = one(net.model, "act1", **net.whole, n_steps=3)
    found = one(lambda x: net.model(x), net.model.get_submodule("act1"), **net.whole, n_steps=3)  # type: ignore[arg-type]
    assert torch.equal(tensor(found), tensor(expected))


def test_two_calls_give_the_same_bits() -> None:
    for name, layer, groups in NETS:
        net = case(name)
        first, second = (one(net.model, layer, **net.whole, rtol=1e-3, feature_groups=groups) for _ in range(2))
        assert torch.equal(flat(first), flat(second))
        assert torch.equal(first.error, second.error)


def test_backwards_along_the_path_changes_the_sign() -> None:
    for name in ("gelu", "relu", "attention"):
        net = case(name)
        layer = net.layers[1]
        forwards = one(net.model, layer, **net.whole, n_steps=9)
        backwards = one(net.model, layer, inputs=net.baselines[0], baselines=net.inputs[0], target=TARGETS, n_steps=9)
        assert_same(-flat(backwards), flat(forwards))


def test_linear_in_the_explained_function() -> None:
    for name in ("tanh", "relu", "attention"):
        net = case(name)
        layer = net.layers[0]

        def found(target: Any, net: Any = net, layer: Any = layer) -> NeuronConductance:
            return one(net.model, layer, inputs=net.inputs[0], target=target, n_steps=7)

        both = found(lambda output: 2.5 * output[:, 1] - output[:, 3])
        assert_same(tensor(both), 2.5 * tensor(found(1)) - tensor(found(3)))


def test_an_input_of_another_scale_is_the_same_to_a_model_that_undoes_it() -> None:
    net, factors = case("tanh"), torch.tensor([0.5, 3.0, -2.0, 1.0, 0.1], dtype=torch.float64)

    class Undone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net.model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.net(x / factors)
            return logits

    plain = one(net.model, "act1" if "act1" in net.layers else "fc1", inputs=net.inputs[0], target=1, n_steps=7)
    scaled = one(Undone(), f"net.{plain.layer}", inputs=net.inputs[0] * factors, target=1, n_steps=7)
    assert_same(tensor(scaled), tensor(plain))


def test_dummies_get_nothing() -> None:
    """Input 2 goes nowhere, unit 4 of the first layer goes nowhere, unit 1 does not move."""
    model = seeded(lambda: Mlp(nn.Tanh))
    first, second = model.get_submodule("fc1"), model.get_submodule("fc2")
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    with torch.no_grad():
        first.weight[:, 2] = 0
        first.weight[1] = 0
        second.weight[:, 4] = 0
    for mode in ("reverse", "forward"):
        values = tensor(one(model, "act1", inputs=normal(3, 5), target=1, rtol=1e-4, mode=mode))
        assert float(values[:, :, 2].abs().max()) == 0.0
        assert float(values[:, [1, 4]].abs().max()) == 0.0
        assert float(values[:, [0, 2, 3, 5, 6]][:, :, [0, 1, 3, 4]].abs().min()) > 0


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_in_place_operations_behind_a_layer(mode: Any) -> None:
    def build(inplace: bool) -> nn.Module:
        layers = [nn.Linear(5, 7), nn.ReLU(inplace), nn.Linear(7, 6), nn.ReLU(inplace), nn.Linear(6, 4)]
        return seeded(lambda: nn.Sequential(*layers))

    torch.manual_seed(0)
    model = build(True)
    plain = frozen(nn.Sequential(model[0], nn.ReLU(), model[2], nn.ReLU(), model[4]))  # type: ignore[index]
    for layer in ("0", "1", "2", "3"):
        expected = one(plain, layer, inputs=normal(3, 5), target=1, n_steps=6)
        found = one(model, layer, inputs=normal(3, 5), target=1, n_steps=6, mode=mode)
        assert_same(tensor(found), tensor(expected))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_works_where_gradients_are_off(context: Any, mode: Any) -> None:
    net = case("tanh")
    with context():
        inside = one(net.model, "fc1", inputs=net.inputs[0].clone(), target=1, n_steps=5, mode=mode)
    outside = one(net.model, "fc1", inputs=net.inputs[0], target=1, n_steps=5, mode=mode)
    assert torch.equal(tensor(inside), tensor(outside))
    assert not tensor(outside).requires_grad
    assert float(tensor(outside).abs().sum()) > 1e-2


def test_single_precision_is_close_to_double() -> None:
    net = case("gelu")
    for mode in ("reverse", "forward"):
        single = one(
            seeded(lambda: Mlp(nn.GELU)).float(), "act1", inputs=net.inputs[0].float(), target=1, n_steps=7, mode=mode
        )
        assert tensor(single).dtype == torch.float32
        double = one(net.model, "act1", inputs=net.inputs[0], target=1, n_steps=7)
        assert_same(tensor(single).double(), tensor(double), 1e-5)
