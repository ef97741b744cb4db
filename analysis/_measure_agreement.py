"""How far values of units agree with their true effects: correlations over pairs, within examples, over units."""

import numpy as np

from conductance.analysis._values import Floats


def agreement(values: Floats, effects: Floats) -> dict[str, float]:
    """Correlate the values of a measure with the true effects, both ``(examples, units)``.

    Examples
    --------
    >>> effects = np.array([[1.0, 2.0, 4.0], [2.0, 1.0, 0.0]])
    >>> {name: round(value, 6) for name, value in agreement(effects**3, effects).items()}
    {'pearson': 0.900667, 'spearman': 1.0, 'example_pearson': 0.945443}
    """
    each = [correlation(value, effect) for value, effect in zip(values, effects, strict=True)]
    known = [one for one in each if not np.isnan(one)]
    return {
        "pearson": correlation(values.ravel(), effects.ravel()),
        "spearman": correlation(ranks(values.ravel()), ranks(effects.ravel())),
        "example_pearson": float(np.mean(known)) if known else float("nan"),
    }


def correlation(first: Floats, second: Floats) -> float:
    """Pearson's correlation; nan where one of the two is constant.

    Examples
    --------
    >>> correlation(np.array([1.0, 2.0, 3.0]), np.array([-2.0, -4.0, -6.0])), correlation(np.ones(2), np.arange(2.0))
    (-1.0, nan)
    """
    if len(first) == 0 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    first, second = (each / np.abs(each).max() for each in (first - first.mean(), second - second.mean()))
    return float(np.clip((first @ second) / np.sqrt((first @ first) * (second @ second)), -1, 1))


def ranks(values: Floats) -> Floats:
    """Rank of each value from 1; ties share the mean of theirs.

    Examples
    --------
    >>> ranks(np.array([3.0, 1.0, 3.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse])
