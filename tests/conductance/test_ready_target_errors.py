"""What is said of arguments and outputs that ready-made targets cannot use: which one, and the way out."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conductance import targets
from conductance.targeting import target_function
from tests.helpers import normal

SCORES, TEXT, IMAGE = normal(2, 3, seed=1), normal(2, 4, 7, seed=2), normal(2, 3, 5, 6, seed=3)
UNCALLED: Any = targets.output_sum
CLASS: Any = nn.MSELoss
NO_TENSOR: Any = lambda out, y: 0.5  # noqa: E731
IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])

MAKING: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: targets.logit(True), TypeError, r"targets.logit: index is True; expected an int, a tuple"),
    (lambda: targets.logit(1.0), TypeError, r"targets.logit: index is 1.0; expected an int"),
    (lambda: targets.logit("cat"), TypeError, r"targets.logit: index is 'cat'"),
    (lambda: targets.logit(None), TypeError, r"targets.logit: index is no index \(NoneType: "),
    (
        lambda: targets.logit([0, 1.5]),
        TypeError,
        r"targets.logit: index holds torch.float32 numbers; expected integers",
    ),
    (lambda: targets.logit(torch.tensor([True, False])), TypeError, r"index holds torch.bool numbers"),
    (lambda: targets.logit(torch.zeros(2, 3, 4, dtype=torch.long)), ValueError, r"index has shape \(2, 3, 4\)"),
    (lambda: targets.logit(0, key=1.5), TypeError, r"targets.logit: key is 1.5; expected the name"),  # type: ignore[arg-type]
    (lambda: targets.logit(0, key=True), TypeError, r"targets.logit: key is True"),
    (lambda: targets.logit_difference(0, 1.0), TypeError, r"targets.logit_difference: b is 1.0"),
    (
        lambda: targets.margin((0, 1)),
        ValueError,
        r"targets.margin: index gives 2 indices for one place; expected an int",
    ),
    (lambda: targets.probability([(0, 1)]), ValueError, r"targets.probability: index gives 2 indices"),
    (
        lambda: targets.probability(0, activation="relu"),  # type: ignore[arg-type]
        ValueError,
        r"activation must be 'softmax' or 'sigmoid', got 'relu'",
    ),
    (lambda: targets.token(0.5, 1), TypeError, r"targets.token: position is 0.5"),
    (lambda: targets.token(0, "the"), TypeError, r"targets.token: token_id is 'the'"),
    (lambda: targets.token(0, 1, quantity="p"), ValueError, r"quantity must be 'logit', 'log_prob"),  # type: ignore[arg-type]
    (lambda: targets.tokens([["a", "b"]]), TypeError, r"targets.tokens: ids is a list that is no tensor"),
    (
        lambda: targets.tokens(IDS.float()),
        TypeError,
        r"targets.tokens: ids holds torch.float32 numbers; expected token",
    ),
    (lambda: targets.tokens(IDS > 2), TypeError, r"targets.tokens: ids is boolean"),
    (
        lambda: targets.tokens(IDS[0]),
        ValueError,
        r"ids has shape \(3,\); expected \(batch, length\), one row: ids\[None\]",
    ),
    (lambda: targets.tokens(IDS, 0), ValueError, r"start is 0 for 3 tokens; expected 1 … 2: the first token"),
    (lambda: targets.tokens(IDS, 3), ValueError, r"start is 3 for 3 tokens"),
    (lambda: targets.tokens(IDS, -3), ValueError, r"start is -3 for 3 tokens"),
    (lambda: targets.tokens(IDS, 1.0), TypeError, r"start is 1.0; expected an int"),  # type: ignore[arg-type]
    (lambda: targets.loss(None, [math.nan, 1.0]), ValueError, r"targets.loss: labels holds NaN or infinity"),
    (lambda: targets.loss(None, torch.tensor([True])), TypeError, r"labels is boolean; expected numbers: .long\(\)"),
    (lambda: targets.loss(None, "cat"), TypeError, r"targets.loss: labels is a str that is no tensor"),
    (lambda: targets.loss(None, []), ValueError, r"targets.loss: labels is empty"),
    (lambda: targets.loss(F.mse_loss, torch.ones(2) * 1j), TypeError, r"targets.loss: labels is complex"),
    (lambda: targets.loss("mse", [0, 1]), TypeError, r"loss_function is 'mse'; expected a function"),  # type: ignore[arg-type]
    (lambda: targets.loss(CLASS, [0, 1]), TypeError, r"loss_function is a class: make an instance, with red"),
    (lambda: targets.loss(nn.MSELoss(), [0, 1]), ValueError, r"MSELoss\(\) with reduction='mean', one value for the"),
    (lambda: targets.output_sum([0.0, 0.0]), ValueError, r"targets.output_sum: mask selects nothing"),
    (lambda: targets.output_sum([math.inf]), ValueError, r"targets.output_sum: mask holds NaN or infinity"),
    (lambda: targets.class_pixels(0, "all"), TypeError, r"targets.class_pixels: mask is a str that is no tensor"),
    (lambda: targets.class_pixels((0, 1)), ValueError, r"targets.class_pixels: index gives 2 indices"),
    (lambda: targets.cosine_similarity([0.0, 0.0]), ValueError, r"reference holds a vector of zeros"),
    (lambda: targets.cosine_similarity([[1.0, 0.0], [0.0, 0.0]]), ValueError, r"reference holds a vector of zeros"),
    (lambda: targets.cosine_similarity(3.0), ValueError, r"reference has shape \(\); expected \(dims,\)"),
    (lambda: targets.cosine_similarity([math.nan]), ValueError, r"reference holds NaN"),
]


@pytest.mark.parametrize(("make", "kind", "message"), MAKING, ids=[case[2][:50] for case in MAKING])
def test_bad_arguments_are_named_at_once(make: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()


RUNNING: list[tuple[Any, Any, type[Exception], str]] = [
    (
        targets.logit(3),
        SCORES,
        ValueError,
        r"index 3 is out of range for an output of shape \(batch, 3\); expected 0 … 2",
    ),
    (targets.logit([0, -4]), SCORES, ValueError, r"index -4 is out of range"),
    (
        targets.logit([0, 1]),
        SCORES[:, :1],
        ValueError,
        r"index 1 .*\(batch, 1\); expected 0: one .* no class to choose",
    ),
    (
        targets.logit(0),
        TEXT,
        ValueError,
        r"gives 1 index but.*\(batch, 4, 7\): expected a tuple of 2.*token, class_pixels",
    ),
    (targets.logit((0, 7)), TEXT, ValueError, r"index \(0, 7\) is out of range .*\(batch, 4, 7\); expected 0 … 6"),
    (targets.logit([0, 1, 2]), SCORES, ValueError, r"targets.logit: index has 3 entries for 2 examples"),
    (targets.logit_difference(0, [1]), SCORES, ValueError, r"targets.logit_difference: b has 1 entries for 2 examples"),
    (targets.margin([0, 1, 2]), SCORES, ValueError, r"targets.margin: index has 3 entries for 2 examples"),
    (targets.margin(3), SCORES, ValueError, r"targets.margin: index 3 is out of range"),
    (targets.margin(0), SCORES[:, :1], ValueError, r"targets.margin compares classes.*\(batch, 1\); a single logit"),
    (targets.probability(0), SCORES[:, :1], ValueError, r'targets.probability compares.*activation="sigmoid"'),
    (targets.log_probability(0), TEXT, ValueError, r"takes an output of shape \(batch, classes\), got \(batch, 4, 7\)"),
    (targets.probability(5), SCORES, ValueError, r"targets.probability: index 5 is out of range"),
    (targets.token(0, 1), SCORES, ValueError, r"targets.token takes .*\(batch, tokens, vocabulary\), got \(batch, 3\)"),
    (targets.token(4, 1), TEXT, ValueError, r"position 4 is out of range .*\(batch, 4, 7\); expected 0 … 3"),
    (targets.token(-5, 1), TEXT, ValueError, r"position -5 is out of range"),
    (targets.token(0, 7), TEXT, ValueError, r"token_id 7 is out of range .*expected 0 … 6"),
    (targets.token([0, 1, 2], 1), TEXT, ValueError, r"targets.token: position has 3 entries for 2 examples"),
    (targets.token(0, [1], quantity="probability"), TEXT, ValueError, r"targets.token: token_id has 1 entries for 2"),
    (targets.loss(None, [0, 1, 2]), SCORES, ValueError, r"targets.loss: labels has 3 entries for 2 examples"),
    (targets.loss(None, [0, 3]), SCORES, ValueError, r"label 3 is out of range .*expected 0 … 2, or -100"),
    (targets.loss(None, [0, -1]), SCORES, ValueError, r"label -1 is out of range"),
    (targets.loss(None, [0.0, 1.0]), SCORES, TypeError, r"labels hold torch.float64 numbers.*name the loss function"),
    (targets.loss(None, [0, 0]), SCORES[:, :1], ValueError, r"of several classes.*binary_cross_entropy_with_logits"),
    (targets.loss(None, [0, 1]), TEXT, ValueError, r"got \(batch, 4, 7\) and \(batch\); name another"),
    (targets.loss(None, [-100, 1]), SCORES, ValueError, r"every label of an example is -100"),
    (targets.loss(lambda out, y: (out - y[:, None]).mean(), [0.0, 1.0]), SCORES, ValueError, r"reduces over the batch"),
    (
        targets.loss(lambda out, y: out[:, :1] - y, [0.0, 1.0]),
        SCORES,
        ValueError,
        r"returned shape \(2, 2\) .*labels\[:, N",
    ),
    (targets.loss(NO_TENSOR, [0.0, 1.0]), SCORES, TypeError, r"loss function returned a float"),
    (
        targets.class_pixels(0),
        SCORES,
        ValueError,
        r"targets.class_pixels takes .*classes, \*pixels\), got \(batch, 3\)",
    ),
    (targets.class_pixels(3), IMAGE, ValueError, r"targets.class_pixels: index 3 is out of range"),
    (
        targets.class_pixels(0, torch.ones(6, 5)),
        IMAGE,
        ValueError,
        r"mask has shape \(6, 5\); expected \(5, 6\), or one",
    ),
    (targets.class_pixels(0, torch.ones(3, 5, 6)), IMAGE, ValueError, r"mask has 3 entries for 2 examples"),
    (targets.output_sum([1.0, 1.0]), SCORES, ValueError, r"mask has shape \(2,\); expected \(3,\).*\(batch, 3\)"),
    (targets.output_sum(torch.ones(1, 2, 3)), SCORES, ValueError, r"mask has shape \(1, 2, 3\)"),
    (
        targets.cosine_similarity([1.0, 1.0]),
        SCORES,
        ValueError,
        r"reference has shape \(2,\) and the output \(batch, 3\)",
    ),
    (
        targets.cosine_similarity([1.0] * 7),
        TEXT,
        ValueError,
        r"expected an output \(batch, 7\): pool tokens in the model",
    ),
    (
        targets.logit(0),
        {"a": SCORES, "b": 1},
        TypeError,
        r"a dict without 'logits'.*key=.*its tensors are: 'a' \(2, 3\)\)",
    ),
    (targets.logit(0), (SCORES, TEXT), TypeError, r"a tuple without 'logits'.*are: 0 \(2, 3\), 1 \(2, 4, 7\)\)"),
    (targets.logit(0), 1.5, TypeError, r"a float without 'logits'.*are: none"),
    (targets.logit(0, key="b"), {"a": SCORES}, TypeError, r"key='b' finds nothing in the dict .*are: 'a' \(2, 3\)"),
    (targets.logit(0, key="b"), {"b": [1]}, TypeError, r"key='b' finds a list in the dict"),
    (targets.logit(0, key="b"), SimpleNamespace(a=SCORES), TypeError, r"finds nothing in the SimpleNamespace.*'a'"),
    (targets.logit(0, key=2), (SCORES, TEXT), TypeError, r"key=2 finds nothing in the tuple"),
    (
        targets.logit(0, key="a"),
        SCORES,
        TypeError,
        r"key='a' is given, but the model returned a tensor \(2, 3\); leave",
    ),
    (targets.output_sum(), SCORES[0], ValueError, r"output of shape \(3,\) for 2 rows; expected \(2, …\)"),
    (
        0,
        SCORES[:1],
        ValueError,
        r"output of shape \(1, 3\) for 2 rows; expected \(2, …\): the model must keep its rows",
    ),
    *(
        (t, SCORES.argmax(1), TypeError, r"holds torch.int64 numbers.*scores before argmax")
        for t in (targets.logit(0), 0)
    ),
    *((t, SCORES > 0, TypeError, r"holds torch.bool numbers") for t in (targets.output_sum(), 0, None)),
]


@pytest.mark.parametrize(
    ("target", "output", "kind", "message"),
    RUNNING,
    ids=[f"{number} {case[0]!r}"[:50] for number, case in enumerate(RUNNING)],
)
def test_an_output_that_does_not_fit_is_told(target: Any, output: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        target_function(target, 2)(output, torch.tensor([0, 1]))


def test_labels_that_would_be_compared_with_every_row_are_refused() -> None:
    with (
        pytest.warns(UserWarning, match="different to the input size"),
        pytest.raises(ValueError, match=r"returned shape \(2, 2\) for an output \(2, 1\) and labels \(2,\)"),
    ):
        targets.loss(F.mse_loss, [0.5, 1.5])(SCORES[:, :1])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda out: out.mean(), r"returned shape \(\) for 2 rows.*one value per example.*reduction='none'"),
        (
            lambda out: (out[:, :1] - torch.zeros(2)) ** 2,
            r"returned shape \(2, 2\).*every row is compared with every other",
        ),
        (
            lambda out: out,
            r"returned shape \(2, 3\).*further axes of the model's output, \(2, 3\), such as by \[:, k\]",
        ),
        (lambda out: out.sum(0), r"returned shape \(3,\).*rows must stay apart"),
    ],
    ids=["a scalar loss", "a comparison of all rows", "all classes", "a sum over the batch"],
)
def test_a_callable_that_gives_no_value_per_example_is_told_why(target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        target_function(target, 2)(SCORES, torch.tensor([0, 1]))


@pytest.mark.parametrize("target", [None, 0, targets.output_sum()])
def test_a_model_that_returns_one_loss_for_the_batch_is_told(target: Any) -> None:
    with pytest.raises(ValueError, match=r"one number, shape \(\), for the whole batch.*return one value per example"):
        target_function(target, 2)(SCORES.mean(), torch.tensor([0, 1]))


def test_a_decision_has_no_gradient() -> None:
    def positive(output: Tensor) -> Tensor:
        return output[:, 0] > 0

    with pytest.raises(TypeError, match=r"returned torch.bool; expected floating-point numbers \(a comparison"):
        target_function(positive, 2)(SCORES, torch.tensor([0, 1]))


def test_a_function_that_was_not_called_is_told() -> None:
    with pytest.raises(
        TypeError, match=r"target is the function targets.output_sum itself; call it, such as target=tar"
    ):
        target_function(UNCALLED, 2)(SCORES, torch.tensor([0, 1]))
