"""Nodes of the current call, and the store of those that later rounds need again.

Where a node lies is written as one integer: a row of the current call (zero and up), or a place of the store
(``-1 - place``). The store grows chunk by chunk, each as large as all before it, and never moves what it holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conductance.sums import Layout, Workspace, work_dtype

#: Nodes of the first chunk of the store.
FIRST = 16
#: Parts of less than this number are copied one by one.
FEW = 8


class Call:
    """Activations and gradients of the rows of one call, held until the call is reduced."""

    def __init__(self, points: int) -> None:
        self.pairs: list[tuple[Tensor, Tensor] | None] = [None] * points

    def __call__(self, point: int, activation: Tensor, gradient: Tensor) -> None:
        """Hold what a point delivers."""
        self.pairs[point] = (activation, gradient)

    def extend(self, other: Call) -> None:
        """Append the rows of another call."""
        for point, (mine, theirs) in enumerate(zip(self.pairs, other.pairs, strict=True)):
            if mine is not None and theirs is not None:
                self.pairs[point] = (torch.cat([mine[0], theirs[0]]), torch.cat([mine[1], theirs[1]]))
            elif mine is not None or theirs is not None:
                raise RuntimeError("a hook point received a gradient in one part of a panel and none in the other")


class NodeStore:
    """Bounded store of the activation and gradient of nodes; beyond its capacity nodes are evaluated again.

    Parameters
    ----------
    layouts
        The points.
    capacity
        Nodes kept at most.
    """

    #: What :meth:`keep` returns for a node that found no room.
    NOWHERE = 0

    def __init__(self, layouts: Sequence[Layout], capacity: int) -> None:
        self.layouts = layouts
        self._capacity = capacity
        self._free = list(range(capacity, 0, -1))
        self._users = np.zeros(capacity + 1, dtype=np.int64)
        self._chunks: list[list[Tensor]] = []

    @property
    def nbytes(self) -> int:
        """Bytes allocated so far."""
        return sum(tensor.nbytes for chunk in self._chunks for tensor in chunk)

    def keep(self, call: Call, rows: Sequence[int]) -> list[int]:
        """Copy rows of a call into the store; the place of each (negative), or NOWHERE."""
        places = [-self._free.pop() if self._free else self.NOWHERE for _ in rows]
        at, kept = (np.array(side, dtype=np.int64) for side in (places, rows))
        at, kept = -at[at < 0] - 1, kept[at < 0]
        if not len(at):
            return places
        which = _chunk(at)
        while len(self._chunks) <= which.max():
            self._grow()
        for chunk in np.unique(which):
            mine = which == chunk
            for point, store in enumerate(self._chunks[chunk]):
                to = _rows(at[mine] - _start(int(chunk)), store.device)
                pair = call.pairs[point]
                for side in (0, 1):
                    _move(None if pair is None else pair[side], _rows(kept[mine], store.device), store[side], to)
        return places

    def _grow(self) -> None:
        start, stop = _start(len(self._chunks)), min(_start(len(self._chunks) + 1), self._capacity)
        self._chunks.append(
            [torch.empty(2, stop - start, one.size, dtype=one.dtype, device=one.device) for one in self.layouts]
        )

    def use(self, places: NDArray[np.int64]) -> None:
        """Count one more user of each place."""
        np.add.at(self._users, -places[places < 0], 1)

    def release(self, places: NDArray[np.int64]) -> None:
        """Count one user less; places without users are free again, the lowest to be taken first."""
        used = -places[places < 0]
        np.subtract.at(self._users, used, 1)
        self._free.extend(int(place) for place in np.unique(used) if self._users[place] == 0)
        self._free.sort(reverse=True)

    def gather(
        self, call: Call, point: int, nodes: Nodes, across: slice, workspace: Workspace
    ) -> tuple[Tensor, Tensor]:
        """Activation and gradient of nodes, as ``(K, n, elements)`` each, in the working precision.

        Both lie in the workspace and are overwritten by the next call.
        """
        layout, pair = self.layouts[point], call.pairs[point]
        dtype, shape = work_dtype(layout.dtype), (*nodes.shape, len(range(layout.size)[across]))
        found = (workspace.take("y", shape, dtype, layout.device), workspace.take("v", shape, dtype, layout.device))
        for side, out in enumerate(found):
            flat = out.view(-1, shape[2])
            for chunk, to, rows in nodes.moves:
                if chunk >= 0:
                    _move(self._chunks[chunk][point][side], rows, flat, to, across)
                else:
                    _move(None if pair is None else pair[side], rows, flat, to, across)
        return found


class Nodes:
    """Where nodes ``(n, K)`` lie, ready for copying from the call or from a chunk, as slices where they can be.

    Parameters
    ----------
    where
        Place of each node, as in :class:`NodeStore`.
    device
        Where indices are needed.
    """

    def __init__(self, where: NDArray[np.int64], device: torch.device) -> None:
        self.shape = (where.shape[1], where.shape[0])
        flat = where.T.reshape(-1)
        chunks = np.where(flat < 0, _chunk(np.maximum(-flat - 1, 0)), -1)
        self.moves = []
        for chunk in np.unique(chunks).tolist():
            to = np.flatnonzero(chunks == chunk)
            rows = flat[to] if chunk < 0 else -flat[to] - 1 - _start(chunk)
            self.moves += [(chunk, _rows(t, device), _rows(r, device)) for t, r in _runs(to, rows)]


def _start(chunk: int) -> int:
    """First place of a chunk."""
    return FIRST << (chunk - 1) if chunk else 0


def _chunk(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Chunk of each place."""
    return np.asarray(np.frexp(places // FIRST)[1], dtype=np.int64)


def _runs(to: NDArray[np.int64], rows: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Cut rows to copy where their goals do not follow each other, if that makes few parts: an index costs more."""
    cuts = np.flatnonzero(np.diff(to) != 1) + 1
    if len(cuts) >= FEW:
        return [(to, rows)]
    return list(zip(np.split(to, cuts), np.split(rows, cuts), strict=True))


def _rows(rows: NDArray[np.int64], device: torch.device) -> slice | Tensor:
    """Rows as a slice if they are evenly spaced, else as an index."""
    if len(rows) == 1:
        return slice(int(rows[0]), int(rows[0]) + 1)
    steps = np.diff(rows)
    if steps[0] > 0 and bool((steps == steps[0]).all()):
        return slice(int(rows[0]), int(rows[-1]) + 1, int(steps[0]))
    return torch.as_tensor(rows, device=device)


def _move(
    source: Tensor | None, rows: slice | Tensor, out: Tensor, to: slice | Tensor, across: slice = slice(None)
) -> None:
    """``out[to] = source[rows, across]``; zero where the target did not depend on the point."""
    if source is None:
        if isinstance(to, slice):
            out[to] = 0.0
        else:
            out.index_fill_(0, to, 0.0)
        return
    part = source.reshape(len(source), -1)[:, across]
    if isinstance(to, slice):
        if isinstance(rows, slice):
            out[to].copy_(part[rows])
        elif part.dtype == out.dtype and to.step in (None, 1):
            torch.index_select(part, 0, rows, out=out[to])
        else:
            out[to].copy_(part.index_select(0, rows))
    else:
        some = part[rows] if isinstance(rows, slice) else part.index_select(0, rows)
        out.index_copy_(0, to, some.to(out.dtype))
