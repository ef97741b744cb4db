"""The flow of conductance as a graph that carries its numbers: between units, from the input to the target.

An edge ``j → k`` carries ``E_jk = ∫ v_k (∂z_k/∂y_j) dy_j``, averaged over examples. The flow is conserved:
``Σ_k E_jk = C_j`` goes out of a node, ``Σ_j E_jk + gap_k = C_k`` comes in. Gaps are edges of their own, from the
nodes ``("(integration)", "integration")`` and ``("(jump)", "jump")``; with them the graph balances at every node,
and its sources together give the change of the output. Conductance: Dhamdhere, Sundararajan & Yan, 2018,
arXiv:1805.12233.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from torch import Tensor

from conductance._result_examples import as_indices
from conductance.analysis._values import Floats, as_floats
from conductance.flow_results import REST, SINK, SOURCE, ConductanceFlow, Unit

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd

Node: TypeAlias = tuple[str, Unit]

#: Kinds of gaps; the gap of a kind comes from the node ``("(kind)", "kind")``.
GAP_KINDS = ("integration", "jump")
GAP_LAYERS = tuple(f"({kind})" for kind in GAP_KINDS)
#: What every node and every edge of a flow graph has.
NODE_ATTRIBUTES = ("layer", "unit", "conductance", "layer_index", "position")
EDGE_ATTRIBUTES = ("flow", "share", "error")


def flow_graph(
    flow: ConductanceFlow, example: int | slice | Sequence[int] | Sequence[bool] | Tensor | None = None
) -> "nx.DiGraph":
    """Make the graph of the flow in one example, or of its mean over several.

    Parameters
    ----------
    flow
        What `conductance.conductance_flow` returned.
    example
        Number of one example; several numbers, a slice or a mask of booleans for the mean over them; None for the
        mean over all.

    Returns
    -------
    networkx.DiGraph
        Each node is a key ``(layer, unit)`` with ``layer``, ``unit``, ``conductance``; ``layer_index``, 0 for the
        input and the gaps, then counting in forward order; ``position``, ``(layer_index, -rank)`` with the largest
        ``|conductance|`` of a layer in row 0 and ``"rest"`` in its last row.

        Each edge has its signed ``flow``; ``share``, its ``|flow|`` over the sum of ``|flow|`` of all edges out of
        its source; ``error``, the mean of its estimated absolute error, which bounds that of the mean. Edges with
        neither flow nor error are left out.

        The attributes of the graph are ``layers``, all names in forward order with ``"(input)"`` and ``"(target)"``;
        ``output_change``, the mean of ``F(x) - F(x')``; ``examples``, the numbers of those averaged; ``left_out``,
        how many of those chosen are interrupted or hold NaN or infinity; and ``settings``.

        At each node ``conductance`` is the sum of the flows that go out (of those that come in, at the target),
        and at all but the sources the sum of those that come in, up to rounding.

    Raises
    ------
    TypeError
        If ``flow`` is not a flow or ``example`` not a choice of examples.
    IndexError
        If there is no such example.
    ValueError
        If no example is chosen, or none of those chosen is finished.

    See Also
    --------
    strongest_paths, backbone : what matters in a graph.
    plot_flow_graph : draws it.
    write_graph : writes it to a file.

    Examples
    --------
    A linear network of two inputs and two hidden units, in closed form:

    >>> import torch
    >>> from torch import nn
    >>> import conductance as cd
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    >>> weights = {"0.weight": torch.tensor([[1.0, 3.0], [4.0, -1.0]]), "1.weight": torch.tensor([[2.0, 1.0]])}
    >>> _ = model.load_state_dict(weights)
    >>> x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    >>> flow = cd.conductance_flow(model, x, "0", target=0, feature_groups=torch.tensor([0, 1]))
    >>> graph = flow_graph(flow)
    >>> edge, node = graph.edges[("(input)", 1), ("0", 0)], graph.nodes["0", 0]
    >>> round(edge["flow"], 6), round(edge["share"], 6)  # 2 · 3 · 2, of 12 and -2
    (12.0, 0.857143)
    >>> round(node["conductance"], 6), node["layer_index"], node["position"]
    (14.0, 1, (1.0, 0.0))
    >>> graph.graph["output_change"]
    16.0
    """
    import networkx as nx

    if not isinstance(flow, ConductanceFlow):
        msg = f"flow must be a ConductanceFlow, as conductance_flow returns it, got {type(flow).__name__}."
        raise TypeError(msg)
    chosen, left_out = _finished(flow, example)
    graph = nx.DiGraph(
        layers=list(flow.units),
        output_change=float(as_floats(flow.output_change)[chosen].mean()),
        examples=chosen,
        left_out=left_out,
        settings=deepcopy(flow.settings),
    )
    _add_units(graph, flow, chosen)
    _add_edges(graph, flow, chosen)
    _add_gaps(graph, flow, chosen)
    for node in graph:
        edges = graph.out_edges(node, data=True)
        total = sum(abs(data["flow"]) for _, _, data in edges)
        for _, _, data in edges:
            data["share"] = abs(data["flow"]) / total if total else 0.0
    return graph


def compare_graphs(a: "nx.DiGraph", b: "nx.DiGraph") -> "pd.DataFrame":
    """Put the flows of two graphs side by side: two classes, or two inputs, of one model.

    Parameters
    ----------
    a, b
        Flow graphs with the same layers. Their units may differ: where a graph has no edge, its flow is 0.

    Returns
    -------
    pandas.DataFrame
        One row an edge, columns ``from_layer``, ``from_unit``, ``to_layer``, ``to_unit``, ``flow_a``, ``flow_b``
        and ``difference``, which is ``flow_b - flow_a``; the largest ``|difference|`` first, ties in forward order.

    Raises
    ------
    TypeError
        If ``a`` or ``b`` is no flow graph.
    ValueError
        If their layers differ.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> import conductance as cd
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    >>> weights = {"0.weight": torch.tensor([[1.0, 3.0], [4.0, -1.0]]), "1.weight": torch.tensor([[2.0, 1.0]])}
    >>> _ = model.load_state_dict(weights)
    >>> x = torch.tensor([[1.0, 2.0], [2.0, 0.0]], dtype=torch.float64)
    >>> flow = cd.conductance_flow(model, x, "0", target=0, feature_groups=torch.tensor([0, 1]))
    >>> compare_graphs(flow_graph(flow, 0), flow_graph(flow, 1)).round(6).head(3)
      from_layer from_unit  to_layer to_unit  flow_a  flow_b  difference
    0    (input)         1         0       0    12.0     0.0       -12.0
    1          0         0  (target)  target    14.0     4.0       -10.0
    2          0         1  (target)  target     2.0     8.0         6.0
    """
    import pandas as pd

    check_graph(a, "a")
    check_graph(b, "b")
    layers_a, layers_b = a.graph["layers"], b.graph["layers"]
    if layers_a != layers_b:
        only_a = [layer for layer in layers_a if layer not in layers_b]
        only_b = [layer for layer in layers_b if layer not in layers_a]
        found = f"only a has {only_a}, only b has {only_b}" if only_a or only_b else "their order differs"
        msg = f"Graphs to compare need the same layers, but {found}; ask conductance_flow for the same layers."
        raise ValueError(msg)
    keys = {node: node_key(graph, node) for graph in (a, b) for node in graph}
    pairs = sorted({*a.edges, *b.edges}, key=lambda pair: (keys[pair[0]], keys[pair[1]]))
    rows = [(*start, *stop, _flow(a, start, stop), _flow(b, start, stop)) for start, stop in pairs]
    table = pd.DataFrame(rows, columns=["from_layer", "from_unit", "to_layer", "to_unit", "flow_a", "flow_b"])
    table = table.astype({"flow_a": float, "flow_b": float})
    table["difference"] = table["flow_b"] - table["flow_a"]
    return table.sort_values("difference", key=abs, ascending=False, kind="stable", ignore_index=True)


def check_graph(graph: object, name: str = "graph") -> None:
    """Refuse what is not a flow graph; an edge has to lead to a later layer, so there is no cycle."""
    import networkx as nx

    plain = isinstance(graph, nx.DiGraph) and not graph.is_multigraph()
    if not plain or not isinstance(graph, nx.DiGraph) or "layers" not in graph.graph:
        found = f"a {type(graph).__name__} without layers" if plain else type(graph).__name__
        msg = f"{name} must be a networkx.DiGraph, as flow_graph returns it, got {found}."
        raise TypeError(msg)
    for attributes, entries in ((NODE_ATTRIBUTES, graph.nodes.items()), (EDGE_ATTRIBUTES, graph.edges.items())):
        for key, data in entries:
            missing = [attribute for attribute in attributes if attribute not in data]
            if missing:
                msg = f"{key} of {name} lacks {missing}; start from a graph that flow_graph returned."
                raise ValueError(msg)
    layers = {*graph.graph["layers"], *GAP_LAYERS}
    for node, data in graph.nodes.items():
        if node != (data["layer"], data["unit"]) or node[0] not in layers:
            msg = f"The node {node} of {name} is not the (layer, unit) of its attributes, or no layer of the graph."
            raise ValueError(msg)
    for start, stop in graph.edges:
        if graph.nodes[start]["layer_index"] >= graph.nodes[stop]["layer_index"]:
            msg = f"The edge from {start} to {stop} of {name} does not lead to a later layer (layer_index)."
            raise ValueError(msg)


def node_key(graph: "nx.DiGraph", node: Node) -> tuple[int, str, bool, Unit]:
    """Sort nodes in forward order, numbers of units before words, whatever their order in the graph."""
    layer, unit = node
    return graph.nodes[node]["layer_index"], layer, isinstance(unit, str), unit


def _finished(flow: ConductanceFlow, example: Any) -> tuple[list[int], int]:
    """Take the numbers of the finished examples among those chosen, and count the others."""
    chosen = list(range(flow.batch)) if example is None else as_indices(example, flow.batch)
    if not chosen:
        msg = f"No example is chosen: example is {example!r}; expected at least one of {flow.batch}, or None for all."
        raise ValueError(msg)
    finished = np.array([status != "interrupted" for status in flow.status], dtype=bool)
    for tensors in (flow.conductance, flow.edges, flow.gap):
        for tensor in tensors.values():
            finished &= np.isfinite(as_floats(tensor)).reshape(flow.batch, -1).all(axis=1)
    kept = [number for number in chosen if finished[number]]
    if not kept:
        msg = f"None of the chosen examples {chosen} is finished: each is interrupted or holds NaN or infinity."
        raise ValueError(msg)
    return kept, len(chosen) - len(kept)


def _add_units(graph: "nx.DiGraph", flow: ConductanceFlow, chosen: list[int]) -> None:
    for index, (layer, units) in enumerate(flow.units.items()):
        values = _mean(flow.conductance[layer], chosen)
        order = sorted(range(len(units)), key=lambda n: (units[n] == REST, -abs(values[n]), n))
        row = {number: float(-rank) for rank, number in enumerate(order)}
        for number, (unit, value) in enumerate(zip(units, values.tolist(), strict=True)):
            position = (float(index), row[number] + 0.0)
            graph.add_node(
                (layer, unit), layer=layer, unit=unit, conductance=value, layer_index=index, position=position
            )


def _add_edges(graph: "nx.DiGraph", flow: ConductanceFlow, chosen: list[int]) -> None:
    for (start, stop), edge in flow.edges.items():
        values, errors = _mean(edge, chosen), _mean(flow.edge_error[start, stop], chosen)
        for i, j in np.argwhere((values != 0) | (errors != 0)).tolist():
            nodes = (start, flow.units[start][i]), (stop, flow.units[stop][j])
            graph.add_edge(*nodes, flow=float(values[i, j]), error=float(errors[i, j]))


def _add_gaps(graph: "nx.DiGraph", flow: ConductanceFlow, chosen: list[int]) -> None:
    """Add one source for each kind of gap there is, below all layers."""
    lowest = min(position[1] for _, position in graph.nodes(data="position"))
    for kind, layer in zip(GAP_KINDS, GAP_LAYERS, strict=True):
        of_kind = np.array([found == kind for found in flow.gap_kind])[:, None]
        gaps = {
            (name, unit): value
            for name, units in flow.units.items()
            if name != SOURCE
            for unit, value in zip(units, _mean(flow.gap[name], chosen, of_kind).tolist(), strict=True)
            if value
        }
        if not gaps:
            continue
        lowest -= 1.0
        node, total = (layer, kind), sum(gaps.values())
        graph.add_node(node, layer=layer, unit=kind, conductance=total, layer_index=0, position=(0.0, lowest))
        for stop, value in gaps.items():
            graph.add_edge(node, stop, flow=value, error=0.0)


def _mean(tensor: Tensor, chosen: list[int], mask: Any = True) -> Floats:
    """Average over the chosen examples; those outside the mask count as 0."""
    mean: Floats = np.where(mask, as_floats(tensor), 0.0)[chosen].mean(axis=0)
    return mean


def _flow(graph: "nx.DiGraph", start: Node, stop: Node) -> float:
    return float(graph.edges[start, stop]["flow"]) if graph.has_edge(start, stop) else 0.0


def target_of(graph: "nx.DiGraph") -> Node:
    """Find the node that all flow ends in."""
    found = [node for node in graph if node[0] == SINK]
    if len(found) != 1:
        msg = f"The graph has {len(found)} nodes of the layer {SINK!r}, expected 1; keep it when you take nodes out."
        raise ValueError(msg)
    node: Node = found[0]
    return node
