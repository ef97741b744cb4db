"""What is drawn, read off the artists."""

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure

from conductance.analysis import layer_importance, plot_layer_bars, plot_top_units, plot_unit_map, rank_units
from conductance.analysis._drawing import NEGATIVE, NEUTRAL, POSITIVE
from tests.analysis.results import CONV, random_result, renamed

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


def test_unit_map_is_coloured_by_sign_and_size() -> None:
    ax = plot_unit_map(torch.rand(1, 8, 6), torch.tensor([[1.0, -2.0], [0.0, 0.5]]))
    below, above = ax.images
    assert np.asarray(below.get_array()).shape == (8, 6)
    assert list(below.get_extent()) == list(above.get_extent()) == [-0.5, 5.5, 7.5, -0.5]
    colours = np.asarray(above.get_array())
    np.testing.assert_allclose(colours[0, 0, :3], to_rgb(POSITIVE))
    np.testing.assert_allclose(colours[0, 1, :3], to_rgb(NEGATIVE))
    opacity = colours[..., 3]
    np.testing.assert_allclose(opacity / opacity.max(), [[0.5, 1.0], [0.0, 0.25]])


def test_limit_sets_the_scale() -> None:
    ax = plot_unit_map(np.zeros((4, 4)), np.array([[1.0, -8.0]]), limit=4.0)
    opacity = np.asarray(ax.images[1].get_array())[0, :, 3]
    np.testing.assert_allclose(opacity / opacity.max(), [0.25, 1.0])


def test_colours_become_greys_of_their_lightness() -> None:
    image = torch.zeros(3, 1, 3)
    image[0, 0, 0] = image[1, 0, 1] = image[2, 0, 2] = 1.0
    drawn = np.asarray(plot_unit_map(image, torch.zeros(2, 2)).images[0].get_array())
    np.testing.assert_allclose(drawn, [[0.299, 0.587, 0.114]])


@pytest.mark.parametrize("shape", [(5, 4), (1, 5, 4), (3, 5, 4)])
def test_images_with_and_without_a_channel_axis(shape: tuple[int, ...]) -> None:
    ax = plot_unit_map(torch.rand(shape), torch.zeros(2, 2), Figure().add_subplot())
    below = ax.images[0]
    assert np.asarray(below.get_array()).shape == (5, 4)
    assert below.get_cmap().name == ("gray" if shape[0] == 3 else "gray_r")


def test_bad_arguments_say_what_is_wrong() -> None:
    with pytest.raises(TypeError, match="the table of layer_importance, got list"):
        plot_layer_bars([])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"lacks the columns \['abs', 'sum'\]; pass what layer_importance"):
        plot_layer_bars(rank_units(random_result()))
    with pytest.raises(ValueError, match=r"image has shape \(2, 5, 4\)"):
        plot_unit_map(torch.rand(2, 5, 4), torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"values has shape \(4,\).*a layer with height and width"):
        plot_unit_map(torch.rand(5, 4), torch.zeros(4))
    with pytest.raises(ValueError, match="limit is 0, expected a number above 0"):
        plot_unit_map(torch.rand(5, 4), torch.zeros(2, 2), limit=0)
