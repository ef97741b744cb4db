"""Reverse mode: the gradient of the target is cut to one unit and pulled back to the inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from conductance.engine import Engine, Held
from conductance.features import Features
from conductance.increments import Parts
from conductance.replay import Rows, held_calls
from conductance.units import Neuron


class Pull:
    """Integrals of ``v_j ∂y_j/∂x_i (x_i - x'_i)`` over rows: one backward pass for each neuron.

    Called with rows it gives, for each layer, the integrals of neurons × features, and then, for each layer, the
    total conductance of the neurons on the same nodes.

    Parameters
    ----------
    engine
        Runs the rows.
    features
        What counts as one input.
    selected
        The neurons of each layer.
    rows
        Rows of a call at most.
    """

    def __init__(self, engine: Engine, features: Features, selected: Sequence[list[Neuron]], rows: int) -> None:
        self.engine = engine
        self.features = features
        self.selected = selected
        self.rows = rows

    def __call__(self, batch: Rows) -> list[Tensor]:
        """Run the rows."""
        open_: dict[tuple[int, int], Parts] = {}
        closed: dict[tuple[int, int], Tensor] = {}
        kept = Kept(self.selected, self.engine)
        for call, held in held_calls(self.engine, batch, self.rows):
            along = batch.along(self.engine.path.device, self.engine.path.dtype)
            gradients = self.gradients(held)
            whole = call == slice(0, len(batch.paths))
            for layer in range(len(self.selected)):
                tensor = self.rows_first(layer, held.tensors[layer])
                kept.take(layer, tensor, gradients[layer])
                integrands = self._integrands(layer, tensor, gradients[layer], held, batch, call)
                for number, integrand in enumerate(integrands):
                    parts, key = along.integrate(integrand, as_it_is, call.start), (layer, number)
                    if whole:
                        closed[key] = parts.closed()
                    else:
                        open_[key] = open_[key] + parts if key in open_ else parts
        closed |= {key: parts.closed() for key, parts in open_.items()}
        values = [
            torch.cat([closed[layer, number] for number in range(len(neurons))], 2)
            for layer, neurons in enumerate(self.selected)
        ]
        return values + kept.totals(batch)

    def _integrands(
        self, layer: int, tensor: Tensor | None, v: Tensor | None, held: Held, batch: Rows, call: slice
    ) -> Iterator[Tensor]:
        """``(x - x') v_j ∂y_j/∂x`` of each neuron, summed over features, ``(rows, features)``."""
        path = self.engine.path
        examples = torch.as_tensor(batch.paths[call], device=path.device) // path.per_example
        for neuron in self.selected[layer]:
            if tensor is None or v is None:
                yield held.directions[0].new_zeros(len(examples), self.features.count)
                continue
            cut = torch.zeros_like(v)
            cut[neuron.index] = v[neuron.index]
            pulled = torch.autograd.grad(tensor, held.leaves, cut, retain_graph=True, allow_unused=True)
            yield self._moved(pulled, held, examples)

    def gradients(self, held: Held) -> list[Tensor | None]:
        """``v`` of each layer, ``(rows, …)``; None where the target does not depend on it."""
        return [self.rows_first(layer, one) for layer, one in enumerate(held.backward()[1])]

    def _moved(self, pulled: Sequence[Tensor | None], held: Held, examples: Tensor) -> Tensor:
        moved = [
            None if one is None else one * direction for one, direction in zip(pulled, held.directions, strict=True)
        ]
        if all(one is None for one in moved):
            return held.directions[0].new_zeros(len(examples), self.features.count)
        return self.features.sums(moved, examples)

    def rows_first(self, layer: int, tensor: Tensor | None) -> Tensor | None:
        """The tensor of a layer with its batch axis first."""
        return None if tensor is None else tensor.movedim(self.engine.points[layer].point.batch_axis, 0)


class Kept:
    """Activations and gradients of the rows of some calls, for the total conductance of neurons on the same nodes."""

    def __init__(self, selected: Sequence[list[Neuron]], engine: Engine) -> None:
        self.selected = selected
        self.device, self.dtype = engine.path.device, engine.path.dtype
        self._pairs: list[list[tuple[Tensor, Tensor] | None]] = [[] for _ in selected]

    def take(self, layer: int, tensor: Tensor | None, v: Tensor | None) -> None:
        """Keep the next rows of a layer."""
        self._pairs[layer].append(None if tensor is None or v is None else (tensor.detach(), v))

    def totals(self, batch: Rows) -> list[Tensor]:
        """Total conductance of the neurons of each layer."""
        return [self._total(layer, batch) for layer in range(len(self.selected))]

    def _total(self, layer: int, batch: Rows) -> Tensor:
        neurons = self.selected[layer]
        pairs = [pair for pair in self._pairs[layer] if pair is not None]
        if len(pairs) < len(self._pairs[layer]):
            along = batch.along(self.device, self.dtype)
            nothing = along.value.new_zeros(len(batch.paths), len(neurons))
            return along.integrate(nothing, as_it_is).closed()
        tensor, v = (torch.cat(side) if len(side) > 1 else side[0] for side in zip(*pairs, strict=True))
        shape = tensor.shape[1:]

        def group(rows: Tensor) -> Tensor:
            whole = rows.reshape(len(rows), *shape)
            return torch.stack([neuron.sum(whole) for neuron in neurons], 1)

        increments = batch.increments(tensor.reshape(len(tensor), -1))
        return increments.integrate(v.reshape(len(v), -1), group).closed()


def as_it_is(rows: Tensor) -> Tensor:
    """No grouping."""
    return rows
