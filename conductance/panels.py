"""What both refinement schemes share: work to be evaluated, and the table of a path's panels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from conductance.quadrature import PathRule
from conductance.store import Call, Nodes

Floats = NDArray[np.float64]
Places = NDArray[np.int64]


#: Part of the residual that is looked at: the panels with the largest residuals that hold it.
SHARE = 0.9


def main_share(sizes: Floats) -> float:
    """Size from which on the largest of some sizes make up nine tenths of their sum.

    Examples
    --------
    >>> float(main_share(np.array([1.0, 8.0, 0.5, 0.5])))
    1.0
    """
    ordered = np.sort(sizes)[::-1]
    share = np.cumsum(ordered)
    return float(ordered[min(int(np.searchsorted(share, SHARE * share[-1])), len(ordered) - 1)])


@dataclass
class Work:
    """One panel to make, split or raise: the nodes it needs, and which of them are at hand.

    Attributes
    ----------
    slot, path
        Slot of the path among those in flight, and its number on the :class:`~conductance.path.StraightPath`.
    alphas
        Places of all nodes needed, ascending.
    places
        Place of each in the store, 0 where it must be evaluated.
    kind
        Works of one kind have the same number of nodes and are reduced together.
    panel
        Row of the panel in the scheme's table, if there is one yet.
    """

    slot: int
    path: int
    alphas: Floats
    places: Places
    kind: Any
    panel: Any = None

    @property
    def missing(self) -> NDArray[np.intp]:
        """Which nodes must be evaluated."""
        return np.flatnonzero(self.places == 0)


@dataclass
class Evaluated:
    """Works of one kind with their nodes evaluated.

    Attributes
    ----------
    works
        The works, ``n`` of them with ``K`` nodes each.
    call
        Rows evaluated just now.
    where
        Where each node lies, ``(n, K)``: a row of the call, or a place of the store.
    output, slope
        F and dF/da of the nodes that were evaluated (NaN elsewhere), ``(n, K)``.
    """

    works: list[Work]
    call: Call
    where: Places
    output: Floats
    slope: Floats
    slots: torch.Tensor = field(init=False)
    _nodes: dict[tuple[int, int, torch.device, tuple[int, ...] | None], Nodes] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.slots = torch.tensor([work.slot for work in self.works])

    def nodes(self, part: slice, device: torch.device, order: tuple[int, ...] | None = None) -> Nodes:
        """Where the nodes of some works lie, in their order or another."""
        key = (part.start, part.stop, device, order)
        if key not in self._nodes:
            where = self.where[part]
            self._nodes[key] = Nodes(where if order is None else where[:, list(order)], device)
        return self._nodes[key]

    def select(self, chosen: NDArray[np.intp]) -> Evaluated:
        """Some of the works."""
        works = [self.works[n] for n in chosen]
        return Evaluated(works, self.call, self.where[chosen], self.output[chosen], self.slope[chosen])


class Scheme(Protocol):
    """How panels are evaluated, judged and refined; one for smooth functions, one for functions with kinks."""

    def begin(self, slot: int, path: int, ends: tuple[float, float]) -> list[Work]:
        """Work that opens a path."""

    def reduce(self, evaluated: Evaluated) -> None:
        """Turn evaluated works into panels, and change the sums accordingly."""

    def estimates(self, slots: list[int]) -> Floats:
        """Factor on the summed estimate of each point that what is known of the panels allows, ``(points,)``."""

    def limit(self, slots: list[int]) -> Floats:
        """Sum of the local estimates of all panels, ``(points,)``: bounds what differences of sums cannot resolve."""

    def refine(self, slots: list[int], scale: Floats, rounding: Floats, aim: str) -> list[Work]:
        """Work for the panels of these paths that matter most; empty if nothing can be refined.

        ``aim`` is "error" (the estimates of the points) or "residual" (the change of F that the leaf misses).
        """

    def blocked(self, slots: list[int], rounding: Floats) -> bool:
        """Whether a panel that matters cannot be refined because it sits on a jump."""

    def residuals(self, slots: list[int]) -> tuple[Floats, Floats, Floats]:
        """Start, end and residual of every panel of these paths."""

    def magnitude(self, slot: int) -> Floats:
        """``Σ |v| |Δy| + Σ max|v| max|y|`` of each point, which rounding errors are proportional to."""

    def rule(self, slot: int) -> PathRule:
        """The panels of a path as they are now."""

    def retire(self, slot: int) -> None:
        """Forget a path."""


@dataclass
class Table:
    """Panels of one path as columns; a panel is a row.

    Attributes
    ----------
    path
        Number of the path.
    columns
        Named columns of one number a panel.
    local
        Summed local estimate ``Σ D`` of each panel for each point, ``(panels, points)``.
    magnitude
        ``Σ |v| |Δy|`` for each point, ``(points,)``.
    """

    path: int
    columns: dict[str, NDArray[Any]]
    local: Floats
    magnitude: Floats

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def append(self, columns: dict[str, NDArray[Any]], local: Floats) -> None:
        """Add panels."""
        self.columns = {name: np.concatenate([self.columns[name], columns[name]]) for name in self.columns}
        self.local = np.concatenate([self.local, local])

    def replace(self, rows: NDArray[Any], columns: dict[str, NDArray[Any]], local: Floats) -> None:
        """Overwrite panels; rows keep their numbers for the works still under way."""
        for name, column in self.columns.items():
            column[rows] = columns[name]
        self.local[rows] = local
