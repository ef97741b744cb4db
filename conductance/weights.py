"""Conductance of weights: ``E_ij = W_ji ∫ v_j dx_i``, all of a layer at once and without any further backward pass.

``x`` is the layer's input and ``v`` the gradient behind it. The products are those of the weight's own gradient, with
the increments of the input along the path in place of the input.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from conductance._progress import progress_bar
from conductance._reporting import settings_of, warn
from conductance._requests import checked_rules
from conductance._weight_layers import WeightLayers
from conductance.arguments import Inputs
from conductance.baselines import Baseline
from conductance.errors import ConvergenceWarning
from conductance.flights import Rules
from conductance.following import LEAST
from conductance.hooks import HookPoint, LayerSpec
from conductance.quadrature import PathRule
from conductance.replay import Rows, held_calls, packed
from conductance.results import TotalConductance
from conductance.running import Prepared, Run, prepared
from conductance.targeting import Target
from conductance.weighing import WeightSums, changes_what_it_made, products, weight_info, weight_of
from conductance.weight_results import WeightConductance, error_of

#: Rounds of refinement after the nodes of total conductance have been run.
ROUNDS = 4


def weight_conductance(
    model: Callable[..., Any],
    inputs: Inputs,
    layers: LayerSpec = None,
    *,
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
) -> WeightConductance:
    """Conductance of every weight of linear layers and convolutions, summed over a batch.

    Parameters
    ----------
    model, inputs, target, baselines, additional_forward_args, fixed, path_from
        As for :func:`~conductance.total.total_conductance`.
    layers
        Linear layers and convolutions (transposed ones too, and output projections that share an embedding's weight),
        named as for total conductance. None is all of them. The calls of a layer that runs several times are summed.
        A layer that does more than its weight says (a ``forward`` of its own, a hook on its output) is left out, or
        refused if it is named.
    rtol, atol, n_steps, max_evaluations, internal_batch_size, on_train, progress
        As for total conductance. The tolerance holds for the units at both ends of each layer, and for ``Σ|error|``
        of its weights, summed over the batch, against ``Σ|E|``.

    Returns
    -------
    WeightConductance
        A mapping of layer names to tensors like their weights; results of several batches can be added.

    Raises
    ------
    ValueError, TypeError
        For an argument that cannot be used; the message names it.
    ConductanceError
        As for total conductance.

    Warns
    -----
    ConvergenceWarning
        If examples do not converge to a tolerance, as for total conductance, or the weights of those that do.

    Notes
    -----
    It is conserved at both ends: the weights into a unit sum to the unit's total conductance (a bias has none, for it
    does not change along the path), and the weights out of a unit to what the unit passes on through this layer.

    References
    ----------
    Dhamdhere, Sundararajan and Yan, How Important Is a Neuron? (1805.12233), equation 1, between the two ends of a
    layer.

    Examples
    --------
    ``F = 2 h_0 - h_1`` with ``h_0 = x_0 + x_1`` and ``h_1 = 3 x_1``, from zero to (1, 2), by hand:

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, 1.0], [0.0, 3.0]]))
    >>> _ = model[1].weight.data.copy_(torch.tensor([[2.0, -1.0]]))
    >>> found = weight_conductance(model, torch.tensor([[1.0, 2.0]], dtype=torch.float64), target=0)
    >>> found["0"].round(decimals=6) + 0.0
    tensor([[ 2.,  4.],
            [ 0., -6.]], dtype=torch.float64)
    >>> found["1"].round(decimals=6)
    tensor([[ 6., -6.]], dtype=torch.float64)
    """
    started = time.perf_counter()
    rules = checked_rules(rtol, atol, n_steps, max_evaluations, internal_batch_size)
    request = WeightLayers(model, layers)
    with prepared(
        request.model,
        inputs,
        request.points,
        target=target,
        baselines=baselines,
        additional_forward_args=additional_forward_args,
        fixed=fixed,
        path_from=path_from,
        on_train=on_train,
        most=rules.rows,
    ) as ready:
        run = Run(ready, rules, n_steps)
        work = _Work(ready, run, rules, request)
        nodes = run.keep_rules()
        interrupted = run.execute(progress)
        pilot = run.result(settings_of(ready, rules, n_steps, target, baselines))
        interrupted |= work.execute(nodes, pilot, progress, adaptive=n_steps is None and not interrupted)
    settings = {
        "quantity": "weight_conductance",
        **pilot.settings,
        "left_out": request.left_out(work.modules),
        "internal_batch_size": run.rows,
        "interrupted": interrupted,
        "seconds": round(time.perf_counter() - started, 3),
    }
    result = work.result(pilot, settings)
    warn(pilot, rules, n_steps)
    if n_steps is None and not interrupted:
        _warn(result, work.ratios, rules)
    return result


def _warn(result: WeightConductance, ratios: dict[str, float], rules: Rules) -> None:
    """Say which weights miss the tolerance though their units keep it."""
    bad = [name for name, ratio in ratios.items() if ratio < 1.0]
    if bad:
        told = ", ".join(f"{name!r} {rules.rtol / ratios[name]:.1e}" for name in bad[:3])
        warnings.warn(
            f"the weights of {len(bad)} of {len(result)} layers did not converge to rtol={rules.rtol:g}, though their "
            f"units did; estimated error by layer: {told}. Raise max_evaluations or rtol, or use float64",
            ConvergenceWarning,
            stacklevel=3,
        )


class _Work:
    """The second run: products along the nodes that total conductance found, then finer where the tolerance needs it.

    Examples that total conductance did not settle come last and only once: nothing is refined for their sake.
    """

    def __init__(self, ready: Prepared, run: Run, rules: Rules, request: WeightLayers) -> None:
        self.ready = ready
        self.run = run
        self.rules = rules
        self.ends: dict[str, list[tuple[int, int]]] = {}
        numbers = {(info.point.module, info.point.call, info.point.side): n for n, info in enumerate(run.points)}
        for (name, call, side), number in numbers.items():
            before = numbers.get((name, call, "in"))
            if side == "out" and before is not None:
                self.ends.setdefault(name, []).append((before, number))
        missing = [name for name in request.modules if name not in self.ends]
        bad = [HookPoint(name).name for name in missing if name in request.named or not self.ends]
        if bad:
            raise ValueError(
                f"layers names {', '.join(map(repr, bad[:5]))}, whose input and output do not both have the examples "
                "along their first axis, or which did not run as a module"
            )
        self._leave_out_changed(request)
        self.modules = {name: request.modules[name] for name in self.ends}
        self.spent = np.zeros(ready.path.batch, dtype=np.int64)
        self.sums: dict[str, Tensor] = {name: WeightSums(module).result() for name, module in self.modules.items()}
        self.done: list[int] = []
        self.ratios = dict.fromkeys(self.modules, np.inf)

    def _leave_out_changed(self, request: WeightLayers) -> None:
        """Leave out layers whose output is not what the weight made, by one call of two rows; refuse named ones."""
        tensors = self.run.engine.hold(np.zeros(2, dtype=np.int64), np.ones(2)).tensors
        changed = {
            name: None
            for name, ends in self.ends.items()
            for before, behind in ends
            if (inputs := self._rows_first(before, tensors[before])) is not None
            and (outputs := self._rows_first(behind, tensors[behind])) is not None
            and changes_what_it_made(request.modules[name], inputs, outputs)
        }
        bad = [name for name in changed if name in request.named or len(changed) == len(self.ends)]
        if bad:
            told = ", ".join(repr(HookPoint(name).name) for name in bad[:5])
            raise ValueError(
                f"layers names {told}, whose output is not what the weight makes of the input: "
                "a forward hook or a patched forward changes it; remove that, or put it into a module of its own"
            )
        self.ends = {name: ends for name, ends in self.ends.items() if name not in changed}

    def execute(self, nodes: dict[int, PathRule], pilot: TotalConductance, progress: bool, *, adaptive: bool) -> bool:
        """Run to the end, or until the user interrupts; whether that happened."""
        self.spent += pilot.evaluations.cpu().numpy()
        each, settled = self.ready.path.per_example, pilot.converged.tolist()
        good = {path: rule for path, rule in nodes.items() if settled[path // each]}
        rest = {path: rule for path, rule in nodes.items() if not settled[path // each]}
        try:
            self._refined(good, progress, adaptive=adaptive)
            if rest:
                self._replay(rest, progress, self.sums, self.done)
        except KeyboardInterrupt:
            return True
        return False

    def _refined(self, nodes: dict[int, PathRule], progress: bool, *, adaptive: bool) -> None:
        rules, examples = self.rules, sorted({path // self.ready.path.per_example for path in nodes})
        for round_ in range(1, ROUNDS + 1):
            self._replay(nodes, progress)
            ratio = min(self.ratios.values())
            spent = int(self.spent.max(initial=0))
            room = self.rules.max_evaluations - spent
            if ratio >= 1.0 or not adaptive or round_ == ROUNDS or room < spent:
                return
            rtol = rules.rtol * float(np.clip(0.5 * ratio, 1 / 64, 0.5))
            rules = replace(rules, rtol=rtol, max_evaluations=max(LEAST, room // 2))
            run = Run(self.ready, rules, None)
            finer = run.keep_rules()
            interrupted = run.execute(progress=False, examples=examples)
            self.spent += run.collector.evaluations
            if interrupted:
                raise KeyboardInterrupt
            nodes = nodes | finer

    def _replay(
        self,
        nodes: dict[int, PathRule],
        progress: bool,
        before: dict[str, Tensor] | None = None,
        done_before: Sequence[int] = (),
    ) -> None:
        """Sum the products over all rows, to sums that there are; an example counts when its last row is in."""
        sums = {name: WeightSums(module) for name, module in self.modules.items()}
        done: list[int] = []
        waiting: list[int] = []
        each = self.ready.path.per_example
        with progress_bar(progress, "weights", "example", total=len(nodes) // each) as bar:
            try:
                for pieces in packed(nodes, self.run.rows):
                    batch = Rows(pieces, each)
                    self._add(batch, sums)
                    np.add.at(self.spent, batch.paths // each, 1)
                    waiting += batch.complete
                    if batch.closes:
                        for one in sums.values():
                            one.keep()
                        done += waiting
                        bar.update(len(waiting))
                        waiting = []
            finally:
                if len(done) + len(done_before) >= len(self.done):
                    found = {name: one.result() for name, one in sums.items()}
                    self.sums = {name: one + before[name] for name, one in found.items()} if before else found
                    if before is None:
                        self.ratios = {name: self._ratio(one) for name, one in found.items()}
                    self.done = [*done_before, *done]

    def _add(self, batch: Rows, sums: dict[str, WeightSums]) -> None:
        """Add the products of some rows, and those of the errors of each example."""
        calls = list(batch.calls(self.run.rows))
        increments: dict[int, tuple[Tensor, Tensor]] = {}
        for call, held in held_calls(self.run.engine, batch, self.run.rows):
            increments = increments or self._increments(batch, calls, held.tensors)
            gradients = held.backward()[1]
            for name, ends in self.ends.items():
                own = [
                    (increments[before], gradient)
                    for before, behind in ends
                    if (gradient := self._rows_first(behind, gradients[behind])) is not None and before in increments
                ]
                self._add_layer(name, own, batch, call, sums[name])

    def _add_layer(
        self, name: str, ends: list[tuple[tuple[Tensor, Tensor], Tensor]], batch: Rows, call: slice, sums: WeightSums
    ) -> None:
        module, last = self.modules[name], call.stop == len(batch.paths)
        examples = batch.paths[call] // self.ready.path.per_example
        starts = [0, *(np.flatnonzero(np.diff(examples)) + 1).tolist(), len(examples)]
        for (value, _), gradient in ends:
            sums.add(products(module, value[call], gradient.to(value.dtype)))
        for start, stop in pairwise(starts):
            rows = slice(call.start + start, call.start + stop)
            for (_, error), gradient in ends:
                sums.add_error(products(module, error[rows], gradient[start:stop].to(error.dtype)))
            if last and int(examples[start]) in batch.complete:
                sums.end_example()

    def _increments(
        self, batch: Rows, calls: list[slice], tensors: list[Tensor | None]
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Increments of the input of each layer over all rows, and those of the error."""
        known = [tensors]
        for call in calls[1:]:
            known.append(self.run.engine.hold(batch.paths[call], batch.alphas[call]).tensors)
        found = {}
        for before in {before for ends in self.ends.values() for before, _ in ends}:
            parts = [self._rows_first(before, one[before]) for one in known]
            there = [part.detach() for part in parts if part is not None]
            if len(there) == len(parts):
                whole = torch.cat(there) if len(there) > 1 else there[0]
                steps = batch.increments(whole.reshape(len(whole), -1), with_error=True)
                found[before] = (steps.value.reshape(whole.shape), steps.errors[0].reshape(whole.shape))
        return found

    def _rows_first(self, point: int, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.movedim(self.run.points[point].point.batch_axis, 0)

    def _ratio(self, sums: Tensor) -> float:
        """Allowed over estimated error of a layer."""
        value, signed, square = sums
        error = float(error_of(signed, square).sum())
        return (self.rules.rtol * float(value.abs().sum()) + self.rules.atol) / error if error > 0 else np.inf

    def result(self, pilot: TotalConductance, settings: dict[str, Any]) -> WeightConductance:
        """The labelled result."""
        names = {name: HookPoint(name).name for name in self.modules}
        kinds = {name: torch.promote_types(weight_of(one).dtype, torch.float32) for name, one in self.modules.items()}
        good = [n for n in self.done if bool(pilot.converged[n])]
        return WeightConductance(
            conductance={names[name]: sums[0].to(kinds[name]) for name, sums in self.sums.items()},
            error_parts={names[name]: sums[1:].to(kinds[name]) for name, sums in self.sums.items()},
            info={names[name]: weight_info(names[name], module) for name, module in self.modules.items()},
            count=len(self.done),
            converged=len(good) if min(self.ratios.values()) >= 1.0 else 0,
            evaluations=int(self.spent.sum()),
            output_change=float(pilot.output_change[self.done].sum()),
            unattributed=float(pilot.unattributed[self.done].sum()),
            settings=settings,
        )
