"""What does not move, and models that write on their input."""

import pytest
import torch
from torch import Tensor, nn

from conductance import conductance_flow, neuron_conductance, total_conductance


def net(activation: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), activation(), nn.Linear(7, 3)).double().eval()


class TwoInputs(nn.Module):
    """A second input has a layer of its own before both meet."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(5, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        output: Tensor = self.out(torch.tanh(self.first(x) + self.second(y)))
        return output


class WritesOnItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.fc(x.mul_(2.0)))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])
def test_an_input_that_is_its_baseline_has_no_conductance_and_no_doubt(activation: type[nn.Module]) -> None:
    x = torch.randn(3, 5, dtype=torch.float64)
    baseline = x.clone()
    baseline[0] += 1.0
    total = total_conductance(net(activation), x, target=1, baselines=baseline)
    assert total.status == ("ok",) * 3
    assert float(total["1"][0].abs().sum()) > 0.01
    assert float(total["1"][1:].abs().max()) < 1e-15
    assert total.error["1"][1:].tolist() == [0.0, 0.0]
    assert neuron_conductance(net(activation), x, "1", target=1, baselines=baseline).status == ("ok",) * 3  # type: ignore[union-attr]
    assert conductance_flow(net(activation), x, ["0", "1"], target=1, baselines=baseline).status == ("ok",) * 3


def test_a_layer_behind_an_input_that_stays_is_exactly_zero() -> None:
    x, y = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    total = total_conductance(TwoInputs().double(), (x, y), target=1, baselines=(0.0, y))
    assert total.status == ("ok",) * 4
    assert not total["second"].any()
    assert total.error["second"].tolist() == [0.0] * 4
    assert bool(total["first"].any())


def test_a_model_may_write_on_its_input() -> None:
    x = torch.randn(3, 5, dtype=torch.float64)
    kept = x.clone()
    model = WritesOnItsInput().double()
    total = total_conductance(model, x, "fc", target=1)
    assert torch.equal(x, kept)
    twice = nn.Sequential(nn.Linear(5, 4), nn.ReLU()).double()
    twice[0].load_state_dict({"weight": 2.0 * model.fc.weight, "bias": model.fc.bias})
    assert torch.allclose(total["fc"], total_conductance(twice, x, "0", target=1)["0"], rtol=0, atol=1e-9)
    assert bool(total["fc"].any())
