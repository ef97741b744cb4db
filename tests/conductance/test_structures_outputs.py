"""Layers whose output is a tuple with None, nested, a dict, a dataclass or packed; whose output is not used."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from conductance import ConductanceError, ZeroConductanceWarning, neuron_conductance, total_conductance
from tests.conductance.structures import Pick, distance, literal, net
from tests.helpers import frozen, normal
from tests.hooks.nets import structured

X = normal(3, 6, 4, seed=3)
LENGTHS = torch.tensor([4, 6, 2])

FORMS: dict[str, tuple[list[str], Pick]] = {
    "tuple": (["split[0]", "split[3]"], lambda calls: calls[0][3]),
    "nested": (["split[1][0]", "split[1][1][deep]"], lambda calls: calls[0][1][1]["deep"]),
    "dict": (["split[first]", "split[second]"], lambda calls: calls[0]["second"]),
    "namedtuple": (["split[0]", "split[1]"], lambda calls: calls[0].second),
    "dataclass": (["split[hidden]", "split[extra][0]"], lambda calls: calls[0].extra[0]),
    "model output": (["split[first]", "split[second]"], lambda calls: calls[0]["second"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_layer_output_of_any_form_has_a_point_for_each_tensor(form: str) -> None:
    names, pick = FORMS[form]
    model, x = frozen(structured(form)), normal(2, 3, seed=1)
    total = total_conductance(model, x, "split", target=0, rtol=1e-9)
    assert list(total) == names
    assert not any(total.is_cut.values())
    whole = sum(total[name].sum(1) for name in names)
    torch.testing.assert_close(whole, total.output_change, rtol=1e-8, atol=1e-11)
    assert distance(total[names[1]][1], literal(model, x[1:], "split", pick)) < 1e-7
    alone = total_conductance(model, x, names[1], target=0, rtol=1e-9)
    assert list(alone) == [names[1]]


def test_attention_without_weights_returns_none_beside_its_output() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        logits: Tensor = m.head(m.attention(x, x, x, need_weights=False)[0].sum(1))
        return logits

    model = net(forward, attention=nn.MultiheadAttention(4, 2, batch_first=True), head=nn.Linear(4, 2))
    total = total_conductance(model, X, "attention", target=0, rtol=1e-8)
    assert list(total) == ["attention[0]"]
    torch.testing.assert_close(total["attention[0]"].sum((1, 2)), total.output_change, rtol=1e-7, atol=1e-10)


def test_layer_called_with_keywords_has_its_inputs_by_name() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        logits: Tensor = m.head(m.attention(query=x, key=x, value=m.value(x))[0].sum(1))
        return logits

    model = net(
        forward, value=nn.Linear(4, 4), attention=nn.MultiheadAttention(4, 2, batch_first=True), head=nn.Linear(4, 2)
    )
    total = total_conductance(model, X, ["attention:in", "value"], target=0, rtol=1e-8)
    assert list(total)[1:] == ["attention:in[query]", "attention:in[key]", "attention:in[value]"]
    torch.testing.assert_close(total["attention:in[value]"], total["value"], rtol=1e-9, atol=1e-12)
    assert distance(total["value"][0], literal(model, X[:1], "value", lambda calls: calls[0])) < 1e-7
    assert not total.is_cut["attention:in[value]"]


def test_a_head_that_the_target_does_not_use_is_zero_and_told() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = m.body(x).tanh()
        return m.head(hidden), m.aux(hidden)

    model = net(forward, body=nn.Linear(4, 5), head=nn.Linear(5, 2), aux=nn.Linear(5, 3))
    total = total_conductance(model, X[:, 0], target=lambda output: output[0][:, 0], rtol=1e-6)
    assert [total.info[name].used for name in ("body", "head", "aux")] == [True, True, False]
    assert torch.equal(total["aux"], torch.zeros(3, 3, dtype=torch.float64))
    assert bool(total.converged.all())
    with pytest.warns(ZeroConductanceWarning, match="layer 'aux': the target does not use it"):
        alone = total_conductance(model, X[:, 0], "aux", target=lambda output: output[0][:, 0])
    assert not alone["aux"].any()
    assert (total["body"].sum(1) != 0).all()


class Packing(nn.Module):
    """Packs sequences of given lengths for a GRU; pools what comes out again, or reads the last states."""

    def __init__(self, *, padded: bool, total_length: bool = True) -> None:
        super().__init__()
        self.enter = nn.Linear(4, 3)
        self.gru = nn.GRU(3, 5, batch_first=True)
        self.act = nn.Tanh()
        self.head = nn.Linear(5, 2)
        self.padded, self.total_length = padded, total_length

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.enter(x), lengths, batch_first=True, enforce_sorted=False)
        outputs, state = self.gru(packed)
        pooled = state[-1]
        if self.padded:
            longest = x.shape[1] if self.total_length else None
            outputs, _ = pad_packed_sequence(outputs, batch_first=True, total_length=longest)
            pooled = 0.2 * self.act(outputs).sum(1)
        logits: Tensor = self.head(pooled)
        return logits


def packing(**options: bool) -> nn.Module:
    torch.manual_seed(0)
    return frozen(Packing(**options))


CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    "as an input": lambda: {"inputs": (X, LENGTHS)},
    "by name": lambda: {"inputs": {"x": X, "lengths": LENGTHS}},
    "as an additional argument": lambda: {"inputs": X, "additional_forward_args": LENGTHS},
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("padded", [False, True])
def test_lengths_are_never_interpolated_and_layers_around_the_packing_work(call: str, padded: bool) -> None:
    model = packing(padded=padded)
    total = total_conductance(model, target=0, rtol=1e-8, **CALLS[call]())
    assert total.settings["left_out"] == (["gru[0][0]"] if padded else ["act", "gru[0][0]"])
    assert list(total) == ["enter", "gru[1]", "act", "head"] if padded else ["enter", "gru[1]", "head"]
    inner = "act" if padded else "gru[1]"
    for name in ("enter", inner):
        torch.testing.assert_close(total[name].flatten(1).sum(1), total.output_change, rtol=1e-7, atol=1e-10)
    for example, length in enumerate(LENGTHS.tolist()):
        x = X[example : example + 1]
        expected = literal(model, x, "enter", lambda calls: calls[0], LENGTHS[example : example + 1])
        assert distance(total["enter"][example], expected) < 1e-7
        assert not total["enter"][example, length:].any()
        assert (total["enter"][example, :length] != 0).all()


def test_packed_rows_are_refused_with_a_way_out() -> None:
    lengths = torch.ones(3, dtype=torch.long)  # as many packed rows as examples
    for given in (LENGTHS, lengths):
        with pytest.raises(ValueError, match=r"'gru\[0\]\[0\]'.*PackedSequence.*tap before the packing"):
            total_conductance(packing(padded=True), (X, given), "gru[0]", target=0)
    with pytest.raises(ValueError, match="PackedSequence"):
        neuron_conductance(packing(padded=True), (X, lengths), "gru[0]", neurons=0, target=0)


def test_sequences_padded_to_the_longest_of_a_call_are_refused_with_a_way_out() -> None:
    model = packing(padded=True, total_length=False)
    with pytest.raises(ValueError, match=r"'act', which gave shape \(2, 4, 5\).*\(3, 2, 5\).*total_length"):
        total_conductance(model, (X, torch.tensor([2, 6, 4])), "act", target=0)
    # the first two calls are alike, the next ones are not
    with pytest.raises(ConductanceError, match=r"layer 'act' gave a tensor of shape \(\d+, 6, 5\).*total_length"):
        total_conductance(model, (X, torch.tensor([4, 6, 4])), "act", target=0)
    around = total_conductance(model, (X, torch.tensor([2, 6, 4])), target=0, rtol=1e-8)
    assert list(around) == ["enter", "gru[1]", "head"]
    assert around.settings["left_out"] == ["gru[0][0]", "act"]
    assert bool(around.is_cut["enter"])
    torch.testing.assert_close(around["enter"].sum((1, 2)), around.output_change, rtol=1e-7, atol=1e-10)
