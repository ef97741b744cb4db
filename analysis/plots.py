"""Pictures of rankings and of where a unit responds.

Every function draws on ``ax``, or on a new figure, and returns the axes; none shows the figure or changes
matplotlib's settings. Blue is positive (pushes the target up), orange negative: colour-blind readers tell
them apart, and both stand out on white and on black.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from conductance.analysis.ranking import layer_importance, rank_units
from conductance.results import TotalConductance

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Colours of positive and negative conductance, and of sizes without a sign.
POSITIVE, NEGATIVE, NEUTRAL = "#2f7ed8", "#e8790c", "#a3adb8"
#: How much of the picture below the strongest colour of a map hides.
_OPACITY = 0.85
#: Lightness of red, green and blue.
_LIGHTNESS = np.array([0.299, 0.587, 0.114])


def plot_layer_bars(layers: "TotalConductance | pd.DataFrame", ax: "Axes | None" = None) -> "Axes":
    """Draw for each layer its mean ``Σ|C|`` (wide, grey) and its mean sum ``Σ C`` (narrow, coloured).

    Parameters
    ----------
    layers
        A result, or the table that `layer_importance` makes of it.
    ax
        Where to draw; None makes a figure whose layout leaves room for long names.

    Returns
    -------
    matplotlib.axes.Axes
        Horizontal bars in the order of the table, first at the top.

    Raises
    ------
    TypeError
        If ``layers`` is neither a result nor a table.
    ValueError
        If the table lacks a column.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"layer": ["conv", "fc"], "abs": [3.0, 2.5], "sum": [2.0, 2.0]})
    >>> ax = plot_layer_bars(table)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['conv', 'fc']
    """
    table = _table(layers, layer_importance, ("layer", "abs", "sum"))
    ax = _new_axes(len(table)) if ax is None else ax
    _bars(ax, list(table["layer"]), table["abs"].to_numpy(), table["sum"].to_numpy(), None)
    _legend(ax, "Σ|C| over units", "sum Σ C")
    ax.set_xlabel("mean conductance", loc="right")
    return ax


def plot_top_units(units: "TotalConductance | pd.DataFrame", ax: "Axes | None" = None) -> "Axes":
    """Draw for each unit its mean ``|C|`` (wide, grey, with its error) and its mean ``C`` (narrow, coloured).

    Parameters
    ----------
    units
        A result, or the table that `rank_units` makes of it.
    ax
        Where to draw; None makes a figure whose layout leaves room for long names.

    Returns
    -------
    matplotlib.axes.Axes
        Horizontal bars in the order of the table, first at the top.

    Raises
    ------
    TypeError
        If ``units`` is neither a result nor a table.
    ValueError
        If the table lacks a column.

    Examples
    --------
    >>> import pandas as pd
    >>> columns = {"layer": ["conv"], "unit": [3], "mean": [-0.5], "mean_abs": [1.5], "error": [0.1]}
    >>> plot_top_units(pd.DataFrame(columns)).get_yticklabels()[0].get_text()
    'conv · 3'
    """
    table = _table(units, rank_units, ("layer", "unit", "mean", "mean_abs", "error"))
    ax = _new_axes(len(table)) if ax is None else ax
    names = [f"{layer} · {unit}" for layer, unit in zip(table["layer"], table["unit"], strict=True)]
    errors = table["error"].to_numpy()
    _bars(ax, names, table["mean_abs"].to_numpy(), table["mean"].to_numpy(), errors)
    _legend(ax, "mean |C| ± error", "mean C")
    ax.set_xlabel("mean conductance", loc="right")
    return ax


def plot_unit_map(image: Any, values: Any, ax: "Axes | None" = None, *, limit: float | None = None) -> "Axes":
    """Lay the conductance of a channel at each position over the image that it looks at.

    Parameters
    ----------
    image
        ``(height, width)`` or ``(1, height, width)``, drawn dark on light, or ``(3, height, width)``, drawn
        in greys, so that a colour always is conductance. Tensor or array, in any range.
    values
        ``(rows, columns)``: signed conductance, as `unit_map` returns it; stretched to the size of the image.
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
    (picture, inverted), numbers = _picture(image), _array(values)
    if numbers.ndim != 2:
        msg = (
            f"values has shape {numbers.shape}, expected (rows, columns): a map needs a layer with height "
            "and width, such as a convolution."
        )
        raise ValueError(msg)
    largest = float(np.abs(numbers).max()) if limit is None else float(limit)
    if limit is not None and not 0 < largest < np.inf:
        msg = f"limit is {limit}, expected a number above 0."
        raise ValueError(msg)
    ax = _new_axes(1, 2.0) if ax is None else ax
    height, width = picture.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    # Half of the way to black is enough: the colours above it have to be seen.
    low, high = float(picture.min()), float(picture.max())
    room = 1.1 * max(high - low, 1e-12)
    cmap, low, high = ("gray_r", low, high + room) if inverted else ("gray", low - room, high)
    ax.imshow(picture, extent=extent, interpolation="catrom", cmap=cmap, vmin=low, vmax=high)
    ax.imshow(_signed_colours(numbers, largest), extent=extent, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    return ax


def _bars(ax: "Axes", names: list[str], sizes: Any, sums: Any, errors: Any) -> None:
    """Draw wide bars of sizes with narrow signed ones inside."""
    places = np.arange(len(names))
    whiskers = {} if errors is None else {"xerr": errors, "ecolor": "#6b7683", "capsize": 2}
    ax.barh(places, sizes, height=0.78, color=NEUTRAL, **whiskers)
    ax.barh(places, sums, height=0.4, color=[POSITIVE if value >= 0 else NEGATIVE for value in sums])
    ax.set_yticks(places, names)
    for label in ax.get_yticklabels():
        label.set_parse_math(False)  # a $ in a name is a $
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.axvline(0.0, color="#6b7683", linewidth=0.8)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)


