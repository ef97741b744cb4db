"""Total conductance of every hidden unit: ``C_j = ∫ v_j dy_j`` along the straight path from baseline to input.

``y_j(a)`` is the unit's activation at ``x' + a (x - x')`` and ``v_j(a) = dF/dy_j`` the gradient there. It is the path
integrated gradient of the hidden layer, and the sum over inputs of the neuron conductances of 1805.12233, equation 1.
Over a layer that every way from input to target crosses (a cut) it sums to ``F(x) - F(x')``.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from conductance._requests import PROBED, check_mode, checked_rules, named_points, usable_points
from conductance.collecting import Collector
from conductance.engine import Engine, check_rows, undisturbed
from conductance.errors import ConductanceError, ConvergenceWarning, check_choice
from conductance.fixed import FixedRule
from conductance.hooks import LayerSpec, PointInfo, Probe, Selection, probe, select
from conductance.kinked import Kinked
from conductance.path import Baseline, Inputs, StraightPath
from conductance.refinement import Refinement, Rules
from conductance.results import LayerInfo, TotalConductance
from conductance.smooth import Smooth
from conductance.store import NodeStore
from conductance.sums import Layout, RunningSums
from conductance.targets import Target, TargetFunction, target_function

#: Bytes of tapped tensors that one call may hold when the user names no size.
CALL_BYTES = 1 << 28
#: Rows of a call when the user names no size, at most.
MOST_ROWS = 1024
#: Bound of the node store, in bytes.
STORE_BYTES = 1 << 28


def total_conductance(
    model: Callable[..., Any],
    inputs: Inputs,
    layers: LayerSpec = None,
    *,
    target: Target = None,
    baselines: Baseline | list[Any] = None,
    additional_forward_args: Any = None,
    rtol: float | None = None,
    atol: float = 0.0,
    n_steps: int | None = None,
    max_evaluations: int = 10_000,
    internal_batch_size: int | None = None,
    on_train: Literal["error", "warn"] = "error",
    progress: bool = False,
) -> TotalConductance:
    """Conductance of every unit of many layers at once, to a tolerance.

    Parameters
    ----------
    model
        An ``nn.Module``, or any callable that runs modules if ``layers`` names these as modules.
    inputs
        A tensor ``(batch, …)``, a tuple of positional inputs or a dict of keyword inputs. Floating-point tensors
        move along the path, everything else is handed on as it is.
    layers
        Dotted name (``"act#2"``: the third call, ``"lstm[0]"``: the first tensor of a tuple, ``"fc:in"``: the input),
        glob (``*`` matches dots too), module, type, ``HookPoint`` or a list of these; None is every module without
        children. What a glob, a type or None brings in that never runs or has no batch axis is left out
        (``settings["left_out"]``). Modules of a plain callable are called ``Linear_0``, ``ReLU_1`` and so on.
    target
        What is explained, one number for each example: an index into the output, a tuple of indices, a tensor or
        list of one index for each example, or a callable of the output (or of the output and the example number of
        each row). It receives rows of any examples in any order.
    baselines
        Where the path starts: a number, a tensor, or a callable of the input; a tuple gives one for each input, a
        list gives several to average over. None is zero.
    additional_forward_args
        Further positional arguments of the model; tensors whose first axis is the batch are repeated with the rows.
    rtol, atol
        An example is done when the estimated ``Σ|error|`` of every layer is at most ``rtol · Σ|C| + atol``. None is
        1e-2 unless ``n_steps`` is given.
    n_steps
        Fixed number of evaluations for each example and baseline instead, ends included, at least 2. Networks with
        kinks (ReLU, max-pool) take equidistant nodes and a trapezoid in activation space between neighbours; smooth
        ones take one panel of Chebyshev–Lobatto nodes up to 33, and beyond that panels of equal width with up to 17
        nodes each. The nodes depend on ``n_steps`` alone, so the layers asked do not change the result;
        ``converged`` is then judged by a tolerance of 1e-2.
    max_evaluations
        Rows that one example may cost before it is given up with status "budget".
    internal_batch_size
        Most rows of one model call; examples are split over calls if need be. None chooses from the bytes that the
        tapped tensors take, never from free memory.
    on_train
        What to do where dropout or batch norm is in train mode: "error", or "warn" and go on.
    progress
        Show a progress bar.

    Returns
    -------
    TotalConductance
        A mapping of hook point name to a tensor ``(batch, *layer shape)``, with errors, coverage and status.

    Raises
    ------
    ValueError, TypeError
        For an argument that cannot be used; the message names it.
    ConductanceError
        If the model detaches its output from the input, or NaN or infinity turns up (the layer is named).

    Warns
    -----
    ConvergenceWarning
        If examples do not converge to a tolerance: names status, layers and error. Not with ``n_steps``, where
        ``converged`` and ``error`` tell.

    Notes
    -----
    An evaluation is one row, forward and backward. A keyboard interrupt ends the run early: what is finished is
    returned, the rest is NaN with status "interrupted". Estimates are calibrated for whole layers; a single unit's
    error is above its ``unit_error`` for about one unit in twenty.

    Where the model has kinks the ends of the path are taken 1e-12 of its length inside (1e-6 below float64), since a
    baseline of zeros often lies on a kink.

    References
    ----------
    Dhamdhere, Sundararajan and Yan, How Important Is a Neuron? (1805.12233), section 2; Shrikumar, Su and Kundaje
    (1807.09946), equation 2.

    Examples
    --------
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    >>> x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    >>> total = total_conductance(model, x, target=0, rtol=1e-6)
    >>> list(total)
    ['0', '1', '2']
    >>> bool((total["1"].sum(1) - total.output_change).abs() < 1e-6)
    True
    """
    started = time.perf_counter()
    rules = checked_rules(rtol, atol, n_steps, max_evaluations, internal_batch_size)
    check_choice("on_train", on_train, ("error", "warn"))
    selection = select(model, layers)
    check_mode(model, selection, on_train)
    extra = () if additional_forward_args is None else additional_forward_args
    with undisturbed(model, selection.modules):
        path = StraightPath(inputs, baselines, extra if isinstance(extra, tuple) else (extra,))
        function = target_function(target, path.batch)
        found = _probed(model, selection, path, function)
        points, left_out = usable_points(found, named_points(layers, selection))
        run = _Run(model, selection, points, path, function, found, rules, n_steps)
        interrupted = run.execute(progress)
    result = run.result(
        {
            "quantity": "total_conductance",
            "target": _described(target),
            "baselines": _described(baselines),
            "rtol": None if n_steps is not None else rules.rtol,
            "atol": rules.atol,
            "n_steps": n_steps,
            "left_out": left_out,
            "scheme": "kinked" if found.kinked else "smooth",
            "kinked_operators": list(found.kinked),
            "internal_batch_size": run.rows,
            "interrupted": interrupted,
            "seconds": round(time.perf_counter() - started, 3),
        }
    )
    _warn(result, rules, n_steps)
    return result


class _Run:
    """One call of :func:`total_conductance`: sizes, machinery, result."""

    def __init__(
        self,
        model: Callable[..., Any],
        selection: Selection,
        points: Sequence[PointInfo],
        path: StraightPath,
        function: TargetFunction,
        found: Probe,
        rules: Rules,
        n_steps: int | None,
    ) -> None:
        self.points = points
        self.path = path
        layouts = [_layout(info) for info in points]
        leaves = [_leaf_layout(path.ends[key]) for key in path.moving]
        row_bytes = sum(layout.size * layout.dtype.itemsize for layout in layouts + leaves)
        self.rows = rules.rows or max(1, min(MOST_ROWS, CALL_BYTES // max(1, row_bytes)))
        rules = Rules(rules.rtol, rules.atol, rules.max_evaluations, self.rows)
        per_example = path.per_example
        share = self.rows // n_steps if n_steps is not None else self.rows // 16
        flights = max(1, min(path.batch, share // per_example))
        kinked = bool(found.kinked)
        engine = Engine(model, selection.modules, points, path, function)
        self.layouts = layouts
        self.collector = Collector(layouts, path.batch, spread=per_example > 1)
        few = n_steps is not None and n_steps <= min(self.rows, 64)
        sums = RunningSums(layouts + leaves, flights, per_example, wide=not few)
        precision = np.array([float(torch.finfo(layout.dtype).eps) / 2 for layout in layouts + leaves])
        ends = _ends(kinked, float(precision.max()))
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
        self._method = Refinement(engine, sums, scheme, self.collector, rules, flights, precision, ends)

    def execute(self, progress: bool) -> bool:
        """Run to the end, or until the user interrupts; whether that happened."""
        from tqdm.auto import tqdm

        with tqdm(total=self.path.batch, desc="conductance", unit="example", disable=not progress) as bar:
            try:
                self._method.run(bar.update)
            except KeyboardInterrupt:
                return True
        return False

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
            info={info.name: _layer_info(info, layout) for info, layout in zip(self.points, self.layouts, strict=True)},
            output=numbers(taken.output),
            baseline_output=numbers(taken.baseline_output),
            unattributed=numbers(taken.residual),
            status=tuple(taken.status),
            jumps=tuple(taken.jumps),
            evaluations=torch.as_tensor(taken.evaluations).to(device),
            converged=torch.as_tensor(taken.converged).to(device),
            spread=dict(zip(names, taken.spread, strict=True)) if taken.spread is not None else None,
            settings=settings,
        )


def _probed(model: Callable[..., Any], selection: Selection, path: StraightPath, function: TargetFunction) -> Probe:
    """Run two rows at the inputs to see what there is, and refuse what cannot be explained."""
    paths = torch.tensor([0, path.count - 1], device=path.device)
    rows = path.rows(paths, torch.ones(2, device=path.device, dtype=torch.float32))

    def run() -> Tensor:
        output = function(model(*rows.args, **rows.kwargs), paths // path.per_example)
        check_rows(output, PROBED)
        return output

    found = probe(model, selection, run, rows.leaves)
    if not found.gradient_flows:
        raise ConductanceError(
            "the target does not depend on the inputs through differentiable operations: the model detaches its output "
            "(detach(), no_grad, numpy, argmax), or the target is a constant; explain the logits before that operation"
        )
    return found


def _layout(info: PointInfo) -> Layout:
    batch, shape = info.point.batch_axis, list(info.shape)
    del shape[batch]
    unit = info.point.unit_axis
    none = unit is None or unit == batch or not shape
    axis = None if none or unit is None else unit - (unit > batch)
    return Layout(tuple(shape), axis, info.point.unit_groups, info.dtype, info.device)


def _leaf_layout(leaf: Tensor) -> Layout:
    return Layout(tuple(leaf.shape[1:]), None, None, leaf.dtype, leaf.device)


def _layer_info(info: PointInfo, layout: Layout) -> LayerInfo:
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


def _ends(kinked: bool, precision: float) -> tuple[float, float]:
    if not kinked:
        return 0.0, 1.0
    inside = 1e-12 if precision < 1e-12 else 1e-6
    return inside, 1.0 - inside


def _described(value: Any) -> Any:
    """A value as it can stand in a saved result."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return value.tolist() if value.numel() <= 64 else f"tensor of shape {tuple(value.shape)}"
    if isinstance(value, (tuple, list)):
        return [_described(one) for one in value]
    return getattr(value, "__qualname__", type(value).__name__)


