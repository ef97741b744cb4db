"""The parts of a report about flows between units, and about the inputs that feed a unit, as plain values."""

from collections.abc import Mapping, Sequence
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from conductance._result_layers import counted
from conductance.analysis._pictures import MapPicture, graph_chart, input_pictures
from conductance.analysis._report_parts import facts_of, number, share
from conductance.analysis._values import as_floats
from conductance.analysis.graph import GAP_LAYERS, Node, flow_graph
from conductance.analysis.graph_paths import FlowPath, backbone, strongest_paths
from conductance.flow_results import REST, SINK, SOURCE, ConductanceFlow
from conductance.neuron_results import NeuronConductance

if TYPE_CHECKING:
    import networkx as nx

#: Layers of the graph that are none of the model.
_ENDS = (SOURCE, SINK, *GAP_LAYERS)
#: Paths listed, and the part of the flow that the backbone told of carries.
_PATHS, _SHARE = 6, 0.8


def flow_part(title: str, flow: ConductanceFlow) -> dict[str, Any]:
    """Gather the picture, the tables and the words about one flow, averaged over its examples."""
    part: dict[str, Any] = {"title": title, "chart": None, "layers": [], "paths": [], "words": []}
    try:
        graph = flow_graph(flow)
    except ValueError as error:  # no example is finished
        return {**part, "facts": facts_of(flow, flow.batch), "problem": str(error)}
    part["facts"] = facts_of(flow, graph.graph["left_out"])
    part["problem"] = _problem(flow)
    part["words"] = _words(graph)
    if not any(size for *_, size in graph.edges(data="flow")):
        return {**part, "problem": "Nothing flows: there is no picture to draw."}
    part["chart"] = graph_chart(graph)
    part["layers"] = [_layer(graph, layer, flow.error[layer]) for layer in flow.layers]
    return {**part, **_paths(graph)}


def pixels_part(
    example: int, neurons: NeuronConductance, images: Any, captions: Sequence[str]
) -> dict[str, list[MapPicture] | str]:
    """Gather what feeds some units in one example: a picture for each, all on one scale."""
    known = {"layer": neurons.layer, "caption": captions[example]}
    if neurons.status[0] == "interrupted" or not bool(neurons.total.isfinite().all()):
        return {**known, "pictures": [], "problem": "The computation was interrupted: there is no picture to draw."}
    problem = "" if bool(neurons.converged.all()) else f"Not converged: {neurons.status[0]}."
    off = float(neurons.gap.abs().sum() / neurons.total.abs().sum().clamp_min(1e-300))
    told = {
        "error": f"{float(neurons.error):.1g}",
        "off": f"{off:.1%}",
        "evaluations": str(int(neurons.evaluations)),
        "seconds": f"{neurons.settings.get('seconds', nan):.1f}",
    }
    return {**known, **told, "pictures": input_pictures(neurons, images[example]), "problem": problem}


def check_flows(flows: Mapping[str, ConductanceFlow]) -> None:
    """Refuse what is no flow."""
    for title, flow in flows.items():
        if not isinstance(flow, ConductanceFlow):
            msg = f"flows[{title!r}] must be a ConductanceFlow, got {type(flow).__name__}."
            raise TypeError(msg)


def check_neurons(neurons: Mapping[int, NeuronConductance], images: Any) -> None:
    """Refuse what cannot be laid over the picture of an example."""
    if neurons and images is None:
        msg = "neurons is given without images: what feeds a unit is drawn over the image of its example."
        raise ValueError(msg)
    for example, found in neurons.items():
        if not isinstance(found, NeuronConductance):
            msg = f"neurons[{example}] must be a NeuronConductance of one layer, got {type(found).__name__}."
            raise TypeError(msg)
        if not 0 <= example < len(images):
            msg = f"neurons names example {example}, but there are {len(images)} images, numbered from 0."
            raise ValueError(msg)
        values = found.values
        if isinstance(values, tuple) or values.ndim not in (4, 5) or len(values) != 1:
            shape = "a tuple" if isinstance(values, tuple) else f"values {tuple(values.shape)}"
            msg = (
                f"neurons[{example}] has {shape}, expected (1, neurons, height, width) or (1, neurons, channels, "
                "height, width): of one example, without feature_groups."
            )
            raise ValueError(msg)


def _problem(flow: ConductanceFlow) -> str:
    """Say which examples are not what was asked for."""
    counts = {status: flow.status.count(status) for status in dict.fromkeys(flow.status) if status != "ok"}
    told = ", ".join(f"{counted(count, 'example')} {status}" for status, count in counts.items())
    return f"Not all is as asked: {told} (see the end of the page for these words)." if told else ""


