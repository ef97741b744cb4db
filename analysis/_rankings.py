"""Rankings of units that users give, checked against the layers of a model."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from conductance.errors import UnknownLayerError

if TYPE_CHECKING:
    import pandas as pd


def checked_ranking(ranking: "pd.DataFrame", units: Mapping[str, int], *, whole: bool) -> dict[str, list[int]]:
    """The units of each layer in the order of a ranking, most important first.

    Parameters
    ----------
    ranking
        One row a unit, columns ``layer`` and ``unit``.
    units
        How many units each layer of the model has.
    whole
        Whether every unit of the layers named must be in it.

    Raises
    ------
    TypeError
        If it is no table.
    ValueError
        If it has no rows or lacks a column, a unit is out of range, twice in it, or missing from it.
    UnknownLayerError
        If the model has no such layer.

    Examples
    --------
    >>> import pandas as pd
    >>> ranking = pd.DataFrame({"layer": ["fc2", "fc1", "fc1"], "unit": [0, 1, 0]})
    >>> checked_ranking(ranking, {"fc1": 2, "fc2": 1}, whole=True)
    {'fc2': [0], 'fc1': [1, 0]}
    """
    order: dict[str, list[int]] = {}
    for layer, unit in ranked_units(ranking, units):
        order.setdefault(layer, []).append(unit)
    for layer, found in order.items():
        if whole and len(found) < units[layer]:
            raise ValueError(
                f"ranking has {len(found)} of the {units[layer]} units of {layer!r}, and all are needed: rank "
                "them with top=None, as in rank_units(result, top=None)"
            )
    return order


def ranked_units(ranking: "pd.DataFrame", units: Mapping[str, int]) -> list[tuple[str, int]]:
    """The rows of a ranking as layer and unit, checked as by `checked_ranking`, over all layers in one order."""
    rows = _rows(ranking)
    seen: set[tuple[str, int]] = set()
    for layer, unit in rows:
        if layer not in units:
            raise UnknownLayerError(layer, units)
        if not 0 <= unit < units[layer]:
            raise ValueError(
                f"ranking has unit {unit} of {layer!r}, which has {units[layer]} (0 to {units[layer] - 1}): is it the "
                "ranking of another model?"
            )
        if (layer, unit) in seen:
            raise ValueError(f"ranking has unit {unit} of {layer!r} twice; expected one row a unit")
        seen.add((layer, unit))
    return rows


def ranked_layers(ranking: "pd.DataFrame") -> list[str]:
    """The layers that a ranking names, each once."""
    return list(dict.fromkeys(layer for layer, _ in _rows(ranking)))


def _rows(ranking: Any) -> list[tuple[str, int]]:
    columns = getattr(ranking, "columns", None)
    if columns is None:
        kind = type(ranking).__name__
        raise TypeError(f"ranking is a {kind}; expected a table with a row for each unit, as rank_units gives it")
    missing = [name for name in ("layer", "unit") if name not in columns]
    if missing:
        raise ValueError(f"ranking has no column {missing[0]!r}, only {', '.join(map(repr, columns))}")
    if not len(ranking):
        raise ValueError("ranking has no rows; expected one for each unit")
    numbers = np.asarray(ranking["unit"])
    if numbers.dtype.kind not in "iu":
        raise ValueError(f"ranking holds units of type {numbers.dtype}; expected whole numbers")
    layers = ranking["layer"].tolist()
    odd = next((layer for layer in layers if not isinstance(layer, str)), None)
    if odd is not None:
        raise ValueError(
            f"ranking holds layer {odd!r} of type {type(odd).__name__}; expected names: where a file turned '0' into "
            "0, read it with dtype={'layer': str}"
        )
    return list(zip(layers, numbers.tolist(), strict=True))
