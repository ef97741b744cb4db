"""Refinement for smooth functions: nested Chebyshev–Lobatto nodes, raised level by level, bisected where that fails.

A panel of level ``L`` has 2, 3, 5, 9, 17 or 33 nodes and the value ``C_L = Σ_kl A_kl v_k y_l``; its local estimate is
the difference ``C_L - C_(L-1)`` of two levels on the same nodes. Once the summed difference has fallen at least 8-fold
from one level to the next, the error of the finer level is taken as what the next difference would be, four times over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from conductance import quadrature
from conductance.panels import Evaluated, Floats, Places, Work, main_share
from conductance.sums import BLOCK, Layout, NodeStore, RunningSums, wide_dtype

#: Level that opens a path or a half: 5 nodes, so that two differences of levels are known from the start.
OPENING = 2
HIGHEST = len(quadrature.LEVELS) - 1
#: Fall of the difference between levels from which the estimate may be extrapolated, and the safety on it.
FALL = 8.0
SAFETY = 4.0
#: A panel whose difference has not fallen by this much is bisected instead of raised.
SLOW = 3.0
#: Panels within this factor of an example's worst are refined in the same round.
WORST = 0.25


@dataclass
class Cell:
    """One panel: where it lies, its nodes, and how its differences of levels fall.

    Attributes
    ----------
    left, right
        Its ends.
    level
        Its level of the nested rule.
    places
        Place of each node in the store, 0 for none.
    output, slope
        F and dF/da at its nodes.
    local, before
        Summed difference of levels for each point: of the two finest levels, and of the two before.
    """

    left: float
    right: float
    level: int
    places: Places
    output: Floats
    slope: Floats
    local: Floats
    before: Floats

    @property
    def alphas(self) -> Floats:
        """Places of the nodes."""
        return _alphas(self.left, self.right, self.level)

    @property
    def residual(self) -> float:
        """``ΔF - Σ C_leaf``: on a straight path the leaf's rule integrates the slope alone."""
        weights = (self.right - self.left) * _level_weights(self.level)
        return float(self.output[-1] - self.output[0] - weights @ self.slope)

    @property
    def factor(self) -> Floats:
        """What part of the difference of levels is taken as the error, for each point."""
        if self.level <= OPENING:
            return np.ones_like(self.local)
        fall = self.local / np.maximum(self.before, np.finfo(np.float64).tiny)
        return np.where(fall <= 1 / FALL, np.minimum(1.0, SAFETY * fall), 1.0)


@dataclass(frozen=True)
class Forms:
    """How works of one kind change the sums: bilinear forms of the nodes, and what is made of them.

    Attributes
    ----------
    matrices
        ``(forms, nodes, nodes)``.
    value, signed, square
        Coefficient of each form, or of its square, in the change of each sum.
    cells
        For each new cell: the form that is its difference of levels, the one of the level before, its level and
        which nodes are its own.
    old
        Which nodes are the old cell's.
    """

    matrices: Floats
    value: Floats
    signed: Floats
    square: Floats
    cells: tuple[tuple[int, int, int, tuple[int, ...]], ...]
    old: tuple[int, ...] = ()


