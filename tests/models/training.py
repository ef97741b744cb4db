"""Training of small networks, the same numbers each time."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def trained(
    build: Callable[[], nn.Module],
    inputs: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch: int,
    rate: float,
    seed: int = 0,
) -> nn.Module:
    """A classifier fitted with Adam in float32; then float64, frozen, in evaluation mode. Generator as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        optimizer = torch.optim.Adam(model.parameters(), rate)
        for _ in range(epochs):
            for rows in torch.randperm(len(inputs)).split(batch):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
                optimizer.step()
    return model.double().eval().requires_grad_(requires_grad=False)


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of the examples that a classifier gets right."""
    with torch.no_grad():
        return float((model(inputs).argmax(1) == labels).double().mean())
