"""What must not change the conductance of weights, and what a tolerance promises."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance import ConvergenceWarning, WeightConductance, total_conductance, weight_conductance
from tests.benchmarks.nets import Activation, digits, trained
from tests.helpers import AttentionNet, ConvNet, normal, seeded
from tests.reference import relative_error
from tests.wrong_answers import wrong_answer

NETS: dict[str, tuple[nn.Module, Tensor]] = {
    "conv": (seeded(ConvNet), normal(4, 3, 8, 10)),
    "attention": (seeded(AttentionNet), normal(4, 5, 6)),
}
TARGETS = torch.tensor([2, 0, 3, 1])


def assert_same(found: WeightConductance, expected: WeightConductance, tolerance: float = 1e-12) -> None:
    assert list(found) == list(expected)
    for layer in expected:
        assert float(expected[layer].abs().sum()) > 1e-3
        assert relative_error(found[layer], expected[layer]) < tolerance


SIZES: list[Any] = [
    ({"n_steps": 6}, (1, 2, 3, 7)),
    ({"n_steps": 20}, (3, 7)),
    pytest.param({"rtol": 1e-1}, (7,), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("how", "sizes"), SIZES, ids=str)
@pytest.mark.parametrize("name", NETS)
def test_the_size_of_a_call_changes_nothing(name: str, how: dict[str, Any], sizes: tuple[int, ...]) -> None:
    model, inputs = NETS[name][0], NETS[name][1][:2]
    common: dict[str, Any] = {"target": TARGETS[:2], "baselines": [0.0, 0.2], **how}
    whole = weight_conductance(model, inputs, **common)
    for rows in sizes:
        found = weight_conductance(model, inputs, internal_batch_size=rows, **common)
        assert found.settings["internal_batch_size"] == rows
        assert_same(found, whole, 1e-10)
        assert (found.count, found.converged) == (whole.count, whole.converged)
        # Where nodes were laid on kinks, rounding says on which side they are, and which panels are left open.
        bound = 1e-6 if "n_steps" in how or name == "attention" else 0.5
        for layer in (layer for layer in whole if layer not in ("head", "down")):  # theirs is rounding
            assert float(whole.error(layer).sum()) > 1e-9 * float(whole[layer].abs().sum())
            assert relative_error(found.error(layer), whole.error(layer)) < bound


@pytest.mark.parametrize("name", NETS)
def test_no_call_is_larger_than_asked(name: str) -> None:
    model, inputs = NETS[name]
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(lambda _module, args: sizes.append(len(args[0])))
    try:
        weight_conductance(model, inputs, target=1, n_steps=9, internal_batch_size=3)
    finally:
        handle.remove()
    assert max(sizes) == 3


@pytest.mark.parametrize("name", NETS)
def test_neither_order_nor_other_layers_nor_batches_matter(name: str) -> None:
    model, inputs = NETS[name]
    whole = weight_conductance(model, inputs, target=TARGETS, n_steps=8)
    order = torch.tensor([2, 0, 3, 1])
    assert_same(weight_conductance(model, inputs[order], target=TARGETS[order], n_steps=8), whole)
    layers = whole.layers
    for some in (layers[0], layers[-1], [layers[1], layers[0]]):
        found = weight_conductance(model, inputs, some, target=TARGETS, n_steps=8)
        assert len(found) == (2 if isinstance(some, list) else 1)
        for layer in found:
            assert relative_error(found[layer], whole[layer]) < 1e-12
    parts = [
        weight_conductance(model, inputs[k:n], target=TARGETS[k:n], n_steps=8) for k, n in ((0, 1), (1, 3), (3, 4))
    ]
    together = sum(parts)
    assert isinstance(together, WeightConductance)
    assert_same(together, whole)
    assert (together.count, together.evaluations) == (4, whole.evaluations)
    assert together.output_change == pytest.approx(whole.output_change, rel=1e-12)
    for layer in layers:
        signed, square = parts[0].error_parts[layer]
        torch.testing.assert_close(square, signed**2, rtol=1e-9, atol=0.0)
        assert float(square.sum()) > 0 or layer == "head"
        gap = (together.error(layer) - whole.error(layer)).abs().sum()
        assert float(gap) <= 1e-6 * float(whole.error(layer).sum()) + 1e-14
        torch.testing.assert_close(together.mean(layer), whole[layer] / 4)


def test_two_calls_give_the_same_bits() -> None:
    model, inputs = NETS["conv"]
    first, second = (weight_conductance(model, inputs, target=1, rtol=1e-2) for _ in range(2))
    assert all(torch.equal(first[layer], second[layer]) for layer in first)


@pytest.mark.parametrize(("name", "activation"), [("mlp", "relu"), ("mlp", "gelu"), ("conv", "relu")])
def test_the_tolerance_is_kept(name: str, activation: Activation) -> None:
    model, images, labels = trained(name, activation), digits().test[:2], digits().test_labels[:2]
    true = weight_conductance(model, images, target=labels, rtol=1e-6, max_evaluations=100_000)
    assert true.converged == 2
    spent = []
    for rtol in (1e-1, 1e-2, 1e-3, 1e-4):
        found = weight_conductance(model, images, target=labels, rtol=rtol)
        assert found.count == found.converged == 2
        spent.append(found.evaluations)
        for layer in found:
            size, gap = found[layer].abs().sum(), (found[layer] - true[layer]).abs().sum()
            estimate = found.error(layer).sum()
            assert float(gap) <= rtol * float(true[layer].abs().sum())
            assert float(estimate) <= rtol * float(size)
            assert float(gap) <= float(estimate) + 1e-5 * float(size)
    assert spent[0] < spent[1] < spent[-1]


def test_absolute_tolerance_is_enough() -> None:
    model, images = trained("mlp"), digits().test[:2]
    fine = weight_conductance(model, images, target=3, rtol=1e-4)
    coarse = weight_conductance(model, images, target=3, rtol=1e-4, atol=1e3)
    assert coarse.converged == 2
    assert coarse.evaluations < fine.evaluations / 4


@pytest.mark.parametrize("name", ["round", "detached"])
def test_jumps_and_false_gradients_are_told_as_in_total_conductance(name: str) -> None:
    model, inputs = wrong_answer(name), normal(6, 6, seed=5, scale=1.5)
    inputs[2] = 0.01 * inputs[2]
    common: dict[str, Any] = {"target": 0, "rtol": 1e-2, "max_evaluations": 1000}
    with pytest.warns(ConvergenceWarning, match=name.replace("round", "jump").replace("detached", "gradient")):
        total = total_conductance(model, inputs, ["fc", "fc:in", "head", "head:in"], **common)
    with pytest.warns(ConvergenceWarning, match="of 6 examples did not converge"):
        found = weight_conductance(model, inputs, **common)
    assert found.count == 6
    assert found.converged == int(total.converged.sum()) < 6
    assert found.unattributed == pytest.approx(float(total.unattributed.sum()), rel=1e-9)
    assert abs(found.unattributed) > 1e-2
    for layer in found:
        assert relative_error(found.per_output(layer), total.per_unit(layer).sum(0)) < 1e-2


def test_a_spent_budget_is_told() -> None:
    model, inputs = NETS["conv"]
    with pytest.warns(ConvergenceWarning, match=r"of 4 examples did not converge to rtol=1e-06 \(\d budget\)"):
        found = weight_conductance(model, inputs, target=1, rtol=1e-6, max_evaluations=20)
    assert found.count == 4
    assert found.converged < 4
    assert found.evaluations <= 2 * 4 * 20
    assert float(found["conv"].abs().sum()) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_models(dtype: torch.dtype) -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv1d(2, 3, 4), nn.GELU(), nn.Flatten(), nn.Linear(12, 5)))
    inputs = normal(3, 2, 7)
    wide = weight_conductance(model, inputs, target=1, n_steps=9)
    found = weight_conductance(model.to(dtype), inputs.to(dtype), target=1, n_steps=9)
    for layer in wide:
        assert found[layer].dtype == torch.float32
        assert relative_error(found[layer].double(), wide[layer]) < {torch.float32: 1e-5}.get(dtype, 5e-2)
