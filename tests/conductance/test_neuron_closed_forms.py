"""Neuron conductance against cases worked out by hand, from the baseline zero, in float64."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conductance.neuron_nets import one, tensor
from tests.helpers import (
    AddedAndTakenAway,
    CaptumToy,
    Clipped,
    Function,
    Negated,
    ReluDifference,
    SineTimesLine,
    frozen,
)

MODES = ("reverse", "forward")


class TwoLayers(nn.Module):
    """``F = w · φ(W x)``."""

    def __init__(self, first: list[list[float]], second: list[float], activation: nn.Module) -> None:
        super().__init__()
        self.hidden, self.act = nn.Linear(len(first[0]), len(first), bias=False), activation
        self.head = nn.Linear(len(second), 1, bias=False)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.tensor(first))
            self.head.weight.copy_(torch.tensor([second]))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.act(self.hidden(x)))
        return output


class Gate(nn.Module):
    """``F = ReLU(x1 + x2 - 1) · 2 + ReLU(x1 - x2)``."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.act = nn.Linear(2, 2), nn.ReLU()
        with torch.no_grad():
            self.hidden.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
            self.hidden.bias.copy_(torch.tensor([-1.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        units = self.act(self.hidden(x))
        return torch.add(units[:, 1:], units[:, :1], alpha=2)


class Mixed(nn.Module):
    """``F = y1 y2`` of ``y1 = x1 + x2`` and ``y2 = x1 x2``."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.hidden(torch.stack([x.sum(1), x.prod(1)], 1))
        return hidden.prod(1, keepdim=True)


#: Name, network, input, layer, and neurons × inputs by hand.
CASES: list[tuple[str, Callable[[], nn.Module], list[float], str, list[list[float]]]] = [
    # linear: w_j W_ji x_i
    ("linear", lambda: TwoLayers([[1, 1], [0, 3], [2, -1]], [2, -1, 0.5], nn.Identity()), [1, 2], "hidden",
     [[2, 4], [0, -6], [1, -1]]),
    # squares: F = Σ w (W x)², v = 2 w h, so C = 2 w W_i x_i ∫ a h da = w h(x) W_i x_i
    ("squares", lambda: TwoLayers([[1, 2], [3, -1]], [1, -2], Function(lambda h: h).tap), [1, 2], "hidden",
     [[5, 20], [-6, 4]]),
    # the gate opens at a = 1/3: C_1i = 2 x_i (2/3); unit 2 is open all the way
    ("gate", Gate, [2, 1], "act", [[8 / 3, 4 / 3], [2, -1]]),
    ("gate before its activation", Gate, [2, 1], "hidden", [[8 / 3, 4 / 3], [2, -1]]),
    ("a gate that stays shut", Gate, [0.25, 0.5], "act", [[0, 0], [0, 0]]),
    # F = x1² x2 + x1 x2², v = (y2, y1): C_11 = x1 ∫ x1 x2 a² = x1² x2 / 3, C_21 = x1 ∫ (x1 + x2) a · x2 a
    ("mixed", Mixed, [1, 2], "hidden", [[2 / 3, 4 / 3], [2, 2]]),
    ("min", lambda: Function(lambda x: torch.minimum(x[:, 0], x[:, 1])), [1, 3], "tap", [[1, 0], [0, 0]]),
    # ReLU(ReLU(x1) - 1 - ReLU(x2)) at (3, 1) opens at a = 1/2: x_i times half the path
    ("relu-late", lambda: ReluDifference(0, 1), [3, 1], "hidden", [[1.5, 0], [0, -0.5]]),
    ("relu-late-out", lambda: ReluDifference(0, 1), [3, 1], "out", [[1.5, -0.5]]),
    # the same function: x1 now starts at a = 1/3, but F at 1/2 all the same
    ("relu-early", lambda: ReluDifference(1, 0), [3, 1], "hidden", [[1.5, 0], [0, -0.5]]),
    ("relu-early-out", lambda: ReluDifference(1, 0), [3, 1], "out", [[1.5, -0.5]]),
    ("saturation", Clipped, [1], "twice", [[1]]),
    ("sign", Negated, [1], "hidden", [[-1]]),
    ("overshoot", AddedAndTakenAway, [3], "unit", [[0]]),
    # ∫ v ∂y: y1 = sin πx has v = x, so ∫ a π cos πa da = -2/π; y2 = x has v = sin πa, so 2/π
    ("sine", SineTimesLine, [1], "hidden", [[-2 / math.pi], [2 / math.pi]]),
    # captum's toy at (0, 100, 0): unit 0 is shut for a tenth of the path; only the second input moves
    ("captum", CaptumToy, [0, 100, 0], "relu", [[0, 90, 0], [0, 100, 0], [0, 100, 0], [0, 100, 0]]),
    ("captum-first", CaptumToy, [0, 100, 0], "lin0", [[0, 0, 0], [0, 390, 0], [0, 0, 0]]),
    ("captum-shared", CaptumToy, [20, 50, 30], "relu", [[18, 45, 27], [20, 50, 30], [20, 50, 30], [20, 50, 30]]),
]  # fmt: skip


class Square(nn.Module):
    """The square as an activation."""

    def forward(self, h: Tensor) -> Tensor:
        return h**2


@pytest.mark.filterwarnings("ignore::conductance.ZeroConductanceWarning")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "build", "x", "layer", "expected"), CASES, ids=[case[0] for case in CASES])
def test_closed_form(name: str, build: Callable[[], nn.Module], x: list[float], layer: str, expected: Any, mode: Any):  # type: ignore[no-untyped-def]
    model = build()
    if name == "squares":
        assert isinstance(model, TwoLayers)
        model.act = Square()
    inputs = torch.tensor([x], dtype=torch.float64)
    found = one(frozen(model), layer, inputs=inputs, target=0, rtol=1e-10, mode=mode)
    wanted = torch.tensor([expected], dtype=torch.float64)
    scale = max(1.0, float(wanted.abs().sum()))
    torch.testing.assert_close(tensor(found), wanted, rtol=0, atol=1e-9 * scale)
    torch.testing.assert_close(found.total, wanted.sum(2), rtol=0, atol=1e-9 * scale)
    assert found.status == ("ok",)


def test_a_tie_goes_to_the_first() -> None:
    """``max`` at equal values gives its gradient to the first; ``amax`` shares it."""
    x = torch.tensor([[2.0, 2.0]], dtype=torch.float64)
    first = one(Function(lambda x: x.max(1).values), "tap", inputs=x, target=0, rtol=1e-9)
    shared = one(Function(lambda x: x.amax(1)), "tap", inputs=x, target=0, rtol=1e-9)
    torch.testing.assert_close(tensor(first)[0].sum(1), torch.tensor([2.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(tensor(shared)[0].sum(1), torch.tensor([1.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("mode", MODES)
def test_inputs_that_cancel_show_though_the_unit_does_not_move(mode: Any) -> None:
    """``h = x1 - x2`` stays 0 at (1, 1): total conductance is zero, what the inputs contribute is not."""
    model = frozen(TwoLayers([[1.0, -1.0], [1.0, 1.0]], [3.0, 1.0], nn.Tanh()))
    x = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    found = one(model, "hidden", inputs=x, target=0, rtol=1e-9, mode=mode)
    torch.testing.assert_close(tensor(found)[0, 0], torch.tensor([3.0, -3.0], dtype=torch.float64))
    half = math.tanh(2.0) / 2
    torch.testing.assert_close(tensor(found)[0, 1], torch.tensor([half, half], dtype=torch.float64), rtol=1e-9, atol=0)
    assert abs(float(found.total[0, 0])) < 1e-12


def test_nothing_moves_where_the_input_is_the_baseline() -> None:
    x = torch.tensor([[3.0, 1.0], [0.5, 0.25]], dtype=torch.float64)
    baselines = torch.tensor([[0.0, 0.0], [0.5, 0.25]], dtype=torch.float64)
    found = one(frozen(Gate()), "act", inputs=x, baselines=baselines, target=0, rtol=1e-6)
    assert float(tensor(found)[0].abs().sum()) > 1
    assert float(tensor(found)[1].abs().sum()) == 0.0
    assert found.error[1] == 0.0
    assert found.converged.tolist() == [True, True]
