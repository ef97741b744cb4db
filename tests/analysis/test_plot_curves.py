"""Curves of ablation, saturation and pruning, read off the artists."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from conductance import analysis
from conductance.analysis import plot_ablation_curve, plot_pruning_curves, plot_saturation_curve
from conductance.analysis._drawing import NEUTRAL, SERIES
from tests.analysis.curves import SHARES, ablation, pruning, saturation
from tests.analysis.results import random_result

LONG = "encoder.blocks.11.attention.output.dense5"


def labels(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def data(line: Any) -> tuple[list[float], list[float]]:
    return np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()


def test_one_ablation_curve_has_a_line_for_each_order_and_a_band_of_random_ones() -> None:
    curve = ablation()
    ax = plot_ablation_curve(curve.sample(frac=1.0, random_state=1))  # rows in any order
    first, last, chance = ax.get_lines()
    assert data(first) == (SHARES, curve["score"][:4].tolist())
    assert data(last) == (SHARES, curve["score"][4:8].tolist())
    random = curve["score"][8:].to_numpy().reshape(3, 4)
    np.testing.assert_allclose(data(chance)[1], random.mean(0))
    (band,) = ax.collections
    corners = band.get_paths()[0].vertices
    for share, low, high in zip(SHARES, random.min(0), random.max(0), strict=True):
        there = np.asarray(corners)[np.asarray(corners)[:, 0] == share, 1]
        assert (there.min(), there.max()) == pytest.approx((low, high))
    assert labels(ax) == ["most important first", "least important first", "random order, mean and range of 3"]
    assert first.get_linestyle() != last.get_linestyle()
    assert first.get_color() != last.get_color()
    assert ax.get_ylabel() == "mean target"


def test_accuracy_is_drawn_if_asked() -> None:
    ax = plot_ablation_curve(ablation(), y="accuracy")
    assert data(ax.get_lines()[0])[1] == ablation()["accuracy"][:4].tolist()
    assert ax.get_ylabel() == "accuracy"


def test_several_curves_have_colours_and_share_the_random_orders() -> None:
    ax = plot_ablation_curve({"conductance": ablation(), "_activation": ablation(0.5)})
    assert len(ax.get_lines()) == 2 * 2 + 1
    assert labels(ax) == [
        "conductance",
        " _activation",
        "random order, mean and range of 3",
        "dashed: least important first",
    ]
    colours = [line.get_color() for line in ax.get_lines()]
    assert colours == [SERIES[0], SERIES[0], SERIES[1], SERIES[1], NEUTRAL]
    assert [line.get_linestyle() for line in ax.get_lines()[:4]] == ["-", "--", "-", "--"]
    other = ablation(0.5)
    other.loc[other["order"] == "random", "score"] += 1.0
    assert len(plot_ablation_curve({"one": ablation(), "two": other}).get_lines()) == 2 * 3


def test_one_random_order_has_no_band() -> None:
    ax = plot_ablation_curve(ablation(seeds=1))
    assert not ax.collections
    assert labels(ax)[-1] == "random order"


def test_saturation_shows_shares_of_the_change_and_of_the_largest() -> None:
    curve = saturation({"conv": [8.0, 4.0, 2.0], "beside": [-1.0, 0.0, 4.0]})
    ax = plot_saturation_curve(curve)
    output, mark, norm, conv, beside = ax.get_lines()
    assert data(output) == ([0.0, 0.5, 1.0], [0.0, 0.625, 1.0])
    assert data(norm)[1] == [1.0, 0.5, 0.0]
    assert data(conv)[1] == [1.0, 0.5, 0.25]
    assert data(beside)[1] == [-0.25, 0.0, 1.0]
    np.testing.assert_allclose(data(mark)[0], 0.85)  # median of 0.9 and 0.8
    assert labels(ax)[0] == "output, share of its change: 0.9 at 0.85"
    assert labels(ax)[1:] == ["gradient norm", "integrand of conv", "integrand of beside"]
    assert len(ax.collections) == 1
    assert conv.get_color() != beside.get_color()


def test_one_example_and_some_layers() -> None:
    curve = saturation({"conv": [8.0, 4.0, 2.0], "fc": [-1.0, 0.0, 4.0]})
    ax = plot_saturation_curve(curve, example=1, layers="fc")
    assert data(ax.get_lines()[0])[1] == [0.0, 0.75, 1.0]
    assert not ax.collections
    assert labels(ax)[2:] == ["integrand of fc"]


def test_layers_that_agree_are_one_line() -> None:
    same = {f"layer{n}": [4.0 * n, 2.0 * n, n] for n in (1.0, 2.0)}
    assert labels(plot_saturation_curve(saturation(same)))[-1] == "integrand of layer1.0, layer2.0"
    many = {f"{LONG}{n}": [4.0, 2.0, 1.0] for n in range(9)}
    assert labels(plot_saturation_curve(saturation(many)))[-1] == f"integrand of {LONG}0 and 8 more"


def test_many_layers_are_grey() -> None:
    layers = {f"layer{n}": [1.0, -1.0 + n / 20, -1.0 + (n % 7) / 4] for n in range(40)}
    ax = plot_saturation_curve(saturation(layers))
    assert labels(ax)[-1] == "integrands of 40 layers"
    assert sum(line.get_color() == NEUTRAL for line in ax.get_lines()) == 40


def test_an_output_that_does_not_change_is_said() -> None:
    curve = saturation({"fc": [0.0, 0.0, 0.0]}).assign(value=0.0)
    ax = plot_saturation_curve(curve)
    assert labels(ax)[0] == "output, share of its change: none"
    assert data(ax.get_lines()[-1])[1] == [0.0, 0.0, 0.0]


def test_pruning_has_a_colour_for_each_criterion_and_dashes_after_fine_tuning() -> None:
    table = pruning()
    ax = plot_pruning_curves(table)
    assert labels(ax) == ["conductance", "weight_magnitude", "dashed: after fine-tuning"]
    lines = ax.get_lines()
    assert [line.get_linestyle() for line in lines] == ["-", "--", "-", "--"]
    assert [line.get_color() for line in lines] == [SERIES[0]] * 2 + [SERIES[1]] * 2
    own = table[(table["criterion"] == "weight_magnitude") & table["fine_tuned"]]
    np.testing.assert_allclose(data(lines[3])[1], own.groupby("amount")["accuracy"].mean())
    assert data(lines[3])[0] == [0.0, 0.3, 0.6]
    assert len(ax.collections) == 4


def test_pruning_by_loss_and_by_what_units_are_held_at() -> None:
    table = pd.concat([pruning(fine_tuned=False), pruning(fine_tuned=False, value="baseline", loss=9.0)])
    ax = plot_pruning_curves(table, y="loss")
    assert labels(ax) == [
        "conductance, held at zero",
        "weight_magnitude, held at zero",
        "conductance, held at baseline",
        "weight_magnitude, held at baseline",
    ]
    assert data(ax.get_lines()[2])[1] == [9.0, 9.0, 9.0]
    assert ax.get_ylabel() == "loss"


def test_all_fine_tuned_curves_are_named() -> None:
    assert labels(plot_pruning_curves(pruning(fine_tuned=True)))[0] == "conductance"


def test_curves_beyond_the_colours_have_other_markers() -> None:
    criteria = tuple(f"criterion {n}" for n in range(len(SERIES) + 1))
    lines = plot_pruning_curves(pruning(criteria, fine_tuned=False)).get_lines()
    assert lines[0].get_color() == lines[-1].get_color()
    assert lines[0].get_marker() != lines[-1].get_marker()


DRAWN: list[tuple[Callable[..., Axes], Any]] = [
    (plot_ablation_curve, ablation()),
    (plot_ablation_curve, {name: ablation(n) for n, name in enumerate((LONG, "$cost$", "a"))}),
    (plot_saturation_curve, saturation({LONG: [1.0, 2.0, 3.0], "$x^2$": [3.0, 2.0, 0.0]})),
    (plot_pruning_curves, pruning((LONG, "$a", "_b"))),
]


@pytest.mark.parametrize(("plot", "table"), DRAWN)
def test_given_axes_are_used_and_no_setting_is_changed(plot: Callable[..., Axes], table: Any) -> None:
    before = dict(plt.rcParams)
    ax = Figure().add_subplot()
    assert plot(table, ax) is ax
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == before


@pytest.mark.parametrize("style", ["default", "dark_background"])
@pytest.mark.parametrize(("plot", "table"), DRAWN)
def test_nothing_is_cut_off(plot: Callable[..., Axes], table: Any, style: str) -> None:
    with plt.style.context(style):
        ax = plot(table)
        figure: Any = ax.get_figure()
        figure.canvas.draw()
    legend: Any = ax.get_legend()
    box, label = legend.get_window_extent(), ax.xaxis.label.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert 0 <= box.y0 < box.y1 <= label.y0
    side = ax.yaxis.label.get_window_extent()
    assert side.x0 >= 0
    assert 0 <= side.y0 < side.y1 <= figure.bbox.y1
    assert ax.get_window_extent().height > 0.4 * figure.bbox.height
    assert all(to_rgba(line.get_color()) != figure.get_facecolor() for line in ax.get_lines())


@pytest.mark.parametrize("points", [1, 24])
def test_few_points_are_marked(points: int) -> None:
    curve = ablation(seeds=1)
    curve = curve[curve["share"] == 0.5] if points == 1 else curve
    assert all(
        line.get_marker() not in ("", "None")
        for line in plot_ablation_curve(curve).get_lines()[: 3 if points == 1 else 2]
    )


def test_missing_numbers_leave_gaps() -> None:
    curve = ablation()
    curve.loc[curve["share"] == 0.25, "score"] = np.nan
    assert np.isnan(data(plot_ablation_curve(curve).get_lines()[0])[1]).tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("name", "table", "options", "error", "message"),
    [
        ("ablation_curve", [1], {}, TypeError, "curve must be the table that ablation_curve returns.*got list"),
        ("ablation_curve", {}, {}, ValueError, "curve holds no tables"),
        ("ablation_curve", {"a": 3}, {}, TypeError, r"curve\['a'\] must be the table"),
        ("ablation_curve", ablation().head(0), {}, ValueError, "curve is an empty table"),
        ("ablation_curve", pruning(), {}, ValueError, r"lacks the columns \['order', 'share', 'score'\]; pass what"),
        ("ablation_curve", ablation(), {"y": "loss"}, ValueError, "y must be 'score' or 'accuracy', got 'loss'"),
        ("ablation_curve", ablation(accuracy=np.nan), {"y": "accuracy"}, ValueError, "needs a loader with labels"),
        ("saturation_curve", ablation(), {}, ValueError, "curve lacks the columns"),
        ("saturation_curve", saturation({}), {"example": 7}, ValueError, "example must be 0 or 1, got 7"),
        ("saturation_curve", saturation({}, 20), {"example": 20}, ValueError, "one of the 20 in the table, 0 to 19"),
        (
            "saturation_curve",
            saturation({"fc": [1, 2, 3]}),
            {"layers": "fd"},
            KeyError,
            "No layer 'fd' here. All names: 'fc'",
        ),
        ("saturation_curve", saturation({"fc": [1, 2, 3]}), {"layers": []}, ValueError, "layers is empty"),
        ("pruning_curves", "table", {}, TypeError, "experiment must be the table that pruning_experiment"),
        ("pruning_curves", pruning(), {"y": "score"}, ValueError, "y must be 'accuracy' or 'loss'"),
        ("pruning_curves", pruning(loss=np.nan), {"y": "loss"}, ValueError, "no number in the column 'loss'"),
        ("pruning_curves", pruning().drop(columns="seed"), {}, ValueError, r"lacks the columns \['seed'\]"),
    ],
)
def test_bad_arguments_say_what_is_wrong(
    name: str, table: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        getattr(analysis, f"plot_{name}")(table, **options)
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("draw", "drawn"),
    [
        (plot_ablation_curve, ablation()),
        (plot_pruning_curves, pruning()),
        (plot_saturation_curve, saturation({"act": [0.0, 1.0, 0.5]})),
        (analysis.plot_layer_bars, random_result()),
        (analysis.plot_top_units, random_result()),
    ],
)
def test_own_figures_with_a_layout_have_room_for_the_legend(draw: Callable[..., Axes], drawn: Any) -> None:
    figure, ax = plt.subplots(layout="constrained")
    draw(drawn, ax)
    figure.canvas.draw()
    legend: Any = ax.get_legend()
    assert legend.get_window_extent().y0 >= 0
