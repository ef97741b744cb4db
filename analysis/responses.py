"""What a unit responds to: the examples that drive it most, where in them, and the top unit of each class.

The map of a channel is its conductance at each position, before the sum; it adds up to the unit's conductance
(Dhamdhere, Sundararajan & Yan, 2018, arXiv:1805.12233).
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from conductance.analysis._values import Floats, as_floats, check_result, check_top, statistics, unit_values
from conductance.analysis.ranking import chosen_layers
from conductance.dataset_results import DatasetConductance
from conductance.results import TotalConductance

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float


def strongest_examples(result: TotalConductance, layer: str, unit: int, *, top: int = 5) -> "pd.DataFrame":
    """Find the examples in which a unit has the highest conductance.

    Parameters
    ----------
    result
        What `conductance.total_conductance` returned.
    layer, unit
        The hook point and the number of its unit, from 0.
    top
        Number of rows, at least 1. Fewer if there are fewer examples.

    Returns
    -------
    pandas.DataFrame
        ``example``, its ``conductance`` (signed, positions summed) and the estimated absolute ``error``, most
        positive first. Unfinished examples are left out.

    Raises
    ------
    TypeError
        If ``result`` is not a result or ``top`` not a whole number.
    ValueError
        If ``top`` is below 1, or no example is finished.
    KeyError, IndexError
        If there is no such layer or unit.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> import conductance as cd
    >>> x = torch.tensor([[1.0, -4.0], [3.0, 2.0], [0.0, 9.0]], dtype=torch.float64)
    >>> total = cd.total_conductance(nn.Sequential(nn.Identity()), x, target=1)
    >>> strongest_examples(total, "0", 1, top=2).round(6)
       example  conductance  error
    0        2          9.0    0.0
    1        1          2.0    0.0
    """
    import pandas as pd

    check_top(top)
    found = unit_values(result)
    _check_unit(result, layer, unit)
    values = found.values[layer][:, unit]
    order = np.argsort(-values, kind="stable")[:top]
    columns = {
        "example": found.examples[order],
        "conductance": values[order],
        "error": found.errors[layer][order, unit],
    }
    return pd.DataFrame(columns)


def unit_map(result: TotalConductance, layer: str, unit: int, *, example: int) -> 'Float[Tensor, "*positions"]':
    """Take the conductance of one unit at each position of a layer, for one example.

    Parameters
    ----------
    result
        What `conductance.total_conductance` returned.
    layer, unit
        The hook point and the number of its unit, from 0.
    example
        Number of the example, from 0.

    Returns
    -------
    Tensor
        ``(*positions)``, signed: height and width of a channel, places of a sequence, no axis for a plain
        unit. A group of entries, such as a head, is summed over the group.

    Raises
    ------
    TypeError
        If ``result`` is not a result.
    KeyError, IndexError
        If there is no such layer, unit or example.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> import conductance as cd
    >>> image = torch.arange(6.0).reshape(1, 1, 2, 3).double()
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False)).double()
    >>> _ = nn.init.constant_(model[0].weight, 0.5)
    >>> total = cd.total_conductance(model, image, target=lambda output: output.sum((1, 2, 3)))
    >>> unit_map(total, "0", 3, example=0).round(decimals=6)
    tensor([[0.0000, 0.5000, 1.0000],
            [1.5000, 2.0000, 2.5000]], dtype=torch.float64)
    """
    check_result(result)
    _check_unit(result, layer, unit)
    if not 0 <= example < len(result.status):
        msg = f"There is no example {example}: the result has {len(result.status)}, numbered from 0."
        raise IndexError(msg)
    info, values = result.info[layer], result[layer][example]
    if not info.shape:
        return values
    axis = info.unit_axis - 1
    size = info.shape[axis] // info.units
    return values.narrow(axis, unit * size, size).sum(axis)


def top_unit_by_group(
    result: TotalConductance | DatasetConductance, layer: str, groups: Sequence[int] | Sequence[str] | bool
) -> "pd.DataFrame":
    """Find for each group of examples, such as a class, the unit that pushes the target up most.

    Parameters
    ----------
    result
        What `conductance.total_conductance` or `conductance.dataset_conductance` returned.
    layer
        A hook point.
    groups
        The group of each example, as many as the result has. For statistics of a data set True, for the groups that
        they were made with.

    Returns
    -------
    pandas.DataFrame
        In the order of the groups: ``group``; ``examples``, the number of finished ones; ``unit`` with the
        largest mean conductance over them; ``mean``, that mean; ``share``, the part that it is of the mean
        ``Σ C`` of the layer (above 1 where other units pull the other way).

    Raises
    ------
    TypeError
        If ``result`` is not a result, or ``groups`` does not belong to it.
    ValueError
        If there is not one group for each example, or no example is finished.
    KeyError
        If there is no such layer.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> import conductance as cd
    >>> x = torch.tensor([[1.0, 4.0], [3.0, 2.0], [0.0, 8.0]], dtype=torch.float64)
    >>> total = cd.total_conductance(nn.Sequential(nn.Identity()), x, target=lambda output: output.sum(1))
    >>> top_unit_by_group(total, "0", ["b", "a", "b"]).round(6)
      group  examples  unit  mean     share
    0     a         1     0   3.0  0.600000
    1     b         2     1   6.0  0.923077
    """
    import pandas as pd

    rows = []
    for group, count, means in _means_by_group(result, layer, groups):
        unit, total = int(means.argmax()), float(means.sum())
        share = float(means[unit]) / total if total else float("nan")
        rows.append({"group": group, "examples": count, "unit": unit, "mean": means[unit], "share": share})
    return pd.DataFrame(rows)


def _means_by_group(result: Any, layer: str, groups: Any) -> Iterator[tuple[Any, int, Floats]]:
    """Of each group, in order, the number of its finished examples and the mean conductance of the units."""
    if isinstance(result, DatasetConductance):
        stats = statistics(result, True if groups is False or groups is None else groups)
        chosen_layers(stats, layer)
        for group in stats.groups:
            of_layer = stats.compute(group)[layer]
            yield group, of_layer.count, as_floats(of_layer.mean)
        return
    found = unit_values(result)
    result[layer]
    if isinstance(groups, bool):
        msg = f"groups is {groups}, which is for a DatasetConductance; give the group of each example."
        raise TypeError(msg)
    if len(groups) != len(result.status):
        msg = f"groups has {len(groups)} entries, expected one for each of {len(result.status)} examples."
        raise ValueError(msg)
    of_each = np.asarray(groups)[found.examples]
    for group in np.unique(of_each):
        values = found.values[layer][of_each == group]
        yield group, len(values), values.mean(0)


def _check_unit(result: TotalConductance, layer: str, unit: int) -> None:
    result[layer]
    units = result.info[layer].units
    if not 0 <= unit < units:
        msg = f"There is no unit {unit} in {layer!r}: it has {units}, numbered from 0."
        raise IndexError(msg)
