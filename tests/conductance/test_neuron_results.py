"""The labelled result: files, tables, summary, notebook."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conductance as cd
from conductance import NeuronConductance
from conductance.flow_results import ConductanceFlow
from conductance.hooks import HookPoint
from tests.conductance.neuron_nets import TARGETS, case, one, tensor
from tests.helpers import normal, seeded
from tests.wrong_answers import wrong_answer


def _found() -> dict[str, NeuronConductance]:
    """Of every kind: elements, groups, several inputs, places, jumps, NaN, single precision."""
    conv, two, gelu = case("conv"), case("two-inputs"), case("gelu")
    with pytest.warns(cd.ConvergenceWarning):
        jump = one(wrong_answer("round"), "fc", inputs=normal(3, 6, seed=5, scale=1.5), target=0, max_evaluations=900)
    return {
        "elements": one(gelu.model, "fc1", **gelu.whole, n_steps=3),
        "groups": one(conv.model, "pool", **conv.whole, n_steps=3, feature_groups="channel", neurons=[2, (0, 1, 2)]),
        "several": one(two.model, "joint", **two.whole, n_steps=3, neurons=[1, 1, 0]),
        "heads": one(case("attention").model, HookPoint("out", unit_groups=2), **case("attention").whole),
        "jump": jump,
        "single precision": one(
            seeded(lambda: nn.Sequential(nn.Linear(5, 3), nn.GELU(), nn.Linear(3, 2))).float(), "1",
            inputs=normal(3, 5).float(), target=1,
        ),
    }  # fmt: skip


FOUND = _found()


def _assert_equal(mine: Any, other: Any) -> None:
    assert type(mine) is type(other)
    if isinstance(mine, Tensor):
        assert mine.dtype == other.dtype
        assert mine.shape == other.shape
        assert torch.equal(mine.nan_to_num(nan=-7.0), other.nan_to_num(nan=-7.0))
    elif isinstance(mine, tuple) and mine and isinstance(mine[0], Tensor):
        assert len(mine) == len(other)
        for one_, two in zip(mine, other, strict=True):
            _assert_equal(one_, two)
    else:
        assert mine == other


@pytest.mark.parametrize("name", FOUND)
def test_files_give_back_every_bit(name: str, tmp_path: Path) -> None:
    found, path = FOUND[name], tmp_path / "found.safetensors"
    found.save(path)
    for read in (cd.load(path), NeuronConductance.load(path)):
        assert isinstance(read, NeuronConductance)
        for field in fields(NeuronConductance):
            _assert_equal(getattr(read, field.name), getattr(found, field.name))
        assert repr(read) == repr(found)


def test_jumps_and_missing_examples_are_kept(tmp_path: Path) -> None:
    assert any(FOUND["jump"].jumps)
    broken = FOUND["elements"]
    values = tensor(broken).clone()
    values[1] = torch.nan
    missing = replace(broken, values=values, status=("ok", "interrupted", "ok"))
    missing.save(tmp_path / "missing")
    read = cd.load(tmp_path / "missing")
    assert isinstance(read, NeuronConductance)
    assert tensor(read)[1].isnan().all()
    assert torch.equal(tensor(read)[[0, 2]], values[[0, 2]])
    assert read.status == ("ok", "interrupted", "ok")


def test_load_knows_every_kind(tmp_path: Path) -> None:
    net = case("gelu")
    total = cd.total_conductance(net.model, net.inputs[0], "fc1", target=TARGETS, n_steps=3)
    total.save(tmp_path / "total")
    FOUND["groups"].save(tmp_path / "neuron")
    assert isinstance(cd.load(tmp_path / "total"), cd.TotalConductance)
    assert isinstance(cd.load(tmp_path / "neuron"), NeuronConductance)
    with pytest.raises(ValueError, match=r"has the format 'conductance.total_conductance', expected 'conductance.neur"):
        NeuronConductance.load(tmp_path / "total")
    with pytest.raises(ValueError, match="another kind of file"):
        ConductanceFlow.load(tmp_path / "neuron")
    with pytest.raises(ValueError, match="another kind of file"):
        cd.TotalConductance.load(tmp_path / "neuron")


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="There is no file"):
        cd.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        FOUND["elements"].save(tmp_path / "nowhere" / "found")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        cd.load(tmp_path / "text")
    save_file({"x": torch.zeros(1)}, tmp_path / "other", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"has the format 'pt', expected one of conductance\.total"):
        cd.load(tmp_path / "other")
    FOUND["elements"].save(tmp_path / "found")
    with safe_open(tmp_path / "found", framework="pt") as file:
        metadata = dict(file.metadata())
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is not iterable
    save_file(tensors, tmp_path / "late", metadata={**metadata, "version": "99"})
    with pytest.raises(ValueError, match="has version 99"):
        cd.load(tmp_path / "late")
    save_file({k: v for k, v in tensors.items() if k != "total"}, tmp_path / "torn", metadata=metadata)
    with pytest.raises(ValueError, match="damaged"):
        cd.load(tmp_path / "torn")
    for content in ("[]", "{", '{"info": 3}'):
        save_file(tensors, tmp_path / "torn", metadata={**metadata, "content": content})
        with pytest.raises(ValueError, match="damaged"):
            cd.load(tmp_path / "torn")


@pytest.mark.parametrize("name", FOUND)
def test_tables_hold_every_value(name: str) -> None:
    found = FOUND[name]
    table = found.to_dataframe()
    assert list(table) == ["layer", "neuron", "feature", "example", "conductance", "error"]
    parts = found.values if isinstance(found.values, tuple) else (found.values,)
    batch, neurons = parts[0].shape[:2]
    whole = torch.cat([part.reshape(batch, neurons, -1) for part in parts], 2)
    assert len(table) == whole.numel()
    assert set(table["layer"]) == {found.layer}
    cube = torch.tensor(table["conductance"].to_numpy()).reshape(whole.shape)
    torch.testing.assert_close(cube.to(whole), whole, rtol=0, atol=0)
    assert table["example"].tolist() == [n for n in range(batch) for _ in range(whole[0].numel())]
    assert table["neuron"].tolist()[:: whole.shape[2]] == found.neurons * batch
    assert float(table["error"].min()) >= 0


def test_features_are_labelled() -> None:
    assert FOUND["groups"].to_dataframe()["feature"].unique().tolist() == [0, 1, 2]
    assert FOUND["groups"].to_dataframe()["neuron"].unique().tolist() == [2, "(0, 1, 2)"]
    assert FOUND["elements"].to_dataframe()["feature"].unique().tolist() == ["0", "1", "2", "3", "4"]
    names = FOUND["several"].to_dataframe()["feature"].unique().tolist()
    assert names == ["0: 0", "0: 1", "0: 2", "1: 0", "1: 1", "1: 2", "1: 3", "1: 4"]
    assert FOUND["heads"].to_dataframe()["feature"].unique().tolist()[5:8] == ["0, 5", "1, 0", "1, 1"]


def test_summary_is_of_means_over_examples() -> None:
    found = FOUND["several"]
    assert isinstance(found.values, tuple)
    table = found.summary()
    assert list(table) == ["layer", "neuron", "total", "abs", "error"]
    assert table["neuron"].tolist() == [1, 1, 0]
    sums = sum(part.abs().sum(2).mean(0) for part in found.values)
    assert isinstance(sums, Tensor)
    assert table["abs"].tolist() == pytest.approx(sums.tolist())
    assert table["total"].tolist() == pytest.approx(found.total.mean(0).tolist())
    assert table["abs"].min() > 0


def test_gap_is_what_inputs_do_not_sum_to() -> None:
    found = FOUND["groups"]
    torch.testing.assert_close(found.gap, found.total - tensor(found).sum(2))
    assert float(found.gap.abs().sum()) > 1e-9
    assert found.gap.shape == (3, 2)


def test_repr_is_one_line() -> None:
    assert repr(FOUND["elements"]).startswith("NeuronConductance('fc1', 7 neurons × 5 features, 3 examples, ")
    assert repr(FOUND["several"]).startswith("NeuronConductance('joint', 3 neurons × 8 features, 3 examples, ")
    assert repr(FOUND["groups"]).startswith("NeuronConductance('pool', 2 neurons × 3 features, 3 examples, ")
    assert "\n" not in repr(FOUND["jump"])


def test_notebooks_see_a_table_with_names_escaped() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"<b>&": nn.Linear(5, 2)})

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.parts["<b>&"](x)
            return logits

    model = seeded(Odd)
    found = one(model, nn.Linear, inputs=normal(2, 5), target=0)
    html = found._repr_html_()
    assert "<b>" not in html
    assert "&lt;b&gt;&amp;" in html
    assert html.count("<tr") == 3
    assert "2 neurons" in html


def test_settings_tell_how_it_was_made() -> None:
    settings = FOUND["groups"].settings
    assert settings["quantity"] == "neuron_conductance"
    assert settings["layer"] == "pool"
    assert settings["n_steps"] == 3
    assert settings["rtol"] is None
    assert settings["target"] == TARGETS.tolist()
    assert settings["scheme"] == "kinked"
    assert settings["mode"] in ("reverse", "forward")
