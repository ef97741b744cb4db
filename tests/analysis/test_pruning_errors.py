"""Bad requests are refused by name, and whatever is refused leaves the model as it was."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from conductance import ConductanceError
from conductance.analysis import prune_units
from conductance.errors import UnknownLayerError
from tests.analysis.pruned_nets import conv, made, mlp, ranked
from tests.analysis.test_pruning_undo import assert_same_state, state

WHOLE = ranked({"0": [*range(7)]})


class Twice(nn.Module):
    """What is made is read before the activation too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act, self.head = nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc(x)
        output: Tensor = self.head(self.act(hidden) + hidden)
        return output


class Added(nn.Module):
    """The units come from two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.act = nn.Linear(3, 5), nn.Linear(3, 5), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.act(self.one(x) + self.two(x))
        return output


class Shared(nn.Module):
    """One activation in two places, behind layers of one width."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.act = nn.Linear(3, 5), nn.Linear(5, 5), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.act(self.two(self.act(self.one(x))))
        return output


@pytest.mark.parametrize(
    ("ranking", "options", "error", "message"),
    [
        (WHOLE, {"amount": 1.1}, ValueError, r"amount must be a share from 0 to 1, got 1.1"),
        (WHOLE, {"amount": -0.1}, ValueError, r"from 0 to 1, got -0.1"),
        (WHOLE, {"amount": float("nan")}, ValueError, r"from 0 to 1, got nan"),
        (WHOLE, {"amount": True}, TypeError, r"share from 0 to 1.*got True"),
        (WHOLE, {"amount": "0.3"}, TypeError, r"share from 0 to 1.*got '0.3'"),
        (WHOLE, {"amount": {"2": 0.3}}, ValueError, r"amount names layer '2', which is not in the ranking; it has 0"),
        (WHOLE, {"amount": 0.5, "value": "mean"}, ValueError, r"value must be 'zero' or 'baseline', got 'mean'"),
        (WHOLE, {"amount": 0.5, "value": "baseline"}, ValueError, r"value='baseline' needs inputs"),
        (WHOLE.head(4), {"amount": 0.5}, ValueError, r"4 of the 7 units of '0'.*top=None"),
        (ranked({"0": [*range(8)]}), {"amount": 0.5}, ValueError, r"unit 7 of '0', which has 7.*another model"),
        (ranked({"fc": [0]}), {"amount": 0.5}, UnknownLayerError, r"No layer 'fc' here"),
        (ranked({"0:in": [0]}), {"amount": 0.5}, ValueError, r"'0:in', one tensor or call of a module"),
        (ranked({"1#1": [0]}), {"amount": 0.5}, ValueError, r"'1#1', one tensor or call of a module"),
        (ranked({"6": [0]}), {"amount": 0.5}, ValueError, r"layer '6' has no weights.*give inputs"),
        ([("0", 1)], {"amount": 0.5}, TypeError, r"ranking is a list; expected a table"),
        (pd.DataFrame({"layer": ["0"]}), {"amount": 0.5}, ValueError, r"ranking has no column 'unit'"),
    ],
)  # fmt: skip
def test_bad_request(ranking: Any, options: Any, error: type[Exception], message: str) -> None:
    model, _ = made(mlp)
    before = state(model)
    with pytest.raises(error, match=message):
        prune_units(model, ranking, **options)
    assert_same_state(state(model), before)


def test_model_must_be_a_module() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module.*got function"):
        prune_units(lambda x: x, WHOLE, amount=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "layer", "message"),
    [
        (Twice, "act", r"masks for 'act' change the output.*read elsewhere"),
        (Added, "act", r"'act' cannot be held by masks on 'two'.*not zero where 'two' is zero.*rank 'two' itself"),
    ],
)
def test_units_that_no_mask_can_hold(kind: Callable[[], nn.Module], layer: str, message: str) -> None:
    torch.manual_seed(0)
    model = kind().double().train()
    before = state(model)
    with pytest.raises(ConductanceError, match=message):
        prune_units(model, ranked({layer: [*range(5)]}), amount=0.6, inputs=torch.randn(9, 3).double())
    assert_same_state(state(model), before)


def test_module_in_two_places_is_found_out() -> None:
    torch.manual_seed(0)
    model, inputs = Shared().double(), torch.randn(9, 3).double()
    with pytest.raises(ConductanceError, match=r"used twice|cannot be held"):
        prune_units(model, ranked({"act": [*range(5)]}), amount=0.6, inputs=inputs)
    act = nn.ReLU()
    sequence = nn.Sequential(nn.Linear(3, 5), act, nn.Linear(5, 5), act)
    with pytest.raises(ValueError, match="give inputs"):
        prune_units(sequence, ranked({"1": [*range(5)]}), amount=0.6)
    linear = nn.Linear(5, 5)
    sequence = nn.Sequential(linear, nn.ReLU(), linear, nn.Tanh())
    with pytest.raises(ValueError, match="give inputs"):
        prune_units(sequence, ranked({"1": [*range(5)]}), amount=0.6)
    with pytest.raises(ConductanceError, match=r"masks for '1' change the output.*used twice"):
        prune_units(sequence, ranked({"1": [*range(5)]}), amount=0.6, inputs=torch.randn(4, 5))


def test_pooling_over_features_is_not_taken_for_channels() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.AvgPool1d(2))
    with pytest.raises(ValueError, match="give inputs"):
        prune_units(model, ranked({"1": [0, 1, 2]}), amount=0.5)


@pytest.mark.parametrize("function", [nn.Sigmoid(), nn.Softmax(1), nn.LogSoftmax(-1), nn.Softplus(), nn.GLU()])
def test_function_that_is_not_zero_at_zero_needs_inputs(function: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(3, 6), function)
    with pytest.raises(ValueError, match="give inputs"):
        prune_units(model, ranked({"1": [*range(6)]}), amount=0.5)


def test_computed_weights_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), weight_norm(nn.Linear(4, 5)))
    before = state(model)
    with pytest.raises(
        ConductanceError, match=r"weight of this .*Linear is no parameter but computed.*remove_parametrizations"
    ):
        prune_units(model, ranked({"0": [*range(4)], "2": [*range(5)]}), amount=0.5)
    assert_same_state(state(model), before)


def test_reshaped_units_are_not_those_of_the_layer() -> None:
    model, inputs = made(conv)
    with pytest.raises(
        ConductanceError, match=r"units of '9', \(16,\) for each example, are not the 8 of '6'.*rank '6'"
    ):
        prune_units(model, ranked({"9": [*range(16)]}), amount=0.5, inputs=inputs)


def test_layer_that_nothing_makes() -> None:
    model = nn.Sequential(nn.Tanh(), nn.Linear(3, 2)).double()
    with pytest.raises(ConductanceError, match=r"makes the units of '0'.*hooks.ablate"):
        prune_units(model, ranked({"0": [0, 1, 2]}), amount=0.5, inputs=torch.ones(2, 3).double())


def test_layer_that_does_not_run() -> None:
    model = Twice().double()
    model.spare = nn.Linear(3, 4)
    with pytest.raises(ConductanceError, match=r"'spare' gives no tensor for these inputs"):
        prune_units(model, ranked({"spare": [*range(4)]}), amount=0.5, inputs=torch.ones(2, 3).double())


def test_layer_of_several_tensors() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.head(self.lstm(x)[0].mean(1))
            return output

    with pytest.raises(ConductanceError, match=r"makes the units of 'lstm'"):
        prune_units(Net(), ranked({"lstm": [*range(4)]}), amount=0.5, inputs=torch.ones(2, 5, 3))
