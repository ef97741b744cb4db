"""Pictures of curves: ablation in an order, saturation along a path, accuracy of pruned networks.

Every function draws on ``ax``, or on a new figure, and returns the axes; none shows the figure or changes
matplotlib's settings. Curves differ in colour and in marker or line style; a band is the range of what is repeated.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from conductance.analysis._drawing import (
    BAND,
    FAINT,
    NEUTRAL,
    SERIES,
    draw_range,
    legend_below,
    legend_label,
    line_style,
    new_axes,
    open_frame,
)  # fmt: skip
from conductance.analysis._values import check_table
from conductance.analysis.saturation import COLUMNS, GRADIENT_NORM, INTEGRAND, OUTPUT, saturation_point
from conductance.errors import UnknownLayerError, check_choice

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Orders of an ablation curve, as its table names them.
FIRST, LAST, RANDOM = "most important first", "least important first", "random"
_ABLATION = ("order", "seed", "share")
_PRUNING = ("criterion", "amount", "seed", "fine_tuned")
_LABELS = {"score": "mean target", "accuracy": "accuracy", "loss": "loss"}
#: Inches of a new figure.
_SIZE = (7.0, 4.2)
#: Curves of layers that differ by at most this share of the area below them are drawn as one.
_ALIKE = 0.05
#: Letters up to which the names of layers that share a curve are all written.
_NAMED = 40
#: Layers that are told apart by colour; more are drawn in grey.
_MOST_LAYERS = len(SERIES) - 1


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
        Where to draw; None makes a figure.
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
    ax = new_axes(*_SIZE) if ax is None else ax
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


def plot_saturation_curve(
    curve: "pd.DataFrame",
    ax: "Axes | None" = None,
    *,
    example: int | None = None,
    layers: Sequence[str] | str | None = None,
) -> "Axes":
    """Draw how soon on the path the output is made, and where gradient and conductance come from.

    Where the output is flat, the gradient says nothing of what made it: the layers' conductance comes from the steep
    part. Layers that are cuts pass all of the change, so that their curves are one.

    Parameters
    ----------
    curve
        The table of `saturation_curve`.
    ax
        Where to draw; None makes a figure.
    example
        Its number; None draws the mean over all, and for the output a band that holds the middle four fifths.
    layers
        Whose integrands are drawn; None is all.

    Returns
    -------
    matplotlib.axes.Axes
        The output as the share of its change that is made, with a thin line where nine tenths are (the median of
        examples); the gradient norm and the integrands, each over its largest size on the path of the example. Layers
        whose curves agree are one line.

    Raises
    ------
    TypeError
        If ``curve`` is no table.
    ValueError
        If it lacks a column or the output, if there is no such example, or ``layers`` is empty.
    KeyError
        If there is no such layer.

    Examples
    --------
    >>> import pandas as pd
    >>> columns = {"example": 0, "alpha": [0.0, 0.5, 1.0], "quantity": "output", "layer": "", "value": [1.0, 5.0, 5.0]}
    >>> plot_saturation_curve(pd.DataFrame(columns)).get_lines()[0].get_ydata().tolist()
    [0.0, 1.0, 1.0]
    """
    check_table(curve, COLUMNS, "curve", "saturation_curve")
    if example is not None:
        known = curve["example"].unique().tolist()
        check_choice("example", example, known) if len(known) <= 12 else _check_example(example, known)
        curve = curve[curve["example"] == example]
    points = saturation_point(curve)
    own = curve[curve["quantity"] == INTEGRAND]
    names = _chosen(own["layer"].unique().tolist(), layers)
    made = ax is None
    ax = new_axes(*_SIZE) if ax is None else ax
    _draw_output(ax, _by_example(curve[curve["quantity"] == OUTPUT]), float(points["alpha"].median()))
    norm = curve[curve["quantity"] == GRADIENT_NORM]
    if len(norm):
        relative = _relative(_by_example(norm))
        ax.plot(relative.index, relative, label="gradient norm", color=FAINT, linestyle=":", linewidth=2.0, zorder=2.5)
    _draw_layers(ax, {name: _relative(_by_example(own[own["layer"] == name])) for name in names})
    ax.set_xlabel("place on the path: baseline 0, input 1")
    ax.set_ylabel("relative size")
    open_frame(ax)
    legend_below(ax, ax.get_legend_handles_labels()[0], grow=made)
    return ax


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
        Where to draw; None makes a figure.
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
    ax = new_axes(*_SIZE) if ax is None else ax
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


def _check_example(example: int, known: list[int]) -> None:
    if example not in known:
        msg = f"example is {example!r}, expected one of the {len(known)} in the table, {min(known)} to {max(known)}."
        raise ValueError(msg)


def _chosen(known: list[str], layers: Sequence[str] | str | None) -> list[str]:
    """Check names of layers; None is all."""
    names = known if layers is None else [layers] if isinstance(layers, str) else list(layers)
    if layers is not None and not names:
        msg = "layers is empty; give at least one name, or None for all."
        raise ValueError(msg)
    for name in names:
        if name not in known:
            raise UnknownLayerError(name, known)
    return names


def _by_seed(table: "pd.DataFrame", place: str, y: str) -> "pd.DataFrame":
    """Write a column as places × seeds."""
    return table.groupby([place, "seed"])[y].mean().unstack("seed")


def _by_example(table: "pd.DataFrame") -> "pd.DataFrame":
    """Write values as places × examples."""
    return table.groupby(["alpha", "example"])["value"].mean().unstack("example")


def _relative(table: "pd.DataFrame") -> "pd.Series[float]":
    """Divide each example's curve by its largest size, and take the mean over examples; zeros stay zeros."""
    largest = table.abs().max()
    return (table / largest.where(largest > 0, 1.0)).mean(axis=1)


