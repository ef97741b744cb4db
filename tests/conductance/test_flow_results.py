"""A flow as a file and as a table; what it says of itself."""

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import conductance as cd
from conductance.errors import UnknownLayerError
from conductance.flow import conductance_flow
from conductance.flow_results import REST, SINK, SOURCE, ConductanceFlow
from conductance.results import LayerInfo
from tests.helpers import ResidualNet, normal, seeded

ODD = ["a/b", "act#2:in", "<b>ü</b>[0]", "edges/0"]


def _flow(**options: Any) -> ConductanceFlow:
    arguments: dict[str, Any] = {"target": 1, "n_steps": 5, "top": 2, **options}
    return conductance_flow(seeded(ResidualNet), normal(3, 7), ["stem", "act1", "sum1", "act2"], **arguments)


def _renamed(flow: ConductanceFlow) -> ConductanceFlow:
    """The same with layer names that could be taken for something else in a file."""
    new = {SOURCE: SOURCE, SINK: SINK, **dict(zip(flow.layers, ODD, strict=True))}
    per_layer: dict[str, Any] = {
        name: {new[k]: v for k, v in getattr(flow, name).items()} for name in ("conductance", "gap", "error")
    }
    per_pair: dict[str, Any] = {
        name: {(new[a], new[b]): v for (a, b), v in getattr(flow, name).items()} for name in ("edges", "edge_error")
    }
    info = {new[k]: replace(v, name=new[k]) for k, v in flow.info.items()}
    units = {new[k]: v for k, v in flow.units.items()}
    changed: dict[str, Any] = {**per_layer, **per_pair, "info": info, "units": units}
    return replace(flow, **changed)


def _leaves(flow: ConductanceFlow) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for field in fields(flow):
        value = getattr(flow, field.name)
        if isinstance(value, dict) and field.name != "settings":
            found |= {(field.name, key): each for key, each in value.items()}
        else:
            found[field.name] = value
    return found


@pytest.mark.parametrize("load", [cd.load, ConductanceFlow.load])
@pytest.mark.parametrize("case", ["double", "float", "interrupted", "masked"])
def test_a_file_holds_every_bit(case: str, load: Any, tmp_path: Path) -> None:
    flow = _renamed(_flow(feature_groups=torch.tensor([3, 3, 9, 9, 9, 5, 5])) if case == "masked" else _flow())
    if case == "float":
        edges, errors = ({a: b.float() for a, b in one.items()} for one in (flow.edges, flow.edge_error))
        flow = replace(flow, edges=edges, edge_error=errors)
    if case == "interrupted":
        flow = replace(flow, status=("ok", "jump", "interrupted"), gap={k: v / 0 for k, v in flow.gap.items()})
    path = tmp_path / "flow.safetensors"
    flow.save(path)
    loaded = load(path)
    assert isinstance(loaded, ConductanceFlow)
    before, after = _leaves(flow), _leaves(loaded)
    assert list(after) == list(before)
    for key, value in before.items():
        if isinstance(value, Tensor):
            assert after[key].dtype == value.dtype, key
            torch.testing.assert_close(after[key], value, rtol=0, atol=0, equal_nan=True)
        elif isinstance(value, LayerInfo):
            assert asdict(after[key]) == asdict(value)
        else:
            assert after[key] == value, key
            assert type(after[key]) is type(value)
    assert repr(loaded) == repr(flow)
    assert loaded.gap_kind == flow.gap_kind


def test_a_damaged_file_and_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "flow.safetensors"
    with pytest.raises(FileNotFoundError):
        ConductanceFlow.load(path)
    cd.total_conductance(seeded(ResidualNet), normal(3, 7), "stem", target=1, n_steps=3).save(path)
    assert isinstance(cd.load(path), cd.TotalConductance)
    with pytest.raises(ValueError, match="total_conductance"):
        ConductanceFlow.load(path)
    _flow().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"flow\.safetensors"):
        ConductanceFlow.load(path)
    with pytest.raises(FileNotFoundError):
        _flow().save(tmp_path / "no" / "folder")


def test_the_table_holds_every_edge_and_gap() -> None:
    flow = _renamed(_flow())
    table = flow.to_dataframe()
    assert list(table) == ["from_layer", "from_unit", "to_layer", "to_unit", "example", "flow", "error"]
    edges, gaps = table[table.from_layer != "(integration)"], table[table.from_layer == "(integration)"]
    assert len(edges) == sum(edge.numel() for edge in flow.edges.values())
    keys = ["from_layer", "from_unit", "to_layer", "to_unit", "example"]
    assert not table.duplicated(keys).any()
    values: Any = edges.set_index(keys)
    for (start, stop), edge in flow.edges.items():
        for n in range(flow.batch):
            for j, a in enumerate(flow.units[start]):
                for k, b in enumerate(flow.units[stop]):
                    row = values.loc[(start, a, stop, b, n)]
                    assert row.flow == float(edge[n, j, k])
                    assert row.error == float(flow.edge_error[start, stop][n, j, k])
    for layer in (*flow.layers, SINK):
        into = table[table.to_layer == layer].groupby(["example", "to_unit"]).flow.sum()
        out = edges[edges.from_layer == layer].groupby(["example", "from_unit"]).flow.sum()
        for n in range(flow.batch):
            for k, unit in enumerate(flow.units[layer]):
                conductance = float(flow.conductance[layer][n, k])
                assert into.loc[(n, unit)] == pytest.approx(conductance, abs=1e-12)
                if layer != SINK:
                    assert out.loc[(n, unit)] == pytest.approx(conductance, abs=1e-12)
    assert set(gaps.to_layer) <= {*flow.layers, SINK}
    assert len(gaps) > 0
    assert set(gaps.from_unit) == {"integration"}
    assert isinstance(pd.concat([table, table]), pd.DataFrame)


def test_sums_of_edges_by_layer() -> None:
    flow = _flow()
    assert float(flow.inflow(SOURCE).abs().max()) == 0.0
    assert float(flow.outflow(SINK).abs().max()) == 0.0
    torch.testing.assert_close(flow.outflow("stem"), sum(e.sum(2) for p, e in flow.edges.items() if p[0] == "stem"))
    for ask in (flow.inflow, flow.outflow):
        with pytest.raises(UnknownLayerError, match=r"stm.*stem"):
            ask("stm")


def test_the_line_it_shows() -> None:
    assert repr(_flow()) == "ConductanceFlow(4 layers, 14 nodes, 45 edges, 3 examples, 3 converged)"
    one = conductance_flow(nn.Sequential(nn.Linear(2, 1)).double(), torch.ones(1, 2).double(), "0", target=0)
    assert repr(one) == "ConductanceFlow(1 layer, 3 nodes, 2 edges, 1 example, 1 converged)"


def test_settings_tell_how_it_was_computed() -> None:
    flow = _flow(internal_batch_size=6, units={"act2": [1, 4, 7]})
    assert flow.settings["quantity"] == "conductance_flow"
    assert flow.settings["n_steps"] == 5
    assert flow.settings["top"] == 2
    assert flow.settings["internal_batch_size"] == 6
    assert flow.settings["interrupted"] is False
    assert flow.units["act2"] == [1, 4, 7, REST]
