"""What Captum cannot see is said, and what it hangs on modules is taken off again."""

import pytest
import torch
from torch import Tensor, nn

from conductance.analysis import measure_values
from conductance.errors import ConductanceError
from tests.helpers import normal, seeded


class Functional(nn.Module):
    """Two hidden layers; the ReLU is a function behind the first, and one module used twice behind both."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 2)
        self.act = nn.GELU() if activation == "gelu" else nn.ReLU()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        act = torch.relu if self.activation == "function" else self.act
        output: Tensor = self.head(act(self.second(act(self.first(x)))))
        return output


@pytest.mark.parametrize(
    ("activation", "reason"), [("function", "none of the modules"), ("gelu", "GELU"), ("reused", "more than once")]
)
def test_what_deeplift_cannot_see_is_said(activation: str, reason: str) -> None:
    model = seeded(lambda: Functional(activation))
    with pytest.raises(ConductanceError, match=rf"Captum cannot give 'deeplift' of layer 'first'.*{reason}.*run once"):
        measure_values(model, normal(3, 3), "first", target=0, measures="deeplift")
    assert not any({"input", "output"} & set(vars(module)) for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_deeplift_judges_what_follows_a_cut_and_the_whole_model_elsewhere() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.up, self.act, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            stem = self.stem(torch.relu(x))
            output: Tensor = self.head(stem + self.act(self.up(stem)))
            return output

    model = seeded(Net)
    found = measure_values(model, normal(3, 3), "stem", target=0, baselines=0.4, measures="deeplift")
    assert found["deeplift"]["stem"].abs().min() > 0
    with pytest.raises(ConductanceError, match="layer 'act': its contributions miss"):
        measure_values(model, normal(3, 3), "act", target=0, baselines=0.4, measures="deeplift")


def test_captum_looks_at_modules_not_at_calls() -> None:
    model = seeded(lambda: Functional("reused"))
    with pytest.raises(ConductanceError, match="'internal_influence' of layer 'act#0': its module runs 2 times"):
        measure_values(model, normal(3, 3), "act#0", target=0, measures="internal_influence")


def test_deeplift_leaves_the_model_as_it_was() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)))
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    measure_values(model, normal(3, 3), "2", target=0, measures=["deeplift", "internal_influence"])
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    for module in model.modules():
        assert not [*module._forward_hooks, *module._forward_pre_hooks, *module._backward_hooks]
