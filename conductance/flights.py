"""What is known of a run while it is under way: what was asked, each example in flight, what it is judged on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from conductance.panels import Floats, Work

#: Rounding error allowed for, in roundings of ``Σ|v||Δy|``.
ROUNDINGS = 4.0


def carried(rounding: Floats, cuts: NDArray[np.bool_]) -> Floats:
    """Rounding errors of points ``(points,)``, leaves last: those of the leaves and of earlier cuts reach a cut too.

    Examples
    --------
    >>> carried(np.array([3.0, 1.0, 2.0, 0.5]), np.array([True, False, True])).tolist()
    [3.0, 1.0, 3.0, 0.5]
    """
    result, at = rounding.copy(), np.flatnonzero(cuts)
    result[at] = np.maximum.accumulate(np.maximum(rounding[at], rounding[len(cuts) :].sum()))
    return result


@dataclass(frozen=True)
class Rules:
    """What the user asked.

    Attributes
    ----------
    rtol, atol
        Tolerance on ``Σ|error|`` of every layer: ``rtol · Σ|C| + atol``.
    max_evaluations
        Rows that one example may cost.
    rows
        Rows of one call at most.
    """

    rtol: float
    atol: float
    max_evaluations: int
    rows: int


@dataclass
class Flight:
    """One example under way."""

    example: int
    slot: int
    ends: tuple[float, float]
    still: bool
    evaluations: int = 0
    compared: int = 0  # the round in which the gradient was last compared with differences of F
    residuals: list[float] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)
    opened: dict[int, Floats] = field(default_factory=dict)  # of each path: F and dF/da of its outer nodes
    outputs: dict[int, Floats] = field(default_factory=dict)  # F at the true ends, of the paths taken inside them
    works: list[Work] = field(default_factory=list)


@dataclass(frozen=True)
class Figures:
    """What an example is judged on; arrays have one entry for each layer asked, ``gap`` one for each end."""

    scale: Floats
    error: Floats
    limit: Floats
    floor: Floats
    nothing: NDArray[np.bool_]
    magnitude: Floats
    factor: Floats
    residual: float
    gap: Floats
    leaf_scale: float
    leaf_floor: float
    output: float
    baseline_output: float
