"""Questions to the autograd graph: is a tensor a cut, does it reach the output, does it move with the leaf.

A vertex is a gradient edge, a pair of a node and one of its output numbers: a node like that of ``chunk``
stands for several tensors, and a cut through it need not be a cut at each of them. From every vertex of a
node edges lead to whatever the node's inputs came from: each output is taken to depend on each input. All
leaves are joined into one.

A tensor is a **cut** when every way from the leaves to the output crosses it; then it dominates the joined
leaf in the graph walked from the output. References: Cooper, Harvey & Kennedy, "A simple, fast dominance
algorithm" (2001); the graph has no cycles, so that one sweep is enough.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import Node

from conductance.hooks.kinks import kinked_name

Edge: TypeAlias = tuple[Node, int]


def edge_of(tensor: Tensor) -> Edge:
    """Give the gradient edge of a tensor: the node that made it and the number of the node's output.

    For a leaf that is the node that accumulates its ``.grad``.

    Raises
    ------
    ValueError
        The tensor does not require grad.

    Examples
    --------
    >>> first, second = torch.ones(4, requires_grad=True).chunk(2)
    >>> edge_of(second)[1]
    1
    """
    if not tensor.requires_grad:
        msg = "edge_of: the tensor does not require grad, so no gradient ever arrives there"
        raise ValueError(msg)
    edge = torch.autograd.graph.get_gradient_edge(tensor)
    return edge.node, edge.output_nr


class GraphView:
    """The graph behind one output, as far as the leaves.

    Parameters
    ----------
    output
        The tensor whose graph is asked; with `None`, or one that does not require grad, nothing reaches the
        output.
    leaves
        The tensors that move. Their graph is not walked any further.

    Examples
    --------
    >>> x = torch.ones(3, requires_grad=True)
    >>> whole = x.exp()
    >>> branch = whole.tanh()
    >>> view = GraphView((whole + branch).sum(), [x])
    >>> view.is_cut([edge_of(whole)]), view.is_cut([edge_of(branch)])
    (True, False)
    """

    def __init__(self, output: Tensor | None, leaves: Sequence[Tensor]) -> None:
        self._leaves = {edge_of(leaf) for leaf in leaves if leaf.requires_grad}
        self._moving: dict[Edge, bool] = {}
        self._root = edge_of(output) if output is not None and output.requires_grad else None
        self._order = [] if self._root is None else _postorder(self._root, self._leaves)
        self._reached = frozenset(self._order)
        self._note_moving(self._order)
        self._cuts = self._dominators_of_leaf()

    @property
    def gradient_flows(self) -> bool:
        """Whether the output depends on a leaf at all."""
        return self._root is not None and self._moving[self._root]

    def is_cut(self, edges: Sequence[Edge]) -> bool:
        """Say whether every way from the leaves to the output crosses one of these tensors.

        False where there is no way at all.
        """
        if not self.gradient_flows:
            return False
        if len(edges) == 1:
            return edges[0] in self._cuts
        return self._root is not None and not self._reaches_leaf(self._root, removed=frozenset(edges))

    def reaches_output(self, edge: Edge) -> bool:
        """Say whether the output depends on this tensor."""
        return edge in self._reached

    def reached_from_leaf(self, edge: Edge) -> bool:
        """Say whether this tensor depends on a leaf; it need not be part of the output's graph."""
        if edge not in self._moving:
            self._note_moving(_postorder(edge, self._leaves))
        return self._moving[edge]

    def direct_sources(self, later: Edge | None, points: Collection[Edge]) -> frozenset[Edge]:
        """Give those of some tensors, and of the leaves, that a tensor depends on directly.

        Parameters
        ----------
        later
            The tensor; None is the output.
        points
            Tensors where a way ends.

        Returns
        -------
        frozenset
            The points and leaves from which a way leads to the tensor that crosses no other point.
        """
        start = self._root if later is None else later
        if start is None:
            return frozenset()
        ends = frozenset(points) | self._leaves
        found = set()
        seen, stack = {start}, [start]
        while stack:
            edge = stack.pop()
            if edge in ends and edge != start:
                found.add(edge)
                continue
            if edge in self._leaves:
                continue
            for below in _inputs(edge[0]):
                if below not in seen:
                    seen.add(below)
                    stack.append(below)
        return frozenset(found)

    def kinked_operators(self) -> tuple[str, ...]:
        """Give the sorted names of operators with kinks or jumps between a leaf and the output, each once.

        Graph-wide nodes that hide their operators (compiled, traced or re-entrantly checkpointed code) count
        as kinked.
        """
        names = (kinked_name(node) for node, _ in self._order if self._node_moves(node))
        return tuple(sorted({name for name in names if name is not None}))

    def _node_moves(self, node: Node) -> bool:
        return any(self._moving.get(edge, False) for edge in _inputs(node))

    def _note_moving(self, postorder: Iterable[Edge]) -> None:
        for edge in postorder:
            if edge not in self._moving:
                moves = edge in self._leaves or any(self._moving[below] for below in _inputs(edge[0]))
                self._moving[edge] = moves

    def _reaches_leaf(self, start: Edge, removed: frozenset[Edge]) -> bool:
        if start in removed:
            return False
        seen, stack = {start}, [start]
        while stack:
            edge = stack.pop()
            if edge in self._leaves:
                return True
            for below in _inputs(edge[0]):
                if below not in seen and below not in removed and self._moving[below]:
                    seen.add(below)
                    stack.append(below)
        return False

    def _dominators_of_leaf(self) -> frozenset[Edge]:
        """Find the vertices on every way from the output to the joined leaf, by immediate dominators."""
        if self._root is None or not self._moving[self._root]:
            return frozenset()
        order = [edge for edge in reversed(self._order) if self._moving[edge]]
        rank = {edge: position for position, edge in enumerate(order)}
        dominator: dict[Edge, Edge] = {self._root: self._root}

        def common(a: Edge, b: Edge) -> Edge:
            while a != b:
                if rank[a] > rank[b]:
                    a = dominator[a]
                else:
                    b = dominator[b]
            return a

        last: Edge | None = None
        for edge in order:
            if edge in self._leaves:
                last = edge if last is None else common(last, edge)
                continue
            for below in _inputs(edge[0]):
                if below in rank:
                    dominator[below] = common(dominator[below], edge) if below in dominator else edge
        cuts = set()
        while last is not None:
            cuts.add(last)
            last = None if last == self._root else dominator[last]
        return frozenset(cuts)


def _inputs(node: Node) -> list[Edge]:
    return [(below, number) for below, number in node.next_functions if below is not None]


def _postorder(root: Edge, leaves: Collection[Edge], blocked: Collection[Edge] = ()) -> list[Edge]:
    """List the vertices behind one, inputs before outputs; neither beyond leaves nor blocked ones."""
    order: list[Edge] = []
    seen = {root}
    stack: list[tuple[Edge, list[Edge]]] = [(root, [] if root in leaves else _inputs(root[0]))]
    while stack:
        edge, below = stack[-1]
        if not below:
            order.append(edge)
            stack.pop()
            continue
        following = below.pop()
        if following not in seen and following not in blocked:
            seen.add(following)
            stack.append((following, [] if following in leaves else _inputs(following[0])))
    return order
