"""The drop-ins against values worked out by hand, where Captum's own rules are off at the same number of steps."""

from typing import Any

import pytest
import torch
from captum.attr import LayerConductance as CaptumLayer
from captum.attr import NeuronConductance as CaptumNeuron
from captum.testing.helpers.basic_models import BasicModel_MultiLayer, BasicModel_MultiLayer_MultiInput
from torch import Tensor, nn

from conductance.captum import LayerConductance, NeuronConductance
from conductance.errors import ConvergenceWarning, ZeroConductanceWarning
from tests.helpers import CaptumToy, Function, normal, seeded
from tests.reference import exact_piecewise_linear, literal_neuron

HIDDEN = [[90.0, 100.0, 100.0, 100.0]]
TOLERANCE = {50: 1e-4, 200: 1e-6}


def _error(found: Any, exact: list[list[float]]) -> float:
    return float((found.detach().double() - torch.tensor(exact, dtype=torch.float64)).abs().max())


@pytest.mark.parametrize("n_steps", [50, 200])
@pytest.mark.parametrize(
    ("layer", "exact"),
    [("linear0", [[0.0, 390.0, 0.0]]), ("linear1", HIDDEN), ("relu", HIDDEN), ("linear2", [[390.0, 0.0]])],
)
def test_layers_of_captums_toy_network(layer: str, exact: list[list[float]], n_steps: int) -> None:
    model = BasicModel_MultiLayer().double()
    x = torch.tensor([[0.0, 100.0, 0.0]], dtype=torch.float64)
    module = model.get_submodule(layer)
    found = LayerConductance(model, module).attribute(x, target=0, n_steps=n_steps)
    assert _error(found, exact) < TOLERANCE[n_steps]
    assert _error(CaptumLayer(model, module).attribute(x, target=0), exact) > 1e-2


@pytest.mark.parametrize("n_steps", [50, 200])
def test_layers_of_captums_network_of_several_inputs(n_steps: int) -> None:
    model = BasicModel_MultiLayer_MultiInput().double()
    first, second, third = (
        torch.tensor(rows, dtype=torch.float64)
        for rows in (
            [[0.0, 10.0, 1.0], [0.0, 0.0, 10.0]], [[0.0, 4.0, 5.0], [0.0, 0.0, 10.0]], [[0.0] * 3, [0.0, 0.0, 5.0]]
        )
    )  # fmt: skip
    arguments: dict[str, Any] = {"target": 0, "additional_forward_args": (third, 5)}
    # with what stands still the hidden units move from (-10, 1, 1, 1) to 90, 101, … and from (15, 26, …) to 115, 126
    exact = [HIDDEN[0], [100.0] * 4]
    found = LayerConductance(model, model.model.relu).attribute((first, second), n_steps=n_steps, **arguments)
    assert _error(found, exact) < TOLERANCE[n_steps]
    neuron = NeuronConductance(model, model.model.relu)
    parts = neuron.attribute((first, second), (3,), n_steps=n_steps, **arguments)
    assert _error(parts[0], [[0.0, 50.0, 5.0], [0.0, 0.0, 50.0]]) < TOLERANCE[n_steps]
    assert _error(parts[1], [[0.0, 20.0, 25.0], [0.0, 0.0, 50.0]]) < TOLERANCE[n_steps]
    theirs = CaptumNeuron(model, model.model.relu).attribute((first, second), (3,), **arguments)
    assert _error(theirs[0], [[0.0, 50.0, 5.0], [0.0, 0.0, 50.0]]) > 0.5


@pytest.mark.parametrize("n_steps", [50, 200])
def test_tuples_of_captums_toy_network(n_steps: int) -> None:
    model = BasicModel_MultiLayer(multi_input_module=True).double()
    x = torch.tensor([[0.0, 100.0, 0.0]], dtype=torch.float64)
    found = LayerConductance(model, model.multi_relu).attribute(x, target=0, n_steps=n_steps)
    assert isinstance(found, tuple)
    for number, part in enumerate(found):
        assert _error(part, HIDDEN) < TOLERANCE[n_steps]
        through = NeuronConductance(model, model.multi_relu).attribute(
            x, lambda parts, number=number: parts[number][:, 0], target=0, n_steps=n_steps
        )
        assert _error(through, [[0.0, 90.0, 0.0]]) < TOLERANCE[n_steps]


