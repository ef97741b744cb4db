"""Bad input gets a clear error, an interrupt what is finished; the model is left as it came."""

import warnings
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance import ConductanceError
from conductance.errors import ConvergenceWarning
from conductance.flow import _Work, conductance_flow
from conductance.flow_results import SINK, SOURCE
from tests.conductance.flows import assert_balanced, assert_near, quiet_flow, untouched
from tests.conductance.test_total_errors import CASES as TOTAL_CASES
from tests.conductance.test_total_errors import X, net
from tests.helpers import normal, seeded


class Odd(nn.Module):
    """Layers that nothing flows through: beside the way to the target, constant, or twice the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.same, self.act = nn.Linear(4, 5), nn.Identity(), nn.Tanh()
        self.beside = nn.Linear(5, 3)
        self.constant = nn.Linear(2, 5)
        self.head = nn.Linear(5, 3)
        self.idle = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.same(self.hidden(x)))
        self.beside(hidden)
        logits: Tensor = self.head(hidden * self.constant(x.new_ones(len(x), 2)))
        return logits


MASK = torch.zeros(4, dtype=torch.int64)
CASES: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("beside", {"layers": ["hidden", "beside"]}, ValueError, r"layers names 'beside', which does not reach the target"),
    ("constant", {"layers": "constant"}, ValueError, r"layers names 'constant', which does not depend on the inputs"),
    ("same tensor", {"layers": ["hidden", "same"]}, ValueError, r"'same', which is the same tensor as 'hidden'; name"),
    ("same input", {"layers": ["act", "head:in", "act:in", "same"]}, ValueError, r"same tensor as '(same|act:in)'"),
    ("nothing flows", {"layers": ["bes*", "const*"]}, ValueError, r"nothing that conductance flows.*beside, constant"),
    ("unit too large", {"units": {"hidden": [0, 5]}}, ValueError, r"units\['hidden'\].*units 0 to 4, got 5"),
    ("unit too small", {"units": {"act": -6}}, ValueError, r"units\['act'\].*units 0 to 4, got -6"),
    ("unknown layer", {"units": {"fc": 0}}, ValueError, r"units names the layer 'fc'.*among those asked: hidden, act"),
    ("no unit", {"units": {"act": []}}, ValueError, r"units\['act'\] is empty; .*units 0 to 4"),
    ("empty slice", {"units": {"act": slice(3, 3)}}, ValueError, r"units\['act'\] is empty"),
    ("a word", {"units": {"act": "every"}}, ValueError, r"units\['act'\] is 'every'; expected 'all'"),
    ("a float", {"units": {"act": 1.5}}, TypeError, r"units\['act'\] holds a float"),
    ("an index", {"units": {"act": [(3,)]}}, ValueError, r"units\['act'\] holds an index tuple"),
    ("units a list", {"units": [1, 2]}, TypeError, r"units is a list; expected a dict"),
    ("top zero", {"top": 0}, ValueError, r"top is 0; expected"),
    ("top negative", {"top": -1}, ValueError, r"top is -1"),
    ("top a float", {"top": 2.0}, ValueError, r"top is 2.0"),
    ("top a bool", {"top": True}, ValueError, r"top is True"),
    ("mask of a wrong shape", {"feature_groups": MASK[:3]}, ValueError, r"feature_groups has shape \(3,\).*\(2, 4\)"),
    ("mask of floats", {"feature_groups": MASK.double()}, TypeError, r"feature_groups is a mask of torch.float64"),
    ("axis there is not", {"feature_groups": 2}, ValueError, r"feature_groups is axis 2"),
    ("tokens of a vector", {"feature_groups": "token"}, ValueError, r"feature_groups is 'token'.*three axes"),
    ("a word for groups", {"feature_groups": "pixel"}, ValueError, r"feature_groups is 'pixel'"),
    ("two masks", {"feature_groups": (MASK, MASK)}, ValueError, r"feature_groups has 2 entries, .* 1 inputs"),
    ("a dict of masks", {"feature_groups": {"x": MASK}}, ValueError, r"feature_groups names the inputs \['x'\]"),
]


@pytest.mark.parametrize(("changed", "kind", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_bad_arguments_are_named(changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    model = seeded(Odd).requires_grad_()
    with pytest.raises(kind, match=message):
        conductance_flow(model, X, **{"layers": ["hidden", "act"], "target": 0, **changed})
    assert untouched(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("changed", "kind", "message"), [c[1:] for c in TOTAL_CASES], ids=[c[0] for c in TOTAL_CASES])
def test_bad_arguments_of_total_conductance_are_named(
    changed: dict[str, Any], kind: type[Exception], message: str
) -> None:
    model = net()
    arguments: dict[str, Any] = {"inputs": X, "target": 0, **changed}
    with pytest.raises(kind, match=message):
        conductance_flow(model, arguments.pop("inputs"), **{"layers": ["hidden", "act"], **arguments})
    assert untouched(model)


def test_globs_leave_out_what_nothing_flows_through() -> None:
    flow = conductance_flow(seeded(Odd), X, "*", target=0, n_steps=4)
    assert flow.layers == ["hidden", "act", "head"]
    left_out: Any = flow.settings["left_out"]
    assert sorted(left_out) == ["beside", "constant", "idle", "same"]
    assert_balanced(flow)


@pytest.mark.parametrize("layers", [["*", "same"], ["same", "*"]])
def test_a_name_goes_before_a_glob_that_finds_the_same_tensor(layers: list[str]) -> None:
    flow = conductance_flow(seeded(Odd), X, layers, target=0, n_steps=4)
    assert flow.layers == ["same", "act", "head"]
    left_out: Any = flow.settings["left_out"]
    assert "hidden" in left_out
    assert_balanced(flow)


class Fickle(nn.Module):
    """A way that is only there while the first feature is large."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        first, large = torch.tanh(self.first(x)), bool((x[:, 0] > 0.5 * float(X[0, 0])).all())
        if self.kind == "way":
            second = torch.tanh(self.second(x if large else x + first[:, :4]))
        else:
            second = torch.tanh(self.second(x)) if large else first * 0.3
        logits: Tensor = self.head(second + 0.3 * first)
        return logits


