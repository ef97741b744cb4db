"""Paths and backbones of flow graphs agree with all paths counted one by one."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from math import inf, prod
from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conductance.analysis import backbone, flow_graph, strongest_paths
from conductance.analysis.graph import GAP_LAYERS, node_key
from conductance.flow_results import SINK, SOURCE
from tests.analysis.flows import EXAMPLES, linear_flow, random_flow

TARGET = (SINK, "target")
seeds = st.integers(0, 2**32)


def all_paths(graph: nx.DiGraph, sources: Any = None, targets: Any = None) -> Iterator[tuple[Any, list[float], float]]:
    """Count every path one by one: nodes, flows, product of shares and of the part that the start has."""
    starts = [node for node in graph if node[0] in (SOURCE, *GAP_LAYERS)] if sources is None else sources
    leaves = {start: sum(abs(data["flow"]) for *_, data in graph.out_edges(start, data=True)) for start in starts}
    for start in starts:
        part = leaves[start] / (sum(leaves.values()) or 1.0)
        for nodes in nx.all_simple_paths(graph, start, [TARGET] if targets is None else targets):
            edges = [graph.edges[pair] for pair in pairwise(nodes)]
            yield tuple(nodes), [edge["flow"] for edge in edges], part * prod(edge["share"] for edge in edges)


# --- strongest_paths


def by_bottleneck(path: tuple[Any, list[float], float]) -> list[float]:
    return [*sorted(abs(flow) for flow in path[1]), inf]


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 40), st.sampled_from([0.3, 3.0]))
def test_widest_paths_are_the_first_of_all_paths(seed: int, k: int, spread: float) -> None:
    graph = flow_graph(random_flow(seed, spread=spread), seed % EXAMPLES)
    expected = sorted(all_paths(graph), key=by_bottleneck, reverse=True)[:k]
    found = strongest_paths(graph, k)
    assert [(path.nodes, list(path.flows)) for path in found] == [(nodes, flows) for nodes, flows, _ in expected]
    assert [path.score for path in found] == [min(map(abs, path.flows)) for path in found]


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 40))
def test_paths_of_the_largest_product_are_the_first_of_all_paths(seed: int, k: int) -> None:
    graph = flow_graph(random_flow(seed))
    expected = sorted(all_paths(graph), key=lambda path: path[2], reverse=True)[:k]
    found = strongest_paths(graph, k, by="product")
    assert [path.nodes for path in found] == [nodes for nodes, _, _ in expected]
    assert [path.score for path in found] == pytest.approx([product for *_, product in expected])


def test_a_gap_as_small_as_rounding_is_no_strong_path() -> None:
    flow = linear_flow()
    gap = (GAP_LAYERS[0], GAP_LAYERS[0].strip("()"))
    graph = flow_graph(flow)
    graph.add_node(gap, layer=gap[0], unit=gap[1], layer_index=0, position=(0.0, -2.0), conductance=1e-7)
    graph.add_edge(gap, TARGET, flow=1e-7, share=1.0, error=0.0)
    *first, last = strongest_paths(graph, 99, by="product")
    assert last.nodes == (gap, TARGET)
    assert 0 < last.score < 1e-6
    assert all(path.nodes[0][0] == SOURCE for path in first)
    assert sum(path.score for path in [*first, last]) == pytest.approx(1)
    (alone,) = strongest_paths(graph, by="product", source=gap)
    assert alone.score == 1


def test_a_part_of_a_graph_ranks_paths_as_the_whole_does() -> None:
    graph = flow_graph(random_flow(3))
    whole = {path.nodes: path.score for path in strongest_paths(graph, 999, by="product", source=SOURCE)}
    part = graph.copy()
    part.remove_edges_from(list(graph.edges)[1::4])
    found = strongest_paths(part, 999, by="product", source=SOURCE)
    assert found
    assert all(path.score == pytest.approx(whole[path.nodes]) for path in found)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 1.0, 2.0]), min_size=14, max_size=14))
def test_equal_paths_are_in_forward_order(weights: list[float]) -> None:
    hidden = [weights[:2], weights[2:4], weights[4:6]]
    graph = flow_graph(linear_flow([weights[6:8]], hidden, weights[8:11]))
    key = {node: node_key(graph, node) for node in graph}
    paths = [path for path in all_paths(graph) if all(path[1])]
    paths.sort(key=lambda path: [key[node] for node in path[0]])
    paths.sort(key=by_bottleneck, reverse=True)
    assert [path.nodes for path in strongest_paths(graph, 4)] == [nodes for nodes, *_ in paths[:4]]
    shuffled = nx.DiGraph(**graph.graph)
    shuffled.add_nodes_from(reversed(list(graph.nodes.items())))
    shuffled.add_edges_from(reversed(list(graph.edges(data=True))))
    assert strongest_paths(shuffled, 4) == strongest_paths(graph, 4)


@pytest.mark.parametrize("by", ["bottleneck", "product"])
def test_paths_begin_and_end_where_asked(by: Any) -> None:
    graph = flow_graph(random_flow(3))
    source, target = ("stem.conv", 11), ("head", 4)
    expected = {nodes for nodes, *_ in all_paths(graph, [source], [target])}
    assert {path.nodes for path in strongest_paths(graph, 99, by=by, source=source, target=target)} == expected
    inputs = [node for node in graph if node[0] == SOURCE]
    expected = {nodes for nodes, *_ in all_paths(graph, inputs, [("head", 1), target])}
    assert {path.nodes for path in strongest_paths(graph, 999, by=by, source=SOURCE, target="head")} == expected
    assert strongest_paths(graph, source=target, target=source) == []
    assert strongest_paths(graph, source=source, target=source) == []


def test_a_path_tells_its_sign_and_itself() -> None:
    graph = flow_graph(linear_flow([[1.0, 2.0]], [[1.0, 3.0], [-1.0, -2.0]], [2.0, 1.0]))
    signs = {path.nodes[:2]: path.sign for path in strongest_paths(graph, 9)}
    assert signs[(SOURCE, 0), ("h", 0)] == 1
    assert signs[(SOURCE, 1), ("h", 1)] == -1
    mixed = flow_graph(linear_flow())
    (path,) = strongest_paths(mixed, 1, source=(SOURCE, 1), target=TARGET)
    assert repr(path) == "FlowPath((input) 1 → h 0 → (target) target, score 12)"
    assert {path.sign for path in strongest_paths(mixed, 9)} == {0, 1}


def test_many_paths_are_no_trouble() -> None:
    layers: dict[str, Any] = {f"layer{n}": list(range(12)) for n in range(8)}
    graph = flow_graph(random_flow(layers=layers, skips=(), gap=0.0), 0)
    assert len(strongest_paths(graph, 10)) == 10


# --- backbone


def through(graph: nx.DiGraph) -> float:
    """Most that can flow from all sources to the target, if an edge holds its |flow|."""
    network = nx.DiGraph()
    for start, stop, flow in graph.edges(data="flow"):
        network.add_edge(start, stop, capacity=round(abs(flow) * 2**40))
    for node in graph:
        if node[0] in (SOURCE, *GAP_LAYERS):
            network.add_edge("all", node)
    return float(nx.maximum_flow_value(network, "all", TARGET)) / 2**40


@settings(max_examples=20, deadline=None)
@given(seeds, st.lists(st.floats(0.01, 1.0), min_size=2, max_size=2), st.booleans())
def test_backbones_are_connected_nested_and_carry_their_share(seed: int, shares: list[float], positive: bool) -> None:
    graph = flow_graph(random_flow(seed, positive=positive, gap=0.1))
    small, large = (backbone(graph, share) for share in sorted(shares))
    assert set(small.edges) <= set(large.edges)
    assert set(small.nodes) <= set(large.nodes)
    for share, part in zip(sorted(shares), (small, large), strict=True):
        told = part.graph["backbone"]
        assert told["share"] == share
        assert 1.0 + 1e-12 > told["carried"] >= share * (1 - 1e-9)
        on_paths = {edge for nodes, *_ in all_paths(part) for edge in pairwise(nodes)}
        assert on_paths == set(part.edges)
        assert all(part.edges[edge] == graph.edges[edge] for edge in part.edges)
        assert all(part.nodes[node] == graph.nodes[node] for node in part)
        if positive:
            assert through(part) >= share * graph.graph["output_change"] * (1 - 1e-9)


def test_positive_flow_is_taken_apart_as_a_whole() -> None:
    graph = flow_graph(random_flow(positive=True))
    whole = backbone(graph, 1.0)
    assert set(whole.edges) == set(graph.edges)
    assert through(whole) == pytest.approx(graph.graph["output_change"])


def test_backbone_is_the_strong_part_of_a_known_graph() -> None:
    graph = flow_graph(linear_flow([[1.0, 1.0]], [[6.0, 1.0], [0.0, 3.0]], [1.0, 1.0]))
    first, second = {((SOURCE, 0), ("h", 0)), (("h", 0), TARGET)}, {((SOURCE, 1), ("h", 1)), (("h", 1), TARGET)}
    assert set(backbone(graph, 0.6).edges) == first
    assert set(backbone(graph, 0.61).edges) == first | second
    assert set(backbone(graph, 0.9).edges) == first | second
    assert set(backbone(graph, 0.91).edges) == set(graph.edges)
    assert backbone(graph).graph["backbone"] == {"share": 0.8, "carried": 0.9, "paths": 2}


def test_a_backbone_of_a_jump_starts_at_the_jump() -> None:
    flow = linear_flow([[0.0, 0.0]])
    gap = torch.tensor([[5.0, 0.0]], dtype=torch.float64)
    flow = replace(
        flow,
        gap={**flow.gap, "h": gap},
        conductance={**flow.conductance, "h": gap, SINK: gap[:, :1]},
        edges={**flow.edges, ("h", SINK): gap[:, :, None]},
        output=gap[:, 0],
        status=("jump",),
    )
    graph = flow_graph(flow)
    assert list(backbone(graph)) == [("h", 0), TARGET, ("(jump)", "jump")]


def test_backbone_says_what_is_wrong() -> None:
    graph = flow_graph(random_flow())
    with pytest.raises(TypeError, match=r"graph must be a networkx.DiGraph, .* got MultiDiGraph"):
        backbone(nx.MultiDiGraph(graph))
    wrong: list[Any] = [0, -0.1, 1.01, float("nan"), True, "all", None]
    for share in wrong:
        with pytest.raises(ValueError, match=r"share is .*, expected a number above 0 and at most 1"):
            backbone(graph, share)
    with pytest.raises(ValueError, match="Nothing flows from a source to the target"):
        backbone(flow_graph(linear_flow([[0.0, 0.0]])))
    with pytest.raises(ValueError, match=r"0 nodes of the layer '\(target\)', expected 1"):
        backbone(graph.subgraph([node for node in graph if node != TARGET]))


def test_path_arguments_say_what_is_wrong() -> None:
    graph = flow_graph(random_flow())
    with pytest.raises(ValueError, match="by must be 'bottleneck' or 'product', got 'flow'"):
        strongest_paths(graph, by="flow")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        strongest_paths(graph, 0)
    with pytest.raises(TypeError, match=r"k must be a whole number of at least 1, got 2.5"):
        strongest_paths(graph, 2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"source is \('head', 99\), which is no node of the graph; expected \(layer"):
        strongest_paths(graph, source=("head", 99))
    with pytest.raises(KeyError, match=r"No layer 'heads' here. Did you mean 'head'"):
        strongest_paths(graph, target="heads")
