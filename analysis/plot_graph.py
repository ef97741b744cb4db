"""A picture of a flow graph: layers from left to right, strong units on top, flow as the width of lines.

Drawn on ``ax`` or on a new figure, in the colours of the other pictures; nothing is shown, no setting is changed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from conductance._result_layers import counted
from conductance.analysis._drawing import NEGATIVE, NEUTRAL, POSITIVE, checked_axes
from conductance.analysis._graph_layout import Edge, Shown, edge_path, gap_path, shortened, shown_part, wrapped
from conductance.analysis._values import Floats
from conductance.analysis.graph import GAP_LAYERS, Node, check_graph

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.axes import Axes


#: Width in points of the strongest and of the faintest line; area in points² of the largest and smallest node.
_WIDEST, _THINNEST = 7.0, 0.35
_LARGEST, _SMALLEST = 190.0, 12.0
#: Inches for a layer and for a row, and for a row where there are many, on a new figure.
_COLUMN, _ROW, _LOW_ROW = 1.5, 0.42, 0.24
#: From how many inches of rows on they are lower.
_TALL = 10.0
#: The name of a layer is not broken into lines of fewer letters.
_NAME_LETTERS = 8


def plot_flow_graph(
    graph: "nx.DiGraph", ax: "Axes | None" = None, *, min_share: float = 0.05, limit: float | None = None
) -> "Axes":
    """Draw the flow between units, from the input on the left to the target on the right.

    Blue flow is positive (pushes the target up), orange negative; the width of a line is its ``|flow|``, the area of
    a node its ``|conductance|`` against the largest of the picture, but no node is narrower than its lines; rows are
    ranks. Dashed lines are gaps: what no edge brings in.
    For a large graph draw its `backbone`.

    Parameters
    ----------
    graph
        What `flow_graph` or `backbone` returned.
    ax
        Where to draw; None makes a figure of a size that fits.
    min_share
        Lines thinner than this share of the strongest line into the same layer are left out, and nodes that have
        no line then; the legend counts both. 0 draws all.
    limit
        The ``|flow|`` of the widest line, above 0; None is the largest of this graph. Give one limit to graphs
        that are compared.

    Returns
    -------
    matplotlib.axes.Axes
        Layers as ticks at the top, the legend below.

    Raises
    ------
    TypeError
        If ``graph`` is no flow graph.
    ValueError
        If ``min_share`` is not from 0 up to 1, ``limit`` not above 0, or the graph has no edges.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> import conductance as cd
    >>> from conductance.analysis.graph import flow_graph
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    >>> graph = flow_graph(cd.conductance_flow(model, torch.ones(5, 3), "1", target=0))
    >>> ax = plot_flow_graph(graph)
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['(input)', '1', '(target)']
    """
    check_graph(graph)
    _check_options(graph, min_share, limit)
    shown = shown_part(graph, min_share)
    largest = max(abs(flow) for *_, flow in graph.edges(data="flow")) if limit is None else float(limit)
    ax = _new_axes(shown) if ax is None else checked_axes(ax)
    _set_up(ax, shown)
    _draw_edges(ax, graph, shown, largest, gaps=False)
    _draw_edges(ax, graph, shown, largest, gaps=True)
    _draw_nodes(ax, graph, shown, largest)
    _legend(ax, graph, shown, largest, min_share)
    return ax


def _check_options(graph: "nx.DiGraph", min_share: float, limit: float | None) -> None:
    if not 0 <= min_share < 1:
        msg = f"min_share is {min_share}, expected a number from 0 (draws all edges) up to 1, without 1."
        raise ValueError(msg)
    if limit is not None and not 0 < limit < np.inf:
        msg = f"limit is {limit}, expected a number above 0."
        raise ValueError(msg)
    if not any(flow for *_, flow in graph.edges(data="flow")):
        msg = "The graph has no edge with a flow, so there is nothing to draw; look at its nodes."
        raise ValueError(msg)


def _set_up(ax: "Axes", shown: Shown) -> None:
    from matplotlib.font_manager import FontProperties

    size = FontProperties(size="small").get_size_in_points()
    letters = max(_NAME_LETTERS, int(_width(ax) / len(shown.names) / (0.62 * size)))
    ax.set_xlim(-0.5, len(shown.names) - 0.5)
    ax.set_ylim(shown.rows - 0.4, -1.0)
    ax.grid(visible=False)
    ax.xaxis.tick_top()
    ax.set_xticks(range(len(shown.names)), [wrapped(name, letters) for name in shown.names], fontsize="small")
    for label in ax.get_xticklabels():
        label.set_parse_math(False)  # a $ in a name is a $
    ax.set_yticks([])
    ax.tick_params(axis="x", length=0)
    ax.spines[:].set_visible(False)


def _draw_edges(ax: "Axes", graph: "nx.DiGraph", shown: Shown, largest: float, *, gaps: bool) -> None:
    from matplotlib.collections import PathCollection
    from matplotlib.colors import to_rgba

    edges = [edge for edge in shown.edges if (edge[0][0] in GAP_LAYERS) == gaps]
    if not edges:
        return
    flows = np.array([graph.edges[edge]["flow"] for edge in edges])
    strength = _strength(flows, largest)
    opacity = 0.3 + 0.55 * np.sqrt(strength)
    colours = [to_rgba(POSITIVE if flow > 0 else NEGATIVE, a) for flow, a in zip(flows, opacity, strict=True)]
    draw = gap_path if gaps else edge_path
    if gaps:
        _draw_buses(ax, edges, shown.places)
    lines = PathCollection(
        [draw(shown.places[start], shown.places[stop]) for start, stop in edges],
        facecolors="none",
        edgecolors=colours,
        linewidths=np.maximum(_WIDEST * strength, 1.0 if gaps else _THINNEST),
        linestyles="dashed" if gaps else "solid",
        capstyle="butt",
        zorder=1.0,
        label="gaps" if gaps else "flows",
    )
    ax.add_collection(lines, autolim=False)


def _draw_buses(ax: "Axes", edges: Sequence[Edge], places: dict[Node, tuple[float, float]]) -> None:
    """Draw one line for each gap, from which its edges rise: dashes over dashes would hide each other."""
    from matplotlib.collections import LineCollection

    ends: dict[Node, float] = {}
    for start, stop in edges:
        bend = float(np.asarray(gap_path(places[start], places[stop]).vertices)[0, 0])
        ends[start] = max(bend, ends.get(start, 0.0))
    lines = [[places[node], (end, places[node][1])] for node, end in ends.items()]
    ax.add_collection(LineCollection(lines, colors=NEUTRAL, linewidths=1.0, linestyles="dashed", zorder=0.9))


def _draw_nodes(ax: "Axes", graph: "nx.DiGraph", shown: Shown, largest: float) -> None:
    """Draw circles for units, squares for gaps, and the number of each above it."""
    from matplotlib.patheffects import withStroke

    values = np.array([graph.nodes[node]["conductance"] for node in shown.nodes])
    areas = np.maximum(_LARGEST * np.abs(values) / (np.abs(values).max() or 1.0), _SMALLEST)
    thickest = dict.fromkeys(shown.nodes, 0.0)
    for edge in shown.edges:  # the strongest come last
        thickest |= dict.fromkeys(edge, float(_WIDEST * _strength(graph.edges[edge]["flow"], largest)))
    areas = np.maximum(areas, [(thickest[node] + 1.5) ** 2 for node in shown.nodes])
    halo = [withStroke(linewidth=2.0, foreground=ax.get_facecolor())]
    gaps = np.array([node[0] in GAP_LAYERS for node in shown.nodes])
    points = np.array([shown.places[node] for node in shown.nodes])
    colours = np.array([POSITIVE if value >= 0 else NEGATIVE for value in values])
    for chosen, marker in ((~gaps, "o"), (gaps, "s")):
        if chosen.any():
            style: dict[str, Any] = {"marker": marker, "edgecolors": ax.get_facecolor(), "linewidths": 0.8}
            x, y = points[chosen].T
            ax.scatter(x, y, areas[chosen], colours[chosen], zorder=2.0, **style)
    for node, area in zip(shown.nodes, areas, strict=True):
        ax.annotate(
            shortened(str(node[1])),
            shown.places[node],
            xytext=(0.0, np.sqrt(area) / 2 + 0.5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize="x-small",
            parse_math=False,
            path_effects=halo,
            zorder=3.0,
        )


def _strength(flows: Any, largest: float) -> Floats:
    """Width of lines as a part of the widest."""
    strength: Floats = np.clip(np.abs(flows) / largest, 0.0, 1.0)
    return strength


def _legend(ax: "Axes", graph: "nx.DiGraph", shown: Shown, largest: float, min_share: float) -> None:
    """Explain colours and widths below the picture, and say what is not drawn."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    stronger = any(abs(graph.edges[edge]["flow"]) > largest for edge in shown.edges)
    handles: list[Any] = [
        Patch(color=POSITIVE, label="flow > 0"),
        Patch(color=NEGATIVE, label="flow < 0"),
        Line2D([], [], color=NEUTRAL, linewidth=_WIDEST, label=f"|flow| {'≥' if stronger else '='} {largest:.3g}"),
    ]
    if any(node[0] in GAP_LAYERS for node in shown.nodes):
        handles.append(Line2D([], [], color=NEUTRAL, linestyle="dashed", label="gap: no unit brings it in"))
    columns = len(handles) if _width(ax) > 100 * len(handles) else 2
    ax.legend(
        handles=handles,
        title=_left_out(graph, shown, min_share, int(_width(ax) / 5)),
        loc="upper left",
        bbox_to_anchor=(0.0, 0.0),
        ncols=columns,
        frameon=False,
        fontsize="small",
        title_fontsize="small",
        alignment="left",
        columnspacing=1.2,
        handlelength=1.6,
        borderaxespad=0.2,
    )