def _words(graph: "nx.DiGraph") -> list[str]:
    """Say what one sees, with the names of the strongest units."""
    change, examples = graph.graph["output_change"], len(graph.graph["examples"])
    over = f", on average over {examples} examples," if examples > 1 else ""
    words = [f"From the baseline to the input the output changes{over} by {_signed(change)}."]
    own = {node: value for node, value in graph.nodes(data="conductance") if node[0] not in _ENDS and node[1] != REST}
    up = []
    for layer in dict.fromkeys(node[0] for node in own):
        among = [node for node in own if node[0] == layer]
        best = max(among, key=own.__getitem__)
        if len(among) > 1 and own[best] > 0:
            up.append(f"unit {best[1]} of {layer} ({_signed(own[best])})")
    if up:
        words.append(f"Of each layer, what pushes it up most is {', '.join(up)}.")
    down = min(own, key=own.__getitem__, default=None)
    if down is not None and own[down] < 0:
        words.append(f"What pushes it down most is unit {down[1]} of {down[0]} ({_signed(own[down])}).")
    gaps = _gaps(graph, [*graph.graph["layers"]])
    total = sum(abs(value) for node, value in graph.nodes(data="conductance") if node[0] not in (SOURCE, *GAP_LAYERS))
    words.append(
        f"Over no edge comes in {100 * gaps / total if total else 0.0:.2g}\N{NO-BREAK SPACE}% of Σ|C|: the gaps."
    )
    return words


def _layer(graph: "nx.DiGraph", layer: str, error: Tensor) -> dict[str, Any]:
    """Sum up the nodes of a layer: its own, and what is left over for the others."""
    values = {node[1]: value for node, value in graph.nodes(data="conductance") if node[0] == layer}
    total, rest = sum(values.values()), values.pop(REST, 0.0)
    unit = max(values, key=lambda unit: abs(values[unit]))
    change = graph.graph["output_change"]
    return {
        "layer": layer,
        "unit": unit,
        "value": number(values[unit], "+"),
        "share": share(values[unit] / change if change else nan),
        "others": number(total - rest - values[unit], "+"),
        "rest": number(rest, "+"),
        "sum": number(total, "+"),
        "gap": f"{_gaps(graph, [layer]):.1g}",
        "error": f"{np.nanmax(as_floats(error)):.1g}",
    }


def _paths(graph: "nx.DiGraph") -> dict[str, Any]:
    """Gather the table of the strongest paths, and what they carry together."""
    change = graph.graph["output_change"]
    rows, sums = [], 0.0
    for path in strongest_paths(graph, _PATHS):
        carried = carried_by(graph, path)
        sums += carried
        rows.append(
            {
                "nodes": [_name(node) for node in path.nodes],
                "flows": [number(flow, "+") for flow in path.flows],
                "weakest": number(path.score),
                "carried": number(carried, "+"),
                "share": share(carried / change if change else nan),
            }
        )
    return {
        "paths": rows,
        "carried": number(sums, "+"),
        "share": share(sums / change if change else nan),
        "backbone": _backbone(graph),
    }


def _backbone(graph: "nx.DiGraph") -> dict[str, str]:
    """Say how few paths carry most of the flow."""
    try:
        told = backbone(graph, _SHARE).graph["backbone"]
    except ValueError:  # what reaches the target is rounding
        return {"paths": "no path", "carried": "–"}
    return {"paths": counted(told["paths"], "path"), "carried": share(told["carried"])}


def carried_by(graph: "nx.DiGraph", path: FlowPath) -> float:
    """Tell what takes a way if all that a unit has mixes evenly in it; over all ways this sums to all there is."""
    carried = path.flows[0]
    for node, flow in zip(path.nodes[1:-1], path.flows[1:], strict=True):
        inside: float = graph.nodes[node]["conductance"]
        carried = carried * flow / inside if inside else nan
    return carried


def _gaps(graph: "nx.DiGraph", layers: Sequence[str]) -> float:
    """Sum the sizes of the gaps of some layers."""
    edges = graph.edges(data="flow")
    return float(sum(abs(flow) for start, stop, flow in edges if start[0] in GAP_LAYERS and stop[0] in layers))


def _name(node: Node) -> str:
    """Write a node with its layer; of the ends the layer is enough, if there is one node."""
    layer, unit = node
    return layer if layer in (SINK, *GAP_LAYERS) or (layer, unit) == (SOURCE, "input") else f"{layer} {unit}"


def _signed(value: float) -> str:
    return number(value, "+").replace("-", "−")
