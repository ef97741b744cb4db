"""The two networks that time and memory are measured on, and the plain pass of the rows that a run asks for."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from conductance import TotalConductance, total_conductance
from conductance.engine import Engine, Nodes
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
        """Rows of each call of a run that go forward and backward, and its result.

        The rows that try the model, and those at the ends of a path that go forward only, are not among them.
        """
        sizes: list[int] = []
        engine_run = Engine.run

        def noted(engine: Engine, paths: Any, *others: Any) -> Nodes:
            sizes.append(len(paths))
            return engine_run(engine, paths, *others)

        with patch.object(Engine, "run", noted):
            result = run()
        return sizes, result

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
