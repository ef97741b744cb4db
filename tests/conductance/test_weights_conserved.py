"""The weights into a unit sum to the unit's total conductance, those out of a unit to what it passes on."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance import neuron_conductance, total_conductance, weight_conductance
from tests.helpers import AttentionNet, ConvNet, ResidualNet, TwoInputNet, normal, seeded
from tests.reference import relative_error

#: Layers that are the only readers of their input; the others share it.
NETS: dict[str, tuple[nn.Module, Tensor, list[str], list[str]]] = {
    "conv": (seeded(ConvNet), normal(3, 3, 8, 10), ["conv", "fc", "head"], []),
    "attention": (seeded(AttentionNet), normal(3, 5, 6), ["out", "up", "down", "head"], ["query", "key", "value"]),
    "residual": (seeded(ResidualNet), normal(3, 7), ["stem", "down1", "down2", "head"], []),
}
HOW = [{"n_steps": 2}, {"n_steps": 6}, {"n_steps": 40}, {"rtol": 5e-2}]


def _baselines(inputs: Tensor) -> list[Any]:
    return [0.3 * inputs.flip(0).roll(1, -1), 0.1, 0.5 * torch.sin(inputs)]


@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("name", NETS)
def test_conserved_at_both_ends(name: str, how: dict[str, Any]) -> None:
    model, inputs, alone, shared = NETS[name]
    layers = [*alone, *shared]
    common: dict[str, Any] = {"target": torch.tensor([2, 0, 3]), "baselines": _baselines(inputs), **how}
    found = weight_conductance(model, inputs, layers, **common)
    points = [point for layer in layers for point in (layer, f"{layer}:in")]
    total = total_conductance(model, inputs, points, **common)
    bound = 1e-10 if "n_steps" in how else how["rtol"]  # to a tolerance the weights may need more nodes
    for layer in layers:
        behind = total.per_unit(layer).sum(0)
        assert float(behind.abs().sum()) > 1e-3
        assert relative_error(found.per_output(layer), behind) < bound
    for layer in alone:
        assert relative_error(found.per_input(layer), total.per_unit(f"{layer}:in").sum(0)) < bound
    if shared:
        together = torch.stack([found.per_input(layer) for layer in shared]).sum(0)
        assert relative_error(together, total.per_unit(f"{shared[0]}:in").sum(0)) < bound
        assert relative_error(found.per_input(shared[0]), together) > 1e-2
    assert found.count == found.converged == 3 or "n_steps" in how
    assert found.output_change == pytest.approx(float(total.output_change.sum()), rel=1e-12)


@pytest.mark.parametrize("how", [{"n_steps": 7}, {"rtol": 1e-4}], ids=str)
def test_several_inputs_and_further_arguments(how: dict[str, Any]) -> None:
    model, first, second = seeded(TwoInputNet), normal(3, 3), normal(3, 5, seed=1)
    layers = ["left", "right", "joint", "head"]
    both = weight_conductance(model, (first, second), target=1, baselines=(0.2, -0.1), **how)
    total = total_conductance(model, (first, second), layers, target=1, baselines=(0.2, -0.1), **how)
    assert both.layers == layers
    for layer in layers:
        assert relative_error(both.per_output(layer), total.per_unit(layer).sum(0)) < 1e-10
    ends = torch.cat([both.per_output("left"), both.per_output("right")])
    assert relative_error(both.per_input("joint"), ends) < 0.1  # what is between them is curved
    fixed = weight_conductance(model, first, target=1, additional_forward_args=second, **how)
    moved = weight_conductance(model, (first, second), target=1, baselines=(0.0, second), n_steps=7)
    assert float(fixed["right"].abs().max()) == 0.0 == float(moved["right"].abs().max())
    for layer in ("left", "joint", "head"):
        assert relative_error(fixed[layer], moved[layer]) < (1e-10 if "n_steps" in how else 2e-4)


class Looped(nn.Module):
    """One linear map that runs three times, on ``(batch, 5)``."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(self.step(x))
        output: Tensor = self.head(x)
        return output


