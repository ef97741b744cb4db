"""Examples, maps and classes against loops."""

import numpy as np
import pandas as pd
import pytest
import torch

import conductance as cd
from conductance.analysis import strongest_examples, top_unit_by_group, unit_map
from tests.analysis.results import CONV, DENSE, EXAMPLES, HEADS, interrupted_result, random_result


def test_strongest_examples_are_sorted_by_signed_conductance() -> None:
    result = random_result()
    values = result.per_unit(CONV)[:, 2].tolist()
    order = sorted(range(EXAMPLES), key=lambda n: -values[n])[:3]
    found = strongest_examples(result, CONV, 2, top=3)
    assert found["example"].tolist() == order
    assert found["conductance"].tolist() == pytest.approx([values[n] for n in order], rel=1e-12)
    assert found["error"].tolist() == result.unit_error[CONV][order, 2].tolist()


def test_strongest_examples_keep_the_numbers_of_the_result() -> None:
    found = strongest_examples(interrupted_result(), DENSE, 4, top=9)
    assert sorted(found["example"]) == [0, 2, 4]


@pytest.mark.parametrize(("layer", "unit", "shape"), [(CONV, 2, (2, 4)), (HEADS, 1, (7,)), (DENSE, 10, ())])
def test_map_adds_up_to_the_unit(layer: str, unit: int, shape: tuple[int, ...]) -> None:
    result = random_result()
    found = unit_map(result, layer, unit, example=3)
    assert found.shape == shape
    torch.testing.assert_close(found.sum(), result.per_unit(layer)[3, unit])


def test_map_of_a_channel_is_its_slice() -> None:
    result = random_result()
    assert torch.equal(unit_map(result, CONV, 1, example=4), result[CONV][4, 1])
    assert torch.equal(unit_map(result, HEADS, 1, example=0), result[HEADS][0, :, 3:].sum(1))


def test_top_unit_by_group_has_the_largest_mean() -> None:
    result, groups = random_result(), ["b", "a", "b", "b", "a"]
    found = top_unit_by_group(result, DENSE, groups)
    assert found["group"].tolist() == ["a", "b"]
    assert found["examples"].tolist() == [2, 3]
    for row, members in zip(found.to_dict("records"), ([1, 4], [0, 2, 3]), strict=True):
        means = [float(result[DENSE][members, unit].mean()) for unit in range(11)]
        assert row["unit"] == means.index(max(means))
        assert row["mean"] == pytest.approx(max(means))
        assert row["share"] == pytest.approx(max(means) / sum(means))


def test_top_unit_by_group_of_a_data_set() -> None:
    groups, stats = ["b", "a", "b", "a", "b"], cd.DatasetConductance()
    stats.update(random_result(), groups)
    expected = top_unit_by_group(random_result(), DENSE, groups)
    pd.testing.assert_frame_equal(top_unit_by_group(stats, DENSE, True), expected, rtol=1e-12)
    with pytest.raises(KeyError, match="nowhere"):
        top_unit_by_group(stats, "nowhere", True)
    with pytest.raises(TypeError, match="groups=True takes those"):
        top_unit_by_group(stats, DENSE, groups)
    with pytest.raises(TypeError, match="groups is True, which is for a DatasetConductance"):
        top_unit_by_group(random_result(), DENSE, True)
    single = cd.DatasetConductance()
    single.update(random_result())
    with pytest.raises(ValueError, match="give dataset_conductance a group_by"):
        top_unit_by_group(single, DENSE, True)


def test_top_unit_by_group_leaves_out_the_unfinished() -> None:
    found = top_unit_by_group(interrupted_result(), DENSE, [7, 8, 7, 8, 9])
    assert found["group"].tolist() == [7, 9]
    assert found["examples"].tolist() == [2, 1]


def test_share_of_nothing_is_nan() -> None:
    result = random_result()
    result[DENSE].zero_()
    assert np.isnan(top_unit_by_group(result, DENSE, [0] * EXAMPLES)["share"][0])


def test_bad_arguments_say_what_is_wrong() -> None:
    result = random_result()
    with pytest.raises(IndexError, match=r"no unit 3 in 'stem.conv': it has 3"):
        strongest_examples(result, CONV, 3)
    with pytest.raises(IndexError, match="no unit -1"):
        unit_map(result, CONV, -1, example=0)
    with pytest.raises(IndexError, match="no example 5: the result has 5"):
        unit_map(result, CONV, 0, example=5)
    with pytest.raises(ValueError, match="top must be at least 1"):
        strongest_examples(result, CONV, 0, top=0)
    with pytest.raises(ValueError, match="groups has 2 entries, expected one for each of 5"):
        top_unit_by_group(result, CONV, [0, 1])
    with pytest.raises(KeyError, match="No layer 'nowhere'"):
        top_unit_by_group(result, "nowhere", [0] * EXAMPLES)
    with pytest.raises(TypeError, match="got list"):
        unit_map([], CONV, 0, example=0)  # type: ignore[arg-type]
