"""Pictures of where conductance lies: over an image, over the tokens of a sentence.

Every function draws on ``ax``, or on a new figure, and returns the axes; none shows the figure or changes
matplotlib's settings. Blue is positive (pushes the target up), orange negative.
"""

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from conductance.analysis._drawing import (
    FAINT,
    as_array,
    check_limit,
    checked_axes,
    largest,
    new_axes,
    signed_colours,
    written,
)
from conductance.analysis._values import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: How much of the picture below the strongest colour of a map hides.
_OPACITY = 0.85
#: Lightness of red, green and blue.
_LIGHTNESS = np.array([0.299, 0.587, 0.114])
#: Size of the letters of tokens in points, largest and smallest; width and height of one for its size.
_LETTERS, _TINY, _WIDE, _HIGH = 10.0, 4.0, 0.62, 1.75
#: Signs that tokenizers write for a blank or the start of a word, and what is drawn.
_BLANKS = {"Ġ": "·", "▁": "·", " ": "·", "Ċ": "\\n"}


def plot_unit_map(image: Any, values: Any, ax: "Axes | None" = None, *, limit: float | None = None) -> "Axes":
    """Lay the conductance of a channel at each position over the image that it looks at.

    Parameters
    ----------
    image
        ``(height, width)`` or ``(1, height, width)``, drawn dark on light, or ``(3, height, width)``, drawn
        in greys, so that a colour always is conductance. Tensor or array, in any range.
    values
        ``(rows, columns)``: signed conductance, as `unit_map` returns it; stretched to the size of the image. NaN is
        not coloured.
    ax
        Where to draw; None makes a figure.
    limit
        The conductance of full colour, above 0; None is the largest absolute value. Give one limit to maps
        that are compared.

    Returns
    -------
    matplotlib.axes.Axes
        Two images without ticks: the input below, and the map in blue (positive) and orange (negative), the
        more opaque the larger.

    Raises
    ------
    ValueError
        If a shape or the limit does not fit.

    Examples
    --------
    >>> import torch
    >>> ax = plot_unit_map(torch.rand(1, 8, 6), torch.tensor([[1.0, -2.0], [0.0, 0.5]]))
    >>> [each.get_array().shape for each in ax.images]
    [(8, 6), (2, 2, 4)]
    """
    (picture, inverted), numbers = _picture(image), as_array(values)
    if numbers.ndim != 2:
        msg = (
            f"values has shape {numbers.shape}, expected (rows, columns): a map needs a layer with height "
            "and width, such as a convolution."
        )
        raise ValueError(msg)
    check_limit(limit)
    scale = largest(numbers) if limit is None else float(limit)
    ax = new_axes(2.0, 2.0) if ax is None else checked_axes(ax)
    height, width = picture.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    # Half of the way to black is enough: the colours above it have to be seen.
    low, high = float(picture.min()), float(picture.max())
    room = 1.1 * max(high - low, 1e-12)
    cmap, low, high = ("gray_r", low, high + room) if inverted else ("gray", low - room, high)
    ax.imshow(picture, extent=extent, interpolation="catrom", cmap=cmap, vmin=low, vmax=high)
    ax.imshow(signed_colours(numbers, scale, _OPACITY), extent=extent, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    return ax


def plot_token_map(
    tokens: Sequence[str], values: Any, ax: "Axes | None" = None, *, limit: float | None = None
) -> "Axes":
    """Write the tokens of a text in lines, each on the colour of its conductance.

    Parameters
    ----------
    tokens
        Text of each token, as the tokenizer gives it; signs for a blank (``Ġ``, ``▁``) are drawn as a dot, line ends
        and other control characters are spelt out.
    values
        ``(tokens,)``: signed conductance. NaN has no colour and a dotted frame.
    ax
        Where to draw; None makes a figure as high as the text needs. On given axes the letters shrink until it fits.
    limit
        The conductance of full colour, above 0; None is the largest absolute value. Give one limit to texts that are
        compared.

    Returns
    -------
    matplotlib.axes.Axes
        One text and one patch for each token, in reading order; the label below tells the scale.

    Raises
    ------
    TypeError
        If ``tokens`` is not a list of strings.
    ValueError
        If there are no tokens, ``values`` does not have one number for each, or the limit does not fit.

    Examples
    --------
    >>> ax = plot_token_map(["the", "film", "was", "##n't", "bad"], [0.0, 0.1, 0.2, 1.5, -0.7])
    >>> [text.get_text() for text in ax.texts]
    ['the', 'film', 'was', "##n't", 'bad']
    """
    from matplotlib.patches import Rectangle

    numbers = _checked_values(tokens, values)
    check_limit(limit)
    scale = largest(numbers) if limit is None else float(limit)
    written = [_written(token) for token in tokens]
    ax, letters, columns = _text_axes(ax, written)
    cells, lines = _laid_out(written, columns)
    ax.set_xlim(0, columns)
    ax.set_ylim(lines, 0)
    for (line, column, width), text, value, colour in zip(
        cells, written, numbers, signed_colours(numbers, scale, _OPACITY), strict=True
    ):
        frame = FAINT if np.isnan(value) else "none"
        ax.add_patch(Rectangle((column, line + 0.06), width, 0.88, facecolor=colour, edgecolor=frame, linestyle=":"))
        ink = _ink(colour, ax.get_facecolor())
        place = (column + width / 2, line + 0.5)
        ax.text(
            *place, text, ha="center", va="center_baseline", color=ink, size=letters, family="monospace",
            parse_math=False, clip_on=True,
        )  # fmt: skip
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.set_xlabel(f"blue pushes the target up, orange down; full colour = {scale:.3g}", fontsize="small", loc="left")
    return ax


def _checked_values(tokens: Any, values: Any) -> Floats:
    if isinstance(tokens, str) or not all(isinstance(token, str) for token in tokens):
        found = "one string" if isinstance(tokens, str) else "other things than strings"
        msg = f"tokens must be a list of strings, such as tokenizer.convert_ids_to_tokens(ids), got {found}."
        raise TypeError(msg)
    numbers = as_array(values)
    if not len(tokens):
        msg = "tokens is empty; expected at least one token."
        raise ValueError(msg)
    if numbers.shape != (len(tokens),):
        msg = (
            f"values has shape {numbers.shape}, expected ({len(tokens)},): one number for each token; of a layer "
            "(tokens, units) take one unit, or the sum."
        )
        raise ValueError(msg)
    return numbers


def _written(token: str) -> str:
    """Write what cannot be seen."""
    for sign, shown in _BLANKS.items():
        token = token.replace(sign, shown)
    return written(token) or "∅"


def _columns(text: str) -> float:
    """Width of a token in letters, with a margin; Chinese signs and the like are two wide, accents none."""
    signs = (2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text if not unicodedata.combining(sign))
    return sum(signs) + 0.8


def _text_axes(ax: "Axes | None", texts: Sequence[str]) -> tuple["Axes", float, float]:
    """Axes, size of the letters and letters in a line; a new figure is as high as the text, else the letters shrink."""
    if ax is None:
        inches = 7.0
        columns = max(inches * 72 / (_LETTERS * _WIDE), *(_columns(text) for text in texts))
        letters = inches * 72 / (columns * _WIDE)
        lines = _laid_out(texts, columns)[1]
        return new_axes(inches + 0.1, lines * letters * _HIGH / 72 + 0.35), letters, columns
    ax = checked_axes(ax)
    figure: Any = ax.get_figure()
    inches_wide, inches_high = figure.bbox.width / figure.dpi, figure.bbox.height / figure.dpi
    place = ax.get_position()
    width, height = place.width * inches_wide * 72, place.height * inches_high * 72
    letters = _LETTERS
    while True:
        columns = width / (letters * _WIDE)
        lines = _laid_out(texts, columns)[1]
        fits = lines * letters * _HIGH <= height and columns >= max(map(_columns, texts))
        if fits or letters <= _TINY:
            return ax, letters, columns
        letters *= 0.95


def _laid_out(texts: Sequence[str], columns: float) -> tuple[list[tuple[int, float, float]], int]:
    """Line, column and width of each token, and the number of lines."""
    cells, line, column = [], 0, 0.0
    for text in texts:
        width = _columns(text)
        if column and column + width > columns:
            line, column = line + 1, 0.0
        cells.append((line, column, width))
        column += width + 0.2
    return cells, line + 1


def _ink(colour: Floats, paper: Any) -> str:
    """Black or white, whichever can be read on a colour over the paper."""
    from matplotlib.colors import to_rgba

    below = np.array(to_rgba(paper))
    below = below[:3] * below[3] + (1 - below[3])  # a page that shows through is white
    seen = colour[3] * colour[:3] + (1 - colour[3]) * below
    linear = np.where(seen <= 0.04045, seen / 12.92, ((seen + 0.055) / 1.055) ** 2.4)
    light = float(linear @ np.array([0.2126, 0.7152, 0.0722]))
    return "#000000" if (light + 0.05) / 0.05 >= 1.05 / (light + 0.05) else "#ffffff"


def _picture(image: Any) -> tuple[Floats, bool]:
    """Write an image as greys ``(height, width)``; and whether large values are ink, not light."""
    picture = as_array(image)
    if picture.ndim == 3 and picture.shape[0] == 3:
        return np.tensordot(_LIGHTNESS, picture, axes=1), False
    if picture.ndim == 3 and picture.shape[0] == 1:
        picture = picture.squeeze(0)
    if picture.ndim != 2:
        expected = "(height, width), (1, height, width) or (3, height, width)"
        msg = f"image has shape {picture.shape}, expected {expected}."
        raise ValueError(msg)
    if not picture.size:
        msg = f"image has shape {picture.shape}, without a pixel; expected at least one."
        raise ValueError(msg)
    return picture, True
