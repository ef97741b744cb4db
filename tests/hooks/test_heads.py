"""Attention layers found in a model: the right modules, how many heads, how many heads of values."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance.hooks import HookPoint, attention_points, capture

transformers: Any = pytest.importorskip("transformers")

SMALL = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 14, "vocab_size": 11}
GROUPED = {**SMALL, "hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2}


def built(kind: str, **config: Any) -> nn.Module:
    """A model of transformers from a configuration of its own, such as ``BertModel`` from ``BertConfig``."""
    prefix = next(kind[:end] for end in range(len(kind), 0, -1) if hasattr(transformers, f"{kind[:end]}Config"))
    model: nn.Module = getattr(transformers, kind)(getattr(transformers, f"{prefix}Config")(**config))
    return model.eval()


class Case:
    """A model, its attention layers, and below each the output and value projections; heads, and heads of values."""

    def __init__(
        self, build: Callable[[], nn.Module], names: list[str], output: str, value: str, heads: int = 3, values: int = 3
    ) -> None:
        self.build, self.names, self.output, self.value, self.heads, self.values = (
            build, names, output, value, heads, values,
        )  # fmt: skip


def two(pattern: str) -> list[str]:
    return [pattern.format(number) for number in (0, 1)]


T5 = {"d_model": 12, "d_kv": 5, "d_ff": 14, "num_layers": 2, "num_heads": 3, "vocab_size": 11}
OPT = {
    "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "ffn_dim": 14, "vocab_size": 11,
    "word_embed_proj_dim": 12, "max_position_embeddings": 16,
}  # fmt: skip
CASES = {
    "bert": Case(lambda: built("BertModel", **SMALL), two("encoder.layer.{}.attention"), "output.dense", "self.value"),
    "vit": Case(
        lambda: built("ViTModel", **SMALL, image_size=8, patch_size=4), two("layers.{}.attention"), "o_proj", "v_proj"
    ),
    "llama": Case(lambda: built("LlamaModel", **GROUPED), two("layers.{}.self_attn"), "o_proj", "v_proj", 6, 2),
    "mistral": Case(lambda: built("MistralModel", **GROUPED), two("layers.{}.self_attn"), "o_proj", "v_proj", 6, 2),
    "qwen2": Case(lambda: built("Qwen2Model", **GROUPED), two("layers.{}.self_attn"), "o_proj", "v_proj", 6, 2),
    "wide heads": Case(
        lambda: built("Qwen3Model", **GROUPED, head_dim=10), two("layers.{}.self_attn"), "o_proj", "v_proj", 6, 2
    ),
    "opt": Case(lambda: built("OPTModel", **OPT), two("decoder.layers.{}.self_attn"), "out_proj", "v_proj"),
    "t5": Case(lambda: built("T5EncoderModel", **T5), two("encoder.block.{}.layer.0.SelfAttention"), "o", "v"),
    "distilbert": Case(
        lambda: built("DistilBertModel", dim=12, n_layers=2, n_heads=3, hidden_dim=14, vocab_size=11),
        two("transformer.layer.{}.attention"), "out_lin", "v_lin",
    ),
    "deberta": Case(
        lambda: built("DebertaV2Model", **SMALL), two("encoder.layer.{}.attention"), "output.dense", "self.value_proj"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_attention_layers_of_transformers(case: Case) -> None:
    model = case.build()
    found = attention_points(model)
    assert [point.name for point in found] == case.names
    for point in found:
        assert point.output == HookPoint(f"{point.name}.{case.output}", side="in", unit_axis=-1, unit_groups=case.heads)
        assert point.value == HookPoint(f"{point.name}.{case.value}", unit_axis=-1, unit_groups=case.values)
        output = model.get_submodule(point.output.module)
        value = model.get_submodule(point.value.module)
        assert isinstance(output, nn.Linear)
        assert isinstance(value, nn.Linear)
        # a head is as wide in the values as in what it gives
        assert value.out_features * case.heads == output.in_features * case.values


def test_cross_attention_is_found_too() -> None:
    model = built("T5ForConditionalGeneration", **{**T5, "num_layers": 1})
    names = [point.name.replace("block.0.", "") for point in attention_points(model)]
    assert names == [
        "encoder.layer.0.SelfAttention", "decoder.layer.0.SelfAttention", "decoder.layer.1.EncDecAttention",
    ]  # fmt: skip


def test_the_points_can_be_tapped() -> None:
    model = built("LlamaModel", **GROUPED)
    x = torch.randn(2, 5, 24)
    points = [end for one in attention_points(model) for end in (one.value, one.output)]
    seen: dict[str, tuple[int, ...]] = {}

    def consume(point: HookPoint, activation: Tensor, gradient: Tensor) -> None:
        assert activation.shape == gradient.shape
        seen[point.name] = tuple(activation.shape)

    with capture(dict(model.named_modules()), points, consume):
        model(inputs_embeds=x.requires_grad_()).last_hidden_state.sum().backward()
    assert seen == {point.name: (2, 5, 24 if point.side == "in" else 8) for point in points}


def gpt2() -> nn.Module:
    return built("GPT2Model", n_embd=12, n_layer=2, n_head=3, vocab_size=11)


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 3, 14, batch_first=True), 2, enable_nested_tensor=False)


class Gate(nn.Module):
    """Has a value and an output projection, as attention has, but no heads."""

    def __init__(self, **numbers: int) -> None:
        super().__init__()
        self.value, self.dense = nn.Linear(5, 6), nn.Linear(6, 5)
        for name, number in numbers.items():
            setattr(self, name, number)


@pytest.mark.parametrize(
    "build", [gpt2, encoder, lambda: nn.Linear(3, 4), Gate, lambda: Gate(num_heads=4)],
    ids=["gpt2", "torch", "linear", "no heads", "heads that do not fit"],
)  # fmt: skip
def test_models_without_a_value_tensor_have_none(build: Callable[[], nn.Module]) -> None:
    assert attention_points(build()) == []


def test_what_the_negative_cases_lack_is_what_they_are_about() -> None:
    (found,) = attention_points(Gate(num_heads=3))
    assert (found.name, found.output.name, found.output.unit_groups) == ("", "dense:in", 3)
    assert (found.value.name, found.value.unit_groups) == ("value", 3)


def test_the_number_of_heads_may_stand_in_the_configuration_or_below() -> None:
    class Config:
        n_heads = 2

    inside, outside = Gate(num_heads=3), Gate()
    outside.config = Config()  # type: ignore[assignment]
    outside.add_module("rotary", nn.Identity())
    assert [one.output.unit_groups for one in attention_points(nn.ModuleList([inside, outside]))] == [3, 2]
    below = Gate()
    below.add_module("core", Gate(n_head=6).requires_grad_(requires_grad=False))
    outer, inner = attention_points(below)
    assert (outer.name, outer.output.unit_groups, inner.name, inner.output.unit_groups) == ("", 6, "core", 6)


def test_the_innermost_module_that_has_both_is_the_layer() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads = 3
            self.attention = Gate(num_heads=3)
            self.output = nn.ModuleDict({"dense": nn.Linear(15, 7)})

    (found,) = attention_points(Block())
    assert (found.name, found.output.name) == ("attention", "attention.dense:in")


def test_a_callable_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model is a function; expected a torch\.nn\.Module"):
        attention_points(gpt2)  # type: ignore[arg-type]
