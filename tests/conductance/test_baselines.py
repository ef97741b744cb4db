"""Baselines by name, and a warning where one is as sure of the prediction as the input."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance import baselines, total_conductance
from tests.helpers import normal

X = normal(3, 2, 5, 7, seed=3)


def images() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(60, 6)).double().eval()


@pytest.mark.parametrize("name", [*baselines.NAMED])
def test_a_name_is_the_tensor_that_its_function_makes(name: str) -> None:
    made = baselines.NAMED[name](X)
    assert made.shape == X.shape
    options: dict[str, Any] = {"target": 1, "rtol": 1e-6}
    found = total_conductance(images(), X, "1", baselines=name, **options)
    assert torch.equal(found["1"], total_conductance(images(), X, "1", baselines=made, **options)["1"])
    assert float(found["1"].abs().sum()) > 0.01
    assert found.settings["baselines"] == name


def test_the_mean_is_the_same_for_all_and_permuted_the_own_of_none() -> None:
    torch.testing.assert_close(baselines.mean(X), torch.stack([X.mean(0)] * 3))
    for seed in range(20):
        order = baselines.permuted(torch.arange(5.0)[:, None], seed)[:, 0]
        assert sorted(order.tolist()) == [0, 1, 2, 3, 4]
        assert bool((order != torch.arange(5)).all())
    several = {tuple(baselines.permuted(torch.arange(5.0)[:, None], seed)[:, 0].tolist()) for seed in range(20)}
    assert len(several) > 5
    assert torch.equal(baselines.permuted(X, 7), baselines.permuted(X, 7))


def test_blur_is_a_gaussian_that_keeps_flat_pictures() -> None:
    torch.testing.assert_close(baselines.blur(torch.full_like(X, 2.5)), torch.full_like(X, 2.5))
    spot = torch.zeros(1, 1, 21, 31, dtype=torch.float64)
    spot[0, 0, 10, 15] = 1.0
    places = torch.arange(31, dtype=torch.float64) - 15
    bell = torch.exp(-0.5 * (places / 1.5) ** 2)
    expected = (bell / bell.sum())[5:26, None] * (bell / bell.sum())
    torch.testing.assert_close(baselines.blur(spot, sigma=1.5)[0, 0], expected, rtol=0, atol=2e-4)
    assert float(baselines.blur(X).std()) < 0.7 * float(X.std())
    for shape in [(2, 3, 9), (2, 1, 4, 5, 6)]:
        assert baselines.blur(normal(*shape)).shape == shape
    assert baselines.blur(X.half()).dtype == torch.float16


def test_only_what_a_dict_names_moves() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(5, 4)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (self.first(a) * self.second(b)).sum(1)  # type: ignore[no-any-return]

    model, a, b = Two().double(), normal(2, 3), normal(2, 5, seed=1)
    found = total_conductance(model, {"a": a, "b": b}, ["first", "second"], baselines={"b": 0.5}, rtol=1e-8)
    assert bool((found["first"] == 0).all())
    change = (model(a, b) - model(a, torch.full_like(b, 0.5))).detach()
    torch.testing.assert_close(found["second"].sum(1), change)
    assert float(change.abs().sum()) > 0.01
    both = total_conductance(model, (a, b), ["first", "second"], baselines={0: 0.0, 1: 0.5}, rtol=1e-8)
    torch.testing.assert_close(both["first"].sum(1) + both["second"].sum(1), both.output_change)
    with pytest.raises(ValueError, match="every dict must name the same inputs"):
        total_conductance(model, (a, b), "first", baselines=[{0: 0.0}, {1: 0.0}])


@pytest.mark.parametrize(
    ("inputs", "given", "message"),
    [
        (X, "zero", "baselines is 'zero'; expected one of 'zeros', 'mean', 'permuted', 'blur'"),
        (X, "pad", "'pad' for paths from token embeddings"),
        (X[:1], "mean", "'mean' takes a batch of at least two examples, got 1"),
        (X[:1], "permuted", "'permuted' takes a batch of at least two examples, got 1"),
        (X, lambda x: baselines.blur(x, sigma=0.0), "sigma of 'blur' is 0.0"),
        (X, {}, "at least one"),
    ],
)
def test_what_cannot_be_used_is_named(inputs: Tensor, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        total_conductance(images(), inputs, "1", target=1, baselines=given)


def test_blur_takes_images() -> None:
    with pytest.raises(ValueError, match=r"'blur' takes images .*, got shape \(3, 4\)"):
        baselines.blur(normal(3, 4))


class Sure(nn.Module):
    """Two classes, of which one is certain without any input."""

    def __init__(self, *, softmax: bool, bias: float = 4.0) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.softmax = softmax
        nn.init.normal_(self.layer.weight)
        self.layer.bias.data = torch.tensor([bias, 0.0])

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x)
        return output.softmax(1) if self.softmax else output


@pytest.mark.parametrize("softmax", [False, True])
def test_a_baseline_that_is_itself_confident_is_told(softmax: bool) -> None:
    model, x = Sure(softmax=softmax).double(), normal(4, 3)
    expected = 1 / (1 + math.exp(-4.0))
    for target in (0, [1, 0, 1, 1]):
        with pytest.warns(UserWarning, match=f"the baseline is itself confident.* a probability of {expected:.3f}"):
            total_conductance(model, x, "layer", target=target)
    with pytest.warns(UserWarning, match="at baseline 1 of example 0"):
        total_conductance(model, x, "layer", target=0, baselines=[-9.0 * model.layer.weight[0].detach(), 0])
    each = torch.stack([-9.0 * model.layer.weight[0].detach(), *[torch.zeros(3)] * 3])
    with pytest.warns(UserWarning, match="at example 1 the model"):
        total_conductance(model, x, "layer", target=0, baselines=each)


@pytest.mark.parametrize("target", [1, [1, 1, 1, 1], lambda output: output[:, 0]])
def test_other_targets_are_not(target: Any) -> None:
    found = total_conductance(Sure(softmax=False).double(), normal(4, 3), "layer", target=target)
    assert float(found["layer"].abs().sum()) > 0.01


def test_baselines_below_the_limit_are_not() -> None:
    found = total_conductance(Sure(softmax=False, bias=2.0).double(), normal(4, 3), "layer", target=0)
    torch.testing.assert_close(found.baseline_output, torch.full((4,), 2.0, dtype=torch.float64))