@pytest.mark.parametrize(("kind", "message"), [("way", "graph changes with its data"), ("layer", "'second'")])
def test_graphs_that_change_with_the_data_are_refused(kind: str, message: str) -> None:
    model = seeded(lambda: Fickle(kind)).requires_grad_()
    with pytest.raises(ConductanceError, match=message):
        conductance_flow(model, X[:1], ["first", "second"], target=0, n_steps=6, internal_batch_size=1)
    assert untouched(model)


class _Stops(nn.Module):
    """Interrupts the call of a number."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.fc, self.act, self.head = nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)
        self.calls, self.call = 0, call

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.call:
            raise KeyboardInterrupt
        logits: Tensor = self.head(self.act(self.fc(x)))
        return logits


def _calls(inputs: Tensor, **options: Any) -> int:
    model = seeded(lambda: _Stops(0))
    conductance_flow(model, inputs, ["fc", "act"], target=1, **options)
    assert isinstance(model, _Stops)
    return model.calls


def test_an_interrupt_gives_what_is_finished() -> None:
    inputs, options = normal(6, 4, seed=8), dict[str, Any]({"n_steps": 5, "internal_batch_size": 5})
    calls = _calls(inputs, **options)
    model = seeded(lambda: _Stops(calls - 1)).requires_grad_()  # the last call but one, in the second run
    flow = conductance_flow(model, inputs, ["fc", "act"], target=1, **options)
    assert untouched(model)
    assert set(flow.status[:4]) <= {"ok", "budget"}
    assert flow.status[4:] == ("interrupted", "interrupted")
    assert flow.settings["interrupted"] is True
    assert not flow.converged[4:].any()
    assert flow.gap_kind[4:] == ("integration",) * 2
    whole = conductance_flow(seeded(lambda: _Stops(0)), inputs, ["fc", "act"], target=1, **options)
    for pair, edge in whole.edges.items():
        assert flow.edges[pair][4:].isnan().all()
        assert flow.edge_error[pair][4:].isnan().all()
        assert_near(flow.edges[pair][:4], edge[:4], 1e-12)
    for layer in (SOURCE, "fc", "act", SINK):
        assert flow.conductance[layer][4:].isnan().all()
        assert bool(flow.conductance[layer][:4].isfinite().all())
    for layer in ("fc", "act", SINK):
        assert flow.gap[layer][4:].isnan().all()
        assert flow.error[layer][4:].isnan().all()


def test_an_interrupt_at_any_call_leaves_a_result_and_the_model() -> None:
    inputs, options = normal(3, 4, seed=8), dict[str, Any]({"rtol": 1e-5, "internal_batch_size": 7})
    calls = _calls(inputs, **options)
    assert calls > 12
    seen = set()
    for call in range(5, calls + 1):  # those before try the model and its baseline
        model = seeded(partial(_Stops, call)).requires_grad_()
        try:
            flow = quiet_flow(model, inputs, ["fc", "act"], target=1, **options)
        except KeyboardInterrupt:
            assert call <= 5
        else:
            seen.add(flow.status.count("interrupted"))
            for n, status in enumerate(flow.status):
                assert bool(flow.conductance["fc"][n].isnan().any()) == (status == "interrupted")
                assert not (status != "ok" and flow.converged[n])
        assert untouched(model)
        assert all(parameter.requires_grad for parameter in model.parameters())
    assert seen == {1, 2, 3}


def test_an_interrupt_is_warned_of() -> None:
    inputs, options = normal(3, 4, seed=8), dict[str, Any]({"rtol": 1e-3, "internal_batch_size": 7})
    model = seeded(lambda: _Stops(_calls(inputs, **options)))
    with pytest.warns(ConvergenceWarning, match="the run was interrupted"):
        conductance_flow(model, inputs, ["fc", "act"], target=1, **options)


@pytest.mark.parametrize("grads", [True, False])
def test_the_model_is_left_as_it_was(grads: bool) -> None:
    model = net().requires_grad_(grads)
    hook = model.act.register_forward_hook(lambda *_: None)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = X.clone().requires_grad_()
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conductance_flow(model, inputs, ["hidden", "act"], target=0, rtol=1e-3)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(model.act._forward_hooks) == [hook.id]
    hook.remove()
    assert untouched(model)
    assert inputs.grad is None
    assert all(parameter.requires_grad == grads for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.filterwarnings("ignore::conductance.ZeroConductanceWarning")
def test_nothing_flows_where_nothing_changes() -> None:
    """Input and baseline are equal: every edge is zero, nothing is divided by it."""
    flow = quiet_flow(net(), X, ["hidden", "act"], target=0, baselines=X.clone())
    assert len(flow.edges) == 3
    assert all(float(edge.abs().max()) == 0.0 for edge in flow.edges.values())
    assert float(flow.error["act"].max()) == float(flow.error[SINK].max()) == 0.0


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("ok", "the model's graph changes with its data"),
        ("precision", r".*its total.*\(status 'precision'\), it is rounding: use float64, or another baseline"),
    ],
)
def test_flows_that_do_not_add_up_tell_why(status: str, reason: str) -> None:
    class Pilot(dict[str, torch.Tensor]):
        """Enough of a first run."""

        def __init__(self) -> None:
            super().__init__(h=torch.ones(1, 2))
            self.output, self.baseline_output, self.status = torch.ones(1), torch.zeros(1), (status,)
            self.error = {"h": torch.tensor([1e-3])}

    pilot = Pilot()
    work: Any = SimpleNamespace(
        edges={(0, 1): torch.ones(1, 2, 1)},
        columns=[SimpleNamespace(name="h")],
        runs=SimpleNamespace(pilot=pilot),
        precision=1e-7,
        outflow=lambda layer, n: torch.ones(2),
        _rounded=lambda n: status == "precision",
    )
    _Work._check(work, [torch.ones(2)], 0)
    with pytest.raises(ConductanceError, match=rf"out of layer 'h' do not add up.*\(example 0\): {reason}"):
        _Work._check(work, [torch.tensor([1.0, 2.0])], 0)
