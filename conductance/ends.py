"""The true ends of paths that are taken a little inside them.

Where F has a kink, or no finite gradient, at an end, the rule starts and stops inside (:attr:`Refinement.ends`). What
F does on the way from there to the true end belongs to no unit; it is measured by rows that run forward only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from conductance.engine import Engine, non_finite

Floats = NDArray[np.float64]
Jump = tuple[float, float, float]


def true_outputs(engine: Engine, paths: NDArray[np.int64], rows: int) -> Floats:
    """F at the baseline and at the input of each path, ``(paths, 2)``, in calls of at most ``rows`` rows."""
    which, alphas = np.repeat(paths, 2), np.tile([0.0, 1.0], len(paths))
    parts = [slice(first, first + rows) for first in range(0, len(which), rows)]
    found = np.concatenate([engine.forward(which[part], alphas[part]) for part in parts])
    bad = ~np.isfinite(found)
    if bad.any():
        raise non_finite(engine, which[bad], alphas[bad])
    return found.reshape(len(paths), 2)


def end_gaps(inner: Floats, true: Floats | None) -> Floats:
    """Change of F before the first node and after the last, ``(2,)``; ``true`` is None where these are the ends."""
    return np.zeros(2) if true is None else np.asarray((inner - true) * [1.0, -1.0])


def jumps_at_ends(gap: Floats, inside: tuple[float, float], allowed: float) -> tuple[Jump, ...]:
    """The changes of F at the ends that are more than allowed, as ``(from alpha, to alpha, size)``.

    Examples
    --------
    >>> jumps_at_ends(np.array([0.5, 1e-9]), (1e-12, 1.0), 1e-2)
    ((0.0, 1e-12, 0.5),)
    """
    found = ((0.0, inside[0], float(gap[0])), (inside[1], 1.0, float(gap[1])))
    return tuple(jump for jump in found if abs(jump[2]) > allowed)
