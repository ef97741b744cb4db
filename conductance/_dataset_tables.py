"""Statistics of a data set as a data frame, as HTML, and as one line of text."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import numpy as np

from conductance._result_layers import counted

if TYPE_CHECKING:
    import pandas as pd

    from conductance.dataset_results import DatasetConductance

#: What stands where examples are not grouped.
EVERY = "all"
_COLUMNS = (
    "mean",
    "mean_abs",
    "std",
    "standard_error",
    "share_positive",
    "smallest",
    "largest",
    "error",
    "largest_error",
)


def to_dataframe(stats: DatasetConductance, layer: str | None) -> pd.DataFrame:
    """One row a group, layer and unit."""
    import pandas as pd

    rows = [
        (EVERY if group is None else group, name, one)
        for group in stats.groups or [None]
        for name, one in stats.compute(group).items()
        if layer in (None, name)
    ]
    units = [one.info.units for _, _, one in rows]
    columns = {
        "layer": np.repeat(np.array([name for _, name, _ in rows], dtype=object), units),
        "unit": np.concatenate([np.arange(number) for number in units]),
        # A list, for tuples would become an axis of an array.
        "group": [group for (group, _, _), number in zip(rows, units, strict=True) for _ in range(number)],
        "count": np.repeat([one.count for _, _, one in rows], units),
        **{column: np.concatenate([getattr(one, column).numpy() for _, _, one in rows]) for column in _COLUMNS},
    }
    return pd.DataFrame(columns).astype({"layer": str})


def to_text(stats: DatasetConductance) -> str:
    """One line: sizes, and how sure it is."""
    return f"DatasetConductance({', '.join(_parts(stats))})"


def to_html(stats: DatasetConductance) -> str:
    """Plain table for notebooks, one row a layer; whatever comes from the model is escaped."""
    lines = [f"<p><b>DatasetConductance</b>: {html.escape(', '.join(_parts(stats)))}</p>"]
    if not stats.count:
        return lines[0]
    lines += ["<table>", _row("th", ("layer", "type", "units", "mean Σ C", "mean Σ|C|", "coverage", "error"))]
    for layer, one in stats.compute().items():
        coverage = "cut" if one.info.is_cut else f"{one.coverage:.3g} ± {one.coverage_error:.1g}"
        numbers = (f"{one.sum:.4g}", f"{one.abs:.4g}", coverage, f"{one.relative_error:.1e}")
        lines.append(_row("td", (layer, one.info.module_type, str(one.info.units), *numbers)))
    return "\n".join([*lines, "</table>"])


def _row(tag: str, cells: tuple[str, ...]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _parts(stats: DatasetConductance) -> list[str]:
    missed = sum(stats.unconverged.values())
    return [
        counted(len(stats.layers), "layer"),
        counted(stats.count, "example"),
        f"{stats.count - missed} converged",
        *([counted(len(stats.groups), "group")] if stats.groups else []),
        *([f"{stats.left_out} left out"] if stats.left_out else []),
        *(["interrupted"] if stats.interrupted else []),
    ]
