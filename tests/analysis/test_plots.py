"""What is drawn, read off the artists."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from torch import nn

from conductance.analysis import (
    compare_measures,
    layer_importance,
    plot_layer_bars,
    plot_measures,
    plot_top_units,
    rank_units,
)
from conductance.analysis._drawing import NEGATIVE, NEUTRAL, POSITIVE
from conductance.dataset_results import DatasetConductance
from tests.analysis.results import CONV, HEADS, random_result, renamed

LONG = "encoder.blocks.11.attention.output.dense5"


def bars(ax: Axes) -> tuple[list[Any], list[Any]]:
    """Split the bars in wide and narrow ones."""
    patches: list[Any] = list(ax.patches)
    middle = len(patches) // 2
    return patches[:middle], patches[middle:]


def test_layer_bars_show_sizes_and_signed_sums() -> None:
    result = random_result()
    result[CONV].sub_(1.0)  # one sum below 0
    table = layer_importance(result)
    wide, narrow = bars(plot_layer_bars(table))
    assert [bar.get_width() for bar in wide] == table["abs"].tolist()
    assert [bar.get_width() for bar in narrow] == table["sum"].tolist()
    assert all(bar.get_facecolor() == to_rgba(NEUTRAL) for bar in wide)
    expected = [to_rgba(POSITIVE if value >= 0 else NEGATIVE) for value in table["sum"]]
    assert [bar.get_facecolor() for bar in narrow] == expected
    assert len(set(expected)) == 2


def test_top_units_show_means_and_errors() -> None:
    table = rank_units(random_result(), top=6)
    ax = plot_top_units(table)
    wide, narrow = bars(ax)
    assert [bar.get_width() for bar in wide] == table["mean_abs"].tolist()
    assert [bar.get_width() for bar in narrow] == table["mean"].tolist()
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == [f"{row.layer} · {row.unit}" for row in table.itertuples()]
    (whiskers,) = (each for each in ax.collections if hasattr(each, "get_segments"))
    halves = [(segment[1, 0] - segment[0, 0]) / 2 for segment in whiskers.get_segments()]
    np.testing.assert_allclose(halves, table["error"])


@pytest.mark.parametrize(("plot", "rows"), [(plot_layer_bars, 3), (plot_top_units, 16)])
def test_a_result_is_ranked_and_the_first_row_is_on_top(plot: Any, rows: int) -> None:
    ax = plot(random_result())
    low, high = ax.get_ylim()
    assert low > high
    assert len(ax.patches) == 2 * rows


@pytest.mark.parametrize("plot", [plot_layer_bars, plot_top_units])
def test_given_axes_are_used_and_no_setting_is_changed(plot: Any) -> None:
    before = dict(plt.rcParams)
    ax = Figure().add_subplot()
    assert plot(random_result(), ax) is ax
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == before


@pytest.mark.parametrize("plot", [plot_layer_bars, plot_top_units])
@pytest.mark.parametrize("name", [LONG, "cost$a$", r"no$\formula$"])
def test_names_are_drawn_whole_and_as_they_are(plot: Any, name: str) -> None:
    ax = plot(renamed(random_result(), CONV, name))
    figure = ax.get_figure()
    figure.canvas.draw()
    label = next(each for each in ax.get_yticklabels() if each.get_text().startswith(name))
    box = label.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= ax.get_window_extent().x0
    below = ax.xaxis.label.get_window_extent()
    assert 0 <= below.x0 < below.x1 <= figure.bbox.x1
    assert ax.get_window_extent().width > 0.25 * figure.bbox.width


@pytest.mark.parametrize("size", [None, 8, 16])
def test_legend_lies_below_the_label_and_leaves_room_for_a_title(size: int | None) -> None:
    with plt.rc_context({} if size is None else {"font.size": size}):
        ax = plot_top_units(random_result())
        ax.set_title("What carries the output")
    figure = ax.get_figure()
    assert figure is not None
    figure.canvas.draw()
    legend = ax.get_legend()
    assert legend is not None
    box, title = legend.get_window_extent(), ax.title.get_window_extent()
    assert 0 <= box.y0 < box.y1 <= ax.xaxis.label.get_window_extent().y0
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert ax.get_window_extent().y1 <= title.y0 < title.y1 <= figure.bbox.y1


def rows(count: int, layer: str = "conv") -> pd.DataFrame:
    """Make a table of units, largest first."""
    sizes = np.linspace(4.0, 0.0, count)
    columns = {"layer": layer, "unit": np.arange(count), "mean": -sizes / 2, "mean_abs": sizes, "error": 0.1}
    return pd.DataFrame(columns)


def test_of_many_units_the_first_are_drawn_and_the_others_counted() -> None:
    ax = plot_top_units(rows(2000))
    wide, _ = bars(ax)
    assert [bar.get_width() for bar in wide] == rows(2000)["mean_abs"][:50].tolist()
    share = rows(2000)["mean_abs"][:50].sum() / rows(2000)["mean_abs"].sum()
    assert ax.get_xlabel() == f"mean conductance; first 50 of 2,000 rows: {share:.0%}"
    assert len(bars(plot_top_units(rows(2000), top=3))[0]) == 3
    assert plot_top_units(rows(50)).get_xlabel() == "mean conductance"


@pytest.mark.parametrize("plot", [plot_layer_bars, plot_top_units])
def test_groups_are_part_of_the_names(plot: Any) -> None:
    table = pd.concat([rows(2).assign(group=group, abs=1.0, sum=group) for group in (3, 7)])
    found = [label.get_text() for label in plot(table).get_yticklabels()]
    if plot is plot_top_units:
        assert found == ["conv · 0 (3)", "conv · 1 (3)", "conv · 0 (7)", "conv · 1 (7)"]
    else:
        assert found == ["conv (3)", "conv (3)", "conv (7)", "conv (7)"]


def test_groups_of_a_layer_stand_together() -> None:
    columns = {"layer": ["b", "a", "b", "a"], "group": [1, 1, 2, 2], "abs": [1.0, 2.0, 3.0, 4.0], "sum": 0.0}
    ax = plot_layer_bars(pd.DataFrame(columns))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b (1)", "b (2)", "a (1)", "a (2)"]
    assert [bar.get_width() for bar in bars(ax)[0]] == [1.0, 3.0, 2.0, 4.0]


@pytest.mark.parametrize("size", [(5.0, 3.0), None])
def test_two_hundred_layers_have_names_that_do_not_overlap(size: tuple[float, float] | None) -> None:
    count = 60 if size else 200
    table = pd.DataFrame({"layer": [f"layer.{n}" for n in range(count)], "abs": 2.0, "sum": 1.0})
    ax = plot_layer_bars(table, plt.subplots(figsize=size, layout="constrained")[1] if size else None)
    figure: Any = ax.get_figure()
    figure.canvas.draw()
    assert figure.get_figheight() <= 18
    assert len(bars(ax)[0]) == count
    boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert 5 < len(boxes) < count
    assert all(lower.y1 <= upper.y0 + 2 for upper, lower in itertools.pairwise(boxes))
    label = ax.get_yticklabels()[1]
    assert label.get_text() == f"layer.{round(label.get_position()[1])}"


def test_several_results_and_statistics_of_a_data_set_are_ranked() -> None:
    one, two = random_result(0), random_result(1)
    stats = DatasetConductance()
    stats.update(one, [0, 1, 0, 1, 0])
    stats.update(two, [1, 1, 0, 1, 0])
    plots: list[Any] = [plot_layer_bars, plot_top_units]
    for plot in plots:
        several, summed = ([bar.get_width() for bar in plot(given).patches] for given in ([one, two], stats))
        np.testing.assert_allclose(several, summed)
    grouped = plot_layer_bars(layer_importance(stats, groups=True))
    assert [label.get_text() for label in grouped.get_yticklabels()][:3] == [
        f"{CONV} (0)",
        f"{CONV} (1)",
        f"{HEADS} (0)",
    ]


def test_measures_have_a_bar_of_the_mean_and_a_whisker_of_the_range() -> None:
    columns = {"measure": ["conductance", "activation", "$x$"] * 3, "pearson": 0.0}
    table = pd.DataFrame({**columns, "spearman": [0.9, -0.2, np.nan, 0.7, -0.3, np.nan, 0.95, 0.2, np.nan]})
    ax = plot_measures(table, by="spearman")
    assert [bar.get_width() for bar in ax.patches][:2] == pytest.approx([0.85, -0.1])  # type: ignore[attr-defined]
    assert [text.get_text() for text in ax.texts] == ["0.85", "−0.10", "–"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["conductance", "activation", "$x$"]
    (whiskers,) = (each for each in ax.collections if hasattr(each, "get_segments"))
    ends = [segment[:, 0].tolist() for segment in whiskers.get_segments() if segment.ndim == 2]
    np.testing.assert_allclose(ends, [[0.7, 0.95], [-0.3, 0.2]])
    assert ax.get_xlabel() == "spearman, mean and range"
    single = plot_measures(table.head(3), by="spearman")
    assert not single.collections
    assert single.get_xlabel() == "spearman"
    first = pd.DataFrame({"measure": ["conductance", "random"], "area_first": [1.0, 2.0], "accuracy_last": [0.9, 0.4]})
    assert plot_measures(first, by="area_first").get_xlabel() == "area_first (less is better)"
    assert plot_measures(first, by="accuracy_last").get_xlabel() == "accuracy_last (more is better)"


def test_equal_numbers_have_a_whisker_of_no_length() -> None:
    ax = plot_measures(pd.DataFrame({"measure": ["conductance"] * 5, "pearson": 0.99}))
    assert len(ax.collections) == 1


def test_measures_of_a_network_are_drawn() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    table = compare_measures(model, [torch.rand(5, 3).double()], "1", target=0, measures=["activation", "random"])
    assert [bar.get_width() for bar in plot_measures(table).patches] == table["pearson"].tolist()  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_zeros_and_missing_numbers_are_drawn_as_nothing(value: float) -> None:
    table = rows(3).assign(mean=value, mean_abs=value)
    ax = plot_top_units(table)
    ax.get_figure().canvas.draw()  # type: ignore[union-attr]
    assert len(ax.get_yticklabels()) == 3


def test_bad_arguments_say_what_is_wrong() -> None:
    with pytest.raises(TypeError, match="the table of layer_importance, got int"):
        plot_layer_bars(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"lacks the columns \['abs', 'sum'\]; pass what layer_importance"):
        plot_layer_bars(rank_units(random_result()))
    with pytest.raises(ValueError, match="the table is an empty table"):
        plot_layer_bars(layer_importance(random_result()).head(0))
    with pytest.raises(ValueError, match=r"table lacks the columns \['kendall'\]; pass what compare_measures"):
        plot_measures(pd.DataFrame({"measure": ["random"]}), by="kendall")
    with pytest.raises(TypeError, match="table must be the table that compare_measures returns"):
        plot_measures({"measure": 1})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        plot_top_units(rows(3), top=0)
