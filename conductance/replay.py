"""Integration along path rules that are given: rows packed into calls, and what their panels make of them.

Where :mod:`~conductance.refinement` finds the nodes of a path, this runs them again for quantities that take more
than one backward pass a row. What becomes of their gradients is in :mod:`~conductance.increments`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conductance.engine import Engine, Held, Nodes
from conductance.increments import Alike, Increments
from conductance.kinked import panel_matrices, tangents
from conductance.quadrature import Panel, PathRule
from conductance.sums import work_dtype


@dataclass(frozen=True)
class Piece:
    """Neighbouring panels of one path, with all their nodes; ``stop`` is the first panel that is not among them."""

    path: int
    rule: PathRule
    start: int
    stop: int

    @property
    def nodes(self) -> NDArray[np.float64]:
        """Places of its nodes."""
        panels = self.rule.panels
        return self.rule.nodes[panels[self.start].start : panels[self.stop - 1].stop + 1]

    @property
    def ends(self) -> bool:
        """Whether the path ends here."""
        return self.stop == len(self.rule.panels)


def packed(rules: Mapping[int, PathRule], rows: int) -> Iterator[list[Piece]]:
    """Pieces of all paths, as many at a time as fit into a call of ``rows`` rows; a panel stays whole.

    The node between two pieces belongs to both. A panel of more nodes than a call may have comes alone.
    """
    batch: list[Piece] = []
    room = rows
    for path, rule in rules.items():
        start = 0
        while start < len(rule.panels):
            first = rule.panels[start].start
            stop = start
            while stop < len(rule.panels) and rule.panels[stop].stop - first + 1 <= room:
                stop += 1
            if stop == start:
                if batch:
                    yield batch
                    batch, room = [], rows
                    continue
                stop = start + 1
            batch.append(Piece(path, rule, start, stop))
            room -= len(batch[-1].nodes)
            start = stop
            if room < 2:
                yield batch
                batch, room = [], rows
    if batch:
        yield batch


_Entry: TypeAlias = tuple[NDArray[np.int64], int, Panel, PathRule]


def _alike(panels: list[_Entry], per_example: int) -> Alike:
    rows, slots = np.stack([entry[0] for entry in panels]), np.array([entry[1] for entry in panels])
    credit = np.array([rule.credit for *_, rule in panels])
    factor = credit[:, None, None] / per_example
    value = np.stack([panel.value for _, _, panel, _ in panels]) / per_example
    difference = np.stack([panel.difference for _, _, panel, _ in panels]) * factor
    before = [panel.before for _, _, panel, _ in panels if panel.before is not None]
    meet = np.array([rule.straight is not None for *_, rule in panels])
    straight = np.array([rule.straight is not None and bool(rule.straight[p.start]) for *_, p, rule in panels])
    return Alike(rows, slots, value, difference, np.stack(before) * factor if before else None, credit, meet, straight)


class Rows:
    """The rows of some pieces: which paths and places they are, and how their panels weigh them.

    Parameters
    ----------
    pieces
        From `packed`.
    per_example
        Paths of an example.

    Attributes
    ----------
    paths, alphas
        Of each row.
    examples
        Examples that the rows belong to, in order.
    """

    def __init__(self, pieces: list[Piece], per_example: int) -> None:
        self.pieces = pieces
        self._per_example = per_example
        self.paths = np.concatenate([np.full(len(piece.nodes), piece.path) for piece in pieces])
        self.alphas = np.concatenate([piece.nodes for piece in pieces])
        self.examples = list(dict.fromkeys(piece.path // per_example for piece in pieces))
        self._alike = self._panels(per_example)

    def _panels(self, per_example: int) -> list[Alike]:
        place = {example: slot for slot, example in enumerate(self.examples)}
        found: dict[tuple[int, bool], list[_Entry]] = {}
        first = 0
        for piece in self.pieces:
            begin = piece.rule.panels[piece.start].start
            slot = place[piece.path // per_example]
            for panel in piece.rule.panels[piece.start : piece.stop]:
                rows = first + np.arange(panel.start, panel.stop + 1, dtype=np.int64) - begin
                entry = (rows, slot, panel, piece.rule)
                found.setdefault((len(rows), panel.before is None), []).append(entry)
            first += len(piece.nodes)
        return [_alike(panels, per_example) for panels in found.values()]

    @property
    def settled(self) -> bool:
        """Whether the weights of all panels are known; otherwise `settle` has to be told F and its slope."""
        return not any(one.tangents.any() for one in self._alike)

    def settle(self, nodes: Sequence[Nodes], dtype: torch.dtype) -> None:
        """Weigh panels by where the end tangents of F meet in these very rows, computed in a precision."""
        output, slope = (np.concatenate([getattr(one, name) for one in nodes]) for name in ("output", "slope"))
        for number, one in enumerate(self._alike):
            if not one.tangents.any():
                continue
            width = np.diff(self.alphas[one.rows])[:, 0]
            f, s = output[one.rows], slope[one.rows]
            meeting, open_, beside = tangents(width, f[:, 0], f[:, 1], s[:, 0], s[:, 1], torch.finfo(dtype).eps / 2)
            exact = one.straight & (beside > 0.0)  # the kink at its end, on its other side in the run before
            value, difference = panel_matrices(meeting, np.where(exact, 0.0, open_))
            old = one.tangents[:, None, None]
            self._alike[number] = replace(
                one,
                value=np.where(old, value / self._per_example, one.value),
                difference=np.where(old, one.credit[:, None, None] * difference / self._per_example, one.difference),
                tangents=np.zeros_like(one.tangents),
            )

    @property
    def complete(self) -> list[int]:
        """Examples whose last path ends in these rows."""
        last = {piece.path // self._per_example: piece for piece in self.pieces}
        each = self._per_example
        return [n for n, piece in last.items() if piece.ends and piece.path % each == each - 1]

    def rows_of(self, example: int) -> int:
        """How many of the rows belong to an example."""
        return int((self.paths // self._per_example == example).sum())

    @property
    def closes(self) -> bool:
        """Whether no example is left half done."""
        return self.pieces[-1].path // self._per_example in self.complete

    def calls(self, rows: int) -> Iterator[slice]:
        """Cut them into calls of at most ``rows`` rows: one, unless a panel has more nodes than that."""
        for first in range(0, len(self.paths), rows):
            yield slice(first, min(first + rows, len(self.paths)))

    def increments(self, activation: Tensor, *, with_error: bool = False) -> Increments:
        """What each row's gradient is multiplied with, from the activation ``(rows, elements)`` of all rows."""
        return Increments(self._alike, activation, len(self.examples), with_error=with_error)

    def along(self, device: torch.device, dtype: torch.dtype) -> Increments:
        """The same for integrals over the path itself."""
        place = torch.as_tensor(self.alphas, dtype=work_dtype(dtype)).to(device)
        return self.increments(place[:, None])


