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
from conductance.forms import OPENING, Forms, alphas_of, bisected, forms_of
from conductance.panels import Evaluated, Floats, Places, Work, main_share
from conductance.store import NodeStore
from conductance.sums import Layout, RunningSums, Workspace, blocks, wide_dtype

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
        return alphas_of(self.left, self.right, self.level)

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
        with np.errstate(over="ignore"):
            fall = self.local / np.maximum(self.before, np.finfo(np.float64).tiny)
        return np.where(fall <= 1 / FALL, np.minimum(1.0, SAFETY * fall), 1.0)


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
        alphas = alphas_of(*ends, OPENING)
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

    def rule(self, slot: int) -> quadrature.PathRule:
        """The panels of a path as they are now."""
        cells = sorted(self.cells[slot], key=lambda cell: cell.left)
        nodes, panels = [cells[0].left], []
        for cell in cells:
            panels.append(quadrature.level_panel(len(nodes) - 1, cell.level))
            nodes += cell.alphas[1:].tolist()
        return quadrature.PathRule(np.array(nodes), tuple(panels), 0.5 if len(cells) == 1 else 1.0)

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
            alphas, own = bisected(cell.left, cell.right, cell.level)
            places = np.zeros(len(alphas), dtype=np.int64)
            places[list(own)] = cell.places
        else:
            kind = f"raise {cell.level}"
            alphas = alphas_of(cell.left, cell.right, cell.level + 1)
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
        forms = forms_of("only " + works[0].kind) if alone else forms_of(works[0].kind)
        size = np.zeros((len(forms.value), len(works), len(self.layouts)))
        magnitude = np.zeros((len(works), len(self.layouts)))
        for point, layout in enumerate(self.layouts):
            for part, across in blocks(len(works), layout.size, 8):
                sizes, variation = self._contract(evaluated, point, part, across, forms)
                size[forms.judged, part, point] += sizes
                magnitude[part, point] += variation
        if alone:  # the difference of levels that this one replaces is known
            before = np.stack([self.cells[work.slot][0].local for work in works])
            size = np.stack([size[0], before])
        self._rebuild(evaluated, forms, size, magnitude)

    def _contract(
        self, evaluated: Evaluated, point: int, part: slice, across: slice, forms: Forms
    ) -> tuple[Floats, Floats | float]:
        device, first = self.layouts[point].device, 0
        variation: Floats | float = 0.0
        for nodes, matrices in forms.groups:
            at = evaluated.nodes(part, device, nodes)
            y, v = self.store.gather(evaluated.call, point, at, across, self.workspace)
            if forms.opening:
                rounding = (v.abs().amax(0) * y.abs().amax(0)).sum(1)  # both come rounded themselves
                variation = (((y[1:] - y[:-1]).abs_() * v[1:].abs()).sum((0, 2)) + rounding).cpu().numpy()
            found = self.workspace.take("found", (len(forms.value), *v.shape[1:]), v.dtype, device)
            last = first + len(matrices)
            self._evaluate(matrices, y, v, found[first:last])
            first = last
        wide, slots, flat = wide_dtype(device), evaluated.slots[part], found.view(len(found), -1)
        value, signed = torch.mm(_tensor(forms.linear, flat), flat).view(2, *found.shape[1:])
        errors = self.workspace.take("errors", (len(forms.squared), flat.shape[1]), wide, device)
        for error, form in zip(errors, forms.squared, strict=True):
            error.copy_(flat[form])
        square = torch.mm(_tensor(forms.square[None, forms.squared], errors), errors.mul_(errors)).view_as(value)
        if forms.alone:
            zero = torch.zeros(1, dtype=wide, device=device).expand_as(value)
            self.sums.add(point, slots, across, value, zero, zero)
            self.sums.replace(point, slots, across, signed, square)
        else:
            self.sums.add(point, slots, across, value, signed, square)
        return np.stack([found[form].abs().sum(1).cpu().numpy() for form in forms.judged]), variation

    def _evaluate(self, matrices: Floats, y: Tensor, v: Tensor, out: Tensor) -> None:
        """Bilinear forms ``Σ_kl A_kl v_k y_l`` of nodes ``(nodes, n, elements)``; y is overwritten."""
        count, nodes = matrices.shape[:2]
        y.sub_(y[0].clone())  # the constant cancels
        products = self.workspace.take("products", (count * nodes, y[0].numel()), v.dtype, v.device)
        torch.mm(_tensor(matrices.reshape(-1, nodes), v), y.view(nodes, -1), out=products)
        torch.sum(products.view(count, *v.shape).mul_(v), 1, out=out)

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


def _tensor(matrix: Floats, like: Tensor) -> Tensor:
    return torch.as_tensor(matrix, dtype=like.dtype, device=like.device)


@cache
def _level_weights(level: int) -> Floats:
    return quadrature.node_weights(quadrature.level_nodes(level))
