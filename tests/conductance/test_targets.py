"""What is said of a target that does not fit the model's output."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance import ConductanceError, targets, total_conductance
from conductance.targeting import target_function
from tests.helpers import normal

ROWS = torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(
    ("shape", "target", "expected"),
    [
        ((2, 3), None, r"target is missing.*\(batch, 3\).*give target as an index \(0 … 2\)"),
        ((2, 1, 8, 5), None, r"target is missing.*give target as a tuple of 3 indices such as \(0, 0, 0\)"),
        ((2, 1, 8, 5), 3, r"target gives 1 index but.*expected a tuple of 3 indices such as \(0, 0, 0\)"),
        ((2, 3), (0, 1), r"target gives 2 indices but.*\(batch, 3\): expected one index"),
        ((2,), 0, r"target gives 1 index but.*\(batch\): expected no target"),
    ],
)
def test_a_target_of_wrong_length_is_told_what_the_output_takes(
    shape: tuple[int, ...], target: Any, expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        target_function(target, 2)(torch.zeros(shape), ROWS)


@dataclass
class _Output:
    logits: Tensor


@pytest.mark.parametrize("target", [lambda out: out[:, 0], lambda out, _: out[:, 0]])
def test_an_error_in_a_callable_tells_what_it_was_called_with(target: Any) -> None:
    with pytest.raises(TypeError) as caught:
        target_function(target, 2)(_Output(torch.zeros(2, 5, 7)), ROWS)
    (note,) = caught.value.__notes__
    assert note.endswith("received the model's _Output; its logits are output.logits, (2, 5, 7)")
    with pytest.raises(IndexError) as plain:
        target_function(target, 2)(torch.zeros(2), ROWS)
    assert not hasattr(plain.value, "__notes__")


def test_a_target_that_has_the_whole_batch_in_mind_is_told_how_it_is_called() -> None:
    labels = normal(3)
    model = nn.Linear(4, 2).double()
    with pytest.raises(
        ConductanceError, match=r"callable given as target fails on an output of shape \(2, 2\).*y\[n\]"
    ):
        total_conductance(model, normal(3, 4), target=lambda output: (output[:, 0] - labels) ** 2)
    found = total_conductance(model, normal(3, 4), target=lambda output, n: (output[:, 0] - labels[n]) ** 2, rtol=1e-6)
    expected = (model(normal(3, 4))[:, 0] - labels) ** 2 - (model.bias[0] - labels) ** 2
    torch.testing.assert_close(found.output_change, expected.detach())
    with pytest.raises(ConductanceError, match=r"fails on an output of shape \(\d, 2\) for \d rows.*must go together"):
        total_conductance(model, normal(3, 4), target=targets.loss(lambda output, y: output @ y, normal(3, 5)))
