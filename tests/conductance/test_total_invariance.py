"""What must not change total conductance, what it is linear in, and what adds up to the output's change."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance import total_conductance
from conductance.results import TotalConductance
from tests.benchmarks.nets import Activation, digits, trained
from tests.helpers import (
    AttentionNet,
    ChunkNet,
    ConvNet,
    ResidualNet,
    TwoInputNet,
    frozen,
    normal,
    seeded,
)
from tests.reference import jacobian_total

CONV_LAYERS = ["conv", "norm", "act", "pool", "fc"]
ATTENTION_LAYERS = ["norm1", "query", "value", "softmax", "out", "down"]
NETS: dict[str, tuple[nn.Module, Tensor, list[str]]] = {
    "conv": (seeded(ConvNet), normal(5, 3, 8, 10), CONV_LAYERS),
    "attention": (seeded(AttentionNet), normal(5, 5, 6), ATTENTION_LAYERS),
    "residual": (seeded(ResidualNet), normal(5, 7), ["stem", "act1", "down1", "sum1", "act2"]),
}


def _baseline(inputs: Tensor) -> Tensor:
    return 0.3 * inputs.flip(0).roll(1, -1)


def _assert_same(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert found.shape == expected.shape
    assert float(expected.abs().sum()) > 1e-6
    assert float((found - expected).abs().sum()) <= tolerance * float(expected.abs().sum())


def _assert_same_result(found: TotalConductance, expected: TotalConductance) -> None:
    assert list(found) == list(expected)
    for layer in expected:
        _assert_same(found[layer], expected[layer])


@pytest.mark.parametrize("how", [{"n_steps": 9}, {"rtol": 1e-3}], ids=["n_steps", "rtol"])
@pytest.mark.parametrize("name", NETS)
def test_chunk_size_changes_nothing(name: str, how: dict[str, Any]) -> None:
    model, inputs, layers = NETS[name]
    whole = total_conductance(model, inputs, layers, target=1, **how)
    for rows in (2, 7, 64):
        chunked = total_conductance(
            model,
            inputs,
            layers,
            target=1,
            internal_batch_size=rows,
            **how,
        )
        _assert_same_result(chunked, whole)
        assert chunked.status == whole.status


@pytest.mark.parametrize("how", [{"n_steps": 9}, {"rtol": 1e-3}], ids=["n_steps", "rtol"])
@pytest.mark.parametrize("name", NETS)
def test_examples_do_not_know_of_each_other(name: str, how: dict[str, Any]) -> None:
    model, inputs, layers = NETS[name]
    targets, order = torch.tensor([0, 3, 1, 2, 1]), torch.tensor([3, 0, 4, 2, 1])
    whole = total_conductance(
        model,
        inputs,
        layers,
        target=targets,
        baselines=_baseline(inputs),
        **how,
    )
    shuffled = total_conductance(
        model,
        inputs[order],
        layers,
        target=targets[order],
        baselines=_baseline(inputs)[order],
        **how,
    )
    alone = total_conductance(
        model,
        inputs[2:3],
        layers,
        target=int(targets[2]),
        baselines=_baseline(inputs)[2:3],
        **how,
    )
    for layer in layers:
        _assert_same(shuffled[layer], whole[layer][order])
        _assert_same(alone[layer][0], whole[layer][2])


@pytest.mark.parametrize("name", NETS)
def test_other_layers_change_nothing_at_fixed_nodes(name: str) -> None:
    model, inputs, layers = NETS[name]
    whole = total_conductance(model, inputs, layers, target=1, n_steps=8)
    backwards = total_conductance(model, inputs, layers[::-1], target=1, n_steps=8)
    assert list(backwards) == list(whole)
    for layer in layers:
        _assert_same(total_conductance(model, inputs, layer, target=1, n_steps=8)[layer], whole[layer])
        _assert_same(backwards[layer], whole[layer])


def test_two_calls_give_the_same_bits() -> None:
    model, inputs, layers = NETS["conv"]
    first, second = (total_conductance(model, inputs, layers, target=1, rtol=1e-3) for _ in range(2))
    assert all(torch.equal(first[layer], second[layer]) for layer in layers)
    assert torch.equal(first.evaluations, second.evaluations)


@pytest.mark.parametrize("name", NETS)
def test_backwards_along_the_path_changes_the_sign(name: str) -> None:
    model, inputs, layers = NETS[name]
    forwards = total_conductance(model, inputs, layers, target=1, baselines=_baseline(inputs), n_steps=9)
    backwards = total_conductance(model, _baseline(inputs), layers, target=1, baselines=inputs, n_steps=9)
    for layer in layers:
        _assert_same(-backwards[layer], forwards[layer])


def test_rescaling_a_unit_and_its_successor_changes_nothing() -> None:
    """y -> c y with the next weights divided by c: the same function and the same units."""
    model = trained("mlp")
    scaled = copy.deepcopy(model)
    factors = 0.25 + 4 * torch.rand(128, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, second = scaled.get_submodule("fc1"), scaled.get_submodule("fc2")
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    with torch.no_grad():
        first.weight.mul_(factors[:, None])
        first.bias.mul_(factors)
        second.weight.div_(factors)
    images, layers = digits().test[:4], ["fc1", "act1", "fc2", "act3"]
    ways: tuple[dict[str, Any], ...] = ({"n_steps": 21}, {"rtol": 1e-2})
    for how in ways:
        _assert_same_result(
            total_conductance(scaled, images, layers, target=1, **how),
            total_conductance(model, images, layers, target=1, **how),
        )


def test_permuted_units_are_permuted() -> None:
    model = trained("mlp", "gelu")
    other = copy.deepcopy(model)
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    first, second = other.get_submodule("fc1"), other.get_submodule("fc2")
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    with torch.no_grad():
        first.weight.copy_(first.weight[order].clone())
        first.bias.copy_(first.bias[order].clone())
        second.weight.copy_(second.weight[:, order].clone())
    images = digits().test[:3]
    expected = total_conductance(model, images, ["act1", "act2"], target=1, n_steps=9)
    found = total_conductance(other, images, ["act1", "act2"], target=1, n_steps=9)
    _assert_same(found["act1"], expected["act1"][:, order])
    _assert_same(found["act2"], expected["act2"])


@pytest.mark.parametrize("name", NETS)
def test_linear_in_the_explained_function(name: str) -> None:
    model, inputs, layers = NETS[name]
    one, other = (total_conductance(model, inputs, layers, target=k, n_steps=9) for k in (1, 3))
    both = total_conductance(model, inputs, layers, target=lambda output: 2.5 * output[:, 1] - output[:, 3], n_steps=9)
    for layer in layers:
        _assert_same(both[layer], 2.5 * one[layer] - other[layer])


@pytest.mark.parametrize("how", [{"n_steps": 9}, {"rtol": 1e-2}], ids=["n_steps", "rtol"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_dummy_units_get_nothing(activation: Activation, how: dict[str, Any]) -> None:
    """Unit 3 goes nowhere, unit 5 does not move."""
    model = copy.deepcopy(trained("mlp", activation))
    first, second = model.get_submodule("fc1"), model.get_submodule("fc2")
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    with torch.no_grad():
        second.weight[:, 3] = 0
        first.weight[5] = 0
    total = total_conductance(
        model,
        digits().test[:4],
        ["fc1", "act1"],
        target=1,
        **how,
    )
    for layer in ("fc1", "act1"):
        assert float(total[layer][:, [3, 5]].abs().max()) < 1e-14
        assert float(total[layer][:, 4].abs().max()) > 0


def test_several_baselines_give_the_mean() -> None:
    model, inputs, layers = NETS["attention"]
    baselines: list[Any] = [
        torch.zeros_like(inputs),
        _baseline(inputs),
        normal(1, 5, 6, seed=4).expand(5, 5, 6).clone(),
    ]
    singles = [
        total_conductance(model, inputs, layers, target=2, baselines=baseline, n_steps=9) for baseline in baselines
    ]
    several = total_conductance(model, inputs, layers, target=2, baselines=baselines, n_steps=9)
    for layer in layers:
        _assert_same(several[layer], torch.stack([single[layer] for single in singles]).mean(0))
        assert several.spread is not None
        assert bool((several.spread[layer] >= 0).all())
        assert singles[0].spread is None
    change = torch.stack([single.output_change for single in singles]).mean(0)
    torch.testing.assert_close(several.output_change, change, rtol=1e-10, atol=1e-12)


class _Joined(nn.Module):
    """The two-input net on one tensor."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.net(x[:, :3], x[:, 3:])
        return output


