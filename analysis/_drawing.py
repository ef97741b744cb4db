"""What the pictures share: colours, new figures, legends, labels that fit, and checks of what is given.

The colours can be told apart by colour-blind readers (after Okabe and Ito), and stand out on white and on black.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from conductance.analysis._values import Floats

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Colours of positive and negative conductance, of sizes without a sign, and of thin lines.
POSITIVE, NEGATIVE, NEUTRAL, FAINT = "#2f7ed8", "#e8790c", "#a3adb8", "#6b7683"
#: Colours of curves that are told apart by name, and their markers.
SERIES = (POSITIVE, NEGATIVE, "#149a75", "#c765a8", "#9a8600", "#37b0e0", "#8f6fe0", "#c2504a")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
#: Inches of a new figure of curves.
CURVES = (7.0, 4.2)
#: Opacity of a band and, where several may lie over each other, of its inside and its edges; points that are marked.
BAND, _INSIDE, _EDGE, _FEW = 0.3, 0.15, 0.5, 24


def new_axes(width: float, height: float) -> "Axes":
    """Make a figure of some inches whose layout leaves room for long names."""
    from matplotlib import pyplot as plt

    _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    return ax


def checked_axes(ax: Any) -> "Axes":
    """Refuse what cannot be drawn on, such as a figure, or all that ``plt.subplots()`` gives."""
    from matplotlib.axes import Axes

    if not isinstance(ax, Axes):
        msg = (
            f"ax must be one matplotlib Axes, or None for a new figure, got {type(ax).__name__}: take one of "
            "plt.subplots()[1] or figure.axes."
        )
        raise TypeError(msg)
    return ax


def plain_text(ax: "Axes") -> None:
    """Draw names as they are: a ``$`` is no formula."""
    legend = ax.get_legend()
    for text in (*ax.get_xticklabels(), *ax.get_yticklabels(), *(legend.get_texts() if legend else ())):
        text.set_parse_math(False)


def written(name: str) -> str:
    """Spell out what would break a line or cannot be drawn: a name is one row."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in name)


def legend_label(name: str | None) -> str:
    """Label of a curve, None to keep it out of the legend; matplotlib leaves out ``""`` and what begins with ``_``."""
    return "_nolegend_" if name is None else written(f" {name}" if name[:1] in ("", "_") else name)


def legend_below(ax: "Axes", handles: Sequence[Any], *, grow: bool = False) -> None:
    """Put the legend below the label of the x axis, where it hides nothing, in as many columns as have room.

    ``grow`` makes the figure higher by what more than two rows take.
    """
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties
    from matplotlib.transforms import ScaledTranslation

    figure: Any = ax.get_figure()
    size = FontProperties(size=rcParams["xtick.labelsize"]).get_size_in_points()
    down = 11.0 + 1.3 * (size + FontProperties(size=rcParams["axes.labelsize"]).get_size_in_points())
    letters = [len(str(handle.get_label())) + 7 for handle in handles]
    points = ax.get_position().width * figure.bbox.width / figure.dpi * 72
    columns = _columns(letters, points / (0.46 * size))
    ax.legend(
        handles=list(handles),
        loc="upper right",
        bbox_to_anchor=(1.0, 0.0),
        bbox_transform=ax.transAxes + ScaledTranslation(0.0, -down / 72, figure.dpi_scale_trans),
        ncols=columns,
        frameon=False,
        fontsize="small",
        columnspacing=1.2,
        handlelength=1.8,
        borderaxespad=0.0,
    )
    plain_text(ax)
    if grow:
        figure.set_figheight(figure.get_figheight() + 1.4 * size / 72 * max(0, -(-len(handles) // columns) - 2))


def _columns(letters: Sequence[int], room: float) -> int:
    """Count the columns of a legend that fit beside each other, filled one after the other; at least one."""
    for columns in range(len(letters), 1, -1):
        rows = -(-len(letters) // columns)
        if sum(max(letters[first : first + rows]) for first in range(0, len(letters), rows)) <= room:
            return columns
    return 1


def open_frame(ax: "Axes") -> None:
    """Leave only the axes that are read."""
    ax.spines[["top", "right"]].set_visible(False)


def places_that_fit(ax: "Axes", count: int) -> slice:
    """Say which of some labels one below the other have room: all, or every n-th."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties

    figure: Any = ax.get_figure()
    points = ax.get_position().height * figure.bbox.height / figure.dpi * 72
    size = FontProperties(size=rcParams["ytick.labelsize"]).get_size_in_points()
    return slice(None, None, max(1, int(np.ceil(1.15 * size * count / max(points, 1.0)))))


def line_style(points: int, number: int) -> dict[str, Any]:
    """Colour of a curve, and markers where there are few points: one alone has no line."""
    turn, colour = divmod(number, len(SERIES))
    marks = {"marker": MARKERS[(colour + turn) % len(MARKERS)], "markersize": 5.0} if points <= _FEW else {}
    return {"color": SERIES[colour], "linewidth": 1.8, **marks}


def draw_range(ax: "Axes", table: "pd.DataFrame", label: str | None, style: dict[str, Any]) -> None:
    """Draw the mean of the columns over the index, with a band from the lowest to the highest if there are several."""
    places = table.index.to_numpy(np.float64)
    ax.plot(places, table.mean(axis=1).to_numpy(), label=legend_label(label), **style)
    if table.shape[1] > 1:
        low, high = table.min(axis=1).to_numpy(), table.max(axis=1).to_numpy()
        inside, edge = ((style["color"], opacity) for opacity in (_INSIDE, _EDGE))
        ax.fill_between(places, low, high, facecolor=inside, edgecolor=edge, linewidth=0.5)


def as_array(values: Any) -> Floats:
    """Write a tensor or what is like an array as float64."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def check_limit(limit: float | None) -> None:
    """Refuse a scale that is no number above 0."""
    if limit is not None and not 0 < float(limit) < np.inf:
        msg = f"limit is {limit}, expected a number above 0."
        raise ValueError(msg)


def signed_colours(values: Floats, limit: float, opacity: float) -> Floats:
    """Write values as red, green, blue and opacity; transparent where there is no number."""
    from matplotlib.colors import to_rgb

    colours = np.empty((*values.shape, 4))
    colours[..., :3] = np.where(values[..., None] >= 0, to_rgb(POSITIVE), to_rgb(NEGATIVE))
    colours[..., 3] = opacity * np.clip(np.nan_to_num(np.abs(values)) / (limit or 1.0), 0.0, 1.0)
    return colours


def largest(values: Floats) -> float:
    """Largest absolute value, 0 of none."""
    known = np.abs(values[np.isfinite(values)])
    return float(known.max()) if known.size else 0.0
