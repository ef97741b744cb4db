"""Edges through a linear map or a convolution, all at once from its weight: no pull-back for each unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from conductance.flow_graph import Wiring
from conductance.hooks import PointInfo
from conductance.increments import Increments, Parts
from conductance.sums import Layout, wide_dtype
from conductance.weighing import products, refusal, weight_info, weight_of

#: Sums ``(n, units)`` over the units of each node, ``(n, nodes)``.
Gathering = Callable[[Tensor], Tensor]


class ThroughWeights:
    """Which layers are one side of a weight with its other side as their only source, and the edges between them.

    Parameters
    ----------
    points, layouts
        The layers asked.
    wiring
        Which feed which.
    modules
        The modules of the points by name.
    """

    def __init__(
        self,
        points: tuple[PointInfo, ...],
        layouts: list[Layout],
        wiring: Wiring,
        modules: Mapping[str, nn.Module],
    ) -> None:
        self._modules: dict[int, Any] = {}
        self._shapes = [layout.shape for layout in layouts]
        for layer, info in enumerate(points):
            point, sources = info.point, wiring.sources[layer]
            module = modules[point.module]
            if layer not in wiring.one_product or point.side != "out" or refusal(module) is not None:
                continue
            ends = layouts[sources[0]], layouts[layer]
            axis = 0 if isinstance(module, nn.modules.conv._ConvNd) else -1
            info_of = weight_info("", module)
            sizes = info_of.shape[:2] if info_of.input_first else info_of.shape[1::-1]
            fits = all(
                one.shape and one.unit_groups is None and one.unit_axis == axis % len(one.shape)
                and one.shape[axis] == size
                for one, size in zip(ends, sizes, strict=True)
            )  # fmt: skip
            same = len(ends[0].shape) == len(ends[1].shape) and (axis == 0 or ends[0].shape[:-1] == ends[1].shape[:-1])
            first = points[sources[0]].point.batch_axis == point.batch_axis == 0
            if fits and same and first and info_of.groups == 1:
                self._modules[layer] = module

    def __contains__(self, layer: int) -> bool:
        return layer in self._modules

    def edges(
        self,
        layer: int,
        source: int,
        gradient: Tensor,
        increments: Increments,
        rows: slice,
        into: Gathering,
        out_of: Gathering,
    ) -> list[Parts]:
        """Edges into each node of a layer, from the nodes of its source.

        Parameters
        ----------
        layer, source
            The layer and its source.
        gradient
            At the layer, ``(rows, …)``.
        increments
            Of the source over all rows, with their errors.
        rows
            Which of all rows these are.
        into, out_of
            Sum units to nodes, at the layer and at the source.
        """
        module = self._modules[layer]
        info, weight = weight_info("", module), weight_of(module)
        slots = increments.slots[rows]
        found = []
        for one in (increments.value, *increments.errors):
            steps = one.reshape(len(one), *self._shapes[source])[rows]
            v = gradient.to(steps.dtype)
            matrices = []
            for slot in range(increments.examples):
                own = slots == slot
                product = products(module, steps[own], v[own]) * weight.to(steps.dtype)
                units = product.reshape(*product.shape[:2], -1).sum(2)
                matrix = units if info.input_first else units.T  # (inputs, outputs)
                matrices.append(out_of(into(matrix).T).T)
            found.append(torch.stack(matrices).to(wide_dtype(v.device)))  # (examples, source nodes, nodes)
        value, fine, coarse = found
        places = torch.arange(increments.examples, device=value.device)
        return [
            Parts(value[..., node], [(places, [fine[..., node], coarse[..., node]])]) for node in range(value.shape[2])
        ]
