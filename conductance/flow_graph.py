"""Which layers feed which directly, and gradients that are pulled back no further than to the next layers.

A pull-back is blocked at every layer asked: what arrives there is kept, and nothing goes on. So an edge between two
layers exists if and only if some way between them crosses no other layer asked, and nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from conductance.engine import Engine, Held
from conductance.hooks import Edge, GraphView, PointInfo, edge_of
from conductance.running import Prepared

#: Number of the target among the layers: the end of every flow. The input is number -1.
INPUT = -1


@dataclass(frozen=True)
class Wiring:
    """Direct sources of each layer, as numbers of the layers asked, with `INPUT` for the input.

    Attributes
    ----------
    sources
        For each layer, and at the end for the target, its direct sources. Layers come in forward order, and behind all
        layers that feed them.
    """

    sources: tuple[tuple[int, ...], ...]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """All (source, layer) pairs; the target has the number of layers."""
        return [(source, layer) for layer, several in enumerate(self.sources) for source in several]


def wired(ready: Prepared, named: set[str]) -> tuple[Prepared, Wiring]:
    """Find out by one row how the layers are wired; leaves out what no flow can go through.

    Parameters
    ----------
    ready
        What was asked.
    named
        Names of the layers that were asked one by one.

    Raises
    ------
    ValueError
        If a layer asked by name does not depend on the inputs, does not reach the target, or is the same tensor as
        another one.
    """
    engine = Engine(ready.model, ready.selection.modules, ready.points, ready.path, ready.function)
    held = engine.hold(np.zeros(2, dtype=np.int64), np.ones(2))
    view = GraphView(held.output.sum(), held.leaves)
    kept: dict[Edge, PointInfo] = {}
    left_out = list(ready.left_out)
    for info, tensor in zip(ready.points, held.tensors, strict=True):
        edge = None if tensor is None or not tensor.requires_grad else edge_of(tensor)
        why = ""
        if edge is None or not view.reached_from_leaf(edge):
            why = "does not depend on the inputs"
        elif not view.reaches_output(edge):
            why = "does not reach the target"
        elif edge in kept and info.name in named and kept[edge].name not in named:
            left_out.append(kept.pop(edge).name)  # the name that was asked for stays
        elif edge in kept:
            why = f"is the same tensor as {kept[edge].name!r}; name one of them"
        if why and info.name in named:
            raise ValueError(f"layers names {info.name!r}, which {why}: nothing flows through it")
        if why or edge is None:
            left_out.append(info.name)
        else:
            kept[edge] = info
    if not kept:
        raise ValueError(f"layers leaves nothing that conductance flows through; left out: {', '.join(left_out)}")
    feeds = {edge: view.direct_sources(edge, kept) & kept.keys() for edge in kept}
    order = _sources_first(feeds)
    number = {edge: place for place, edge in enumerate(order)}
    sources = [
        tuple(sorted({number.get(edge, INPUT) for edge in view.direct_sources(later, kept)}))
        for later in [*order, None]
    ]
    return replace(ready, points=[kept[edge] for edge in order], left_out=left_out), Wiring(tuple(sources))


def _sources_first(feeds: Mapping[Edge, Collection[Edge]]) -> list[Edge]:
    """Bring layers into an order where each comes behind all that feed it, as near to the given one as may be.

    Layers are tapped in the order of the calls that make or take them; a tensor tapped as a late call's input may
    have been made before, and have fed layers that were tapped before it.
    """
    order: list[Edge] = []
    waiting = list(feeds)
    while waiting:
        ready = next(edge for edge in waiting if all(source in order for source in feeds[edge]))
        waiting.remove(ready)
        order.append(ready)
    return order


class Blocked:
    """Pull-backs through rows that are held, each from one layer to its direct sources.

    Parameters
    ----------
    held
        Rows with their graph.
    wiring
        Which layers feed which.
    axes
        Batch axis of each layer.
    """

    def __init__(self, held: Held, wiring: Wiring, axes: Sequence[int]) -> None:
        self._held = held
        self._wiring = wiring
        self._axes = axes
        self._root: int | None = None
        self._arrived: dict[int, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Blocked:
        for layer, tensor in enumerate(self._held.tensors):
            if tensor is not None and tensor.requires_grad:
                self._handles.append(tensor.register_hook(self._stop(layer)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _stop(self, layer: int) -> Callable[[Tensor | None], Tensor | None]:
        def stop(gradient: Tensor | None) -> Tensor | None:
            if gradient is None or layer == self._root:  # None: another tensor of the same operator is pulled back
                return None
            self._arrived[layer] = gradient
            return torch.zeros_like(gradient)

        return stop

    def pull(self, layer: int, cotangent: Tensor | None) -> dict[int, Tensor | list[Tensor | None]]:
        """Gradients at the direct sources of a layer, ``(rows, …)``; of the target if the cotangent is None.

        The input's is a list with one tensor for each leaf.
        """
        held, sources = self._held, self._wiring.sources[layer]
        root = held.output if cotangent is None else self.rows_first(layer, held.tensors[layer])
        self._root, self._arrived = layer, {}
        wanted = [held.tensors[source] for source in sources if source != INPUT]
        inputs = [tensor for tensor in wanted if tensor is not None]
        leaves = held.leaves if INPUT in sources else []
        cotangent = torch.ones_like(held.output) if cotangent is None else cotangent
        found = torch.autograd.grad(root, [*inputs, *leaves], cotangent, retain_graph=True, allow_unused=True)
        gradients: dict[int, Tensor | list[Tensor | None]] = {
            source: self.rows_first(source, gradient).detach() for source, gradient in self._arrived.items()
        }
        if leaves:
            gradients[INPUT] = list(found[len(inputs) :])
        self._root, self._arrived = None, {}
        return gradients

    def rows_first(self, layer: int, tensor: Tensor | None) -> Tensor:
        """The tensor of a layer with its batch axis first."""
        assert tensor is not None
        return tensor.movedim(self._axes[layer], 0)
