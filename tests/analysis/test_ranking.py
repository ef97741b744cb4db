"""Rankings against sums written out by hand."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import conductance as cd
from conductance.analysis import layer_importance, rank_units
from tests.analysis.results import CONV, DENSE, EXAMPLES, HEADS, interrupted_result, random_result


def unit_sums(result: cd.TotalConductance, layer: str, example: int) -> list[float]:
    """Sum positions one by one."""
    values = result[layer][example]
    if layer == CONV:
        return [float(sum(values[c, i, j] for i in range(2) for j in range(4))) for c in range(3)]
    if layer == HEADS:
        return [float(sum(values[i, 3 * g + k] for i in range(7) for k in range(3))) for g in range(2)]
    return values.tolist()


def by_hand(result: cd.TotalConductance, layer: str, examples: range | list[int]) -> np.ndarray[Any, Any]:
    return np.array([unit_sums(result, layer, n) for n in examples])


def test_rank_units_is_the_literal_ranking() -> None:
    result = random_result()
    rows: list[dict[str, Any]] = []
    for layer in (CONV, HEADS, DENSE):
        values = by_hand(result, layer, range(EXAMPLES))
        for unit in range(values.shape[1]):
            column = values[:, unit]
            rows.append(
                {
                    "layer": layer,
                    "unit": unit,
                    "mean": sum(column) / EXAMPLES,
                    "mean_abs": sum(abs(column)) / EXAMPLES,
                    "share_positive": sum(column > 0) / EXAMPLES,
                    "error": float(result.unit_error[layer][:, unit].mean()),
                    "std": float(np.std(column, ddof=1)),
                    "standard_error": float(np.std(column, ddof=1)) / EXAMPLES**0.5,
                    "count": EXAMPLES,
                }
            )
    rows.sort(key=lambda row: -row["mean_abs"])
    expected = pd.DataFrame(rows)
    found = rank_units(result, top=100)
    assert list(found) == list(expected)
    assert len(found) == 3 + 2 + 11
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-12)


@pytest.mark.parametrize("by", ["mean_abs", "mean"])
def test_by_and_top_choose_and_order_the_rows(by: Any) -> None:
    every = rank_units(random_result(), by, 100)
    found = rank_units(random_result(), by, 4)
    assert found[by].is_monotonic_decreasing
    pd.testing.assert_frame_equal(found, every.head(4))
    assert found.attrs == {"by": by, "examples": EXAMPLES, "left_out": 0}


def test_mean_and_mean_abs_rank_differently() -> None:
    assert rank_units(random_result(), "mean")["unit"].tolist() != rank_units(random_result())["unit"].tolist()


def test_only_the_layers_asked_are_ranked() -> None:
    found = rank_units(random_result(), layers=[HEADS, CONV], top=9)
    assert set(found["layer"]) == {HEADS, CONV}
    assert len(found) == 5
    assert set(rank_units(random_result(), layers=DENSE)["layer"]) == {DENSE}


def test_ties_stay_in_forward_order() -> None:
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
    total = cd.total_conductance(model, torch.ones(2, 67), target=lambda output: output.sum(1), rtol=0.1)
    total["0"][:] = total["1"][:] = torch.arange(67) % 2
    found = rank_units(total, top=134)
    odd, even = range(1, 67, 2), range(0, 67, 2)
    assert found["unit"].tolist() == [*odd, *odd, *even, *even]
    assert found["layer"].tolist() == ["0"] * 33 + ["1"] * 33 + ["0"] * 34 + ["1"] * 34


def test_positions_are_summed_before_the_absolute_value() -> None:
    result = random_result()
    result[CONV].zero_()
    result[CONV][:, 1, 0, 0], result[CONV][:, 1, 1, 3] = 5.0, -5.0
    assert rank_units(result, layers=CONV)["mean_abs"].tolist() == [0.0, 0.0, 0.0]


def test_layer_importance_is_the_literal_table() -> None:
    result = random_result()
    found = layer_importance(result).set_index("layer")
    assert list(found.index) == [CONV, HEADS, DENSE]
    for layer, row in found.iterrows():
        values = by_hand(result, str(layer), range(EXAMPLES))
        sums = [sum(line) for line in values]
        sizes = [sum(abs(line)) for line in values]
        changes = (result.output - result.baseline_output).tolist()
        ratios = [abs(a) / b for a, b in zip(sums, sizes, strict=True)]
        coverage = [a / b for a, b in zip(sums, changes, strict=True)]
        errors = result.error[str(layer)].tolist()
        elements = [float(one.abs().sum()) for one in result[str(layer)]]
        spans = [e * b / abs(c) for e, b, c in zip(errors, elements, changes, strict=True)]
        expected = {
            "sum": sum(sums) / EXAMPLES,
            "abs": sum(sizes) / EXAMPLES,
            "cancellation": 1 - sum(ratios) / EXAMPLES,
            "coverage": sum(coverage) / EXAMPLES,
            "coverage_error": sum(spans) / EXAMPLES,
            "error": max(errors),
            "output_change": sum(changes) / EXAMPLES,
            "standard_error": float(np.std(sums, ddof=1)) / EXAMPLES**0.5,
            "count": EXAMPLES,
        }
        assert row[list(expected)].to_dict() == pytest.approx(expected, rel=1e-12)
        assert row["units"] == values.shape[1]
        assert row["cut"] == (layer != HEADS)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([8.0, 1.0, 1.0], 2), ([0.2, 2.7, 0.1], 1), ([3.0, 3.0, 4.0], 3), ([0.0, 0.0, 0.0], 0), ([0.3, 0.6, 0.1], 2)],
)
def test_units_for_90_is_the_fewest(sizes: list[float], expected: int) -> None:
    result = random_result()
    result[CONV].zero_()
    result[CONV][:, :, 0, 0] = -torch.tensor(sizes, dtype=torch.float64)
    assert layer_importance(result)["units_for_90"][0] == expected


def test_a_layer_of_zeros_has_no_cancellation() -> None:
    result = random_result()
    result[CONV].zero_()
    row = layer_importance(result).iloc[0]
    assert row["abs"] == 0
    assert np.isnan(row["cancellation"])


def test_examples_whose_output_does_not_change_have_no_coverage() -> None:
    result = random_result()
    result.output[2] = result.baseline_output[2]
    others = [0, 1, 3, 4]
    expected = float(result.coverage[DENSE][others].mean())
    assert layer_importance(result)["coverage"][2] == pytest.approx(expected)


def test_unfinished_examples_are_left_out_and_counted() -> None:
    result, finished = interrupted_result(), [0, 2, 4]
    expected = rank_units(random_result().select(finished))
    found = rank_units(result)
    pd.testing.assert_frame_equal(found, expected)
    assert found.attrs == {"by": "mean_abs", "examples": 3, "left_out": 2}
    layers = layer_importance(result)
    pd.testing.assert_frame_equal(layers, layer_importance(random_result().select(finished)))
    assert layers.attrs == {"examples": 3, "left_out": 2}


def test_nan_in_one_layer_leaves_the_example_out_of_all() -> None:
    result = random_result()
    result[HEADS][3, 0, 0] = float("nan")
    found = rank_units(result, layers=DENSE)
    pd.testing.assert_frame_equal(found, rank_units(random_result().select([0, 1, 2, 4]), layers=DENSE))


def test_half_precision_is_summed_in_double() -> None:
    half = random_result().to(dtype=torch.bfloat16)
    expected = by_hand(half.to(dtype=torch.float64), CONV, range(EXAMPLES)).mean(0)
    found = rank_units(half, layers=CONV).sort_values("unit")["mean"]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_layers_of_a_network_sum_to_the_change_at_cuts() -> None:
    conv = torch.nn.Conv2d(1, 3, 2)
    model = torch.nn.Sequential(conv, torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(36, 2)).double()
    total = cd.total_conductance(model, torch.randn(5, 1, 4, 5).double(), target=1, rtol=1e-6)
    table = layer_importance(total)
    np.testing.assert_allclose(table["coverage"], 1.0, rtol=1e-4)
    np.testing.assert_allclose(table["sum"], float(total.output_change.mean()), rtol=1e-4)


@pytest.mark.parametrize("function", [rank_units, layer_importance])
def test_what_is_no_result_is_refused(function: Any) -> None:
    with pytest.raises(TypeError, match=r"must be a TotalConductance.*got dict"):
        function({"conv": torch.zeros(2, 3)})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"by": "size"}, ValueError, "by must be 'mean_abs' or 'mean', got 'size'"),
        ({"top": 0}, ValueError, "top must be at least 1, got 0"),
        ({"top": 2.0}, TypeError, "top must be a whole number of at least 1, got 2.0"),
        ({"top": True}, TypeError, "whole number"),
        ({"layers": []}, ValueError, "layers is empty"),
        ({"layers": "stem.cov"}, KeyError, "Did you mean 'stem.conv'"),
    ],
)
def test_bad_options_say_what_is_wrong(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rank_units(random_result(), **options)


def test_a_result_without_a_finished_example_is_refused() -> None:
    with pytest.raises(ValueError, match="None of the 5 examples is finished"):
        layer_importance(interrupted_result(unfinished=range(EXAMPLES)))
