"""Which layers and which units carry the output, over the examples of a result, of many, or of a data set.

Positions are summed before anything else, so a channel is one number ``C`` for each example; absolute values
are taken of that number. Examples that were interrupted or hold NaN are left out; the tables count them in
``attrs["left_out"]``. Conductance: Dhamdhere, Sundararajan & Yan, 2018, arXiv:1805.12233.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from conductance.analysis._values import Floats, Groups, Results, check_top, statistics
from conductance.dataset_statistics import LayerStatistics
from conductance.errors import UnknownLayerError, check_choice

if TYPE_CHECKING:
    import pandas as pd

    from conductance.dataset_results import DatasetConductance

#: Share of a layer's ``Σ|C|`` that ``units_for_90`` asks for.
_MOST = 0.9


def layer_importance(result: Results, *, groups: Groups = None) -> "pd.DataFrame":
    """One row a layer: how much passes it, how much of that cancels, and how few units hold most of it.

    Parameters
    ----------
    result
        What `conductance.total_conductance` returned, a list of such results (of many batches), or what
        `conductance.dataset_conductance` returned. The same examples give the same table in all three forms.
    groups
        The group of each example, such as its class, over all results: a table for each group, one under the other.
        For statistics of a data set True, for the groups that they were made with.

    Returns
    -------
    pandas.DataFrame
        Layers in forward order, columns ``layer``, ``type``, ``units``, ``cut``; ``sum`` and ``abs``, the
        means over examples of ``Σ C`` and ``Σ|C|`` over units; ``cancellation``, the mean of
        ``1 - |Σ C| / Σ|C|`` (0: all units pull one way; nan where all are 0); ``units_for_90``, the fewest
        units that hold 90 % of ``abs``; ``coverage`` and ``coverage_error``, the means of
        ``Σ C / (F(x) - F(x'))`` and of its estimated error over examples whose output changes; ``error``,
        the largest estimated ``Σ|error| / Σ|C|``; ``output_change``, the mean of ``F(x) - F(x')``;
        ``standard_error``, that of ``sum``, from its spread between examples (nan of a single one); ``count``, the
        number of examples. With groups, ``group`` comes first, and groups are sorted. ``attrs`` counts all
        ``examples`` and those ``left_out``.

    Raises
    ------
    TypeError
        If ``result`` is none of these, or ``groups`` does not belong to it.
    ValueError
        If no example is finished, the list is empty, layers differ between its results, or there is not one group
        for each example.

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

    stats = statistics(result, groups)
    tables = []
    for group in _groups_of(stats, groups):
        rows = [_layer_row(layer, one) for layer, one in stats.compute(group).items()]
        tables.append(_labelled(pd.DataFrame(rows), group))
    table = pd.concat(tables, ignore_index=True).astype({"layer": str, "type": str})
    table.attrs.update(_counts(stats))
    return table


def rank_units(
    result: Results,
    by: Literal["mean_abs", "mean"] = "mean_abs",
    top: int | None = 20,
    *,
    layers: Sequence[str] | str | None = None,
    groups: Groups = None,
) -> "pd.DataFrame":
    """Rank the units with the largest conductance, over all examples, largest first.

    Every layer that is a cut splits the same change of the output, so the units of a narrow layer have more
    of it each: compare units within a layer, or layers of one width.

    Parameters
    ----------
    result
        What `conductance.total_conductance` returned, a list of such results (of many batches), or what
        `conductance.dataset_conductance` returned. The same examples give the same ranking in all three forms.
    by
        ``mean_abs`` ranks by the mean of ``|C|``; ``mean`` by the signed mean, most positive first.
    top
        Number of rows (of each group), at least 1. Fewer if there are fewer units; None is all units.
    layers
        Only units of these hook points; None is all.
    groups
        The group of each example, such as its class, over all results: a ranking for each group, one under the other.
        For statistics of a data set True, for the groups that they were made with.

    Returns
    -------
    pandas.DataFrame
        ``layer``, ``unit``; ``mean`` and ``mean_abs`` of the unit's conductance over examples;
        ``share_positive``, the share of examples where it is above 0; ``error``, the mean of its estimated
        absolute error, which bounds that of both means; ``std``, the standard deviation of its conductance between
        examples, and ``standard_error``, that of ``mean`` (both nan of a single example); ``count``, the number of
        examples. With groups, ``group`` comes first, and groups are sorted. Ties stay in forward order. ``attrs`` has
        ``by``, ``examples`` and ``left_out``.

    Raises
    ------
    TypeError
        If ``result`` is none of these, ``groups`` does not belong to it, or ``top`` is no whole number.
    ValueError
        If ``by`` is unknown, ``top`` below 1, ``layers`` or the list empty, no example finished, layers differ between
        results, or there is not one group for each example.
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
    >>> columns = ["layer", "unit", "mean", "mean_abs", "share_positive"]
    >>> rank_units(total, top=2)[columns].round(6)
      layer  unit  mean  mean_abs  share_positive
    0     0     1  -1.0       3.0             0.5
    1     0     0   2.0       2.0             1.0
    >>> rank_units(total, top=1, groups=["cat", "dog"])[["group", *columns]].round(6)
      group layer  unit  mean  mean_abs  share_positive
    0   cat     0     1  -4.0       4.0             0.0
    1   dog     0     0   3.0       3.0             1.0
    """
    import pandas as pd

    check_choice("by", by, ("mean_abs", "mean"))
    if top is not None:
        check_top(top)
    stats = statistics(result, groups)
    names = chosen_layers(stats, layers)
    tables = []
    for group in _groups_of(stats, groups):
        found = stats.compute(group)
        table = pd.concat([pd.DataFrame(_unit_columns(name, found[name])) for name in names], ignore_index=True)
        table = table.sort_values(by, ascending=False, kind="stable").iloc[:top]
        tables.append(_labelled(table, group))
    table = pd.concat(tables, ignore_index=True).astype({"layer": str})
    table.attrs.update(by=by, **_counts(stats))
    return table


class _Layered(Protocol):
    @property
    def layers(self) -> list[str]: ...


def chosen_layers(result: _Layered, layers: Sequence[str] | str | None) -> list[str]:
    """Check names of layers; None is all."""
    if layers is not None and not isinstance(layers, Iterable):
        msg = f"layers is {layers!r}; expected names of layers, or None for all."
        raise TypeError(msg)
    names = result.layers if layers is None else [layers] if isinstance(layers, str) else list(layers)
    if not names:
        msg = "layers is empty; give at least one name, or None for all."
        raise ValueError(msg)
    for name in names:
        if name not in result.layers:
            raise UnknownLayerError(name, result.layers)
    return list(dict.fromkeys(names))


def _groups_of(stats: "DatasetConductance", groups: Groups) -> list[Any]:
    """The groups that get a table; None is all examples together."""
    return [None] if groups is None or groups is False else stats.groups


def _labelled(table: "pd.DataFrame", group: Any) -> "pd.DataFrame":
    """Put the group first, if there is one."""
    if group is not None:
        table.insert(0, "group", [group] * len(table))  # a list, since a tuple would be taken for a column
    return table


def _counts(stats: "DatasetConductance") -> dict[str, int]:
    return {"examples": stats.count, "left_out": stats.left_out}


def _unit_columns(layer: str, found: LayerStatistics) -> dict[str, Any]:
    columns = ("mean", "mean_abs", "share_positive", "error", "std", "standard_error")
    return {
        "layer": layer,
        "unit": np.arange(found.info.units),
        **{column: getattr(found, column).numpy() for column in columns},
        "count": found.count,
    }


def _layer_row(layer: str, found: LayerStatistics) -> dict[str, Any]:
    return {
        "layer": layer,
        "type": found.info.module_type,
        "units": found.info.units,
        "cut": found.info.is_cut,
        "sum": found.sum,
        "abs": found.abs,
        "cancellation": found.cancellation,
        "units_for_90": _units_for(found.mean_abs.numpy(), _MOST),
        "coverage": found.coverage,
        "coverage_error": found.coverage_error,
        "error": found.relative_error,
        "output_change": found.output_change,
        "standard_error": found.sum_standard_error,
        "count": found.count,
    }


def _units_for(sizes: Floats, share: float) -> int:
    """Count the fewest units that hold a share of all; 0 if all are 0."""
    if not sizes.any():
        return 0
    reached = np.cumsum(np.sort(sizes)[::-1])
    # Rounding must not ask for one more unit where the share is met exactly.
    return int(np.searchsorted(reached, share * reached[-1] * (1 - 1e-12))) + 1
