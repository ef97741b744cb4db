"""Pictures of rankings as bars: layers, units, and measures of importance.

Every function draws on ``ax``, or on a new figure, and returns the axes; none shows the figure or changes
matplotlib's settings. Blue is positive (pushes the target up), orange negative: colour-blind readers tell
them apart, and both stand out on white and on black.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from conductance.analysis._drawing import (
    FAINT,
    NEGATIVE,
    NEUTRAL,
    POSITIVE,
    legend_below,
    new_axes,
    places_that_fit,
    plain_text,
)  # fmt: skip
from conductance.analysis._values import Results, check_table, check_top
from conductance.analysis.ranking import layer_importance, rank_units

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Inches: width of a new figure, height of a row, and height at most, whatever the number of rows.
_WIDTH, _ROW, _TALLEST = 7.0, 0.28, 18.0

#: Which way the columns of `compare_measures` are read that are no correlations.
_BETTER = {
    **dict.fromkeys(("area_first", "accuracy_first", "seconds"), " (less is better)"),
    **dict.fromkeys(("area_last", "accuracy_last"), " (more is better)"),
}


def plot_layer_bars(layers: "Results | pd.DataFrame", ax: "Axes | None" = None) -> "Axes":
    """Draw for each layer its mean ``Σ|C|`` (wide, grey) and its mean sum ``Σ C`` (narrow, coloured).

    Parameters
    ----------
    layers
        What `layer_importance` takes, or the table that it makes of it. With a column ``group`` the groups of a layer
        stand one below the other.
    ax
        Where to draw; None makes a figure whose layout leaves room for long names and the legend below, as your own
        does with ``layout="constrained"``. Where there is no room for all names, every n-th is written.

    Returns
    -------
    matplotlib.axes.Axes
        Horizontal bars in the order of the table, first at the top.

    Raises
    ------
    TypeError
        If ``layers`` is none of these.
    ValueError
        If the table lacks a column or has no rows.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"layer": ["conv", "fc"], "abs": [3.0, 2.5], "sum": [2.0, 2.0]})
    >>> ax = plot_layer_bars(table)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['conv', 'fc']
    """
    table = _table(layers, layer_importance, ("layer", "abs", "sum"))
    if "group" in table:
        order = {layer: number for number, layer in enumerate(table["layer"].unique())}
        table = table.sort_values("layer", key=lambda names: names.map(order), kind="stable")
    ax = _bar_axes(len(table)) if ax is None else ax
    names = _names(table, "layer")
    _bars(ax, names, table["abs"].to_numpy(), table["sum"].to_numpy(), None)
    _legend(ax, "Σ|C| over units", "sum Σ C")
    return ax


def plot_top_units(units: "Results | pd.DataFrame", ax: "Axes | None" = None, *, top: int = 50) -> "Axes":
    """Draw for each unit its mean ``|C|`` (wide, grey, with its error) and its mean ``C`` (narrow, coloured).

    Parameters
    ----------
    units
        What `rank_units` takes, of which the first 20 are drawn, or the table that it makes; with a column ``group``
        a unit is named with its group.
    ax
        Where to draw; None makes a figure whose layout leaves room for long names and the legend below, as your own
        does with ``layout="constrained"``.
    top
        Rows that are drawn at most, at least 1: the first of the table. How many there are, and which share of their
        ``mean_abs`` is drawn, stands below.

    Returns
    -------
    matplotlib.axes.Axes
        Horizontal bars in the order of the table, first at the top.

    Raises
    ------
    TypeError
        If ``units`` is none of these, or ``top`` is no whole number.
    ValueError
        If the table lacks a column or has no rows, or ``top`` is below 1.

    Examples
    --------
    >>> import pandas as pd
    >>> columns = {"layer": ["conv"], "unit": [3], "mean": [-0.5], "mean_abs": [1.5], "error": [0.1]}
    >>> plot_top_units(pd.DataFrame(columns)).get_yticklabels()[0].get_text()
    'conv · 3'
    """
    check_top(top)
    whole = _table(units, rank_units, ("layer", "unit", "mean", "mean_abs", "error"))
    table = whole.head(int(top))
    ax = _bar_axes(len(table)) if ax is None else ax
    names = _names(table, "layer", "unit")
    _bars(ax, names, table["mean_abs"].to_numpy(), table["mean"].to_numpy(), table["error"].to_numpy())
    if len(table) < len(whole):
        part = table["mean_abs"].sum() / (whole["mean_abs"].sum() or 1.0)
        ax.set_xlabel(f"mean conductance; first {len(table)} of {len(whole):,} rows: {part:.0%}", loc="right")
    _legend(ax, "mean |C| ± error", "mean C")
    return ax


def plot_measures(table: "pd.DataFrame", ax: "Axes | None" = None, *, by: str = "pearson") -> "Axes":
    """Draw how well each measure of importance agrees with what holding the units does.

    Parameters
    ----------
    table
        The table of `compare_measures`, or several of them (other seeds, other networks) one under the other.
    ax
        Where to draw; None makes a figure.
    by
        The column drawn, such as ``pearson``, ``spearman``, ``unit_pearson`` or ``area_first``; where more is not
        better, the label says so.

    Returns
    -------
    matplotlib.axes.Axes
        A bar for each measure in the order of the table, the mean over its rows, with its number behind it; a whisker
        from the lowest to the highest if there are several. What is NaN has no bar.

    Raises
    ------
    TypeError
        If ``table`` is no table.
    ValueError
        If it lacks a column or has no rows.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"measure": ["conductance", "activation"] * 2, "pearson": [0.99, 0.2, 0.97, 0.3]})
    >>> ax = plot_measures(table)
    >>> [float(bar.get_width().round(2)) for bar in ax.patches]
    [0.98, 0.25]
    """
    check_table(table, ("measure", by), "table", "compare_measures")
    grouped = table.groupby("measure", sort=False)[by]
    mean, low, high = grouped.mean(), grouped.min(), grouped.max()
    ax = _bar_axes(len(mean)) if ax is None else ax
    colours = [POSITIVE if value >= 0 else NEGATIVE for value in mean]
    ax.barh(np.arange(len(mean)), mean, height=0.7, color=colours)
    if grouped.size().max() > 1:
        whiskers = np.maximum([mean - low, high - mean], 0.0)  # of equal numbers the mean may be off by rounding
        ax.errorbar(mean, np.arange(len(mean)), xerr=whiskers, fmt="none", ecolor=FAINT, capsize=3)
    for row, (value, end) in enumerate(zip(mean, high.clip(lower=0), strict=True)):
        text = "–" if np.isnan(value) else f"{value:.2f}".replace("-", "−")
        place = (0.0 if np.isnan(value) else end, row)
        ax.annotate(text, place, (6, 0), textcoords="offset points", va="center", fontsize="small")
    _name_rows(ax, [str(name) for name in mean.index])
    ax.axvline(0.0, color=FAINT, linewidth=0.8)
    ax.margins(x=0.12)
    several = ", mean and range" if table.groupby("measure").size().max() > 1 else ""
    ax.set_xlabel(f"{by}{several}{_BETTER.get(by, '')}", loc="right")
    return ax


def _bars(ax: "Axes", names: list[str], sizes: Any, sums: Any, errors: Any) -> None:
    """Draw wide bars of sizes with narrow signed ones inside."""
    places = np.arange(len(names))
    whiskers = {} if errors is None else {"xerr": errors, "ecolor": FAINT, "capsize": 2}
    ax.barh(places, sizes, height=0.78, color=NEUTRAL, **whiskers)
    ax.barh(places, sums, height=0.4, color=[POSITIVE if value >= 0 else NEGATIVE for value in sums])
    _name_rows(ax, names)
    ax.axvline(0.0, color=FAINT, linewidth=0.8)
    ax.set_xlabel("mean conductance", loc="right")


def _name_rows(ax: "Axes", names: Sequence[str]) -> None:
    """Write the names of rows, the first at the top, as many as have room."""
    shown = places_that_fit(ax, len(names))
    ax.set_yticks(np.arange(len(names))[shown], names[shown])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    plain_text(ax)


def _names(table: "pd.DataFrame", *columns: str) -> list[str]:
    """Join what names a row, its group behind it."""
    parts = (table[column].astype(str) for column in columns)
    names = [" · ".join(each) for each in zip(*parts, strict=True)]
    if "group" not in table:
        return names
    return [f"{name} ({group})" for name, group in zip(names, table["group"], strict=True)]


def _legend(ax: "Axes", size: str, signed: str) -> None:
    """Explain the colours below the axes, where no bar can lie."""
    from matplotlib.patches import Patch

    entries = ((NEUTRAL, size), (POSITIVE, f"{signed} > 0"), (NEGATIVE, f"{signed} < 0"))
    legend_below(ax, [Patch(color=color, label=label) for color, label in entries])


def _bar_axes(rows: int) -> "Axes":
    return new_axes(_WIDTH, min(1.2 + _ROW * rows, _TALLEST))


def _table(given: Any, make: Callable[[Any], "pd.DataFrame"], columns: tuple[str, ...]) -> "pd.DataFrame":
    """Make the table of a result, or check the one that was given."""
    import pandas as pd

    name = make.__name__
    try:
        table = given if isinstance(given, pd.DataFrame) else make(given)
    except TypeError as error:
        found = type(given).__name__
        msg = f"Expected a TotalConductance, several, a DatasetConductance or the table of {name}, got {found}."
        raise TypeError(msg) from error
    check_table(table, columns, "the table", name)
    return table
