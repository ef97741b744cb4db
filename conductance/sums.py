"""Running sums of the paths in flight.

Three sums are kept for every element of every hook point: the conductance so far, the signed estimate of its error,
and the sum of squares of the local estimates. A refinement changes them by what the new panels give minus what the
old one gave. They are float64 wherever the device has it, for the squares fall by many orders of magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Elements that one step of a reduction works on, so that its buffers stay in the processor's cache.
BLOCK = 1 << 17
#: Factor on the root of the sum of squares of the local estimates: errors of panels are taken as independent.
SPREAD = 2.0


def wide_dtype(device: torch.device) -> torch.dtype:
    """Precision of sums on a device: float64 where there is one."""
    return torch.float32 if device.type == "mps" else torch.float64


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision inside a panel: the tensor's own, at least float32."""
    return torch.promote_types(dtype, torch.float32)


class Workspace:
    """Buffers that are used again and again: fresh memory for every step costs more than the arithmetic on it."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Uninitialised tensor of a shape; a later call of the same name may hand out the same memory."""
        size = math.prod(shape)
        key = (name, dtype, device)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[key] = torch.empty(size, dtype=dtype, device=device)
        return buffer[:size].view(shape)


@dataclass(frozen=True)
class Layout:
    """Shape of one hook point as the sums see it.

    Attributes
    ----------
    shape
        Shape of one row, without the batch axis.
    unit_axis
        Axis of the units in ``shape``; None if a row is one number.
    unit_groups
        Number of groups that the unit axis is divided into; None for one unit each.
    dtype, device
        Of the activation.
    """

    shape: tuple[int, ...]
    unit_axis: int | None
    unit_groups: int | None
    dtype: torch.dtype
    device: torch.device

    @property
    def size(self) -> int:
        """Elements of a row."""
        return int(np.prod(self.shape, dtype=np.int64))

    def per_unit(self, rows: Tensor) -> Tensor:
        """Sum ``(rows, elements)`` over positions: ``(rows, units)``."""
        if self.unit_axis is None:
            return rows.sum(1, keepdim=True)
        full = rows.reshape(len(rows), *self.shape).movedim(self.unit_axis + 1, 1)
        units = self.unit_groups or full.shape[1]
        return full.reshape(len(rows), units, self.size // max(1, units)).sum(2)


@dataclass
class Summary:
    """Figures of examples in flight that decisions are taken on, each ``(examples, points)``.

    Attributes
    ----------
    scale
        ``Σ|C|`` over elements.
    estimate
        Estimated ``Σ|error|`` over elements.
    total
        ``Σ C``.
    """

    scale: NDArray[np.float64]
    estimate: NDArray[np.float64]
    total: NDArray[np.float64]


class RunningSums:
    """Sums of ``slots`` paths for every point; ``paths`` slots in a row belong to one example.

    Parameters
    ----------
    layouts
        The points.
    examples
        How many examples are in flight at most.
    paths
        Paths (baselines) of an example.
    wide
        Keep sums in float64 where there is one; otherwise in the working precision of each point, which is enough
        for the few panels of one call.
    """

    def __init__(self, layouts: Sequence[Layout], examples: int, paths: int, *, wide: bool = True) -> None:
        self.layouts = layouts
        self.paths = paths
        self._sums = []
        for layout in layouts:
            dtype = wide_dtype(layout.device) if wide else work_dtype(layout.dtype)
            size = (3, examples * paths, layout.size)
            self._sums.append(torch.zeros(size, dtype=dtype, device=layout.device))

    def add(self, point: int, slots: Tensor, across: slice, *rows: Tensor) -> None:
        """Add value, signed and square of some elements to the sums of their slots; slots may repeat."""
        for kept, some in zip(self._sums[point], rows, strict=True):
            if len(slots) == 1:
                kept[int(slots[0]), across] += some[0]
            else:
                kept[:, across].index_add_(0, slots.to(kept.device), some.to(kept.dtype))

    def replace(self, point: int, slots: Tensor, across: slice, signed: Tensor, square: Tensor) -> None:
        """Set the estimates of some elements; the slots differ."""
        for kept, some in zip(self._sums[point][1:], (signed, square), strict=True):
            kept[slots.to(kept.device), across] = some.to(kept.dtype)

    def part(self, point: int, slots: slice, across: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Value, signed and square of some elements, to be added to in place."""
        value, signed, square = self._sums[point][:, slots, across].unbind(0)
        return value, signed, square

    def clear(self, example_slot: int) -> None:
        """Empty the slots of an example."""
        for sums in self._sums:
            sums[:, self._range(example_slot)] = 0.0

    def value(self, point: int, example_slot: int) -> Tensor:
        """Conductance of the paths of an example, ``(paths, elements)``."""
        return self._sums[point][0, self._range(example_slot)]

    def estimate(self, point: int, example_slot: int) -> Tensor:
        """Estimated absolute error of an example's units, ``(units,)``."""
        _, signed, square = self._mean(point, [example_slot])
        layout = self.layouts[point]
        return _bound(layout.per_unit(signed), layout.per_unit(square))[0]

    def summary(self, example_slots: Sequence[int]) -> Summary:
        """Figures of the given examples over all points."""
        shape = (len(example_slots), len(self.layouts))
        result = Summary(*(np.zeros(shape) for _ in range(3)))
        for point, layout in enumerate(self.layouts):
            step = max(1, BLOCK // max(1, 2 * layout.size * self.paths))
            for first in range(0, len(example_slots), step):
                part = slice(first, first + step)
                figures = self._figures(point, example_slots[part])
                for name, column in zip(Summary.__dataclass_fields__, figures, strict=True):
                    getattr(result, name)[part, point] = column.cpu().numpy()
        return result

    def _figures(self, point: int, example_slots: Sequence[int]) -> tuple[Tensor, ...]:
        value, signed, square = self._mean(point, example_slots)
        return value.abs().sum(1), _bound(signed, square).sum(1), value.sum(1)

    def _mean(self, point: int, example_slots: Sequence[int]) -> Tensor:
        """Sums of the mean over an example's paths, ``(3, examples, elements)``."""
        sums = self._sums[point]
        if self.paths == 1 and len(example_slots) == example_slots[-1] - example_slots[0] + 1:
            return sums[:, example_slots[0] : example_slots[-1] + 1]
        slots = torch.tensor([e * self.paths + m for e in example_slots for m in range(self.paths)], device=sums.device)
        if self.paths == 1:
            return sums.index_select(1, slots)
        mean = sums.index_select(1, slots).reshape(3, len(example_slots), self.paths, -1).mean(2)
        mean[2] /= self.paths  # the variance of a mean
        return mean

    def _range(self, example_slot: int) -> slice:
        return slice(example_slot * self.paths, (example_slot + 1) * self.paths)


def _bound(signed: Tensor, square: Tensor) -> Tensor:
    """The estimate of mathematics: the signed sum over panels, or twice their root sum of squares if larger."""
    return torch.maximum(signed.abs(), square.clamp(min=0.0).sqrt_().mul_(SPREAD))


def blocks(rows: int, elements: int, nodes: int = 1, widest: int = BLOCK) -> list[tuple[slice, slice]]:
    """Cut ``rows × elements`` into parts for which ``nodes`` numbers each make up about BLOCK."""
    room = max(1, BLOCK // nodes)
    across = max(1, min(elements, room, widest))
    step = max(1, room // across)
    return [
        (slice(top, min(top + step, rows)), slice(left, min(left + across, elements)))
        for top in range(0, rows, step)
        for left in range(0, elements, across)
    ]
