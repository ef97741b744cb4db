"""Graphs of the flow: they balance, and can be compared."""

from dataclasses import replace
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conductance.analysis import backbone, compare_graphs, flow_graph, strongest_paths
from conductance.analysis.graph import GAP_LAYERS
from conductance.flow_results import SINK, SOURCE
from tests.analysis.flows import EXAMPLES, INPUTS, LAYERS, SKIPS, linear_flow, random_flow

TARGET = (SINK, "target")
seeds = st.integers(0, 2**32)


def sums(graph: nx.DiGraph, node: Any) -> tuple[float, float]:
    """Sum what comes in and what goes out."""
    into = sum(data["flow"] for *_, data in graph.in_edges(node, data=True))
    return into, sum(data["flow"] for *_, data in graph.out_edges(node, data=True))


def assert_balances(graph: nx.DiGraph) -> None:
    scale = max(abs(flow) for *_, flow in graph.edges(data="flow"))
    close = {"rel": 1e-12, "abs": 1e-12 * scale}
    for node, data in graph.nodes.items():
        into, out = sums(graph, node)
        if node[0] not in (SOURCE, *GAP_LAYERS):
            assert into == pytest.approx(data["conductance"], **close)
        if node != TARGET:
            assert out == pytest.approx(data["conductance"], **close)
    sources = sum(data["conductance"] for node, data in graph.nodes.items() if graph.in_degree(node) == 0)
    assert sources == pytest.approx(graph.graph["output_change"], **close)
    assert sums(graph, TARGET)[0] == pytest.approx(graph.graph["output_change"], **close)


# --- flow_graph


@settings(max_examples=25, deadline=None)
@given(seeds, st.lists(st.sampled_from(["ok", "jump", "gradient", "budget"]), min_size=1, max_size=5), st.booleans())
def test_every_graph_balances(seed: int, status: list[str], skips: bool) -> None:
    flow = random_flow(seed, examples=len(status), status=status, gap=0.2, skips=SKIPS if skips else ())
    assert_balances(flow_graph(flow))
    assert_balances(flow_graph(flow, len(status) - 1))


def test_nodes_and_edges_are_those_of_the_example() -> None:
    flow = random_flow(gap=0.0)
    graph = flow_graph(flow, 2)
    assert len(graph) == INPUTS + sum(map(len, LAYERS.values())) + 1
    assert list(graph.graph["layers"]) == [SOURCE, *LAYERS, SINK]
    assert graph.graph["examples"] == [2]
    assert graph.graph["settings"] == flow.settings
    for index, (layer, units) in enumerate(flow.units.items()):
        for number, unit in enumerate(units):
            data = graph.nodes[layer, unit]
            assert (data["layer"], data["unit"], data["layer_index"]) == (layer, unit, index)
            assert data["conductance"] == float(flow.conductance[layer][2, number])
            assert isinstance(unit, str) or type(data["unit"]) is int
    for (start, stop), edge in flow.edges.items():
        for i, j in np.ndindex(*edge.shape[1:]):
            data = graph.edges[(start, flow.units[start][i]), (stop, flow.units[stop][j])]
            assert data["flow"] == float(edge[2, i, j])
            assert data["error"] == float(flow.edge_error[start, stop][2, i, j])
    assert graph.number_of_edges() == sum(edge[0].numel() for edge in flow.edges.values())


@pytest.mark.parametrize(
    ("chosen", "numbers"),
    [
        (None, [0, 1, 2, 3]),
        ([3, 1], [3, 1]),
        ([True, False, False, True], [0, 3]),
        (torch.tensor([False, True, True, False]), [1, 2]),
        (torch.tensor([2, 0]), [2, 0]),
        (np.array([0, 2]), [0, 2]),
        (slice(1, None), [1, 2, 3]),
        (-1, [3]),
    ],
)
def test_the_mean_is_over_the_examples_chosen(chosen: Any, numbers: list[int]) -> None:
    flow = random_flow(gap=0.0)
    graph = flow_graph(flow, chosen)
    assert graph.graph["examples"] == numbers
    pair = ("stem.conv", "head")
    found = [[graph.edges[(pair[0], i), (pair[1], j)]["flow"] for j in (1, 4)] for i in LAYERS["stem.conv"]]
    np.testing.assert_allclose(found, flow.edges[pair][numbers].mean(0))
    np.testing.assert_allclose(graph.graph["output_change"], flow.output_change[numbers].mean())


