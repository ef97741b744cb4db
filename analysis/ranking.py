"""Which layers and which units carry the output, over the examples of one result.

Positions are summed before anything else, so a channel is one number ``C`` for each example; absolute values
are taken of that number. Examples that were interrupted or hold NaN are left out; the tables count them in
``attrs["left_out"]``. Conductance: Dhamdhere, Sundararajan & Yan, 2018, arXiv:1805.12233.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from conductance.analysis._values import Floats, UnitValues, as_floats, check_top, unit_values
from conductance.errors import check_choice
from conductance.results import TotalConductance

if TYPE_CHECKING:
    import pandas as pd

#: Share of a layer's ``Σ|C|`` that ``units_for_90`` asks for.
_MOST = 0.9


def layer_importance(result: TotalConductance) -> "pd.DataFrame":
    """One row a layer: how much passes it, how much of that cancels, and how few units hold most of it.

    Parameters
    ----------
    result
        What `conductance.total_conductance` returned.

    Returns
    -------
    pandas.DataFrame
        Layers in forward order, columns ``layer``, ``type``, ``units``, ``cut``; ``sum`` and ``abs``, the
        means over examples of ``Σ C`` and ``Σ|C|`` over units; ``cancellation``, the mean of
        ``1 - |Σ C| / Σ|C|`` (0: all units pull one way; nan where all are 0); ``units_for_90``, the fewest
        units that hold 90 % of ``abs``; ``coverage`` and ``coverage_error``, the means of
        ``Σ C / (F(x) - F(x'))`` and of its estimated error over examples whose output changes; ``error``,
        the largest estimated ``Σ|error| / Σ|C|``. ``attrs`` counts ``examples`` and those ``left_out``.

    Raises
    ------
    TypeError
        If ``result`` is not a result.
    ValueError
        If no example is finished.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> import conductance as cd
    >>> model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False)).double()
    >>> for layer, weight in zip(model, ([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]], [[3.0, -1.0, 5.0]])):
    ...     _ = nn.init.zeros_(layer.weight).data.add_(torch.tensor(weight))
    >>> total = cd.total_conductance(model, torch.ones(1, 2).double(), target=0)
    >>> layer_importance(total)[["layer", "units", "cut", "sum", "abs", "cancellation"]].round(6)
      layer  units   cut  sum  abs  cancellation
    0     0      3  True  1.0  5.0           0.8
    1     1      1  True  1.0  1.0           0.0
    """
    import pandas as pd

    found = unit_values(result)
    table = pd.DataFrame([_layer_row(result, layer, found) for layer in result])
    table = table.astype({"layer": str, "type": str})
    table.attrs.update(found.counts)
    return table


def rank_units(
    result: TotalConductance,
    by: Literal["mean_abs", "mean"] = "mean_abs",
    top: int = 20,
    *,
    layers: Sequence[str] | str | None = None,
) -> "pd.DataFrame":
    """Rank the units with the largest conductance, over all examples, largest first.

    Every layer that is a cut splits the same change of the output, so the units of a narrow layer have more
    of it each: compare units within a layer, or layers of one width.

    Parameters
    ----------
    result
        What `conductance.total_conductance` returned.
    by
        ``mean_abs`` ranks by the mean of ``|C|``; ``mean`` by the signed mean, most positive first.
    top
        Number of rows, at least 1. Fewer if there are fewer units.
    layers
        Only units of these hook points; None is all.

    Returns
    -------
    pandas.DataFrame
        ``layer``, ``unit``; ``mean`` and ``mean_abs`` of the unit's conductance over examples;
        ``share_positive``, the share of examples where it is above 0; ``error``, the mean of its estimated
        absolute error, which bounds that of both means. Ties stay in forward order. ``attrs`` has ``by``,
        ``examples`` and ``left_out``.

    Raises
    ------
    TypeError
        If ``result`` is not a result or ``top`` not a whole number.
    ValueError
        If ``by`` is unknown, ``top`` below 1, ``layers`` empty, or no example is finished.
    KeyError
        If there is no such layer.

    Examples
    --------
    For a sum of the units, the conductance of each is its value.

    >>> import torch
    >>> from torch import nn
    >>> import conductance as cd
    >>> model = nn.Sequential(nn.Identity())
    >>> x = torch.tensor([[1.0, -4.0, 2.0], [3.0, 2.0, 2.0]], dtype=torch.float64)
    >>> total = cd.total_conductance(model, x, target=lambda output: output.sum(1))
    >>> rank_units(total, top=2).round(6)
      layer  unit  mean  mean_abs  share_positive  error
    0     0     1  -1.0       3.0             0.5    0.0
    1     0     0   2.0       2.0             1.0    0.0
    """
    import pandas as pd

    check_choice("by", by, ("mean_abs", "mean"))
    check_top(top)
    found = unit_values(result)
    tables = [pd.DataFrame(_unit_columns(layer, found)) for layer in chosen_layers(result, layers)]
    table = pd.concat(tables, ignore_index=True).astype({"layer": str})
    table = table.sort_values(by, ascending=False, kind="stable").head(int(top)).reset_index(drop=True)
    table.attrs.update(by=by, **found.counts)
    return table


def chosen_layers(result: TotalConductance, layers: Sequence[str] | str | None) -> list[str]:
    """Check names of layers; None is all."""
    names = result.layers if layers is None else [layers] if isinstance(layers, str) else list(layers)
    if not names:
        msg = "layers is empty; give at least one name, or None for all."
        raise ValueError(msg)
    for name in names:
        result[name]
    return list(dict.fromkeys(names))


def _unit_columns(layer: str, found: UnitValues) -> dict[str, Any]:
    values = found.values[layer]
    return {
        "layer": layer,
        "unit": np.arange(values.shape[1]),
        "mean": values.mean(0),
        "mean_abs": np.abs(values).mean(0),
        "share_positive": (values > 0).mean(0),
        "error": found.errors[layer].mean(0),
    }


def _layer_row(result: TotalConductance, layer: str, found: UnitValues) -> dict[str, Any]:
    values, info = found.values[layer], result.info[layer]
    sums, sizes = values.sum(1), np.abs(values).sum(1)
    changes = as_floats(result.output_change)[found.examples] != 0
    return {
        "layer": layer,
        "type": info.module_type,
        "units": info.units,
        "cut": info.is_cut,
        "sum": sums.mean(),
        "abs": sizes.mean(),
        "cancellation": _mean(1 - np.abs(sums[sizes > 0]) / sizes[sizes > 0]),
        "units_for_90": _units_for(np.abs(values).mean(0), _MOST),
        "coverage": _mean(as_floats(result.coverage[layer])[found.examples][changes]),
        "coverage_error": _mean(as_floats(result.coverage_error[layer])[found.examples][changes]),
        "error": as_floats(result.error[layer])[found.examples].max(),
    }


def _units_for(sizes: Floats, share: float) -> int:
    """Count the fewest units that hold a share of all; 0 if all are 0."""
    if not sizes.any():
        return 0
    reached = np.cumsum(np.sort(sizes)[::-1])
    # Rounding must not ask for one more unit where the share is met exactly.
    return int(np.searchsorted(reached, share * reached[-1] * (1 - 1e-12))) + 1


def _mean(values: Floats) -> float:
    """Mean, nan of none."""
    return float(values.mean()) if values.size else float("nan")
