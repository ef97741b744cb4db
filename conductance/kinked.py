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
from conductance.quadrature import Panel, PathRule
from conductance.store import NodeStore
from conductance.sums import Layout, RunningSums, Workspace, blocks, wide_dtype

#: Nodes that open a path: the inner ones at irrational places, for at even ones a periodic function looks constant.
INNER = (np.sqrt(0.06), np.sqrt(0.27), np.sqrt(0.56))
OPENING = len(INNER) + 2
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
#: Share that the estimate of a layer is raised by that is asked alone: of several the worst decides.
ALONE = 0.3
#: Number of panels below which the estimate of a path is doubled; of more, less, with the square.
FEW = 4.0
#: Distance from the kink at which such a panel is split, as part of the panel.
BESIDE = 1e-6
#: F lies on a tangent if it is off by less than this many roundings …
ROUNDINGS = 16.0
#: … and a kink in the panel's middle would be off this many times more.
CONTRAST = 1e3

#: Elements of a layer that one step of a split works on, at most …
WIDEST = 1 << 15
#: … and from which on the works of one path are summed by one matrix product.
NARROWEST = 1 << 11

_COLUMNS = ("left", "right", "f_left", "f_right", "s_left", "s_right", "meeting", "open", "stuck", "width", "beside")
_PLACES = ("place_left", "place_right")
#: ``y_1 - y_0`` and ``(v_1 - v_0)(y_1 - y_0)`` as coefficients of gradients (rows) and activations (columns).
_RISE = np.array([[-1.0, 1.0]])
_BEND = np.array([[1.0, -1.0], [-1.0, 1.0]])


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
        """Open a path."""
        alphas = np.array([ends[0], *(ends[0] + (ends[1] - ends[0]) * np.array(INNER)), ends[1]])
        return [Work(slot, path, alphas, np.zeros(OPENING, dtype=np.int64), "open")]

    def reduce(self, evaluated: Evaluated) -> None:
        """Turn openings and splits into panels."""
        if evaluated.works[0].kind == "open":
            self._open(evaluated)
        else:
            self._split(evaluated)

    def estimates(self, slots: list[int]) -> Floats:
        """Few units, panels or layers are given less credit: they do not average out the luck of single ones."""
        panels = sum(len(self.tables[slot].local) for slot in slots) / len(slots)
        return (
            1.0
            + (FEW / panels) ** 2
            + (ALONE if len(self.layouts) <= 2 else 0.0)  # one layer, and the input
            + NARROW / np.array([max(1, layout.size) for layout in self.layouts])
        )

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

    def rule(self, slot: int) -> PathRule:
        """The panels of a path as they are now."""
        table = self.tables[slot]
        order = np.argsort(table["left"], kind="stable")
        nodes = np.append(table["left"][order], table["right"].max())
        matrices = zip(*panel_matrices(table["meeting"][order], table["open"][order]), strict=True)
        panels = tuple(Panel(k, k + 1, value, difference) for k, (value, difference) in enumerate(matrices))
        straight = np.all(table.local[order] <= CONTRAST * self.precision * table.magnitude, axis=1)
        return PathRule(nodes, panels, 1.0 + (FEW / len(panels)) ** 2, straight)

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
            for part, across in blocks(len(works), layout.size, 2):
                nodes = evaluated.nodes(part, layout.device)
                y, v = self.store.gather(evaluated.call, point, nodes, across, self.workspace)
                rows = slice(part.start * count, part.stop * count)
                result = _opened(v, y, *_coefficients(columns, rows, count, v))
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
        weights = _Weights(*halves, parents)
        for point, layout in enumerate(self.layouts):
            for part, across in blocks(len(works), layout.size, widest=WIDEST):
                nodes = evaluated.nodes(part, layout.device, (2, 0, 1))  # two lie in the store, one in the call
                y, v = self.store.gather(evaluated.call, point, nodes, across, self.workspace)
                products, sizes = _products(v, y, self.workspace)
                local[:, part, point] += weights.half_open[:2, part] * sizes.cpu().numpy().T
                self._fold(evaluated.slots[part], point, across, products, *weights.of(part, v))
        self._replace(evaluated, parents, halves, local)

    def _fold(
        self, slots: Tensor, point: int, across: slice, products: Tensor, linear: Tensor, squared: Tensor
    ) -> None:
        """Add weighted products ``(n, 4, elements)`` and their squares to the sums of their slots."""
        count, _, elements = products.shape
        wide = wide_dtype(products.device)
        squares = self.workspace.take("squares", (count, 3, elements), wide, products.device)
        squares.copy_(products[:, :3]).mul_(squares)
        if elements < NARROWEST:
            value, signed = torch.bmm(linear, products).unbind(1)
            self.sums.add(point, slots, across, value, signed, torch.bmm(squared, squares)[:, 0])
            return
        first = 0
        for count in slots.unique_consecutive(return_counts=True)[1].tolist():  # one multiplication for each slot
            own = slice(first, first + count)
            both = torch.mm(linear[own].movedim(1, 0).reshape(2, -1), products[own].view(-1, elements))
            square = torch.mm(squared[own].view(1, -1), squares[own].view(-1, elements))
            self.sums.add(point, slots[first : first + 1], across, both[:1], both[1:], square)
            first += count

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
        width = right - left
        meeting, open_, beside = tangents(width, f_left, f_right, s_left, s_right, self.precision)
        given = (
            left, right, f_left, f_right, s_left, s_right, meeting, open_, np.zeros_like(left), width, beside,
        )  # fmt: skip
        return {name: column.reshape(-1) for name, column in zip(_COLUMNS, given, strict=True)}