def test_several_inputs_move_together() -> None:
    net = seeded(TwoInputNet)
    inputs, layers = (normal(4, 3), normal(4, 5, seed=1)), ["left", "right", "joint", "act"]
    baselines = (0.5 * inputs[0].flip(0), torch.zeros_like(inputs[1]))
    apart = total_conductance(net, inputs, layers, target=2, baselines=baselines, n_steps=9)
    joined = total_conductance(
        _Joined(net),
        torch.cat(inputs, 1),
        [f"net.{layer}" for layer in layers],
        target=2,
        baselines=torch.cat(baselines, 1),
        n_steps=9,
    )
    for layer in layers:
        _assert_same(apart[layer], joined[f"net.{layer}"])
    assert [apart.is_cut[layer] for layer in layers] == [False, False, True, True]
    towers = sum(apart[layer].sum(1) for layer in ("left", "right"))
    torch.testing.assert_close(towers, apart.output_change, rtol=1e-6, atol=1e-8)


def test_additional_arguments_stay_where_they_are() -> None:
    net = seeded(TwoInputNet)
    first, second = normal(4, 3), normal(4, 5, seed=1)
    fixed = total_conductance(net, first, ["left", "right", "act"], target=2, additional_forward_args=second, n_steps=9)
    moved = total_conductance(net, (first, second), ["left", "act"], target=2, baselines=(0.0, second), n_steps=9)
    for layer in ("left", "act"):
        _assert_same(fixed[layer], moved[layer])
    assert float(fixed["right"].abs().max()) == 0
    assert fixed.is_cut["left"]


