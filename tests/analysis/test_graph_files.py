"""Files give back the graph exactly, and say what is wrong with them."""

import json
from math import inf, isnan, nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conductance.analysis import backbone, flow_graph, read_graph, strongest_paths, write_graph
from conductance.flow_results import REST
from tests.analysis.flows import LAYERS, linear_flow, random_flow

SUFFIXES = (".graphml", ".json")
both = pytest.mark.parametrize("suffix", SUFFIXES)
#: Quotes, brackets, ends of CDATA, line ends, controls, letters beyond 16 bits, half a letter, spaces around.
NAMES = (
    "a<b>&\"c'",
    "]]>",
    "{x}",
    "tab\tand\r\nline",
    "\x00\x1b",
    "層.注意",
    "🦀",
    "\ud800",
    "  spaced  ",
    "﻿",
    "0",
    "",
)


def assert_same(found: nx.DiGraph, graph: nx.DiGraph) -> None:
    assert list(found.nodes.items()) == list(graph.nodes.items())
    assert list(found.edges.items()) == list(graph.edges.items())
    assert found.graph == graph.graph
    for node, expected in zip(found, graph, strict=True):
        assert type(node) is tuple
        assert [type(part) for part in node] == [type(part) for part in expected]
        assert type(found.nodes[node]["position"]) is tuple
        assert type(found.nodes[node]["layer_index"]) is int


def round_trip(graph: nx.DiGraph, folder: Path, suffix: str) -> nx.DiGraph:
    path = folder / f"graph{suffix}"
    write_graph(graph, path)
    return read_graph(path)


@both
def test_a_file_gives_back_the_graph(tmp_path: Path, suffix: str) -> None:
    graph = flow_graph(random_flow(status=["ok", "jump", "interrupted", "ok"], gap=0.5))
    found = round_trip(graph, tmp_path, suffix)
    assert_same(found, graph)
    assert strongest_paths(found, 9) == strongest_paths(graph, 9)
    part = backbone(graph, 0.5)
    assert_same(round_trip(part, tmp_path, suffix), part)
    assert [path.name for path in tmp_path.iterdir()] == [f"graph{suffix}"]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SUFFIXES), st.lists(st.text() | st.sampled_from(NAMES), min_size=2, max_size=2, unique=True))
def test_any_name_comes_back(suffix: str, names: list[str]) -> None:
    layers: Any = {names[0]: [3, "3", REST], names[1]: [names[0], 10**18]}
    graph = flow_graph(random_flow(layers=layers, skips=(), settings={"note": names}))
    with TemporaryDirectory() as folder:
        assert_same(round_trip(graph, Path(folder), suffix), graph)


@both
@pytest.mark.parametrize("name", NAMES)
def test_hard_names_come_back(tmp_path: Path, suffix: str, name: str) -> None:
    graph = flow_graph(random_flow(layers={name: [0, 2, name], "head": LAYERS["head"]}, skips=()))
    assert_same(round_trip(graph, tmp_path, suffix), graph)


@both
def test_numbers_that_are_not_finite_and_attributes_of_ones_own_come_back(tmp_path: Path, suffix: str) -> None:
    graph = flow_graph(linear_flow())
    edges = list(graph.edges)
    for edge, error in zip(edges, (inf, -inf, nan, 5e-324), strict=False):
        graph.edges[edge]["error"] = error
    graph.edges[edges[0]].update(id="mine", source=[1, 2], label=None)
    graph.nodes["h", 0].update(id="mine", group="x<", value=True)
    found = round_trip(graph, tmp_path, suffix)
    assert isnan(found.edges[edges[2]]["error"])
    for each in (graph, found):
        each.edges[edges[2]]["error"] = 0.0
    assert_same(found, graph)
    if suffix == ".json":
        strict = json.loads((tmp_path / "graph.json").read_text(), parse_constant=pytest.fail)
        assert strict["format"] == "conductance.flow_graph"