@pytest.mark.parametrize("n_steps", [50, 200])
def test_weights_of_the_rule_sum_to_one(n_steps: int) -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    nn.init.eye_(model[0].weight)  # type: ignore[arg-type]
    nn.init.ones_(model[1].weight)  # type: ignore[arg-type]
    x = torch.tensor([[10.0, 20.0]], dtype=torch.float64)
    assert _error(NeuronConductance(model, model[0]).attribute(x, 0, n_steps=n_steps), [[10.0, 0.0]]) < 1e-9
    assert _error(LayerConductance(model, model[0]).attribute(x, n_steps=n_steps), [[10.0, 20.0]]) < 1e-9
    assert float(CaptumNeuron(model, model[0]).attribute(x, 0)[0, 0]) == pytest.approx(9.80)


@pytest.mark.parametrize("n_steps", [50, 200])
def test_inputs_through_units_of_captums_toy_network(n_steps: int) -> None:
    model = CaptumToy().double()
    x = torch.tensor([[0.0, 70.0, 30.0]], dtype=torch.float64)
    for selector, exact in ((0, [0.0, 63.0, 27.0]), (3, [0.0, 70.0, 30.0]), (slice(0, 2), [0.0, 133.0, 57.0])):
        found = NeuronConductance(model, model.relu).attribute(x, selector, target=0, n_steps=n_steps)
        assert _error(found, [exact]) < TOLERANCE[n_steps]


def test_random_relu_networks_are_exact_where_there_is_budget() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)))
    x, start = normal(2, 4, scale=5.0), normal(1, 4, seed=1)
    found = LayerConductance(model, ["2", "1"]).attribute(x, start, target=[2, 0], n_steps=200)
    for example, target in enumerate((2, 0)):
        exact = exact_piecewise_linear(model, x[example : example + 1], start, target, ["2", "1"])
        for one, layer in zip(found, ("2", "1"), strict=True):
            scale = exact[layer].abs().sum()
            assert scale > 0.1
            assert float((one[example] - exact[layer]).abs().max()) < 1e-8 * float(scale)


def _smooth() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network, an example, a baseline, and the integral of each unit's part of the gradient, units × inputs."""
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2)))
    x, start = normal(1, 4), normal(1, 4, seed=1)
    places, weights = (torch.as_tensor(part).tolist() for part in _gauss(30))
    return model, x, start, literal_neuron(model, x, start, 1, "1", places, weights) / (x - start)


def _gauss(points: int) -> tuple[Any, Any]:
    import numpy as np

    places, weights = np.polynomial.legendre.leggauss(points)
    return (places + 1) / 2, weights / 2


