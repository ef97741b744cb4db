"""Toy networks for the tests: closed forms worked out by hand, and generic nets.

Every module whose conductance is of interest is a named submodule; ``tap`` modules are identities that only
give a tensor a name. The axes of one net all differ in size, so that a swapped axis cannot pass. Generic
nets give logits ``(batch, 4)``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Function(nn.Module):
    """A function of the input as a network, its input tapped as ``tap``, its output ``(batch, 1)``."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.tap = nn.Identity()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.tap(x))[:, None]


class ReluDifference(nn.Module):
    """``ReLU(ReLU(x1 - early) - late - ReLU(x2))``: (1, 0) and (0, 1) are one function where x1, x2 >= 0."""

    def __init__(self, early: float, late: float) -> None:
        super().__init__()
        self.tap = nn.Identity()
        self.hidden = nn.ReLU()
        self.out = nn.ReLU()
        self.register_buffer("shift", torch.tensor([early, 0.0]))
        self.late = late

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(self.tap(x) - self.get_buffer("shift").to(x))
        output: Tensor = self.out(hidden[:, :1] - self.late - hidden[:, 1:])
        return output


class Clipped(nn.Module):
    """``z = min(y, 1)`` of ``y = 2 x``."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(1, 1, bias=False)
        self.clip = nn.Hardtanh(-math.inf, 1.0)
        nn.init.constant_(self.twice.weight, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.clip(self.twice(x))
        return output


class Negated(nn.Module):
    """The hidden unit ``g = -x`` is the output itself."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.hidden.weight, -1.0)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.hidden(x)
        return output


class AddedAndTakenAway(nn.Module):
    """``f(x) = x``, with the hidden unit ``max(x - 1, 0)`` added and taken away."""

    def __init__(self) -> None:
        super().__init__()
        self.tap = nn.Identity()
        self.unit = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.tap(x)
        unit = self.unit(x - 1)
        output: Tensor = (x + unit) - unit
        return output


