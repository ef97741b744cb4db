"""Total conductance against cases worked out by hand, in float64 to 1e-9."""

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from conductance import total_conductance
from conductance.errors import ConvergenceWarning
from tests.helpers import ClosedForm, Function, closed_forms, frozen

CASES = {case.name: case for case in closed_forms()}
RTOL = 1e-10


def _assert_close(found: Tensor, expected: list[float]) -> None:
    wanted = torch.tensor(expected, dtype=torch.float64)
    scale = max(1.0, float(wanted.abs().sum()))
    torch.testing.assert_close(found.flatten(), wanted, rtol=0, atol=1e-9 * scale)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_closed_form(case: ClosedForm) -> None:
    total = total_conductance(case.model, case.x, list(case.conductance), target=0, baselines=case.baseline, rtol=RTOL)
    assert list(total) == list(case.conductance)
    for layer, expected in case.conductance.items():
        assert total[layer].shape == (1, len(expected))
        _assert_close(total[layer][0], expected)
    assert total.status == ("ok",)
    assert bool(total.converged.all())
    assert abs(float(total.unattributed)) < 1e-8 * max(1.0, abs(float(total.output_change)))


@pytest.mark.filterwarnings("ignore::conductance.ZeroConductanceWarning")  # zeros that are right, of one layer alone
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_layer_alone(case: ClosedForm) -> None:
    for layer, expected in case.conductance.items():
        total = total_conductance(case.model, case.x, layer, target=0, baselines=case.baseline, rtol=RTOL)
        _assert_close(total[layer][0], expected)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_attribution_backwards_changes_the_sign(case: ClosedForm) -> None:
    total = total_conductance(case.model, case.baseline, list(case.conductance), target=0, baselines=case.x, rtol=RTOL)
    for layer, expected in case.conductance.items():
        _assert_close(-total[layer][0], expected)


def test_zero_is_the_default_baseline() -> None:
    case = CASES["captum"]
    total = total_conductance(case.model, case.x, "relu", target=0)
    torch.testing.assert_close(total["relu"], torch.tensor([[90.0, 100, 100, 100]], dtype=torch.float64))
    torch.testing.assert_close(total.output_change, torch.tensor([390.0], dtype=torch.float64))


def test_examples_with_targets_of_their_own() -> None:
    """Output 1 of the toy net sees the same hidden layer, and a second example twice the first's units."""
    case = CASES["captum"]
    inputs = torch.cat([case.x, 2 * case.x, 0.05 * case.x])
    total = total_conductance(case.model, inputs, "relu", target=torch.tensor([0, 1, 0]), rtol=RTOL)
    _assert_close(total["relu"][0], [90, 100, 100, 100])
    _assert_close(total["relu"][1], [190, 200, 200, 200])
    _assert_close(total["relu"][2], [0, 5, 5, 5])


def test_linear_network_takes_two_evaluations_to_be_exact() -> None:
    first, second = nn.Linear(3, 5), nn.Linear(5, 2)
    model = frozen(nn.Sequential(first, second))
    x = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    total = total_conductance(model, x, "0", target=1, n_steps=2)
    expected = second.weight[1] * (first.weight @ x[0])
    torch.testing.assert_close(total["0"][0], expected, rtol=1e-12, atol=1e-12)
    assert total.evaluations.tolist() == [2]


@pytest.mark.parametrize("powers", [(1, 1), (2, 3), (1, 4), (5, 2)])
def test_monomial_is_shared_by_exponents(powers: tuple[int, int]) -> None:
    first, second = powers
    model = Function(lambda x: x[:, 0] ** first * x[:, 1] ** second)
    x = torch.tensor([[1.25, -0.75]], dtype=torch.float64)
    value = 1.25**first * (-0.75) ** second
    total = total_conductance(model, x, "tap", target=0, rtol=RTOL)
    _assert_close(total["tap"][0], [value * first / sum(powers), value * second / sum(powers)])


def test_unit_whose_activation_returns_has_conductance() -> None:
    case = CASES["sine"]
    total = total_conductance(case.model, case.x, "hidden", target=0, rtol=RTOL)
    assert float(total["hidden"][0, 0]) == pytest.approx(-2 / math.pi, abs=1e-9)
    assert float(total.output_change) == pytest.approx(0, abs=1e-12)


def test_gradient_infinite_at_the_baseline() -> None:
    """``sqrt`` has an infinite slope at 0, and yet the whole change belongs to its input."""
    model = Function(lambda x: torch.sqrt(x[:, 0]) + 0 * x[:, 0])
    x = torch.tensor([[4.0]], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        total = total_conductance(model, x, "tap", target=0, rtol=1e-3)
    assert float(total["tap"]) == pytest.approx(2, rel=1e-3)
