"""Pictures of curves: what ablation in an order leaves of a network, and what pruning leaves.

Every function draws on ``ax``, or on a new figure, and returns the axes; none shows the figure or changes
matplotlib's settings. Curves differ in colour and in marker or line style; a band is the range of what is repeated.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from conductance.analysis._drawing import (
    CURVES,
    FAINT,
    NEUTRAL,
    draw_range,
    legend_below,
    line_style,
    new_axes,
    open_frame,
)  # fmt: skip
from conductance.analysis._values import check_table
from conductance.errors import check_choice

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Orders of an ablation curve, as its table names them.
FIRST, LAST, RANDOM = "most important first", "least important first", "random"
_ABLATION = ("order", "seed", "share")
_PRUNING = ("criterion", "amount", "seed", "fine_tuned")
_LABELS = {"score": "mean target", "accuracy": "accuracy", "loss": "loss"}


def plot_ablation_curve(
    curve: "pd.DataFrame | Mapping[str, pd.DataFrame]",
    ax: "Axes | None" = None,
    *,
    y: Literal["score", "accuracy"] = "score",
) -> "Axes":
    """Draw what is left of the target as units are ablated one after the other, beside random orders.

    A ranking is good where the curve of its most important units first falls early, below the band of random orders,
    and that of the least important first stays up.

    Parameters
    ----------
    curve
        The table of `ablation_curve`; or several by name, to be compared: each has a colour, its least important units
        first are dashed.
    ax
        Where to draw; None makes a figure with room for the legend below, as your own has with
        ``layout="constrained"``.
    y
        The column drawn: ``score``, the mean target, or ``accuracy``.

    Returns
    -------
    matplotlib.axes.Axes
        One line for each order, that of random orders their mean, with a band from the lowest to the highest. Random
        orders that several curves share are drawn once.

    Raises
    ------
    TypeError
        If ``curve`` is neither a table nor tables by name.
    ValueError
        If there is no curve, a table lacks a column or rows, ``y`` is unknown, or there is no number to draw.

    Examples
    --------
    >>> import pandas as pd
    >>> columns = {"order": ["most important first"] * 3, "seed": -1, "share": [0.0, 0.5, 1.0]}
    >>> ax = plot_ablation_curve(pd.DataFrame({**columns, "score": [4.0, 1.0, 0.5]}))
    >>> ax.get_lines()[0].get_ydata().tolist()
    [4.0, 1.0, 0.5]
    """
    check_choice("y", y, ("score", "accuracy"))
    curves = _checked_curves(curve, y)
    made = ax is None
    ax = new_axes(*CURVES) if ax is None else ax
    random: list[pd.DataFrame] = []
    for number, (name, table) in enumerate(curves.items()):
        orders = {str(order): _by_seed(own, "share", y) for order, own in table.groupby("order", sort=False)}
        for place, (order, dash) in enumerate(((FIRST, "-"), (LAST, "--"))):
            if order in orders:
                style = line_style(len(orders[order]), number if name else place)
                label = (name if order == FIRST else None) if name else order
                draw_range(ax, orders[order], label, style | {"linestyle": dash})
        if RANDOM in orders and not any(orders[RANDOM].equals(other) for other in random):
            random.append(orders[RANDOM])
    for number, orders_of_chance in enumerate(random):
        _draw_random(ax, orders_of_chance, labelled=number == 0)
    ax.set_xlabel("share of the units ablated")
    several = "" not in curves and any((table["order"] == LAST).any() for table in curves.values())
    return _finished(ax, y, "dashed: least important first" if several else "", grow=made)


def plot_pruning_curves(
    experiment: "pd.DataFrame", ax: "Axes | None" = None, *, y: Literal["accuracy", "loss"] = "accuracy"
) -> "Axes":
    """Draw what pruning by each criterion leaves of a network, against the share of units pruned.

    Parameters
    ----------
    experiment
        The table of `pruning_experiment`. Where it has several of ``value`` (what pruned units are held at), each
        criterion has a curve for each.
    ax
        Where to draw; None makes a figure with room for the legend below, as your own has with
        ``layout="constrained"``.
    y
        The column drawn: ``accuracy`` or ``loss``.

    Returns
    -------
    matplotlib.axes.Axes
        A line for each criterion, the mean over seeds, with a band from the lowest to the highest; dashed after
        fine-tuning.

    Raises
    ------
    TypeError
        If ``experiment`` is no table.
    ValueError
        If it lacks a column or rows, ``y`` is unknown, or there is no number to draw.

    Examples
    --------
    >>> import pandas as pd
    >>> columns = {"criterion": "conductance", "amount": [0.0, 0.5], "seed": 0, "fine_tuned": False}
    >>> ax = plot_pruning_curves(pd.DataFrame({**columns, "accuracy": [0.9, 0.6]}))
    >>> ax.get_lines()[0].get_label()
    'conductance'
    """
    check_choice("y", y, ("accuracy", "loss"))
    check_table(experiment, (*_PRUNING, y), "experiment", "pruning_experiment")
    _check_numbers(experiment, y, "experiment", "draw the other one of accuracy and loss")
    made = ax is None
    ax = new_axes(*CURVES) if ax is None else ax
    names = experiment["criterion"].astype(str)
    if "value" in experiment and experiment["value"].nunique() > 1:
        names = names + ", held at " + experiment["value"].astype(str)
    for number, name in enumerate(names.unique()):
        own = experiment[names == name]
        for tuned, part in own.groupby(own["fine_tuned"].astype(bool)):
            table = _by_seed(part, "amount", y)
            label = None if tuned and not own["fine_tuned"].all() else name
            draw_range(ax, table, label, line_style(len(table), number) | {"linestyle": "--" if tuned else "-"})
    ax.set_xlabel("share of the units pruned")
    return _finished(ax, y, "dashed: after fine-tuning" if experiment["fine_tuned"].any() else "", grow=made)


def _checked_curves(curve: Any, y: str) -> "dict[str, pd.DataFrame]":
    """Check ablation curves by name; one alone has none."""
    several = isinstance(curve, Mapping)
    curves = {str(name): table for name, table in curve.items()} if several else {"": curve}
    if not curves:
        msg = "curve holds no tables; give one that ablation_curve returns, or several by name."
        raise ValueError(msg)
    for name, table in curves.items():
        told = f"curve[{name!r}]" if several else "curve"
        check_table(table, (*_ABLATION, y), told, "ablation_curve")
        _check_numbers(table, y, told, "accuracy needs a loader with labels" if y == "accuracy" else "all are NaN")
    return curves


def _draw_random(ax: "Axes", table: "pd.DataFrame", *, labelled: bool) -> None:
    count = table.shape[1]
    label = f"random order, mean and range of {count}" if count > 1 else "random order"
    style: dict[str, Any] = {"color": NEUTRAL, "linewidth": 1.4, "zorder": 1.5}
    marks = {"marker": "."} if len(table) == 1 else {}
    draw_range(ax, table, label if labelled else None, style | marks)


def _check_numbers(table: "pd.DataFrame", column: str, name: str, hint: str) -> None:
    if table[column].isna().all():
        msg = f"{name} has no number in the column {column!r}; {hint}."
        raise ValueError(msg)


def _by_seed(table: "pd.DataFrame", place: str, y: str) -> "pd.DataFrame":
    """Write a column as places × seeds."""
    return table.groupby([place, "seed"])[y].mean().unstack("seed")


def _finished(ax: "Axes", y: str, dashed: str, *, grow: bool) -> "Axes":
    """Axes in per cent, and a legend that explains dashed lines where names cannot."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import PercentFormatter

    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    if y == "accuracy":
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_ylabel(_LABELS[y])
    open_frame(ax)
    handles = ax.get_legend_handles_labels()[0]
    if dashed:
        handles.append(Line2D([], [], color=FAINT, linestyle="--", linewidth=1.8, label=dashed))
    legend_below(ax, handles, grow=grow)
    return ax
