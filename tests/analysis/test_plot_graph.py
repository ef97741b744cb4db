"""What is drawn of a flow graph, read off the artists."""

from typing import Any

import networkx as nx
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import same_color, to_rgb
from matplotlib.figure import Figure

from conductance.analysis import backbone, flow_graph, plot_flow_graph
from conductance.analysis._drawing import NEGATIVE, POSITIVE
from conductance.analysis._graph_layout import wrapped
from conductance.analysis.graph import GAP_LAYERS
from conductance.flow_results import SOURCE
from tests.analysis.flows import linear_flow, random_flow

LONG = [f"encoder.blocks.{n}.attention.output.dense{n}" for n in range(8)]


def lines(ax: Axes, label: str = "flows") -> Any:
    return next(each for each in ax.collections if each.get_label() == label)


def circles(ax: Axes) -> list[Any]:
    return [
        each
        for each in ax.collections
        if isinstance(each, PathCollection)
        and np.size(each.get_offsets()) > 0
        and each.get_label() not in ("flows", "gaps")
    ]


def place_of(text: Any) -> tuple[float, float]:
    """Column and row that a label belongs to."""
    x, y = text.xy
    return x, y


def drawn(graph: nx.DiGraph, *, gaps: bool = False) -> list[float]:
    """Flows in the order of the lines: the strongest last."""
    chosen = [flow for start, _, flow in graph.edges(data="flow") if (start[0] in GAP_LAYERS) == gaps]
    return sorted(chosen, key=abs)


def large_graph() -> nx.DiGraph:
    layers: dict[str, Any] = {name: [*range(3 * n, 3 * n + 11), "rest"] for n, name in enumerate(LONG)}
    skips = list(zip(LONG[:-2], LONG[2:], strict=True))
    return flow_graph(random_flow(5, layers=layers, skips=skips, inputs=12), 0)


def boxes(ax: Axes, texts: Any) -> list[Any]:
    figure = ax.get_figure()
    assert figure is not None
    figure.canvas.draw()
    return [text.get_window_extent() for text in texts]


def assert_apart(found: list[Any]) -> None:
    for number, box in enumerate(found):
        for other in found[:number]:
            assert not (box.x0 < other.x1 and other.x0 < box.x1 and box.y0 < other.y1 and other.y0 < box.y1)


def test_lines_are_as_wide_as_their_flow_and_coloured_by_sign() -> None:
    graph = flow_graph(random_flow(gap=0.0), 1)
    collection = lines(plot_flow_graph(graph, min_share=0.0))
    flows = np.array(drawn(graph))
    widths = np.array(collection.get_linewidths())
    wide = widths > widths.min()
    assert wide.sum() > 20
    np.testing.assert_allclose(widths[wide] / widths.max(), np.abs(flows[wide]) / np.abs(flows).max())
    for colour, flow in zip(collection.get_edgecolors(), flows, strict=True):
        np.testing.assert_allclose(colour[:3], to_rgb(POSITIVE if flow > 0 else NEGATIVE))
    assert len({flow > 0 for flow in flows}) == 2


def test_lines_join_their_nodes() -> None:
    graph = flow_graph(linear_flow())
    ax = plot_flow_graph(graph, min_share=0.0)
    places = {text.get_text(): place_of(text) for text in ax.texts if place_of(text)[0] == 1.0}
    assert {name: x for name, (x, _) in places.items()} == {"0": 1.0, "1": 1.0}
    assert places["0"][1] < places["1"][1]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    ends = sorted((*path.vertices[0], *path.vertices[-1]) for path in lines(ax).get_paths())
    inputs, hidden, target = [(0.0, 0.0), (0.0, 1.0)], [(1.0, 0.0), (1.0, 1.0)], (2.0, 0.5)
    expected = [(*start, *stop) for start in inputs for stop in hidden] + [(*start, *target) for start in hidden]
    assert ends == sorted(expected)


