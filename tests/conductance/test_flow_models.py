"""Balance on structures that people have: a BERT, a residual block of convolutions, an LSTM."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from conductance import total_conductance
from conductance.flow import conductance_flow
from conductance.flow_results import SINK, SOURCE
from conductance.hooks import HookPoint
from tests.conductance.flows import assert_balanced, assert_near
from tests.helpers import frozen, normal, seeded


class TinyBert(nn.Module):
    """Two layers of a BERT, twelve wide, three heads, and a head on the pooled first token."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=20, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=10
        )
        config._attn_implementation = "eager"
        self.bert = cast("Any", BertModel)(config)
        for name, parameter in self.bert.named_parameters():
            if name.endswith("weight") and "LayerNorm" not in name:
                nn.init.normal_(parameter, std=0.3)
        self.head = nn.Linear(12, 4)

    def forward(self, embeddings: Tensor) -> Tensor:
        logits: Tensor = self.head(self.bert(inputs_embeds=embeddings).pooler_output)
        return logits


def test_bert() -> None:
    model, x = seeded(TinyBert), normal(2, 5, 12)
    blocks = [f"bert.encoder.layer.{number}.attention" for number in (0, 1)]
    heads = [HookPoint(f"{block}.output.dense", side="in", unit_groups=3) for block in blocks]
    parts = [f"{block}.self.{name}" for block in blocks for name in ("query", "key", "value")]
    layers: Any = [*parts, *heads, "bert.encoder.layer.1.intermediate"]
    flow = conductance_flow(model, x, layers, top=3, target=2, feature_groups="token", rtol=1e-3)
    assert flow.converged.all()
    assert_balanced(flow)
    assert set(flow.units[heads[1].name]) == {0, 1, 2}
    between = {(start, stop) for start, stop in flow.edges if start in parts[:3]}
    assert between == {(part, heads[0].name) for part in parts[:3]}
    for later in [*parts, "bert.encoder.layer.1.intermediate", SINK]:
        assert (SOURCE, later) in flow.edges  # the residual stream passes by every layer
    total = total_conductance(model, x, layers, target=2, rtol=1e-3)
    for layer in flow.layers:
        assert_near(flow.inflow(layer), flow.conductance[layer], 1.1e-3)
        whole = total.per_unit(layer).sum(1, keepdim=True)
        assert_near(flow.conductance[layer].sum(1, keepdim=True), whole, 5e-3, total.per_unit(layer))
    fixed = conductance_flow(model, x, layers, top=3, target=2, n_steps=4)
    assert_balanced(fixed)
    same = total_conductance(model, x, layers, target=2, n_steps=4)
    for layer in fixed.layers:
        own = same.per_unit(layer)
        assert_near(fixed.outflow(layer).sum(1, keepdim=True), own.sum(1, keepdim=True), 1e-9, own)


class ResBlock(nn.Module):
    """A residual block as in ResNets, with in-place ReLUs and a projection on the way past."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv1, self.norm1 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.down = nn.Sequential(nn.Conv2d(4, 6, 1, stride=2, bias=False), nn.BatchNorm2d(6))
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        out += self.down(x)
        logits: Tensor = self.head(self.relu(out).mean((2, 3)))
        return logits


@pytest.mark.parametrize("steps", [{"n_steps": 5}, {"rtol": 3e-3}], ids=str)
def test_residual_block_of_convolutions(steps: dict[str, Any]) -> None:
    model, x = seeded(ResBlock), normal(2, 3, 8, 10)
    layers = ["stem", "relu", "conv1", "norm2", "down"]
    flow = conductance_flow(model, x, layers, top=2, target=3, baselines=0.1, **steps)
    assert_balanced(flow)
    assert set(flow.edges) == {
        (SOURCE, "stem"), ("stem", "relu#0"), ("relu#0", "conv1"), ("conv1", "relu#1"), ("relu#1", "norm2"),
        ("relu#0", "down"), ("norm2", "relu#2"), ("down", "relu#2"), ("relu#2", SINK),
    }  # fmt: skip
    total = total_conductance(model, x, layers, target=3, baselines=0.1, **steps)
    for layer in flow.layers:
        per_unit = total.per_unit(layer)
        tolerance = 1e-10 if "n_steps" in steps else 1e-2
        assert_near(
            flow.outflow(layer)[:, :2], per_unit[:, [int(unit) for unit in flow.units[layer][:2]]], tolerance, per_unit
        )
        if "rtol" in steps:
            assert_near(flow.inflow(layer), flow.conductance[layer], 3.1e-3)
    if "rtol" in steps:
        assert flow.converged.all()


class Recurrent(nn.Module):
    """An LSTM whose outputs and last state are both read."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 6, num_layers=2, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        outputs, (_, cell) = self.lstm(x)
        logits: Tensor = self.head(torch.cat([outputs.mean(1), cell[-1]], 1))
        return logits


def test_lstm() -> None:
    model, x = seeded(Recurrent), normal(3, 5, 3)
    cell = HookPoint("lstm", index=(1, 1), batch_axis=1, unit_axis=2)
    layers: Any = ["lstm[0]", cell]
    flow = conductance_flow(model, x, layers, top=2, target=1, feature_groups="token", rtol=1e-6)
    assert flow.converged.all()
    assert_balanced(flow)
    assert (SOURCE, "lstm[0]") in flow.edges
    assert ("lstm[0]", SINK) in flow.edges
    assert (cell.name, SINK) in flow.edges
    for layer in flow.layers:
        assert_near(flow.inflow(layer), flow.conductance[layer], 1e-6)
    both = torch.cat([flow.outflow(layer) for layer in flow.layers], 1)
    assert_near(both.sum(1, keepdim=True), flow.output_change[:, None], 1e-5, both)
    fixed = conductance_flow(model, x, layers, top=None, target=1, n_steps=3)
    total = total_conductance(model, x, layers, target=1, n_steps=3)
    for layer in fixed.layers:
        assert_near(fixed.outflow(layer), total.per_unit(layer), 1e-10)


def test_an_encoder_layer_of_torch() -> None:
    layer = nn.TransformerEncoderLayer(6, 2, 10, dropout=0.0, batch_first=True, norm_first=True)
    model = frozen(nn.Sequential(layer, nn.Flatten(1), nn.Linear(30, 3)))
    flow = conductance_flow(
        model, normal(2, 5, 6), ["0.norm1", "0.self_attn[0]", "0.linear1", "0"], top=2, target=1, n_steps=5
    )
    assert {("0.norm1", "0.self_attn[0]"), (SOURCE, "0.linear1"), ("0.linear1", "0"), (SOURCE, "0")} <= set(flow.edges)
    assert_balanced(flow)
