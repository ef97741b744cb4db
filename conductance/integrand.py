"""The integrand of total conductance along the path, with the output and its gradient at the same places.

At ``steps`` equidistant places ``a_k`` from baseline to input: ``F``, the norm ``|dF/dx|`` (the interior gradients of
1611.02639) and, for each layer, ``Σ_j v_j dy_j/da``. Its derivative is the difference of activations between the
neighbours of a node,

    g_k = Σ_j v_j(a_k) (y_j(a_{k+1}) - y_j(a_{k-1})) / (a_{k+1} - a_{k-1}),

one-sided at the ends, so that the trapezoids of ``g`` over ``a`` are the trapezoids of ``v`` over ``y``: the curve
integrates to the layer's ``Σ C`` on these nodes, but for rounding, however steep it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conductance._progress import progress_bar
from conductance._reporting import settings_of
from conductance._requests import checked_rules
from conductance.arguments import Inputs
from conductance.baselines import Baseline
from conductance.ends import true_outputs
from conductance.engine import Engine, check_finite, non_finite
from conductance.hooks import LayerSpec
from conductance.running import Prepared, bytes_of_row, ends_of_rule, prepared, roundoff, rows_of_call
from conductance.sums import wide_dtype, work_dtype
from conductance.targeting import Target

Floats = NDArray[np.float64]
#: A budget that nothing asks for: the number of evaluations is given.
MOST_EVALUATIONS = 10_000


@dataclass(frozen=True, eq=False)
class PathCurves:
    """What happens along the path of each example; of several baselines the mean.

    Attributes
    ----------
    alphas
        Places on the path, 0 at the baseline and 1 at the input, ``(steps,)``.
    output
        ``F``, ``(batch, steps)``; NaN for an example that was interrupted, as in the others.
    gradient_norm
        Euclidean norm of the gradient of ``F`` by all that moves, ``(batch, steps)``.
    integrand
        Per hook point ``Σ_j v_j dy_j/da``, ``(batch, steps)``: its trapezoids over ``alphas`` sum to ``Σ C``.
    settings
        How they were computed.
    """

    alphas: Floats
    output: Floats
    gradient_norm: Floats
    integrand: dict[str, Floats]
    settings: dict[str, Any]


def path_curves(
    model: Callable[..., Any],
    inputs: Inputs,
    layers: LayerSpec = None,
    *,
    target: Target = None,
    baselines: Baseline | list[Any] = None,
    additional_forward_args: Any = None,
    fixed: Any = (),
    path_from: LayerSpec = None,
    steps: int = 65,
    internal_batch_size: int | None = None,
    on_train: Literal["error", "warn"] = "error",
    progress: bool = False,
) -> PathCurves:
    """Output, gradient norm and integrand of each layer, at ``steps`` equidistant places of each path.

    Parameters are those of `conductance.total_conductance`, and so are the errors raised; ``steps`` is at least 2.
    """
    _check_steps(steps)
    rules = checked_rules(None, 0.0, None, MOST_EVALUATIONS, internal_batch_size)
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
    ) as ready:
        walk = _Walk(ready, steps, rules.rows)
        with progress_bar(progress, "path", "example", total=ready.path.batch) as bar:
            try:
                for examples in walk.run():
                    bar.update(examples)
            except KeyboardInterrupt:
                pass  # the examples that are missing are NaN
        settings = settings_of(ready, rules, steps, target, baselines)
    return walk.curves(settings | {"quantity": "path_curves", "internal_batch_size": walk.rows})


def _check_steps(steps: object) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"steps is {steps!r}; expected a whole number of at least 2, such as 65")
    if steps < 2:
        raise ValueError(f"steps is {steps}; expected at least 2: the ends of the path")


class _Walk:
    """Runs all places of all paths and keeps what the curves are made of, on the host."""

    def __init__(self, ready: Prepared, steps: int, rows: int) -> None:
        layouts = ready.layouts + ready.leaves
        self.names = [info.name for info in ready.points]
        self.path = ready.path
        self.rows = rows or rows_of_call(bytes_of_row(layouts))
        self.engine = Engine(
            ready.model, ready.selection.modules, ready.points, ready.path, ready.function, ready.fewest
        )
        self.alphas = np.linspace(0.0, 1.0, steps)
        self.ends = ends_of_rule(ready.kinked, float(roundoff(layouts).max()))
        self.nodes = self.ends[0] + (self.ends[1] - self.ends[0]) * self.alphas
        shape = (ready.path.batch * ready.path.per_example, steps)
        self.output = np.full(shape, np.nan)
        self.squares = np.zeros(shape)
        self.increments = np.zeros((len(self.names), *shape))

    def run(self) -> Iterator[int]:
        """Work through the paths, as many in one call as fit, or one in several calls; gives examples done."""
        steps, each = len(self.alphas), self.path.per_example
        together = max(1, self.rows // steps)
        for start in range(0, len(self.output), together):
            paths = np.arange(start, min(start + together, len(self.output)))
            chunk = _Chunk(self, slice(start, start + len(paths)))
            for begin in range(0, steps, max(1, self.rows // len(paths))):
                chunk.nodes = slice(begin, min(begin + max(1, self.rows // len(paths)), steps))
                self._call(paths, chunk)
            check_finite(self.engine.points, np.abs(self.increments[:, paths]).sum(2).T)
            if self.ends != (0.0, 1.0):
                self.output[start : start + len(paths), [0, -1]] = true_outputs(self.engine, paths, self.rows)
            yield (start + len(paths)) // each - start // each

    def _call(self, paths: NDArray[np.int64], chunk: _Chunk) -> None:
        alphas = self.nodes[chunk.nodes]
        which, places = np.repeat(paths, len(alphas)), np.tile(alphas, len(paths))
        found = self.engine.run(which, places, chunk)
        bad = ~(np.isfinite(found.output) & np.isfinite(found.slope))
        if bad.any():
            raise non_finite(self.engine, which[bad], places[bad])
        self.output[chunk.paths, chunk.nodes] = found.output.reshape(len(paths), -1)

    def curves(self, settings: dict[str, Any]) -> PathCurves:
        """Means over the paths of each example."""
        gaps = np.diff(self.alphas)
        widths = np.concatenate([gaps[:1], gaps[1:] + gaps[:-1], gaps[-1:]])
        unfinished = np.isnan(self.output).any(1)

        def mean(values: Floats) -> Floats:
            values = np.where(unfinished[:, None], np.nan, values)
            return np.asarray(values.reshape(self.path.batch, -1, len(self.alphas)).mean(1))

        return PathCurves(
            alphas=self.alphas,
            output=mean(self.output),
            gradient_norm=mean(np.sqrt(self.squares)),
            integrand={name: mean(own / widths) for name, own in zip(self.names, self.increments, strict=True)},
            settings=settings,
        )


class _Chunk:
    """Consumer of the calls of some paths; carries the last node of a call over to the next."""

    def __init__(self, walk: _Walk, paths: slice) -> None:
        self.walk = walk
        self.paths = paths
        self.nodes = slice(0, 0)
        self._carried: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, point: int, activation: Tensor, gradient: Tensor) -> None:
        """Add what a node and its neighbours give, or the square of the gradient by what moves."""
        shape = (self.paths.stop - self.paths.start, self.nodes.stop - self.nodes.start, -1)
        y, v = (tensor.to(work_dtype(tensor.dtype)).reshape(shape) for tensor in (activation, gradient))
        if point >= len(self.walk.names):
            self.walk.squares[self.paths, self.nodes] += _summed(v, v)
            return
        first = self.nodes.start
        if point in self._carried:
            before = self._carried[point]
            y, v, first = torch.cat([before[0], y], 1), torch.cat([before[1], v], 1), first - 1
        rise = y[:, 1:] - y[:, :-1]
        kept = self.walk.increments[point, self.paths]
        kept[:, first : self.nodes.stop - 1] += _summed(v[:, :-1], rise)
        kept[:, first + 1 : self.nodes.stop] += _summed(v[:, 1:], rise)
        if self.nodes.stop < len(self.walk.alphas):
            self._carried[point] = y[:, -1:].clone(), v[:, -1:].clone()


def _summed(one: Tensor, other: Tensor) -> Floats:
    """Products of ``(paths, nodes, elements)``, summed over elements, on the host."""
    found: Floats = (one * other).sum(2, dtype=wide_dtype(one.device)).cpu().double().numpy()
    return found
