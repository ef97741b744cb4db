"""Where finished examples go: the tensors of a result, filled example by example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conductance.sums import Layout, RunningSums, work_dtype

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Finished:
    """What is known of an example when no more rows are run for it.

    Attributes
    ----------
    example, slot
        Its number, and its slot in the sums.
    status, jumps, evaluations, converged
        As in the result.
    residual
        ``dF - Σ C_leaf``.
    error, floor
        Estimated ``Σ|error|`` of each layer, rounding included, and the share of rounding in it.
    limit
        No unit's estimate is larger than this before the factor, for each layer.
    factor
        Factor on the summed estimates of each point.
    output, baseline_output
        F at the input and (mean) at the baselines.
    """

    example: int
    slot: int
    status: str
    jumps: tuple[tuple[float, float, float], ...]
    evaluations: int
    converged: bool
    residual: float
    error: Floats
    floor: Floats
    limit: Floats
    factor: Floats
    output: float
    baseline_output: float


class Collector:
    """Tensors of a result for ``batch`` examples; an example that never finishes stays NaN and "interrupted".

    Parameters
    ----------
    layouts
        The layers asked.
    batch
        Number of examples.
    spread
        Whether to keep the standard deviation over baselines.
    fold
        What is summed up of conductances ``(…, *layer shape)`` before their deviation is taken.
    """

    def __init__(
        self, layouts: Sequence[Layout], batch: int, *, spread: bool, fold: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        def empty(layout: Layout, *shape: int) -> Tensor:
            return torch.full((batch, *shape), torch.nan, dtype=work_dtype(layout.dtype), device=layout.device)

        self.layouts = layouts
        self._fold = fold or _as_it_is
        self.conductance = [empty(layout, *layout.shape) for layout in layouts]
        self.unit_error = [empty(layout, _units(layout)) for layout in layouts]
        self.spread = [self._fold(empty(layout, *layout.shape)) for layout in layouts] if spread else None
        self.error = np.full((len(layouts), batch), np.nan)
        self.output, self.baseline_output, self.residual = (np.full(batch, np.nan) for _ in range(3))
        self.status = ["interrupted"] * batch
        self.jumps: list[tuple[tuple[float, float, float], ...]] = [()] * batch
        self.evaluations = np.zeros(batch, dtype=np.int64)
        self.converged = np.zeros(batch, dtype=bool)

    def finish(self, done: Finished, sums: RunningSums) -> None:
        """Take an example out of the sums."""
        n = done.example
        for point, layout in enumerate(self.layouts):
            paths = sums.value(point, done.slot)
            mean = paths.mean(0)
            scale = float(mean.abs().sum())
            relative = done.floor[point] / scale if scale > 0 else 0.0
            self.conductance[point][n] = mean.reshape(layout.shape).to(work_dtype(layout.dtype))
            estimate = sums.estimate(point, done.slot).clamp(max=float(done.limit[point])) * float(done.factor[point])
            rounding = relative * layout.per_unit(mean[None]).abs()[0]
            self.unit_error[point][n] = (estimate + rounding).to(work_dtype(layout.dtype))
            nothing = np.inf if done.error[point] > 0 else 0.0
            self.error[point, n] = done.error[point] / scale if scale > 0 else nothing
            if self.spread is not None:
                deviation = self._fold(paths.reshape(-1, *layout.shape)).std(0, correction=0)
                self.spread[point][n] = deviation.to(work_dtype(layout.dtype))
        self.status[n], self.jumps[n] = done.status, done.jumps
        self.evaluations[n], self.converged[n] = done.evaluations, done.converged
        self.output[n], self.baseline_output[n], self.residual[n] = done.output, done.baseline_output, done.residual


def _as_it_is(values: Tensor) -> Tensor:
    return values


def _units(layout: Layout) -> int:
    if layout.unit_axis is None:
        return 1
    return layout.unit_groups or layout.shape[layout.unit_axis]
