"""Refinement for functions with kinks: ReLU, max-pool, clamp and their like.

Panels of two nodes share their ends. Where F has one kink in a panel, its end tangents meet there, at the fraction
``w = (s_1 h - ΔF) / ((s_1 - s_0) h)`` of the panel, and ``(w v_0 + (1 - w) v_1) Δy`` is the exact conductance of every
unit of every layer: a layer before the kink moves straight while its gradient jumps, a layer behind it keeps its
gradient. The local estimate is ``½ |Δv| |Δy|``.

A panel is split where its tangents meet. If that was its only kink, one half is straight and F lies on one tangent
over the other, to rounding, so that its kink sits at its end. Kinks of opposite sign can look the same, so such a
half is *probably* exact: its estimate is reduced, and when it is split again, it is just beside that end. Two
evaluations settle a kink, and run to the end the scheme gives the exact conductance of a piecewise linear network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conductance.panels import Evaluated, Floats, Places, Table, Work, main_share
from conductance.store import NodeStore
from conductance.sums import Layout, RunningSums, Workspace, blocks, wide_dtype

#: Nodes that open a path.
OPENING = 5
#: Panels within this factor of an example's worst are split in the same round.
WORST = 0.5
#: Tangents that meet closer to an end than this fraction do not choose the split: the middle does.
CLEAR = 0.02
#: A panel whose estimate has not fallen in so many splits sits on a jump, and is left alone.
STUCK = 12
#: Estimate of a panel with one kink in doubt, as part of ``½ |Δv| |Δy|``.
DOUBT = 0.4
#: Estimate of any other panel, likewise: the meeting of the tangents is a good place for the jump of most gradients.
USUAL = 0.5
#: Share that the estimate of a layer of one unit is raised by; of ``n`` units, the n-th part of it.
NARROW = 2.0
#: Number of panels below which the estimate of a path is doubled; of more, less, with the square.
FEW = 4.0
#: Distance from the kink at which such a panel is split, as part of the panel.
BESIDE = 1e-6
#: F lies on a tangent if it is off by less than this many roundings …
ROUNDINGS = 16.0
#: … and a kink in the panel's middle would be off this many times more.
CONTRAST = 1e3

_COLUMNS = ("left", "right", "f_left", "f_right", "s_left", "s_right", "meeting", "open", "stuck", "width", "beside")
_PLACES = ("place_left", "place_right")


class Kinked:
    """Panels of two nodes, split where the end tangents of F meet.

    Parameters
    ----------
    layouts
        Hook points, leaves last.
    sums, store
        Where results and nodes are kept.
    precision
        Unit roundoff of F as the model computes it.
    """

    def __init__(self, layouts: Sequence[Layout], sums: RunningSums, store: NodeStore, precision: float) -> None:
        self.layouts = layouts
        self.sums = sums
        self.store = store
        self.precision = precision
        self.workspace = Workspace()
        self.tables: dict[int, Table] = {}

    def begin(self, slot: int, path: int, ends: tuple[float, float]) -> list[Work]:
        """Open a path with equidistant nodes."""
        alphas = np.linspace(*ends, OPENING)
        return [Work(slot, path, alphas, np.zeros(OPENING, dtype=np.int64), "open")]

    def reduce(self, evaluated: Evaluated) -> None:
        """Turn openings and splits into panels."""
        if evaluated.works[0].kind == "open":
            self._open(evaluated)
        else:
            self._split(evaluated)

    def estimates(self, slots: list[int]) -> Floats:
        """Few units or few panels are given less credit: they do not average out the luck of single ones."""
        panels = sum(len(self.tables[slot].local) for slot in slots) / len(slots)
        return 1.0 + (FEW / panels) ** 2 + NARROW / np.array([max(1, layout.size) for layout in self.layouts])

    def limit(self, slots: list[int]) -> Floats:
        """Sum of the local estimates of all panels, ``(points,)``."""
        return np.sum([self.tables[slot].local.sum(0) for slot in slots], axis=0)  # type: ignore[no-any-return]

    def magnitude(self, slot: int) -> Floats:
        """``Σ |v| |Δy|``, and ``Σ max|v| max|y|``, over the opening panels."""
        return self.tables[slot].magnitude

    def residuals(self, slots: list[int]) -> tuple[Floats, Floats, Floats]:
        """Start, end and ``ΔF - Σ C_leaf`` of every panel."""
        tables = [self.tables[slot] for slot in slots]
        left, right = (np.concatenate([t[name] for t in tables]) for name in ("left", "right"))
        return left, right, np.concatenate([_residual(t.columns) for t in tables])

    def outputs(self, slots: list[int]) -> tuple[float, float]:
        """F at the start and at the end, averaged over these paths."""
        tables = [self.tables[slot] for slot in slots]
        starts = [t["f_left"][t["left"].argmin()] for t in tables]
        ends = [t["f_right"][t["right"].argmax()] for t in tables]
        return float(np.mean(starts)), float(np.mean(ends))

    def retire(self, slot: int) -> None:
        """Forget a path and free its nodes."""
        table = self.tables.pop(slot)
        self.store.release(np.concatenate([table[name] for name in _PLACES]))

    def refine(self, slots: list[int], scale: Floats, rounding: Floats, aim: str) -> list[Work]:
        """Split the panels within a factor two of the worst of all the paths given."""
        badness = {slot: self._badness(self.tables[slot], scale, rounding, aim) for slot in slots}
        worst = max(float(bad.max(initial=0.0)) for bad in badness.values())
        if worst <= 0.0:
            return []
        threshold = WORST * worst if aim == "error" else main_share(np.concatenate(list(badness.values())))
        return [
            self._split_work(slot, int(row)) for slot in slots for row in np.flatnonzero(badness[slot] >= threshold)
        ]

    def blocked(self, slots: list[int], rounding: Floats) -> bool:
        """Whether a panel that matters cannot be split: it sits on a jump."""
        tables = [self.tables[slot] for slot in slots]
        return any(
            bool(((t.local > rounding).any(1) & ((t["stuck"] >= STUCK) | ~_resolvable(t))).any()) for t in tables
        )

    def _badness(self, table: Table, scale: Floats, rounding: Floats, aim: str) -> Floats:
        resolvable = _resolvable(table)
        if aim == "residual":
            return np.where(resolvable, np.abs(_residual(table.columns)), 0.0)
        local = np.where(table.local > rounding, table.local, 0.0) / np.maximum(scale, np.finfo(np.float64).tiny)
        free = resolvable & (table["stuck"] < STUCK)
        return np.where(free, local.max(1, initial=0.0), 0.0)

    def _split_work(self, slot: int, row: int) -> Work:
        table = self.tables[slot]
        left, right, meeting = (float(table[name][row]) for name in ("left", "right", "meeting"))
        fraction = meeting if CLEAR < meeting < 1 - CLEAR else 0.5
        beside = float(table["beside"][row])
        if 0.0 < beside < 0.25:
            fraction = beside if meeting < 0.5 else 1.0 - beside
        middle = left + fraction * (right - left)
        if not left < middle < right:
            middle = 0.5 * (left + right)
        alphas = np.array([left, middle, right])
        places = np.array([table["place_left"][row], 0, table["place_right"][row]], dtype=np.int64)
        return Work(slot, table.path, alphas, places, "split", row)

    def _open(self, evaluated: Evaluated) -> None:
        works, count = evaluated.works, OPENING - 1
        alphas = np.stack([work.alphas for work in works])
        f, s = evaluated.output, evaluated.slope
        columns = self._columns(alphas[:, :-1], alphas[:, 1:], f[:, :-1], f[:, 1:], s[:, :-1], s[:, 1:])
        local = np.zeros((len(works), count, len(self.layouts)))
        magnitude = np.zeros((len(works), len(self.layouts)))
        for point, layout in enumerate(self.layouts):
            for part, across in blocks(len(works), layout.size):
                nodes = evaluated.nodes(part, layout.device)
                y, v = self.store.gather(evaluated.call, point, nodes, across, self.workspace)
                result = _opened(v, y, *self._coefficients(columns, part, count, v))
                self.sums.add(point, evaluated.slots[part], across, *result[:3])
                local[part, :, point] += result[3].cpu().numpy()
                magnitude[part, point] += result[4].cpu().numpy()
        kept = self._keep(evaluated)
        for n, work in enumerate(works):
            own = {name: column[n * count : (n + 1) * count].copy() for name, column in columns.items()}
            own |= {"place_left": kept[n, :-1].copy(), "place_right": kept[n, 1:].copy()}
            self.tables[work.slot] = Table(work.path, own, local[n], magnitude[n])

    def _split(self, evaluated: Evaluated) -> None:
        works = evaluated.works
        parents = {
            name: np.array([self.tables[work.slot][name][work.panel] for work in works]) for name in _COLUMNS + _PLACES
        }
        middle = np.array([work.alphas[1] for work in works])
        f, s = evaluated.output[:, 1], evaluated.slope[:, 1]
        halves = (
            self._columns(parents["left"], middle, parents["f_left"], f, parents["s_left"], s),
            self._columns(middle, parents["right"], f, parents["f_right"], s, parents["s_right"]),
        )
        local = np.zeros((2, len(works), len(self.layouts)))
        for point, layout in enumerate(self.layouts):
            given: tuple[slice, list[Tensor]] | None = None
            for part, across in blocks(len(works), layout.size):
                nodes = evaluated.nodes(part, layout.device)
                y, v = self.store.gather(evaluated.call, point, nodes, across, self.workspace)
                if given is None or given[0] != part:
                    given = part, [c for panel in (*halves, parents) for c in self._coefficients(panel, part, 1, v)]
                result = _halved(v, y, given[1], self.workspace)
                self.sums.add(point, evaluated.slots[part], across, *result[:3])
                local[0, part, point] += result[3].cpu().numpy()
                local[1, part, point] += result[4].cpu().numpy()
        self._replace(evaluated, parents, halves, local)

    def _replace(
        self, evaluated: Evaluated, parents: dict[str, Any], halves: tuple[dict[str, Any], ...], local: Floats
    ) -> None:
        """Put the left half in its parent's row and append the right one, table by table."""
        works = evaluated.works
        before = np.stack([self.tables[work.slot].local[work.panel] for work in works])
        tiny = np.finfo(np.float64).tiny
        magnitude = np.stack([self.tables[work.slot].magnitude for work in works])
        worst = (before / np.maximum(magnitude, tiny)).argmax(1)[:, None]
        kept = self._keep(evaluated)
        self.store.release(np.concatenate([parents[name] for name in _PLACES]))
        by_slot: dict[int, list[int]] = {}
        for n, work in enumerate(works):
            by_slot.setdefault(work.slot, []).append(n)
        for side, half in enumerate(halves):
            share = np.take_along_axis(local[side], worst, 1) / np.maximum(np.take_along_axis(before, worst, 1), tiny)
            narrow = half["width"] <= 0.6 * parents["width"]  # else it kept its estimate with its width
            half["stuck"] = np.where(share[:, 0] > 0.9, parents["stuck"] + narrow, 0)
            half |= {"place_left": kept[:, side], "place_right": kept[:, side + 1]}
        for slot, chosen in by_slot.items():
            table = self.tables[slot]
            left, right = ({name: column[chosen] for name, column in half.items()} for half in halves)
            table.replace(np.array([works[n].panel for n in chosen]), left, local[0, chosen])
            table.append(right, local[1, chosen])

    def _keep(self, evaluated: Evaluated) -> Places:
        """Store the nodes evaluated just now; the place of every node, counted once for each panel end."""
        kept = evaluated.where.copy()
        fresh = kept >= 0
        rows, inverse = np.unique(kept[fresh], return_inverse=True)
        kept[fresh] = np.array(self.store.keep(evaluated.call, rows.tolist()), dtype=np.int64)[inverse]
        for ends in (kept[:, :-1], kept[:, 1:]):
            self.store.use(ends.reshape(-1))
        return kept

    def _columns(
        self, left: Floats, right: Floats, f_left: Floats, f_right: Floats, s_left: Floats, s_right: Floats
    ) -> dict[str, Any]:
        """Columns of panels from what is known of their ends."""
        width, change, bend = right - left, f_right - f_left, (s_right - s_left) * (right - left)
        with np.errstate(divide="ignore", invalid="ignore"):
            meeting = np.where(bend != 0.0, (s_right * width - change) / bend, 0.5)
        size = np.maximum(np.abs(f_left), np.abs(f_right)) + np.abs(s_left * width) + np.abs(s_right * width)
        rounding = ROUNDINGS * self.precision * size
        off = np.minimum(np.abs(change - s_left * width), np.abs(change - s_right * width))
        at_end = (off <= rounding) & (np.abs(bend) > CONTRAST * rounding)
        unsure = np.divide(4 * rounding, np.abs(bend), out=np.zeros_like(width), where=at_end)
        beside = np.where(at_end, np.maximum(BESIDE, unsure), 0.0)
        given = (
            left, right, f_left, f_right, s_left, s_right, meeting, np.where(at_end, DOUBT, USUAL), np.zeros_like(left),
            width, beside,
        )  # fmt: skip
        return {name: column.reshape(-1) for name, column in zip(_COLUMNS, given, strict=True)}

    def _coefficients(self, columns: dict[str, Any], part: slice, panels: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Weight of the right end's gradient, and half of "open", as columns beside the nodes."""
        rows = slice(part.start * panels, part.stop * panels)
        weight = 1.0 - np.clip(columns["meeting"][rows], 0.0, 1.0)
        shape = (-1, panels, 1) if panels > 1 else (-1, 1)
        return tuple(  # type: ignore[return-value]
            torch.as_tensor(column, dtype=like.dtype, device=like.device).reshape(shape)
            for column in (weight, 0.5 * columns["open"][rows])
        )


def _resolvable(table: Table) -> NDArray[np.bool_]:
    return np.asarray(table["width"] > 64 * np.finfo(np.float64).eps)


def _residual(columns: dict[str, Any]) -> Floats:
    weight = 1.0 - np.clip(columns["meeting"], 0.0, 1.0)
    slope = columns["s_left"] + weight * (columns["s_right"] - columns["s_left"])
    residual: Floats = columns["f_right"] - columns["f_left"] - slope * columns["width"]
    return residual


def _opened(v: Tensor, y: Tensor, weight: Tensor, half_open: Tensor) -> tuple[Tensor, ...]:
    """Sums of new panels on ``(nodes, n, elements)``: value, signed, square, local estimates, magnitude."""
    weight, half_open = weight.movedim(1, 0), half_open.movedim(1, 0)
    dv, dy = v[1:] - v[:-1], y[1:] - y[:-1]
    bend = dv * dy
    straight = v[:-1] * dy
    rounding = (v.abs().amax(0) * y.abs().amax(0)).sum(1)  # activations and gradients come rounded themselves
    magnitude = straight.abs().sum((0, 2)) + rounding
    value = straight.addcmul_(weight, bend)
    error = bend.mul_(half_open)
    local = error.abs().sum(2).movedim(0, 1)
    wide = error.to(wide_dtype(v.device))
    return value.sum(0, dtype=wide.dtype), wide.sum(0), (wide * wide).sum(0), local, magnitude


def _halved(v: Tensor, y: Tensor, coefficients: Sequence[Tensor], workspace: Workspace) -> tuple[Tensor, ...]:
    """What splitting panels changes, on nodes ``(3, n, elements)``: value, signed, square; the halves' local estimates.

    The value of a panel is ``v_0 Δy + weight Δv Δy``; of two halves minus the whole only products of differences
    remain. The whole's product is formed from its own ends, as it was when it was added, so that the squares cancel.
    """
    weight_1, open_1, weight_2, open_2, weight, open_0 = coefficients

    def buffer(name: str, dtype: torch.dtype = v.dtype) -> Tensor:
        return workspace.take(name, v.shape[1:], dtype, v.device)

    dv_1, dv_2 = (torch.sub(v[k + 1], v[k], out=buffer(f"dv{k}")) for k in (0, 1))
    dy_1, dy_2 = (torch.sub(y[k + 1], y[k], out=buffer(f"dy{k}")) for k in (0, 1))
    whole = torch.sub(v[2], v[0], out=v[1]).mul_(torch.sub(y[2], y[0], out=y[1]))
    value = torch.mul(dv_1, dy_2, out=buffer("value")).addcmul_(weight, whole, value=-1)
    first, second = dv_1.mul_(dy_1), dv_2.mul_(dy_2)
    value.addcmul_(weight_1, first).addcmul_(weight_2, second)
    first.mul_(open_1), second.mul_(open_2), whole.mul_(open_0)
    local_1, local_2 = torch.abs(first, out=dy_1).sum(1), torch.abs(second, out=dy_2).sum(1)
    wide = wide_dtype(v.device)
    if wide != v.dtype:
        first, second, whole = (
            buffer(name, wide).copy_(error) for name, error in (("first", first), ("second", second), ("whole", whole))
        )
    signed = torch.add(first, second, out=buffer("signed", wide)).sub_(whole)
    square = first.square_().addcmul_(second, second).addcmul_(whole, whole, value=-1)
    return value, signed, square, local_1, local_2
