"""A fixed number of evaluations for each example: panels laid out beforehand, reduced as each gradient arrives.

Rows of several paths share a call; a path of more nodes than a call may have is spread over calls, and the rows of a
panel that is not complete yet (or the one row that two panels share) are carried over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conductance import quadrature
from conductance.collecting import Collector, Finished
from conductance.ends import end_gaps, jumps_at_ends, true_outputs
from conductance.engine import Engine, Nodes, check_finite, non_finite
from conductance.flights import ROUNDINGS, Rules, carried
from conductance.panels import Floats
from conductance.sums import RunningSums, Workspace, blocks, wide_dtype, work_dtype


class FixedRule:
    """Total conductance of all examples at ``n_steps`` nodes each.

    Parameters
    ----------
    engine
        Runs the rows.
    sums
        Running sums; as many examples as they hold share calls.
    collector
        Receives each example when it is done.
    rules
        The tolerance that ``converged`` is judged by, and the rows of one call.
    n_steps
        Nodes of a path, ends included.
    kinked
        Trapezoids in activation space on equidistant nodes, or Chebyshev panels.
    precision
        Unit roundoff of each point, ``(points,)``.
    ends
        First and last place on the path.
    """

    def __init__(
        self,
        engine: Engine,
        sums: RunningSums,
        collector: Collector,
        rules: Rules,
        n_steps: int,
        *,
        kinked: bool,
        flights: int,
        precision: Floats,
        ends: tuple[float, float],
    ) -> None:
        self.engine = engine
        self.sums = sums
        self.collector = collector
        self.rules = rules
        self.precision = precision
        self.kinked = kinked
        self.ends = ends
        self._flights = flights
        self.panels = () if kinked else quadrature.fixed_panels(n_steps)
        self._matrices: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}
        self.nodes = ends[0] + (ends[1] - ends[0]) * quadrature.fixed_nodes(n_steps, kinked=kinked)
        self.workspace = Workspace()
        self._magnitude: list[Tensor] = []
        self._rules: dict[int, quadrature.PathRule] | None = None

    def keep_rules(self) -> dict[int, quadrature.PathRule]:
        """Keep the panels of every path that is done from now on, by the number of the path."""
        self._rules = {}
        return self._rules

    def _rule(self) -> quadrature.PathRule:
        if not self.kinked:
            return quadrature.PathRule(self.nodes, self.panels, 0.5 if len(self.panels) == 1 else 1.0)
        rise, bend = np.array([[-0.5, 0.5], [-0.5, 0.5]]), np.array([[0.5, -0.5], [-0.5, 0.5]])
        panels = tuple(quadrature.Panel(k, k + 1, rise, bend) for k in range(len(self.nodes) - 1))
        return quadrature.PathRule(self.nodes, panels, 1.0)

    def run(self, advance: Callable[[int], Any], wanted: range) -> None:
        """Work through examples; ``advance`` is told how many are done."""
        each = self.engine.path.per_example
        for first in range(wanted.start, wanted.stop, self._flights):
            examples = range(first, min(first + self._flights, wanted.stop))
            self._magnitude = [
                torch.zeros(len(examples) * each, dtype=wide_dtype(layout.device), device=layout.device)
                for layout in self.sums.layouts
            ]
            inner = np.zeros((len(examples) * each, 2))
            leaf = np.zeros(len(examples) * each)
            self._paths(first * each, len(examples) * each, inner, leaf)
            true, gap = inner, np.zeros_like(inner)
            if self.ends != (0.0, 1.0):
                true = true_outputs(self.engine, np.arange(first * each, first * each + len(inner)), self.rules.rows)
                gap = np.stack([end_gaps(*path) for path in zip(inner, true, strict=True)])
            self._finish(examples, *(values.reshape(len(examples), each, -1).mean(1) for values in (true, gap, leaf)))
            if self._rules is not None:
                self._rules |= dict.fromkeys(range(first * each, (first + len(examples)) * each), self._rule())
            advance(len(examples))

    def _paths(self, first: int, count: int, outputs: Floats, leaf: Floats) -> None:
        """Run ``count`` paths, as many in one call as fit, or one in several calls."""
        total = len(self.nodes)
        together = max(1, self.rules.rows // total)
        for start in range(0, count, together):
            slots = np.arange(start, min(start + together, count))
            pieces = _Pieces(self, start, len(slots))
            begin = 0
            values: list[Nodes] = []
            while begin < total:
                stop = self._stop(begin, total)
                paths = np.repeat(first + slots, stop - begin)
                alphas = np.tile(self.nodes[begin:stop], len(slots))
                pieces.begin, pieces.stop = begin, stop
                nodes = self.engine.run(paths, alphas, pieces)
                bad = ~(np.isfinite(nodes.output) & np.isfinite(nodes.slope))
                if bad.any():
                    raise non_finite(self.engine, paths[bad], alphas[bad])
                values.append(nodes)
                begin = stop
            f, s = (
                np.concatenate([getattr(part, name).reshape(len(slots), -1) for part in values], axis=1)
                for name in ("output", "slope")
            )
            outputs[slots, 0], outputs[slots, 1] = f[:, 0], f[:, -1]
            leaf[slots] = s @ self._weights()

    def note(self, point: int, first: int, activation: Tensor, gradient: Tensor) -> None:
        """Note ``Σ|v||y|`` of an end of some paths, ``(paths, elements)`` each, which rounding is proportional to."""
        kept = self._magnitude[point][first : first + len(activation)]
        products = activation.to(work_dtype(activation.dtype)) * gradient
        torch.maximum(kept, products.abs().sum(1).to(kept.dtype), out=kept)

    def _stop(self, begin: int, total: int) -> int:
        """Where the next call of a path ends: at the end of a panel if one fits, so that little is carried."""
        rows = self.rules.rows
        if self.kinked and total > rows > 1:
            rows -= 1  # the row that is carried over
        limit = min(begin + rows, total)
        if limit == total or self.kinked:
            return limit
        whole = [panel.stop + 1 for panel in self.panels if begin < panel.stop + 1 <= limit]
        return whole[-1] if whole else limit

    def _weights(self) -> Floats:
        """Weights of the rule along the straight path of the leaf."""
        if self.kinked:
            half = 0.5 * np.diff(self.nodes)
            return np.asarray(np.concatenate([half, [0.0]]) + np.concatenate([[0.0], half]))
        weights = np.zeros(len(self.nodes))
        for panel in self.panels:
            own = slice(panel.start, panel.stop + 1)
            weights[own] += quadrature.node_weights(self.nodes[own])
        return weights

    def matrices(self, panel: quadrature.Panel, like: Tensor) -> Tensor:
        """Value and difference matrix of a panel, one below the other, as a tensor of another one's kind."""
        key = (panel.stop - panel.start, like.dtype, like.device)
        if key not in self._matrices:
            both = np.concatenate([panel.value, panel.difference])
            self._matrices[key] = torch.as_tensor(both, dtype=like.dtype, device=like.device)
        return self._matrices[key]

    def _finish(self, examples: range, outputs: Floats, gaps: Floats, leaf: Floats) -> None:
        """Judge examples by F at the true ends and its change there, ``(examples, 2)`` each, and the leaf's sum."""
        slots = list(range(len(examples)))
        summary = self.sums.summary(slots)
        check_finite(self.engine.points, summary.scale)
        layers = len(self.engine.points)
        each = self.engine.path.per_example
        magnitude = np.stack([kept.reshape(len(examples), each).mean(1).cpu().numpy() for kept in self._magnitude], 1)
        cuts = np.array([bool(info.is_cut) for info in self.engine.points])
        for slot, example in enumerate(examples):
            start, end = outputs[slot]
            cut_off = self.ends[0] + (1.0 - self.ends[1])
            size = np.where(summary.scale[slot] > 0, summary.scale[slot] + magnitude[slot], 0.0)
            floor = carried(ROUNDINGS * self.precision * size, cuts)[:layers] + cut_off * summary.scale[slot, :layers]
            floor[summary.scale[slot, :layers] == 0] = 0.0  # what does not move has no rounding either
            factor = np.full(len(self.sums.layouts), 1.0 if self.kinked or len(self.panels) > 1 else 0.5)
            missed = np.where(cuts, np.abs(summary.total[slot, :layers] - float(leaf[slot, 0])), 0.0)
            error = np.maximum(summary.estimate[slot, :layers] * factor[:layers], missed) + floor
            scale = summary.scale[slot, :layers]
            residual = end - start - float(leaf[slot, 0])
            leaf_scale = max(abs(end - start), float(summary.scale[slot, layers:].sum()))
            good = bool((error <= self.rules.rtol * scale + self.rules.atol).all())
            allowed = self.rules.rtol * leaf_scale
            rounding = ROUNDINGS * float(self.precision.max()) * max(abs(start), abs(end))
            jumps = jumps_at_ends(gaps[slot], self.ends, allowed + rounding)
            good &= bool(max(abs(residual), abs(residual - gaps[slot].sum())) <= allowed) and not jumps
            verdict = Finished(
                example=example, slot=slot, status="ok" if good else "jump" if jumps else "budget", jumps=jumps,
                evaluations=len(self.nodes) * each, converged=good, residual=float(residual), error=error, floor=floor,
                limit=np.full(layers, np.inf),
                factor=factor, output=float(end), baseline_output=float(start),
            )  # fmt: skip
            self.collector.finish(verdict, self.sums)
            self.sums.clear(slot)


