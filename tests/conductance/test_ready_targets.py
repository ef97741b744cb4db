"""Ready-made targets: values by hand, for rows of any examples in any order."""

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import conductance as cd
from conductance import hooks, targets
from conductance.targeting import target_function
from conductance.targets import OutputTarget
from tests.helpers import normal

LOG2 = math.log(2.0)
#: Two examples of three classes, with easy probabilities: 1/4, 1/2, 1/4 and 1/5, 1/5, 3/5.
LOGITS = torch.tensor([[0.0, LOG2, 0.0], [1.0, 1.0, 1.0 + math.log(3.0)]], dtype=torch.float64)
#: Two examples, three positions, five tokens.
TEXT = torch.arange(30, dtype=torch.float64).reshape(2, 3, 5) ** 2
#: Two examples, three classes, one row of four pixels.
IMAGE = torch.arange(24, dtype=torch.float64).reshape(2, 3, 1, 4)
MASK = torch.tensor([[True, False, False, True]])
MASKS = torch.tensor([[[1.0, 0.0, 0.0, 0.5]], [[0.0, 2.0, 0.0, 0.0]]])

BY_HAND: list[tuple[OutputTarget, Tensor, list[float]]] = [
    (targets.logit(1), LOGITS, [LOG2, 1.0]),
    (targets.logit(-2), LOGITS, [LOG2, 1.0]),
    (targets.logit([1, 2]), LOGITS, [LOG2, 1.0 + math.log(3.0)]),
    (targets.logit((2, 4)), TEXT, [14.0**2, 29.0**2]),
    (targets.logit([(2, 4), (0, -1)]), TEXT, [14.0**2, 19.0**2]),
    (targets.logit_difference(1, 0), LOGITS, [LOG2, 0.0]),
    (targets.logit_difference([1, 0], [0, 2]), LOGITS, [LOG2, -math.log(3.0)]),
    (targets.logit_difference((1, 1), (0, 4)), TEXT, [36.0 - 16.0, 21.0**2 - 19.0**2]),
    (targets.margin(2), LOGITS, [-LOG2, math.log(3.0)]),
    (targets.margin([1, 0]), LOGITS, [LOG2, -math.log(3.0)]),
    (targets.probability(1), LOGITS, [1 / 2, 1 / 5]),
    (targets.probability([0, 2]), LOGITS, [1 / 4, 3 / 5]),
    (targets.probability(1, activation="sigmoid"), LOGITS, [2 / 3, math.e / (1 + math.e)]),
    (targets.probability(0, activation="sigmoid"), LOGITS[:, 1:2], [2 / 3, math.e / (1 + math.e)]),
    (targets.log_probability([0, 2]), LOGITS, [math.log(1 / 4), math.log(3 / 5)]),
    (targets.log_probability(1, activation="sigmoid"), LOGITS, [math.log(2 / 3), 1 - math.log(1 + math.e)]),
    (targets.loss(None, [1, 0]), LOGITS, [LOG2, math.log(5.0)]),
    (targets.loss(None, 1), LOGITS, [LOG2, math.log(5.0)]),
    (targets.loss(F.cross_entropy, [1, 0]), LOGITS, [LOG2, math.log(5.0)]),
    (targets.loss(nn.CrossEntropyLoss(reduction="none"), [1, 0]), LOGITS, [LOG2, math.log(5.0)]),
    (targets.loss(partial(F.cross_entropy, reduction="mean"), [1, 0]), LOGITS, [LOG2, math.log(5.0)]),
    (targets.loss(F.mse_loss, [[0.0, LOG2, 3.0], [1.0, 3.0, 1.0]]), LOGITS, [3.0, (4 + math.log(3.0) ** 2) / 3]),
    (targets.loss(F.l1_loss, 1.0), LOGITS, [(3 - LOG2) / 3, math.log(3.0) / 3]),
    (targets.loss(lambda out, y: (out[:, 0] - y) ** 2, [2.0, -1.0]), LOGITS, [4.0, 4.0]),
    (targets.token(2, 4), TEXT, [14.0**2, 29.0**2]),
    (targets.token(-3, [1, 0]), TEXT, [1.0, 15.0**2]),
    (targets.token([1, -1], [3, -5]), TEXT, [8.0**2, 25.0**2]),
    (targets.token(1, [1, 0], quantity="probability"), LOGITS[:, None].repeat(1, 4, 1), [1 / 2, 1 / 5]),
    (targets.token(1, 2, quantity="log_probability"), LOGITS[:, None].repeat(1, 4, 1), [-2 * LOG2, math.log(3 / 5)]),
    (targets.class_pixels(1), IMAGE, [4.0 + 5 + 6 + 7, 16.0 + 17 + 18 + 19]),
    (targets.class_pixels([2, 0]), IMAGE, [8.0 + 9 + 10 + 11, 12.0 + 13 + 14 + 15]),
    (targets.class_pixels([2, 0], MASK), IMAGE, [8.0 + 11, 12.0 + 15]),
    (targets.class_pixels([2, 0], MASKS), IMAGE, [8 + 11 / 2, 26.0]),
    (targets.output_sum(), IMAGE, [66.0, 210.0]),
    (targets.output_sum(), LOGITS[:, 1], [LOG2, 1.0]),
    (targets.output_sum(torch.tensor([1.0, 0.0, -2.0])), LOGITS, [0.0, -1 - 2 * math.log(3.0)]),
    (targets.output_sum([[True, True, False], [False, False, True]]), LOGITS, [LOG2, 1 + math.log(3.0)]),
    (targets.cosine_similarity([0.0, 5.0, 0.0]), LOGITS, [1.0, 1 / math.sqrt(2 + (1 + math.log(3.0)) ** 2)]),
    (targets.cosine_similarity([[1.0, 1.0, 0.0], [3.0, -3.0, 0.0]]), LOGITS, [math.sqrt(0.5), 0.0]),
]


