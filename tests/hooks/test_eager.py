"""Models that torch.compile has compiled: hooks fire all the same, and afterwards they are compiled as before."""

import pytest
import torch
from torch import nn

import conductance as cd
from conductance.hooks import list_points
from conductance.hooks.eager import uncompiled
from tests.helpers import normal, seeded

pytestmark = pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch 2.6 brought set_stance")


def net() -> nn.Sequential:
    """Two layers on ``(batch, 4)``."""
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


@pytest.mark.parametrize("run_before", [False, True])
def test_a_compiled_model_gives_the_numbers_of_the_same_model_uncompiled(run_before: bool) -> None:
    model, x = seeded(net), normal(2, 4)
    calls = 0

    def backend(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> object:
        def run(*args: torch.Tensor) -> object:
            nonlocal calls
            calls += 1
            return graph(*args)

        return run

    expected = cd.total_conductance(model, x, target=0, rtol=1e-6)
    compiled = torch.compile(model, backend=backend)
    assert isinstance(compiled, nn.Module)
    if run_before:
        compiled(x)
    before = calls
    assert {"0", "1", "2"} <= {info.name for info in list_points(compiled, x)}
    found = cd.total_conductance(compiled, x, target=0, rtol=1e-6)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    flow = cd.conductance_flow(compiled, x, "_orig_mod.1", target=0, rtol=1e-6)
    torch.testing.assert_close(flow.conductance["1"].sum(1), expected["1"].sum(1), rtol=1e-5, atol=1e-6)
    assert calls == before
    compiled(x)
    assert calls == before + 1


def test_compiled_code_runs_eagerly_until_the_last_one_leaves() -> None:
    ran = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> object:
        ran.append(graph)
        return graph

    compiled = torch.compile(lambda x: x + 1, backend=backend)
    first, second = uncompiled(), uncompiled()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    compiled(normal(2))
    assert not ran
    second.__exit__(None, None, None)
    compiled(normal(2))
    assert ran
