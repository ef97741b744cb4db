"""What every flow has to satisfy, and shorthands for tests of flows."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from conductance.errors import ConvergenceWarning
from conductance.flow import conductance_flow
from conductance.flow_results import SINK, SOURCE, ConductanceFlow


def quiet_flow(model: Callable[..., Any], inputs: Any, layers: Any, **options: Any) -> ConductanceFlow:
    """A flow whose tolerance may be missed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return conductance_flow(model, inputs, layers, **options)


def assert_near(found: Tensor, expected: Tensor, tolerance: float, scale: Tensor | None = None) -> None:
    """Per example ``Σ|found - expected|`` is at most ``tolerance · Σ|expected|``, or of ``scale``; never nothing."""
    assert found.shape == expected.shape
    size = (expected if scale is None else scale).flatten(1).abs().sum(1)
    assert bool((size > 1e-6).all()), "nothing flows: the comparison would pass on zeros"
    missed = (found - expected).flatten(1).abs().sum(1)
    assert bool((missed <= tolerance * size).all()), f"missed by {float((missed / size).max()):.1e}"


def assert_balanced(flow: ConductanceFlow, tolerance: float = 1e-12) -> None:
    """Outflow is conductance, inflow and gap are conductance, and the source and all gaps make up dF."""
    for layer in flow.layers:
        assert_near(flow.outflow(layer), flow.conductance[layer], tolerance)
    for layer in (*flow.layers, SINK):
        assert_near(flow.inflow(layer) + flow.gap[layer], flow.conductance[layer], tolerance)
    assert_near(flow.conductance[SINK], flow.output_change[:, None], tolerance)
    brought = flow.conductance[SOURCE].sum(1) + sum(gap.sum(1) for gap in flow.gap.values())
    scale = torch.cat([part.flatten(1) for part in (*flow.conductance.values(), *flow.edges.values())], 1)
    assert_near(brought[:, None], flow.output_change[:, None], tolerance, scale)
    assert float(flow.gap[SOURCE].abs().max()) == 0.0


def assert_same(found: ConductanceFlow, expected: ConductanceFlow, tolerance: float) -> None:
    """Nodes are the same, and edges, gaps and conductances within a tolerance of the layers' scale."""
    assert found.units == expected.units
    assert list(found.edges) == list(expected.edges)
    for pair, edge in expected.edges.items():
        assert_near(found.edges[pair], edge, tolerance)
    for layer, conductance in expected.conductance.items():
        assert_near(found.conductance[layer], conductance, tolerance)
        if layer != SOURCE:
            assert_near(found.gap[layer], expected.gap[layer], tolerance, conductance)


def untouched(model: nn.Module) -> bool:
    """Whether no hook and no gradient is left on a model."""
    hooked = any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    return not hooked and all(parameter.grad is None for parameter in model.parameters())