@pytest.mark.parametrize(("target", "output", "expected"), BY_HAND, ids=[repr(case[0])[:60] for case in BY_HAND])
def test_values_by_hand_in_any_order_of_rows(target: OutputTarget, output: Tensor, expected: list[float]) -> None:
    known = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(target(output), known, rtol=1e-14, atol=1e-14)
    function, rows = target_function(target, 2), torch.tensor([1, 0, 0, 1, 1])
    torch.testing.assert_close(function(output[rows], rows), known[rows], rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(function(output[1:], rows[:1]), known[1:], rtol=1e-14, atol=1e-14)


#: Targets that differ between four examples, and the shape of the output they look at.
EACH: dict[str, tuple[Callable[[slice], OutputTarget], tuple[int, ...]]] = {
    "logit": (lambda s: targets.logit([2, 0, 5, 1][s]), (6,)),
    "logit_difference": (lambda s: targets.logit_difference([2, 0, 5, 1][s], [0, 1, 2, 3][s]), (6,)),
    "margin": (lambda s: targets.margin([2, 0, 5, 1][s]), (6,)),
    "probability": (lambda s: targets.probability([2, 0, 5, 1][s]), (6,)),
    "log_probability": (lambda s: targets.log_probability([2, 0, 5, 1][s], activation="sigmoid"), (6,)),
    "cross-entropy": (lambda s: targets.loss(None, [2, 0, 5, 1][s]), (6,)),
    "cross-entropy of pixels": (lambda s: targets.loss(None, (torch.arange(60).reshape(4, 3, 5) % 6)[s]), (6, 3, 5)),
    "squared error": (lambda s: targets.loss(F.mse_loss, normal(4, 6, seed=1)[s]), (6,)),
    "token": (lambda s: targets.token([0, 2, -1, 1][s], [4, 0, 3, 2][s], quantity="log_probability"), (3, 5)),
    "pixels": (lambda s: targets.class_pixels([2, 0, 5, 1][s], normal(4, 3, 5, seed=2)[s] > 0), (6, 3, 5)),
    "sum": (lambda s: targets.output_sum(normal(4, 3, 5, seed=3)[s]), (3, 5)),
    "cosine": (lambda s: targets.cosine_similarity(normal(4, 6, seed=4)[s]), (6,)),
}


@pytest.mark.parametrize("name", EACH)
def test_values_of_each_example_are_those_of_the_example_alone(name: str) -> None:
    build, shape = EACH[name]
    output = normal(4, *shape, seed=5)
    whole = build(slice(None))(output)
    alone = torch.cat([build(slice(n, n + 1))(output[n : n + 1]) for n in range(4)])
    torch.testing.assert_close(whole, alone, rtol=1e-14, atol=1e-14)
    shuffled = torch.tensor([3, 1, 1, 0, 2, 3])
    found = target_function(build(slice(None)), 4)(output[shuffled], shuffled)
    torch.testing.assert_close(found, alone[shuffled], rtol=1e-14, atol=1e-14)
    assert len(set(alone.tolist())) == 4  # no constant passes


@pytest.mark.parametrize("name", EACH)
def test_gradients_flow_and_each_row_depends_on_itself_only(name: str) -> None:
    build, shape = EACH[name]
    output = normal(4, *shape, seed=6).requires_grad_()
    rows = torch.tensor([2, 0, 3, 1])
    function = target_function(build(slice(None)), 4)
    assert torch.autograd.gradcheck(lambda out: function(out, rows), output)
    gradient = torch.autograd.functional.jacobian(lambda out: function(out, rows), output).flatten(2)
    size = gradient.abs().sum(2)
    assert (size.diagonal() > 0).all()
    assert torch.equal(size, size.diagonal().diag())


def test_the_loss_of_pixels_leaves_out_what_has_no_label() -> None:
    output = normal(2, 3, 4, seed=7)
    labels = torch.tensor([[0, -100, 2, 1], [-100, -100, 1, -100]])
    expected = [float(F.cross_entropy(output[n : n + 1], labels[n : n + 1])) for n in range(2)]
    torch.testing.assert_close(targets.loss(None, labels)(output).tolist(), expected)


def test_what_is_left_out_by_a_mask_may_be_infinite() -> None:
    output = torch.tensor([[1.0, -math.inf, 3.0]]).requires_grad_()
    value = targets.output_sum([1.0, 0.0, 2.0])(output)
    (gradient,) = torch.autograd.grad(value.sum(), output)
    assert (value.item(), gradient.tolist()) == (7.0, [[1.0, 0.0, 2.0]])


def test_half_precision_is_summed_and_subtracted_in_single_precision() -> None:
    output = torch.full((2, 3000), 0.125, dtype=torch.bfloat16)
    assert targets.output_sum()(output).tolist() == [375.0, 375.0]
    assert targets.log_probability(7)(output)[0].item() == pytest.approx(-math.log(3000), rel=1e-6)


@dataclass
class _Scores:
    scores: Tensor
    name: str = "x"


@pytest.mark.parametrize(
    ("output", "key"),
    [
        (LOGITS, None),
        ({"logits": LOGITS, "aux": TEXT}, None),
        (SimpleNamespace(logits=LOGITS), None),
        ({"logits": TEXT, "scores": LOGITS}, "scores"),
        (_Scores(LOGITS), "scores"),
        ((TEXT, LOGITS), 1),
        ([LOGITS, TEXT], -2),
        ({3: LOGITS}, 3),
    ],
    ids=["tensor", "dict", "object", "dict by key", "dataclass by key", "tuple", "list", "dict by number"],
)
def test_the_tensor_that_a_key_names_is_looked_at(output: Any, key: str | int | None) -> None:
    found = target_function(targets.logit([1, 2], key=key), 2)(output, torch.tensor([0, 1]))
    assert found.tolist() == [LOG2, 1.0 + math.log(3.0)]


def test_one_target_for_each_generated_token() -> None:
    ids = torch.tensor([[4, 0, 3, 1, 2], [1, 1, 0, 4, 3]])
    output = normal(2, 5, 6, seed=8)
    for start, first in ((2, 2), (-3, 2), (1, 1)):
        found = targets.tokens(ids, start, quantity="log_probability")
        assert len(found) == 5 - first
        for place, target in enumerate(found, first):
            expected = output[:, place - 1].log_softmax(1)[torch.arange(2), ids[:, place]]
            torch.testing.assert_close(target(output), expected)
    assert repr(found[0]) == "targets.token(0, [0, 1], quantity='log_probability')"


def test_a_target_is_written_as_the_call_that_makes_it() -> None:
    long = torch.arange(200) % 3
    for text in (
        "targets.logit(3)",
        "targets.logit((2, 0))",
        "targets.logit([1, 0])",
        "targets.logit([(1, 0), (0, 2)], key='scores')",
        f"targets.logit_difference({long.tolist()}, -1)",
        "targets.probability(0, activation='sigmoid')",
        "targets.loss(None, [1, 0])",
        "targets.token([3, -1], 7, quantity='probability', key=0)",
        "targets.class_pixels(2, [[True, False]])",
        "targets.output_sum()",
        "targets.cosine_similarity([0.5, 2.0])",
    ):
        target = eval(text, {"targets": cd.targets})
        assert repr(target) == text
        assert repr(pickle.loads(pickle.dumps(target))) == text
    assert repr(targets.logit(np.int64(3))) == "targets.logit(3)"
    assert repr(targets.logit(torch.tensor([[2], [1]], dtype=torch.int32))) == "targets.logit([2, 1])"
    large = torch.zeros(5, 28, 3)
    assert repr(targets.loss(F.mse_loss, large)) == "targets.loss(mse_loss, <tensor (5, 28, 3) of float32>)"
    smooth = partial(F.cross_entropy, label_smoothing=0.1)
    assert (
        repr(targets.loss(smooth, long))
        == f"targets.loss(partial(cross_entropy, label_smoothing=0.1), {long.tolist()})"
    )
    assert repr(targets.loss(nn.MSELoss(reduction="none"), 0.0)) == "targets.loss(MSELoss(), 0.0)"


def test_points_can_be_listed_for_a_target() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    table = hooks.list_points(model, normal(2, 4), target=targets.probability([2, 0]))
    assert len(table) >= 3
    assert all(info.is_cut for info in table)