def test_nodes_are_as_large_as_their_conductance() -> None:
    flow = linear_flow([[1.0]], [[40.0], [-10.0], [20.0]], [1.0, 1.0, 1.0])
    ax = plot_flow_graph(flow_graph(flow), limit=1e9)
    (nodes,) = circles(ax)
    assert [text.get_text() for text in ax.texts] == ["0", "0", "1", "2", "target"]
    np.testing.assert_allclose(nodes.get_sizes() / nodes.get_sizes().max(), [1.0, 0.8, 0.2, 0.4, 1.0])
    colours = [POSITIVE, POSITIVE, NEGATIVE, POSITIVE, POSITIVE]
    assert all(same_color(found, colour) for found, colour in zip(nodes.get_facecolors(), colours, strict=True))


def test_no_line_is_wider_than_its_nodes() -> None:
    graph = flow_graph(linear_flow([[1.0, 1.0]], [[9.0, -8.9], [1.0, 1.0]], [1.0, 1.0]))
    ax = plot_flow_graph(graph)
    (nodes,) = circles(ax)
    assert min(np.sqrt(nodes.get_sizes()[:3])) > max(lines(ax).get_linewidths()) * 0.9


def test_limit_sets_the_scale() -> None:
    graph = flow_graph(linear_flow())
    widest = max(lines(plot_flow_graph(graph)).get_linewidths())
    ax = plot_flow_graph(graph, limit=28.0)
    assert max(lines(ax).get_linewidths()) == pytest.approx(widest / 2)
    assert legend_texts(ax)[-1] == "|flow| = 28"
    assert max(lines(plot_flow_graph(graph, limit=7.0)).get_linewidths()) == widest
    assert legend_texts(plot_flow_graph(graph, limit=7.0))[-1] == "|flow| ≥ 7"


