"""A thousand random bad calls: each ends in an error that names its argument, and leaves the model as it was."""

import math
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import HealthCheck, assume, given, settings
from torch import Tensor, nn

from conductance import (
    ConductanceError,
    conductance_flow,
    hooks,
    neuron_conductance,
    total_conductance,
    weight_conductance,
)
from tests.helpers import normal

X = normal(3, 4)
CALLS = 1000


class Net(nn.Module):
    """Two hidden layers of which one has channels; takes a second input that need not be given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.act, self.last = nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)
        self.never = nn.Linear(2, 2)

    def forward(self, x: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        return self.last(self.act(self.first(x)) * scale)  # type: ignore[no-any-return]


MODEL = Net().double().eval()
FUNCTIONS: dict[Callable[..., Any], set[str]] = {
    total_conductance: set(),
    neuron_conductance: {"neurons", "feature_groups", "mode"},
    conductance_flow: {"top", "units", "feature_groups"},
    weight_conductance: set(),
}
OTHER = st.sampled_from([object(), b"bytes", 1 + 2j, {1, 2}, print.__class__, nn.Linear(2, 2)])
NO_TEXT = st.one_of(OTHER, st.booleans(), st.floats(), st.lists(st.floats(), min_size=1, max_size=3))
NOT_A_NUMBER = st.one_of(OTHER, st.text(max_size=3), st.lists(st.integers(), max_size=2), st.booleans())
FRACTION = st.floats().filter(lambda number: True)
NO_TENSOR = st.one_of(OTHER, st.text(max_size=5), st.booleans(), st.floats(), st.integers())


def shaped(*wrong: tuple[int, ...]) -> st.SearchStrategy[Tensor]:
    return st.sampled_from([normal(*shape) if shape else torch.tensor(1.0, dtype=torch.float64) for shape in wrong])


def below(least: int) -> st.SearchStrategy[Any]:
    return st.one_of(st.integers(max_value=least - 1), FRACTION, NOT_A_NUMBER)


WRONG_CALLABLES: list[Callable[[Any], Any]] = [
    lambda output: output,
    lambda output: output.sum(),
    lambda output: output[:1, 0],
    lambda output: output.argmax(1),
    lambda output: 3.0,
    lambda output: None,
    lambda output: output[:, 0].detach(),
    lambda output: output[:, 0] * math.nan,
    lambda output: output[:, 0][:, None, None],
]
BAD: dict[str, st.SearchStrategy[Any]] = {
    "inputs": st.one_of(
        NO_TENSOR,
        st.just(None),
        st.just(np.ones((3, 4))),
        st.just({}),
        st.just(()),
        shaped((0, 4), ()),
        st.sampled_from(
            [X.long(), X > 0, X * math.nan, X + math.inf, X.to(torch.complex128), X.to_sparse(), (None, X > 0)]
        ),
        st.just({"x": X, 3: X}),
        shaped((3, 5), (3, 2, 7), (3,)),
    ),
    "layers": st.one_of(
        st.text(min_size=1, max_size=6).filter(lambda text: not any(sign in text for sign in "*?[")),
        st.sampled_from(
            ["frist", "first#3", "first[2]", "act:in[z]", "*x*", "never", [], [None], ["first", 3], nn.Conv2d]
        ),
        st.sampled_from([hooks.HookPoint("first", unit_axis=7), hooks.HookPoint("act", unit_groups=3)]),
        st.sampled_from([hooks.HookPoint("act", batch_axis=1), hooks.HookPoint("nothing")]),
        st.one_of(OTHER, st.floats(), st.integers()),
    ),
    "target": st.one_of(
        st.integers(min_value=2),
        st.integers(max_value=-3),
        st.floats(),
        st.text(max_size=3),
        st.booleans(),
        st.sampled_from([(0, 0), [0, 1], [0, 1, 2], [0.5] * 3, [None] * 3, (), [[0, 0]] * 3, torch.ones(3), None]),
        st.sampled_from(WRONG_CALLABLES),
        st.sampled_from([object(), b"bytes", 1 + 2j]),
    ),
    "baselines": st.one_of(
        st.text(max_size=3),
        st.booleans(),
        st.sampled_from([object(), b"bytes", 1 + 2j]),
        st.sampled_from([math.nan, math.inf, [], (), (0, 0), {"x": 0}, {}, [{0: 0}, {}], X * math.nan, X.to_sparse()]),
        st.sampled_from([lambda x: None, lambda x: x[:, :1], lambda x: x * math.inf]),
        shaped((2, 4), (3, 5), (4, 3), (3, 4, 1)),
    ),
    "fixed": st.one_of(
        st.text(max_size=3).filter(bool),
        st.integers(min_value=1),
        st.floats(),
        st.just(object()),
        st.just([True]),
        st.just(0),
    ),
    "path_from": st.one_of(
        st.text(min_size=1, max_size=6).filter(lambda text: not any(sign in text for sign in "*?[")),
        st.sampled_from(["never", "first#2", ["first", "act"], [], "act[1]"]),
        st.one_of(OTHER, st.floats(), st.integers()),
    ),
    "rtol": st.one_of(st.floats(max_value=0.0), st.sampled_from([math.nan, math.inf, 10**400]), NOT_A_NUMBER),
    "atol": st.one_of(
        st.floats(max_value=0.0, exclude_max=True), st.sampled_from([math.nan, math.inf, 10**400]), NOT_A_NUMBER
    ),
    "n_steps": below(2),
    "max_evaluations": st.one_of(below(5), st.none()),
    "internal_batch_size": below(1),
    "on_train": st.one_of(NO_TEXT, st.text(max_size=4), st.none()),
    "neurons": st.one_of(
        st.integers(min_value=5),
        st.integers(max_value=-6),
        st.floats(),
        st.text(max_size=4).filter(lambda text: text != "all"),
        st.sampled_from([(0, 0), [], [7], [None], [0.5], (9,), None, True]),
        st.just(object()),
    ),
    "feature_groups": st.one_of(
        st.text(max_size=4),
        st.floats(),
        st.booleans(),
        st.integers(min_value=2),
        st.sampled_from(["token", "channel", 0, -9, X, torch.ones(5, dtype=torch.long), [], {"x": X}, object()]),
    ),
    "mode": st.one_of(NO_TEXT, st.text(max_size=4), st.none()),
    "top": st.one_of(below(1)),
    "units": st.one_of(
        st.dictionaries(st.text(min_size=1, max_size=4), st.just("all"), min_size=1),
        st.sampled_from([{"first": [99]}, {"first": "some"}, {"first": 1.5}, {"act": []}, ["first"], 3, "first"]),
    ),
}
NAMES = {"layers": "layer", "units": "units|layers|neurons", "n_steps": "n_steps", "fixed": "fixed|inputs"}


@st.composite
def calls(draw: st.DrawFn) -> tuple[Callable[..., Any], str, Any]:
    function = draw(st.sampled_from(list(FUNCTIONS)))
    special = {"neurons", "feature_groups", "mode", "top", "units"}
    argument = draw(st.sampled_from([name for name in BAD if name not in special or name in FUNCTIONS[function]]))
    value = draw(BAD[argument])
    assume(not (function is weight_conductance and isinstance(value, hooks.HookPoint) and value.unit_axis))
    return function, argument, value


@settings(max_examples=CALLS, deadline=None, suppress_health_check=list(HealthCheck))
@given(calls())
def test_every_bad_call_is_an_error_that_names_its_argument(call: tuple[Callable[..., Any], str, Any]) -> None:
    function, argument, value = call
    good: dict[str, Any] = {"inputs": X, "layers": "first", "target": 1}
    named = {**good, argument: value}
    inputs, layers = named.pop("inputs"), named.pop("layers")
    before = {name: tensor.clone() for name, tensor in MODEL.state_dict().items()}
    try:
        result = function(MODEL, inputs, layers, **named)
    except (ValueError, TypeError, KeyError, ConductanceError) as error:
        told = str(error) + "".join(getattr(error, "__notes__", []))
        assert any(one in told for one in NAMES.get(argument, argument).rstrip("s").split("|")), (call, told)
    else:
        raise AssertionError(f"{call} gave {result}")
    for module in MODEL.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    assert all(torch.equal(tensor, before[name]) for name, tensor in MODEL.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in MODEL.parameters())


def test_the_calls_that_they_spoil_are_good() -> None:
    for function in FUNCTIONS:
        table = function(MODEL, X, "first", target=1).to_dataframe()
        assert table.select_dtypes("number").abs().to_numpy().sum() > 0.01
