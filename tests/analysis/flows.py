"""Conserved flows: of random numbers, with skips and gaps, no two axes of one size; and of linear networks."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from conductance.flow_results import REST, SINK, SOURCE, ConductanceFlow, Pair, Unit
from conductance.results import LayerInfo

EXAMPLES = 4
#: Names and labels of the nodes between input and target; INPUTS is the number of input groups.
LAYERS: dict[str, list[Unit]] = {
    "stem.conv": [3, 11, REST],
    "blocks.0.attn.o_proj:in": [0, 7, 2, 5, REST],
    "head": [1, 4],
}
INPUTS = 6
SKIPS: tuple[Pair, ...] = ((SOURCE, "head"), ("stem.conv", "head"), ("stem.conv", SINK))


def random_flow(
    seed: int = 0,
    *,
    examples: int = EXAMPLES,
    inputs: int = INPUTS,
    layers: dict[str, list[Unit]] | None = None,
    skips: Sequence[Pair] = SKIPS,
    status: Sequence[str] | None = None,
    gap: float = 0.01,
    spread: float = 0.3,
    positive: bool = False,
    **changes: Any,
) -> ConductanceFlow:
    """Make a flow in float64 that balances at every node.

    Parameters
    ----------
    seed
        Of the numbers.
    examples, inputs, layers, skips
        Sizes, labels, and pairs of layers that an edge joins besides the neighbours.
    status
        Per example; "jump" makes its gaps a jump.
    gap
        Size of the gaps against the flow; half of them are 0.
    spread
        How unevenly a node shares out what it has: above 0 its edges may pull both ways.
    positive
        Make every flow and every gap positive.
    changes
        Replaces fields.
    """
    numbers = torch.Generator().manual_seed(seed)
    units: dict[str, list[Unit]] = {
        SOURCE: list(range(inputs)),
        **(LAYERS if layers is None else layers),
        SINK: ["target"],
    }
    names = list(units)
    pairs = sorted({*pairwise(names), *skips}, key=lambda pair: [names.index(name) for name in pair])

    def normal(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=numbers, dtype=torch.float64)
        return values.abs() if positive else values

    conductance, gaps = {SOURCE: normal(examples, inputs)}, {SOURCE: torch.zeros(examples, inputs, dtype=torch.float64)}
    edges: dict[Pair, Tensor] = {}
    for name in names:
        if name != SOURCE:
            size = (examples, len(units[name]))
            gaps[name] = gap * normal(*size) * (torch.rand(*size, generator=numbers) < 0.5)
            conductance[name] = gaps[name] + sum(edges[pair].sum(1) for pair in pairs if pair[1] == name)
        stops = [pair[1] for pair in pairs if pair[0] == name]
        if stops:
            sizes = [len(units[stop]) for stop in stops]
            weights = normal(examples, len(units[name]), sum(sizes)) ** (2 if positive else 1)
            if not positive:
                weights = 1.0 + spread * sum(sizes) ** 0.5 * (weights - weights.mean(2, keepdim=True))
            shares = weights / weights.sum(2, keepdim=True) * conductance[name][:, :, None]
            edges |= {(name, stop): part for stop, part in zip(stops, shares.split(sizes, 2), strict=True)}
    output = conductance[SINK][:, 0]
    statuses = tuple(status) if status is not None else ("ok",) * examples
    fields: dict[str, Any] = {
        "units": units,
        "conductance": conductance,
        "edges": {pair: edges[pair] for pair in pairs},
        "edge_error": {pair: 0.01 * edges[pair].abs() for pair in pairs},
        "gap": gaps,
        "error": {name: torch.full((examples,), 0.01, dtype=torch.float64) for name in names},
        "info": {
            name: LayerInfo(name, "Linear", (13,), 1, None, is_cut=False, moves=True, used=True)
            for name in names
            if name not in (SOURCE, SINK)
        },
        "output": output + 1.0,
        "baseline_output": torch.ones_like(output),
        "unattributed": torch.zeros(examples, dtype=torch.float64),
        "status": statuses,
        "evaluations": torch.full((examples,), 9),
        "converged": torch.ones(examples, dtype=torch.bool),
        "settings": {"top": 5, "rtol": 1e-2},
    }
    return ConductanceFlow(**{**fields, **changes})


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
    """
    x, weight, vector = (torch.tensor(each, dtype=torch.float64) for each in (inputs, hidden, readout))
    first = x[:, :, None] * weight.T * vector
    units, batch = first.sum(1), len(x)
    edges: dict[Pair, Tensor] = {(SOURCE, "h"): first, ("h", SINK): units[:, :, None]}
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
