"""Quadrature of the Stieltjes integral that total conductance is.

Along the path a unit contributes ``C = ∫ v dy``: ``y(a)`` is its activation and ``v(a) = dF/dy`` the gradient
there. With nodes ``a_0 < … < a_{p-1}`` and their Lagrange polynomials ``ℓ_k``::

    ∫ v dy  ≈  Σ_kl A_kl v_k y_l ,        A_kl = ∫ ℓ_k(a) ℓ_l'(a) da

The matrix depends on the relative position of the nodes alone, so one matrix serves every unit, layer, example
and panel width; ``dy/da`` is never needed. The rule is exact where ``v`` and ``y`` are polynomials of degree
below ``p``, and ``A + Aᵀ = diag(-1, 0, …, 0, 1)``: integration by parts holds at every number of nodes.

This module is plain numpy and knows no model.

References
----------
Dhamdhere, Sundararajan and Yan, How Important Is a Neuron? (1805.12233), equation 1; Shrikumar, Su and Kundaje,
Computationally Efficient Measures of Internal Neuron Importance (1807.09946), who show that total conductance is
the path integral of the hidden gradient.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Number of nodes of each level of the nested rule; every level contains the nodes of the one before.
LEVELS = (2, 3, 5, 9, 17, 33)
#: Widest panel of a fixed rule of more nodes than the largest level, in intervals.
FIXED_INTERVALS = 16


def lobatto_nodes(count: int) -> Array:
    """Chebyshev–Lobatto nodes on [0, 1], both ends included.

    Parameters
    ----------
    count
        Number of nodes, at least 2.

    Returns
    -------
    numpy.ndarray
        Ascending nodes, shape ``(count,)``, symmetric about one half.

    Examples
    --------
    >>> lobatto_nodes(3).tolist()
    [0.0, 0.5, 1.0]
    """
    half = np.sin(np.pi * np.arange(count) / (2 * (count - 1))) ** 2
    return 0.5 * (half + (1.0 - half[::-1]))


def _barycentric_weights(nodes: Array) -> Array:
    gaps = nodes[:, None] - nodes[None, :]
    np.fill_diagonal(gaps, 1.0)
    logs = -np.log(np.abs(gaps)).sum(1)
    weights: Array = np.sign(gaps).prod(1) * np.exp(logs - logs.max())
    return weights


def _lagrange(nodes: Array, at: Array) -> Array:
    """Values ``ℓ_k(at_g)``, shape (points, nodes); no point may coincide with a node."""
    terms = _barycentric_weights(nodes) / (at[:, None] - nodes[None, :])
    values: Array = terms / terms.sum(1, keepdims=True)
    return values


def _differentiation(nodes: Array) -> Array:
    """Matrix that takes values at the nodes to the interpolant's derivative at the nodes."""
    weights = _barycentric_weights(nodes)
    gaps = nodes[:, None] - nodes[None, :]
    np.fill_diagonal(gaps, 1.0)
    matrix: Array = weights[None, :] / weights[:, None] / gaps
    np.fill_diagonal(matrix, 0.0)
    np.fill_diagonal(matrix, -matrix.sum(1))
    return matrix


def _gauss(count: int) -> tuple[Array, Array]:
    points, weights = np.polynomial.legendre.leggauss(count)
    return 0.5 * (points + 1.0), 0.5 * weights


def stieltjes_matrix(nodes: Array) -> Array:
    """Matrix ``A_kl = ∫ ℓ_k ℓ_l' da`` of the nodes, so that ``∫ v dy ≈ Σ_kl A_kl v_k y_l``.

    Parameters
    ----------
    nodes
        Distinct ascending nodes, shape ``(p,)``. The integral runs from the first to the last.

    Returns
    -------
    numpy.ndarray
        Shape ``(p, p)``; rows belong to gradients, columns to activations, every row sums to zero.

    Examples
    --------
    The trapezoid in activation space, ``½ (v_0 + v_1)(y_1 - y_0)``:

    >>> stieltjes_matrix(np.array([0.0, 1.0])).round(12).tolist()
    [[-0.5, 0.5], [-0.5, 0.5]]
    """
    span = nodes[-1] - nodes[0]
    unit = (nodes - nodes[0]) / span
    points, weights = _gauss(len(unit) + (len(unit) % 2))  # an even rule never meets the middle node
    values = _lagrange(unit, points)
    raw = values.T @ (weights[:, None] * (values @ _differentiation(unit)))
    matrix: Array = 0.5 * (raw - raw.T)  # integration by parts, kept to the last bit
    matrix[0, 0], matrix[-1, -1] = -0.5, 0.5
    return matrix


