"""Rounds of refinement: which rows come next, when an example is done, and what it is told if it cannot be.

Examples are refined side by side. In every round each of them is judged on its complete sums, names the panels to
refine, and all the rows this takes are packed into calls of at most ``rows`` rows; so the size of a call decides when
a row is run, never whether.

*Done* means that the estimated error of every layer asked is within the tolerance **and** that the change of F along
the path is the integral of its gradient (the guard): the leaf is a cut in every model, so ``dF - Σ C_leaf`` belongs to
no unit. Where that difference does not shrink, F jumps or its gradient is not its derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conductance.collecting import Collector, Finished
from conductance.ends import Jump, end_gaps, jumps_at_ends, true_outputs
from conductance.engine import Engine, check_finite, non_finite
from conductance.flights import ROUNDINGS, Figures, Flight, Rules, carried
from conductance.panels import Evaluated, Floats, Scheme, Work, main_share
from conductance.quadrature import PathRule
from conductance.store import Call
from conductance.sums import SPREAD, RunningSums, Summary

#: Rounds after which the guard asks whether the unattributed share has halved.
PATIENCE = 5
#: Rounds that a residual on a small part of the path is narrowed down before it is called a jump.
NARROWING = 30
#: Width of a panel, as part of the path, that counts as the place of a jump.
NARROW = 1e-6
#: A jump: the main share of the residual lies on less than this part of the path.
JUMP_WIDTH = 0.15
#: The part of the path that holds jumps shrinks at least so much while the guard is patient.
SHRINKING = 0.7
#: Panels on which the gradient is compared with differences of F before it is called no derivative.
COMPARED = 5
#: They agree if the difference is less than this part of the gradient, and of the residual, and rounding.
AGREEING = 0.05
EXPLAINING = 0.5
#: A layer counts as settled if its conductance and its error together are below this part of the tolerance on the leaf.
NOTHING = 1e-3


class Refinement:
    """Refine all examples of an engine to a tolerance.

    Parameters
    ----------
    engine
        Runs the rows.
    sums, scheme
        Where results are kept and how panels are made; both serve ``flights`` examples at a time.
    collector
        Receives each example when it is done.
    rules
        Tolerance and budgets.
    flights
        Examples in flight at most.
    precision
        Unit roundoff of each point, leaves included, ``(points,)``.
    ends
        First and last place on the path.
    judge_leaves
        Whether the tolerance also holds for the leaves, that is for integrated gradients.
    """

    def __init__(
        self,
        engine: Engine,
        sums: RunningSums,
        scheme: Scheme,
        collector: Collector,
        rules: Rules,
        flights: int,
        precision: Floats,
        ends: tuple[float, float],
        *,
        judge_leaves: bool = False,
    ) -> None:
        self.engine = engine
        self.sums = sums
        self.scheme = scheme
        self.collector = collector
        self.rules = rules
        self.precision = precision
        self.ends = ends
        self._layers = len(engine.points)
        self._judged = len(sums.layouts) if judge_leaves else self._layers
        self._cuts = np.array([bool(info.is_cut) for info in engine.points])
        self._paths = engine.path.per_example
        self._free = list(range(flights))[::-1]
        self._active: dict[int, Flight] = {}
        self._flight_of: dict[int, Flight] = {}
        self._still = engine.path.still.tolist()
        self._rules: dict[int, PathRule] | None = None

    def keep_rules(self) -> dict[int, PathRule]:
        """Keep the panels of every path that is done from now on, by the number of the path."""
        self._rules = {}
        return self._rules

    def run(self, advance: Callable[[int], Any], examples: Iterable[int]) -> None:
        """Work through examples; ``advance`` is told how many are done."""
        waiting = iter(examples)
        while True:
            self._admit(waiting)
            if not self._active:
                return
            self._evaluate([work for flight in self._active.values() for work in flight.works])
            done = self._judge()
            advance(done)

    def _admit(self, waiting: Iterator[int]) -> None:
        admitted = []
        for example in islice(waiting, len(self._free)):
            flight = Flight(example, self._free.pop(), self.ends, self._still[example])
            flight.works = [work for n in range(self._paths) for work in self._begin(flight, n)]
            self._active[flight.slot] = self._flight_of[example] = flight
            admitted.append(flight)
        if admitted and self.ends != (0.0, 1.0):
            works = [work for flight in admitted for work in flight.works]
            found = true_outputs(self.engine, np.array([work.path for work in works]), self.rules.rows)
            for work, output in zip(works, found, strict=True):
                self._flight_of[work.path // self._paths].outputs[work.slot] = output

    def _begin(self, flight: Flight, n: int) -> list[Work]:
        return self.scheme.begin(flight.slot * self._paths + n, flight.example * self._paths + n, flight.ends)

    def _slots(self, flight: Flight) -> list[int]:
        return list(range(flight.slot * self._paths, (flight.slot + 1) * self._paths))

    # ---- rows into calls

    def _evaluate(self, works: list[Work]) -> None:
        batch: list[Work] = []
        rows = 0
        for work in works:
            need = len(work.missing)
            if batch and rows + need > self.rules.rows:
                self._call(batch)
                batch, rows = [], 0
            batch.append(work)
            rows += need
        if batch:
            self._call(batch)

    def _call(self, works: list[Work]) -> None:
        """Evaluate the missing nodes of works together, each once, and hand the works to the scheme."""
        rows: dict[tuple[int, float], int] = {}
        for work in works:
            for k in work.missing:
                rows.setdefault((work.path, float(work.alphas[k])), len(rows))
        paths = np.array([path for path, _ in rows], dtype=np.int64)
        alphas = np.array([alpha for _, alpha in rows])
        call, output, slope = self._run(paths, alphas)
        for path in paths.tolist():
            self._flight_of[path // self._paths].evaluations += 1
        groups: dict[Any, list[Work]] = {}
        again: list[Work] = []
        bad = ~(np.isfinite(output) & np.isfinite(slope))
        for work in works:
            at = [rows[work.path, float(work.alphas[k])] for k in work.missing]
            if bad[at].any():
                again += self._inset(work, paths, alphas, output, np.flatnonzero(bad))
            else:
                groups.setdefault(work.kind, []).append(work)
                if work.kind == "open":
                    flight, ends = self._flight_of[work.path // self._paths], [at[0], at[-1]]
                    flight.opened[work.slot] = np.stack([output[ends], slope[ends]])
        for group in groups.values():
            self.scheme.reduce(_evaluated(group, rows, call, output, slope))
        if again:
            self._evaluate(again)

    def _run(self, paths: NDArray[np.int64], alphas: Floats) -> tuple[Call, Floats, Floats]:
        """Run rows, in several calls if they are more than one may have."""
        whole: Call | None = None
        outputs, slopes = [], []
        for first in range(0, len(paths), self.rules.rows):
            part = slice(first, first + self.rules.rows)
            call = Call(len(self.sums.layouts))
            nodes = self.engine.run(paths[part], alphas[part], call)
            outputs.append(nodes.output)
            slopes.append(nodes.slope)
            if whole is None:
                whole = call
            else:
                whole.extend(call)
        assert whole is not None
        return whole, np.concatenate(outputs), np.concatenate(slopes)

    def _inset(
        self, work: Work, paths: NDArray[np.int64], alphas: Floats, output: Floats, bad: NDArray[np.intp]
    ) -> list[Work]:
        """A path whose gradient is not finite at an end starts again a little inside; anything else is an error."""
        flight = self._flight_of[work.path // self._paths]
        inside = 1e-9 if self.precision.max() < 1e-12 else 1e-6
        mine = [row for row in bad if paths[row] == work.path]
        ends = (work.alphas[0], work.alphas[-1])
        if (
            work.kind != "open"
            or ends[0] >= inside
            or any(not np.isfinite(output[row]) or alphas[row] not in ends for row in mine)
        ):
            raise non_finite(self.engine, paths[mine], alphas[mine])
        if work.slot not in flight.outputs:  # the ends have just been run
            at = [np.flatnonzero((paths == work.path) & (alphas == end))[0] for end in ends]
            flight.outputs[work.slot] = output[at]
        flight.ends = (inside, 1 - inside)
        return self.scheme.begin(work.slot, work.path, flight.ends)

    # ---- judging

    def _judge(self) -> int:
        """Decide for every example in flight; the number of those that are done."""
        flights = list(self._active.values())
        summary = self.sums.summary([flight.slot for flight in flights])
        check_finite(self.engine.points, summary.scale)
        done = 0
        for row, flight in enumerate(flights):
            verdict = self._verdict(flight, summary, row)
            if verdict is not None:
                self._finish(flight, verdict)
                done += 1
        return done

    def _verdict(self, flight: Flight, summary: Summary, row: int) -> Finished | None:
        """What to say of an example that is done, or None with its next works set."""
        slots = self._slots(flight)
        figures = self._figures(flight, slots, summary, row)
        allowed = self.rules.rtol * np.maximum(figures.scale, figures.floor) + self.rules.atol
        within = np.where(
            figures.floor < 0.5 * allowed, allowed - figures.floor, np.maximum(0.5 * allowed, figures.floor)
        )
        precise = bool((figures.nothing | (figures.error <= within)).all())  # what rounding hides is not worth a row
        unexplained = self.rules.rtol * figures.leaf_scale + figures.leaf_floor
        inner = figures.residual - float(figures.gap.sum())
        at_ends = jumps_at_ends(figures.gap, flight.ends, unexplained + 3 * figures.leaf_floor)
        attributed = max(abs(figures.residual), abs(inner)) <= unexplained and not at_ends
        flight.works = []
        status = ""
        if not precise:
            flight.works = self._refine(slots, figures, "error")
        if not flight.works and not attributed:
            status = "jump" if at_ends and abs(inner) <= unexplained else self._guard(flight, slots, inner)
            flight.works = [] if status else self._refine(slots, figures, "residual")
        if flight.works:
            flight.works = _affordable(flight.works, self.rules.max_evaluations - flight.evaluations)
            if flight.works:
                return None
            status = "budget"
        asked = self.rules.rtol * figures.scale + self.rules.atol
        settled = precise and attributed and bool((figures.nothing | (figures.error + figures.floor <= asked)).all())
        if not status:
            status = "ok" if settled else "jump" if at_ends else self._why(slots, figures, asked)
        elif status in ("jump", "gradient") and abs(figures.residual) <= 16 * figures.leaf_floor and not at_ends:
            status = "precision" if (figures.floor > asked).any() else status
        jumps: tuple[Jump, ...] = ()
        if status == "jump":
            jumps = at_ends if at_ends and abs(inner) <= unexplained else (*self._jumps(slots), *at_ends)
        return Finished(
            example=flight.example, slot=flight.slot, status=status, jumps=jumps, evaluations=flight.evaluations,
            converged=settled and status == "ok", residual=figures.residual, error=figures.error + figures.floor,
            floor=figures.floor, limit=figures.limit,
            factor=figures.factor, output=figures.output, baseline_output=figures.baseline_output,
        )  # fmt: skip

    def _figures(self, flight: Flight, slots: list[int], summary: Summary, row: int) -> Figures:
        layers = slice(0, self._judged)
        _lefts, _, residuals = self.scheme.residuals(slots)
        gap = np.mean([end_gaps(flight.opened[slot][0], flight.outputs.get(slot)) for slot in slots], axis=0)
        residual = float(residuals.sum()) / self._paths + float(gap.sum())
        factor = self.scheme.estimates(slots)
        limit = SPREAD * self.scheme.limit(slots)[layers] / self._paths
        magnitude = np.mean([self.scheme.magnitude(slot) for slot in slots], axis=0)
        cut_off = flight.ends[0] + (1.0 - flight.ends[1])  # the path is shorter by this much
        rounding = carried(ROUNDINGS * self.precision * magnitude, self._cuts)
        floor = rounding + cut_off * magnitude
        leaf_total = float(summary.total[row, self._layers :].sum())
        change = leaf_total + residual
        leaf_scale = max(abs(change), float(summary.scale[row, self._layers :].sum()))
        slope = min(np.mean([np.abs(flight.opened[slot][1]) for slot in slots], axis=0).tolist())
        total = summary.total[row, : self._layers]  # across a jump a cut carries what the leaf does, or all of dF
        missed = np.where(self._cuts, np.minimum(np.abs(total - leaf_total), np.abs(total - change)), 0.0)
        missed = np.append(missed, np.zeros(self._judged - self._layers))
        start, end = np.mean([flight.outputs.get(slot, flight.opened[slot][0]) for slot in slots], axis=0).tolist()
        error = np.maximum(np.minimum(summary.estimate[row, layers], limit) * factor[layers], missed)
        scale, rounded = summary.scale[row, layers], floor[layers]
        exact = flight.still | ((scale == 0.0) & (error == 0.0))  # what does not move has no rounding either
        error, rounded = np.where(exact, 0.0, error), np.where(exact, 0.0, rounded)
        return Figures(
            scale=scale,
            error=error,
            limit=limit,
            floor=rounded,
            nothing=scale + error + rounded <= NOTHING * self.rules.rtol * leaf_scale,
            magnitude=magnitude[layers],
            factor=factor,
            residual=residual,
            gap=gap,
            leaf_scale=leaf_scale,
            leaf_floor=float(rounding[self._layers :].sum())
            + 10 * cut_off * max(leaf_scale, slope)  # of the change at the ends, what any function has
            + ROUNDINGS * float(self.precision.max()) * max(abs(start), abs(end)),
            output=end,
            baseline_output=start,
        )

    def _refine(self, slots: list[int], figures: Figures, aim: str) -> list[Work]:
        leaves = len(self.sums.layouts) - self._judged
        scale = np.concatenate([np.maximum(figures.scale, figures.floor) + self.rules.atol, np.full(leaves, np.inf)])
        return self.scheme.refine(slots, scale, self._rounding(figures), aim)

    def _rounding(self, figures: Figures) -> Floats:
        """Local estimates that are nothing but rounding, for each point; no leaf is refined for its own sake."""
        leaves = np.full(len(self.sums.layouts) - self._judged, np.inf)
        return np.concatenate([0.25 * self.precision[: self._judged] * figures.magnitude, leaves])

    def _guard(self, flight: Flight, slots: list[int], residual: float) -> str:
        """Name the reason if the unattributed share does not shrink; "" to go on.

        Splitting a panel with a jump leaves the residual to one half; where the gradient is not the derivative each
        half has its part. So the path that holds most of the residual shrinks in one case and not in the other.
        """
        left, right, _ = self._main_share(slots)
        width = float((right - left).sum()) / self._paths
        flight.residuals.append(abs(residual))
        flight.widths.append(width)
        if len(flight.residuals) <= PATIENCE or flight.residuals[-1] <= 0.5 * flight.residuals[-1 - PATIENCE]:
            return ""
        if width > JUMP_WIDTH:
            if width <= SHRINKING * flight.widths[-1 - PATIENCE]:
                return ""
            if len(flight.residuals) >= flight.compared + PATIENCE:  # smaller panels may tell what large ones did not
                flight.compared = len(flight.residuals)
                if not self._is_derivative(flight, slots):
                    return "gradient"
            return "jump" if len(flight.residuals) > NARROWING else ""
        narrow = bool((right - left).max() <= NARROW)
        return "jump" if narrow or len(flight.residuals) > NARROWING else ""

    def _is_derivative(self, flight: Flight, slots: list[int]) -> bool:
        """Whether the gradient is that of F after all, and changes too fast for the nodes so far.

        Three rows close together, on each of the panels that leave most over, tell one from the other: a wrong
        gradient misses there, for each unit of the path, what the whole panel leaves over, however little that is.
        """
        panels = [
            (abs(size), start, stop, flight.example * self._paths + n)
            for n, slot in enumerate(slots)
            for start, stop, size in zip(*self.scheme.residuals([slot]), strict=True)
        ]
        size, start, stop, paths = (np.array(column) for column in zip(*sorted(panels)[-COMPARED:], strict=True))
        if flight.evaluations + 3 * len(paths) > self.rules.max_evaluations:
            return True  # the budget ends it
        step = (stop - start) * max(1e-4, float(self.precision.max()) ** (1 / 3))
        middle = start + 0.382 * (stop - start)
        alphas = np.stack([middle - step, middle, middle + step], 1)
        _, output, slope = self._run(np.repeat(paths.astype(np.int64), 3), alphas.ravel())
        flight.evaluations += alphas.size
        output, slope = output.reshape(alphas.shape), slope.reshape(alphas.shape)
        missed = np.abs(output[:, 2] - output[:, 0] - step / 3 * (slope @ [1.0, 4.0, 1.0])) / (2 * step)
        rounding = ROUNDINGS * float(self.precision.max()) * np.abs(output).max(1) / step
        allowed = np.minimum(AGREEING * np.abs(slope).max(1), EXPLAINING * size / (stop - start))
        return bool(np.median(missed - rounding - allowed) < 0)

    def _main_share(self, slots: list[int]) -> tuple[Floats, Floats, Floats]:
        """The panels that hold nine tenths of the residual."""
        left, right, residual = self.scheme.residuals(slots)
        chosen = np.abs(residual) >= main_share(np.abs(residual))
        return left[chosen], right[chosen], residual[chosen]

    def _jumps(self, slots: list[int]) -> tuple[Jump, ...]:
        left, right, size = self._main_share(slots)
        order = np.argsort(left, kind="stable")
        return tuple((float(left[k]), float(right[k]), float(size[k])) for k in order)

    def _why(self, slots: list[int], figures: Figures, asked: Floats) -> str:
        """Status of an example that nothing more can be done for."""
        if (figures.floor > asked).any():
            return "precision"
        return "jump" if self.scheme.blocked(slots, self._rounding(figures)) else "precision"

    def _finish(self, flight: Flight, verdict: Finished) -> None:
        self.collector.finish(verdict, self.sums)
        for n, slot in enumerate(self._slots(flight)):
            if self._rules is not None:
                self._rules[flight.example * self._paths + n] = self.scheme.rule(slot)
            self.scheme.retire(slot)
        self.sums.clear(flight.slot)
        del self._active[flight.slot], self._flight_of[flight.example]
        self._free.append(flight.slot)


def _affordable(works: list[Work], room: int) -> list[Work]:
    """As many works, from the first, as there is room to evaluate."""
    cost = np.cumsum([len(work.missing) for work in works])
    return works[: int(np.searchsorted(cost, room, side="right"))]


def _evaluated(
    works: list[Work], rows: dict[tuple[int, float], int], call: Call, output: Floats, slope: Floats
) -> Evaluated:
    where = np.stack([work.places for work in works])
    f, s = np.full(where.shape, np.nan), np.full(where.shape, np.nan)
    for n, work in enumerate(works):
        for k in work.missing:
            row = rows[work.path, float(work.alphas[k])]
            where[n, k], f[n, k], s[n, k] = row, output[row], slope[row]
    return Evaluated(works, call, where, f, s)
