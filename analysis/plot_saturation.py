"""The picture of a saturation curve: how soon the output is made, and where gradient and conductance come from.

Drawn on ``ax`` or on a new figure, in the colours of the other pictures; nothing is shown, no setting is changed.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from conductance.analysis._drawing import (
    BAND,
    CURVES,
    FAINT,
    NEUTRAL,
    SERIES,
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

#: Curves of layers that differ by at most this share of the area below them are drawn as one.
_ALIKE = 0.05
#: Letters up to which the names of layers that share a curve are all written.
_NAMED = 40
#: Layers that are told apart by colour; more are drawn in grey.
_MOST_LAYERS = len(SERIES) - 1


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
        Where to draw; None makes a figure with room for the legend below, as your own has with
        ``layout="constrained"``.
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
    ax = new_axes(*CURVES) if ax is None else ax
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
