"""Flow graphs in files: GraphML, which Gephi, yEd and Cytoscape open, and JSON, for scripts and web pages.

Both give back the graph exactly: keys of nodes as ``(layer, unit)``, numbers of units as int, any name. XML cannot
hold every character, so GraphML keeps keys and all but plain numbers as JSON in ASCII; its ``label``, ``layer``,
``unit``, ``x`` and ``y`` are there for people and layouts, and only ``x`` and ``y`` of them are read.
"""

import json
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from conductance.analysis.graph import EDGE_ATTRIBUTES, NODE_ATTRIBUTES, Node, check_graph

if TYPE_CHECKING:
    import networkx as nx

FORMAT = "conductance.flow_graph"
VERSION = 1
SUFFIXES = (".graphml", ".json")
#: Attributes that are one number.
_NUMBERS = ("conductance", *EDGE_ATTRIBUTES)


def write_graph(graph: "nx.DiGraph", path: str | Path) -> None:
    """Write a flow graph to a file; an older file is replaced as a whole.

    Parameters
    ----------
    graph
        What `flow_graph` or `backbone` returned. Attributes of your own are kept if they are JSON.
    path
        Ends with ``.graphml`` or ``.json``, which is the format; its folder has to exist.

    Raises
    ------
    TypeError
        If ``graph`` is no flow graph, or one of its attributes cannot be written as JSON.
    ValueError
        If the suffix is another one.
    FileNotFoundError
        If the folder does not exist.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import torch
    >>> from torch import nn
    >>> import conductance as cd
    >>> from conductance.analysis.graph import flow_graph
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    >>> graph = flow_graph(cd.conductance_flow(model, torch.ones(5, 3), "1", target=0))
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder) / "flow.graphml"
    ...     write_graph(graph, file)
    ...     same = read_graph(file)
    >>> dict(same.nodes) == dict(graph.nodes), dict(same.edges) == dict(graph.edges), same.graph == graph.graph
    (True, True, True)
    """
    check_graph(graph)
    path = Path(path)
    suffix = _suffix(path)
    if not path.parent.is_dir():
        msg = f"Cannot write {path}: there is no folder {path.parent}. Create it first."
        raise FileNotFoundError(msg)
    try:
        text = _to_graphml(graph) if suffix == ".graphml" else _to_json(graph)
    except TypeError as error:
        msg = f"An attribute of the graph cannot be written as JSON ({error}); make it a number, text, list or dict."
        raise TypeError(msg) from error
    with TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        file = Path(folder) / "graph"
        file.write_text(text, encoding="utf-8")
        file.replace(path)


def read_graph(path: str | Path) -> "nx.DiGraph":
    """Read a flow graph that `write_graph` wrote.

    Parameters
    ----------
    path
        Ends with ``.graphml`` or ``.json``.

    Returns
    -------
    networkx.DiGraph
        The same graph, with all its attributes.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the suffix is another one, or the file another kind of file, of another version, or damaged.
    """
    path = Path(path)
    suffix = _suffix(path)
    if not path.is_file():
        msg = f"There is no file {path}."
        raise FileNotFoundError(msg)
    read = _from_graphml if suffix == ".graphml" else _from_json
    try:
        graph = read(path.read_text(encoding="utf-8"), path)
        check_graph(graph)
    except _AnotherFileError as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # whatever a parser meets in bytes that may be anything
        msg = f"{path} is not a complete {suffix} file of a flow graph ({error!r}); expected what write_graph wrote."
        raise ValueError(msg) from error
    return graph


class _AnotherFileError(Exception):
    """The file is whole, but of another kind or version."""


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        msg = f"The name of {path} ends with {path.suffix!r}, expected '.graphml' or '.json': it tells the format."
        raise ValueError(msg)
    return suffix


def _check_format(kind: object, version: object, path: Path) -> None:
    if kind != FORMAT:
        msg = f"{path} has the format {kind!r}, expected {FORMAT!r}: it is not a flow graph that write_graph wrote."
        raise _AnotherFileError(msg)
    if version != VERSION:
        msg = f"{path} has version {version!r} of {FORMAT}, expected {VERSION}: use the release that wrote it."
        raise _AnotherFileError(msg)


