"""Edges of the flow graph over given rows: each unit's gradient is pulled back to the layers before, and reduced."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from conductance.engine import Engine, Held
from conductance.errors import ConductanceError
from conductance.features import Features
from conductance.flow_graph import INPUT, Blocked, Wiring
from conductance.flow_results import REST, Unit
from conductance.flow_weights import ThroughWeights
from conductance.increments import Increments, Parts
from conductance.pulling import as_it_is
from conductance.replay import Rows, held_calls
from conductance.sums import Layout
from conductance.units import neuron_of, unit_count


class Column:
    """The nodes of one layer: units of their own, and the rest.

    Parameters
    ----------
    name, layout
        The layer.
    conductance
        ``(batch, units)``, to choose the units with the largest mean absolute value.
    units
        How many to choose, numbers of units, or None for all.

    Attributes
    ----------
    labels
        Numbers of the units, then `REST` if any are left.
    """

    def __init__(self, name: str, layout: Layout, conductance: Tensor, units: int | Sequence[int] | None) -> None:
        self.name = name
        self.layout = layout
        count = unit_count(layout)
        if units is None:
            self.units = list(range(count))
        elif isinstance(units, int):
            size = torch.nan_to_num(conductance.double() if conductance.device.type != "mps" else conductance)
            self.units = torch.argsort(size.abs().mean(0), descending=True, stable=True)[:units].tolist()
        else:
            self.units = list(units)
        own = set(self.units)
        self._others = [unit for unit in range(count) if unit not in own]
        self.labels: list[Unit] = [*self.units, *([REST] if self._others else [])]

    def group(self, rows: Tensor) -> Tensor:
        """Sum ``(n, elements)`` over the elements of each node, ``(n, nodes)``."""
        return self.gather(self.layout.per_unit(rows))

    def gather(self, per_unit: Tensor) -> Tensor:
        """Sum ``(n, units)`` over the units of each node, ``(n, nodes)``."""
        chosen = per_unit[:, self.units]
        if not self._others:
            return chosen
        return torch.cat([chosen, per_unit[:, self._others].sum(1, keepdim=True)], 1)

    def cut(self, v: Tensor, node: int) -> Tensor:
        """A gradient ``(rows, …)`` on one node alone, zero elsewhere."""
        if node < len(self.units):
            index = neuron_of(self.layout, self.units[node]).index
            result = torch.zeros_like(v)
            result[index] = v[index]
            return result
        result = v.clone()
        for unit in self.units:
            result[neuron_of(self.layout, unit).index] = 0.0
        return result


class Edges:
    """Edges between nodes of all layers over rows: one pull-back for each node.

    Called with rows it gives one block for each pair of the wiring, nodes of the source × nodes of the layer.

    Parameters
    ----------
    engine
        Runs the rows.
    wiring
        Which layers feed which.
    features
        What counts as one input.
    columns
        Nodes of each layer.
    rows
        Rows of a call at most.
    """

    def __init__(
        self, engine: Engine, wiring: Wiring, features: Features, columns: Sequence[Column], rows: int
    ) -> None:
        self.engine = engine
        self.wiring = wiring
        self.features = features
        self.columns = columns
        self.rows = rows
        self._axes = [info.point.batch_axis for info in engine.points]
        layouts = [column.layout for column in columns]
        self.weights = ThroughWeights(engine.points, layouts, wiring, engine.modules)

    def __call__(self, batch: Rows) -> list[Tensor]:
        """Run the rows."""
        open_: dict[tuple[int, int, int], Parts] = {}
        closed: dict[tuple[int, int, int], Tensor] = {}
        increments: dict[int, Increments] = {}
        for call, held in held_calls(self.engine, batch, self.rows):
            increments = increments or self._increments(batch, held)
            for key, parts in self._pulled(batch, call, held, increments):
                if call == slice(0, len(batch.paths)):
                    closed[key] = parts.closed()
                else:
                    open_[key] = open_[key] + parts if key in open_ else parts
        closed |= {key: parts.closed() for key, parts in open_.items()}
        blocks = []
        for source, layer in self.wiring.pairs:
            nodes = range(self._count(layer))
            blocks.append(torch.stack([closed[source, layer, node] for node in nodes], 3).flatten(2))
        return blocks

    def _count(self, layer: int) -> int:
        return len(self.columns[layer].labels) if layer < len(self.columns) else 1

    def _increments(self, batch: Rows, held: Held) -> dict[int, Increments]:
        """Increments of every layer over all rows, and of the path itself for the input."""
        before = {sources[0] for layer, sources in enumerate(self.wiring.sources) if layer in self.weights}
        activations = [self._activations(held)]
        for call in list(batch.calls(self.rows))[1:]:
            activations.append(self._activations(self.engine.hold(batch.paths[call], batch.alphas[call])))
        found = {
            layer: batch.increments(torch.cat(parts) if len(parts) > 1 else parts[0], with_error=layer in before)
            for layer, parts in enumerate(zip(*activations, strict=True))
        }
        return found | {INPUT: batch.along(self.engine.path.device, self.engine.path.dtype)}

    def _activations(self, held: Held) -> list[Tensor]:
        found = []
        for info, tensor, axis in zip(self.engine.points, held.tensors, self._axes, strict=True):
            if tensor is None:
                raise ConductanceError(
                    f"layer {info.name!r} did not run, though it did when the model was tried first: the model's "
                    "control flow depends on its data, so that rows differ in what they run; leave the layer out"
                )
            found.append(tensor.detach().movedim(axis, 0).reshape(tensor.shape[axis], -1))
        return found

    def _pulled(
        self, batch: Rows, call: slice, held: Held, increments: dict[int, Increments]
    ) -> list[tuple[tuple[int, int, int], Parts]]:
        """Edges of rows that are held, by source, layer and node of the layer."""
        path, last = self.engine.path, len(self.columns)
        examples = torch.as_tensor(batch.paths[call], device=path.device) // path.per_example
        gradients: dict[int, Tensor] = {}
        found = []
        with Blocked(held, self.wiring, self._axes) as blocked:
            for layer in reversed(range(last + 1)):
                if layer in self.weights and layer in gradients and self._count(layer) > 1:
                    found += self._weighed(layer, blocked, gradients, increments, call)
                    continue
                for node in range(self._count(layer)):
                    arrived = {}
                    if layer == last:
                        arrived = blocked.pull(layer, None)
                    elif layer in gradients:
                        arrived = blocked.pull(layer, self.columns[layer].cut(gradients[layer], node))
                    for source in self.wiring.sources[layer]:
                        gradient = arrived.get(source)
                        if isinstance(gradient, Tensor):
                            gradients[source] = gradients[source] + gradient if source in gradients else gradient
                        parts = self._integrate(source, gradient, held, examples, increments[source], call.start)
                        found.append(((source, layer, node), parts))
        return found

    def _weighed(
        self,
        layer: int,
        blocked: Blocked,
        gradients: dict[int, Tensor],
        increments: dict[int, Increments],
        call: slice,
    ) -> list[tuple[tuple[int, int, int], Parts]]:
        """Edges through the weight between a layer and its source; one pull-back takes the whole gradient on."""
        (source,) = self.wiring.sources[layer]
        arrived = blocked.pull(layer, gradients[layer])[source]
        assert isinstance(arrived, Tensor)
        gradients[source] = gradients[source] + arrived if source in gradients else arrived
        into, out_of = self.columns[layer].gather, self.columns[source].gather
        several = self.weights.edges(layer, source, gradients[layer], increments[source], call, into, out_of)
        return [((source, layer, node), parts) for node, parts in enumerate(several)]

    def _integrate(
        self,
        source: int,
        gradient: Tensor | list[Tensor | None] | None,
        held: Held,
        examples: Tensor,
        increments: Increments,
        first: int,
    ) -> Parts:
        if isinstance(gradient, Tensor):
            return increments.integrate(gradient.reshape(len(gradient), -1), self.columns[source].group, first)
        rows = len(examples)
        if source != INPUT:
            size = increments.value.shape[1]
            return increments.integrate(increments.value.new_zeros(rows, size), self.columns[source].group, first)
        moved = [
            None if one is None else one * direction
            for one, direction in zip(gradient or [None] * len(held.leaves), held.directions, strict=True)
        ]
        if all(one is None for one in moved):
            step = increments.value.new_zeros(rows, self.features.count)
        else:
            step = self.features.sums(moved, examples)
        return increments.integrate(step, as_it_is, first)
