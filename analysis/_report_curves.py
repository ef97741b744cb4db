"""The parts of a report about classes, ablation and saturation, as plain values."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from conductance.analysis._pictures import BAR, BARS, CURVE, chart
from conductance.analysis._report_parts import number, share
from conductance.analysis._values import check_table
from conductance.analysis.ablation import curve_area
from conductance.analysis.plot_curves import plot_ablation_curve
from conductance.analysis.plot_saturation import plot_saturation_curve
from conductance.analysis.plots import plot_layer_bars
from conductance.analysis.ranking import layer_importance
from conductance.analysis.saturation import COLUMNS, saturation_point
from conductance.dataset_results import DatasetConductance
from conductance.results import TotalConductance

if TYPE_CHECKING:
    import pandas as pd

#: Rows of the picture of layers by class, at most, but for one layer.
_ROWS = 40


def check_curves(ablations: Any, saturations: Any) -> None:
    """Refuse what are not tables of curves by name."""
    for argument, tables, columns in (
        ("ablations", ablations, ("order", "seed", "share", "score", "accuracy")),
        ("saturations", saturations, COLUMNS),
    ):
        maker = "ablation_curve" if argument == "ablations" else "saturation_curve"
        if not isinstance(tables, Mapping):
            msg = f"{argument} must be tables of {maker} by name, a dict, got {type(tables).__name__}."
            raise TypeError(msg)
        for title, table in tables.items():
            check_table(table, columns, f"{argument}[{title!r}]", maker)


def groups_part(result: TotalConductance | DatasetConductance, layers: Sequence[str], groups: Any) -> dict[str, Any]:
    """Gather the bars of layers class by class, and what they say; the last layers if there is not room for all."""
    table = layer_importance(result, groups=groups)
    count = table["group"].nunique()
    shown = list(layers)[-max(1, _ROWS // count) :]
    table = table[table["layer"].isin(shown)]
    last = table[table["layer"] == shown[-1]].sort_values("units_for_90", kind="stable")
    few, many = last.iloc[0], last.iloc[-1]
    words = f"{_listed(shown)}, {count} {'class' if count == 1 else 'classes'}."
    if few["units_for_90"] < many["units_for_90"]:
        words += (
            f" In {shown[-1]} nine tenths of Σ|C| are held by {few['units_for_90']} of {few['units']} units for class "
            f"{few['group']}, and by {many['units_for_90']} for class {many['group']}."
        )
    return {"words": words, "chart": chart(lambda ax: plot_layer_bars(table, ax), BARS + BAR * len(table))}


def ablation_part(curves: "Mapping[str, pd.DataFrame]") -> dict[str, Any]:
    """Gather the picture of ablations by name, and the areas below their curves."""
    drawn = {name: curve for name, curve in curves.items() if curve["score"].notna().any()}
    whole = next(iter(curves.values()))
    start = whole.loc[whole["share"] == 0, "score"]
    known = {name: str(whole.attrs[name]) for name in ("value", "units", "examples") if name in whole.attrs}
    return {
        "chart": chart(lambda ax: plot_ablation_curve(drawn, ax), CURVE) if drawn else None,
        "rows": [row for name, curve in curves.items() for row in _areas(name, curve)],
        "whole": number(float(start.iloc[0])) if len(start) else "–",
        "known": "{units} units, held at their {value} value; {examples} examples.".format(**known)
        if len(known) == 3
        else "",
    }


def _areas(name: str, curve: "pd.DataFrame") -> list[dict[str, Any]]:
    return [
        {
            "order": f"{name}: {order}" + (f", mean of {len(own)}" if len(own) > 1 else ""),
            "score": number(float(own["score"].mean())),
            "accuracy": share(float(own["accuracy"].mean())),
        }
        for order, own in curve_area(curve).groupby("order", sort=False)
    ]


def saturation_part(title: str, curve: "pd.DataFrame") -> dict[str, Any]:
    """Gather the picture of what happens along the path, and where most of the change is made."""
    points = saturation_point(curve)["alpha"]
    median = float(points.median()) if points.notna().any() else float("nan")
    words = "The output does not change along the path."
    if np.isfinite(median):
        words = f"Nine tenths of the change are made at {median:.2f} of the path"
        words += " (median)." if len(points) > 1 else "."
    return {"title": title, "words": words, "chart": chart(lambda ax: plot_saturation_curve(curve, ax), CURVE)}


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
