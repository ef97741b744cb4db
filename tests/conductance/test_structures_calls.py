"""A module that runs several times has a point for each call: shared activations, weights shared over blocks."""

from operator import itemgetter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance import total_conductance
from tests.conductance.structures import distance, literal
from tests.helpers import frozen, normal
from tests.hooks.nets import reusing

X = normal(3, 3, seed=4)


def test_each_call_of_a_shared_activation_is_a_point_of_its_own() -> None:
    model = frozen(reusing())
    total = total_conductance(model, X, "act", target=0, rtol=1e-9)
    assert {name: tuple(total[name].shape) for name in total} == {
        "act#0": (3, 4),
        "act#1": (3, 5),
        "act#2": (3, 2),
    }
    for call, name in enumerate(total):
        torch.testing.assert_close(total[name].sum(1), total.output_change, rtol=1e-8, atol=1e-11)
        expected = literal(model, X[1:2], "act", itemgetter(call))
        assert distance(total[name][1], expected) < 1e-7
    one = total_conductance(model, X, "act#1", target=0, rtol=1e-9)
    assert list(one) == ["act#1"]


def test_one_object_at_two_places_of_a_sequence() -> None:
    torch.manual_seed(1)
    act = nn.Tanh()
    model = frozen(nn.Sequential(nn.Linear(3, 5), act, nn.Linear(5, 6), act, nn.Linear(6, 2)))
    total = total_conductance(model, X, model[1], target=0, rtol=1e-8)  # type: ignore[index]
    assert {name: tuple(total[name].shape) for name in total} == {"1#0": (3, 5), "1#1": (3, 6)}


def test_calls_of_a_block_share_weights_but_not_conductance() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = x + self.block(x)
            logits: Tensor = self.head(x)
            return logits

    torch.manual_seed(1)
    model = frozen(Tied())
    total = total_conductance(model, X, ["block", "block.0"], target=0, rtol=1e-9)
    assert list(total) == [f"block{inner}#{call}" for call in range(3) for inner in (".0", "")]
    for call in range(3):
        expected = literal(model, X[:1], "block", itemgetter(call))
        assert distance(total[f"block#{call}"][0], expected) < 1e-7
        assert not total.is_cut[f"block#{call}"]
    copies = [total[f"block#{call}"] for call in range(3)]
    assert not torch.allclose(copies[0], copies[1])
    assert not torch.allclose(copies[1], copies[2])


def test_an_albert_block_runs_twelve_times() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AlbertConfig(
        vocab_size=11, embedding_size=6, hidden_size=8, num_hidden_layers=12, num_attention_heads=2,
        intermediate_size=10, max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(1)
    model = frozen(transformers.AlbertForSequenceClassification(config))
    inputs = {"inputs_embeds": normal(2, 5, 6, seed=1), "attention_mask": torch.tensor([[1] * 5, [1] * 3 + [0] * 2])}
    block = "albert.encoder.albert_layer_groups.0.albert_layers.0"
    how: dict[str, Any] = {"target": 0, "baselines": {"inputs_embeds": inputs["inputs_embeds"] * 0.5}, "rtol": 1e-6}
    total = total_conductance(model, inputs, block, **how)
    assert list(total) == [f"{block}#{call}" for call in range(12)]
    for name in total:
        assert total[name].shape == (2, 5, 8)
        assert total.is_cut[name]
        torch.testing.assert_close(total[name].sum((1, 2)), total.output_change, rtol=1e-5, atol=1e-9)
    assert (total.output_change.abs() > 1e-6).all()
    assert not torch.allclose(total[f"{block}#0"], total[f"{block}#5"])
