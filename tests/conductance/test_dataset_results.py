"""Statistics of a data set: against direct sums, in any split, any order of merging, and after a file."""

import copy
import pickle
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import conductance as cd
from conductance.dataset_results import DatasetConductance
from conductance.dataset_statistics import LayerStatistics
from tests.conductance.made_results import SHAPES, make

EXAMPLES = 11
LAYERS = list(SHAPES)
GROUPS = ["b", "a", "b", "c", "a", "b", "b", "a", "d", "a", "b"]
#: Interrupted, and NaN in one layer; the first is the only one of its group.
UNFINISHED = (8, 4)
FINISHED = [n for n in range(EXAMPLES) if n not in UNFINISHED]


def whole(seed: int = 0, offset: float = 0.0) -> cd.TotalConductance:
    """Examples of sizes from 1e-3 to 1e3; one whose output does not change, one without conductance."""
    result = cd.concatenate([make(5, seed), make(4, seed + 100), make(2, seed + 200)])
    size = 10 ** torch.linspace(-3, 3, EXAMPLES, dtype=torch.float64)
    for layer, tensor in result.conductance.items():
        tensor.mul_(size.reshape(-1, *[1] * (tensor.dim() - 1))).add_(offset)
        result.unit_error[layer].mul_(0.01 * size[:, None])
    result.output[2] = result.baseline_output[2]
    result["conv"][6].zero_()
    result["conv"][UNFINISHED[1], 1, 2, 3] = float("nan")
    status = ["ok"] * EXAMPLES
    status[UNFINISHED[0]], status[7], status[9] = "interrupted", "budget", "jump"
    converged = torch.tensor([one == "ok" for one in status])
    return replace(result, status=tuple(status), converged=converged, settings={"rtol": 0.01, "seconds": 1.0})


def deviation(values: Any) -> Any:
    return np.std(values, 0, ddof=1) if len(values) > 1 else np.full(values.shape[1:], np.nan)


def direct(total: cd.TotalConductance, layer: str, examples: list[int]) -> dict[str, Any]:
    """The definitions, by numpy over all examples at once."""
    values = total.per_unit(layer)[examples].numpy()
    errors = total.unit_error[layer][examples].numpy()
    change = (total.output - total.baseline_output)[examples].numpy()
    elements = total[layer][examples].reshape(len(examples), -1).abs().sum(1).numpy()
    relative = total.error[layer][examples].numpy()
    sums, sizes, some = values.sum(1), np.abs(values).sum(1), change != 0
    count = len(examples)
    return {
        "count": count,
        "mean": values.mean(0),
        "std": deviation(values),
        "standard_error": deviation(values) / count**0.5,
        "mean_abs": np.abs(values).mean(0),
        "mean_abs_standard_error": deviation(np.abs(values)) / count**0.5,
        "share_positive": (values > 0).mean(0),
        "smallest": values.min(0),
        "largest": values.max(0),
        "error": errors.mean(0),
        "largest_error": errors.max(0),
        "sum": sums.mean(),
        "sum_standard_error": deviation(sums) / count**0.5,
        "abs": sizes.mean(),
        "cancellation": (1 - np.abs(sums[sizes > 0]) / sizes[sizes > 0]).mean() if sizes.any() else np.nan,
        "coverage": (sums[some] / change[some]).mean(),
        "coverage_error": (relative[some] * elements[some] / np.abs(change[some])).mean(),
        "output_change": change.mean(),
        "relative_error": relative.max(),
    }


def assert_direct(found: dict[str, LayerStatistics], total: cd.TotalConductance, examples: list[int]) -> None:
    """Compare to 1e-12 of the largest number that went in."""
    assert list(found) == LAYERS
    for layer, one in found.items():
        expected = direct(total, layer, examples)
        values = total.per_unit(layer)[examples].abs().numpy()
        for name, number in expected.items():
            size = values.sum(1).max() if np.ndim(number) == 0 else values.max(0)
            size = abs(number) + 1 if name in ("cancellation", "share_positive", "count") else size
            actual = np.asarray(getattr(one, name))
            assert np.isnan(actual).tolist() == np.isnan(number).tolist(), name
            close = np.abs(actual - number) <= 1e-12 * (size + np.abs(number))
            assert np.all(close | np.isnan(number)), (layer, name, actual, number)


