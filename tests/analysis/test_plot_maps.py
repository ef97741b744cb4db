"""Maps over images and tokens, read off the artists."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from conductance.analysis import plot_token_map, plot_unit_map
from conductance.analysis._drawing import NEGATIVE, POSITIVE

TOKENS = ["[CLS]", "a", "film", "##ing", "$", "$x$", "Ġbad", "\n", "", "_a", "<br>", "café"]


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


def test_missing_values_are_not_coloured() -> None:
    ax = plot_unit_map(np.zeros((4, 4)), np.array([[np.nan, -2.0]]))
    opacity = np.asarray(ax.images[1].get_array())[0, :, 3]
    assert opacity[0] == 0
    assert opacity[1] > 0.5


def test_tokens_are_written_in_order_on_the_colour_of_their_value() -> None:
    values = torch.linspace(-2.0, 1.0, len(TOKENS))
    ax = plot_token_map(TOKENS, values)
    written = ["[CLS]", "a", "film", "##ing", "$", "$x$", "·bad", "\\n", "∅", "_a", "<br>", "café"]
    assert [text.get_text() for text in ax.texts] == written
    assert not any(text.get_parse_math() for text in ax.texts)
    colours = fills(ax)
    expected = [to_rgb(POSITIVE if value >= 0 else NEGATIVE) for value in values]
    np.testing.assert_allclose(colours[:, :3], expected)
    np.testing.assert_allclose(colours[:, 3] / colours[0, 3], values.abs() / 2)
    assert ax.get_xlabel() == "blue pushes the target up, orange down; full colour = 2"


def test_limit_sets_the_scale_of_tokens() -> None:
    ax = plot_token_map(["a", "b"], [1.0, -8.0], limit=4.0)
    opacity = fills(ax)[:, 3]
    np.testing.assert_allclose(opacity / opacity.max(), [0.25, 1.0])
    assert ax.get_xlabel().endswith("full colour = 4")


@pytest.mark.parametrize("values", [[0.0, 0.0], [np.nan, np.nan]])
def test_tokens_without_a_value_have_no_colour(values: list[float]) -> None:
    ax = plot_token_map(["a", "b"], values)
    assert fills(ax)[:, 3].tolist() == [0.0, 0.0]
    frames: Any = [patch.get_edgecolor() for patch in ax.patches]
    assert [frame[3] > 0 for frame in frames] == np.isnan(values).tolist()


def fills(ax: Axes) -> Any:
    """Give red, green, blue and opacity of each token, ``(tokens, 4)``."""
    return np.array([patch.get_facecolor() for patch in ax.patches])


def drawn(ax: Axes) -> Any:
    figure: Any = ax.get_figure()
    figure.canvas.draw()
    return figure


@pytest.mark.parametrize("size", [None, (9.0, 5.0)])
def test_two_hundred_tokens_lie_in_lines_inside_their_cells(size: tuple[float, float] | None) -> None:
    rng = np.random.default_rng(0)
    tokens = [TOKENS[n] for n in rng.integers(0, len(TOKENS), 198)] + ["一二", "a" * 60]
    tokens = [token.replace("一二", "wide") for token in tokens]
    ax = plot_token_map(tokens, rng.normal(size=200), plt.subplots(figsize=size)[1] if size else None)
    figure = drawn(ax)
    places = [(patch.get_y(), patch.get_x(), patch.get_width()) for patch in ax.patches]  # type: ignore[attr-defined]
    for (line, left, width), (next_line, next_left, _) in itertools.pairwise(places):
        assert next_line > line or next_left >= left + width
    assert len({line for line, _, _ in places}) > 5
    for text, patch in zip(ax.texts, ax.patches, strict=True):
        letters, cell = text.get_window_extent(), patch.get_window_extent()
        assert cell.x0 - 2 <= letters.x0 <= letters.x1 <= cell.x1 + 2
        assert 0 <= cell.x0 < cell.x1 <= figure.bbox.x1 + 1
        assert 0 <= cell.y0 < cell.y1 <= figure.bbox.y1 + 1
    assert float(ax.texts[0].get_fontsize()) >= 7


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_tokens_can_be_read_on_every_colour(style: str) -> None:
    def light(colour: Any) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    with plt.style.context(style):
        ax = plot_token_map(["a"] * 21, np.linspace(-1, 1, 21))
        paper = np.array(to_rgb(ax.get_facecolor()))
    for text, (*colour, opacity) in zip(ax.texts, fills(ax), strict=True):
        seen = opacity * np.array(colour) + (1 - opacity) * paper
        dark, bright = sorted((light(seen), light(to_rgb(text.get_color()))))
        assert (bright + 0.05) / (dark + 0.05) > 4.5


def test_given_axes_are_used_and_no_setting_is_changed() -> None:
    before = dict(plt.rcParams)
    ax = Figure().add_subplot()
    assert plot_token_map(TOKENS, range(len(TOKENS)), ax) is ax
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == before


def test_bad_arguments_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"image has shape \(2, 5, 4\)"):
        plot_unit_map(torch.rand(2, 5, 4), torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"values has shape \(4,\).*a layer with height and width"):
        plot_unit_map(torch.rand(5, 4), torch.zeros(4))
    with pytest.raises(ValueError, match="limit is 0, expected a number above 0"):
        plot_unit_map(torch.rand(5, 4), torch.zeros(2, 2), limit=0)
    with pytest.raises(TypeError, match=r"tokens must be a list of strings.*got one string"):
        plot_token_map("a film", [1.0])
    with pytest.raises(TypeError, match=r"tokens must be a list of strings.*other things"):
        plot_token_map([101, 7], [1.0, 2.0])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="tokens is empty"):
        plot_token_map([], [])
    with pytest.raises(ValueError, match=r"values has shape \(2, 3\), expected \(2,\): one number for each token"):
        plot_token_map(["a", "b"], torch.zeros(2, 3))
    with pytest.raises(ValueError, match="limit is -1, expected a number above 0"):
        plot_token_map(["a"], [1.0], limit=-1)
    assert plt.get_fignums() == []