def _to_json(graph: "nx.DiGraph") -> str:
    """Write nodes and links as lists; numbers JSON has no word for (nan, inf) become text."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "directed": True,
        "multigraph": False,
        "graph": graph.graph,
        "nodes": [{"id": node, **_written(data, NODE_ATTRIBUTES)} for node, data in graph.nodes.items()],
        "edges": [
            {"source": start, "target": stop, **_written(data, EDGE_ATTRIBUTES)}
            for (start, stop), data in graph.edges.items()
        ],
    }
    return json.dumps(document, indent=1)


def _from_json(text: str, path: Path) -> "nx.DiGraph":
    import networkx as nx

    document = json.loads(text)
    found = document if isinstance(document, dict) else {}
    _check_format(found.get("format"), found.get("version"), path)
    graph = nx.DiGraph(**document["graph"])
    for data in document["nodes"]:
        graph.add_node(_node(data.pop("id")), **_restored(data))
    for data in document["edges"]:
        graph.add_edge(_known(graph, data.pop("source")), _known(graph, data.pop("target")), **_restored(data))
    return graph


def _to_graphml(graph: "nx.DiGraph") -> str:
    import networkx as nx

    content = {"format": FORMAT, "version": VERSION, "content": json.dumps(graph.graph)}
    written = nx.DiGraph(**content)
    for node, data in graph.nodes.items():
        layer, unit = (_printable(str(part)) for part in node)
        x, y = data["position"]
        shown = {"label": f"{layer} · {unit}", "layer": layer, "unit": unit, "x": float(x), "y": float(y)}
        numbers = {"conductance": float(data["conductance"]), "layer_index": int(data["layer_index"])}
        written.add_node(json.dumps(node), **shown, **numbers, **_more_text(data, NODE_ATTRIBUTES))
    for (start, stop), data in graph.edges.items():
        numbers = {name: float(data[name]) for name in EDGE_ATTRIBUTES}
        written.add_edge(json.dumps(start), json.dumps(stop), **numbers, **_more_text(data, EDGE_ATTRIBUTES))
    return '<?xml version="1.0" encoding="utf-8"?>\n' + "\n".join(nx.generate_graphml(written))


def _from_graphml(text: str, path: Path) -> "nx.DiGraph":
    import networkx as nx

    written = nx.parse_graphml(text)
    _check_format(written.graph.get("format"), written.graph.get("version"), path)
    graph = nx.DiGraph(**json.loads(written.graph["content"]))
    for key, data in written.nodes.items():
        node = _node(json.loads(key))
        standard = (*node, data["conductance"], data["layer_index"], (data["x"], data["y"]))
        graph.add_node(node, **dict(zip(NODE_ATTRIBUTES, standard, strict=True)), **json.loads(data.get("more", "{}")))
    for edge, data in written.edges.items():
        numbers = {name: data[name] for name in EDGE_ATTRIBUTES}
        start, stop = (_known(graph, json.loads(key)) for key in edge)
        graph.add_edge(start, stop, **numbers, **json.loads(data.get("more", "{}")))
    return graph


def _written(data: dict[str, Any], standard: tuple[str, ...]) -> dict[str, Any]:
    numbers = {name: str(data[name]) for name in standard if name in _NUMBERS and not isfinite(data[name])}
    written = {name: data[name] for name in standard} | numbers
    more = _more(data, standard)
    return {**written, "more": more} if more else written


def _restored(data: dict[str, Any]) -> dict[str, Any]:
    more = data.pop("more", {})
    restored = {**{name: float(x) if name in _NUMBERS else x for name, x in data.items()}, **more}
    if "position" in restored:
        x, y = restored["position"]
        restored["position"] = (x, y)
    return restored


def _more(data: dict[str, Any], standard: tuple[str, ...]) -> dict[str, Any]:
    """Take the attributes that a user added."""
    return {name: value for name, value in data.items() if name not in standard}


def _more_text(data: dict[str, Any], standard: tuple[str, ...]) -> dict[str, str]:
    more = _more(data, standard)
    return {"more": json.dumps(more)} if more else {}


def _node(key: Any) -> Node:
    """Make the key of a node from its JSON."""
    layer, unit = key
    if isinstance(unit, bool) or not isinstance(unit, str | int):
        msg = f"{key!r} is no [layer, unit]"
        raise ValueError(msg)
    return layer, unit


def _known(graph: "nx.DiGraph", key: Any) -> Node:
    """Refuse an edge of a node that is not there, which networkx would make up."""
    node = _node(key)
    if node not in graph:
        msg = f"an edge has the unknown node {node}"
        raise ValueError(msg)
    return node


def _printable(text: str) -> str:
    """Replace what XML cannot hold."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
