"""Networks for the tests of neuron conductance: one for each kind of operator that modes and axes may trip over."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from conductance import NeuronConductance, neuron_conductance
from tests.helpers import AttentionNet, ConvNet, ResidualNet, TwoInputNet, normal, seeded

BATCH = 3


class Mlp(nn.Module):
    """Two hidden layers on ``(batch, 5)``; ``start`` is the input itself."""

    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.start = nn.Identity()
        self.fc1, self.act1 = nn.Linear(5, 7), activation()
        self.fc2, self.act2 = nn.Linear(7, 6), activation()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.act2(self.fc2(self.act1(self.fc1(self.start(x))))))
        return logits


class LstmNet(nn.Module):
    """A recurrent layer with time in front, on ``(batch, 5, 6)``; its output is ``(time, batch, 7)``."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 7)
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.lstm(x.transpose(0, 1))
        logits: Tensor = self.head(hidden.mean(0))
        return logits


class MultiheadNet(nn.Module):
    """Multi-head attention on ``(batch, 5, 6)``, two heads, weights not asked for: the fused kernel is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.mix = nn.Identity()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(self.attention(x, x, x, need_weights=False)[0])
        logits: Tensor = self.head(torch.tanh(mixed).mean(1))
        return logits


class EncoderNet(nn.Module):
    """torch's own transformer layer, which has a fast path without gradients, on ``(batch, 5, 6)``."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(6, 2, 11, dropout=0.0, activation="gelu", batch_first=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.encoder(x)).mean(1))
        return logits


class FusedNet(nn.Module):
    """The fused attention kernel called by hand, on ``(batch, 5, 6)``, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))
        self.mixed = nn.Identity()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (2, 3)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        logits: Tensor = self.head(torch.tanh(self.mixed(mixed)).mean(1))
        return logits


def tiny_bert() -> nn.Module:
    """A BERT of one layer with random weights and fused attention, on embeddings ``(batch, 5, 8)``."""
    from transformers import BertConfig, BertModel

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert: nn.Module = BertModel(
                BertConfig(
                    vocab_size=11,
                    hidden_size=8,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    intermediate_size=12,
                    max_position_embeddings=9,
                )
            )
            self.head = nn.Linear(8, 4)

        def forward(self, embeddings: Tensor) -> Tensor:
            logits: Tensor = self.head(self.bert(inputs_embeds=embeddings).pooler_output)
            return logits

    return seeded(Classifier)


@dataclass(frozen=True)
class Case:
    """A network with three examples of its own targets, and layers to look at."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    baselines: tuple[Tensor, ...]
    layers: tuple[Any, ...]
    kinked: bool = False

    @property
    def whole(self) -> dict[str, Any]:
        """Arguments of a call but for the layer."""
        several = len(self.inputs) > 1
        return {
            "inputs": self.inputs if several else self.inputs[0],
            "baselines": self.baselines if several else self.baselines[0],
            "target": TARGETS,
        }


TARGETS = torch.tensor([2, 0, 3])


def _case(build: Callable[[], nn.Module], *shapes: tuple[int, ...], layers: list[Any], kinked: bool = False) -> Case:
    inputs = tuple(normal(BATCH, *shape, seed=number) for number, shape in enumerate(shapes))
    baselines = tuple(normal(BATCH, *shape, seed=9 + number, scale=0.4) for number, shape in enumerate(shapes))
    return Case(seeded(build), inputs, baselines, tuple(layers), kinked)


_BUILDERS: dict[str, Callable[[], Case]] = {
    "gelu": lambda: _case(lambda: Mlp(nn.GELU), (5,), layers=["fc1", "act1", "fc2", "head"]),
    "tanh": lambda: _case(lambda: Mlp(nn.Tanh), (5,), layers=["fc1", "act2"]),
    "relu": lambda: _case(lambda: Mlp(nn.ReLU), (5,), layers=["fc1", "act1", "act2"], kinked=True),
    "residual": lambda: _case(ResidualNet, (7,), layers=["stem", "act1", "sum1", "down2"]),
    "conv": lambda: _case(ConvNet, (3, 8, 10), layers=["conv", "act", "pool", "fc"], kinked=True),
    "attention": lambda: _case(AttentionNet, (5, 6), layers=["query", "softmax", "out", "act"]),
    "two-inputs": lambda: _case(TwoInputNet, (3,), (5,), layers=["left", "joint", "act"]),
    "lstm": lambda: _case(LstmNet, (5, 6), layers=["lstm[0]"]),
    "multihead": lambda: _case(MultiheadNet, (5, 6), layers=["mix", "attention[0]"]),
    "encoder": lambda: _case(EncoderNet, (5, 6), layers=["encoder"]),
    "fused": lambda: _case(FusedNet, (5, 6), layers=["key", "mixed"]),
    "bert": lambda: _case(
        tiny_bert, (5, 8), layers=["bert.encoder.layer.0.attention.self.value", "bert.encoder.layer.0.output"]
    ),
}
CASES = tuple(_BUILDERS)


@cache
def case(name: str) -> Case:
    """One of `CASES`, built once; do not change it."""
    return _BUILDERS[name]()


def one(model: nn.Module, layer: Any, **arguments: Any) -> NeuronConductance:
    """`neuron_conductance` of one layer."""
    found = neuron_conductance(model, arguments.pop("inputs"), layer, **arguments)
    assert isinstance(found, NeuronConductance)
    return found


def tensor(found: NeuronConductance) -> Tensor:
    """Its values, where one input moves or features are grouped."""
    assert isinstance(found.values, Tensor)
    return found.values


def flat(found: NeuronConductance) -> Tensor:
    """Its values ``(batch, neurons, features)``, all inputs joined."""
    parts = (found.values,) if isinstance(found.values, Tensor) else found.values
    return torch.cat([part.reshape(*part.shape[:2], -1) for part in parts], 2)


def assert_same(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Equal but for rounding, relative to the sum of absolute values; never zero with zero."""
    assert found.shape == expected.shape
    assert float(expected.abs().sum()) > 1e-6
    assert float((found - expected).abs().sum()) <= tolerance * float(expected.abs().sum())
