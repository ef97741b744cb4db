"""Results as tables: data frames, HTML, and one line of text."""

import html
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from conductance._findings import findings_of
from conductance._result_layers import counted, wide

if TYPE_CHECKING:
    import pandas as pd

    from conductance.results import TotalConductance


def to_text(result: "TotalConductance") -> str:
    """One line: sizes, cost and worst error."""
    worst = float(torch.tensor([_worst(error) for error in result.error.values()]).max())
    causes = dict.fromkeys(one.cause for one in findings_of(result.settings.get("diagnosis")))
    return (
        f"TotalConductance({counted(len(result), 'layer')}, {counted(len(result.status), 'example')}, "
        f"{int(result.converged.sum())} converged, median {_median(result.evaluations)} evaluations, "
        f"worst error {worst:.1e}{''.join(f', {cause}' for cause in causes)})"
    )


def diagnosis(result: "TotalConductance") -> tuple[str, ...]:
    """Sentences of the causes of zeros."""
    return tuple(str(one) for one in findings_of(result.settings.get("diagnosis")))


def to_dataframe(result: "TotalConductance", layer: str | None) -> "pd.DataFrame":
    """One row a layer, example and unit."""
    import pandas as pd

    names = result.layers if layer is None else [layer]
    values = [result.per_unit(name) for name in names]
    batch, units = len(result.status), [each.shape[1] for each in values]
    columns = {
        "layer": np.repeat(np.array(names, dtype=object), [batch * count for count in units]),
        "unit": np.concatenate([np.tile(np.arange(count), batch) for count in units]),
        "example": np.concatenate([np.repeat(np.arange(batch), count) for count in units]),
        "conductance": np.concatenate([_to_numpy(each) for each in values]),
        "error": np.concatenate([_to_numpy(result.unit_error[name]) for name in names]),
    }
    if result.spread is not None:
        spreads = [result.info[name].sum_positions(wide(result.spread[name])) for name in names]
        columns["spread"] = np.concatenate([_to_numpy(each) for each in spreads])
    return pd.DataFrame(columns).astype({"layer": str})


def summary(result: "TotalConductance") -> "pd.DataFrame":
    """One row a layer."""
    import pandas as pd

    return pd.DataFrame(_rows(result)).astype({"layer": str, "type": str})


def to_html(result: "TotalConductance") -> str:
    """Plain table for notebooks; whatever comes from the model is escaped."""
    other = Counter(status for status in result.status if status != "ok")
    parts = [
        counted(len(result.status), "example"),
        f"{int(result.converged.sum())} converged",
        f"median {_median(result.evaluations)} evaluations",
        *(f"{count} {status}" for status, count in other.items()),
    ]
    lines = [f"<p><b>TotalConductance</b>: {html.escape(', '.join(parts))}</p>", "<table>"]
    titles = ("layer", "type", "units", "sum", "coverage", "error")
    lines.append("<tr>" + "".join(f"<th>{title}</th>" for title in titles) + "</tr>")
    for row in _rows(result):
        coverage = "cut" if row["cut"] else f"{row['coverage']:.3g} ± {row['coverage_error']:.1g}"
        numbers = (row["units"], f"{row['conductance']:.4g}", coverage, f"{row['error']:.1e}")
        cells = (row["layer"], row["type"], *numbers)
        lines.append("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>")
    lines.append("</table>")
    lines += [f"<p>{html.escape(text)}</p>" for text in diagnosis(result)]
    return "\n".join(lines)


def _rows(result: "TotalConductance") -> list[dict[str, Any]]:
    """Say of each layer what a table of layers shows."""
    coverage, coverage_error, changes = result.coverage, result.coverage_error, result.output_change != 0
    rows = []
    for layer in result:
        info = result.info[layer]
        values = info.sum_positions(wide(result[layer]))
        row = {
            "layer": layer,
            "type": info.module_type,
            "units": info.units,
            "cut": info.is_cut,
            "conductance": float(values.sum(1).mean()),
            "abs": float(values.abs().sum(1).mean()),
            "coverage": _middle(coverage[layer][changes]),
            "coverage_error": _middle(coverage_error[layer][changes]),
            "error": _worst(result.error[layer]),
        }
        rows.append(row)
    return rows


def _to_numpy(tensor: Tensor) -> Any:
    """Flat float64 array; numpy has no bfloat16."""
    return tensor.detach().cpu().double().flatten().numpy()


def _worst(values: Tensor) -> float:
    """Largest entry: nan if there is one, or of none."""
    return float(values.max()) if values.numel() else float("nan")


def _middle(values: Tensor) -> float:
    """Median of those that are not nan; nan of none."""
    known = values[~values.isnan()]
    return float(np.median(_to_numpy(known))) if known.numel() else float("nan")


def _median(values: Tensor) -> int | None:
    """Lower median of integers, None of none."""
    return int(values.median()) if values.numel() else None
