"""Quantities that take the nodes of total conductance say when these did not converge."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import conductance as cd


@pytest.mark.parametrize(
    ("function", "options"),
    [(cd.total_conductance, {}), (cd.conductance_flow, {}), (cd.neuron_conductance, {"mode": "reverse"})],
)
def test_a_missed_tolerance_is_a_warning_and_a_result(function: Callable[..., Any], options: dict[str, Any]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 7), nn.ReLU(), nn.Linear(7, 2)).double()
        inputs = torch.randn(3, 5, dtype=torch.float64)
    with pytest.warns(
        cd.ConvergenceWarning, match=r"of 3 examples did not converge to rtol=1e-09 .*raise max_evaluations"
    ):
        found = function(model, inputs, "1", target=0, rtol=1e-9, max_evaluations=8, **options)
    assert "budget" in found.status
    assert not found.converged.all()
