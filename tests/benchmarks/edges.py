"""Do edges mean something: an edge's flow against what its target unit loses when the source unit is held.

A unit of an earlier layer is held at its activation at the baseline by a forward hook, and the conductance of units
of a later layer is computed anew. An edge claims that its target gets so much from its source.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from conductance import total_conductance
from conductance.flow import conductance_flow
from tests.benchmarks.nets import Activation, digits, trained
from tests.benchmarks.tables import Row, Table

#: Network, activation, source layer, target layer.
CASES: tuple[tuple[str, Activation, str, str], ...] = (
    ("mlp", "relu", "act1", "act2"),
    ("mlp", "gelu", "act1", "act2"),
    ("mlp", "gelu", "act1", "act3"),
    ("conv", "relu", "act1", "act2"),
)
SOURCES = 10
RTOL = 1e-3


def run(quick: bool = False) -> Iterable[Table]:
    """One table: correlation over all edges of an image, its median over images."""
    images = 4 if quick else 16
    text = (
        f"{images} test images, the predicted class from a black image; the {SOURCES} source units with the largest "
        "conductance, each held at its activation at the baseline, against all target units. Correlation over the "
        "edges of an image between flow and loss of conductance, median over images; by chance it is 0. The product "
        "of the two units' conductances, which knows no edge, is there to compare with."
    )
    yield Table("Edges against interventions", text, [measure(*case, images) for case in CASES])


def measure(name: str, activation: Activation, source: str, later: str, images: int) -> Row:
    """Hold each source unit of one network in turn, and compare with its edges."""
    model = trained(name, activation)
    inputs = digits().test[:images]
    target = model(inputs).argmax(1)
    flow = conductance_flow(
        model, inputs, [source, later], top=SOURCES, units={later: "all"}, target=target, rtol=RTOL,
        max_evaluations=100_000,
    )  # fmt: skip
    units = [int(unit) for unit in flow.units[source][:SOURCES]]
    edges = flow.edges[source, later][:, : len(units)]
    before = _conductance(model, inputs, later, target)
    lost = torch.zeros_like(edges)
    for place, unit in enumerate(units):
        with held_at_baseline(model, source, unit):
            lost[:, place] = before - _conductance(model, inputs, later, target)
    guess = flow.conductance[source][:, : len(units), None] * flow.conductance[later][:, None]
    return {
        "network": f"{name}, {activation}",
        "from": source,
        "to": later,
        "edges of an image": edges[0].numel(),
        "correlation": _median([_correlation(e, d) for e, d in zip(edges, lost, strict=True)]),
        "of ranks": _median([_correlation(_ranks(e), _ranks(d)) for e, d in zip(edges, lost, strict=True)]),
        "same sign, by size": _median([_sign_share(e, d) for e, d in zip(edges, lost, strict=True)]),
        "lost / flow": _median([float((e * d).sum() / (e * e).sum()) for e, d in zip(edges, lost, strict=True)]),
        "correlation of the product": _median([_correlation(g, d) for g, d in zip(guess, lost, strict=True)]),
    }


@contextmanager
def held_at_baseline(model: nn.Module, layer: str, unit: int) -> Iterator[None]:
    """Hold a unit at its activation on a black image, at all positions."""
    module, kept = model.get_submodule(layer), []
    handle = module.register_forward_hook(lambda _module, _args, output: kept.append(output))
    try:
        model(torch.zeros(1, 64, dtype=next(model.parameters()).dtype))
    finally:
        handle.remove()

    def hold(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        mask = torch.zeros_like(output[:1])
        mask[:, unit] = 1.0
        held: Tensor = output * (1 - mask) + kept[0] * mask
        return held

    handle = module.register_forward_hook(hold)
    try:
        yield
    finally:
        handle.remove()


def _conductance(model: nn.Module, inputs: Tensor, layer: str, target: Tensor) -> Tensor:
    total = total_conductance(model, inputs, layer, target=target, rtol=RTOL, max_evaluations=100_000)
    found: Tensor = total.per_unit(layer)
    return found


def _correlation(first: Tensor, second: Tensor) -> float:
    return float(np.corrcoef(first.flatten().numpy(), second.flatten().numpy())[0, 1])


def _ranks(values: Tensor) -> Tensor:
    return values.flatten().argsort().argsort().double()


def _sign_share(flow: Tensor, lost: Tensor) -> float:
    """Share of Σ|flow| on edges whose loss has the sign of the flow."""
    return float(flow[(flow * lost) > 0].abs().sum() / flow.abs().sum())


def _median(values: list[float]) -> float:
    return float(np.median(values))