class SineTimesLine(nn.Module):
    """``F = y1 y2`` of the hidden layer ``y = (sin πx, x)``: y1 ends where it began, yet it conducts."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(torch.cat([torch.sin(math.pi * x), x], 1))
        output: Tensor = hidden.prod(1, keepdim=True)
        return output


class Wiggle(nn.Module):
    """Three kinks at 0.15, 0.18 and 0.2; from 0.25 on, F is as if there were one, at 0.14."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(1, 3)
        self.act = nn.ReLU()
        self.register_buffer("weight", torch.tensor([2.0, -2.0, 1.0]))
        nn.init.ones_(self.fc.weight)
        self.fc.bias = nn.Parameter(torch.tensor([-0.15, -0.18, -0.2], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = (self.act(self.fc(x)) * self.get_buffer("weight")).sum(1, keepdim=True)
        return output


class CaptumToy(nn.Module):
    """The toy net of Captum's own tests of layer conductance."""

    def __init__(self) -> None:
        super().__init__()
        self.lin0 = nn.Linear(3, 3, bias=False)
        self.lin1 = nn.Linear(3, 4)
        self.relu = nn.ReLU()
        self.lin2 = nn.Linear(4, 2)
        with torch.no_grad():
            self.lin0.weight.copy_(torch.eye(3))
            self.lin1.weight.fill_(1.0)
            self.lin1.bias.copy_(torch.tensor([-10.0, 1.0, 1.0, 1.0]))
            self.lin2.weight.fill_(1.0)
            self.lin2.bias.copy_(torch.tensor([-1.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.lin2(self.relu(self.lin1(self.lin0(x))))
        return output


@dataclass(frozen=True)
class ClosedForm:
    """A network with one example, and the conductance of some layers as worked out by hand; target 0."""

    name: str
    model: nn.Module
    x: Tensor
    baseline: Tensor
    conductance: dict[str, list[float]]
    piecewise_linear: bool = True


def closed_forms() -> list[ClosedForm]:
    """Every case with a conductance known in closed form, in float64, from the baseline zero."""

    def case(name: str, model: nn.Module, x: list[float], kinked: bool = True, **known: list[float]) -> ClosedForm:
        point = torch.tensor([x], dtype=torch.float64)
        return ClosedForm(name, frozen(model), point, torch.zeros_like(point), known, kinked)

    monomial = Function(lambda x: x[:, 0] ** 2 * x[:, 1] ** 3)
    hidden = [90.0, 100.0, 100.0, 100.0]
    smallest = Function(lambda x: torch.minimum(x[:, 0], x[:, 1]))
    return [
        case("relu-late", ReluDifference(0, 1), [3, 1], tap=[1.5, -0.5], hidden=[1.5, -0.5], out=[1.0]),
        case("relu-early", ReluDifference(1, 0), [3, 1], tap=[1.5, -0.5], hidden=[1.5, -0.5], out=[1.0]),
        case("min", smallest, [1, 3], tap=[1.0, 0.0]),
        case("monomial", monomial, [2, 1.5], kinked=False, tap=[5.4, 8.1]),
        case("clipped", Clipped(), [1], twice=[1.0], clip=[1.0]),
        case("negated", Negated(), [1], hidden=[-1.0]),
        case("cancelled", AddedAndTakenAway(), [1], tap=[1.0], unit=[0.0]),
        case("cancelled-beyond", AddedAndTakenAway(), [3], tap=[3.0], unit=[0.0]),
        case("wiggle", Wiggle(), [1], fc=[1.7, -1.64, 0.8], act=[1.7, -1.64, 0.8]),
        case("sine", SineTimesLine(), [1], kinked=False, hidden=[-2 / math.pi, 2 / math.pi]),
        case("captum", CaptumToy(), [0, 100, 0], lin0=[0, 390, 0], lin1=hidden, relu=hidden, lin2=[390, 0]),
    ]


class ConvNet(nn.Module):
    """Convolution, batch norm, ReLU, max-pool and two linear layers on ``(batch, 3, 8, 10)``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, (2, 5))
        self.norm = nn.BatchNorm2d(5)
        self.act = nn.ReLU()
        self.pool = nn.MaxPool2d((3, 2))
        self.fc = nn.Linear(30, 7)
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(self.act(self.norm(self.conv(x))))
        output: Tensor = self.head(torch.relu(self.fc(pooled.flatten(1))))
        return output


class AttentionNet(nn.Module):
    """One transformer block, norm first, two heads, GELU, on ``(batch, 5, 6)``; mean over tokens, head."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(6)
        self.query, self.key, self.value, self.out = (nn.Linear(6, 6) for _ in range(4))
        self.softmax = nn.Softmax(-1)
        self.norm2 = nn.LayerNorm(6)
        self.up = nn.Linear(6, 11)
        self.act = nn.GELU()
        self.down = nn.Linear(11, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        query, key, value = (
            layer(normed).unflatten(-1, (2, 3)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        pattern = self.softmax(query @ key.transpose(-1, -2) / math.sqrt(3))
        x = x + self.out((pattern @ value).transpose(1, 2).flatten(2))
        x = x + self.down(self.act(self.up(self.norm2(x))))
        output: Tensor = self.head(x.mean(1))
        return output


class ResidualNet(nn.Module):
    """Residual blocks on ``(batch, 7)``; ``stem`` and ``sum1`` are cuts, what is inside a block is not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(7, 6)
        self.up1, self.down1 = nn.Linear(6, 9), nn.Linear(9, 6)
        self.act1 = nn.GELU()
        self.sum1 = nn.Identity()
        self.up2, self.down2 = nn.Linear(6, 8), nn.Linear(8, 6)
        self.act2 = nn.Tanh()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.stem(x)
        stream = self.sum1(stream + self.down1(self.act1(self.up1(stream))))
        output: Tensor = self.head(stream + self.down2(self.act2(self.up2(stream))))
        return output


class TwoInputNet(nn.Module):
    """Two towers on ``(batch, 3)`` and ``(batch, 5)`` that meet in ``joint``."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 7), nn.Linear(5, 6)
        self.joint = nn.Linear(13, 8)
        self.act = nn.Tanh()
        self.head = nn.Linear(8, 4)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        towers = torch.cat([torch.tanh(self.left(first)), torch.sigmoid(self.right(second))], 1)
        output: Tensor = self.head(self.act(self.joint(towers)))
        return output


class ChunkNet(nn.Module):
    """A gated unit on ``(batch, 6)``: ``fc`` is cut into value and gate, and joined with a side branch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 10)
        self.gated = nn.Identity()
        self.side = nn.Linear(6, 3)
        self.joined = nn.Identity()
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.fc(x).chunk(2, 1)
        gated = self.gated(torch.tanh(value) * torch.sigmoid(gate))
        output: Tensor = self.head(self.joined(torch.cat([gated, torch.tanh(self.side(x))], 1)))
        return output


def frozen(model: nn.Module) -> nn.Module:
    """Put a network into evaluation mode and float64, parameters frozen."""
    return model.double().eval().requires_grad_(requires_grad=False)


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a frozen network from a seed, with batch-norm statistics; the global generator is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.get_buffer("running_mean"), std=0.3)
                nn.init.uniform_(module.get_buffer("running_var"), 0.5, 1.5)
    return frozen(model)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal numbers in float64 from a seed."""
    return scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
