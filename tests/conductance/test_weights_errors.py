"""Which layers have weights that can be explained, and what is said of the others and of bad arguments."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance import weight_conductance
from conductance.hooks import HookPoint, list_points
from tests.conductance.test_total_errors import CASES, WithPositions, X, assert_untouched, net
from tests.helpers import normal, seeded
from tests.reference import relative_error


@pytest.mark.parametrize(("changed", "kind", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_bad_arguments_are_named(changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    model = net()
    arguments: dict[str, Any] = {"inputs": X, "target": 0, "layers": ["hidden", "head"], **changed}
    with pytest.raises(kind, match=message):
        weight_conductance(model, arguments.pop("inputs"), **arguments)
    assert_untouched(model)


class Mixed(nn.Module):
    """Layers with and without weights to explain, on ``(batch, 4)``."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 4)
        self.norm = nn.LayerNorm(4)
        self.fc = nn.Linear(4, 5)
        self.act = nn.ReLU()
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.act(self.fc(self.norm(x + self.table.weight[1]))))
        return output


@pytest.mark.parametrize("name", ["act", "norm", "table"])
def test_a_named_layer_without_weights_is_refused(name: str) -> None:
    model = seeded(Mixed)
    kind = type(model.get_submodule(name)).__name__
    for layers in (name, [name], ["fc", name], ["*", name], HookPoint(name), model.get_submodule(name), [["fc"], name]):
        with pytest.raises(ValueError, match=rf"layers names '{name}' \({kind}\), which has no weight between"):
            weight_conductance(model, normal(2, 4), layers, target=0)


def test_layers_in_every_way_of_naming_them() -> None:
    model = seeded(Mixed)
    every = weight_conductance(model, normal(2, 4), target=0, n_steps=3)
    assert every.layers == ["fc", "head"]
    assert every.settings["left_out"] == []
    table = list_points(model, normal(2, 4))
    for layers in ("*", nn.Module, nn.Linear, [nn.Linear, nn.ReLU], ["f*", "head"], table, table[1:], ["head", "fc"]):
        found = weight_conductance(model, normal(2, 4), layers, target=0, n_steps=3)
        assert found.layers == every.layers
        assert all(torch.equal(found[name], every[name]) for name in every)
    with pytest.raises(ValueError, match="layers names 'act'"):
        weight_conductance(model, normal(2, 4), nn.ReLU, target=0)
    with pytest.raises(ValueError, match="no layers with weights"):
        weight_conductance(nn.Sequential(nn.ReLU()), normal(2, 4), target=0)


@pytest.mark.parametrize("layer", ["fc#0", "fc:in", HookPoint("fc", call=0), "fc[0]"])
def test_a_single_call_or_end_of_a_layer_is_refused(layer: Any) -> None:
    with pytest.raises(ValueError, match="all calls of a layer together: give 'fc'"):
        weight_conductance(seeded(Mixed), normal(2, 4), layer, target=0)


@pytest.mark.parametrize("layers", [None, "*", nn.Linear])
def test_layers_that_never_run_are_left_out_unless_named(layers: Any) -> None:
    found = weight_conductance(net(), X, layers, target=0, n_steps=3)
    assert found.layers == ["hidden", "head"]
    assert found.settings["left_out"] == ["idle"]
    for named in ("idle", ["hidden", "idle"], ["*", "idle"]):
        with pytest.raises(ValueError, match=r"layers names 'idle', which never ran"):
            weight_conductance(net(), X, named, target=0)
    assert weight_conductance(seeded(WithPositions), X, target=0, n_steps=3).layers == ["hidden", "head"]


