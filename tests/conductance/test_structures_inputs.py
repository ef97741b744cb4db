"""Inputs and outputs of every form, extra arguments with and without a batch axis, and batches that are none."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance import ConductanceError, total_conductance
from conductance.hooks import list_points
from tests.conductance.structures import net
from tests.helpers import normal

X, OTHER = normal(3, 4, seed=1), normal(3, 4, seed=2)


@dataclass
class Answer:
    logits: Tensor
    hidden: Tensor | None = None


def forward(m: Any, x: Tensor, *, other: Tensor | None = None, switch: Any = None) -> Tensor:
    hidden = m.body(x if other is None else x + 0.5 * other).tanh()
    logits: Tensor = m.head(hidden if switch is None else 2 * hidden)
    return logits


def plain() -> nn.Module:
    torch.manual_seed(0)
    return net(forward, body=nn.Linear(4, 5), head=nn.Linear(5, 2))


def answering(wrap: Callable[[Tensor], Any]) -> nn.Module:
    torch.manual_seed(0)
    return net(lambda m, *args, **kwargs: wrap(forward(m, *args, **kwargs)), body=nn.Linear(4, 5), head=nn.Linear(5, 2))


EXPECTED = total_conductance(plain(), X, target=0, rtol=1e-8)

FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "tuple": ((X,), {}),
    "list": ([X], {}),
    "dict": ({"x": X}, {}),
    "None by name": ({"x": X, "other": None}, {}),
    "keyword-only, a flag": ({"x": X, "switch": None}, {}),
    "additional names": (X, {"additional_forward_args": {"other": None}}),
    "beside a tensor that stays at its baseline": ({"x": X, "other": torch.zeros(3, 4)}, {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_inputs_of_every_form(form: str) -> None:
    inputs, more = FORMS[form]
    total = total_conductance(plain(), inputs, target=0, rtol=1e-8, **more)
    torch.testing.assert_close(total["body"], EXPECTED["body"], rtol=1e-7, atol=1e-9)


def test_what_a_tokenizer_gives() -> None:
    transformers = pytest.importorskip("transformers")
    inputs = transformers.BatchEncoding({"x": X, "other": OTHER})
    total = total_conductance(plain(), inputs, target=0, rtol=1e-8)
    expected = total_conductance(plain(), {"x": X, "other": OTHER}, target=0, rtol=1e-8)
    torch.testing.assert_close(total["body"], expected["body"], rtol=0, atol=0)
    torch.testing.assert_close(total["body"].sum(1), total["head"].sum(1), rtol=1e-7, atol=1e-10)


OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], Any]] = {
    "dict": (lambda logits: {"logits": logits, "nothing": None}, 0),
    "dataclass": (Answer, 0),
    "tuple": (lambda logits: (logits, None), lambda output: output[0][:, 0]),
    "dict of another name": (lambda logits: {"scores": logits}, lambda output: output["scores"][:, 0]),
}


@pytest.mark.parametrize("form", OUTPUTS)
def test_outputs_of_every_form(form: str) -> None:
    wrap, target = OUTPUTS[form]
    total = total_conductance(answering(wrap), X, target=target, rtol=1e-8)
    torch.testing.assert_close(total["body"], EXPECTED["body"], rtol=1e-7, atol=1e-9)


def test_an_output_without_logits_needs_a_callable() -> None:
    with pytest.raises(TypeError, match=r"returned a tuple without 'logits'.*callable"):
        total_conductance(answering(lambda logits: (logits, None)), X, target=0)


def mixed(m: Any, x: Tensor, matrix: Tensor, scale: Tensor | None = None) -> Tensor:
    hidden = (m.body(x) @ matrix).tanh()
    logits: Tensor = m.head(hidden if scale is None else hidden * scale[:, None])
    return logits


def test_extra_tensors_are_repeated_only_if_they_have_a_batch_axis() -> None:
    torch.manual_seed(0)
    model = net(mixed, body=nn.Linear(4, 5), head=nn.Linear(5, 2))
    matrix, scale = normal(5, 5, seed=3), torch.tensor([1, 2, 3])
    total = total_conductance(model, X, target=0, rtol=1e-8, additional_forward_args=(matrix, scale))
    for example in range(3):
        extra = (matrix, scale[example : example + 1])
        alone = total_conductance(model, X[example : example + 1], target=0, rtol=1e-8, additional_forward_args=extra)
        torch.testing.assert_close(total["body"][example], alone["body"][0], rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(total["body"].sum(1), total.output_change, rtol=1e-7, atol=1e-10)


def test_an_extra_tensor_as_long_as_the_batch_by_chance_is_named_in_fixed() -> None:
    torch.manual_seed(0)
    model = net(mixed, body=nn.Linear(4, 5), head=nn.Linear(5, 2))
    matrix, five = normal(5, 5, seed=3), normal(5, 4, seed=1)
    with pytest.raises(ConductanceError, match=r"argument 1 of shape \(5, 5\).*follows the rows: name it in fixed"):
        total_conductance(model, five, target=0, additional_forward_args=matrix)
    total = total_conductance(model, five, target=0, rtol=1e-8, additional_forward_args=matrix, fixed=1)
    three = total_conductance(model, five[:3], target=0, rtol=1e-8, additional_forward_args=matrix)
    torch.testing.assert_close(total["body"][:3], three["body"], rtol=1e-7, atol=1e-10)


def test_one_entry_an_example_in_a_list_is_asked_for_as_a_tensor() -> None:
    def weighted(m: Any, x: Tensor, weights: list[float]) -> Tensor:
        logits: Tensor = m.head(m.body(x).tanh() * torch.tensor(weights, dtype=x.dtype)[:, None])
        return logits

    model = net(weighted, body=nn.Linear(4, 5), head=nn.Linear(5, 2))
    with pytest.raises(ConductanceError, match=r"argument 1, a list of 3, is handed on as it is.*give a tensor"):
        total_conductance(model, X, target=0, additional_forward_args=([1.0, 2.0, 3.0],))


def test_a_model_that_hard_codes_the_batch_size_is_told_and_still_listed() -> None:
    def rigid(m: Any, x: Tensor) -> Tensor:
        logits: Tensor = m.head(m.body(x).reshape(3, 5).tanh())
        return logits

    model = net(rigid, body=nn.Linear(4, 5), head=nn.Linear(5, 2))
    with pytest.raises(ConductanceError, match=r"runs on 3 rows but not on 2.*x\.shape\[0\] in place of a number"):
        total_conductance(model, X, target=0)
    assert [info.name for info in list_points(model, X, target=0)] == ["body", "head", "(model)"]


UNBATCHED: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "features": (plain, X[0]),
    "an image": (
        lambda: net(
            lambda m, x: m.head(m.norm(m.body(x)).flatten(1)),
            body=nn.Conv2d(3, 5, 2), norm=nn.BatchNorm2d(5), head=nn.Linear(5 * 6 * 4, 2),
        ),
        normal(3, 7, 5),
    ),
    "a sequence": (
        lambda: net(
            lambda m, x: m.head(m.body(x)[0][:, -1]), body=nn.LSTM(4, 5, batch_first=True), head=nn.Linear(5, 2)
        ),
        normal(6, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNBATCHED)
def test_unbatched_input_is_told_what_was_taken_for_the_batch(name: str) -> None:
    build, x = UNBATCHED[name]
    shape = tuple(x.shape)
    with pytest.raises(ConductanceError) as caught:
        total_conductance(build(), x, target=0)
    assert f"inputs[0] of shape {shape} was taken for a batch of {shape[0]} examples of shape {shape[1:]}" in str(
        caught.value
    )
    assert "inputs.unsqueeze(0)" in str(caught.value)
    total = total_conductance(build(), x.unsqueeze(0), target=0, n_steps=5)
    assert len(total["body" if name != "a sequence" else "body[0]"]) == 1


def test_inputs_with_time_first_are_told_to_be_wrapped() -> None:
    torch.manual_seed(0)
    model = net(lambda m, x: m.head(m.body(x)[0][-1]), body=nn.LSTM(4, 5), head=nn.Linear(5, 2))
    x = normal(6, 3, 4)
    with pytest.raises(ValueError, match=r"inputs must have the batch first; wrap a model.*x\.transpose\(0, 1\)"):
        total_conductance(model, x, target=0)
    wrapped = net(lambda m, x: m.inner(x.transpose(0, 1)), inner=model)
    total = total_conductance(wrapped, x.transpose(0, 1), target=0, rtol=1e-8)
    assert total["inner.body[0]"].shape == (3, 6, 5)
    torch.testing.assert_close(total["inner.body[0]"].sum((1, 2)), total.output_change, rtol=1e-7, atol=1e-10)
