"""The oracles against closed forms and against each other, before anything is held to them."""

import pytest
import torch
from torch import Tensor, nn

from tests.benchmarks.nets import (
    NAMES,
    Activation,
    accuracy,
    bert,
    bert_inputs,
    bert_points,
    conv,
    conv_inputs,
    conv_points,
    digits,
    hidden_layers,
    trained,
)
from tests.helpers import (
    AttentionNet,
    ChunkNet,
    ClosedForm,
    ConvNet,
    ResidualNet,
    TwoInputNet,
    closed_forms,
    normal,
    seeded,
)
from tests.reference import (
    LEAF,
    Inputs,
    exact_piecewise_linear,
    jacobian_total,
    lagrange_matrix,
    literal_total,
    relative_error,
    trapezoid_total,
    unexplained_share,
)
from tests.wrong_answers import WRONG_ANSWERS, wrong_answer

CASES = closed_forms()
SMOOTH: dict[str, tuple[nn.Module, Inputs, list[str]]] = {
    "attention": (seeded(AttentionNet), normal(1, 5, 6), ["norm1", "query", "softmax", "out", "act", "down"]),
    "residual": (seeded(ResidualNet), normal(1, 7), ["stem", "act1", "sum1", "down2"]),
    "two-inputs": (seeded(TwoInputNet), (normal(1, 3), normal(1, 5, seed=1)), ["left", "right", "act"]),
    "chunk": (seeded(ChunkNet), normal(1, 6), ["fc", "gated", "side", "joined"]),
}


def _zero(x: Inputs) -> Inputs:
    return tuple(map(torch.zeros_like, x)) if isinstance(x, tuple) else torch.zeros_like(x)


