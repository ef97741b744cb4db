"""Networks whose units are pruned, in float64 and evaluation mode, no two axes of one size."""

from collections.abc import Callable, Mapping
from typing import cast

import pandas as pd
import torch
from torch import Tensor, nn

EXAMPLES = 9


class Residual(nn.Module):
    """A convolution, a block that is added to it, and a head: the block's units are those of the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3)
        self.inner = nn.Conv2d(6, 5, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(5)
        self.act = nn.ReLU(inplace=True)
        self.outer = nn.Conv2d(5, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.outer(self.act(self.norm(self.inner(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Joined(nn.Module):
    """Two linear layers that read the same input, side by side behind it, as one input of the next."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(3, 5)
        self.right = nn.Linear(3, 7)
        self.act = nn.Tanh()
        self.head = nn.Linear(15, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.cat([x, self.act(self.left(x)), self.right(x).sigmoid()], 1))
        return logits


def mlp() -> nn.Module:
    """Linear layers, ReLU and tanh, and a dropout."""
    return nn.Sequential(
        nn.Linear(3, 7),
        nn.ReLU(),
        nn.Linear(7, 6),
        nn.Dropout(),
        nn.Tanh(),
        nn.Linear(6, 5),
        nn.Sigmoid(),
        nn.Linear(5, 4),
    )


def conv() -> nn.Module:
    """Convolutions, plain, depthwise and transposed, a batch norm, pooling, and a linear layer on all positions."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 12, 2, groups=3),
        nn.GELU(),
        nn.ConvTranspose2d(12, 8, 2, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 2 * 1, 4),
    )


def tokens() -> nn.Module:
    """Linear layers and a layer norm on ``(examples, tokens, features)``."""
    return nn.Sequential(nn.Linear(3, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, 5), nn.Flatten(), nn.Linear(10, 4))


SHAPES: dict[Callable[[], nn.Module], tuple[int, ...]] = {
    mlp: (3,),
    conv: (2, 10, 8),
    tokens: (2, 3),
    Residual: (2, 7, 5),
    Joined: (3,),
}


def made(kind: Callable[[], nn.Module], seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network of random weights and statistics, and inputs for it."""
    numbers = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            for parameter in module.parameters():
                parameter.data.uniform_(0.5, 1.5, generator=numbers)
        if isinstance(module, nn.BatchNorm2d):
            cast("Tensor", module.running_mean).uniform_(-1, 1, generator=numbers)
            cast("Tensor", module.running_var).uniform_(0.5, 2, generator=numbers)
    return model, torch.randn(EXAMPLES, *SHAPES[kind], generator=numbers, dtype=torch.float64)


def ranked(units: Mapping[str, list[int]]) -> pd.DataFrame:
    """A ranking of these layers and units, most important first."""
    rows = [(layer, unit) for layer, numbers in units.items() for unit in numbers]
    return pd.DataFrame(rows, columns=["layer", "unit"])
