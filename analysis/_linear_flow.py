"""The flow of a linear network in closed form, for the examples of the docstrings."""

from collections.abc import Sequence

import torch

from conductance.flow_results import SINK, SOURCE, ConductanceFlow, Pair
from conductance.results import LayerInfo


def linear_flow(
    inputs: Sequence[Sequence[float]] = ((1.0, 2.0),),
    hidden: Sequence[Sequence[float]] = ((1.0, 3.0), (4.0, -1.0)),
    readout: Sequence[float] = (2.0, 1.0),
) -> ConductanceFlow:
    """Flow of ``F = readout · h``, ``h = hidden · x``, from zero: ``E_ij = readout_j hidden_ji x_i``.

    Parameters
    ----------
    inputs
        ``(batch, inputs)``.
    hidden
        ``(units, inputs)``.
    readout
        ``(units,)``.

    Returns
    -------
    ConductanceFlow
        Of the layer ``"h"``, in float64.

    Examples
    --------
    >>> linear_flow().edges["(input)", "h"]
    tensor([[[ 2.,  4.],
             [12., -2.]]], dtype=torch.float64)
    """
    x, weight, vector = (torch.tensor(each, dtype=torch.float64) for each in (inputs, hidden, readout))
    first = x[:, :, None] * weight.T * vector
    units, batch = first.sum(1), len(x)
    edges: dict[Pair, torch.Tensor] = {(SOURCE, "h"): first, ("h", SINK): units[:, :, None]}
    conductance = {SOURCE: first.sum(2), "h": units, SINK: units.sum(1, keepdim=True)}
    zeros = torch.zeros(batch, dtype=torch.float64)
    return ConductanceFlow(
        units={SOURCE: list(range(x.shape[1])), "h": list(range(len(vector))), SINK: ["target"]},
        conductance=conductance,
        edges=edges,
        edge_error={pair: torch.zeros_like(edge) for pair, edge in edges.items()},
        gap={layer: torch.zeros_like(each) for layer, each in conductance.items()},
        error=dict.fromkeys(conductance, zeros),
        info={"h": LayerInfo("h", "Linear", (len(vector),), 1, None, is_cut=True, moves=True, used=True)},
        output=units.sum(1),
        baseline_output=zeros,
        unattributed=zeros,
        status=("ok",) * batch,
        evaluations=torch.full((batch,), 2),
        converged=torch.ones(batch, dtype=torch.bool),
        settings={},
    )