def test_shares_are_of_what_leaves_the_source_of_an_edge() -> None:
    graph = flow_graph(random_flow(gap=0.5))
    for node in graph:
        out = [data for *_, data in graph.out_edges(node, data=True)]
        total = sum(abs(data["flow"]) for data in out)
        assert [data["share"] for data in out] == pytest.approx([abs(data["flow"]) / total for data in out])


def test_gaps_are_sources_of_their_own_for_each_kind() -> None:
    flow = random_flow(gap=0.5, status=["ok", "jump", "budget", "gradient"])
    graph = flow_graph(flow)
    for kind, of_kind in (("integration", [0, 2]), ("jump", [1, 3])):
        node = (f"({kind})", kind)
        assert graph.nodes[node]["layer_index"] == 0
        for (layer, unit), data in graph.adj[node].items():
            mean = flow.gap[layer][of_kind, flow.units[layer].index(unit)].sum() / EXAMPLES
            assert data["flow"] == pytest.approx(float(mean))
            assert data["error"] == 0.0
        assert graph.out_degree(node) == sum(int((each[of_kind] != 0).any(0).sum()) for each in flow.gap.values())
    assert {node[0] for node in flow_graph(flow, [1, 3])} >= {"(jump)"}
    assert "(integration)" not in {node[0] for node in flow_graph(flow, [1, 3])}
    assert not {node[0] for node in flow_graph(random_flow(gap=0.0))} & set(GAP_LAYERS)


def test_rows_are_ranks_and_the_rest_comes_last() -> None:
    graph = flow_graph(random_flow(gap=0.5))
    positions = [data["position"] for data in graph.nodes.values()]
    assert len(set(positions)) == len(positions)
    for layer, units in random_flow().units.items():
        rows = sorted((graph.nodes[layer, unit] for unit in units), key=lambda data: -data["position"][1])
        assert [data["position"][1] for data in rows] == [-float(rank) for rank in range(len(units))]
        assert {data["position"][0] for data in rows} == {graph.graph["layers"].index(layer)}
        sizes = [abs(data["conductance"]) for data in rows if data["unit"] != "rest"]
        assert sizes == sorted(sizes, reverse=True)
        assert all(data["unit"] != "rest" for data in rows[:-1])


def test_edges_that_carry_nothing_are_left_out() -> None:
    graph = flow_graph(linear_flow([[0.0, 1.0]]))
    assert not graph.out_degree((SOURCE, 0))
    assert graph.out_degree((SOURCE, 1)) == 2


def test_unfinished_examples_are_left_out_and_counted() -> None:
    flow = random_flow(status=["ok", "interrupted", "ok", "ok"])
    flow.edges["stem.conv", "head"][3, 1, 0] = float("nan")
    graph = flow_graph(flow, [1, 2, 3])
    assert (graph.graph["examples"], graph.graph["left_out"]) == ([2], 2)
    assert_balances(graph)
    for example in (1, 3, [1, 3]):
        with pytest.raises(ValueError, match=r"None of the chosen examples \[.*\] is finished"):
            flow_graph(flow, example)


def test_half_precision_is_averaged_in_full() -> None:
    flow = random_flow(gap=0.0)
    half = replace(flow, edges={pair: edge.bfloat16() for pair, edge in flow.edges.items()})
    found = flow_graph(half).edges[("stem.conv", 3), ("head", 1)]["flow"]
    assert found == half.edges["stem.conv", "head"][:, 0, 0].double().mean().item()


def test_the_graph_shares_no_settings_with_the_flow() -> None:
    flow = random_flow()
    flow_graph(flow).graph["settings"]["top"] = 99
    assert flow.settings["top"] == 5


