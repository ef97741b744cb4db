"""Networks whose change of output an integral along the path cannot explain as a whole, or only with care.

Jumps of F (rounding, signs, gates, routing) and gradients that are not the derivative of F (a detach, a
straight-through estimator) leave a share that belongs to no unit. All take ``(batch, 6)`` and give
``(batch, 4)``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.helpers import seeded


class WrongNet(nn.Module):
    """A two-layer network with one odd operation on its hidden layer; ``fc`` and ``act`` come before it."""

    def __init__(self, odd: nn.Module, activation: type[nn.Module]) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 9)
        self.act = activation()
        self.odd = odd
        self.head = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, 4)``."""
        output: Tensor = self.head(self.odd(self.act(self.fc(x))))
        return output


class Rounded(nn.Module):
    """Half of each hidden unit is rounded; the gradient sees the other half."""

    def forward(self, hidden: Tensor) -> Tensor:
        """``(batch, 9)`` to ``(batch, 9)``."""
        return hidden + torch.round(2 * hidden)


class Signed(nn.Module):
    """A unit's distance to ½ counts, and its side."""

    def forward(self, hidden: Tensor) -> Tensor:
        """``(batch, 9)`` to ``(batch, 9)``."""
        return hidden + 0.5 * torch.sign(hidden - 0.25)


class TopGate(nn.Module):
    """Only the three largest units pass."""

    def forward(self, hidden: Tensor) -> Tensor:
        """``(batch, 9)`` to ``(batch, 9)``."""
        gate = torch.zeros_like(hidden).scatter(1, hidden.topk(3, 1).indices, 1.0)
        return hidden * gate


class RoutedExperts(nn.Module):
    """One of three linear experts, chosen by the argmax of a router."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(9, 3)
        self.experts = nn.ModuleList(nn.Linear(9, 9) for _ in range(3))

    def forward(self, hidden: Tensor) -> Tensor:
        """``(batch, 9)`` to ``(batch, 9)``."""
        choice = self.router(hidden).argmax(1)
        answers = torch.stack([expert(hidden) for expert in self.experts], 1)
        return answers[torch.arange(len(hidden), device=hidden.device), choice]


class DetachedNorm(nn.Module):
    """Divided by a norm that the gradient takes for a constant."""

    def forward(self, hidden: Tensor) -> Tensor:
        """``(batch, 9)`` to ``(batch, 9)``."""
        output: Tensor = hidden / (0.1 + hidden.norm(dim=1, keepdim=True)).detach()
        return output


class StraightThrough(nn.Module):
    """Rounded to whole numbers on the way forward, left as it is on the way back."""

    def forward(self, hidden: Tensor) -> Tensor:
        """``(batch, 9)`` to ``(batch, 9)``."""
        return hidden + (torch.round(hidden) - hidden).detach()


class SteepSoftmax(nn.Module):
    """Probabilities of logits multiplied by 500: smooth, but all happens within a few thousandths."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 9)
        self.act = activation()
        self.head = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities ``(batch, 4)``."""
        return torch.softmax(500 * self.head(self.act(self.fc(x))), 1)


@dataclass(frozen=True)
class WrongAnswer:
    """How to build a network, and which statuses are right where a share of its change belongs to no unit."""

    build: Callable[[type[nn.Module]], nn.Module]
    statuses: tuple[str, ...]


WRONG_ANSWERS = {
    "round": WrongAnswer(lambda activation: WrongNet(Rounded(), activation), ("jump",)),
    "sign": WrongAnswer(lambda activation: WrongNet(Signed(), activation), ("jump",)),
    "top-k": WrongAnswer(lambda activation: WrongNet(TopGate(), activation), ("jump",)),
    "routed": WrongAnswer(lambda activation: WrongNet(RoutedExperts(), activation), ("jump",)),
    "detached": WrongAnswer(lambda activation: WrongNet(DetachedNorm(), activation), ("gradient",)),
    "straight-through": WrongAnswer(lambda activation: WrongNet(StraightThrough(), activation), ("gradient", "jump")),
    "steep": WrongAnswer(SteepSoftmax, ()),
}


def wrong_answer(name: str, activation: type[nn.Module] = nn.Tanh) -> nn.Module:
    """Build one of `WRONG_ANSWERS` from a fixed seed, frozen, in float64."""
    return seeded(lambda: WRONG_ANSWERS[name].build(activation), seed=3)