def held_calls(engine: Engine, batch: Rows, rows: int) -> Iterator[tuple[slice, Held]]:
    """Run rows forward in calls of at most ``rows`` rows, with all their panels weighed."""
    calls = list(batch.calls(rows))
    if len(calls) == 1:
        held = engine.hold(batch.paths, batch.alphas)
        if not batch.settled:
            batch.settle([held.backward()[0]], engine.path.dtype)
        yield calls[0], held
        return
    if not batch.settled:
        found = [engine.hold(batch.paths[call], batch.alphas[call]).backward()[0] for call in calls]
        batch.settle(found, engine.path.dtype)
    for call in calls:
        yield call, engine.hold(batch.paths[call], batch.alphas[call])


@dataclass
class Replayed:
    """An example whose rows have all been run.

    Attributes
    ----------
    example, rows
        Its number and how many rows it took.
    blocks
        Sums ``(5, groups)`` of each block of the quantity, as `Parts.closed` gives them.
    """

    example: int
    rows: int
    blocks: list[Tensor]

    def __iadd__(self, other: Replayed) -> Replayed:
        """Take in what other rows of the example gave."""
        self.rows += other.rows
        self.blocks = [one + two for one, two in zip(self.blocks, other.blocks, strict=True)]
        return self


def replay(
    rules: Mapping[int, PathRule], rows: int, per_example: int, evaluate: Callable[[Rows], list[Tensor]]
) -> Iterator[Replayed]:
    """Run the rows of all paths, and give each example when its last path is done.

    Parameters
    ----------
    rules
        The panels of each path, all paths of an example behind each other.
    rows, per_example
        Rows of a call at most, and paths of an example.
    evaluate
        Runs rows; gives the blocks of the quantity as `Parts.closed` does.
    """
    open_: dict[int, Replayed] = {}
    for pieces in packed(rules, rows):
        batch = Rows(pieces, per_example)
        blocks = evaluate(batch)
        for slot, example in enumerate(batch.examples):
            own = Replayed(example, batch.rows_of(example), [block[:, slot] for block in blocks])
            if example in open_:
                open_[example] += own
            else:
                open_[example] = own
        for example in batch.complete:
            yield open_.pop(example)