def _warn(result: TotalConductance, rules: Rules, n_steps: int | None) -> None:
    bad = [n for n, good in enumerate(result.converged.tolist()) if not good]
    if not bad or n_steps is not None:
        return
    kinds = {kind: sum(result.status[n] == kind for n in bad) for kind in dict.fromkeys(result.status[n] for n in bad)}
    known = [n for n in bad if result.status[n] != "interrupted"]
    if not known:
        warnings.warn(f"the run was interrupted: {len(bad)} examples are missing", ConvergenceWarning, stacklevel=3)
        return
    worst = {name: float(torch.nan_to_num(result.error[name][known]).max()) for name in result.layers}
    layers = sorted((name for name in worst if worst[name] > rules.rtol), key=lambda name: -worst[name])[:3]
    told = ", ".join(f"{name!r} {worst[name]:.1e}" for name in layers) or "none beyond the tolerance"
    change = float(result.unattributed[known].abs().max())
    kinks = str(result.settings["kinked_operators"]) if result.settings["scheme"] == "kinked" else ""
    advice = {
        "budget": "raise max_evaluations or rtol" + (f" (kinks, of {kinks}, take many evaluations)" if kinks else ""),
        "jump": "F jumps along the path (rounding, argmax, routing): see .jumps and .unattributed",
        "gradient": "the gradient is not the derivative of F (a detach, a straight-through trick): see .unattributed",
        "precision": "rounding hides the rest: use float64 or a larger rtol",
        "interrupted": "the run was interrupted",
    }
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    warnings.warn(
        f"{len(bad)} of {len(result.status)} examples did not converge to rtol={rules.rtol:g} ({counts}); "
        f"estimated error by layer: {told}; largest unattributed change of the output {change:.1e}. "
        + "; ".join(advice[kind] for kind in kinds),
        ConvergenceWarning,
        stacklevel=3,
    )
