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
from conductance.store import NodeStore
from conductance.sums import Layout, RunningSums, Workspace, blocks, wide_dtype

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
    opening
        Whether these are the first panels of a path.
    alone
        Whether the panel is the only one of its path, so that its estimates are replaced, not added to.
    """

    matrices: Floats
    value: Floats
    signed: Floats
    square: Floats
    cells: tuple[tuple[int, int, int, tuple[int, ...]], ...]
    old: tuple[int, ...] = ()
    opening: bool = False
    alone: bool = False


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
        self.workspace = Workspace()
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
        """``Σ |v| |Δy|``, and ``Σ max|v| max|y|``, over the opening nodes."""
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
        works = evaluated.works
        single = np.array([work.kind.startswith("raise") and len(self.cells[work.slot]) == 1 for work in works])
        if single.any() and not single.all():
            for chosen in (single, ~single):
                self.reduce(evaluated.select(np.flatnonzero(chosen)))
            return
        alone = bool(single.any())
        forms = _forms("only " + works[0].kind) if alone else _forms(works[0].kind)
        size = np.zeros((len(forms.matrices), len(works), len(self.layouts)))
        magnitude = np.zeros((len(works), len(self.layouts)))
        for point, layout in enumerate(self.layouts):
            for part, across in blocks(len(works), layout.size, 8):
                sizes, variation = self._contract(evaluated, point, part, across, forms)
                size[:, part, point] += sizes
                magnitude[part, point] += variation
        if alone:  # the difference of levels that this one replaces is known
            before = np.stack([self.cells[work.slot][0].local for work in works])
            size = np.stack([size[0], before])
        self._rebuild(evaluated, forms, size, magnitude)

    def _contract(
        self, evaluated: Evaluated, point: int, part: slice, across: slice, forms: Forms
    ) -> tuple[Floats, Floats | float]:
        nodes_at = evaluated.nodes(part, self.layouts[point].device)
        y, v = self.store.gather(evaluated.call, point, nodes_at, across, self.workspace)
        nodes, rows, elements = v.shape
        variation: Floats | float = 0.0
        if forms.opening:
            rounding = (v.abs().amax(0) * y.abs().amax(0)).sum(1)  # activations and gradients come rounded themselves
            variation = (((y[1:] - y[:-1]).abs_() * v[1:].abs()).sum((0, 2)) + rounding).cpu().numpy()
        y[1:] -= y[0].clone()  # the constant cancels
        y[0] = 0.0
        wide = wide_dtype(v.device)
        products = self.workspace.take("products", (nodes, rows * elements), v.dtype, v.device)
        found = []
        for matrix in forms.matrices:
            weights = torch.as_tensor(matrix, dtype=v.dtype, device=v.device)
            torch.mm(weights, y.view(nodes, -1), out=products)
            found.append(products.mul_(v.view(nodes, -1)).sum(0).to(wide).view(rows, elements))
        slots = evaluated.slots[part]
        value, signed = (_combined(found, c) for c in (forms.value, forms.signed))
        square = _combined([form * form for form in found], forms.square)
        if forms.alone:
            zero = torch.zeros(1, dtype=wide, device=v.device).expand_as(value)
            self.sums.add(point, slots, across, value, zero, zero)
            self.sums.replace(point, slots, across, signed, square)
        else:
            self.sums.add(point, slots, across, value, signed, square)
        return np.stack([form.abs().sum(1).cpu().numpy() for form in found]), variation

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


def _combined(forms: Sequence[Tensor], coefficients: Floats) -> Tensor:
    total = forms[0] * float(coefficients[0])
    for form, coefficient in zip(forms[1:], coefficients[1:], strict=True):
        if coefficient:
            total.add_(form, alpha=float(coefficient))
    return total


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
    if kind.startswith("only"):
        full = _forms(kind.removeprefix("only "))
        one = np.ones(1)
        return Forms(full.matrices[:1], one, one, one, full.cells, full.old, alone=True)
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
        opening=True,
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