class Encoder(nn.Module):
    """Attention, whose projections are used without running as modules."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 7, dropout=0.0, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.layer(x).mean(1))
        return output


def test_projections_inside_attention_are_left_out() -> None:
    model = seeded(Encoder)
    found = weight_conductance(model, normal(2, 5, 6), target=0, n_steps=3)
    assert found.layers == ["layer.linear1", "layer.linear2", "head"]
    assert found.settings["left_out"] == ["layer.self_attn.out_proj"]
    with pytest.raises(ValueError, match=r"'layer\.self_attn\.out_proj', which never ran"):
        weight_conductance(model, normal(2, 5, 6), "layer.self_attn.out_proj", target=0)


def test_a_plain_callable_with_its_modules() -> None:
    model = net()
    expected = weight_conductance(model, X, ["hidden", "head"], target=0, n_steps=4)
    found = weight_conductance(lambda x: model(x), X, [model.hidden, model.head], target=0, n_steps=4)
    assert found.layers == ["Linear_0", "Linear_1"]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(found[one], expected[other])
    with pytest.raises(ValueError, match="the model is a plain callable"):
        weight_conductance(lambda x: model(x), X, target=0)
    assert_untouched(model)


def test_the_model_itself_and_inputs_by_keyword() -> None:
    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.fc(input=x)
            return output

    model = seeded(ByKeyword)
    fc: Any = model.get_submodule("fc")
    expected = torch.zeros(3, 4, dtype=torch.float64)
    expected[1] = fc.weight[1] * X.sum(0)
    for found, name in (
        (weight_conductance(model, X, target=1), "fc"),
        (weight_conductance(fc, X, target=1), "(model)"),
    ):
        assert found.layers == [name]
        torch.testing.assert_close(found[name], expected)


def test_parametrised_weights() -> None:
    """The weight is what the parameters make of it."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    plain, normed = seeded(build), seeded(build).requires_grad_()
    torch.nn.utils.parametrizations.weight_norm(normed[0])  # type: ignore[index]
    expected = weight_conductance(plain, X, target=1, n_steps=5)
    for layers in (None, "0", nn.Linear):
        found = weight_conductance(normed, X, layers, target=1, n_steps=5)
        assert "0" in found
        assert float(expected["0"].abs().sum()) > 0.1
        for layer in found:
            assert relative_error(found[layer], expected[layer]) < 1e-12
    assert_untouched(normed[0].parametrizations)  # type: ignore[index]


class Scaled(nn.Linear):
    """Multiplies with something else than its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, 2.0 * self.weight, self.bias)


class Renamed(nn.Linear):
    """A class of its own that does the same."""


def test_classes_that_do_something_else_are_refused() -> None:
    model = seeded(lambda: nn.Sequential(Scaled(4, 5), nn.Tanh(), Renamed(5, 3)))
    found = weight_conductance(model, X, target=1, n_steps=3)
    assert found.layers == ["2"]
    assert found.settings["left_out"] == ["0"]
    with pytest.raises(ValueError, match=r"layers names '0' \(.*Scaled\), which has a forward of its own"):
        weight_conductance(model, X, "0", target=1)


def test_weights_without_values_or_in_code() -> None:
    meta = nn.Sequential(nn.Linear(4, 5, device="meta", dtype=torch.float64), nn.Linear(5, 3).double())
    for layers in (None, "0", "*"):
        with pytest.raises(ValueError, match=r"layers names '0' \(Linear\), which has its weight on the meta device"):
            weight_conductance(meta, X, layers, target=1)
    coded = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)))
    coded[0].weight = nn.Parameter(torch.ones(5, 4, dtype=torch.int8), requires_grad=False)  # type: ignore[index]
    with pytest.raises(ValueError, match=r"layers names '0' \(Linear\), which has a weight of torch.int8"):
        weight_conductance(coded, X, "0", target=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)), {nn.Linear})
    with pytest.raises(ValueError, match=r"layers names '0' \(torch\.ao\..*Linear\), which has no weight between"):
        weight_conductance(quantised, X.float(), "0", target=1)


def test_a_layer_whose_output_a_hook_changes_is_left_out_or_refused() -> None:
    """The gradient is that of what the hook made, which the weight did not."""
    model = seeded(Mixed)
    fc, head = (model.get_submodule(name) for name in ("fc", "head"))
    fc.register_forward_hook(lambda _module, _args, output: 2 * output)
    with pytest.raises(ValueError, match=r"layers names 'fc', whose output is not what the weight makes of the input"):
        weight_conductance(model, normal(2, 4), "fc", target=0)
    found = weight_conductance(model, normal(2, 4), target=0, n_steps=3)
    assert found.layers == ["head"]
    assert found.settings["left_out"] == ["fc"]
    head.forward = lambda x: -x[..., :3]
    with pytest.raises(ValueError, match=r"layers names 'fc', 'head', whose output"):
        weight_conductance(model, normal(2, 4), target=0)


def test_hooks_that_only_look_or_change_the_input_are_no_obstacle() -> None:
    model = seeded(Mixed)
    fc = model.get_submodule("fc")
    fc.register_forward_hook(lambda _module, _args, _output: None)
    fc.register_forward_pre_hook(lambda _module, args: (2 * args[0],))
    found = weight_conductance(model, normal(2, 4), "fc", target=0, n_steps=9)
    twice = seeded(Mixed)
    for parameter in twice.get_submodule("norm").parameters():
        parameter.data *= 2
    expected = weight_conductance(twice, normal(2, 4), "fc", target=0, n_steps=9)
    torch.testing.assert_close(found["fc"], expected["fc"])
