"""Unit values of a result as float64 arrays, without the examples that were never finished."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from conductance.results import TotalConductance

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
    values = {layer: np.asarray(result.info[layer].sum_positions(result[layer].cpu().double())) for layer in result}
    finished = np.array([status != "interrupted" for status in result.status], dtype=bool)
    for each in values.values():
        finished &= np.isfinite(each).all(axis=1)
    if not finished.any():
        msg = f"None of the {len(finished)} examples is finished: each is interrupted or holds NaN or infinity."
        raise ValueError(msg)
    return UnitValues(
        values={layer: each[finished] for layer, each in values.items()},
        errors={layer: as_floats(result.unit_error[layer])[finished] for layer in result},
        examples=np.flatnonzero(finished),
        left_out=int((~finished).sum()),
    )


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
