"""The Stieltjes rule is exact on polynomials, nested, and antisymmetric up to its ends."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.polynomial import Polynomial

from conductance import quadrature as quad


def exact(v: Polynomial, y: Polynomial) -> float:
    primitive = (v * y.deriv()).integ()
    return float(primitive(1.0) - primitive(0.0))


@pytest.mark.parametrize("count", [*quad.LEVELS, 4, 6, 32])
def test_exact_on_polynomials(count: int, rng: np.random.Generator) -> None:
    nodes = quad.lobatto_nodes(count)
    matrix = quad.stieltjes_matrix(nodes)
    for _ in range(5):
        # Chebyshev-scaled coefficients keep the polynomials of order one on [0, 1]
        v, y = (Polynomial(rng.normal(size=min(count, 12))) for _ in range(2))
        expected = exact(v, y)
        assert abs(v(nodes) @ matrix @ y(nodes) - expected) < 1e-12 * max(1.0, abs(expected)) * count
        assert abs(expected) > 1e-6


@pytest.mark.parametrize("count", quad.LEVELS)
def test_highest_degree_is_exact_and_the_next_is_not(count: int) -> None:
    nodes = quad.lobatto_nodes(count)
    matrix = quad.stieltjes_matrix(nodes)
    chebyshev = np.polynomial.chebyshev.Chebyshev

    def error(degree: int) -> float:
        v = chebyshev.basis(degree, domain=[0, 1])
        y = chebyshev.basis(count - 1, domain=[0, 1]) + chebyshev.basis(count - 2, domain=[0, 1])
        primitive = (v * y.deriv()).integ()
        return abs(float(v(nodes) @ matrix @ y(nodes) - (primitive(1) - primitive(0))))

    assert error(count - 1) < 1e-11
    assert error(count) > 1e-6


@pytest.mark.parametrize("count", [*quad.LEVELS, 7, 20])
def test_integration_by_parts_and_constants(count: int) -> None:
    matrix = quad.stieltjes_matrix(quad.lobatto_nodes(count))
    ends = np.zeros((count, count))
    ends[0, 0], ends[-1, -1] = -1.0, 1.0
    np.testing.assert_allclose(matrix + matrix.T, ends, atol=1e-15)
    np.testing.assert_allclose(matrix.sum(1), 0.0, atol=5e-13)
    assert np.abs(matrix).max() > 0.4


def test_the_matrix_does_not_see_the_width_of_the_panel(rng: np.random.Generator) -> None:
    nodes = np.sort(rng.uniform(size=6))
    np.testing.assert_allclose(
        quad.stieltjes_matrix(nodes), quad.stieltjes_matrix(3.0 + 0.01 * nodes), rtol=1e-9, atol=1e-11
    )


def test_levels_are_nested() -> None:
    for coarse, fine in zip(range(len(quad.LEVELS) - 1), range(1, len(quad.LEVELS)), strict=True):
        stride = (quad.LEVELS[fine] - 1) // (quad.LEVELS[coarse] - 1)
        np.testing.assert_allclose(quad.level_nodes(fine)[::stride], quad.level_nodes(coarse), atol=1e-16 * 4)


def test_level_matrix_uses_only_its_own_nodes(rng: np.random.Generator) -> None:
    v, y = rng.normal(size=(2, 17))
    embedded = v @ quad.level_matrix(2, 4) @ y
    assert embedded == pytest.approx(v[::4] @ quad.stieltjes_matrix(quad.lobatto_nodes(5)) @ y[::4])


def test_weights_integrate_and_follow_from_the_matrix() -> None:
    nodes = quad.lobatto_nodes(9)
    weights = quad.node_weights(nodes)
    assert weights.sum() == pytest.approx(1.0, abs=1e-14)
    assert weights @ nodes**7 == pytest.approx(1 / 8, abs=1e-14)
    # along a straight path y = a: the rule must give the same weights
    np.testing.assert_allclose(quad.stieltjes_matrix(nodes) @ nodes, weights, atol=1e-13)


@pytest.mark.parametrize("n_steps", [2, 3, 5, 16, 32, 33, 34, 50, 64, 100, 256])
def test_fixed_rule_fills_any_number_of_nodes(n_steps: int) -> None:
    nodes = quad.fixed_nodes(n_steps, kinked=False)
    panels = quad.fixed_panels(n_steps)
    assert len(nodes) == n_steps
    assert nodes[0] == 0.0
    assert nodes[-1] == 1.0
    assert (np.diff(nodes) > 0).all()
    assert panels[0].start == 0
    assert panels[-1].stop == n_steps - 1
    assert all(a.stop == b.start for a, b in pairwise(panels))
    v, y = np.exp(nodes), np.sin(nodes)
    total = sum(v[p.start : p.stop + 1] @ p.value @ y[p.start : p.stop + 1] for p in panels)
    expected = (np.e * (np.sin(1) + np.cos(1)) - 1) / 2
    estimate = abs(sum(float(v[p.start : p.stop + 1] @ p.difference @ y[p.start : p.stop + 1]) for p in panels))
    assert abs(total - expected) <= max(estimate, 1e-13)
    if n_steps >= 16:
        assert abs(total - expected) < 1e-12
    assert len(quad.fixed_nodes(n_steps, kinked=True)) == n_steps