class Unrolled(nn.Module):
    """The same with a layer for each run."""

    def __init__(self, looped: nn.Module) -> None:
        super().__init__()
        self.steps = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        self.head = nn.Linear(5, 3)
        for step in self.steps:
            step.load_state_dict(looped.get_submodule("step").state_dict())
        self.head.load_state_dict(looped.get_submodule("head").state_dict())

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = torch.tanh(step(x))
        output: Tensor = self.head(x)
        return output


@pytest.mark.parametrize("rows", [None, 2])
def test_the_runs_of_a_module_are_summed(rows: int | None) -> None:
    looped, inputs = seeded(Looped), normal(3, 5)
    unrolled = seeded(lambda: Unrolled(looped))
    common: dict[str, Any] = {"target": 1, "n_steps": 6, "internal_batch_size": rows}
    found = weight_conductance(looped, inputs, **common)
    parts = weight_conductance(unrolled, inputs, **common)
    assert found.layers == ["step", "head"]
    assert relative_error(found["step"], torch.stack([parts[f"steps.{n}"] for n in range(3)]).sum(0)) < 1e-10
    signed = torch.stack([parts.error_parts[f"steps.{n}"][0] for n in range(3)]).sum(0)
    assert relative_error(found.error_parts["step"][0], signed) < 1e-9
    total = total_conductance(looped, inputs, "step", target=1, n_steps=6)
    behind = torch.stack([total.per_unit(f"step#{n}").sum(0) for n in range(3)]).sum(0)
    assert relative_error(found.per_output("step"), behind) < 1e-10


class Unused(nn.Module):
    """Two heads of which the target sees one, and a layer of a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head, self.other = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 2)
        self.still = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.fc(x)) + self.still(torch.ones_like(x))
        return self.head(hidden), self.other(hidden)


@pytest.mark.parametrize("how", [{"n_steps": 5}, {"rtol": 1e-3}], ids=str)
def test_layers_that_carry_nothing_are_zero(how: dict[str, Any]) -> None:
    model, inputs = seeded(Unused), normal(2, 4)
    found = weight_conductance(model, inputs, target=lambda output: output[0][:, 1], **how)
    assert found["other"].shape == (2, 5)
    assert float(found["other"].abs().max()) == 0.0 == float(found.error("other").max())
    assert float(found["still"].abs().max()) == 0.0
    assert float(found["fc"].abs().min()) > 0.0
    assert float(found["head"][[0, 2]].abs().max()) == 0.0
    assert float(found["head"][1].abs().min()) > 0.0
    assert found.converged == 2 or "n_steps" in how


def test_the_first_layer_against_pull_backs() -> None:
    """``C_ij`` of the first layer's units by the inputs is the conductance of its weights."""
    inputs = normal(3, 7)
    for name, build in (("stem", ResidualNet), ("conv", ConvNet)):
        if name == "conv":
            model: nn.Module = seeded(lambda: nn.Sequential(nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 4)))
            name = "0"
        else:
            model = seeded(build)
        for how in ({"n_steps": 9}, {"rtol": 1e-8}):
            common: dict[str, Any] = {"target": 2, "baselines": 0.2, **how}
            pulled = neuron_conductance(model, inputs, name, **common)
            assert not isinstance(pulled, dict)
            values = pulled.values
            assert isinstance(values, Tensor)
            found = weight_conductance(model, inputs, name, **common)
            assert relative_error(found[name], values.sum(0)) < (1e-10 if "n_steps" in how else 1e-7)


def test_the_first_convolution_against_pull_backs() -> None:
    """A kernel as large as the image: each weight reads one pixel."""
    model = seeded(lambda: nn.Sequential(nn.Conv2d(2, 5, (3, 4)), nn.Tanh(), nn.Flatten(), nn.Linear(5, 3)))
    inputs = normal(3, 2, 3, 4)
    pulled = neuron_conductance(model, inputs, "0", target=1, n_steps=9)
    assert not isinstance(pulled, dict)
    values = pulled.values
    assert isinstance(values, Tensor)
    found = weight_conductance(model, inputs, "0", target=1, n_steps=9)
    assert relative_error(found["0"], values.sum(0)) < 1e-10
