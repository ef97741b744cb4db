"""The two networks that time and memory are measured on, and the plain pass of the rows that a run asks for."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from conductance import TotalConductance, total_conductance
from tests.benchmarks import nets

TARGET = 0


@dataclass(frozen=True)
class Case:
    """A network, its hook points, inputs, and the tolerance that takes it some 30 to 60 evaluations."""

    name: str
    model: nn.Module
    points: list[str]
    inputs: Tensor
    rtol: float

    @property
    def first(self) -> "Case":
        """The same with one example."""
        return replace(self, inputs=self.inputs[:1])

    def ours(self, **options: Any) -> Callable[[], TotalConductance]:
        """Total conductance of all points, to be called."""
        return lambda: total_conductance(self.model, self.inputs, self.points, target=TARGET, **options)

    def calls(self, run: Callable[[], TotalConductance]) -> tuple[list[int], TotalConductance]:
        """Rows of each model call of a run, without the two rows of the probe, and its result."""
        sizes: list[int] = []
        handle = self.model.register_forward_pre_hook(lambda _module, args: sizes.append(len(args[0])))
        try:
            result = run()
        finally:
            handle.remove()
        return sizes[1:], result

    def plain(self, sizes: list[int]) -> Callable[[], None]:
        """Forward and backward of rows on the same paths, in calls of these sizes: the gradient of the input alone."""
        nodes = torch.linspace(1e-6, 1 - 1e-6, 32)
        paths = [nodes.view(-1, *[1] * (self.inputs.ndim - 1)) * end for end in self.inputs]
        rows = torch.cat(paths * (max(sizes) // (32 * len(paths)) + 1))

        def run() -> None:
            for size in sizes:
                leaf = rows[:size].clone().requires_grad_()
                torch.autograd.grad(self.model(leaf)[:, TARGET].sum(), leaf)

        return run


def bert(examples: int, *, quick: bool = False) -> Case:
    """BERT: GELU, 28 points, 32 tokens (12 if quick)."""
    inputs = nets.bert_inputs(examples, tokens=12 if quick else 32)
    return Case("BERT", nets.bert(), nets.bert_points(), inputs, rtol=1e-2)


def conv(examples: int, *, quick: bool = False) -> Case:
    """The conv net: ReLU and max-pool, 25 points, 32 × 32 pixels (16 × 16 if quick)."""
    inputs = nets.conv_inputs(examples)
    return Case("conv net", nets.conv(), nets.conv_points(), inputs[..., :16, :16] if quick else inputs, rtol=0.15)
