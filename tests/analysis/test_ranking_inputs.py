"""One result, the results of many batches, and statistics of a data set: the same tables, and clear refusals."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import conductance as cd
from conductance.analysis import layer_importance, rank_units
from tests.analysis.results import CONV, DENSE, EXAMPLES, HEADS, interrupted_result, random_result, renamed

#: Fifteen examples in three batches, two of them unfinished.
BATCHES = [random_result(1), interrupted_result(2), random_result(3)]
GROUPS = ["b", "a", "b", "b", "c", "a", "d", "c", "d", "a", "a", "b", "b", "c", "c"]
TABLES: list[tuple[Any, dict[str, Any]]] = [
    (rank_units, {"top": None}),
    (rank_units, {"top": 4, "by": "mean", "layers": [DENSE, CONV]}),
    (layer_importance, {}),
]


def forms(groups: list[str] | None) -> list[tuple[Any, Any]]:
    """The same examples in every form, and the argument that groups them."""
    stats = cd.DatasetConductance()
    start = 0
    for batch in BATCHES:
        stats.update(batch, groups and groups[start : start + EXAMPLES])
        start += EXAMPLES
    merged, part = cd.DatasetConductance(), cd.DatasetConductance()
    merged.update(BATCHES[2], groups and groups[10:])
    part.update(BATCHES[0], groups and groups[:5])
    part.update(BATCHES[1], groups and groups[5:10])
    merged.merge_state(part)
    by = groups and True
    joined = cd.concatenate(BATCHES)
    return [(joined, groups), (BATCHES, groups), (tuple(BATCHES), groups), (stats, by), (merged, by)]


@pytest.mark.parametrize(("table", "options"), TABLES)
@pytest.mark.parametrize("groups", [None, GROUPS])
def test_all_forms_of_input_agree(table: Any, options: dict[str, Any], groups: list[str] | None) -> None:
    (first, by), *others = forms(groups)
    expected = table(first, groups=by, **options)
    assert expected.attrs["examples"] == 13
    assert expected.attrs["left_out"] == 2
    for form, labels in others:
        found = table(form, groups=labels, **options)
        pd.testing.assert_frame_equal(found, expected, rtol=1e-12, atol=1e-12)
        assert found.attrs == expected.attrs


def test_groups_kept_may_be_ranked_together() -> None:
    stats = forms(GROUPS)[3][0]
    for groups in (None, False):
        found = rank_units(stats, top=None, groups=groups)
        pd.testing.assert_frame_equal(found, rank_units(BATCHES, top=None), rtol=1e-12)
        assert "group" not in found


@pytest.mark.parametrize(("table", "options"), TABLES)
def test_a_group_is_ranked_as_its_examples_alone(table: Any, options: dict[str, Any]) -> None:
    joined = cd.concatenate(BATCHES)
    found = table(joined, groups=GROUPS, **options)
    assert next(iter(found)) == "group"
    assert found["group"].drop_duplicates().tolist() == ["a", "b", "c"]  # d has no finished example
    for group, part in found.groupby("group"):
        alone = table(joined.select([n for n, one in enumerate(GROUPS) if one == group]), **options)
        pd.testing.assert_frame_equal(part.drop(columns="group").reset_index(drop=True), alone, rtol=1e-12)
    assert found["count"].sum() == 13 * (len(found) // 3)


@pytest.mark.parametrize("groups", [torch.arange(5) % 2, np.arange(5) % 2, pd.Series([0, 1, 0, 1, 0], index=[9] * 5)])
def test_groups_of_other_kinds(groups: Any) -> None:
    expected = rank_units(random_result(), groups=[0, 1, 0, 1, 0])
    pd.testing.assert_frame_equal(rank_units(random_result(), groups=groups), expected)
    tuples = rank_units(random_result(), groups=[("x", n % 2) for n in range(5)])
    assert tuples["group"].drop_duplicates().tolist() == [("x", 0), ("x", 1)]


def test_top_none_is_every_unit_once() -> None:
    found = rank_units(random_result(), top=None)
    assert len(found) == 3 + 2 + 11
    assert not found.duplicated(["layer", "unit"]).any()
    assert rank_units(random_result(), top=16).equals(found)


def test_batches_of_other_tolerances_and_targets_are_ranked_together() -> None:
    one, other = (replace(random_result(seed), settings={"rtol": 10.0**-seed, "target": seed}) for seed in (1, 2))
    expected = rank_units(cd.concatenate([one, other]))
    pd.testing.assert_frame_equal(rank_units([one, other]), expected, rtol=1e-12)


def test_a_data_set_of_a_network_is_ranked_by_class() -> None:
    """Each class is read by units of its own, so that these come first."""
    first, last = nn.Linear(4, 6, bias=False), nn.Linear(6, 2, bias=False)
    with torch.no_grad():
        first.weight.abs_()
        last.weight.zero_()
        last.weight[0, 4], last.weight[1, 1] = 2.0, 3.0
    model = nn.Sequential(first, nn.ReLU(), last).double()
    x, y = torch.rand(9, 4).double(), torch.arange(9) % 2
    stats = cd.dataset_conductance(model, [(x[:5], y[:5]), (x[5:], y[5:])], ["1"], target="label", group_by="label")
    found = rank_units(stats, top=1, groups=True)
    assert found[["group", "unit", "share_positive"]].to_numpy().tolist() == [[0, 4, 1.0], [1, 1, 1.0]]
    total = cd.total_conductance(model, x, ["1"], target=y)
    pd.testing.assert_frame_equal(found, rank_units(total, top=1, groups=y), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("table", [rank_units, layer_importance])
@pytest.mark.parametrize(
    ("result", "groups", "error", "message"),
    [
        ([], None, ValueError, "empty list"),
        ((), None, ValueError, "empty list"),
        ({"conv": torch.zeros(2, 3)}, None, TypeError, "a list of them or a DatasetConductance, got dict"),
        (iter(BATCHES), None, TypeError, "got list_iterator"),
        (None, None, TypeError, "got NoneType"),
        ([BATCHES[0], 3], None, TypeError, "must be a TotalConductance.*got int"),
        (
            [BATCHES[0], renamed(BATCHES[0], CONV, "conv")],
            None,
            ValueError,
            "Entry 1 of the list.*'stem.conv' is missing",
        ),
        (BATCHES, GROUPS[:-1], ValueError, "groups has 14 entries, expected one for each of 15"),
        (BATCHES[0], "abcde", TypeError, "groups must hold one entry for each example, got str"),
        (BATCHES[0], [None] * 5, TypeError, "expected a text, a number"),
        (BATCHES, True, TypeError, "groups is True, which is for a DatasetConductance"),
        (cd.DatasetConductance(), None, ValueError, "DatasetConductance of no examples"),
        (interrupted_result(unfinished=range(5)), None, ValueError, "None of the 5 examples is finished"),
        ([interrupted_result(unfinished=range(5))] * 2, None, ValueError, "None of the 10 examples is finished"),
    ],
)
def test_unusable_input_is_refused(table: Any, result: Any, groups: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        table(result, groups=groups)


def test_groups_of_statistics_are_theirs() -> None:
    stats = cd.DatasetConductance()
    stats.update(random_result())
    with pytest.raises(ValueError, match="has none: give dataset_conductance a group_by"):
        rank_units(stats, groups=True)
    with pytest.raises(TypeError, match="groups=True takes those that it has"):
        layer_importance(stats, groups=["a"] * 5)
    with pytest.raises(KeyError, match=r"Did you mean 'attn\.out:in'"):
        rank_units(stats, layers="attn.out:i")
    assert set(rank_units(stats, layers=HEADS)["layer"]) == {HEADS}
