"""Small networks for the tests of the taps: reuse, nested outputs, in-place operations, branches."""

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Pair = namedtuple("Pair", ["first", "second"])


class Lambda(nn.Module):
    """A module from a function, whose children are given by keyword."""

    def __init__(self, function: Callable[..., Any], **children: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


@dataclass
class Record:
    hidden: Tensor
    extra: list[Tensor]


class Output(OrderedDict[str, Any]):
    """Like the outputs of the transformers library: a dictionary whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def reusing() -> Lambda:
    """One activation, called three times on tensors of different width."""

    def forward(self: Any, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.c(self.act(self.b(self.act(self.a(x))))))
        return out

    return Lambda(forward, act=nn.Tanh(), a=nn.Linear(3, 4), b=nn.Linear(4, 5), c=nn.Linear(5, 2)).double()


def residual_in_place() -> Lambda:
    """A residual block with ``+=`` and a ReLU in place, and a view that is clipped in place."""

    def forward(self: Any, x: Tensor) -> Tensor:
        stem = self.stem(x)
        h = self.bn(self.conv(stem))
        h += stem
        h = self.down(self.relu(h))
        out: Tensor = self.head(self.clip(self.flat(h)))
        return out

    return (
        Lambda(
            forward,
            stem=nn.Conv2d(2, 3, 2),
            conv=nn.Conv2d(3, 3, 3, padding=1),
            bn=nn.BatchNorm2d(3),
            relu=nn.ReLU(inplace=True),
            down=nn.Conv2d(3, 2, 2),
            flat=nn.Flatten(),
            clip=nn.ReLU6(inplace=True),
            head=nn.Linear(2 * 3 * 4, 2),
        )
        .double()
        .eval()
    )


def structured(form: str) -> Lambda:
    """A hidden module ``split`` whose output holds ``2 h`` and ``3 h`` in one of several structures."""

    def split(self: Any, h: Tensor) -> Any:
        first, second, numbers = 2 * h, 3 * h, torch.arange(h.shape[1])
        return {
            "tuple": (first, None, numbers, second),
            "nested": [numbers, (first, {"deep": second})],
            "dict": {"first": first, "numbers": numbers, "second": second},
            "namedtuple": Pair(first, second),
            "dataclass": Record(first, [second]),
            "model output": Output(first=first, none=None, second=second),
        }[form]

    def forward(self: Any, x: Tensor) -> Tensor:
        value = self.split(self.enter(x))
        unpack: dict[str, Callable[[Any], Any]] = {
            "tuple": lambda v: (v[0], v[3]),
            "nested": lambda v: (v[1][0], v[1][1]["deep"]),
            "dict": lambda v: (v["first"], v["second"]),
            "namedtuple": lambda v: v,
            "dataclass": lambda v: (v.hidden, v.extra[0]),
            "model output": lambda v: (v.first, v["second"]),
        }
        first, second = unpack[form](value)
        out: Tensor = self.head(first * second.tanh())
        return out

    return Lambda(forward, enter=nn.Linear(3, 4), split=Lambda(split), head=nn.Linear(4, 2)).double()