def part(total: cd.TotalConductance, examples: list[int]) -> cd.TotalConductance:
    return total.select(examples)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 50),
    offset=st.sampled_from([0.0, 1e3]),
    parts=st.lists(st.integers(0, 4), min_size=EXAMPLES, max_size=EXAMPLES),
    choices=st.randoms(use_true_random=False),
    grouped=st.booleans(),
)
def test_any_split_and_any_order_of_merging(
    seed: int, offset: float, parts: list[int], choices: Any, grouped: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    total = whole(seed, offset)
    pieces: list[DatasetConductance] = [DatasetConductance()]
    batches = [[n for n in range(EXAMPLES) if parts[n] == number] for number in set(parts)]
    choices.shuffle(batches)
    for batch in batches:
        if choices.random() < 0.5:
            pieces.append(DatasetConductance())
        pieces[-1].update(part(total, batch), [GROUPS[n] for n in batch] if grouped else None)
    while len(pieces) > 1:
        choices.shuffle(pieces)
        other = pieces.pop()
        if choices.random() < 0.3:
            path = tmp_path_factory.mktemp("stats") / "part.safetensors"
            other.save(path)
            read = cd.load(path)
            assert isinstance(read, DatasetConductance)
            other = read
        pieces[-1].merge_state(other)
    (stats,) = pieces
    assert_direct(stats.compute(), total, FINISHED)
    assert (stats.count, stats.left_out, stats.layers) == (len(FINISHED), 2, LAYERS)
    assert stats.unconverged == {"budget": 1, "jump": 1}
    assert stats.evaluations == int(total.evaluations.sum())
    assert stats.groups == (["a", "b", "c"] if grouped else [])
    for group in stats.groups:
        assert_direct(stats.compute(group), total, [n for n in FINISHED if GROUPS[n] == group])


def test_a_large_mean_costs_the_deviation_no_digits() -> None:
    total = make(4)
    values = 1e6 + torch.tensor([0.5, 1.25, -2.0, 3.75], dtype=torch.float64)
    total["output"][:] = values
    stats = DatasetConductance()
    for n in range(4):
        stats.update(part(total, [n]))
    deviation = float(stats.compute()["output"].std)
    assert deviation == pytest.approx(float(np.std([0.5, 1.25, -2.0, 3.75], ddof=1)), rel=1e-9)


def test_nothing_has_an_axis_of_examples() -> None:
    stats = DatasetConductance()
    sizes = []
    for seed in range(3):
        stats.update(make(5, seed))
        state = stats._state.sums[None].values()
        every = [(one.units, one.layer) for one in state]
        numbers = [t.numel() for pair in every for m in pair for t in (m.count, m.total, m.squares)]
        sizes.append(sum(numbers) + sum(one.extremes.numel() + one.worst.numel() for one in state))
    assert sizes[0] == sizes[1] == sizes[2]


def test_half_precision_is_summed_in_double() -> None:
    half = make(5).to(dtype=torch.bfloat16)
    stats = DatasetConductance()
    stats.update(half)
    assert_direct(stats.compute(), half.to(dtype=torch.float64), [0, 1, 2, 3, 4])


def test_files_keep_every_bit(tmp_path: Path) -> None:
    total = whole()
    stats = DatasetConductance({"target": "label"})
    stats.update(total, [(group, n % 2) for n, group in enumerate(GROUPS)])
    stats.settings["seconds"] = 2.5
    stats.save(tmp_path / "stats")
    for read in (cd.load(tmp_path / "stats"), DatasetConductance.load(tmp_path / "stats")):
        assert isinstance(read, DatasetConductance)
        assert repr(read) == repr(stats)
        assert read.settings == stats.settings
        assert read.groups == stats.groups
        assert read.groups[0] == ("a", 1)
        assert read.info == stats.info
        assert (read.unconverged, read.evaluations) == (stats.unconverged, stats.evaluations)
        read_frame, frame = read.to_dataframe(), stats.to_dataframe()
        assert read_frame.equals(frame)
        read.reset()
        assert (read.settings, read.count, read.layers) == ({"target": "label"}, 0, [])


def test_an_empty_one_can_be_kept_and_added_to(tmp_path: Path) -> None:
    DatasetConductance().save(tmp_path / "stats")
    stats = DatasetConductance.load(tmp_path / "stats")
    assert (stats.count, stats.layers, stats.groups) == (0, [], [])
    stats.update(make())
    other = DatasetConductance()
    other.merge_state(stats)
    assert other.to_dataframe().equals(stats.to_dataframe())
    stats.merge_state(DatasetConductance())
    assert stats.count == 3


def test_threads_lose_no_example() -> None:
    stats, total = DatasetConductance(), make()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def add() -> None:
        for _ in range(15):
            stats.update(total)
            part = DatasetConductance()
            part.update(total)
            stats.merge_state(part)

    try:
        threads = [threading.Thread(target=add) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert stats.count == 4 * 15 * 2 * 3


def test_copies_are_statistics_of_their_own() -> None:
    stats = DatasetConductance({"target": "label"})
    stats.update(make(), ["a", "b", "a"])
    for copied in (copy.copy(stats), copy.deepcopy(stats), pickle.loads(pickle.dumps(stats))):
        assert copied.to_dataframe().equals(stats.to_dataframe())
        copied.merge_state(stats)
        assert (copied.count, stats.count) == (6, 3)


def test_groups_are_found_as_they_were_given() -> None:
    stats = DatasetConductance()
    stats.update(make(), torch.tensor([1, 0, 1]))
    for group in (1, torch.tensor(1), np.int64(1)):
        assert stats.compute(group)["conv"].count == 2
    with pytest.raises(TypeError, match="a list; expected a text"):
        stats.compute([1])  # type: ignore[arg-type]


def test_dataframe_has_a_row_for_each_unit_and_group() -> None:
    total = whole()
    stats = DatasetConductance()
    stats.update(total, GROUPS)
    frame = stats.to_dataframe()
    assert len(frame) == 3 * (5 + 2 + 1 + 4)
    row = frame[(frame["group"] == "a") & (frame["layer"] == "conv") & (frame["unit"] == 3)].iloc[0]
    expected = direct(total, "conv", [1, 7, 9])
    for column in frame.columns[4:]:
        assert row[column] == pytest.approx(expected[column][3], rel=1e-12)
    assert list(frame)[:5] == ["layer", "unit", "group", "count", "mean"]
    only = stats.to_dataframe("conv")
    assert set(only["layer"]) == {"conv"}
    assert len(only) == 15
    ungrouped = DatasetConductance()
    ungrouped.update(total)
    assert set(ungrouped.to_dataframe()["group"]) == {"all"}
    tuples = DatasetConductance()
    tuples.update(part(total, [0, 1]), [("x", 1), ("x", 2)])
    assert tuples.to_dataframe("output")["group"].tolist() == [("x", 1), ("x", 2)]
    with pytest.raises(KeyError, match="Did you mean 'conv'"):
        stats.to_dataframe("con")


def test_text_and_page() -> None:
    stats = DatasetConductance()
    assert repr(stats) == "DatasetConductance(0 layers, 0 examples, 0 converged)"
    assert stats._repr_html_().endswith("0 converged</p>")
    stats.update(whole(), GROUPS)
    assert repr(stats) == "DatasetConductance(4 layers, 9 examples, 7 converged, 3 groups, 2 left out)"
    page = stats._repr_html_()
    assert "<td>conv</td><td>Conv2d</td><td>5</td>" in page
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    stats.settings["interrupted"] = True
    assert repr(stats).endswith("2 left out, interrupted)")


def test_positions_may_differ_between_batches() -> None:
    """Sequences of other lengths have the same units."""
    first, other = make(2), make(2, 1)
    short = other["conv"][:, :, :, :4].contiguous()
    info = {**other.info, "conv": replace(other.info["conv"], shape=(5, 3, 4))}
    cut = replace(other, conductance={**other.conductance, "conv": short}, info=info, spread=None)
    stats = DatasetConductance()
    stats.update(first)
    stats.update(cut)
    expected = (first.per_unit("conv").sum(0) + short.sum((2, 3)).sum(0)) / 4
    torch.testing.assert_close(stats.compute()["conv"].mean, expected, rtol=1e-12, atol=1e-14)


def test_a_layer_is_a_cut_if_it_always_is() -> None:
    first, other = make(2), make(2, 1)
    info = {**other.info, "output": replace(other.info["output"], is_cut=False, moves=False)}
    stats = DatasetConductance()
    stats.update(first)
    assert stats.info["output"].is_cut
    stats.update(replace(other, info=info))
    assert (stats.info["output"].is_cut, stats.info["output"].moves) == (False, True)


@pytest.mark.parametrize(
    ("groups", "order"),
    [
        ([10, 2, 9], [2, 9, 10]),
        (torch.tensor([1, 0, 1]), [0, 1]),
        (np.array([1.5, 0.5, 1.5]), [0.5, 1.5]),
        (np.array(["b", "a", "b"]), ["a", "b"]),
        (["b", 3, "a"], [3, "a", "b"]),
        ((torch.tensor(4), np.int64(4), np.str_("x")), [4, "x"]),
        ([True, False, True], [False, True]),
    ],
)
def test_what_groups_may_be(groups: Any, order: list[Any], tmp_path: Path) -> None:
    stats = DatasetConductance()
    stats.update(make(3), groups)
    assert stats.groups == order
    assert all(type(one) in (int, float, str, bool) for one in stats.groups)
    stats.save(tmp_path / "stats")
    assert DatasetConductance.load(tmp_path / "stats").groups == order


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ([0, 1], ValueError, "groups has 2 entries, expected one for each of 3"),
        (torch.tensor(3), ValueError, "groups has 0 entries"),
        ("abc", TypeError, "one entry for each example, got str"),
        ({0: 1}, TypeError, "got dict"),
        (7, TypeError, "got int"),
        ([None, 1, 2], TypeError, "None, a NoneType; expected a text, a number"),
        ([float("nan"), 1, 2], TypeError, "holds nan"),
        (torch.zeros(3, 2), TypeError, "a list; expected a text"),
        ([b"a", b"b", b"c"], TypeError, "a bytes; expected a text"),
    ],
)
def test_what_groups_may_not_be(groups: Any, error: type[Exception], message: str) -> None:
    stats = DatasetConductance()
    with pytest.raises(error, match=message):
        stats.update(make(3), groups)
    assert stats.count == 0