def test_graphml_is_for_other_programs_too(tmp_path: Path) -> None:
    graph = flow_graph(random_flow(layers={"a\x00 & b": [4, REST], "c": [1]}, skips=()))
    path = tmp_path / "graph.graphml"
    write_graph(graph, path)
    ElementTree.parse(path)
    others = nx.read_graphml(path)
    shown = [(data["label"], data["x"], data["y"]) for data in others.nodes.values()]
    assert shown[6:8] == [("a� & b · 4", 1.0, 0.0), ("a� & b · rest", 1.0, -1.0)]
    assert [data["flow"] for *_, data in others.edges(data=True)] == [flow for *_, flow in graph.edges(data="flow")]


@both
def test_an_older_file_is_replaced_or_left(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"graph{suffix}"
    path.write_text("old")
    graph = flow_graph(linear_flow())
    graph.graph["settings"]["tensor"] = torch.zeros(2)
    with pytest.raises(TypeError, match=r"cannot be written as JSON .*Tensor.*; make it a number, text, list or dict"):
        write_graph(graph, path)
    assert path.read_text() == "old"
    del graph.graph["settings"]["tensor"]
    write_graph(graph, str(path))
    assert_same(read_graph(str(path)), graph)


def test_a_suffix_in_capitals_is_the_same(tmp_path: Path) -> None:
    graph = flow_graph(linear_flow())
    assert_same(round_trip(graph, tmp_path, ".GraphML"), graph)


@pytest.mark.parametrize("name", ["graph.gexf", "graph"])
def test_an_unknown_suffix_is_refused(tmp_path: Path, name: str) -> None:
    expected = r"ends with '(\.gexf)?', expected '\.graphml' or '\.json'"
    with pytest.raises(ValueError, match=expected):
        write_graph(flow_graph(linear_flow()), tmp_path / name)
    with pytest.raises(ValueError, match=expected):
        read_graph(tmp_path / name)


@both
def test_a_missing_file_or_folder_is_said(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_graph(tmp_path / f"none{suffix}")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*none\. Create it first"):
        write_graph(flow_graph(linear_flow()), tmp_path / "none" / f"graph{suffix}")


@both
def test_a_damaged_file_is_said(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"graph{suffix}"
    write_graph(flow_graph(linear_flow()), path)
    whole = path.read_bytes()
    broken = [b"", whole[: len(whole) // 2], b"\xff\xfe\x00", whole.replace(b"target", b"tar", 1)]
    broken += [whole.replace(b"layer_index", b"index"), whole.replace(b"share", b"part"), whole.replace(b"12.0", b"{}")]
    for content in broken:
        assert content != whole
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"not a complete {suffix} file of a flow graph.*what write_graph wrote"):
            read_graph(path)


@pytest.mark.parametrize("key", [["h", True], ["h", 1.5], ["h", None], [7, 0], ["h"], "h", ["g", 0], ["h", "0"]])
def test_keys_that_are_no_nodes_are_said(tmp_path: Path, key: Any) -> None:
    path = tmp_path / "graph.json"
    write_graph(flow_graph(linear_flow()), path)
    whole = path.read_text()
    for what, which in (("nodes", "id"), ("edges", "source"), ("edges", "target")):
        document = json.loads(whole)
        document[what][2][which] = key
        path.write_text(json.dumps(document))
        with pytest.raises(ValueError, match=r"not a complete \.json file of a flow graph"):
            read_graph(path)


def test_files_of_other_kinds_and_versions_are_refused(tmp_path: Path) -> None:
    graphml, plain = tmp_path / "graph.graphml", tmp_path / "graph.json"
    nx.write_graphml(nx.path_graph(3, nx.DiGraph), graphml)
    plain.write_text("[1, 2]")
    for path in (graphml, plain):
        with pytest.raises(ValueError, match=r"has the format None, expected 'conductance.flow_graph'"):
            read_graph(path)
        write_graph(flow_graph(linear_flow()), path)
    graphml.write_text(graphml.read_text().replace('<data key="d1">1<', '<data key="d1">2<'))
    plain.write_text(plain.read_text().replace('"version": 1', '"version": 2'))
    for path in (graphml, plain):
        with pytest.raises(ValueError, match=r"has version 2 of .*, expected 1: use the release that wrote it"):
            read_graph(path)


@both
def test_other_graphs_are_not_written(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(TypeError, match="as flow_graph returns it"):
        write_graph(nx.DiGraph(), tmp_path / f"graph{suffix}")
