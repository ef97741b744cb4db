"""The parts of a report as plain values, numbers written out; the template only lays them out."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from conductance.analysis._pictures import BAR, BARS, MapPicture, chart, map_pictures
from conductance.analysis._values import as_floats
from conductance.analysis.plots import plot_layer_bars, plot_top_units
from conductance.analysis.ranking import layer_importance, rank_units
from conductance.analysis.responses import top_unit_by_group
from conductance.dataset_results import DatasetConductance
from conductance.flow_results import ConductanceFlow
from conductance.results import TotalConductance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Units of each layer whose examples are drawn, examples for each of them, and examples for each class.
_DRAWN, _EXAMPLES, _OF_CLASS = 3, 5, 3


def facts_of(result: TotalConductance | ConductanceFlow | DatasetConductance, left_out: int) -> dict[str, str]:
    """Say what the result knows about itself."""
    settings = result.settings
    rtol, steps, seconds = settings.get("rtol"), settings.get("n_steps"), settings.get("seconds")
    examples, converged, counts, largest, evaluations = _run(result)
    other = "".join(f", {count} {status}" for status, count in counts.items())
    facts = {
        "Examples explained": f"{examples}",
        "Tolerance asked": f"{rtol:g}" if isinstance(rtol, float) else f"none, {steps} evaluations",
        "Largest estimated error": "–" if math.isnan(largest) else f"{largest:.2g}",
        "Converged": f"{converged} of {examples}{other}",
        "Evaluations for each": evaluations,
    }
    if left_out:
        facts["Left out of all tables"] = f"{left_out} unfinished"
    if isinstance(seconds, int | float):
        facts["Time to explain"] = f"{seconds:.1f} s"
    return facts


def _run(
    result: TotalConductance | ConductanceFlow | DatasetConductance,
) -> tuple[int, int, dict[str, int], float, str]:
    """Examples, those that converged, the others by status, the largest error, and evaluations for each."""
    if isinstance(result, DatasetConductance):
        counts = result.unconverged | ({"left out": result.left_out} if result.left_out else {})
        converged = result.count - sum(result.unconverged.values())
        largest = max(layer.relative_error for layer in result.compute().values())
        examples = result.count + result.left_out
        return examples, converged, counts, largest, f"mean {result.evaluations / examples:.0f}"
    found = Counter(status for status in result.status if status != "ok")
    errors = np.concatenate([as_floats(error) for error in result.error.values()])
    known = errors[~np.isnan(errors)]
    evaluations = f"median {int(result.evaluations.median())}, at most {int(result.evaluations.max())}"
    largest = float(known.max()) if len(known) else float("nan")
    return len(result.status), int(result.converged.sum()), dict(found), largest, evaluations


def layers_part(result: TotalConductance | DatasetConductance) -> dict[str, Any]:
    """Gather the table and the chart of all layers."""
    table = layer_importance(result)
    rows = [
        {
            "layer": row["layer"],
            "type": row["type"],
            "units": row["units"],
            "cut": "yes" if row["cut"] else "no",
            "sum": number(row["sum"], "+"),
            "abs": number(row["abs"]),
            "cancellation": share(row["cancellation"]),
            "units_for_90": row["units_for_90"],
            "coverage": f"{row['coverage']:.3f}".replace("-", "−") + f" ± {row['coverage_error']:.1g}",
            "error": f"{row['error']:.1g}",
        }
        for row in table.to_dict("records")
    ]
    return {"rows": rows, "chart": chart(lambda ax: plot_layer_bars(table, ax), BARS + BAR * len(table))}


def units_part(
    result: TotalConductance | DatasetConductance, layer: str, top: int, images: Any, captions: Sequence[str]
) -> dict[str, Any]:
    """Gather what is shown of one layer's units."""
    units = rank_units(result, top=top, layers=layer)
    rows = [
        {
            "unit": row["unit"],
            "mean": number(row["mean"], "+"),
            "mean_abs": number(row["mean_abs"]),
            "share": share(row["share_positive"]),
            "error": f"{row['error']:.1g}",
        }
        for row in units.to_dict("records")
    ]
    maps: dict[int, list[MapPicture]] = {}
    if images is not None and isinstance(result, TotalConductance) and _has_maps(result, layer):
        for unit in units["unit"].head(_DRAWN).tolist():
            maps[unit] = map_pictures(result, layer, unit, images=images, captions=captions, top=_EXAMPLES)
    info = result.info[layer]

    def draw(ax: "Axes") -> None:
        plot_top_units(units, ax).set_yticks(range(len(units)), [f"unit {unit}" for unit in units["unit"]])

    drawing = chart(draw, BARS + BAR * len(units))
    known = {"layer": layer, "type": info.module_type, "of": info.units}
    return {**known, "rows": rows, "chart": drawing, "maps": maps}


def classes_part(
    result: TotalConductance | DatasetConductance, layer: str, groups: Any, images: Any, captions: Sequence[str]
) -> list[dict[Hashable, Any]]:
    """Gather the top unit of each class, with the examples of that class that drive it most."""
    rows = []
    for row in top_unit_by_group(result, layer, groups).to_dict("records"):
        pictures: list[MapPicture] = []
        if row["mean"] <= 0:
            rows.append({**row, "unit": "none", "mean": "–", "share": "–", "maps": pictures})
            continue
        if images is not None and isinstance(result, TotalConductance) and _has_maps(result, layer):
            members = np.flatnonzero(np.asarray(groups) == row["group"]).tolist()
            pictures = map_pictures(
                result.select(members),
                layer,
                row["unit"],
                images=[images[number] for number in members],
                captions=[captions[number] for number in members],
                top=_OF_CLASS,
            )
        row.update(mean=number(row["mean"], "+"), share=share(row["share"]), maps=pictures)
        rows.append(row)
    return rows


def _has_maps(result: TotalConductance, layer: str) -> bool:
    """Whether a unit of this layer has height and width."""
    info = result.info[layer]
    return len(info.shape) == 3 and info.unit_groups is None


def number(value: float, sign: str = "") -> str:
    """Write three digits, zeros at the end too, so that columns line up."""
    return "–" if math.isnan(value) else f"{value:{sign}#.3g}".rstrip(".")


def share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.0%}".replace("-", "−")