class Smooth:
    """Panels of nested nodes, raised while that pays and bisected where it does not.

    Parameters
    ----------
    layouts
        Hook points, leaves last.
    sums, store
        Where results and nodes are kept.
    """

    def __init__(self, layouts: Sequence[Layout], sums: RunningSums, store: NodeStore) -> None:
        self.layouts = layouts
        self.sums = sums
        self.store = store
        self.cells: dict[int, list[Cell]] = {}
        self._paths: dict[int, int] = {}
        self._magnitude: dict[int, Floats] = {}

    def begin(self, slot: int, path: int, ends: tuple[float, float]) -> list[Work]:
        """Open a path with the five nodes of one panel."""
        alphas = _alphas(*ends, OPENING)
        return [Work(slot, path, alphas, np.zeros(len(alphas), dtype=np.int64), "open")]

    def estimates(self, slots: list[int]) -> Floats:
        """Part of the summed differences of levels that is taken as the error, for each point."""
        cells = [cell for slot in slots for cell in self.cells[slot]]
        local = np.stack([cell.local for cell in cells])
        taken = (local * np.stack([cell.factor for cell in cells])).sum(0)
        alone = 0.5 if len(cells) == 1 else 1.0  # one difference, not a sum of independent ones: no spread on it
        factor: Floats = alone * np.divide(taken, local.sum(0), out=np.ones_like(taken), where=local.sum(0) > 0)
        return factor

    def limit(self, slots: list[int]) -> Floats:
        """Sum of the local estimates of all panels, ``(points,)``."""
        return np.sum([cell.local for slot in slots for cell in self.cells[slot]], axis=0)  # type: ignore[no-any-return]

    def magnitude(self, slot: int) -> Floats:
        """``Σ |v| |Δy|`` over the opening nodes."""
        return self._magnitude[slot]

    def residuals(self, slots: list[int]) -> tuple[Floats, Floats, Floats]:
        """Start, end and ``ΔF - Σ C_leaf`` of every panel."""
        cells = [cell for slot in slots for cell in self.cells[slot]]
        table = np.array([(cell.left, cell.right, cell.residual) for cell in cells])
        return table[:, 0], table[:, 1], table[:, 2]

    def outputs(self, slots: list[int]) -> tuple[float, float]:
        """F at the start and at the end, averaged over these paths."""
        starts = [min(self.cells[slot], key=lambda cell: cell.left).output[0] for slot in slots]
        ends = [max(self.cells[slot], key=lambda cell: cell.right).output[-1] for slot in slots]
        return float(np.mean(starts)), float(np.mean(ends))

    def retire(self, slot: int) -> None:
        """Forget a path and free its nodes."""
        for cell in self.cells.pop(slot):
            self.store.release(cell.places)

    def refine(self, slots: list[int], scale: Floats, rounding: Floats, aim: str) -> list[Work]:
        """Raise or bisect the panels within a factor of the worst of all the paths given."""
        judged = [
            (self._badness(cell, scale, rounding, aim), slot, cell) for slot in slots for cell in self.cells[slot]
        ]
        worst = max(bad for bad, _, _ in judged)
        if worst <= 0.0:
            return []
        threshold = WORST * worst if aim == "error" else main_share(np.array([bad for bad, _, _ in judged]))
        return [self._work(slot, cell, scale, aim) for bad, slot, cell in judged if bad >= threshold]

    def blocked(self, slots: list[int], rounding: Floats) -> bool:
        """Whether a panel that matters cannot be split: it sits on a jump."""
        return any(
            bool((cell.local > rounding).any()) and not _resolvable(cell) for slot in slots for cell in self.cells[slot]
        )

    def _badness(self, cell: Cell, scale: Floats, rounding: Floats, aim: str) -> float:
        if not _resolvable(cell):
            return 0.0
        if aim == "residual":
            return abs(cell.residual)
        local = np.where(cell.local > rounding, cell.local * cell.factor, 0.0)
        return float((local / np.maximum(scale, np.finfo(np.float64).tiny)).max(initial=0.0))

    def _work(self, slot: int, cell: Cell, scale: Floats, aim: str) -> Work:
        relative = cell.local / np.maximum(scale, np.finfo(np.float64).tiny)
        worst = int(relative.argmax())
        slow = cell.level > OPENING and cell.before[worst] < SLOW * cell.local[worst]
        if aim == "residual":
            slow = cell.level > OPENING
        if cell.level == HIGHEST or slow:
            kind = f"bisect {cell.level}"
            alphas, own = _bisected(cell.left, cell.right, cell.level)
            places = np.zeros(len(alphas), dtype=np.int64)
            places[list(own)] = cell.places
        else:
            kind = f"raise {cell.level}"
            alphas = _alphas(cell.left, cell.right, cell.level + 1)
            places = np.zeros(len(alphas), dtype=np.int64)
            places[::2] = cell.places
        return Work(slot, self._paths[slot], alphas, places, kind, cell)

    def reduce(self, evaluated: Evaluated) -> None:
        """Turn works of one kind into panels."""
        works, forms = evaluated.works, _forms(evaluated.works[0].kind)
        size = np.zeros((len(forms.matrices), len(works), len(self.layouts)))
        magnitude = np.zeros((len(works), len(self.layouts)))
        for point, layout in enumerate(self.layouts):
            step = max(1, BLOCK // max(1, layout.size * evaluated.where.shape[1]))
            for first in range(0, len(works), step):
                part = slice(first, first + step)
                size[:, part, point], magnitude[part, point] = self._contract(evaluated, point, part, forms)
        self._rebuild(evaluated, forms, size, magnitude)

    def _contract(self, evaluated: Evaluated, point: int, part: slice, forms: Forms) -> tuple[Floats, Floats]:
        where = evaluated.where[part]
        y, v = self.store.gather(evaluated.call, point, where.reshape(-1))
        v, y = v.reshape(*where.shape, -1), y.reshape(*where.shape, -1)
        rise = y - y[:, :1]  # the constant cancels
        wide = wide_dtype(v.device)
        value = torch.zeros(len(where), v.shape[2], dtype=wide, device=v.device)
        signed, square = torch.zeros_like(value), torch.zeros_like(value)
        sizes = []
        for number, matrix in enumerate(forms.matrices):
            form = _form(matrix, v, rise).to(wide)
            sizes.append(form.abs().sum(1).cpu().numpy())
            for total, coefficient in ((value, forms.value[number]), (signed, forms.signed[number])):
                if coefficient:
                    total.add_(form, alpha=float(coefficient))
            if forms.square[number]:
                square.addcmul_(form, form, value=float(forms.square[number]))
        self.sums.add(point, evaluated.slots[part].to(v.device), value, signed, square)
        variation = (v[:, 1:].abs() * (y[:, 1:] - y[:, :-1]).abs()).sum((1, 2))
        return np.stack(sizes), variation.cpu().numpy()

    def _rebuild(self, evaluated: Evaluated, forms: Forms, size: Floats, magnitude: Floats) -> None:
        """Replace the old cells by the new ones."""
        kept = evaluated.where.copy()
        fresh = kept >= 0
        rows, inverse = np.unique(kept[fresh], return_inverse=True)
        kept[fresh] = np.array(self.store.keep(evaluated.call, rows.tolist()), dtype=np.int64)[inverse]
        for n, work in enumerate(evaluated.works):
            output, slope = evaluated.output[n].copy(), evaluated.slope[n].copy()
            old: Cell | None = work.panel
            if old is None:
                self.cells[work.slot], self._paths[work.slot] = [], work.path
                self._magnitude[work.slot] = magnitude[n]
            else:
                own = list(forms.old)
                output[own], slope[own] = old.output, old.slope
            cells = self.cells[work.slot]
            for fine, coarse, level, nodes in forms.cells:
                at = list(nodes)
                new = Cell(
                    float(work.alphas[at[0]]), float(work.alphas[at[-1]]), level, kept[n, at], output[at], slope[at],
                    size[fine, n], size[coarse, n],
                )  # fmt: skip
                cells.append(new)
                self.store.use(new.places)
            if old is not None:
                cells[:] = [cell for cell in cells if cell is not old]
                self.store.release(old.places)


def _resolvable(cell: Cell) -> bool:
    return cell.right - cell.left > 256 * float(np.finfo(np.float64).eps)


def _form(matrix: Floats, v: Tensor, y: Tensor) -> Tensor:
    """``Σ_kl A_kl v_k y_l`` on the nodes that the matrix uses, ``(n, elements)``."""
    used = np.flatnonzero(np.abs(matrix).sum(0) + np.abs(matrix).sum(1))
    small = torch.as_tensor(matrix[np.ix_(used, used)], dtype=v.dtype, device=v.device)
    if len(used) < len(matrix):
        nodes = torch.as_tensor(used, device=v.device)
        v, y = v.index_select(1, nodes), y.index_select(1, nodes)
    return torch.matmul(small, y).mul_(v).sum(1)


def _alphas(left: float, right: float, level: int) -> Floats:
    nodes = left + (right - left) * quadrature.level_nodes(level)
    nodes[-1] = right
    return nodes


@cache
def _level_weights(level: int) -> Floats:
    return quadrature.node_weights(quadrature.level_nodes(level))


def _bisected(left: float, right: float, level: int) -> tuple[Floats, tuple[int, ...]]:
    """Nodes of a cell and of its two opening halves, ascending, and which are the cell's own."""
    own = _alphas(left, right, level)
    middle = float(own[len(own) // 2])
    halves = np.concatenate([_alphas(left, middle, OPENING)[1:-1], _alphas(middle, right, OPENING)[1:-1]])
    alphas = np.sort(np.concatenate([own, halves]))
    return alphas, tuple(int(k) for k in np.searchsorted(alphas, own))


@cache
def _forms(kind: str) -> Forms:
    if kind == "open":
        return _opening_forms()
    verb, level = kind.split()
    return _raise_forms(int(level)) if verb == "raise" else _bisect_forms(int(level))


def _opening_forms() -> Forms:
    value, middle, coarse = (quadrature.level_matrix(OPENING - k, OPENING) for k in range(3))
    nodes = tuple(range(len(value)))
    return Forms(
        np.stack([value, value - middle, middle - coarse]),
        value=np.array([1.0, 0.0, 0.0]),
        signed=np.array([0.0, 1.0, 0.0]),
        square=np.array([0.0, 1.0, 0.0]),
        cells=((1, 2, OPENING, nodes),),
    )


def _raise_forms(level: int) -> Forms:
    finer, value, coarse = (quadrature.level_matrix(k, level + 1) for k in (level + 1, level, level - 1))
    nodes = tuple(range(len(finer)))
    return Forms(
        np.stack([finer - value, value - coarse]),
        value=np.array([1.0, 0.0]),
        signed=np.array([1.0, -1.0]),
        square=np.array([1.0, -1.0]),
        cells=((0, 1, level + 1, nodes),),
        old=nodes[::2],
    )


def _bisect_forms(level: int) -> Forms:
    alphas, own = _bisected(0.0, 1.0, level)
    parts = [own]
    for left, right in ((0.0, 0.5), (0.5, 1.0)):
        near = np.abs(alphas[:, None] - _alphas(left, right, OPENING)[None, :]).argmin(0)
        parts.append(tuple(int(k) for k in near))
    whole = [_placed(k, level, own, len(alphas)) for k in (level, level - 1)]
    halves = [[_placed(OPENING - k, OPENING, part, len(alphas)) for k in range(3)] for part in parts[1:]]
    matrices = [whole[0], whole[0] - whole[1]]
    for fine, middle, coarse in halves:
        matrices += [fine, fine - middle, middle - coarse]
    return Forms(
        np.stack(matrices),
        value=np.array([-1.0, 0, 1, 0, 0, 1, 0, 0]),
        signed=np.array([0, -1.0, 0, 1, 0, 0, 1, 0]),
        square=np.array([0, -1.0, 0, 1, 0, 0, 1, 0]),
        cells=((3, 4, OPENING, parts[1]), (6, 7, OPENING, parts[2])),
        old=own,
    )


def _placed(level: int, within: int, nodes: Sequence[int], count: int) -> Floats:
    matrix = np.zeros((count, count))
    matrix[np.ix_(nodes, nodes)] = quadrature.level_matrix(level, within)
    return matrix