def tangents(
    width: Floats, f_left: Floats, f_right: Floats, s_left: Floats, s_right: Floats, precision: float
) -> tuple[Floats, Floats, Floats]:
    """Where the end tangents of F meet in panels, how much of their estimate counts, where to split beside a kink."""
    change, bend = f_right - f_left, (s_right - s_left) * width
    with np.errstate(divide="ignore", invalid="ignore"):
        meeting = np.where(bend != 0.0, (s_right * width - change) / bend, 0.5)
    size = np.maximum(np.abs(f_left), np.abs(f_right)) + np.abs(s_left * width) + np.abs(s_right * width)
    rounding = ROUNDINGS * precision * size
    off = np.minimum(np.abs(change - s_left * width), np.abs(change - s_right * width))
    at_end = (off <= rounding) & (np.abs(bend) > CONTRAST * rounding)
    unsure = np.divide(4 * rounding, np.abs(bend), out=np.zeros_like(width), where=at_end)
    beside = np.where(at_end, np.maximum(BESIDE, unsure), 0.0)
    return meeting, np.where(at_end, DOUBT, USUAL), beside


def panel_matrices(meeting: Floats, open_: Floats) -> tuple[Floats, Floats]:
    """Value and error of panels as coefficients of gradients (rows) and activations (columns), ``(panels, 2, 2)``."""
    weight = 1.0 - np.clip(meeting, 0.0, 1.0)
    value = np.stack([1.0 - weight, weight], 1)[:, :, None] * _RISE
    return value, 0.5 * open_[:, None, None] * _BEND


def _resolvable(table: Table) -> NDArray[np.bool_]:
    return np.asarray(table["width"] > 64 * np.finfo(np.float64).eps)


def _residual(columns: dict[str, Any]) -> Floats:
    weight = 1.0 - np.clip(columns["meeting"], 0.0, 1.0)
    slope = columns["s_left"] + weight * (columns["s_right"] - columns["s_left"])
    residual: Floats = columns["f_right"] - columns["f_left"] - slope * columns["width"]
    return residual


