"""Conductance by its definition for a tensor anywhere in a model: which call, which tensor of a nested output."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.helpers import frozen
from tests.hooks.nets import Lambda

#: Picks the tensor out of the outputs of all calls of a module.
Pick = Callable[[list[Any]], Tensor]
POINTS = 24
STEP = 1e-5


def net(forward: Callable[..., Any], **children: nn.Module) -> nn.Module:
    """A frozen network in float64 from a function of itself and its inputs."""
    return frozen(Lambda(forward, **children))


def literal(model: nn.Module, x: Tensor, module: str, pick: Pick, *others: Any, axis: int = 0) -> Tensor:
    """``∫ v · dy`` of one example ``(1, …)`` from zero, target 0: Gauss nodes, dy by a central difference.

    ``axis`` is that of the examples in the tensor, and is taken off.
    """

    def run(place: float) -> tuple[Tensor, Tensor]:
        outputs: list[Any] = []
        handle = model.get_submodule(module).register_forward_hook(lambda _m, _a, output: outputs.append(output))
        try:
            score = model((place * x).requires_grad_(), *others)[0, 0]
        finally:
            handle.remove()
        return score, pick(outputs)

    places, weights = np.polynomial.legendre.leggauss(POINTS)
    total = torch.zeros(())
    for place, weight in zip((places + 1) / 2, weights / 2, strict=True):
        score, tensor = run(float(place))
        (gradient,) = torch.autograd.grad(score, tensor, allow_unused=True)
        after, before = run(float(place + STEP))[1], run(float(place - STEP))[1]
        slope = (after - before).detach() / (2 * STEP)
        total = total + float(weight) * (torch.zeros_like(slope) if gradient is None else gradient) * slope
    return total.squeeze(axis)


def distance(first: Tensor, second: Tensor) -> float:
    """Largest difference as part of the largest number."""
    return float((first - second).abs().max() / second.abs().max())