def _draw_output(ax: "Axes", output: "pd.DataFrame", alpha: float) -> None:
    change = output.iloc[-1] - output.iloc[0]
    made = (output - output.iloc[0]) / change.where(change != 0)
    reached = f": 0.9 at {alpha:.2f}" if np.isfinite(alpha) else ": none"
    style = line_style(len(made), 0) | {"linewidth": 2.6, "zorder": 2.4}
    ax.plot(made.index, made.mean(axis=1), label=f"output, share of its change{reached}", **style)
    if made.shape[1] > 1:
        low, high = made.quantile(0.1, axis=1), made.quantile(0.9, axis=1)
        ax.fill_between(made.index, low, high, color=SERIES[0], alpha=BAND, linewidth=0)
    if np.isfinite(alpha):
        ax.axvline(alpha, color=FAINT, linewidth=0.8)


def _draw_layers(ax: "Axes", curves: "Mapping[str, pd.Series[float]]") -> None:
    """Draw integrands, those that agree as one line."""
    alike: list[list[str]] = []
    for name, values in curves.items():
        found = next((names for names in alike if _agree(curves[names[0]], values)), None)
        alike.append([name]) if found is None else found.append(name)
    for number, names in enumerate(alike, 1):
        together = ", ".join(names)
        told = together if len(names) == 1 or len(together) <= _NAMED else f"{names[0]} and {len(names) - 1} more"
        values = curves[names[0]]
        if len(alike) <= _MOST_LAYERS:
            ax.plot(values.index, values, label=f"integrand of {told}", **line_style(len(values), number))
            continue
        label = f"integrands of {len(curves)} layers" if number == 1 else None
        ax.plot(values.index, values, label=legend_label(label), color=NEUTRAL, linewidth=0.6, zorder=1.5)


def _agree(one: "pd.Series[float]", other: "pd.Series[float]") -> bool:
    """Whether curves differ by little; at kinks those of cuts do a bit, for the places are few."""
    return float((one - other).abs().sum()) <= _ALIKE * float(one.abs().sum())


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
