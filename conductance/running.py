"""One run of a model for its conductances: what was asked made ready, machinery of the right size, the result.

Every quantity begins with total conductance to a tolerance; this is what they share. It also decides where on each path
the model is evaluated: the quantities that take more than one backward pass a row follow the same nodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from conductance._progress import progress_bar
from conductance._requests import check_mode, fewest_rows, named_points, usable_points
from conductance.arguments import Arguments, Inputs
from conductance.baselines import Baseline
from conductance.collecting import Collector
from conductance.confidence import warn_if_confident
from conductance.diagnosis import diagnosed
from conductance.engine import Change, Engine
from conductance.errors import check_choice
from conductance.fixed import FixedRule
from conductance.flights import Rules
from conductance.hooks import LayerSpec, PointInfo, Probe, Selection, select, undisturbed, usable_by_autograd
from conductance.inner_path import InnerPath, found_point
from conductance.kinked import Kinked
from conductance.obstacles import causes_named, check_not_quantised
from conductance.path import StraightPath
from conductance.quadrature import PathRule
from conductance.refinement import Refinement
from conductance.results import LayerInfo, TotalConductance
from conductance.smooth import Smooth
from conductance.store import NodeStore
from conductance.sums import Layout, RunningSums
from conductance.targeting import Target, TargetFunction, target_function
from conductance.trying import that_ran, tried

#: Bytes of tapped tensors that one call may hold when the user names no size.
CALL_BYTES = 1 << 28
#: Rows of a call when the user names no size, at most.
MOST_ROWS = 1024
#: Bound of the node store, in bytes.
STORE_BYTES = 1 << 28


@dataclass(frozen=True)
class Prepared:
    """A model, its inputs and the layers asked, tried once and found usable.

    Attributes
    ----------
    model, selection
        The model and the modules that were asked.
    path, function
        The path of the inputs, and the target as a function of output and example numbers.
    found, points, left_out
        What the probe found, the points that can be explained, and the names of those that cannot.
    fewest
        Rows that a call needs at least.
    change, tapped
        Change of what the points deliver, with the batch axis first, before it is integrated (see
        :class:`~conductance.engine.Engine`), and the points as they are in the model, if they differ from `points`.
    fold
        What the result sums up of each point's conductance, if it does; the spread over baselines is that of the sums.
    """

    model: Callable[..., Any]
    selection: Selection
    path: StraightPath
    function: TargetFunction
    found: Probe
    points: list[PointInfo]
    left_out: list[str]
    fewest: int
    change: Change | None = None
    tapped: list[PointInfo] | None = None
    fold: Callable[[Tensor], Tensor] | None = None

    @property
    def kinked(self) -> bool:
        """Whether the function has kinks."""
        return bool(self.found.kinked)

    @property
    def layouts(self) -> list[Layout]:
        """Shapes of the points."""
        return [layout_of(info) for info in self.points]

    @property
    def leaves(self) -> list[Layout]:
        """Shapes of the inputs that move."""
        return [_leaf_layout(self.path.ends[key]) for key in self.path.moving]


@contextmanager
def prepared(
    model: Callable[..., Any],
    inputs: Inputs,
    layers: LayerSpec,
    *,
    target: Target,
    baselines: Baseline | list[Any],
    additional_forward_args: Any,
    fixed: Any,
    path_from: LayerSpec,
    on_train: Literal["error", "warn"],
    most: int,
) -> Iterator[Prepared]:
    """Check what was asked and try the model; within the context it is in the state to run in.

    ``most`` is the rows that the user allows a call, 0 for any number; else as for total conductance.
    """
    check_choice("on_train", on_train, ("error", "warn"))
    modules = select(model, layers, tentative=True).modules  # taps are known once the model has run
    check_not_quantised(model, modules)
    noisy = check_mode(model, modules, on_train)
    inputs, baselines, additional_forward_args = usable_by_autograd((inputs, baselines, additional_forward_args))
    arguments = Arguments(inputs, additional_forward_args, fixed)
    inner = found_point(model, arguments, path_from)
    with causes_named(), undisturbed(model, {**modules, **(inner.modules if inner else {})}):
        path = InnerPath(model, arguments, baselines, inner, most) if inner else StraightPath(arguments, baselines)
        with path.watched():
            function = target_function(target, path.batch)
            warn = None if noisy else on_train == "warn"
            selection, found = tried(model, layers, path, function, most=most, warn=warn)
            if not (noisy or target is None or callable(target)):
                warn_if_confident(model, path, function, most)
            ran = partial(that_ran, model, selection, path)
            points, left_out = usable_points(found, named_points(layers, selection), ran)
            yield Prepared(model, selection, path, function, found, points, left_out, fewest_rows(noisy))


class Run:
    """One run to a tolerance, or at a fixed number of nodes: sizes, machinery, result.

    Parameters
    ----------
    ready
        What to run.
    rules
        Tolerance and budgets.
    n_steps
        Nodes of each path, if their number is given.
    judge_leaves
        Whether the tolerance also holds for integrated gradients of the inputs.

    Attributes
    ----------
    engine, layouts, rows
        The engine, the shapes of the points, and the rows of a call at most.
    """

    def __init__(self, ready: Prepared, rules: Rules, n_steps: int | None, *, judge_leaves: bool = False) -> None:
        points, path = ready.points, ready.path
        self.points = points
        self.path = path
        self.folded = ready.fold is not None
        layouts, leaves = ready.layouts, ready.leaves
        row_bytes = bytes_of_row(layouts + leaves)
        self.rows = rules.rows or rows_of_call(row_bytes)
        rules = Rules(rules.rtol, rules.atol, rules.max_evaluations, self.rows)
        per_example = path.per_example
        share = self.rows // n_steps if n_steps is not None else self.rows // 16
        flights = max(1, min(path.batch, share // per_example))
        kinked = ready.kinked
        tapped = ready.tapped or points
        self.engine = engine = Engine(
            ready.model, ready.selection.modules, tapped, path, ready.function, ready.fewest, ready.change
        )
        self.layouts = layouts
        self.collector = Collector(layouts, path.batch, spread=per_example > 1, fold=ready.fold)
        few = n_steps is not None and n_steps <= min(self.rows, 64)
        sums = RunningSums(layouts + leaves, flights, per_example, wide=not few)
        precision = roundoff(layouts + leaves)
        ends = ends_of_rule(kinked, float(precision.max()))
        self.diagnosis: list[dict[str, Any]] = []
        self._method: FixedRule | Refinement
        if n_steps is not None:
            self._method = FixedRule(
                engine, sums, self.collector, rules, n_steps,
                kinked=kinked, flights=flights, precision=precision, ends=ends,
            )  # fmt: skip
            return
        needed = flights * per_example * min(rules.max_evaluations, 2048)
        store = NodeStore(layouts + leaves, int(min(needed, STORE_BYTES // max(1, 2 * row_bytes))))
        scheme = (
            Kinked(layouts + leaves, sums, store, float(precision.max()))
            if kinked
            else Smooth(layouts + leaves, sums, store)
        )
        self._method = Refinement(
            engine, sums, scheme, self.collector, rules, flights, precision, ends, judge_leaves=judge_leaves
        )

    def execute(self, progress: bool, examples: Sequence[int] | None = None) -> bool:
        """Run all examples, or some, to the end, or until the user interrupts; whether that happened."""
        every = range(self.path.batch)
        with progress_bar(progress, "conductance", "example", total=len(examples or every)) as bar:
            try:
                if progress:
                    self.engine.ran = partial(_show, bar)
                if isinstance(self._method, FixedRule):
                    self._method.run(bar.update, every)
                else:
                    self._method.run(bar.update, every if examples is None else examples)
                if examples is None:
                    self.diagnosis = diagnosed(self.engine, self.collector, self.rows)
            except KeyboardInterrupt:
                return True
        return False

    def keep_rules(self) -> dict[int, PathRule]:
        """Ask for the nodes and panels of every path, filled in as examples are done."""
        return self._method.keep_rules()

    def result(self, settings: dict[str, Any]) -> TotalConductance:
        """The labelled result."""
        taken, device = self.collector, self.path.device
        names = [info.name for info in self.points]
        dtype = torch.float32 if device.type == "mps" else torch.promote_types(self.path.dtype, torch.float32)

        def numbers(values: Any) -> Tensor:
            return torch.as_tensor(values).to(device=device, dtype=dtype)

        return TotalConductance(
            conductance=dict(zip(names, taken.conductance, strict=True)),
            unit_error=dict(zip(names, taken.unit_error, strict=True)),
            error={name: numbers(error) for name, error in zip(names, taken.error, strict=True)},
            info={info.name: layer_info(info, layout) for info, layout in zip(self.points, self.layouts, strict=True)},
            output=numbers(taken.output),
            baseline_output=numbers(taken.baseline_output),
            unattributed=numbers(taken.residual),
            status=tuple(taken.status),
            jumps=tuple(taken.jumps),
            evaluations=torch.as_tensor(taken.evaluations).to(device),
            converged=torch.as_tensor(taken.converged).to(device),
            spread=None if self.folded else self.spread,
            settings=settings | ({"diagnosis": self.diagnosis} if self.diagnosis else {}),
        )

    @property
    def spread(self) -> dict[str, Tensor] | None:
        """Standard deviation over several baselines, of each layer; summed up as the points say, unlike a result."""
        if self.collector.spread is None:
            return None
        return dict(zip((info.name for info in self.points), self.collector.spread, strict=True))


def _show(bar: Any, evaluations: int) -> None:
    """Show how many rows have been run: examples take many calls each."""
    bar.set_postfix(evaluations=evaluations, refresh=False)
    if time.perf_counter() - getattr(bar, "shown", 0.0) > 0.1:
        bar.shown = time.perf_counter()
        bar.refresh()


def layout_of(info: PointInfo) -> Layout:
    """Shape of a point as the sums see it."""
    batch, shape = info.point.batch_axis, list(info.shape)
    del shape[batch]
    unit = info.point.unit_axis
    none = unit is None or unit == batch or not shape
    axis = None if none or unit is None else unit - (unit > batch)
    return Layout(tuple(shape), axis, info.point.unit_groups, info.dtype, info.device)


def _leaf_layout(leaf: Tensor) -> Layout:
    return Layout(tuple(leaf.shape[1:]), None, None, leaf.dtype, leaf.device)


def layer_info(info: PointInfo, layout: Layout) -> LayerInfo:
    """What a result says of a point."""
    return LayerInfo(
        name=info.name,
        module_type=info.module_type,
        shape=layout.shape,
        unit_axis=0 if layout.unit_axis is None else layout.unit_axis + 1,
        unit_groups=layout.unit_groups,
        is_cut=bool(info.is_cut),
        moves=info.moves,
        used=info.used,
    )


def bytes_of_row(layouts: Sequence[Layout]) -> int:
    """Bytes that one row takes of the points given."""
    return sum(layout.size * layout.dtype.itemsize for layout in layouts)


def rows_of_call(row_bytes: int) -> int:
    """Rows of a call where the user names no size."""
    return max(1, min(MOST_ROWS, CALL_BYTES // max(1, row_bytes)))


def roundoff(layouts: Sequence[Layout]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Unit roundoff of each point, ``(points,)``."""
    return np.array([float(torch.finfo(layout.dtype).eps) / 2 for layout in layouts])


def ends_of_rule(kinked: bool, precision: float) -> tuple[float, float]:
    """First and last place of a rule on the path: a little inside where an end may lie on a kink."""
    if not kinked:
        return 0.0, 1.0
    inside = 1e-12 if precision < 1e-12 else 1e-6
    return inside, 1.0 - inside
