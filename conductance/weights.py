"""Conductance of weights: ``E_ij = W_ji ∫ v_j dx_i``, all of a layer at once and without any further backward pass.

``x`` is the layer's input and ``v`` the gradient behind it. The products are those of the weight's own gradient, with
the increments of the input along the path in place of the input.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from conductance._reporting import settings_of, warn
from conductance._requests import checked_rules
from conductance.hooks import HookPoint, LayerSpec, Selection, select
from conductance.path import Baseline, Inputs
from conductance.quadrature import PathRule
from conductance.refinement import Rules
from conductance.replay import Rows, held_calls, packed
from conductance.results import TotalConductance
from conductance.running import Prepared, Run, prepared
from conductance.sums import wide_dtype
from conductance.targets import Target
from conductance.weighing import has_weights, products, weight_info
from conductance.weight_results import WeightConductance

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
    model, inputs, target, baselines, additional_forward_args
        As for :func:`~conductance.total.total_conductance`.
    layers
        Linear layers and convolutions (transposed ones too, and output projections that share an embedding's weight),
        named as for total conductance. None is all of them. The calls of a layer that runs several times are summed.
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
    asked, modules = _weighted(select(model, layers), layers)
    with prepared(
        model,
        inputs,
        asked,
        target=target,
        baselines=baselines,
        additional_forward_args=additional_forward_args,
        on_train=on_train,
        most=rules.rows,
    ) as ready:
        run = Run(ready, rules, n_steps)
        nodes = run.keep_rules()
        interrupted = run.execute(progress)
        pilot = run.result(settings_of(ready, rules, n_steps, target, baselines))
        work = _Work(ready, run, rules, modules, adaptive=n_steps is None)
        interrupted = interrupted or work.execute(nodes, pilot, progress)
    settings = {
        "quantity": "weight_conductance",
        **settings_of(ready, rules, n_steps, target, baselines),
        "internal_batch_size": run.rows,
        "interrupted": interrupted,
        "seconds": round(time.perf_counter() - started, 3),
    }
    warn(pilot, rules, n_steps)
    return work.result(pilot, settings)


def _weighted(selection: Selection, layers: LayerSpec) -> tuple[list[HookPoint], dict[str, nn.Module]]:
    """Points at both ends of the layers that have weights, and their modules."""
    modules = {name: module for name, module in selection.modules.items() if has_weights(module)}
    several = layers if isinstance(layers, (list, tuple)) else [layers]
    plain = [one for one in several if isinstance(one, (HookPoint, nn.Module)) or _is_name(one)]
    asked = {point.module for point in selection.points}
    others = [name for name in asked if name not in modules]
    if not modules or (plain and len(plain) == len(several) and others):
        told = ", ".join(f"{name!r} ({type(selection.modules[name]).__name__})" for name in others[:5])
        raise ValueError(
            f"layers names {told or 'nothing'}, which has no weight between an input and an output; expected linear "
            "layers or convolutions"
        )
    return [HookPoint(name, side=side) for name in modules for side in ("in", "out")], modules


def _is_name(one: Any) -> bool:
    return isinstance(one, str) and not any(sign in one for sign in "*?")


class _Work:
    """The second run: products along the nodes that total conductance found."""

    def __init__(
        self, ready: Prepared, run: Run, rules: Rules, modules: dict[str, nn.Module], *, adaptive: bool
    ) -> None:
        self.ready = ready
        self.run = run
        self.rules = rules
        self.adaptive = adaptive
        self.ends: dict[str, list[tuple[int, int]]] = {}
        numbers = {(info.point.module, info.point.call, info.point.side): n for n, info in enumerate(run.points)}
        for (name, call, side), number in numbers.items():
            before = numbers.get((name, call, "in"))
            if side == "out" and before is not None:
                self.ends.setdefault(name, []).append((before, number))
        self.modules = {name: modules[name] for name in self.ends}
        self.spent = np.zeros(ready.path.batch, dtype=np.int64)
        self.sums: dict[str, Tensor] = {}
        self.done: list[int] = []
        self.within = False

    def execute(self, nodes: dict[int, PathRule], pilot: TotalConductance, progress: bool) -> bool:
        """Run to the end, or until the user interrupts; whether that happened."""
        self.spent += pilot.evaluations.cpu().numpy()
        rules = self.rules
        try:
            for _ in range(ROUNDS):
                self._replay(nodes, progress)
                ratio = self._ratio()
                self.within = ratio >= 1.0
                room = self.rules.max_evaluations - self.spent.max(initial=0)
                if self.within or not self.adaptive or room < self.spent.max(initial=0):
                    return False
                rules = replace(rules, rtol=rules.rtol * float(np.clip(0.5 * ratio, 1 / 64, 0.5)))
                run = Run(self.ready, rules, None)
                nodes = run.keep_rules()
                if run.execute(progress=False):
                    return True
                self.spent += run.collector.evaluations
        except KeyboardInterrupt:
            return True
        return False

    def _replay(self, nodes: dict[int, PathRule], progress: bool) -> None:
        """Sum the products over all rows; an example counts when its last row is in."""
        from tqdm.auto import tqdm

        sums = {name: self._nothing(name) for name in self.modules}
        open_ = {name: self._nothing(name) for name in self.modules}
        done: list[int] = []
        waiting: list[int] = []
        each = self.ready.path.per_example
        with tqdm(total=self.ready.path.batch, desc="weights", unit="example", disable=not progress) as bar:
            try:
                for pieces in packed(nodes, self.run.rows):
                    batch = Rows(pieces, each)
                    for name, found in self._products(batch).items():
                        open_[name] += found
                    np.add.at(self.spent, batch.paths // each, 1)
                    waiting += batch.complete
                    if batch.closes:
                        for name, found in open_.items():
                            sums[name] += found
                            found.zero_()
                        done += waiting
                        bar.update(len(waiting))
                        waiting = []
            finally:
                if len(done) >= len(self.done):
                    self.sums, self.done = sums, done

    def _nothing(self, name: str) -> Tensor:
        weight = self.modules[name].weight
        assert isinstance(weight, Tensor)
        return torch.zeros(3, *weight.shape, dtype=wide_dtype(weight.device), device=weight.device)

    def _products(self, batch: Rows) -> dict[str, Tensor]:
        """Value, signed error and its square of each weight, over some rows."""
        found = {name: self._nothing(name)[:2] for name in self.modules}
        calls = list(batch.calls(self.run.rows))
        increments: dict[int, tuple[Tensor, Tensor]] = {}
        for call, held in held_calls(self.run.engine, batch, self.run.rows):
            increments = increments or self._increments(batch, calls, held.tensors)
            gradients = held.backward()[1]
            for name, ends in self.ends.items():
                for before, behind in ends:
                    v = self._rows_first(behind, gradients[behind])
                    if v is None or before not in increments:
                        continue
                    for row, part in enumerate(increments[before]):
                        weight = self.modules[name].weight
                        assert isinstance(weight, Tensor)
                        product = products(self.modules[name], part[call], v.to(part.dtype))
                        found[name][row] += product.to(found[name].dtype) * weight.detach().to(found[name].dtype)
        return {name: torch.cat([sums, sums[1:].square()]) for name, sums in found.items()}

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

    def _ratio(self) -> float:
        """Allowed over estimated error, of the worst layer."""
        ratio = np.inf
        for value, signed, square in self.sums.values():
            error = float(torch.maximum(signed.abs(), 2.0 * square.sqrt()).sum())
            if error > 0:
                ratio = min(ratio, (self.rules.rtol * float(value.abs().sum()) + self.rules.atol) / error)
        return float(ratio)

    def result(self, pilot: TotalConductance, settings: dict[str, Any]) -> WeightConductance:
        """The labelled result."""
        dtypes = {name: torch.promote_types(self.modules[name].weight.dtype, torch.float32) for name in self.modules}  # type: ignore[arg-type]
        good = [n for n in self.done if bool(pilot.converged[n])]
        return WeightConductance(
            conductance={name: sums[0].to(dtypes[name]) for name, sums in self.sums.items()},
            error_parts={name: sums[1:].to(dtypes[name]) for name, sums in self.sums.items()},
            info={name: weight_info(name, module) for name, module in self.modules.items()},
            count=len(self.done),
            converged=len(good) if self.within else 0,
            evaluations=int(self.spent.sum()),
            output_change=float(pilot.output_change[self.done].sum()),
            unattributed=float(pilot.unattributed[self.done].sum()),
            settings=settings,
        )
