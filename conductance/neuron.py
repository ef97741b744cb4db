"""Neuron conductance: what each input feature contributes to the target through one hidden unit.

``C_ij = (x_i - x'_i) ∫ v_j ∂y_j/∂x_i da`` (1805.12233, equation 1). Summed over inputs it is the unit's total
conductance, summed over the units of a cut it is the feature's integrated gradient.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from conductance._reporting import settings_of, warn
from conductance._requests import checked_rules
from conductance.errors import check_choice
from conductance.features import FeatureGroups, Features
from conductance.hooks import LayerSpec
from conductance.neuron_results import NeuronConductance
from conductance.path import Baseline, Inputs
from conductance.pulling import Pull
from conductance.pushing import Push
from conductance.quadrature import PathRule
from conductance.refinement import ROUNDINGS, Rules
from conductance.replay import Replayed, estimated, replay
from conductance.results import TotalConductance
from conductance.running import Prepared, Run, prepared
from conductance.sums import wide_dtype, work_dtype
from conductance.targets import Target
from conductance.units import Neuron, Neurons, chosen

Mode = Literal["auto", "reverse", "forward"]
#: A push-forward of one feature costs about as much as this many pull-backs of one unit.
PUSH_COST = 1.5
#: Rounds of refinement after the nodes of total conductance have been run.
ROUNDS = 6


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
    model, inputs, target, baselines, additional_forward_args
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
        them.

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
        on_train=on_train,
        most=rules.rows,
    ) as ready:
        run = Run(ready, rules, n_steps, judge_leaves=True)
        features = Features(feature_groups, ready.path)
        selected = [chosen(neurons, layout, info.name) for info, layout in zip(run.points, run.layouts, strict=True)]
        nodes = run.keep_rules()
        interrupted = run.execute(progress)
        pilot = run.result(settings_of(ready, rules, n_steps, target, baselines))
        work = _Work(ready, run, rules, features, selected, mode, adaptive=n_steps is None)
        interrupted |= work.execute(nodes, pilot, progress)
    settings = {
        "quantity": "neuron_conductance",
        **settings_of(ready, rules, n_steps, target, baselines),
        "mode": work.mode,
        "detour": work.detour,
        "internal_batch_size": run.rows,
        "interrupted": interrupted,
        "seconds": round(time.perf_counter() - started, 3),
    }
    results = work.results(pilot, settings)
    warn(pilot, rules, n_steps)
    return next(iter(results.values())) if len(results) == 1 else results


class _Work:
    """The second run: along the nodes that total conductance found, then finer where the tolerance needs it."""

    def __init__(
        self,
        ready: Prepared,
        run: Run,
        rules: Rules,
        features: Features,
        selected: list[list[Neuron]],
        mode: Mode,
        *,
        adaptive: bool,
    ) -> None:
        self.ready = ready
        self.run = run
        self.rules = rules
        self.features = features
        self.selected = selected
        self.adaptive = adaptive
        self.path = ready.path
        units = sum(map(len, selected))
        if mode == "auto":
            mode = "forward" if PUSH_COST * features.count < units else "reverse"
        self._pull = Pull(run.engine, features, selected, run.rows)
        self._push = Push(run.engine, features, selected, run.rows, self._pull) if mode == "forward" else None
        batch, device = ready.path.batch, ready.path.device
        wide = wide_dtype(device)
        sizes = [(len(one), features.count) for one in selected]
        self.values, self.value_error = (
            [torch.full((batch, *size), torch.nan, dtype=wide, device=device) for size in sizes] for _ in range(2)
        )
        self.totals, self.total_error = (
            [torch.full((batch, size[0]), torch.nan, dtype=wide, device=device) for size in sizes] for _ in range(2)
        )
        self.error = np.full((len(selected), batch), np.nan)
        self.spent = np.zeros(batch, dtype=np.int64)
        self.within = np.zeros(batch, dtype=bool)
        self.precision = float(max(torch.finfo(layout.dtype).eps for layout in run.layouts)) / 2

    @property
    def mode(self) -> str:
        """The mode that was taken in the end."""
        return "reverse" if self._push is None or self._push.given_up else "forward"

    @property
    def detour(self) -> list[str]:
        """What forward mode had to work around."""
        return [] if self._push is None else self._push.detour

    def execute(self, nodes: dict[int, PathRule], pilot: TotalConductance, progress: bool) -> bool:
        """Run to the end, or until the user interrupts; whether that happened."""
        from tqdm.auto import tqdm

        self.spent += pilot.evaluations.cpu().numpy()
        each, rules = self.path.per_example, self.rules
        with tqdm(total=self.path.batch, desc="neurons", unit="example", disable=not progress) as bar:
            try:
                for _ in range(ROUNDS):
                    ratios: dict[int, float] = {}
                    for done in replay(nodes, self.run.rows, each, self._push or self._pull):
                        ratio, n = self._take(done), done.example
                        room = self.rules.max_evaluations - self.spent[n]
                        if self.adaptive and ratio < 1.0 and pilot.status[n] == "ok" and room > 2 * done.rows:
                            ratios[n] = ratio
                        else:
                            bar.update()
                    if not ratios:
                        break
                    rules = replace(rules, rtol=rules.rtol * float(np.clip(0.5 * min(ratios.values()), 1 / 64, 0.5)))
                    nodes = self._tightened(rules, list(ratios))
            except KeyboardInterrupt:
                return True
        return False

    def _tightened(self, rules: Rules, examples: list[int]) -> dict[int, PathRule]:
        """Nodes of total conductance to a smaller tolerance."""
        run = Run(self.ready, rules, None, judge_leaves=True)
        nodes = run.keep_rules()
        if run.execute(progress=False, examples=examples):
            raise KeyboardInterrupt
        self.spent += run.collector.evaluations
        return nodes

    def _take(self, done: Replayed) -> float:
        """Keep what an example gave; allowed over estimated error, of the worst layer."""
        n, ratio = done.example, np.inf
        self.spent[n] += done.rows
        layers = len(self.selected)
        for layer in range(layers):
            own, totals = done.blocks[layer], done.blocks[layers + layer]
            value, error = own[0], estimated(own)
            total, total_error = totals[0], estimated(totals)
            shape = self.values[layer].shape[1:]
            floor = ROUNDINGS * self.precision * value.abs()
            self.values[layer][n], self.value_error[layer][n] = value.reshape(shape), (error + floor).reshape(shape)
            self.totals[layer][n], self.total_error[layer][n] = total, total_error
            scale = float(value.abs().sum())
            missed = float((value.reshape(shape).sum(1) - total).abs().sum())
            worst = max(float(error.sum()), float(total_error.sum()), missed) + float(floor.sum())
            self.error[layer, n] = worst / scale if scale > 0 else (np.inf if worst > 0 else 0.0)
            if worst > 0:
                ratio = min(ratio, (self.rules.rtol * scale + self.rules.atol) / worst)
        self.within[n] = ratio >= 1.0
        return float(ratio)

    def results(self, pilot: TotalConductance, settings: dict[str, Any]) -> dict[str, NeuronConductance]:
        """One labelled result a layer."""
        device = self.path.device
        missing = torch.as_tensor(np.isnan(self.error[0]))
        status = tuple("interrupted" if gone else one for one, gone in zip(pilot.status, missing.tolist(), strict=True))
        status = tuple(
            "budget" if one == "ok" and not within else one for one, within in zip(status, self.within, strict=True)
        )
        found = {}
        for layer, info in enumerate(self.run.points):
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
                status=status,
                evaluations=torch.as_tensor(self.spent).to(device),
                converged=pilot.converged & torch.as_tensor(self.within).to(device),
                settings={**settings, "layer": info.name},
            )
        return found


def _cast(values: Tensor | tuple[Tensor, ...], dtype: torch.dtype) -> Tensor | tuple[Tensor, ...]:
    return values.to(dtype) if isinstance(values, Tensor) else tuple(one.to(dtype) for one in values)
