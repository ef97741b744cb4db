"""Recurrent layers: sequences and last states, batch first or time first, cells in a loop; against the definition."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance import total_conductance
from conductance.hooks import HookPoint, list_points
from tests.conductance.structures import distance, literal, net
from tests.helpers import normal

X = normal(3, 6, 4, seed=3)  # examples, steps, features


def reading(kind: Any, *, last: bool, hidden: int = 5, batch_first: bool = True, **options: Any) -> nn.Module:
    """A recurrent layer whose outputs at all steps, or whose last states only, a linear layer reads."""
    layer = kind(4, hidden, batch_first=batch_first, **options)

    def forward(m: Any, x: Tensor) -> Tensor:
        outputs, state = m.layer(x if batch_first else x.transpose(0, 1))
        state = state[0] if isinstance(state, tuple) else state
        read = state.transpose(0, 1).flatten(1) if last else outputs.tanh().sum(1 if batch_first else 0)
        logits: Tensor = m.head(read)
        return logits

    width = 5 * (2 if layer.bidirectional else 1) * (layer.num_layers if last else 1)
    return net(forward, layer=layer, head=nn.Linear(width, 2))


KINDS: dict[str, dict[str, Any]] = {
    "LSTM": {"kind": nn.LSTM},
    "LSTM, time first": {"kind": nn.LSTM, "batch_first": False},
    "LSTM both ways, two layers": {"kind": nn.LSTM, "bidirectional": True, "num_layers": 2},
    "LSTM with a projection": {"kind": nn.LSTM, "hidden": 7, "proj_size": 5},
    "GRU, time first, both ways": {"kind": nn.GRU, "batch_first": False, "bidirectional": True},
    "RNN": {"kind": nn.RNN},
}


@pytest.mark.parametrize("name", KINDS)
def test_layer_returns_a_tuple_outputs_at_all_steps_are_a_cut(name: str) -> None:
    model = reading(**KINDS[name], last=False)
    total = total_conductance(model, X, "layer", target=0, rtol=1e-8)
    first = total["layer[0]"]
    time_first = not KINDS[name].get("batch_first", True)
    width = 10 if "bidirectional" in KINDS[name] else 5
    assert first.shape == (3, 6, width)
    assert total.is_cut["layer[0]"]
    torch.testing.assert_close(first.sum((1, 2)), total.output_change, rtol=1e-7, atol=1e-10)
    assert total.per_unit("layer[0]").shape == (3, width)
    expected = literal(model, X[1:2], "layer", lambda calls: calls[0][0], axis=int(time_first))
    assert distance(first[1], expected) < 1e-7
    assert len(total) == (3 if KINDS[name]["kind"] is nn.LSTM else 2)
    for unused in total.layers[1:]:
        assert not total.info[unused].used
        assert not total[unused].any()


@pytest.mark.parametrize("name", KINDS)
def test_batch_is_not_the_first_axis_of_the_last_state(name: str) -> None:
    model = reading(**KINDS[name], last=True)
    total = total_conductance(model, X, "layer", target=0, rtol=1e-8)
    lstm = KINDS[name]["kind"] is nn.LSTM
    state = "layer[1][0]" if lstm else "layer[1]"
    assert total.is_cut[state]
    torch.testing.assert_close(total[state].flatten(1).sum(1), total.output_change, rtol=1e-7, atol=1e-10)
    expected = literal(model, X[1:2], "layer", lambda calls: calls[0][1][0] if lstm else calls[0][1], axis=1)
    assert total[state].shape == (3, *expected.shape)
    assert distance(total[state][1], expected) < 1e-7
    assert total.per_unit(state).shape == (3, 5)
    assert not total["layer[0]"].any()


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_a_cell_in_a_loop_has_a_point_for_each_step(cell: type[nn.Module]) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        state = None
        for step in range(x.shape[1]):
            state = m.cell(x[:, step], state)
        hidden = state[0] if isinstance(state, tuple) else state
        logits: Tensor = m.head(hidden)
        return logits

    model = net(forward, cell=cell(4, 5), head=nn.Linear(5, 2))
    total = total_conductance(model, X, "cell", target=0, rtol=1e-8)
    end = "[0]" if cell is nn.LSTMCell else ""
    assert [name for name in total if name.endswith(end or name)] == [f"cell#{step}{end}" for step in range(6)]
    torch.testing.assert_close(total[f"cell#5{end}"].sum(1), total.output_change, rtol=1e-7, atol=1e-10)
    for step in (0, 3):
        pick = (lambda calls, at=step: calls[at][0]) if end else (lambda calls, at=step: calls[at])
        assert distance(total[f"cell#{step}{end}"][2], literal(model, X[2:], "cell", pick)) < 1e-7
    alone = total_conductance(model, X, f"cell#3{end}", target=0, rtol=1e-8)
    assert list(alone) == [f"cell#3{end}"]


def test_a_given_batch_axis_is_kept_or_refused() -> None:
    model = reading(nn.LSTM, batch_first=False, last=False)
    given = HookPoint("layer", index=(0,), batch_axis=1, unit_axis=-1)
    found = total_conductance(model, X, "layer[0]", target=0, n_steps=5)
    torch.testing.assert_close(
        total_conductance(model, X, given, target=0, n_steps=5)["layer[0]"], found["layer[0]"], rtol=0, atol=0
    )
    with pytest.raises(ValueError, match=r"layer\[0\].*the batch is its axis 1, not batch_axis=2"):
        total_conductance(model, X, HookPoint("layer", index=(0,), batch_axis=2), target=0)
    table = {row[0]: row[4] for row in list_points(model, X, target=0).rows()}
    assert table == {"layer[0]": "1", "layer[1][0]": "1", "layer[1][1]": "1", "head": "0", "(model)": "0"}