def _legend(ax: "Axes", size: str, signed: str) -> None:
    """Explain the colours above the axes, where no bar can lie."""
    from matplotlib.patches import Patch

    entries = ((NEUTRAL, size), (POSITIVE, f"{signed} > 0"), (NEGATIVE, f"{signed} < 0"))
    handles = [Patch(color=color, label=label) for color, label in entries]
    ax.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=3,
        frameon=False,
        fontsize="small",
        columnspacing=1.0,
        handlelength=1.0,
        borderaxespad=0.2,
    )


def _new_axes(rows: int, width: float = 7.0) -> "Axes":
    from matplotlib import pyplot as plt

    height = width if width < 3 else 1.2 + 0.28 * rows
    _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    return ax


def _table(given: Any, make: Any, columns: tuple[str, ...]) -> "pd.DataFrame":
    """Make the table of a result, or check the one that was given."""
    import pandas as pd

    table = make(given) if isinstance(given, TotalConductance) else given
    if not isinstance(table, pd.DataFrame):
        msg = f"Expected a TotalConductance or the table of {make.__name__}, got {type(given).__name__}."
        raise TypeError(msg)
    missing = [column for column in columns if column not in table]
    if missing:
        msg = f"The table lacks the columns {missing}; pass what {make.__name__} returns."
        raise ValueError(msg)
    return table


def _array(values: Any) -> npt.NDArray[np.float64]:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _picture(image: Any) -> tuple[npt.NDArray[np.float64], bool]:
    """Write an image as greys ``(height, width)``; and whether large values are ink, not light."""
    picture = _array(image)
    if picture.ndim == 3 and picture.shape[0] == 3:
        return np.tensordot(_LIGHTNESS, picture, axes=1), False
    if picture.ndim == 3 and picture.shape[0] == 1:
        picture = picture.squeeze(0)
    if picture.ndim != 2:
        expected = "(height, width), (1, height, width) or (3, height, width)"
        msg = f"image has shape {picture.shape}, expected {expected}."
        raise ValueError(msg)
    return picture, True


def _signed_colours(values: npt.NDArray[np.float64], limit: float) -> npt.NDArray[np.float64]:
    """Write values as red, green, blue and opacity."""
    from matplotlib.colors import to_rgb

    colours = np.empty((*values.shape, 4))
    colours[..., :3] = np.where(values[..., None] >= 0, to_rgb(POSITIVE), to_rgb(NEGATIVE))
    colours[..., 3] = _OPACITY * np.clip(np.abs(values) / (limit or 1.0), 0.0, 1.0)
    return colours
