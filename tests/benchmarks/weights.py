"""Conductance of all weights of a layer, against one pull-back for each of its units at the same nodes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from conductance import neuron_conductance, weight_conductance
from conductance.quadrature import fixed_nodes, level_matrix
from conductance.weighing import products
from tests.benchmarks.tables import Row, Table, at_least
from tests.benchmarks.timing import described, interleaved

TARGET = 0
N_STEPS = 17
EXAMPLES = 8
GOAL = 20.0


@dataclass(frozen=True)
class Small:
    """A small smooth network and the layer in it whose weights are explained."""

    name: str
    model: nn.Module
    layer: str
    inputs: Tensor

    def ours(self) -> Tensor:
        """All weights at once."""
        return weight_conductance(self.model, self.inputs, self.layer, target=TARGET, n_steps=N_STEPS)[self.layer]

    def neurons(self) -> object:
        """Neuron conductance of all its units, one pull-back each."""
        return neuron_conductance(self.model, self.inputs, self.layer, target=TARGET, n_steps=N_STEPS, mode="reverse")

    def nodes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Input, output and gradient of the layer at all nodes of all examples, ``(examples · nodes, …)``."""
        alphas = torch.as_tensor(fixed_nodes(N_STEPS, kinked=False)).to(self.inputs)
        rows = (alphas.view(1, -1, *[1] * (self.inputs.ndim - 1)) * self.inputs[:, None]).flatten(0, 1)
        caught: list[tuple[Tensor, Tensor]] = []
        module = self.model.get_submodule(self.layer)
        handle = module.register_forward_hook(lambda _module, args, output: caught.append((args[0], output)))
        try:
            score = self.model(rows.requires_grad_())[:, TARGET].sum()
        finally:
            handle.remove()
        ((before, behind),) = caught
        return before, behind, torch.autograd.grad(score, behind, retain_graph=True)[0]

    def pulled(self) -> Tensor:
        """``Σ_i x_i E_ij`` unit by unit: from the layer's output back to its input; ``(units, inputs)``."""
        before, behind, v = self.nodes()
        return self.pulled_alone(before, behind, v)

    def weighed_alone(self, before: Tensor, v: Tensor) -> Tensor:
        """The step alone that gives all weights, at nodes that are there."""
        module = self.model.get_submodule(self.layer)
        weight = module.weight
        assert isinstance(weight, Tensor)
        return products(module, self._increments(before), v) * weight

    def _increments(self, before: Tensor) -> Tensor:
        matrix = torch.as_tensor(level_matrix(4, 4)).to(before)
        rise = before.detach().unflatten(0, (len(self.inputs), N_STEPS))
        return torch.einsum("kl,bl...->bk...", matrix, rise - rise[:, :1]).flatten(0, 1)

    def pulled_alone(self, before: Tensor, behind: Tensor, v: Tensor) -> Tensor:
        """The pull-backs alone, at nodes that are there."""
        increments = self._increments(before)
        found = []
        for unit in range(behind.shape[1]):
            own = torch.zeros_like(v)
            own[:, unit] = v[:, unit]
            (back,) = torch.autograd.grad(behind, before, own, retain_graph=True)
            found.append((back * increments).sum(0).reshape(before.shape[1], -1).sum(1))
        return torch.stack(found)


def linear(*, quick: bool = False) -> Small:
    """A linear layer of 256 × 256 on the input, so that pull-backs of its units end where its weights begin."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 64), nn.GELU(), nn.Linear(64, 10))
        return Small("Linear 256 → 256", model.requires_grad_(requires_grad=False), "0", torch.randn(EXAMPLES, 256))


def conv(*, quick: bool = False) -> Small:
    """A convolution of 32 → 32 channels, 3 × 3, on 16 × 16 pixels (8 × 8 if quick)."""
    size = 8 if quick else 16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1)
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
        model = nn.Sequential(first, nn.GELU(), second, nn.GELU(), head)
        return Small(
            f"Conv2d 32 → 32, 3 × 3, {size} × {size} pixels",
            model.requires_grad_(requires_grad=False),
            "0",
            torch.randn(EXAMPLES, 32, size, size),
        )


def rows(case: Small, repetitions: int) -> list[Row]:
    """One layer against both kinds of pull-backs; what both give is compared, summed over positions of a kernel."""
    weights, pulled = case.ours(), case.pulled()
    gap = (weights.reshape(*pulled.shape, -1).sum(2) - pulled).abs().sum() / pulled.abs().sum()
    nodes = case.nodes()
    candidates: dict[str, Callable[[], object]] = {
        "form alone": lambda: case.weighed_alone(nodes[0], nodes[2]),
        "pull-backs alone": lambda: case.pulled_alone(*nodes),
        "weights": case.ours,
        "neuron_conductance": case.neurons,
        "autograd.grad": case.pulled,
    }
    times = interleaved(candidates, repetitions)
    found: list[Row] = []
    whole = [("weights", "neuron_conductance"), ("weights", "autograd.grad")]
    for mine, other in [("form alone", "pull-backs alone"), *whole]:
        ratio = times[other].per(times[mine])
        found.append(
            {
                "what": f"{case.name}: {len(case.inputs)} examples, n_steps={N_STEPS}",
                "against": other,
                "weights ms": 1e3 * times[mine].seconds,
                "pull-backs ms": 1e3 * times[other].seconds,
                "pull-backs / weights": ratio,
                "lowest–highest": times[other].span(times[mine]),
                "on the clock": times[other].wall_per(times[mine]),
                "difference": float(gap) if other == "autograd.grad" else None,
                **(at_least(ratio, GOAL) if mine == "form alone" else {}),
            }
        )
    return found


def run(*, quick: bool = False) -> Table:
    """Both layers."""
    repetitions = 3 if quick else 5
    text = (
        "The form alone: what gives all weights of a layer, against one pull-back for each of its units, at nodes that "
        "are there. Then whole calls: all weights of a first layer by `weight_conductance` (two runs, probe and error "
        "estimates counted) against pull-backs of its units, one after the other, at equal nodes: those of "
        "`neuron_conductance`, which counts and estimates as much, and plain `torch.autograd.grad` from the layer's "
        "output to its input, without any estimate. Pull-backs give no more than pairs of channels: the positions of "
        f"a kernel are summed. Measured as {described(repetitions)}."
    )
    cases = [make(quick=quick) for make in (linear, conv)]
    return Table("Weights against pull-backs", text, [one for case in cases for one in rows(case, repetitions)])
