"""Results: mapping, sums over positions, coverage, tables, and what their fields have to satisfy."""

import pickle
import sys
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch

from conductance.errors import ConductanceError, ConvergenceWarning, UnknownLayerError, check_choice
from conductance.results import LayerInfo
from tests.conductance.made_results import SHAPES, assert_identical, make


def test_mapping_in_forward_order() -> None:
    """A result is a mapping, equal only to itself."""
    total = make()
    assert list(total) == total.layers == list(total.keys()) == list(SHAPES)
    assert total["conv"] is total.conductance["conv"]
    assert [tensor.shape for tensor in total.values()] == [(3, *shape) for shape, _, _ in SHAPES.values()]
    assert all(tensor is total[name] for name, tensor in total.items())
    assert "conv" in total
    assert "con" not in total
    assert total.get("con") is None
    assert total != make()
    assert {total: 1}[total] == 1
    assert_identical(pickle.loads(pickle.dumps(total)), total)


def test_unknown_layer_names_the_nearest() -> None:
    """An unknown name raises a readable KeyError."""
    total = make()
    with pytest.raises(
        KeyError, match=r"No layer 'conv1' here. Did you mean 'conv'\? All names: 'conv', 'attn"
    ) as caught:
        total["conv1"]
    assert str(caught.value).startswith("No layer")
    assert isinstance(caught.value, UnknownLayerError)
    with pytest.raises(KeyError, match=r"No layer 'zzz' here. All names"):
        total.per_unit("zzz")
    with pytest.raises(KeyError, match=r"looked up by name, a string, got Linear"):
        total[torch.nn.Linear(1, 1)]  # type: ignore[index]
    with pytest.raises(KeyError, match=r"No layer 'zzz'"):
        total.to_dataframe("zzz")
    assert str(UnknownLayerError("x", [f"l{i}" for i in range(14)])).endswith("'l11' and 2 more.")
    block = str(UnknownLayerError("block", ["stem", "block.conv", "block.act#1", "block2.conv"]))
    assert "Layers inside it are, the last 'block.act#1': one that holds others has to be asked for by name." in block


def test_per_unit_sums_all_but_units() -> None:
    """Sums agree with einsum, for channels, heads, features and a tensor of examples alone."""
    total = make()
    torch.testing.assert_close(total.per_unit("conv"), torch.einsum("bcij->bc", total["conv"]))
    heads = total["attn.o_proj:in"]
    expected = torch.stack([heads[:, :, :3].sum((1, 2)), heads[:, :, 3:].sum((1, 2))], dim=1)
    torch.testing.assert_close(total.per_unit("attn.o_proj:in"), expected)
    assert torch.equal(total.per_unit("output"), total["output"][:, None])
    assert torch.equal(total.per_unit(list(SHAPES)[3]), total[list(SHAPES)[3]])
    transposed = total["conv"].transpose(1, 3).contiguous().transpose(1, 3)
    torch.testing.assert_close(total.info["conv"].sum_positions(transposed), total.per_unit("conv"))


@pytest.mark.parametrize(
    ("shape", "axis", "groups", "units"), [((0,), 1, None, 0), ((3, 0), 2, 2, 2), ((0, 5), 2, None, 5)]
)
def test_per_unit_of_empty_axes(shape: tuple[int, ...], axis: int, groups: int | None, units: int) -> None:
    """No units, or units without positions, sum to zeros."""
    info = LayerInfo("empty", "Linear", shape, axis, groups, is_cut=False, moves=True, used=True)
    assert torch.equal(info.sum_positions(torch.ones(7, *shape)), torch.zeros(7, units))


def test_coverage_and_its_error() -> None:
    """Both agree with their definition in plain torch."""
    total = make()
    change = total.output - total.baseline_output
    torch.testing.assert_close(total.output_change, change)
    torch.testing.assert_close(total.coverage["conv"], total["conv"].sum((1, 2, 3)) / change)
    absolute = total["conv"].abs().sum((1, 2, 3))
    torch.testing.assert_close(total.coverage_error["conv"], total.error["conv"] * absolute / change.abs())
    assert total.is_cut == {name: name == "output" for name in SHAPES}


def test_coverage_without_a_change_of_output() -> None:
    """A zero change gives inf or nan, and stays out of the summary's mean."""
    total = make()
    zero = {**total.conductance, "output": torch.zeros(3, dtype=torch.float64)}
    total = replace(
        total, baseline_output=total.output.clone().index_fill(0, torch.tensor([1, 2]), 7.0), conductance=zero
    )
    total = replace(total, output=total.baseline_output.clone().index_fill(0, torch.tensor([0]), 9.0))
    assert total.coverage["conv"].isinf().tolist() == [False, True, True]
    assert total.coverage["output"].isnan().tolist() == [False, True, True]
    row = total.summary().set_index("layer").loc["conv"]
    assert row["coverage"] == pytest.approx(float(total.coverage["conv"][0]))