def test_what_does_not_add_up_is_refused_and_changes_nothing() -> None:
    stats = DatasetConductance()
    stats.update(replace(make(3), settings={"rtol": 0.1}), [1, 2, 1])
    before = stats.to_dataframe()
    few = make(3)
    fewer = {name: one for name, one in few.info.items() if name != "conv"}
    narrow: dict[str, Any] = {
        field: {name: one for name, one in getattr(few, field).items() if name in fewer}
        for field in ("conductance", "unit_error", "error", "spread")
    }
    other_type = {**few.info, "conv": replace(few.info["conv"], module_type="Linear")}
    with pytest.raises(ValueError, match=r"layer 'conv' is missing.*layers or settings apart"):
        stats.update(replace(few, **narrow, info=fewer, settings={}), [1, 2, 1])
    with pytest.raises(ValueError, match="layer 'conv' is a Linear of 5 units, not a Conv2d of 5 units"):
        stats.update(replace(few, info=other_type, settings={}), [1, 2, 1])
    longer = {**few.info, "conv": replace(few.info["conv"], shape=(7, 3, 5), unit_axis=1)}
    turned = {**few.conductance, "conv": few["conv"].transpose(1, 3).contiguous()}
    errors = {**few.unit_error, "conv": few.unit_error["conv"].repeat(1, 2)[:, :7]}
    with pytest.raises(ValueError, match=r"of 7 units, not a Conv2d of 5 units .if its units are positions.* layers="):
        stats.update(
            replace(few, info=longer, conductance=turned, unit_error=errors, spread=None, settings={}), [1, 2, 1]
        )
    with pytest.raises(ValueError, match=r"rtol is 0.5, not 0.1"):
        stats.update(replace(few, settings={"rtol": 0.5}), [1, 2, 1])
    with pytest.raises(ValueError, match="its examples have no groups, unlike those here"):
        stats.update(replace(few, settings={}))
    with pytest.raises(TypeError, match=r"must be a TotalConductance.*got dict"):
        stats.update(dict(few), [1, 2, 1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="other is these statistics themselves, whose examples would count twice"):
        stats.merge_state(stats)
    with pytest.raises(TypeError, match="other must be a DatasetConductance, got TotalConductance"):
        stats.merge_state(few)  # type: ignore[arg-type]
    assert stats.to_dataframe().equals(before)
    ungrouped = DatasetConductance()
    ungrouped.update(few)
    with pytest.raises(ValueError, match="its examples have groups, unlike those here"):
        ungrouped.update(few, [1, 2, 3])


def test_settings_have_to_agree() -> None:
    one, other = (DatasetConductance({"target": target, "model": "Net"}) for target in ("label", "predicted"))
    one.update(make())
    other.update(make())
    with pytest.raises(ValueError, match="target is 'predicted', not 'label'"):
        one.merge_state(other)
    assert one.count == 3
    same = DatasetConductance({"target": "label"})
    same.update(make())
    same.settings |= {"seconds": 2.0, "interrupted": True}
    one.settings |= {"seconds": 1.5}
    one.merge_state(same)
    assert (one.count, one.interrupted, one.settings["seconds"]) == (6, True, 3.5)
    with pytest.raises(TypeError, match="not JSON"):
        DatasetConductance({"target": torch.ones(2)})
    with pytest.raises(TypeError, match="settings must be a dict of what was run, or None, got list"):
        DatasetConductance(["label"])  # type: ignore[arg-type]


def test_without_a_finished_example_there_is_nothing_to_compute() -> None:
    stats = DatasetConductance()
    with pytest.raises(ValueError, match="no finished example: none given"):
        stats.compute()
    stats.update(part(whole(), list(UNFINISHED)), ["x", "y"])
    assert (stats.count, stats.left_out, stats.groups) == (0, 2, [])
    with pytest.raises(ValueError, match="each of the 2 was interrupted"):
        stats.to_dataframe()
    stats.update(whole(), GROUPS)
    with pytest.raises(ValueError, match="group is 'z', expected 'a', 'b', 'c'"):
        stats.compute("z")
