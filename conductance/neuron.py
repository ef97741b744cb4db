"""Neuron conductance: what each input feature contributes to the target through one hidden unit.

``C_ij = (x_i - x'_i) ∫ v_j ∂y_j/∂x_i da`` (1805.12233, equation 1). Summed over inputs it is the unit's total
conductance, summed over the units of a cut it is the feature's integrated gradient.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from conductance._reporting import settings_of, warn
from conductance._requests import checked_rules
from conductance.arguments import Inputs
from conductance.baselines import Baseline
from conductance.errors import ConductanceError, check_choice
from conductance.features import FeatureGroups, Features
from conductance.flights import ROUNDINGS
from conductance.following import TwoRuns
from conductance.hooks import LayerSpec
from conductance.increments import estimated
from conductance.neuron_results import NeuronConductance
from conductance.pulling import Pull
from conductance.pushing import Push
from conductance.replay import Replayed
from conductance.results import TotalConductance
from conductance.running import layout_of, prepared
from conductance.sums import wide_dtype, work_dtype
from conductance.targeting import Target
from conductance.units import Neuron, Neurons, chosen

Mode = Literal["auto", "reverse", "forward"]
#: A push-forward of one feature costs about as much as this many pull-backs of one unit.
PUSH_COST = 1.5


def neuron_conductance(
    model: Callable[..., Any],
    inputs: Inputs,
    layer: LayerSpec,
    *,
    neurons: Neurons = "all",
    feature_groups: FeatureGroups = None,
    mode: Mode = "auto",
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
) -> NeuronConductance | dict[str, NeuronConductance]:
    """Conductance of every input feature through each of some units.

    Parameters
    ----------
    model, inputs, target, baselines, additional_forward_args, fixed, path_from
        As for :func:`~conductance.total.total_conductance`.
    layer
        The layer of the units. If it means several hook points (a glob, a list, None), the result is a dict of one
        for each, and ``neurons`` is looked up in all of them.
    neurons
        ``"all"`` units; a unit's number (a channel, feature or head, with all its positions); a slice of unit
        numbers; a tuple, an index into the layer's shape without the batch (slices in it are summed over); or a list
        of these.
    feature_groups
        What counts as one input. None: every element. An integer mask of the input's shape, with or without the
        batch axis: elements of equal number (superpixels, tokens, columns; one group that covers a patch is the
        image-patch attribution of 2202.11912). ``"token"`` or ``"channel"`` (axis 1), or an axis number.
    mode
        ``"reverse"`` takes one backward pass for each unit, ``"forward"`` one forward pass for each feature and
        serves all units of all layers at once; ``"auto"`` counts. Where an operator has no forward derivative,
        forward mode works around it, at last by reverse mode: ``settings["mode"]`` and ``settings["detour"]`` tell.
    rtol, atol, n_steps, max_evaluations, internal_batch_size, on_train, progress
        As for total conductance. The tolerance holds for the total conductance of the layer, whose nodes are taken,
        and for ``Σ|error|`` over all features and neurons against ``Σ|C|`` of them; nodes are added where it needs
        them. The budget is for both runs: at most half of it finds nodes, the rest runs them again.

    Returns
    -------
    NeuronConductance
        With ``values``, ``total`` and their errors.

    Raises
    ------
    ValueError, TypeError
        For an argument that cannot be used; the message names it.
    ConductanceError
        As for total conductance.

    Notes
    -----
    ``Σ_i C_ij = C_j`` holds within the tolerance (one side takes derivatives of the unit, the other differences of its
    values): see ``gap``. ``Σ_j C_ij`` over the units of a cut equals integrated gradients on the same nodes to
    rounding. Evaluations count the rows of both runs, each once, however many derivatives were taken of them.

    References
    ----------
    Dhamdhere, Sundararajan and Yan, How Important Is a Neuron? (1805.12233), equation 1.

    Examples
    --------
    ``F = 2 ReLU(h_0) - h_1`` with ``h_0 = x_0 + x_1`` and ``h_1 = 3 x_1``, from zero to (1, 2): by hand ``h_0`` carries
    2 of the first input and 4 of the second, ``h_1`` minus 6 of the second.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, 1.0], [0.0, 3.0]]))
    >>> _ = model[1].weight.data.copy_(torch.tensor([[2.0, -1.0]]))
    >>> x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    >>> found = neuron_conductance(model, x, "0", target=0)
    >>> found.values.round(decimals=6)
    tensor([[[ 2.,  4.],
             [ 0., -6.]]], dtype=torch.float64)
    >>> found.total.round(decimals=6)
    tensor([[ 6., -6.]], dtype=torch.float64)
    """
    started = time.perf_counter()
    rules = checked_rules(rtol, atol, n_steps, max_evaluations, internal_batch_size)
    check_choice("mode", mode, ("auto", "reverse", "forward"))
    with prepared(
        model,
        inputs,
        layer,
        target=target,
        baselines=baselines,
        additional_forward_args=additional_forward_args,
        fixed=fixed,
        path_from=path_from,
        on_train=on_train,
        most=rules.rows,
    ) as ready:
        features = Features(feature_groups, ready.path)
        layouts = [layout_of(info) for info in ready.points]
        selected = [chosen(neurons, layout, info.name) for info, layout in zip(ready.points, layouts, strict=True)]
        runs = TwoRuns(ready, rules, n_steps, progress=progress)
        work = _Work(runs, features, selected, mode)
        runs.follow(runs.run.rows, work.evaluate, work.take, "neurons")
    settings = {
        "quantity": "neuron_conductance",
        **settings_of(ready, rules, n_steps, target, baselines),
        "mode": work.mode,
        "detour": work.detour,
        "internal_batch_size": runs.run.rows,
        "interrupted": runs.interrupted,
        "seconds": round(time.perf_counter() - started, 3),
    }
    results = work.results(settings)
    warn(_outcome(runs.pilot, results, settings), rules, n_steps)
    return next(iter(results.values())) if len(results) == 1 else results


@dataclass(frozen=True)
class _Judged:
    """Values and estimated errors of a layer for one example, flat; ``Σ|C|`` and the worst of its errors."""

    value: Tensor
    error: Tensor
    total: Tensor
    total_error: Tensor
    scale: float
    worst: float


class _Work:
    """Values of all neurons, as the second run gives them."""

    def __init__(self, runs: TwoRuns, features: Features, selected: list[list[Neuron]], mode: Mode) -> None:
        self.runs = runs
        self.rules = runs.rules
        self.features = features
        self.selected = selected
        run, path = runs.run, runs.ready.path
        units = sum(map(len, selected))
        if mode == "auto":
            mode = "forward" if PUSH_COST * features.count < units else "reverse"
        pull = Pull(run.engine, features, selected, run.rows)
        self._push = Push(run.engine, features, selected, run.rows, pull) if mode == "forward" else None
        self.evaluate = self._push or pull
        wide = wide_dtype(path.device)
        sizes = [(len(one), features.count) for one in selected]
        self.values, self.value_error = (
            [torch.full((path.batch, *size), torch.nan, dtype=wide, device=path.device) for size in sizes]
            for _ in range(2)
        )
        self.totals, self.total_error = (
            [torch.full((path.batch, size[0]), torch.nan, dtype=wide, device=path.device) for size in sizes]
            for _ in range(2)
        )
        self.error = np.full((len(selected), path.batch), np.nan)
        self.ratio = np.full(path.batch, -np.inf)
        self.precision = float(max(torch.finfo(layout.dtype).eps for layout in run.layouts)) / 2

    @property
    def mode(self) -> str:
        """The mode that was taken in the end."""
        return "reverse" if self._push is None or self._push.given_up else "forward"

    @property
    def detour(self) -> list[str]:
        """What forward mode had to work around."""
        return [] if self._push is None else self._push.detour

    def take(self, done: Replayed) -> float:
        """Keep what an example gave, unless it had better; allowed over estimated error, of the worst layer."""
        n, layers = done.example, len(self.selected)
        judged = [self._judged(done.blocks[layer], done.blocks[layers + layer]) for layer in range(layers)]
        for info, one in zip(self.runs.run.points, judged, strict=True):
            if not np.isfinite(one.worst):
                raise ConductanceError(
                    f"the derivative of layer {info.name!r} by the inputs holds NaN or infinity on the path of example "
                    f"{n}; choose a baseline at which it is well defined, or leave the layer out"
                )
        ratio = min(self._allowed(one) / one.worst if one.worst > 0 else np.inf for one in judged)
        if ratio <= self.ratio[n]:
            return float(self.ratio[n])
        self.ratio[n] = ratio
        for layer, one in enumerate(judged):
            shape = self.values[layer].shape[1:]
            self.values[layer][n], self.value_error[layer][n] = one.value.reshape(shape), one.error.reshape(shape)
            self.totals[layer][n], self.total_error[layer][n] = one.total, one.total_error
            self.error[layer, n] = one.worst / one.scale if one.scale > 0 else (np.inf if one.worst > 0 else 0.0)
        return float(ratio)

    def _judged(self, own: Tensor, totals: Tensor) -> _Judged:
        """What the sums of a layer amount to."""
        value, total = own[0], totals[0]
        floor = ROUNDINGS * self.precision * value.abs()
        error, total_error = estimated(own), estimated(totals)
        missed = float((value.reshape(len(total), -1).sum(1) - total).abs().sum())
        worst = max(float(error.sum()), float(total_error.sum()), missed) + float(floor.sum())
        return _Judged(value, error + floor, total, total_error, float(value.abs().sum()), worst)

    def _allowed(self, one: _Judged) -> float:
        return self.rules.rtol * one.scale + self.rules.atol

    def results(self, settings: dict[str, Any]) -> dict[str, NeuronConductance]:
        """One labelled result a layer."""
        pilot, found = self.runs.pilot, {}
        for layer, info in enumerate(self.runs.run.points):
            dtype = work_dtype(info.dtype)
            found[info.name] = NeuronConductance(
                values=_cast(self.features.shaped(self.values[layer]), dtype),
                value_error=_cast(self.features.shaped(self.value_error[layer]), dtype),
                total=self.totals[layer].to(dtype),
                total_error=self.total_error[layer].to(dtype),
                error=torch.as_tensor(self.error[layer]).to(pilot.output),
                neurons=[one.label for one in self.selected[layer]],
                features=self.features.labels,
                info=pilot.info[info.name],
                output=pilot.output,
                baseline_output=pilot.baseline_output,
                unattributed=pilot.unattributed,
                status=tuple(self.runs.status),
                jumps=pilot.jumps,
                evaluations=self.runs.evaluations,
                converged=self.runs.converged,
                settings={**settings, "layer": info.name},
            )
        return found


def _outcome(
    pilot: TotalConductance, results: dict[str, NeuronConductance], settings: dict[str, Any]
) -> TotalConductance:
    """The first run with the errors and verdicts of the second, to warn of."""
    error = {name: torch.fmax(pilot.error[name], found.error) for name, found in results.items()}
    last = next(iter(results.values()))
    return replace(pilot, error=error, status=last.status, converged=last.converged, settings=settings)


def _cast(values: Tensor | tuple[Tensor, ...], dtype: torch.dtype) -> Tensor | tuple[Tensor, ...]:
    return values.to(dtype) if isinstance(values, Tensor) else tuple(one.to(dtype) for one in values)