def legend_texts(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    assert legend is not None
    return [text.get_text().replace("\n", " ") for text in (legend.get_title(), *legend.get_texts())]


def test_gaps_are_dashed_and_explained() -> None:
    graph = flow_graph(random_flow(gap=0.5, status=["ok", "jump", "ok", "ok"]))
    ax = plot_flow_graph(graph, min_share=0.0)
    gaps = lines(ax, "gaps")
    assert len(gaps.get_paths()) == len(drawn(graph, gaps=True)) > 0
    assert all(dashes is not None for _, dashes in gaps.get_linestyles())
    assert all(dashes is None for _, dashes in lines(ax).get_linestyles())
    assert {"integration", "jump"} <= {text.get_text() for text in ax.texts}
    assert legend_texts(ax)[-1].startswith("gap:")
    without = plot_flow_graph(flow_graph(random_flow(gap=0.0)))
    assert not any(text.startswith("gap:") for text in legend_texts(without))


def test_gaps_stand_below_the_input_even_if_it_is_not_drawn() -> None:
    graph = flow_graph(random_flow(gap=0.5))
    part = graph.subgraph([node for node in graph if node[0] != SOURCE])
    ax = plot_flow_graph(part)
    assert ax.get_xticklabels()[0].get_text() == SOURCE
    (place,) = [place_of(text) for text in ax.texts if text.get_text() == "integration"]
    assert place[0] == 0
    assert place[1] > max(place_of(text)[1] for text in ax.texts if text.get_text() != "integration")


def test_what_is_left_out_is_counted() -> None:
    graph = flow_graph(random_flow(gap=0.0), 1)
    strongest: dict[str, float] = {}
    for _, (layer, _), flow in graph.edges(data="flow"):
        strongest[layer] = max(abs(flow), strongest.get(layer, 0.0))
    for share in (0.0, 0.05, 0.4):
        kept = [edge for edge in graph.edges if abs(graph.edges[edge]["flow"]) >= share * strongest[edge[1][0]]]
        nodes = {node for edge in kept for node in edge}
        ax = plot_flow_graph(graph, min_share=share)
        assert len(lines(ax).get_paths()) == len(kept)
        assert len(ax.texts) == len(nodes)
        title = legend_texts(ax)[0]
        edges, hidden = graph.number_of_edges() - len(kept), len(graph) - len(nodes)
        assert (f"{edges} edges below {100 * share:.3g} % of the strongest" in title) == bool(edges)
        assert (f"{hidden} node" in title) == bool(hidden)
    assert hidden


def test_a_backbone_says_that_it_is_one() -> None:
    ax = plot_flow_graph(backbone(flow_graph(linear_flow()), 0.7))
    assert legend_texts(ax)[0] == "backbone: carries 75 % of the flow"


def test_given_axes_are_used_and_no_setting_is_changed() -> None:
    before = dict(plt.rcParams)
    ax = Figure().add_subplot()
    assert plot_flow_graph(flow_graph(random_flow()), ax) is ax
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == before


@pytest.mark.parametrize("style", ["default", "dark_background", "ggplot"])
def test_labels_of_a_large_graph_are_whole_and_apart(style: str) -> None:
    with plt.style.context(style):
        ax = plot_flow_graph(large_graph())
        figure = ax.get_figure()
        names, units = (boxes(ax, texts) for texts in (ax.get_xticklabels(), ax.texts))
    assert_apart(names)
    assert_apart(units)
    assert [label.get_text().replace("\n", "") for label in ax.get_xticklabels()] == [SOURCE, *LONG, "(target)"]
    assert figure is not None
    legend = ax.get_legend()
    assert legend is not None
    for box in (*names, *units, legend.get_window_extent()):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y0 >= 0
        assert box.y1 <= figure.bbox.y1
    assert max(box.y1 for box in units) < min(box.y0 for box in names)
    assert legend.get_window_extent().y1 <= ax.get_window_extent().y0 + 1


def test_many_rows_keep_their_labels_apart() -> None:
    graph = flow_graph(random_flow(inputs=60, layers={"hidden": [1, 2]}, skips=()))
    ax = plot_flow_graph(graph, min_share=0.0)
    assert_apart(boxes(ax, ax.texts))
    figure = ax.get_figure()
    assert figure is not None
    assert figure.bbox.height / figure.dpi < 20


def test_names_are_drawn_as_they_are_and_long_units_cut() -> None:
    layers: dict[str, Any] = {"cost$a$": ["$b$", "a group with a long name"], r"no$\formula$": [1]}
    ax = plot_flow_graph(flow_graph(random_flow(layers=layers, skips=())))
    figure = ax.get_figure()
    assert figure is not None
    figure.canvas.draw()
    labels = ax.get_xticklabels()
    assert [label.get_text() for label in labels[1:3]] == list(layers)
    assert not any(text.get_parse_math() for text in (*labels, *ax.texts))
    assert {"$b$", "a group with …"} <= {text.get_text() for text in ax.texts}


@pytest.mark.parametrize(
    ("name", "letters", "expected"),
    [
        ("fc", 8, "fc"),
        ("features.3", 8, "features\n.3"),
        ("block.attn.o_proj:in", 8, "block.\nattn.o_\nproj:in"),
        ("abcdefghij", 4, "abcd\nefgh\nij"),
        ("a.b.c.d.e.f.g.h", 2, "a.\nb.\nc.\nd.\n…\nh"),
        ("", 4, ""),
        ("lstm[1][0]", 20, "lstm[1][0]"),
    ],
)
def test_names_break_behind_their_marks(name: str, letters: int, expected: str) -> None:
    assert wrapped(name, letters) == expected


def test_wrong_arguments_say_what_is_wrong() -> None:
    graph = flow_graph(linear_flow())
    with pytest.raises(TypeError, match=r"graph must be a networkx.DiGraph, as flow_graph returns it, got list"):
        plot_flow_graph([])
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"min_share is .*, expected a number from 0"):
            plot_flow_graph(graph, min_share=share)
    for limit in (0.0, -1.0, float("inf")):
        with pytest.raises(ValueError, match=r"limit is .*, expected a number above 0"):
            plot_flow_graph(graph, limit=limit)
    with pytest.raises(ValueError, match="no edge with a flow, so there is nothing to draw"):
        plot_flow_graph(flow_graph(linear_flow([[0.0, 0.0]])))