def test_half_precision_is_summed_in_float32() -> None:
    """Coverage of bfloat16 has the digits of float32."""
    total = make(dtype=torch.bfloat16)
    assert total.per_unit("conv").dtype == torch.bfloat16
    expected = total["conv"].float().sum((1, 2, 3)) / (total.output.float() - total.baseline_output.float())
    torch.testing.assert_close(total.coverage["conv"], expected)


def test_dataframe_has_one_row_a_layer_example_and_unit() -> None:
    """Every number is found where its labels say."""
    total = make()
    frame = total.to_dataframe()
    assert list(frame.columns) == ["layer", "unit", "example", "conductance", "error", "spread"]
    assert "spread" not in make(spread=False).to_dataframe()
    spread = frame[frame["layer"] == "conv"].pivot_table(index="example", columns="unit", values="spread")
    assert total.spread is not None
    torch.testing.assert_close(torch.tensor(spread.to_numpy()), total.spread["conv"].sum((2, 3)))
    assert len(frame) == 3 * (5 + 2 + 1 + 4)
    assert pd.api.types.is_string_dtype(frame["layer"])
    assert list(frame["layer"].unique()) == list(SHAPES)
    conv = frame[frame["layer"] == "conv"].pivot_table(index="example", columns="unit", values=["conductance", "error"])
    torch.testing.assert_close(torch.tensor(conv["conductance"].to_numpy()), total.per_unit("conv"))
    torch.testing.assert_close(torch.tensor(conv["error"].to_numpy()), total.unit_error["conv"])
    only = total.to_dataframe("conv")
    assert only.equals(frame[frame["layer"] == "conv"])
    assert len(make(dtype=torch.bfloat16).to_dataframe()) == len(frame)
    assert total.select([]).to_dataframe().empty


def test_summary() -> None:
    """The table of layers agrees with plain torch."""
    total = make()
    summary = total.summary()
    assert list(summary["layer"]) == list(SHAPES)
    assert list(summary["units"]) == [5, 2, 1, 4]
    assert list(summary["cut"]) == [False, False, True, False]
    row = summary.iloc[0]
    units = total["conv"].sum((2, 3))
    assert row["type"] == "Conv2d"
    assert row["conductance"] == pytest.approx(float(units.sum(1).mean()))
    assert row["abs"] == pytest.approx(float(units.abs().sum(1).mean()))
    assert row["coverage"] == pytest.approx(float(total.coverage["conv"].median()))
    assert row["coverage_error"] == pytest.approx(float(total.coverage_error["conv"].median()))
    assert row["error"] == float(total.error["conv"].max())


def test_one_example_whose_output_hardly_changes_does_not_rule_the_summary() -> None:
    """Coverage is a ratio: of 5 examples, one with a change of 1e-12."""
    total = make(batch=5)
    almost = total.baseline_output.clone()
    almost[1:] = total.output[1:] - 1.0
    almost[0] = total.output[0] - 1e-12
    changed = replace(total, baseline_output=almost)
    row = changed.summary().iloc[0]
    assert row["coverage"] == pytest.approx(float(changed.coverage["conv"].median()))
    assert abs(row["coverage"]) < 1e3


def test_a_summary_of_no_examples() -> None:
    """All layers are there, and nothing is known."""
    empty = make().select([])
    assert list(empty.summary()["layer"]) == list(SHAPES)
    assert empty.summary()["coverage"].isna().all()
    assert "0 examples" in empty._repr_html_()


def test_repr() -> None:
    """One line, also for no examples."""
    total = make()
    worst = max(float(error.max()) for error in total.error.values())
    start = "TotalConductance(4 layers, 3 examples, 1 converged, median 9 evaluations, worst error"
    assert repr(total) == f"{start} {worst:.1e})"
    assert "0 examples, 0 converged, median None evaluations, worst error nan" in repr(total.select([]))


