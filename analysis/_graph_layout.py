"""Which part of a flow graph a picture shows, where, along which lines and under which names."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from conductance.analysis.graph import GAP_LAYERS, Node, node_key
from conductance.flow_results import SOURCE

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.path import Path

Edge: TypeAlias = tuple[Node, Node]
Place: TypeAlias = tuple[float, float]

#: Letters of a unit's name, and lines of a layer's.
_UNIT_LETTERS, _NAME_LINES = 14, 6


@dataclass(frozen=True)
class Shown:
    """What is drawn of a graph, where (columns to the right, rows down), and the names of the columns."""

    edges: list[Edge]
    nodes: list[Node]
    places: dict[Node, Place]
    names: list[str]

    @property
    def rows(self) -> float:
        """Height of the picture."""
        return 1.0 + max(y for _, y in self.places.values())


def shown_part(graph: "nx.DiGraph", min_share: float) -> Shown:
    """Choose edges and nodes, and place them: rows close up, columns stand in the middle."""
    edges = _strong_edges(graph, min_share)
    nodes = sorted({node for edge in edges for node in edge}, key=lambda node: node_key(graph, node))
    return Shown(edges, nodes, *_places(graph, nodes))


def edge_path(start: Place, stop: Place) -> "Path":
    """Leave and arrive level; over layers between, rise above the row."""
    from matplotlib.path import Path

    (x0, y0), (x1, y1) = start, stop
    bow = 0.0 if x1 - x0 <= 1 else 0.55 + 0.1 * (x1 - x0)
    step = 0.5 * (x1 - x0) if not bow else 0.4
    points = [(x0, y0), (x0 + step, y0 - bow), (x1 - step, y1 - bow), (x1, y1)]
    return Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])


def gap_path(start: Place, stop: Place) -> "Path":
    """Rise from below all rows in front of the layer."""
    from matplotlib.path import Path

    (x0, y0), (x1, y1) = start, stop
    bend = max(x1 - 0.75, x0)
    points = [(bend, y0), (bend + 0.4, y0), (x1 - 0.45, y1), (x1, y1)]
    return Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])


def wrapped(name: str, letters: int) -> str:
    """Break a name behind dots and other marks, so that no line has more letters."""
    lines = [""]
    for part in re.findall(r"[^._/:\[-]*[._/:\[-]?", name):
        piece = part
        if len(lines[-1]) + len(piece) > letters and lines[-1]:
            lines.append("")
        while len(piece) > letters:
            lines[-1], piece = piece[:letters], piece[letters:]
            lines.append("")
        lines[-1] += piece
    lines = [line for line in lines if line]
    if len(lines) > _NAME_LINES:
        lines = [*lines[: _NAME_LINES - 2], "…", lines[-1]]
    return "\n".join(lines)


def shortened(name: str) -> str:
    """Cut the long name of a unit."""
    return name if len(name) <= _UNIT_LETTERS else f"{name[: _UNIT_LETTERS - 1]}…"


def _strong_edges(graph: "nx.DiGraph", min_share: float) -> list[Edge]:
    """Keep the edges that are drawn, the strongest last and so on top."""
    sizes = {edge: abs(data["flow"]) for edge, data in graph.edges.items() if data["flow"]}
    strongest: dict[str, float] = {}
    for (_, (layer, _)), size in sizes.items():
        strongest[layer] = max(size, strongest.get(layer, 0.0))
    kept = [edge for edge, size in sizes.items() if size >= min_share * strongest[edge[1][0]]]
    return sorted(kept, key=lambda edge: (sizes[edge], *(node_key(graph, node) for node in edge)))


def _places(graph: "nx.DiGraph", nodes: list[Node]) -> tuple[dict[Node, Place], list[str]]:
    """Count columns over the layers that are drawn, rows from 0 at the top; gaps stand below all."""
    columns: dict[str, list[Node]] = {}
    for node in nodes:
        columns.setdefault(node[0], []).append(node)
    gaps = [node for layer in GAP_LAYERS for node in columns.pop(layer, [])]
    if gaps:  # they stand below the input, even if none of its nodes is drawn
        columns = {SOURCE: columns.pop(SOURCE, []), **columns}
    rows = max(len(column) for column in columns.values())
    places = {
        node: (float(x), (rows - len(column)) / 2 + y)
        for x, column in enumerate(columns.values())
        for y, node in enumerate(sorted(column, key=lambda node: -graph.nodes[node]["position"][1]))
    }
    places |= {node: (0.0, float(rows + number)) for number, node in enumerate(gaps)}
    return places, list(columns)