def _left_out(graph: "nx.DiGraph", shown: Shown, min_share: float, letters: int) -> str | None:
    """Say how much the picture leaves out."""
    from textwrap import fill

    part = graph.graph.get("backbone")
    lines = [f"backbone: carries {100 * part['carried']:.3g} % of the flow"] if part else []
    edges = graph.number_of_edges() - len(shown.edges)
    nodes = graph.number_of_nodes() - len(shown.nodes)
    weak = f"{counted(edges, 'edge')} below {100 * min_share:.3g} % of the strongest into their layer"
    also = f"{counted(nodes, 'node')} without an edge that is drawn"
    if edges or nodes:
        lines.append(f"not drawn: {' and '.join([weak] * bool(edges) + [also] * bool(nodes))}")
    return "\n".join(fill(line, letters) for line in lines) or None


def _width(ax: "Axes") -> float:
    """Width of the axes in points."""
    figure = ax.get_figure()
    return float(72 * ax.get_window_extent().width / figure.dpi) if figure else 360.0


def _new_axes(shown: Shown) -> "Axes":
    from matplotlib import pyplot as plt

    row = min(_ROW, max(_LOW_ROW, _TALL / shown.rows))
    size = (max(6.5, _COLUMN * len(shown.names)), 1.6 + row * (shown.rows + 0.6))
    _, ax = plt.subplots(figsize=size, layout="constrained")
    return ax
