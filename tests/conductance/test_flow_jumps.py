"""A function that jumps, or hides its derivative: the graph says so and still balances."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from conductance.errors import ConvergenceWarning
from conductance.flow import conductance_flow
from conductance.flow_results import SINK, SOURCE, ConductanceFlow
from tests.conductance.flows import assert_balanced, assert_near, quiet_flow
from tests.helpers import normal, seeded


class Jumping(nn.Module):
    """Something happens between ``act`` and ``gate``."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(5, 7), nn.Tanh()
        self.gate = nn.Identity()
        self.mix, self.head = nn.Linear(7, 6), nn.Linear(6, 2)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(torch.tanh(self.mix(self.gate(self.function(self.act(self.fc(x)))))))
        return output


def _top_k(h: Tensor) -> Tensor:
    return h * torch.zeros_like(h).scatter(1, h.abs().topk(3, 1).indices, 1.0)


def _rounded(h: Tensor) -> Tensor:
    return h + torch.round(1.2 * h)


def _straight_through(h: Tensor) -> Tensor:
    return h + (torch.round(5 * h) / 5 - h).detach()


X = normal(4, 5, seed=2, scale=2)
LAYERS = ["fc", "act", "gate", "mix"]


def _flow(function: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float64) -> ConductanceFlow:
    model = seeded(lambda: Jumping(function)).to(dtype)
    return quiet_flow(model, X.to(dtype), LAYERS, top=2, target=0, max_evaluations=3000)


@pytest.mark.parametrize(("function", "status"), [(_top_k, "jump"), (_rounded, "budget")])
def test_a_jump_is_a_gap_where_it_happens(function: Callable[[Tensor], Tensor], status: str) -> None:
    flow = _flow(function)
    assert flow.status == (status,) * 4
    assert flow.gap_kind == ("jump" if status == "jump" else "integration",) * 4
    assert not flow.converged.any()
    assert_balanced(flow)
    for layer in LAYERS:
        gap = flow.gap[layer].abs().sum(1) / flow.conductance[layer].abs().sum(1)
        if layer == "gate":
            assert bool((gap > 0.05).all())
            assert bool((flow.error[layer] > 0.05).all())
        else:
            assert bool((gap < 0.03).all())
    # all that is not explained by the input enters at the gate (across a jump v dy is right to second order)
    gate = flow.conductance["gate"]
    assert_near(flow.gap["gate"].sum(1, keepdim=True), flow.unattributed[:, None], 0.2, gate)
    assert_near(gate.sum(1, keepdim=True), flow.output_change[:, None], 0.2, gate)


def test_single_precision_sees_the_same_jumps() -> None:
    """Nodes next to a jump are closer than single precision can tell apart: the runs may fall on either side."""
    narrow, wide = _flow(_top_k, torch.float32), _flow(_top_k)
    assert narrow.status == wide.status
    assert_balanced(narrow, 1e-5)
    for pair, edge in wide.edges.items():
        assert_near(narrow.edges[pair].double(), edge, 5e-2)


def test_a_gradient_that_is_not_the_derivative() -> None:
    flow = _flow(_straight_through)
    assert set(flow.status) <= {"gradient", "jump"}
    assert set(flow.gap_kind) == {"jump"}
    assert not flow.converged.any()
    assert_balanced(flow)


def test_the_table_names_the_jump() -> None:
    table = _flow(_top_k).to_dataframe()
    gaps = table[table.from_layer == "(jump)"]
    assert not (table.from_layer == "(integration)").any()
    gate = gaps[gaps.to_layer == "gate"]
    assert sorted(gate.example.unique()) == [0, 1, 2, 3]
    assert gate.flow.abs().sum() > 0.5 * gaps.flow.abs().sum()


def test_a_jump_is_warned_of() -> None:
    model = seeded(lambda: Jumping(_top_k))
    with pytest.warns(ConvergenceWarning, match=r"4 of 4 examples did not converge.*4 jump"):
        conductance_flow(model, X, LAYERS, target=0, top=1)


def test_smooth_networks_have_integration_gaps_only() -> None:
    flow = conductance_flow(seeded(lambda: Jumping(torch.sin)), X, LAYERS, target=0, rtol=1e-3)
    assert flow.status == ("ok",) * 4
    assert flow.gap_kind == ("integration",) * 4
    for layer in (*LAYERS, SINK):
        assert bool((flow.gap[layer].abs().sum(1) <= 1.1e-3 * flow.conductance[layer].abs().sum(1)).all())
    assert float(flow.gap[SOURCE].abs().max()) == 0.0


def test_a_flow_that_misses_its_tolerance_warns_though_total_conductance_kept_it() -> None:
    """The budget ends between the two runs."""
    model = seeded(lambda: Jumping(lambda h: torch.sin(3 * h)))
    found = {}
    for most in range(8, 80, 8):
        flow = quiet_flow(model, X[:1], LAYERS, target=0, rtol=1e-6, max_evaluations=most)
        found[most] = flow
        assert flow.converged.tolist() == [status == "ok" for status in flow.status]
    missed = [most for most, flow in found.items() if not flow.converged.all()]
    assert missed
    with pytest.warns(ConvergenceWarning, match="1 budget"):
        conductance_flow(model, X[:1], LAYERS, target=0, rtol=1e-6, max_evaluations=missed[-1])