@pytest.mark.parametrize(
    ("model", "inputs", "cuts"),
    [
        (seeded(ConvNet), normal(4, 3, 8, 10), ["conv", "norm", "act", "pool", "fc", "head"]),
        (seeded(ResidualNet), normal(4, 7), ["stem", "sum1", "head"]),
        (seeded(ChunkNet), normal(4, 6), ["joined"]),
        (seeded(AttentionNet), normal(4, 5, 6), ["head"]),
    ],
    ids=["conv", "residual", "chunk", "attention"],
)
def test_cuts_are_complete(model: nn.Module, inputs: Tensor, cuts: list[str]) -> None:
    """The convolutional net has kinks, where tight tolerances are dear: it gets one of its own."""
    rtol = 1e-4 if "conv" in cuts else 1e-8
    total = total_conductance(model, inputs, cuts, target=1, baselines=_baseline(inputs), rtol=rtol)
    expected = (model(inputs) - model(_baseline(inputs)))[:, 1]
    torch.testing.assert_close(total.output_change, expected, rtol=1e-12, atol=1e-12)
    for layer in cuts:
        assert total.is_cut[layer]
        size = total[layer].flatten(1).abs().sum(1)
        gap = (total[layer].flatten(1).sum(1) - expected).abs()
        assert bool((gap <= rtol * size).all())
        torch.testing.assert_close(total.per_unit(layer).sum(1), total[layer].flatten(1).sum(1))


def test_branches_are_not_cuts_and_have_their_coverage() -> None:
    model, inputs, _ = NETS["residual"]
    layers = ["down1", "act1", "down2"]
    total = total_conductance(model, inputs, layers, target=1, baselines=_baseline(inputs), rtol=1e-9)
    for layer in layers:
        assert not total.is_cut[layer]
        for k in range(len(inputs)):
            x, baseline = inputs[k : k + 1], _baseline(inputs)[k : k + 1]
            share = jacobian_total(model, x, baseline, 1, layer).sum() / total.output_change[k]
            assert float(total.coverage[layer][k]) == pytest.approx(float(share), rel=1e-6, abs=1e-8)
            assert abs(float(share) - 1) > 1e-4
    chunk = total_conductance(seeded(ChunkNet), normal(4, 6), ["fc", "gated", "side"], target=1, rtol=1e-9)
    assert not any(chunk.is_cut.values())
    torch.testing.assert_close(
        chunk.coverage["gated"] + chunk.coverage["side"],
        torch.ones(4, dtype=torch.float64),
        rtol=1e-6,
        atol=1e-6,
    )


def test_channels_sum_their_positions() -> None:
    model, inputs, _ = NETS["conv"]
    total = total_conductance(model, inputs, ["conv", "pool"], target=1, n_steps=5)
    assert total["conv"].shape == (5, 5, 7, 6)
    torch.testing.assert_close(total.per_unit("conv"), total["conv"].sum((2, 3)))
    torch.testing.assert_close(total.per_unit("pool"), total["pool"].sum((2, 3)))
    assert total.unit_error["conv"].shape == (5, 5)


def test_float32_is_close_to_float64() -> None:
    model = frozen(copy.deepcopy(trained("mlp", "gelu")))
    images = digits().test[:4]
    wide = total_conductance(model, images, ["fc1", "act2"], target=1, rtol=1e-3)
    narrow = total_conductance(model.float(), images.float(), ["fc1", "act2"], target=1, rtol=1e-3)
    for layer in ("fc1", "act2"):
        assert narrow[layer].dtype == torch.float32
        _assert_same(narrow[layer].double(), wide[layer], tolerance=2e-3)
