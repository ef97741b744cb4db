"""What may happen between masks and their undoing: other masks, another dtype, inference mode, compiled code."""

import warnings
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from conductance import ConductanceError
from conductance.analysis import prune_units
from conductance.hooks import ablate
from tests.analysis.pruned_nets import conv, made, mlp, ranked
from tests.analysis.test_pruning_undo import assert_same_state, state

RANKING = ranked({"7": [*range(8)]})


def test_earlier_masks_undone_first_take_later_ones_along() -> None:
    model, inputs = made(conv)
    before = state(model)
    first = prune_units(model, RANKING, amount=0.25, value="baseline", inputs=inputs)
    second = prune_units(model, RANKING, amount=0.5, value="baseline", inputs=inputs)
    first.undo()
    assert_same_state(state(model), before)
    second.undo()
    assert_same_state(state(model), before)


def test_dtype_may_change_before_undo() -> None:
    model, inputs = made(conv)
    original = model(inputs)
    pruned = prune_units(model, ranked({"2": [*range(6)]}), amount=0.5, inputs=inputs)
    model.float()
    pruned.undo()
    assert {each.dtype for each in model.state_dict().values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(model(inputs.float()), original.float())


@pytest.mark.parametrize("value", ["zero", "baseline"])
def test_masks_made_in_inference_mode_let_gradients_through(value: Literal["zero", "baseline"]) -> None:
    model, inputs = made(mlp)
    before = state(model)
    with torch.inference_mode():
        pruned = prune_units(model, ranked({"1": [*range(7)]}), amount=0.5, value=value, inputs=inputs)
    torch.autograd.backward(model(inputs).sum())
    assert model.get_parameter("0.weight_orig").grad is not None
    assert not any(each.is_inference() for each in model.state_dict().values())
    pruned.undo()
    assert_same_state(state(model), before)


def test_compiled_model_goes_by_the_names_inside() -> None:
    model, inputs = made(mlp)
    compiled = torch.compile(model, backend="eager")
    before = compiled(inputs).detach()
    ranking = ranked({"1": [*range(7)]})
    with prune_units(model, ranking, amount=0.5, inputs=inputs) as pruned:
        expected, units = model(inputs), pruned.units
    with prune_units(compiled, ranking, amount=0.5, inputs=inputs) as pruned:  # type: ignore[arg-type]
        assert pruned.units == units
        torch.testing.assert_close(compiled(inputs), expected)
    torch.testing.assert_close(compiled(inputs), before)


def test_weights_of_spectral_norm_are_computed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and still in use
        model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2))
    before = state(model)
    with pytest.raises(ConductanceError, match="is no parameter but computed"):
        prune_units(model, ranked({"1": [*range(4)]}), amount=0.5)
    assert_same_state(state(model), before)


def test_linear_map_that_attention_reads_without_a_call() -> None:
    model = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    with pytest.raises(
        ConductanceError, match=r"'self_attn.out_proj' is not run: its attention layer reads its weights"
    ):
        prune_units(model, ranked({"self_attn.out_proj": [*range(4)]}), amount=0.5)


class Gated(nn.Module):
    """Units times a gate: what is read of a unit that is held depends on the example."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.by = by
        self.one, self.act, self.gate, self.head = nn.Linear(3, 4), nn.Tanh(), nn.Linear(3, 4), nn.Linear(4, 2)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.one(x))
        gates = {"layer": self.gate(x).sigmoid(), "input": x[:, :1], "norm": torch.ones(())}
        hidden = hidden * gates[self.by]
        logits: Tensor = self.head(self.norm(hidden) if self.by == "norm" else hidden)
        return logits


@pytest.mark.parametrize("by", ["layer", "input", "norm"])
@pytest.mark.parametrize("count", [1, 5])
def test_constant_that_is_gated_is_none_for_what_reads_it(by: str, count: int) -> None:
    torch.manual_seed(0)
    model = Gated(by).double().eval()
    inputs, others = torch.randn(count, 3).double(), torch.randn(7, 3).double()
    with prune_units(model, ranked({"act": [*range(4)]}), amount=0.5, value="baseline", inputs=inputs) as pruned:
        found, units, values = model(others), dict(pruned.units), dict(pruned.values)
        assert pruned.folded == {}
    with ablate(model, units, values):
        torch.testing.assert_close(found, model(others))