def node_weights(nodes: Array) -> Array:
    """Interpolatory weights ``w_k = ∫ ℓ_k da`` of the nodes, shape ``(p,)``.

    Examples
    --------
    >>> node_weights(lobatto_nodes(3)).round(6).tolist()  # Simpson's rule
    [0.166667, 0.666667, 0.166667]
    """
    span = nodes[-1] - nodes[0]
    points, weights = _gauss(len(nodes) + (len(nodes) % 2))
    result: Array = span * (weights @ _lagrange((nodes - nodes[0]) / span, points))
    return result


@cache
def level_nodes(level: int) -> Array:
    """Nodes of a level of the nested rule (see :data:`LEVELS`), on [0, 1]."""
    return lobatto_nodes(LEVELS[level])


@cache
def level_matrix(level: int, within: int) -> Array:
    """Stieltjes matrix of ``level`` written on the nodes of the finer level ``within``."""
    stride = (LEVELS[within] - 1) // (LEVELS[level] - 1)
    matrix = np.zeros((LEVELS[within], LEVELS[within]))
    matrix[::stride, ::stride] = stieltjes_matrix(level_nodes(level))
    return matrix


@dataclass(frozen=True)
class Panel:
    """One panel of a fixed rule: which nodes of the path it spans and how they are weighed.

    Attributes
    ----------
    start, stop
        The panel covers nodes ``start … stop``, both included.
    value, difference
        Matrices on those nodes: the Stieltjes matrix, and its difference to the rule on every other node, which
        estimates the error.
    before
        The difference of the two rules below, if it is known: how fast the differences fall.
    """

    start: int
    stop: int
    value: Array
    difference: Array
    before: Array | None = None


@dataclass(frozen=True)
class PathRule:
    """Nodes of one path and the panels between them: what an integration along this path needs.

    Attributes
    ----------
    nodes
        Places on the path, ascending, shape ``(nodes,)``.
    panels
        Panels in order, each from the last node of the one before.
    credit
        Factor on the summed local estimates.
    straight
        Where panels are weighed by where the end tangents of F meet: whether the gradient was the same at both ends
        of each. The matrices then hold for the run they come from alone, since nodes lie on kinks, where rounding
        chooses the side that the gradient is taken from; but what was straight can have no kink inside.
    """

    nodes: Array
    panels: tuple[Panel, ...]
    credit: float
    straight: NDArray[np.bool_] | None = None


def level_panel(start: int, level: int) -> Panel:
    """Panel of a level of the nested rule from node ``start`` on, with two differences of levels; level 2 and up."""
    value, middle, coarse = (level_matrix(level - k, level) for k in range(3))
    return Panel(start, start + len(value) - 1, value, value - middle, middle - coarse)


def fixed_nodes(n_steps: int, *, kinked: bool) -> Array:
    """Relative nodes of the fixed rule of ``n_steps`` evaluations, ends included.

    Smooth functions up to 33 nodes take one panel of Chebyshev–Lobatto nodes; more nodes fill panels of equal
    width with at most 17 nodes each, as evenly as the number allows. Kinked functions (ReLU, max-pool) take
    equidistant nodes and the trapezoid in activation space between neighbours.

    Examples
    --------
    >>> fixed_nodes(3, kinked=True).tolist()
    [0.0, 0.5, 1.0]
    >>> len(fixed_nodes(50, kinked=False))
    50
    """
    if kinked:
        return np.linspace(0.0, 1.0, n_steps)
    bounds = _panel_bounds(n_steps)
    count = len(bounds) - 1
    pieces = [
        (panel + lobatto_nodes(stop - start + 1)[:-1]) / count
        for panel, (start, stop) in enumerate(itertools.pairwise(bounds))
    ]
    return np.concatenate([*pieces, [1.0]])


def fixed_panels(n_steps: int) -> tuple[Panel, ...]:
    """Panels of the fixed rule for smooth functions on the nodes of :func:`fixed_nodes`."""
    bounds = _panel_bounds(n_steps)
    return tuple(Panel(start, stop, *_panel_matrices(stop - start + 1)) for start, stop in itertools.pairwise(bounds))


def _panel_bounds(n_steps: int) -> list[int]:
    intervals = n_steps - 1
    if n_steps <= LEVELS[-1]:
        return [0, intervals]
    count = -(-intervals // FIXED_INTERVALS)
    return [round(intervals * panel / count) for panel in range(count + 1)]


@cache
def _panel_matrices(count: int) -> tuple[Array, Array]:
    nodes = lobatto_nodes(count)
    value = stieltjes_matrix(nodes)
    kept = sorted({*range(0, count, 2), count - 1})
    if len(kept) == count:  # two nodes: no coarser rule; the gap between the one-sided rules stands in for it
        return value, np.array([[-0.5, 0.5], [0.5, -0.5]])
    coarse = np.zeros_like(value)
    coarse[np.ix_(kept, kept)] = stieltjes_matrix(nodes[kept])
    return value, value - coarse