def test_without_inputs_it_is_the_integral_of_the_gradient() -> None:
    model, x, start, gradient = _smooth()
    local = NeuronConductance(model, model[1], multiply_by_inputs=False)  # type: ignore[index]
    for unit in range(5):
        found = local.attribute(x, unit, start, target=1)
        torch.testing.assert_close(found[0], gradient[unit], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_at_their_baseline_have_a_gradient_too(dtype: torch.dtype) -> None:
    model, x, start, _ = _smooth()
    model, x, start = model.to(dtype), x.to(dtype), start.to(dtype).clone()
    start[0, 2] = x[0, 2]
    start[0, 3] = x[0, 3] * (1 + torch.finfo(dtype).eps)
    places, weights = (torch.as_tensor(part).tolist() for part in _gauss(30))
    exact = torch.zeros(4, dtype=torch.float64)
    for place, weight in zip(places, weights, strict=True):
        at = (start.double() + place * (x.double() - start.double())).requires_grad_()
        hidden = model.double()[1](model[0](at))  # type: ignore[index]
        (v,) = torch.autograd.grad(model[4](model[3](model[2](hidden)))[0, 1], hidden, retain_graph=True)  # type: ignore[index]
        (gradient,) = torch.autograd.grad(hidden[0, 3], at)
        exact += weight * v[0, 3] * gradient[0]
    found = NeuronConductance(model.to(dtype), model[1], multiply_by_inputs=False).attribute(x, 3, start, target=1)  # type: ignore[index]
    assert exact.abs().min() > 1e-4
    torch.testing.assert_close(found[0].double(), exact, rtol=1e-4 if dtype == torch.float32 else 1e-8, atol=0)


def test_an_input_that_is_its_own_baseline_has_the_plain_gradient() -> None:
    model, x, *_ = _smooth()
    local = NeuronConductance(model, model[0], multiply_by_inputs=False)  # type: ignore[index]
    with pytest.warns(ZeroConductanceWarning, match="nothing that moves reaches it"):  # its conductance is zero
        found = local.attribute(x, 2, x, target=1)
    at = x.clone().requires_grad_()
    hidden = model[0](at)  # type: ignore[index]
    rest = nn.Sequential(*list(model.children())[1:])
    (v,) = torch.autograd.grad(rest(hidden)[0, 1], hidden, retain_graph=True)
    (gradient,) = torch.autograd.grad(hidden[0, 2], at)
    assert gradient.abs().min() > 1e-3
    torch.testing.assert_close(found, v[0, 2] * gradient)


def test_zeros_on_a_kink_have_the_gradient_there() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    model[0].weight = nn.Parameter(torch.tensor([[0.0, 3.0], [5.0, 7.0]], dtype=torch.float64))
    model[2].weight = nn.Parameter(torch.tensor([[2.0, 11.0]], dtype=torch.float64))
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)  # the first unit is zero all along the path: torch says slope 0
    local = NeuronConductance(model, model[0], multiply_by_inputs=False)
    assert local.attribute(x, 0).tolist() == [[0.0, 0.0]]
    assert local.attribute(x, 1)[0].tolist() == pytest.approx([55.0, 77.0])


def test_several_inputs_and_units_of_several_tensors_together() -> None:
    rnn, head = (one.double() for one in (nn.LSTM(2, 3, batch_first=True), nn.Linear(6, 2)))

    def model(a: Tensor, b: Tensor) -> Tensor:
        out, (hidden, _) = rnn(a + b)
        joined: Tensor = head(torch.cat([out[:, 1], hidden[0]], 1))
        return joined

    a, b = normal(3, 4, 2), normal(3, 4, 2, seed=1)
    layer = LayerConductance(model, rnn).attribute((a, b), target=1)
    for multiply in (True, False):
        neuron = NeuronConductance(model, rnn, multiply_by_inputs=multiply)
        one = neuron.attribute((a, b), lambda parts: parts[0][:, 1, 2], target=1)
        two = neuron.attribute((a, b), lambda parts: parts[1][0, :, 0], target=1)
        both = neuron.attribute((a, b), lambda parts: parts[0][:, 1, 2] + parts[1][0, :, 0], target=1)
        for first, second, joined in zip(one, two, both, strict=True):
            assert min(first.abs().max(), second.abs().max()) > 1e-3
            torch.testing.assert_close(joined, first + second)
        if multiply:
            sums = [sum(part.sum((1, 2)) for part in found) for found in (one, two)]
            torch.testing.assert_close(sums[0], layer[0][:, 1, 2])
            torch.testing.assert_close(sums[1], layer[1][:, 0, 0])


def test_results_that_say_nothing_are_warned_of() -> None:
    model = Function(lambda x: torch.sin(60.0 * x).sum(1)).double()
    x = torch.tensor([[0.0, 1e-3], [1.0, 2.0]], dtype=torch.float64)
    message = r"of examples 1 \([0-9]+%, budget\) is above 10% of the conductance: raise n_steps"
    with pytest.warns(ConvergenceWarning, match=message) as caught:
        LayerConductance(model, model.tap).attribute(x, target=0, n_steps=10)
    with pytest.warns(ConvergenceWarning, match=message) as again:
        NeuronConductance(model, model.tap).attribute(x, 1, target=0, n_steps=10)
    assert {one.filename for one in [*caught, *again]} == {__file__}
    found = LayerConductance(model, model.tap).attribute(x, target=0, n_steps=4000)
    torch.testing.assert_close(found, torch.sin(60.0 * x), rtol=0, atol=1e-6)
