"""Units of layers behind activations, held where there is no autograd graph to tell their axis."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from conductance.hooks import ablate
from conductance.hooks.handed_on import handed_on
from tests.helpers import normal


class Gelu4d(nn.Module):
    """Features last on four axes, as in networks of patches."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(3, 5)
        self.act = nn.GELU()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.drop(self.act(self.up(x)))
        return output


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, int]] = {
    "convolution": (lambda: nn.Sequential(nn.Conv1d(3, 4, 2), nn.ReLU()), (2, 3, 6), "1", 1),
    "in place": (lambda: nn.Sequential(nn.Conv2d(3, 5, 2), nn.ReLU(inplace=True)), (2, 3, 6, 7), "1", 1),
    "pooling": (lambda: nn.Sequential(nn.Conv1d(3, 4, 2), nn.GELU(), nn.AvgPool1d(2), nn.Tanh()), (2, 3, 9), "3", 1),
    "patches": (Gelu4d, (2, 4, 6, 3), "act", 3),
    "dropout": (Gelu4d, (2, 4, 6, 3), "drop", 3),
    "a module around": (lambda: nn.Sequential(nn.Sequential(nn.Conv1d(3, 4, 2), nn.ReLU())), (2, 3, 6), "0", 1),
    "an input": (lambda: nn.Sequential(nn.Conv1d(3, 4, 2), nn.ReLU(), nn.Identity()), (2, 3, 6), "2:in", 1),
}


@pytest.mark.parametrize("case", CASES)
def test_units_behind_activations_are_found_without_a_graph(case: str) -> None:
    make, shape, layer, axis = CASES[case]
    model = make().double().eval()
    x = normal(*shape)
    with torch.no_grad():
        expected = model(x).clone()
        with ablate(model, {layer: [2]}, value=7.0):
            found = model(x)
    expected.select(axis, 2)[:] = 7.0
    assert torch.equal(found, expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_reused_activation_has_the_axis_of_each_call() -> None:
    act = nn.ReLU()
    model = nn.Sequential(nn.Conv1d(3, 4, 2), act, nn.Flatten(1), nn.Linear(20, 6), nn.Unflatten(1, (2, 3)), act)
    with torch.no_grad(), ablate(model, {"1#0": [2]}, value=7.0), handed_on(dict(model.named_modules())) as axis_of:
        assert axis_of(act, model[:2](torch.ones(2, 3, 6))) == 1
    # the second call is handed a tensor whose axes were moved by something else
    with torch.no_grad(), pytest.raises(ValueError, match="unit_axis=1"), ablate(model, {"1#1": [0]}):
        model(torch.ones(2, 3, 6))


def test_what_functions_make_stays_unknown() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.here = nn.Conv1d(3, 4, 2), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.here(self.conv(x).transpose(1, 2))
            return output

    with torch.no_grad(), pytest.raises(ValueError, match="cannot be known"), ablate(f := Functional(), {"here": [0]}):
        f(torch.ones(2, 3, 6))
