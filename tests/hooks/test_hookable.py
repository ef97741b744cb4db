"""Models that hooks cannot look into are refused with a message that says what they are and what to pass instead."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance import total_conductance
from conductance.hooks import list_points, select
from tests.helpers import normal, seeded

X = normal(3, 4)


def net() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)))


def scripted(model: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated is no news to those who have such models
        return torch.jit.script(model)


def traced(model: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(model, X)


def exported(model: nn.Module) -> Any:
    return torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim("batch")},))


class WithScript(nn.Module):
    """An eager model with a part that is TorchScript."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.part = scripted(nn.Sequential(nn.Linear(4, 5), nn.Tanh()))
        self.last = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(self.part(self.first(x)))
        return output


@pytest.mark.parametrize("make", [scripted, traced])
@pytest.mark.parametrize("layers", [None, "1"])
def test_torchscript_is_refused_and_points_to_the_eager_model(make: Callable[..., Any], layers: str | None) -> None:
    with pytest.raises(TypeError, match=r"model is TorchScript \(.*pass the eager torch\.nn\.Module"):
        total_conductance(make(net()), X, layers, target=0)
    with pytest.raises(TypeError, match="model is TorchScript"):
        list_points(make(net()), X)


def test_a_part_in_torchscript_is_passed_over_and_refused_by_name() -> None:
    model = seeded(WithScript)
    total = total_conductance(model, X, target=0)
    assert total.layers == ["first", "last"]
    torch.testing.assert_close(total["first"].sum(1), total.output_change, rtol=0.02, atol=1e-9)
    assert [info.name for info in list_points(model, X)] == ["first", "last", "(model)"]
    with pytest.raises(TypeError, match=r"layers: 'part' is TorchScript.*outside of it"):
        total_conductance(model, X, "part", target=0)
    with pytest.raises(TypeError, match=r"layers: 'part', 'part.0', 'part.1' are TorchScript"):
        total_conductance(model, X, "part*", target=0)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch.export warns of itself
def test_an_exported_program_is_refused_and_its_unflattened_form_is_explained() -> None:
    program, expected = exported(net()), total_conductance(net(), X, target=0)
    for given in (program, program.module()):
        with pytest.raises(TypeError, match=r"exported program.*eager torch\.nn\.Module.*export\.unflatten"):
            total_conductance(given, X, "1", target=0)
    found = total_conductance(torch.export.unflatten(program), X, target=0)
    torch.testing.assert_close(found["1"], expected["1"])
    assert float(found["1"].abs().sum()) > 0.1


def test_a_symbolic_trace_still_runs_its_modules() -> None:
    found = total_conductance(torch.fx.symbolic_trace(net()), X, target=0)
    torch.testing.assert_close(found["1"], total_conductance(net(), X, target=0)["1"])


def test_data_parallel_over_several_devices_is_refused_and_points_to_its_module() -> None:
    wrapped = nn.DataParallel(net())  # over no device at all here, so that it calls its module
    expected = total_conductance(net(), X, "1", target=0)
    torch.testing.assert_close(total_conductance(wrapped, X, "module.1", target=0)["module.1"], expected["1"])
    wrapped.device_ids = [0, 1]
    with pytest.raises(TypeError, match=r"DataParallel over 2 devices.*pass model\.module"):
        total_conductance(wrapped, X, "module.1", target=0)
    inside = nn.Sequential(wrapped, nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"model\.0 is a DataParallel over 2.*pass model\.0\.module"):
        total_conductance(inside, X, target=0)


def test_distributed_data_parallel_is_refused_and_points_to_its_module() -> None:
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)  # without a group of processes
    wrapped.module = net()
    with pytest.raises(TypeError, match=r"DistributedDataParallel.*pass model\.module"):
        total_conductance(wrapped, X, target=0)


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch 2.6 brought set_stance")
@pytest.mark.parametrize("whole", [True, False])
def test_what_is_compiled_goes_by_the_names_of_the_module_inside(whole: bool) -> None:
    model, expected = nn.Sequential(net(), nn.Linear(2, 2).double()), ["0.0", "0.1", "0.2", "1"]
    if whole:
        model = torch.compile(model, backend="eager")  # type: ignore[assignment]
        raw = "_orig_mod.0.1"
    else:
        model[0] = torch.compile(model[0], backend="eager")  # type: ignore[assignment]
        raw = "0._orig_mod.1"
    assert [point.name for point in select(model).points] == expected
    assert select(model, raw).points == select(model, "0.1").points
    assert set(expected) <= {info.name for info in list_points(model, X)}
    total = total_conductance(model, X, raw, target=0)
    assert total.layers == ["0.1"]
    assert float(total["0.1"].abs().sum()) > 0.01