class _Pieces:
    """Consumer of the calls of some paths: reduces panels that are complete, carries the rows of those that are not."""

    def __init__(self, rule: FixedRule, first: int, count: int) -> None:
        self.rule = rule
        self.first = first
        self.count = count
        self.begin = self.stop = 0
        self._carried: dict[int, tuple[int, Tensor, Tensor]] = {}

    def __call__(self, point: int, activation: Tensor, gradient: Tensor) -> None:
        """Reduce the panels that these rows complete."""
        y, v = (t.reshape(self.count, len(t) // self.count, -1) for t in (activation, gradient))
        if self.begin == 0:
            self.rule.note(point, self.first, y[:, 0], v[:, 0])
        if self.stop == len(self.rule.nodes):
            self.rule.note(point, self.first, y[:, -1], v[:, -1])
        parts = [(y, v)]
        first = self.begin
        if point in self._carried:
            first, *before = self._carried.pop(point)
            parts.insert(0, (before[0], before[1]))
        keep = self._reduce(point, parts, first, self.begin + y.shape[1] - 1)
        if self.stop < len(self.rule.nodes):
            ys, vs = zip(*parts, strict=True)
            self._carried[point] = (keep, _nodes(ys, keep - first).clone(), _nodes(vs, keep - first).clone())

    def _reduce(self, point: int, parts: list[tuple[Tensor, Tensor]], first: int, last: int) -> int:
        """Reduce the complete panels on nodes ``first … last``; the node from which rows are needed again."""
        rule, elements = self.rule, parts[0][0].shape[2]
        panels = [panel for panel in rule.panels if first <= panel.start and panel.stop <= last]
        for rows, across in blocks(self.count, elements, 2 if rule.kinked else 32):
            slots = slice(self.first + rows.start, self.first + rows.stop)
            sums = rule.sums.part(point, slots, across)
            if rule.kinked:
                _trapezoids([(y[rows, :, across], v[rows, :, across]) for y, v in parts], sums, rule.workspace)
            for panel in panels:
                for row in range(rows.start, rows.stop):
                    own = slice(panel.start - first, panel.stop - first + 1)
                    y, v = (_nodes([t[row : row + 1, :, across] for t in side], own.start, own.stop)[0]
                            for side in zip(*parts, strict=True))  # fmt: skip
                    _panel(y, v, panel, [kept[row - rows.start] for kept in sums], rule)
        return last if rule.kinked else (panels[-1].stop if panels else first)


def _nodes(parts: Sequence[Tensor], start: int, stop: int | None = None) -> Tensor:
    """Nodes ``start … stop`` of tensors ``(paths, nodes, elements)`` that follow each other; a view if in one."""
    found = []
    for part in parts:
        length = part.shape[1]
        if start < length and (stop is None or stop > 0):
            found.append(part[:, max(0, start) : length if stop is None else min(length, stop)])
        start, stop = start - length, None if stop is None else stop - length
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def _trapezoids(parts: Sequence[tuple[Tensor, Tensor]], sums: Sequence[Tensor], workspace: Workspace) -> None:
    """Add trapezoids between neighbouring nodes, ``(paths, nodes, elements)`` each, to value, signed and square."""
    nodes = [(y[:, k], v[:, k]) for y, v in parts for k in range(y.shape[1])]
    like = nodes[0][0]
    dtype = work_dtype(like.dtype)
    dy, dv = (workspace.take(name, tuple(like.shape), dtype, like.device) for name in ("dy", "dv"))
    value, signed, square = sums
    for (y_0, v_0), (y_1, v_1) in pairwise(nodes):
        torch.sub(y_1.to(dtype), y_0.to(dtype), out=dy)
        torch.sub(v_1.to(dtype), v_0.to(dtype), out=dv)
        bend = dv.mul_(dy).mul_(0.5)
        signed += bend
        value += dy.mul_(v_0).add_(bend)
        square += torch.mul(bend, bend, out=dy)


def _panel(y: Tensor, v: Tensor, panel: quadrature.Panel, sums: Sequence[Tensor], rule: FixedRule) -> None:
    """Add one panel of Chebyshev nodes ``(nodes, elements)``; its estimate is the difference to the coarser rule."""
    dtype, (nodes, elements) = work_dtype(y.dtype), y.shape
    if y.dtype != dtype:
        y, v = y.to(dtype), v.to(dtype)
    rise = rule.workspace.take("rise", (nodes, elements), dtype, y.device)
    weighted = rule.workspace.take("weighted", (2 * nodes, elements), dtype, y.device)
    torch.sub(y, y[0], out=rise)  # the constant cancels
    torch.mm(rule.matrices(panel, y), rise, out=weighted)
    both = weighted.view(2, nodes, elements).mul_(v).sum(1)
    value, signed, square = sums
    value += both[0]
    signed += both[1]
    square += both[1].square_()
