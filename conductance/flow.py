"""Conserved flow of conductance between units: ``E_jk = ∫ v_k (∂z_k/∂y_j) dy_j``, directly from layer to layer.

Flows refine total conductance as a map of streets refines a count of cars: what unit ``j`` passes on to the units
behind it sums to its total conductance exactly, and what comes in makes it up within the tolerance.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from conductance._reporting import settings_of, warn
from conductance._requests import checked_rules, named_points
from conductance.arguments import Inputs
from conductance.baselines import Baseline
from conductance.errors import ConductanceError
from conductance.features import FeatureGroups, Features
from conductance.flights import ROUNDINGS
from conductance.flow_edges import Column, Edges
from conductance.flow_graph import INPUT, Wiring, wired
from conductance.flow_results import SINK, SOURCE, ConductanceFlow, Pair, Unit
from conductance.following import TwoRuns
from conductance.hooks import LayerSpec
from conductance.increments import estimated
from conductance.panels import Floats
from conductance.path import StraightPath
from conductance.replay import Replayed
from conductance.running import layout_of, prepared
from conductance.sums import Layout, wide_dtype, work_dtype
from conductance.targeting import Target
from conductance.units import Neurons, chosen

#: Rows of a call are this many times fewer than of total conductance: its graph and increments are kept.
THINNER = 4


def conductance_flow(
    model: Callable[..., Any],
    inputs: Inputs,
    layers: LayerSpec,
    *,
    top: int | None = 8,
    units: Mapping[str, Neurons] | None = None,
    feature_groups: FeatureGroups = None,
    target: Target = None,
    baselines: Baseline | list[Any] = None,
    additional_forward_args: Any = None,
    fixed: Any = (),
    path_from: LayerSpec = None,
    rtol: float | None = None,
    atol: float = 0.0,
    n_steps: int | None = None,
    max_evaluations: int = 10_000,
    internal_batch_size: int | None = None,
    on_train: Literal["error", "warn"] = "error",
    progress: bool = False,
) -> ConductanceFlow:
    """Flow of conductance from the input through units of some layers to the target.

    Parameters
    ----------
    model, inputs, target, baselines, additional_forward_args, fixed, path_from
        As for :func:`~conductance.total.total_conductance`.
    layers
        Layers that become columns of the graph. Flow is *direct*: an edge leads from one to another if some way
        between them crosses no third one, so edges may pass by layers (skip connections), and parallel branches are
        fine.
    top
        Units of each layer that get a node of their own: those with the largest mean absolute conductance over the
        batch; the others are one node ``"rest"``. None: all units.
    units
        Layers whose units are named instead: unit numbers, a slice, a list or ``"all"``, by layer.
    feature_groups
        What counts as one input (see :func:`~conductance.neuron.neuron_conductance`); None is one node for all.
    rtol, atol, n_steps, max_evaluations, internal_batch_size, on_train, progress
        As for total conductance. The tolerance holds for the total conductance of each layer, for ``Σ|error|`` of the
        edges into each layer against their ``Σ|E|``, and for ``Σ|gap|`` against ``Σ|C|``; nodes of the path are added
        where it needs them. The budget holds for total conductance; its nodes are then run once more for the edges,
        and nodes are only added while an example has cost less than the budget.

    Returns
    -------
    ConductanceFlow
        Nodes, edges and gaps; ``analysis.flow_graph`` turns it into a networkx graph.

    Raises
    ------
    ValueError, TypeError
        For an argument that cannot be used; the message names it. Layers that do not depend on the inputs, do not
        reach the target or are the same tensor as another one are refused if they were named, else left out.
    ConductanceError
        As for total conductance; and if the model's graph changes with its data, so that flows do not add up.

    Notes
    -----
    The cost is one backward pass, from the layer to its direct sources, for each node of each layer. Through linear
    maps and convolutions between ``"layer:in"`` and ``"layer"`` all edges are read off the weights instead (see
    :func:`~conductance.weights.weight_conductance`).

    Across a jump of the function no derivative carries what jumps: the graph then has a gap where the jump is, which
    :attr:`~conductance.flow_results.ConductanceFlow.gap_kind` names.

    References
    ----------
    Dhamdhere, Sundararajan and Yan, How Important Is a Neuron? (1805.12233), whose equation 1 this applies between
    any two layers.

    Examples
    --------
    ``F = 2 h_0 - h_1`` with ``h_0 = x_0 + x_1`` and ``h_1 = 3 x_1``, from zero to (1, 2): by hand ``h_0`` takes 2 from
    the first input and 4 from the second and passes on 6; ``h_1`` takes and passes on minus 6.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, 1.0], [0.0, 3.0]]))
    >>> _ = model[1].weight.data.copy_(torch.tensor([[2.0, -1.0]]))
    >>> x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    >>> flow = conductance_flow(model, x, "0", target=0, feature_groups=torch.tensor([0, 1]))
    >>> flow.edges["(input)", "0"].round(decimals=6)
    tensor([[[ 2.,  0.],
             [ 4., -6.]]], dtype=torch.float64)
    >>> flow.edges["0", "(target)"].round(decimals=6)
    tensor([[[ 6.],
             [-6.]]], dtype=torch.float64)
    """
    started = time.perf_counter()
    rules = checked_rules(rtol, atol, n_steps, max_evaluations, internal_batch_size)
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 1):
        raise ValueError(f"top is {top!r}; expected a number of units of at least 1, or None for all")
    with prepared(
        model,
        inputs,
        layers,
        target=target,
        baselines=baselines,
        additional_forward_args=additional_forward_args,
        fixed=fixed,
        path_from=path_from,
        on_train=on_train,
        most=rules.rows,
    ) as asked:
        ready, wiring = wired(asked, named_points(layers, asked.selection))
        features = Features(all_in_one(ready.path) if feature_groups is None else feature_groups, ready.path)
        layouts = {info.name: layout_of(info) for info in ready.points}
        named = named_units(units, layouts)
        runs = TwoRuns(ready, rules, n_steps, progress=progress)
        columns = [
            Column(name, layout, runs.pilot.per_unit(name), named.get(name, top)) for name, layout in layouts.items()
        ]
        work = _Work(runs, wiring, features, columns)
        runs.follow(work.rows, work.evaluate, work.take, "flow")
    pilot = runs.pilot
    result = work.result(
        {
            "quantity": "conductance_flow",
            **settings_of(ready, rules, n_steps, target, baselines),
            "top": top,
            "internal_batch_size": work.rows,
            "interrupted": runs.interrupted,
            "seconds": round(time.perf_counter() - started, 3),
        },
        ["input"] if feature_groups is None else features.labels or [],
    )
    error = {name: result.error[name] for name in result.layers}
    judged = replace(pilot, error=error, status=result.status, converged=result.converged, settings=result.settings)
    warn(judged, rules, n_steps)
    return result


class _Work:
    """Edges of all examples, as the second run gives them."""

    def __init__(self, runs: TwoRuns, wiring: Wiring, features: Features, columns: list[Column]) -> None:
        self.runs = runs
        self.rules = runs.rules
        self.rows = runs.rules.rows or max(1, runs.run.rows // THINNER)
        self.wiring = wiring
        self.path = runs.ready.path
        self.layers = len(columns)
        self.evaluate = Edges(runs.run.engine, wiring, features, columns, self.rows)
        self.columns = columns
        self._known = [column.group(runs.pilot[column.name].reshape(self.path.batch, -1)) for column in columns]
        self._checked: set[int] = set()
        batch, device = self.path.batch, self.path.device
        counts = {**{layer: len(column.labels) for layer, column in enumerate(columns)}, INPUT: features.count}
        self.counts = {**counts, self.layers: 1}
        self.edges, self.edge_error = (
            {
                (start, stop): torch.full(
                    (batch, self.counts[start], self.counts[stop]), torch.nan, dtype=wide_dtype(device), device=device
                )
                for start, stop in wiring.pairs
            }
            for _ in range(2)
        )
        self.error = np.full((self.layers + 1, batch), np.nan)
        self.ratio = np.full(batch, -np.inf)
        self.precision = float(max(torch.finfo(column.layout.dtype).eps for column in columns)) / 2

    def take(self, done: Replayed) -> float:
        """Keep what an example gave, unless it had better; allowed over estimated error, of the worst layer."""
        n = done.example
        before = {pair: (self.edges[pair][n].clone(), self.edge_error[pair][n].clone()) for pair in self.wiring.pairs}
        for pair, block in zip(self.wiring.pairs, done.blocks, strict=True):
            shape = self.edges[pair].shape[1:]
            error = estimated(block) + ROUNDINGS * self.precision * block[0].abs()
            self.edges[pair][n], self.edge_error[pair][n] = block[0].reshape(shape), error.reshape(shape)
        if n not in self._checked:
            self._check([one[n] for one in self._known], n)
            self._checked.add(n)
        errors, ratio = self._judged(n)
        if ratio <= self.ratio[n]:
            for pair, (edge, edge_error) in before.items():
                self.edges[pair][n], self.edge_error[pair][n] = edge, edge_error
            return float(self.ratio[n])
        self.error[:, n], self.ratio[n] = errors, ratio
        return ratio

    def _judged(self, n: int) -> tuple[Floats, float]:
        """Error of each layer of an example, and allowed over estimated error of the worst."""
        ratio, errors = np.inf, np.zeros(self.layers + 1)
        change = self.runs.pilot.output_change[n].to(wide_dtype(self.path.device))
        for layer in range(self.layers + 1):
            conductance = self.outflow(layer, n) if layer < self.layers else change[None]
            into = [pair for pair in self.wiring.pairs if pair[1] == layer]
            error = sum(float(self.edge_error[pair][n].sum()) for pair in into)
            size = sum(float(self.edges[pair][n].abs().sum()) for pair in into)
            scale = float(conductance.abs().sum())
            gap = float((conductance.to(self.path.device) - self.inflow(layer, n)).abs().sum())
            floor = ROUNDINGS * self.precision * size
            errors[layer] = max(_part(error, size), _part(gap, scale))
            for found, of in ((error, size), (gap - floor, scale)):
                if found > 0:
                    ratio = min(ratio, (self.rules.rtol * of + self.rules.atol) / found)
        return errors, float(ratio)

    def _check(self, known: list[Tensor], n: int) -> None:
        """Refuse flows that do not add up to what is known of the same nodes."""
        for layer, conductance in enumerate(known):
            found = self.outflow(layer, n)
            size = sum(float(edge[n].abs().sum()) for pair, edge in self.edges.items() if pair[0] == layer)
            rounding = self.precision * float(
                self.runs.pilot.output[n].abs() + self.runs.pilot.baseline_output[n].abs()
            )
            name = self.columns[layer].name
            known_to = float(self.runs.pilot.error[name][n]) * float(self.runs.pilot[name][n].abs().sum())
            allowed = 1e-2 * (size + float(conductance.abs().sum())) + rounding + self._rounded(n) * known_to
            if float((found - conductance.to(found)).abs().sum()) > allowed:
                status = self.runs.pilot.status[n]
                reason = "the model's graph changes with its data or from call to call; leave this layer out"
                if status in ("precision", "budget"):
                    reason += (
                        f"; or, since its total conductance did not converge either (status {status!r}), it is "
                        "rounding: use float64, or another baseline (at zeros a norm is steepest)"
                    )
                raise ConductanceError(
                    f"the flows out of layer {name!r} do not add up to its conductance (example {n}): {reason}"
                )

    def _rounded(self, n: int) -> bool:
        """Whether rounding hides the total conductance of an example: the flows are more exact than it then."""
        return self.runs.pilot.status[n] == "precision"

    def outflow(self, layer: int, n: int | None = None) -> Tensor:
        """Sum of the edges out of each node of a layer, of one example or of all."""
        parts = [edge if n is None else edge[n] for pair, edge in self.edges.items() if pair[0] == layer]
        return sum((part.sum(-1) for part in parts), torch.zeros((), device=self.path.device))

    def inflow(self, layer: int, n: int | None = None) -> Tensor:
        """Sum of the edges into each node of a layer, of one example or of all."""
        parts = [edge if n is None else edge[n] for pair, edge in self.edges.items() if pair[1] == layer]
        return sum((part.sum(-2) for part in parts), torch.zeros((), device=self.path.device))

    def result(self, settings: dict[str, Any], features: list[Unit]) -> ConductanceFlow:
        """The labelled result."""
        pilot = self.runs.pilot
        names = {INPUT: SOURCE, **{layer: column.name for layer, column in enumerate(self.columns)}, self.layers: SINK}
        dtype = work_dtype(pilot.output.dtype)
        missing = np.isnan(self.error[self.layers])
        change = pilot.output_change.to(self.path.device)
        conductance = {SOURCE: self.outflow(INPUT)}
        conductance |= {names[layer]: self.outflow(layer) for layer in range(self.layers)}
        conductance[SINK] = torch.where(torch.as_tensor(missing).to(change.device), torch.nan, change)[:, None]
        gap = {SOURCE: torch.zeros_like(conductance[SOURCE])}
        gap |= {names[layer]: conductance[names[layer]] - self.inflow(layer) for layer in range(self.layers + 1)}
        order = sorted(names)
        labels: dict[str, list[Unit]] = {SOURCE: features, **{c.name: c.labels for c in self.columns}, SINK: ["target"]}
        pairs: dict[Pair, tuple[int, int]] = {(names[a], names[b]): (a, b) for a, b in self.wiring.pairs}
        nothing = torch.full_like(pilot.output, torch.nan)
        return ConductanceFlow(
            units={names[layer]: list(labels[names[layer]]) for layer in order},
            conductance={names[layer]: conductance[names[layer]].to(dtype) for layer in order},
            edges={pair: self.edges[at].to(dtype) for pair, at in pairs.items()},
            edge_error={pair: self.edge_error[at].to(dtype) for pair, at in pairs.items()},
            gap={names[layer]: gap[names[layer]].to(dtype) for layer in order},
            error={
                names[layer]: nothing if layer == INPUT else torch.as_tensor(self.error[layer]).to(pilot.output)
                for layer in order
            },
            info=dict(pilot.info),
            output=pilot.output,
            baseline_output=pilot.baseline_output,
            unattributed=pilot.unattributed,
            status=tuple(self.runs.status),
            evaluations=self.runs.evaluations,
            converged=self.runs.converged,
            settings=settings,
        )


def _part(error: float, size: float) -> float:
    return error / size if size > 0 else (np.inf if error > 0 else 0.0)


def all_in_one(path: StraightPath) -> FeatureGroups:
    """Masks that make all inputs one feature."""
    return tuple(torch.zeros(path.ends[key].shape[1:], dtype=torch.int64) for key in path.moving)


def named_units(units: Mapping[str, Neurons] | None, layouts: Mapping[str, Layout]) -> dict[str, list[int]]:
    """Units that the user named, by layer, as numbers."""
    if units is None:
        return {}
    if not isinstance(units, Mapping):
        raise TypeError(f"units is a {type(units).__name__}; expected a dict of layer names to unit numbers")
    named = {}
    for layer, given in units.items():
        if layer not in layouts:
            raise ValueError(f"units names the layer {layer!r}, which is not among those asked: {', '.join(layouts)}")
        labels = [one.label for one in chosen(given, layouts[layer], layer, f"units[{layer!r}]")]
        if any(isinstance(label, str) for label in labels):
            raise ValueError(
                f"units[{layer!r}] holds an index tuple; nodes of a flow are whole units: give their numbers"
            )
        named[layer] = list(dict.fromkeys(int(label) for label in labels))
    return named