@pytest.mark.parametrize("case", [case for case in CASES if case.piecewise_linear], ids=lambda case: case.name)
def test_exact_reference_gives_closed_forms(case: ClosedForm) -> None:
    found = exact_piecewise_linear(case.model, case.x, case.baseline, 0, case.conductance)
    for layer, values in case.conductance.items():
        expected = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(found[layer].flatten(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_trapezoid_gives_closed_forms(case: ClosedForm) -> None:
    found = trapezoid_total(case.model, case.x, case.baseline, 0, case.conductance)
    for layer, values in case.conductance.items():
        expected = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(found[layer].flatten(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("case", [case for case in CASES if not case.piecewise_linear], ids=lambda case: case.name)
def test_literal_gives_smooth_closed_forms(case: ClosedForm) -> None:
    alphas = _chebyshev(17)
    for layer, values in case.conductance.items():
        found = literal_total(case.model, case.x, case.baseline, 0, layer, alphas, lagrange_matrix(alphas))
        expected = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_lagrange_matrix_integrates_polynomials() -> None:
    alphas = _chebyshev(6)
    matrix = torch.tensor(lagrange_matrix(alphas), dtype=torch.float64)
    nodes = torch.tensor(alphas, dtype=torch.float64)
    assert float(nodes**5 @ matrix @ nodes**4) == pytest.approx(4 / 9, rel=1e-12)
    ends = torch.zeros(6, 6, dtype=torch.float64)
    ends[0, 0], ends[-1, -1] = -1, 1
    torch.testing.assert_close(matrix + matrix.T, ends, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", SMOOTH)
def test_references_agree_on_smooth_networks(name: str) -> None:
    model, x, layers = SMOOTH[name]
    baseline = _zero(x) if name != "attention" else normal(1, 5, 6, seed=7, scale=0.5)
    slow = trapezoid_total(model, x, baseline, 1, layers, nodes=20_000)
    for layer in layers:
        jacobian = jacobian_total(model, x, baseline, 1, layer)
        assert relative_error(slow[layer], jacobian) < 1e-7
        assert float(jacobian.abs().sum()) > 1e-2


@pytest.mark.parametrize("name", ["residual", "two-inputs", "chunk"])
def test_literal_version_agrees_with_jacobians(name: str) -> None:
    model, x, layers = SMOOTH[name]
    alphas = _chebyshev(17)
    for layer in layers:
        literal = literal_total(model, x, _zero(x), 1, layer, alphas, lagrange_matrix(alphas))
        assert relative_error(literal, jacobian_total(model, x, _zero(x), 1, layer)) < 1e-7


@pytest.mark.parametrize("name", ["mlp", "mlp3x128", "mlp6x128", "narrow1", "thin4", "conv"])
def test_exact_reference_agrees_with_trapezoid(name: str) -> None:
    model, image = trained(name), digits().test[:1]
    baseline = torch.full_like(image, 0.25)
    target = int(digits().test_labels[0])
    layers = [*hidden_layers(model), "head"]
    exact = exact_piecewise_linear(model, image, baseline, target, layers)
    slow = trapezoid_total(model, image, baseline, target, layers, nodes=50_000)
    change = (model(image) - model(baseline))[0, target]
    for layer in [LEAF, *layers]:
        assert relative_error(slow[layer], exact[layer]) < 1e-3
        torch.testing.assert_close(exact[layer].sum(), change, rtol=1e-10, atol=1e-10)
    assert relative_error(slow["head"], exact["head"]) < 1e-9


def test_exact_reference_does_not_depend_on_its_grid() -> None:
    model, image = trained("mlp"), digits().test[1:2]
    layers = hidden_layers(model)
    first, second = (
        exact_piecewise_linear(model, image, torch.zeros_like(image), 3, layers, panels=panels) for panels in (512, 777)
    )
    for layer in layers:
        assert relative_error(first[layer], second[layer]) < 1e-11


def test_exact_reference_knows_convolutions() -> None:
    model, image = seeded(ConvNet), normal(1, 3, 8, 10)
    layers = ["conv", "norm", "act", "pool", "fc"]
    exact = exact_piecewise_linear(model, image, torch.zeros_like(image), 2, layers)
    slow = trapezoid_total(model, image, torch.zeros_like(image), 2, layers, nodes=20_000)
    for layer in layers:
        assert exact[layer].shape == slow[layer].shape
        assert relative_error(slow[layer], exact[layer]) < 1e-4


@pytest.mark.parametrize("name", WRONG_ANSWERS)
def test_unexplained_share_is_there_where_it_should_be(name: str) -> None:
    model, points = wrong_answer(name), normal(8, 6, scale=2.0)
    shares = [
        abs(unexplained_share(model, x[None], torch.zeros(1, 6, dtype=torch.float64), 0, nodes=20_000)) for x in points
    ]
    if name == "steep":
        assert max(shares) < 1e-3
    else:
        assert sum(share > 1e-2 for share in shares) >= 4


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
@pytest.mark.parametrize("name", NAMES)
def test_digit_networks_have_learned(name: str, activation: Activation) -> None:
    model = trained(name, activation)
    least = {"narrow1": 0.3, "thin1": 0.15, "thin2": 0.4, "thin4": 0.75, "narrow2": 0.75}.get(name, 0.9)
    assert accuracy(model) >= least
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_large_networks_have_the_points_they_promise() -> None:
    for model, points, number, batch in (
        (bert(), bert_points(), 28, bert_inputs()),
        (conv(), conv_points(), 25, conv_inputs()),
    ):
        assert len(set(points)) == number
        output, seen = _outputs(model, batch, points)
        assert output.shape == (2, 10)
        assert len(seen) == number
        assert all(len(tensor) == 2 and bool(tensor.isfinite().all()) for tensor in seen)


def _chebyshev(points: int) -> list[float]:
    angles = torch.arange(points, dtype=torch.float64) * torch.pi / (points - 1)
    return ((1 - torch.cos(angles)) / 2).tolist()


def _outputs(model: nn.Module, batch: Tensor, points: list[str]) -> tuple[Tensor, list[Tensor]]:
    seen: list[Tensor] = []
    handles = [
        model.get_submodule(point).register_forward_hook(lambda _module, _args, output: seen.append(output))
        for point in points
    ]
    output = model(batch)
    for handle in handles:
        handle.remove()
    return output, seen
