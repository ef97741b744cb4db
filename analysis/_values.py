"""What tables are made of: values of each unit and example, or statistics over examples; none that is unfinished."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from conductance import _dataset_sums
from conductance._dataset_groups import checked_groups
from conductance.dataset_results import DatasetConductance
from conductance.results import TotalConductance

#: What tables over examples take: one result, those of many batches, or statistics of a data set.
Results: TypeAlias = TotalConductance | Sequence[TotalConductance] | DatasetConductance
#: The group of each example, or True for those that statistics of a data set have.
Groups: TypeAlias = Sequence[Hashable] | Tensor | npt.NDArray[Any] | bool | None

Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class UnitValues:
    """Conductance per example and unit, positions summed.

    Parameters
    ----------
    values, errors
        Per hook point ``(finished examples, units)``: signed conductance, and its estimated absolute error.
    examples
        ``(finished examples,)``: their numbers in the result.
    left_out
        How many examples were interrupted or hold NaN or infinity.
    """

    values: dict[str, Floats]
    errors: dict[str, Floats]
    examples: npt.NDArray[np.int64]
    left_out: int

    @property
    def counts(self) -> dict[str, int]:
        """What a table says in its ``attrs``."""
        return {"examples": len(self.examples), "left_out": self.left_out}


def unit_values(result: TotalConductance) -> UnitValues:
    """Sum positions in float64 and drop unfinished examples, the same ones in every layer."""
    check_result(result)
    values, mask = _dataset_sums.unit_values(result)
    finished = np.asarray(mask)
    if not finished.any():
        msg = f"None of the {len(finished)} examples is finished: each is interrupted or holds NaN or infinity."
        raise ValueError(msg)
    return UnitValues(
        values={layer: np.asarray(each)[finished] for layer, each in values.items()},
        errors={layer: as_floats(result.unit_error[layer])[finished] for layer in result},
        examples=np.flatnonzero(finished),
        left_out=int((~finished).sum()),
    )


def statistics(results: Results, groups: Groups = None) -> DatasetConductance:
    """Sum up results, by group if asked; statistics of a data set are taken as they are.

    Raises
    ------
    TypeError
        If ``results`` is none of these, or ``groups`` no sequence.
    ValueError
        If there are no results, they differ in their layers, ``groups`` does not fit, or no example is finished.
    """
    stats = _with_groups(results, groups) if isinstance(results, DatasetConductance) else _summed(results, groups)
    if not stats.count:
        seen = f"None of the {stats.left_out} examples is finished: each is interrupted or holds NaN or infinity."
        raise ValueError(
            seen if stats.left_out else "result is a DatasetConductance of no examples: add some by update."
        )
    return stats


def _with_groups(stats: DatasetConductance, groups: Groups) -> DatasetConductance:
    """Refuse groups of single examples, which are summed up already."""
    if groups is not None and not isinstance(groups, bool):
        msg = "groups of single examples cannot be given for a DatasetConductance: groups=True takes those that it has."
        raise TypeError(msg)
    if groups and not stats.groups:
        raise ValueError("groups is True, but the DatasetConductance has none: give dataset_conductance a group_by.")
    return stats


def _summed(results: TotalConductance | Sequence[TotalConductance], groups: Groups) -> DatasetConductance:
    several = [results] if isinstance(results, TotalConductance) else results
    if not isinstance(several, list | tuple):
        msg = (
            f"result must be a TotalConductance, as total_conductance returns it, a list of them or a "
            f"DatasetConductance, got {type(results).__name__}."
        )
        raise TypeError(msg)
    if not several:
        raise ValueError("result is an empty list; give at least one TotalConductance.")
    for each in several:
        check_result(each)
    if isinstance(groups, bool):
        raise TypeError(f"groups is {groups}, which is for a DatasetConductance; give the group of each example.")
    of_each = None if groups is None else checked_groups(groups, sum(len(each.status) for each in several))
    stats, start = DatasetConductance(), 0
    for number, each in enumerate(several):
        stop = start + len(each.status)
        try:
            # Settings may differ, as they may in results that are concatenated.
            stats.update(replace(each, settings={}), None if of_each is None else of_each[start:stop])
        except ValueError as error:
            raise ValueError(f"Entry {number} of the list: {error}") from error
        start = stop
    return stats


def as_floats(tensor: Any) -> Floats:
    """Write a tensor as a float64 array."""
    return np.asarray(tensor.cpu().double())


def check_result(result: object) -> None:
    """Refuse what is not a result."""
    if not isinstance(result, TotalConductance):
        found = type(result).__name__
        msg = f"result must be a TotalConductance, as total_conductance returns it, got {found}."
        raise TypeError(msg)


def check_top(top: object, name: str = "top") -> None:
    """Refuse a number of rows that is not a whole number of at least 1."""
    if isinstance(top, bool) or not isinstance(top, int | np.integer):
        msg = f"{name} must be a whole number of at least 1, got {top!r}."
        raise TypeError(msg)
    if top < 1:
        msg = f"{name} must be at least 1, got {top}."
        raise ValueError(msg)


def check_table(table: object, columns: Sequence[str], name: str, maker: str) -> None:
    """Refuse what is not a table with these columns and at least one row; ``maker`` is the function that makes it."""
    import pandas as pd

    if not isinstance(table, pd.DataFrame):
        msg = f"{name} must be the table that {maker} returns, a pandas DataFrame, got {type(table).__name__}."
        raise TypeError(msg)
    missing = [column for column in columns if column not in table]
    if missing:
        msg = f"{name} lacks the columns {missing}; pass what {maker} returns."
        raise ValueError(msg)
    if not len(table):
        msg = f"{name} is an empty table; expected at least one row, as {maker} returns it."
        raise ValueError(msg)


def check_single(table: Any, columns: Sequence[str], name: str, hint: str) -> None:
    """Refuse rows that say the same place twice, whose mean would be that of two different runs."""
    twice = table.duplicated(list(columns))
    if twice.any():
        row = ", ".join(f"{column} {table.loc[twice, column].tolist()[0]!r}" for column in columns)
        msg = f"{name} has several rows for {row}; {hint}."
        raise ValueError(msg)
