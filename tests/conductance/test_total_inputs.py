"""Inputs of modules as layers: called by keyword, written over in place, and equal to the outputs that they are."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance import total_conductance
from conductance.hooks import tap
from tests.helpers import normal, seeded

SEQUENCE = normal(2, 5, 6, seed=1)
X = normal(3, 4, seed=2)


class Attention(nn.Module):
    """``nn.MultiheadAttention`` on ``(batch, 5, 6)`` with a query, key and value of its own, called in some way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        query, key, value = torch.tanh(self.query(x)), torch.tanh(self.key(x)), torch.tanh(self.value(x))
        query, key, value = tap("q", query), tap("k", key), tap("v", value)
        if self.how == "keywords":
            mixed, _ = self.attention(query=query, key=key, value=value)
        elif self.how == "both":
            mixed, _ = self.attention(query, value=value, key=key)
        else:
            mixed, _ = self.attention(query, key, value)
        output: Tensor = self.head(mixed.mean(1))
        return output


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ("keywords", ["[query]", "[key]", "[value]"]),
        ("both", ["", "[key]", "[value]"]),  # a single positional input goes without its number
        ("positions", ["[0]", "[1]", "[2]"]),
    ],
)
def test_a_layer_called_by_keyword_is_explained_at_each_of_its_inputs(how: str, names: list[str]) -> None:
    model = seeded(lambda: Attention(how))
    points = [f"attention:in{name}" for name in names]
    found = total_conductance(model, SEQUENCE, [*points, "q", "k", "v"], target=1, rtol=1e-6)
    assert {*found} == {*points, "q", "k", "v"}
    for point, name in zip(points, "qkv", strict=True):
        assert found[name].abs().max() > 1e-4
        assert torch.equal(found[point], found[name])
        alone = total_conductance(model, SEQUENCE, point, target=1, rtol=1e-6)
        torch.testing.assert_close(alone[point], found[name], rtol=1e-4, atol=1e-7)
    together = sum(found[point].flatten(1).sum(1) for point in points)
    torch.testing.assert_close(together, found.output_change, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_hidden_states_given_to_attention_of_transformers_by_keyword() -> None:
    transformers: Any = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    model = seeded(lambda: transformers.LlamaModel(config))
    given = {"inputs_embeds": normal(2, 5, 8, seed=3)}
    layers = ["layers.0.self_attn:in[hidden_states]", "layers.0.input_layernorm", "layers.0.mlp:in"]
    found = total_conductance(
        model, given, layers, target=lambda out: out.last_hidden_state[:, -1, 0], baselines=0.5, rtol=1e-6
    )
    assert found[layers[0]].abs().max() > 1e-3
    assert torch.equal(found[layers[0]], found[layers[1]])
    assert found[layers[2]].shape == (2, 5, 8)


class Written(nn.Module):
    """Five tensors that are outputs and inputs of modules and then written over, or not."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace
        self.fc1, self.fc2, self.fc3 = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 2)
        self.relu, self.hardtanh = nn.ReLU(inplace=inplace), nn.Hardtanh(-0.5, 0.7, inplace=inplace)
        self.flat = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        first = self.relu(self.fc1(x))
        second = self.hardtanh(self.fc2(first))
        if self.inplace:
            second += first
            second = self.flat(second).mul_(2)
        else:
            second = self.flat(second + first) * 2
        output: Tensor = self.fc3(second)
        return output


def test_operations_in_place_behind_outputs_and_inputs_change_nothing() -> None:
    names = ["fc1", "relu", "fc2", "hardtanh", "flat", "fc3"]
    layers = names + [f"{name}:in" for name in names]
    expected, found = (
        total_conductance(seeded(lambda: Written(inplace)), X, layers, target=0, rtol=1e-9)  # noqa: B023
        for inplace in (False, True)
    )
    assert {*found} == {*expected} == {*layers}
    for name in layers:
        assert expected[name].abs().max() > 1e-3
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-9)


def test_conductance_at_an_input_is_that_of_the_output_it_is() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 2)))
    found = total_conductance(model, X, ["0", "1:in", "1", "2:in", "2", "3:in", "3", "4:in"], target=1, rtol=1e-6)
    assert found.layers == ["0", "1:in", "1", "2:in", "2", "3:in", "3", "4:in"]
    for before, after in (("0", "1:in"), ("1", "2:in"), ("2", "3:in"), ("3", "4:in")):
        assert found[before].abs().max() > 1e-3
        assert torch.equal(found[before], found[after])
        assert found.info[before].unit_axis == found.info[after].unit_axis
    assert not torch.equal(found["1:in"], found["1"])
    assert {*found.to_dataframe()["layer"]} == {*found}


def test_a_linear_map_takes_in_what_it_gives_out() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5, bias=False), nn.GELU()))
    found = total_conductance(model, X, ["2:in", "2"], target=1, rtol=1e-8)
    assert found["2"].sum(1).abs().min() > 1e-3
    torch.testing.assert_close(found["2:in"].sum(1), found["2"].sum(1), rtol=1e-7, atol=1e-9)


class Idle(nn.Module):
    """Some modules that run, by names that are like those that do not."""

    def __init__(self, running: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(running))
        self.spare = nn.Linear(4, 4)
        self.bloks = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        for block in self.blocks:
            x = torch.tanh(block(x))
        return tap("logits", x)


@pytest.mark.parametrize(
    ("running", "layers", "message"),
    [
        (2, "spare", r"layers names 'spare', which never ran.*; what ran: 'blocks.0', 'blocks.1', 'logits'; cond"),
        (2, ["logits", "spare:in"], r"layers names 'spare:in', which never ran.*; what ran: 'blocks.0', 'blocks.1'"),
        (2, ["spare", "bloks"], r"layers names 'spare', which never ran.*; 'bloks' too; what ran: "),
        (2, "blocks", r"layers names 'blocks', which never ran.*; what ran: 'blocks.0', 'blocks.1', 'logits'"),
        (12, "bloks", r"what ran: 'blocks.\d+', 'blocks.\d+', 'blocks.\d+', 'blocks.\d+', 'blocks.\d+' and 8 more"),
        (2, "blocks.2", r"no module named 'blocks.2'. Nearest: 'blocks.\d', 'blocks.\d', 'blocks'; .*list_points"),
    ],
)
def test_a_layer_that_never_runs_is_told_beside_those_that_do(running: int, layers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        total_conductance(seeded(lambda: Idle(running)), X, layers, target=0)


@pytest.mark.parametrize("how", ["trace", "script"])
def test_what_is_inside_torchscript_is_told_to_have_no_hooks(how: str) -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frozen: Any = torch.jit.trace(model, X) if how == "trace" else torch.jit.script(model)
    for layers in ("1", None):
        with pytest.raises(TypeError, match=r"model is TorchScript .* which runs without hooks; pass the eager"):
            total_conductance(frozen, X, layers, target=0)
    mixed = nn.Sequential(nn.Linear(4, 4).double(), frozen)
    found = total_conductance(mixed, X, target=0, rtol=1e-2)
    assert found.layers == ["0"]
    assert found["0"].abs().max() > 1e-3