def test_wrong_arguments_say_what_is_wrong() -> None:
    flow = random_flow()
    with pytest.raises(TypeError, match="must be a ConductanceFlow, as conductance_flow returns it, got dict"):
        flow_graph({})  # type: ignore[arg-type]
    with pytest.raises(IndexError, match="no example 4: the result has 4, numbered from 0"):
        flow_graph(flow, 4)
    with pytest.raises(IndexError, match="one entry for each of 4 examples"):
        flow_graph(flow, [True, False])
    with pytest.raises(TypeError, match="must be integers, a slice or a mask of booleans, got 'a'"):
        flow_graph(flow, "a")  # type: ignore[arg-type]
    nothings: list[Any] = [[], slice(2, 2), torch.zeros(4, dtype=torch.bool)]
    for nothing in nothings:
        with pytest.raises(ValueError, match=r"No example is chosen: example is .*; expected at least one of 4"):
            flow_graph(flow, nothing)


# --- compare_graphs


def test_graphs_are_compared_edge_by_edge() -> None:
    a, b = flow_graph(random_flow(1, gap=0.0), 0), flow_graph(random_flow(2, gap=0.0), [1, 2])
    table = compare_graphs(a, b)
    assert len(table) == a.number_of_edges()
    row: Any
    for row in table.itertuples():
        edge = (row.from_layer, row.from_unit), (row.to_layer, row.to_unit)
        assert (row.flow_a, row.flow_b) == (a.edges[edge]["flow"], b.edges[edge]["flow"])
        assert row.difference == row.flow_b - row.flow_a
    sizes = table["difference"].abs()
    assert sizes.is_monotonic_decreasing


def test_what_only_one_graph_has_counts_as_nothing() -> None:
    layers: dict[str, Any] = {**LAYERS, "head": [1, 9]}
    a, b = flow_graph(random_flow(1, gap=0.0)), flow_graph(random_flow(1, gap=0.0, layers=layers))
    table: Any = compare_graphs(a, b).set_index(["to_layer", "to_unit"])
    assert (table.loc[("head", 9), "flow_a"] == 0).all()
    assert (table.loc[("head", 4), "flow_b"] == 0).all()
    np.testing.assert_array_equal(table.loc[("head", 4), "flow_a"], -table.loc[("head", 4), "difference"])
    assert not table.loc[("head", 1), "difference"].any()
    jump = flow_graph(random_flow(1, status=["jump"] * EXAMPLES))
    assert set(compare_graphs(a, jump)["from_layer"]) == {SOURCE, "(jump)", *LAYERS}


def test_ties_are_in_forward_order_and_backbones_compare() -> None:
    graph = flow_graph(random_flow(gap=0.1))
    table = compare_graphs(graph, graph)
    index = [
        graph.graph["layers"].index(layer) if layer in graph.graph["layers"] else 0 for layer in table["from_layer"]
    ]
    assert index == sorted(index)
    assert len(compare_graphs(backbone(graph, 0.1), graph)) == graph.number_of_edges()


def test_graphs_of_other_layers_are_refused() -> None:
    graph, other = flow_graph(random_flow()), flow_graph(linear_flow())
    with pytest.raises(ValueError, match=r"same layers, but only a has \['stem.conv', .*\], only b has \['h'\]"):
        compare_graphs(graph, other)
    swapped = graph.copy()
    swapped.graph["layers"] = graph.graph["layers"][::-1]
    with pytest.raises(ValueError, match="but their order differs"):
        compare_graphs(graph, swapped)


# --- what is no flow graph


@pytest.mark.parametrize("use", [strongest_paths, backbone, lambda graph: compare_graphs(graph, graph)])
def test_other_graphs_are_refused(use: Any) -> None:
    with pytest.raises(TypeError, match=r"as flow_graph returns it, got list"):
        use([])
    with pytest.raises(TypeError, match=r"as flow_graph returns it, got a DiGraph without layers"):
        use(nx.DiGraph())
    graph = flow_graph(linear_flow())
    graph.add_edge(("h", 0), ("h", 7))
    with pytest.raises(ValueError, match=r"\('h', 7\) of .* lacks \['layer', 'unit', .*\]; start from a graph"):
        use(graph)
    renamed = nx.relabel_nodes(flow_graph(linear_flow()), {("h", 0): ("g", 0)})
    with pytest.raises(ValueError, match=r"The node \('g', 0\) of .* is not the \(layer, unit\)"):
        use(renamed)
    graph = flow_graph(linear_flow())
    graph.add_edge(("h", 0), (SOURCE, 1), flow=1.0, share=1.0, error=0.0)
    with pytest.raises(ValueError, match="does not lead to a later layer"):
        use(graph)
