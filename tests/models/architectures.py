"""Tiny transformers of random weights, one a family: what their modules look like is real, what they say is not."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from conductance.targeting import Target
from tests.helpers import frozen, normal

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
START = torch.tensor([[7, 7, 8, 8, 7], [8, 7, 7, 8, 8]])
PREFIX = torch.tensor([[0, 7, 2], [0, 8, 1]])

SMALL = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 14}
WORDS = {**SMALL, "vocab_size": 11}
T5 = {"d_model": 12, "d_kv": 5, "d_ff": 14, "num_layers": 1, "num_decoder_layers": 2, "num_heads": 3, "vocab_size": 11}


def _first_token(output: Any) -> Tensor:
    value: Tensor = output.last_hidden_state[:, 0, 3]
    return value


@dataclass(frozen=True)
class Family:
    """How to build a model, what to explain of it, and some of its cuts; ``rtol`` as fine as its kinks allow."""

    model: str
    config: Mapping[str, Any]
    cuts: tuple[str, ...]
    target: Target = (-1, 2)
    inputs: Mapping[str, Tensor] = field(default_factory=lambda: {"input_ids": IDS})
    baselines: Tensor = START
    rtol: float = 1e-4


FAMILIES = {
    "llama": Family(
        "LlamaForCausalLM",
        {**WORDS, "hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2},
        ("model.layers.0", "model.norm", "lm_head", "(model)[logits]"),
        rtol=1e-3,
    ),
    "bert": Family(
        "BertModel",
        WORDS,
        ("embeddings", "encoder.layer.0", "encoder.layer.1", "encoder[last_hidden_state]"),
        _first_token,
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        {"n_embd": 12, "n_layer": 2, "n_head": 3, "vocab_size": 11, "bos_token_id": 0, "eos_token_id": 0},
        ("transformer.drop", "transformer.h.0", "transformer.ln_f", "lm_head"),
    ),
    "t5": Family(
        "T5ForConditionalGeneration",
        {**T5, "feed_forward_proj": "gated-gelu"},
        ("encoder.embed_tokens", "encoder.block.0[0]", "encoder[last_hidden_state]", "decoder.block.1[0]", "lm_head"),
        inputs={"input_ids": IDS, "decoder_input_ids": PREFIX},
        rtol=1e-2,
    ),
    "vit": Family(
        "ViTModel",
        {**SMALL, "image_size": 8, "patch_size": 4},
        ("embeddings", "layers.0", "layernorm"),
        _first_token,
        {"pixel_values": normal(2, 3, 8, 8)},
        normal(2, 3, 8, 8, seed=1, scale=0.3),
    ),
    "albert": Family(
        "AlbertModel",
        {**WORDS, "num_hidden_layers": 3, "embedding_size": 7},
        ("embeddings", *(f"encoder.albert_layer_groups.0.albert_layers.0#{call}" for call in range(3))),
        _first_token,
    ),
    "mixtral": Family(  # every expert is used: which ones are chosen is a jump
        "MixtralForCausalLM",
        {
            **WORDS, "num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 4,
            "experts_implementation": "eager",
        },
        ("model.layers.0", "model.norm", "lm_head"),
        (-1, 4),
        rtol=1e-2,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model with what total conductance is asked of it."""

    model: nn.Module
    family: Family

    @property
    def asked(self) -> dict[str, Any]:
        """Inputs, target and baseline, by keyword."""
        family = self.family
        return {"inputs": dict(family.inputs), "target": family.target, "baselines": family.baselines}


@cache
def case(name: str) -> Case:
    """A family's model in float64 throughout, with weights strong enough to be far from linear."""
    import transformers

    family = FAMILIES[name]
    kind = getattr(transformers, family.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(kind.config_class(**family.config))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.35)
    for module in [*model.modules()]:
        for child_name, child in module.named_children():
            if (
                type(child).__name__.endswith("RMSNorm") or type(child).__name__ == "T5LayerNorm"
            ):  # these round to float32
                setattr(module, child_name, nn.RMSNorm(child.weight.shape, child.variance_epsilon))
    return Case(frozen(model), family)


def seen(model: nn.Module, run: Callable[[], Any]) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of the floating-point tensors that each module gives in a run, in order: tuples and mappings opened."""
    found: dict[str, list[tuple[int, ...]]] = {name: [] for name, _ in model.named_modules()}

    def record(name: str) -> Callable[..., None]:
        return lambda _module, _args, output: found[name].extend(_shapes(output))

    handles = [module.register_forward_hook(record(name)) for name, module in model.named_modules()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return {name: shapes for name, shapes in found.items() if shapes}


def _shapes(output: Any) -> list[tuple[int, ...]]:
    if isinstance(output, Tensor):
        return [tuple(output.shape)] if output.is_floating_point() else []
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return [shape for part in parts for shape in _shapes(part)]
