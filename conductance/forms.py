"""Bilinear forms of nested Chebyshev–Lobatto nodes: what opening, raising and bisecting panels changes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from conductance import quadrature
from conductance.panels import Floats

#: Level that opens a path or a half: 5 nodes, so that two differences of levels are known from the start.
OPENING = 2


@dataclass(frozen=True)
class Forms:
    """How works of one kind change the sums: bilinear forms of some nodes, and what is made of them.

    Attributes
    ----------
    groups
        Nodes, and the matrices of the forms on them, ``(forms, nodes, nodes)``; forms are numbered through.
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

    groups: tuple[tuple[tuple[int, ...], Floats], ...]
    value: Floats
    signed: Floats
    square: Floats
    cells: tuple[tuple[int, int, int, tuple[int, ...]], ...]
    old: tuple[int, ...] = ()
    opening: bool = False
    alone: bool = False

    @cached_property
    def linear(self) -> Floats:
        """Coefficients of value and signed."""
        return np.stack([self.value, self.signed])

    @cached_property
    def squared(self) -> list[int]:
        """Forms whose squares enter."""
        return [int(form) for form in np.flatnonzero(self.square)]

    @cached_property
    def judged(self) -> list[int]:
        """Forms whose size is asked for."""
        return sorted({form for cell in self.cells for form in cell[:2] if form < len(self.value)})


def alphas_of(left: float, right: float, level: int) -> Floats:
    """Nodes of a level on a part of the path."""
    nodes = left + (right - left) * quadrature.level_nodes(level)
    nodes[-1] = right
    return nodes


def bisected(left: float, right: float, level: int) -> tuple[Floats, tuple[int, ...]]:
    """Nodes of a cell and of its two opening halves, ascending, and which are the cell's own."""
    own = alphas_of(left, right, level)
    middle = float(own[len(own) // 2])
    halves = np.concatenate([alphas_of(left, middle, OPENING)[1:-1], alphas_of(middle, right, OPENING)[1:-1]])
    alphas = np.sort(np.concatenate([own, halves]))
    return alphas, tuple(int(k) for k in np.searchsorted(alphas, own))


@cache
def forms_of(kind: str) -> Forms:
    """Forms of a kind of work: "open", "raise LEVEL", "bisect LEVEL"; "only …" for the one panel of a path."""
    if kind == "open":
        return _opening_forms()
    if kind.startswith("only"):
        full = forms_of(kind.removeprefix("only "))
        one = np.ones(1)
        ((nodes, matrices),) = full.groups
        return Forms(((nodes, matrices[:1]),), one, one, one, full.cells, full.old, alone=True)
    verb, level = kind.split()
    return _raise_forms(int(level)) if verb == "raise" else _bisect_forms(int(level))


def _opening_forms() -> Forms:
    value, middle, coarse = (quadrature.level_matrix(OPENING - k, OPENING) for k in range(3))
    nodes = tuple(range(len(value)))
    return Forms(
        ((nodes, np.stack([value, value - middle, middle - coarse])),),
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
        (_ordered(nodes, nodes[::2], np.stack([finer - value, value - coarse])),),
        value=np.array([1.0, 0.0]),
        signed=np.array([1.0, -1.0]),
        square=np.array([1.0, -1.0]),
        cells=((0, 1, level + 1, nodes),),
        old=nodes[::2],
    )


def _bisect_forms(level: int) -> Forms:
    alphas, own = bisected(0.0, 1.0, level)
    parts = [own]
    for left, right in ((0.0, 0.5), (0.5, 1.0)):
        near = np.abs(alphas[:, None] - alphas_of(left, right, OPENING)[None, :]).argmin(0)
        parts.append(tuple(int(k) for k in near))
    value, coarse = (quadrature.level_matrix(k, level) for k in (level, level - 1))
    half = _opening_forms().groups[0][1]
    return Forms(
        ((own, np.stack([value, value - coarse])), *(_ordered(part, own, half) for part in parts[1:])),
        value=np.array([-1.0, 0, 1, 0, 0, 1, 0, 0]),
        signed=np.array([0, -1.0, 0, 1, 0, 0, 1, 0]),
        square=np.array([0, -1.0, 0, 1, 0, 0, 1, 0]),
        cells=((3, 4, OPENING, parts[1]), (6, 7, OPENING, parts[2])),
        old=own,
    )


def _ordered(nodes: tuple[int, ...], old: tuple[int, ...], matrices: Floats) -> tuple[tuple[int, ...], Floats]:
    """Nodes and their matrices with the old ones first: they lie in the store, the others in the call."""
    order = sorted(range(len(nodes)), key=lambda k: nodes[k] not in old)
    return tuple(nodes[k] for k in order), matrices[:, order][:, :, order]