def _coefficients(columns: dict[str, Any], rows: slice, panels: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weight of the right end's gradient, and half of "open" in the precision of sums, ``(panels, n, 1)``."""
    weight, half_open = 1.0 - np.clip(columns["meeting"][rows], 0.0, 1.0), 0.5 * columns["open"][rows]
    first, second = (torch.as_tensor(column.reshape(-1, panels).T[..., None].copy()) for column in (weight, half_open))
    return first.to(like.dtype).to(like.device), second.to(wide_dtype(like.device)).to(like.device)


def _opened(v: Tensor, y: Tensor, weight: Tensor, half_open: Tensor) -> tuple[Tensor, ...]:
    """Sums of new panels on ``(nodes, n, elements)``: value, signed, square, local estimates, magnitude."""
    dv, dy = v[1:] - v[:-1], y[1:] - y[:-1]
    bend = dv * dy
    straight = v[:-1] * dy
    rounding = (v.abs().amax(0) * y.abs().amax(0)).sum(1)  # activations and gradients come rounded themselves
    magnitude = straight.abs().sum((0, 2)) + rounding
    value = straight.addcmul_(weight, bend)
    error = bend.to(half_open.dtype).mul_(half_open)
    local = error.abs().sum(2).movedim(0, 1)
    return value.sum(0, dtype=error.dtype), error.sum(0), error.square_().sum(0), local, magnitude


class _Weights:
    """Weights of the products of splits in the change of each sum; the last of three panels is the one split."""

    def __init__(self, *panels: dict[str, Any]) -> None:
        weight = np.stack([1.0 - np.clip(columns["meeting"], 0.0, 1.0) for columns in panels])
        self.half_open = np.stack([0.5 * columns["open"] for columns in panels])
        sign = np.array([[1.0], [1.0], [-1.0]])
        one = np.ones((1, weight.shape[1]))
        both = [np.concatenate([sign * weight, one]), np.concatenate([sign * self.half_open, 0.0 * one])]
        self._linear, self._squared = np.stack(both), (sign * self.half_open**2)[None]
        self._given: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def of(self, part: slice, like: Tensor) -> tuple[Tensor, Tensor]:
        """Of value and signed, ``(n, 2, 4)``, and of the squares, ``(n, 1, 3)``."""
        key = like.dtype, like.device
        if key not in self._given:
            linear, squared = (torch.as_tensor(w.transpose(2, 0, 1).copy()) for w in (self._linear, self._squared))
            wide = wide_dtype(like.device)
            self._given[key] = linear.to(like.dtype).to(like.device), squared.to(wide).to(like.device)
        linear, squared = self._given[key]
        return linear[part], squared[part]


def _products(v: Tensor, y: Tensor, workspace: Workspace) -> tuple[Tensor, Tensor]:
    """Products that splitting panels changes the sums by, on nodes right, left and middle ``(3, n, elements)``.

    ``Δv Δy`` of the left half, the right half and the whole, and the left ``Δv`` times the right ``Δy``: the value of
    a panel is ``v_0 Δy + weight Δv Δy``, and of two halves minus the whole only these remain. The whole's product is
    formed from its own ends, as it was when it was added, so that the squares cancel. Second, the sums of the
    magnitudes of the halves' products. The nodes are overwritten.
    """
    products = workspace.take("products", (v.shape[1], 4, v.shape[2]), v.dtype, v.device)
    first_and_second, whole, cross = products[:, :2].movedim(1, 0), products[:, 2], products[:, 3]
    torch.sub(v[0], v[1], out=whole).mul_(torch.sub(y[0], y[1], out=cross))
    for nodes in (v, y):
        torch.sub(nodes[2], nodes[1], out=nodes[1])
        torch.sub(nodes[0], nodes[2], out=nodes[2])
    torch.mul(v[1], y[2], out=cross)
    torch.mul(v[1:], y[1:], out=first_and_second)
    return products, torch.abs(first_and_second, out=v[1:]).sum(2).T
