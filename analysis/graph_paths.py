"""What matters in a flow graph: its strongest paths, and the small graph that carries most of the flow.

An edge leads to a later layer, so one pass in forward order finds the best paths to every node: each is the
best, second best, … path to a node before it, and one edge more. Both orders of paths keep when an edge is added
to two paths, so the pass is exact, with ``k`` paths kept at each node. The backbone takes the flow apart into
paths (Ford & Fulkerson, "Flows in Networks", 1962), widest first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from math import inf
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from conductance.analysis._values import Floats, check_top
from conductance.analysis.graph import GAP_LAYERS, Node, check_graph, node_key, target_of
from conductance.errors import UnknownLayerError, check_choice
from conductance.flow_results import SINK, SOURCE

if TYPE_CHECKING:
    import networkx as nx

#: A strength that compares as the order of paths asks; larger is stronger.
Strength: TypeAlias = tuple[float, ...]
Trail: TypeAlias = tuple[Strength, tuple[Node, ...]]

#: Flow below this part of the largest is rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True, repr=False)
class FlowPath:
    """One way through a flow graph.

    Parameters
    ----------
    nodes
        Its nodes ``(layer, unit)``, in forward order.
    flows
        Signed flow of each of its edges: one less than nodes.
    score
        What it was ranked by.

    Examples
    --------
    >>> FlowPath((("(input)", 3), ("conv", 1), ("(target)", "target")), (2.0, 5.0), 2.0)
    FlowPath((input) 3 → conv 1 → (target) target, score 2)
    """

    nodes: tuple[Node, ...]
    flows: tuple[float, ...]
    score: float

    @property
    def sign(self) -> int:
        """1 if every flow on it is positive, -1 if every one is negative, 0 if it has both."""
        signs = {1 if flow > 0 else -1 for flow in self.flows}
        return signs.pop() if len(signs) == 1 else 0

    def __repr__(self) -> str:
        """Nodes and score in one line."""
        return f"FlowPath({' → '.join(f'{layer} {unit}' for layer, unit in self.nodes)}, score {self.score:.4g})"


def strongest_paths(
    graph: "nx.DiGraph",
    k: int = 5,
    *,
    by: Literal["bottleneck", "product"] = "bottleneck",
    source: Node | str | None = None,
    target: Node | str | None = None,
) -> list[FlowPath]:
    """Find the ``k`` strongest paths, exactly, without looking at all paths.

    Parameters
    ----------
    graph
        What `flow_graph` returned, or a part of it.
    k
        Number of paths, at least 1.
    by
        ``bottleneck``: the smallest ``|flow|`` on the way; where two are equal, the second smallest decides, and so
        on, and of two paths that agree so far the shorter one is stronger. ``product``: the first node's part of the
        ``|flow|`` that leaves all nodes where paths may begin, times the ``share`` of every edge: the part of all
        that begins there that takes this way if it mixes evenly in each node. Shares are taken from the graph as
        they are.
    source, target
        Where paths begin and end: a node, or the name of a layer for any of its nodes. None is the input and the
        gaps for ``source``, the target for ``target``.

    Returns
    -------
    list of FlowPath
        Strongest first; fewer if there are fewer over which something flows. Equal paths are in forward order of
        their nodes.

    Raises
    ------
    TypeError
        If ``graph`` is no flow graph or ``k`` not a whole number.
    ValueError
        If ``by`` is unknown, ``k`` below 1, or there is no such node.
    KeyError
        If there is no such layer.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> import conductance as cd
    >>> from conductance.analysis.graph import flow_graph
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    >>> weights = {"0.weight": torch.tensor([[1.0, 3.0], [4.0, -1.0]]), "1.weight": torch.tensor([[2.0, 1.0]])}
    >>> _ = model.load_state_dict(weights)
    >>> x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    >>> flow = cd.conductance_flow(model, x, "0", target=0, feature_groups=torch.tensor([0, 1]))
    >>> graph = flow_graph(flow)
    >>> for path in strongest_paths(graph, k=2):
    ...     print(path, path.sign, [round(flow, 6) for flow in path.flows])
    FlowPath((input) 1 → 0 0 → (target) target, score 12) 1 [12.0, 14.0]
    FlowPath((input) 0 → 0 0 → (target) target, score 2) 1 [2.0, 14.0]
    >>> strongest_paths(graph, k=1, by="product", source=("(input)", 0))
    [FlowPath((input) 0 → 0 1 → (target) target, score 0.6667)]
    """
    check_graph(graph)
    check_choice("by", by, ("bottleneck", "product"))
    check_top(k, "k")
    starts = _nodes(graph, source, "source", (SOURCE, *GAP_LAYERS))
    stops = _nodes(graph, target, "target", (SINK,))
    keys = {node: node_key(graph, node) for node in graph}
    parts = _parts(graph, starts)

    def strongest(trails: list[Trail]) -> list[Trail]:
        # Two stable sorts: equal strengths stay in forward order of the nodes.
        trails.sort(key=lambda trail: [keys[node] for node in trail[1]])
        return sorted(trails, key=lambda trail: trail[0], reverse=True)[: int(k)]

    found: dict[Node, list[Trail]] = {}
    for node in sorted(graph, key=keys.__getitem__):
        trails = [
            (_stronger_by(strength, data, by), (*nodes, node))
            for before, _, data in graph.in_edges(node, data=True)
            if data["flow"]
            for strength, nodes in found[before]
        ]
        if node in starts:
            trails.append(((inf,) if by == "bottleneck" else (parts[node],), (node,)))
        found[node] = strongest(trails)
    ends = strongest([trail for node in stops for trail in found[node] if len(trail[1]) > 1])
    return [_path(graph, nodes, strength[0]) for strength, nodes in ends]


def backbone(graph: "nx.DiGraph", share: float = 0.8) -> "nx.DiGraph":
    """Keep the few edges that carry most of what flows from the sources to the target.

    The flow is taken apart into paths: the path with the largest bottleneck is taken first, its bottleneck is
    subtracted from ``|flow|`` of each of its edges, and so on until nothing can reach the target. The bottlenecks
    together are what flows from the sources to the target: the change of the output where all flows are positive;
    where units pull against each other it may fall a little short of the most that could pass. The backbone is
    the first of these paths, as many as carry ``share`` of it. So every edge of it lies on a path from a source to
    the target, and a backbone of a larger share contains those of all smaller ones. It is small, but not always
    the smallest graph possible: that one is hard to find.

    Parameters
    ----------
    graph
        What `flow_graph` returned, or a part of it.
    share
        How much it has to carry, above 0, at most 1.

    Returns
    -------
    networkx.DiGraph
        A copy of these nodes and edges with their attributes, so it doesn't balance: what the other edges bring
        is missing. Its attributes tell in addition ``backbone``: the ``share`` asked, how much its paths
        ``carried``, and how many ``paths`` they are.

    Raises
    ------
    TypeError
        If ``graph`` is no flow graph.
    ValueError
        If ``share`` is not above 0 and at most 1, or nothing flows from a source to the target.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> import conductance as cd
    >>> from conductance.analysis.graph import flow_graph
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    >>> weights = {"0.weight": torch.tensor([[1.0, 3.0], [4.0, -1.0]]), "1.weight": torch.tensor([[2.0, 1.0]])}
    >>> _ = model.load_state_dict(weights)
    >>> x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    >>> flow = cd.conductance_flow(model, x, "0", target=0, feature_groups=torch.tensor([0, 1]))
    >>> small = backbone(flow_graph(flow), share=0.7)
    >>> list(small.edges)
    [(('(input)', 1), ('0', 0)), (('0', 0), ('(target)', 'target'))]
    >>> told = small.graph["backbone"]
    >>> told["paths"], round(told["carried"], 6)
    (1, 0.75)
    """
    import networkx as nx

    check_graph(graph)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        msg = f"share is {share!r}, expected a number above 0 and at most 1."
        raise ValueError(msg)
    nodes = sorted(graph, key=lambda node: node_key(graph, node))
    paths = list(_taken_apart(graph, nodes))
    if not paths:
        msg = "Nothing flows from a source to the target, so there is no backbone; look at the graph itself."
        raise ValueError(msg)
    carried = list(accumulate(width for width, _ in paths))
    enough = share * carried[-1] * (1 - _ROUNDING)
    count = next(number for number, amount in enumerate(carried, start=1) if amount >= enough)
    kept = {(nodes[start], nodes[stop]) for _, path in paths[:count] for start, stop in pairwise(path)}
    told = {"share": float(share), "carried": carried[count - 1] / carried[-1], "paths": count}
    small = nx.DiGraph(**{**graph.graph, "backbone": told})
    ends = {node for edge in kept for node in edge}
    small.add_nodes_from((node, dict(data)) for node, data in graph.nodes(data=True) if node in ends)
    small.add_edges_from((*edge, dict(graph.edges[edge])) for edge in graph.edges if edge in kept)
    return small


def _stronger_by(strength: Strength, data: "dict[str, float]", by: str) -> Strength:
    """Add an edge to a path.

    Of a path all flows are kept in order, then infinity, so that a missing edge counts as infinitely strong:
    then one more edge never changes which of two paths is stronger.
    """
    if by == "product":
        return (strength[0] * data["share"],)
    return tuple(sorted((*strength, abs(data["flow"]))))


def _parts(graph: "nx.DiGraph", starts: set[Node]) -> dict[Node, float]:
    """Tell each node's part of what leaves all of them, so that a small one (a gap) is no match for a large one.

    In a part of a graph the flow that leaves a node is that of the whole graph, as its shares are.
    """
    left = {}
    for node in starts:
        edges = [data for *_, data in graph.out_edges(node, data=True)]
        share = sum(data["share"] for data in edges)
        left[node] = sum(abs(data["flow"]) for data in edges) / share if share else 0.0
    whole = sum(left.values())
    return {node: one / whole if whole else 0.0 for node, one in left.items()}


def _path(graph: "nx.DiGraph", nodes: tuple[Node, ...], score: float) -> FlowPath:
    flows = tuple(graph.edges[edge]["flow"] for edge in pairwise(nodes))
    return FlowPath(nodes, flows, score)


def _nodes(graph: "nx.DiGraph", given: Node | str | None, name: str, default: tuple[str, ...]) -> set[Node]:
    """Find the nodes that an argument means."""
    if given is None:
        return {node for node in graph if node[0] in default}
    if isinstance(given, str):
        layers = list(dict.fromkeys(node[0] for node in graph))
        if given not in layers:
            raise UnknownLayerError(given, layers)
        return {node for node in graph if node[0] == given}
    if given not in graph:
        some = next(iter(graph), None)
        msg = f"{name} is {given!r}, which is no node of the graph; expected (layer, unit) such as {some}."
        raise ValueError(msg)
    return {given}


def _taken_apart(graph: "nx.DiGraph", nodes: list[Node]) -> Iterator[tuple[float, list[int]]]:
    """Yield bottleneck and numbers of the nodes of the widest path, subtract it, and begin again."""
    place = {node: number for number, node in enumerate(nodes)}
    left = np.zeros((len(nodes), len(nodes)))
    for start, stop, data in graph.edges(data=True):
        left[place[start], place[stop]] = abs(data["flow"])
    sizes = [len(list(group)) for _, group in groupby(graph.nodes[node]["layer_index"] for node in nodes)]
    bounds = [0, *accumulate(sizes)]
    sources = np.array([node[0] in (SOURCE, *GAP_LAYERS) for node in nodes])
    target = place[target_of(graph)]
    least = _ROUNDING * left.max(initial=0.0)
    while True:
        width, path = _widest(left, bounds, sources, target)
        if width <= least:
            return
        left[path[:-1], path[1:]] -= width
        yield width, path


def _widest(left: Floats, bounds: list[int], sources: npt.NDArray[np.bool_], target: int) -> tuple[float, list[int]]:
    """Find the path with the largest bottleneck, 0 if there is none; of equal ones the first in order."""
    width = np.where(sources, np.inf, 0.0)
    before = np.full(len(left), -1)
    for start, stop in pairwise(bounds[1:]):
        through = np.minimum(width[:start, None], left[:start, start:stop])
        before[start:stop] = through.argmax(axis=0)
        width[start:stop] = through.max(axis=0)
    path = [target]
    while width[target] and not sources[path[-1]]:
        path.append(int(before[path[-1]]))
    return float(width[target]), path[::-1]