def test_html_escapes_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table shows every layer, without pandas and without markup from names."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    total = make()
    text = total._repr_html_()
    assert "<script>" not in text
    assert "&lt;script&gt;alert(&#x27;ü&#x27;)&lt;/script&gt;[0]" in text
    assert "3 examples, 1 converged, median 9 evaluations, 1 jump, 1 budget</p>" in text
    assert text.count("<tr>") == 5
    assert text.count("<td>cut</td>") == 1
    coverage, error = float(total.coverage["conv"].median()), float(total.coverage_error["conv"].median())
    assert f"<td>conv</td><td>Conv2d</td><td>5</td><td>{total['conv'].sum() / 3:.4g}</td>" in text
    assert f"<td>{coverage:.3g} ± {error:.1g}</td><td>{total.error['conv'].max():.1e}</td>" in text


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"conductance": {}}, ValueError, "at least one layer"),
    (
        {"error": {"conv": torch.zeros(3)}},
        ValueError,
        "error must have the layers of conductance, but lacks .*script",
    ),
    ({"output": torch.zeros(4)}, ValueError, r"output has shape \(4,\), expected \(3,\); status has 3"),
    ({"evaluations": torch.zeros(3)}, TypeError, "evaluations has dtype torch.float32, expected torch.int64"),
    ({"converged": torch.zeros(3)}, TypeError, "converged has dtype torch.float32, expected torch.bool"),
    (
        {"unattributed": torch.zeros(3, dtype=torch.int64)},
        TypeError,
        r"unattributed .* expected a floating-point dtype",
    ),
    ({"output": torch.zeros(3, requires_grad=True)}, ValueError, r"pass output.detach\(\)"),
    ({"jumps": ()}, ValueError, "jumps has 0 entries, expected one for each of 3"),
    ({"status": ("ok", "fine", "ok")}, ValueError, r"status must be 'ok', .* or 'interrupted', got 'fine'"),
    ({"settings": {"target": torch.zeros(2)}}, TypeError, r"settings\['target'\], a Tensor, is not JSON"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_fields_have_to_fit(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    """Fields that do not fit are named."""
    with pytest.raises(error, match=message):
        replace(make(), **changes)


@pytest.mark.parametrize("field", ["conductance", "unit_error", "error", "spread"])
def test_layer_tensors_have_to_fit(field: str) -> None:
    """Tensors of a layer have the shape its info says."""
    total = make()
    wrong = {**getattr(total, field), "conv": torch.zeros(3, 2)}
    changes: dict[str, Any] = {field: wrong}
    with pytest.raises(ValueError, match=rf"{field}\['conv'\] has shape \(3, 2\), expected \(3"):
        replace(total, **changes)
    with pytest.raises(ValueError, match=r"info\['conv'\] has the name 'output', expected 'conv'"):
        replace(total, info={**total.info, "conv": total.info["output"]})


def test_settings_and_jumps_are_copied_as_a_file_keeps_them() -> None:
    """Later changes of the caller's objects do not reach the result."""
    settings: dict[str, Any] = {"target": (1, 2), "rtol": [0.1]}
    jumps: Any = [[], [[torch.tensor(0.25), 1, 2]], []]
    total = replace(make(), settings=settings, jumps=jumps)
    settings["rtol"].append(7)
    assert total.settings == {"target": [1, 2], "rtol": [0.1]}
    assert total.jumps == ((), ((0.25, 1.0, 2.0),), ())


@pytest.mark.parametrize(
    ("shape", "axis", "groups", "message"),
    [
        ((4, 6), 0, None, "unit_axis of 'a' is 0, expected 1 to 2 for the shape"),
        ((4, 6), 3, None, "unit_axis of 'a' is 3, expected 1 to 2"),
        ((4, 6), -1, None, "unit_axis of 'a' is -1, expected 1 to 2"),
        ((), 1, None, "unit_axis of 'a' is 1, expected 0 to 0"),
        ((4, 6), 1, 3, "unit_groups of 'a' is 3, expected None or a divisor of 4"),
        ((4, 6), 1, 0, "unit_groups of 'a' is 0"),
    ],
)
def test_layer_info_refuses(shape: tuple[int, ...], axis: int, groups: int | None, message: str) -> None:
    """An axis or groups that do not fit the shape are refused."""
    with pytest.raises(ValueError, match=message):
        LayerInfo("a", "Linear", shape, axis, groups, is_cut=False, moves=True, used=True)


def test_errors_and_choices() -> None:
    """Errors have their bases, and the choice names its options."""
    assert issubclass(ConductanceError, RuntimeError)
    assert issubclass(ConvergenceWarning, UserWarning)
    check_choice("by", 2, (1, 2))
    with pytest.raises(ValueError, match=r"^by must be 'mean', got None.$"):
        check_choice("by", None, ("mean",))
    unknown = pickle.loads(pickle.dumps(UnknownLayerError("a", ["b"])))
    assert str(unknown) == "No layer 'a' here. All names: 'b'."
