"""The axis of the examples wherever it is: time first, features first, flattened, missing, sorted by expert."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance import conductance_flow, neuron_conductance, total_conductance
from conductance.hooks import HookPoint, list_points
from tests.conductance.structures import distance, literal, net
from tests.helpers import normal

#: As many steps as rows are tried on first, and others.
STEPS = [2, 3, 5]


def time_first() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        steps = m.act(m.wide(x.transpose(0, 1)))
        logits: Tensor = m.head((steps * steps.cumsum(0)).sum(0))
        return logits

    return net(forward, wide=nn.Linear(4, 7), act=nn.Tanh(), head=nn.Linear(7, 2))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("rows", [None, 1, 2, 3, 64])
def test_time_first_layers_are_found_by_their_rows(steps: int, rows: int | None) -> None:
    model, x = time_first(), normal(3, steps, 4, seed=1)
    how: dict[str, Any] = {} if rows is None else {"internal_batch_size": rows}
    total = total_conductance(model, x, target=0, n_steps=9, **how)
    assert list(total) == ["wide", "act", "head"]
    assert total["act"].shape == (3, steps, 7)
    assert total.per_unit("act").shape == (3, 7)
    torch.testing.assert_close(total["act"].sum((1, 2)), total.output_change, rtol=1e-3, atol=1e-4)
    for example in range(3):
        alone = total_conductance(model, x[example : example + 1], "act", target=0, n_steps=9)
        torch.testing.assert_close(total["act"][example], alone["act"][0], rtol=1e-11, atol=1e-13)
    tight = total_conductance(model, x, "act", target=0, rtol=1e-9)
    assert distance(tight["act"][2], literal(model, x[2:], "act", lambda calls: calls[0], axis=1)) < 1e-7


def test_neurons_and_flow_know_the_axis_too() -> None:
    model, x = time_first(), normal(3, 2, 4, seed=1)
    neurons = neuron_conductance(model, x, "act", neurons="all", target=0, rtol=1e-8)
    total = total_conductance(model, x, "act", target=0, rtol=1e-8)
    values = neurons.values
    assert isinstance(values, Tensor)
    torch.testing.assert_close(values.flatten(2).sum(2), total.per_unit("act"), rtol=1e-6, atol=1e-9)
    flow = conductance_flow(model, x, ["wide", "act"], target=0, rtol=1e-6, top=7)
    torch.testing.assert_close(flow.edges["wide", "act"].sum((1, 2)), flow.output_change, rtol=1e-5, atol=1e-8)


def test_a_time_first_transformer_has_every_layer() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        logits: Tensor = m.head(m.block(x.transpose(0, 1)).sum(0))
        return logits

    block = nn.TransformerEncoderLayer(4, 2, 7, dropout=0.0, activation="gelu")
    model = net(forward, block=block, head=nn.Linear(4, 2))
    x, baseline = normal(3, 2, 4, seed=1), normal(3, 2, 4, seed=2)
    total = total_conductance(model, x, target=0, baselines=baseline, rtol=1e-6)
    assert total.settings["left_out"] == ["block.self_attn.out_proj"]
    assert total["block.linear1"].shape == (3, 2, 7)
    assert total.info["block.linear1"].unit_axis == 2
    whole = total_conductance(model, x, "block", target=0, baselines=baseline, rtol=1e-6)
    torch.testing.assert_close(whole["block"].sum((1, 2)), whole.output_change, rtol=1e-5, atol=1e-8)
    other = nn.TransformerEncoderLayer(4, 2, 7, dropout=0.0, activation="gelu", batch_first=True)
    other.load_state_dict(block.state_dict())

    def batch_first(m: Any, x: Tensor) -> Tensor:
        logits: Tensor = m.head(m.block(x).sum(1))
        return logits

    same = net(batch_first, block=other, head=nn.Linear(4, 2))
    same.load_state_dict(model.state_dict())
    expected = total_conductance(same, x, "block.linear1", target=0, baselines=baseline, rtol=1e-6)
    torch.testing.assert_close(expected["block.linear1"], total["block.linear1"], rtol=1e-4, atol=1e-6)


def test_examples_last() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        logits: Tensor = m.head(m.act(m.wide(x).T).T)
        return logits

    model, x = net(forward, wide=nn.Linear(4, 2), act=nn.Tanh(), head=nn.Linear(2, 2)), normal(3, 4, seed=1)
    total = total_conductance(model, x, "act", target=0, rtol=1e-8)
    assert distance(total["act"][1], literal(model, x[1:2], "act", lambda calls: calls[0], axis=1)) < 1e-7
    assert total.per_unit("act").shape == (3, 2)


@pytest.mark.parametrize("steps", STEPS)
def test_a_table_of_positions_is_not_taken_for_the_batch(steps: int) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        logits: Tensor = m.head(m.act(m.wide(x) + m.positions(torch.arange(steps))).mean(1))
        return logits

    model = net(forward, wide=nn.Linear(4, 7), positions=nn.Embedding(steps, 7), act=nn.Tanh(), head=nn.Linear(7, 2))
    x = normal(3, steps, 4, seed=1)
    total = total_conductance(model, x, target=0, n_steps=5)
    assert total.settings["left_out"] == ["positions"]
    with pytest.raises(
        ValueError, match=rf"'positions'.*\({steps}, 7\) for 2 rows and for 3: no axis of it is the batch"
    ):
        total_conductance(model, x, "positions", target=0)
    table = {row[0]: row[4:6] for row in list_points(model, x).rows()}
    assert table == {
        "wide": ("0", "2"),
        "positions": ("none", "1"),
        "act": ("0", "2"),
        "head": ("0", "1"),
        "(model)": ("0", "1"),
    }


def test_tokens_of_all_examples_in_one_axis_are_refused_with_a_way_out() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        tokens = m.wide(x.flatten(0, 1)).tanh()
        logits: Tensor = m.head(m.apart(tokens.unflatten(0, (-1, x.shape[1]))).sum(1))
        return logits

    model, x = net(forward, wide=nn.Linear(4, 7), apart=nn.Identity(), head=nn.Linear(7, 2)), normal(3, 5, 4, seed=1)
    total = total_conductance(model, x, target=0, rtol=1e-8)
    assert list(total) == ["apart", "head"]
    assert total.settings["left_out"] == ["wide"]
    torch.testing.assert_close(total["apart"].sum((1, 2)), total.output_change, rtol=1e-7, atol=1e-10)
    with pytest.raises(ValueError, match=r"'wide'.*axis 0 holds 5 entries for each row.*nn\.Identity"):
        total_conductance(model, x, HookPoint("wide"), target=0)


def test_units_keep_their_axis_where_the_batch_is_second() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:  # (examples, steps, channels, height, width)
        steps, examples = x.shape[1], x.shape[0]
        maps = m.conv(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (steps, examples))
        logits: Tensor = m.head(m.act(maps).sum(0).flatten(1))
        return logits

    model = net(forward, conv=nn.Conv2d(2, 3, 2), act=nn.Tanh(), head=nn.Linear(3 * 3 * 5, 2))
    x = normal(2, 3, 2, 4, 6, seed=1)
    total = total_conductance(model, x, ["act"], target=0, rtol=1e-6)
    assert total["act"].shape == (2, 3, 3, 3, 5)
    assert total.info["act"].unit_axis == 2
    torch.testing.assert_close(total.per_unit("act"), total["act"].sum((1, 3, 4)), rtol=1e-12, atol=1e-14)


def test_a_moe_leaves_its_sorted_tokens_out_and_says_so() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=11, hidden_size=8, intermediate_size=10, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=16,
        experts_implementation="eager",
    )  # fmt: skip
    config._experts_implementation = "eager"  # one expert after the other, in float64 too
    model = transformers.MixtralModel(config).double().eval()
    given = {"inputs_embeds": normal(3, 5, 8, seed=1)}
    how: dict[str, Any] = {
        "target": lambda output: output.last_hidden_state[:, -1, 3],
        "baselines": {"inputs_embeds": normal(3, 5, 8, seed=1) * 0.9},
        "n_steps": 5,
    }
    total = total_conductance(model, given, **how)
    left_out = [str(name) for name in total.settings["left_out"]]  # type: ignore[union-attr]
    assert "layers.0.mlp.gate[0]" in left_out
    assert any("experts.act_fn" in name for name in left_out)
    assert not any("experts" in name or "gate" in name for name in total)
    assert {"layers.0.self_attn.v_proj", "layers.0.post_attention_layernorm", "norm"} <= set(total)
    with pytest.raises(ValueError, match=r"'layers.0.mlp.experts.act_fn#\d', which (gave shape|ran for).* for 2 rows"):
        total_conductance(model, given, "*.experts.act_fn", **how)
    with pytest.raises(ValueError, match=r"'layers.0.mlp.experts'.*holds 5 entries for each row"):
        total_conductance(model, given, "layers.0.mlp.experts", **how)
    block = total_conductance(model, given, "layers.0.mlp", **how)
    assert block["layers.0.mlp"].shape == (3, 5, 8)
    assert block["layers.0.mlp"].any()
