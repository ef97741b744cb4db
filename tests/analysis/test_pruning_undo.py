"""A pruned model can be put back bit for bit, its masks made final, and it may have been pruned before."""

import copy
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from conductance import hooks
from conductance.analysis import prune_units
from tests.analysis.pruned_nets import Residual, conv, made, ranked
from tests.analysis.test_pruning import BASELINE, shuffled

KINDS: list[tuple[Callable[[], nn.Module], list[str]]] = [(conv, ["2", "5", "7"]), (Residual, ["stem", "act", "outer"])]
VALUES: list[Literal["zero", "baseline"]] = ["zero", "baseline"]


def state(model: nn.Module) -> list[Any]:
    """All that masks could leave behind, in order: tensors by identity and value, hooks, modes."""
    found: list[Any] = []
    for name, module in model.named_modules():
        tensors = [*module._parameters.items(), *module._buffers.items()]
        found += [(name, key, id(each), each if each is None else each.detach().clone()) for key, each in tensors]
        found += [(name, list(module._forward_pre_hooks.items()), sorted(module.__dict__), module.training)]
    return found


def assert_same_state(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one[:3] == other[:3]
        if isinstance(one[-1], Tensor):
            assert torch.equal(one[-1], other[-1])
        else:
            assert one[-1] == other[-1]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize(("kind", "layers"), KINDS)
def test_undo_puts_everything_back(
    kind: Callable[[], nn.Module], layers: list[str], final: bool, value: Literal["zero", "baseline"]
) -> None:
    model, inputs = made(kind)
    ranking, _ = shuffled(model, inputs, layers)
    with prune_units(model, ranking, amount=0.5, value=value, inputs=inputs, baselines=BASELINE):
        expected = model(inputs)
    model.train()
    before = state(model)
    pruned = prune_units(model, ranking, amount=0.5, value=value, inputs=inputs, baselines=BASELINE)
    assert model.training
    assert prune.is_pruned(model)
    masked = model.eval()(inputs)
    assert torch.equal(masked, expected)
    if final:
        for module, name in pruned.parameters:
            prune.remove(module, name)
        assert not prune.is_pruned(model)
        assert torch.equal(model(inputs), masked)
    model.train()
    pruned.undo()
    pruned.undo()
    assert_same_state(state(model), before)
    assert pruned.parameters == []


@pytest.mark.parametrize("value", VALUES)
def test_model_with_masks_keeps_them(value: Literal["zero", "baseline"]) -> None:
    model, inputs = made(conv)
    prune.random_unstructured(model.get_submodule("4"), "weight", 0.3)
    prune.ln_structured(model.get_submodule("0"), "weight", 0.3, n=1, dim=0)
    prune.random_unstructured(model.get_submodule("0"), "weight", 0.2)
    model.get_submodule("0").register_forward_pre_hook(lambda _module, _inputs: None)
    original, before = model(inputs).detach(), state(model)
    ranking, points = shuffled(model, inputs, ["0", "5"])
    with prune_units(model, ranking, amount=0.5, value=value, inputs=inputs, baselines=BASELINE) as pruned:
        found = model(inputs)
    assert_same_state(state(model), before)
    assert torch.equal(model(inputs), original)
    values = {points[layer]: each for layer, each in pruned.values.items()}
    with hooks.ablate(model, {points[layer]: units for layer, units in pruned.units.items()}, values):
        torch.testing.assert_close(found, model(inputs), rtol=0, atol=1e-12)
    assert (found - original).abs().max() > 1e-3


def test_pruned_twice_and_undone_in_turn() -> None:
    model, inputs = made(conv)
    before = state(model)
    with prune_units(model, ranked({"7": [*range(8)]}), amount=0.25, value="baseline", inputs=inputs) as first:
        between, output = state(model), model(inputs).detach()
        with prune_units(model, ranked({"7": [*range(8)]}), amount=0.5, value="baseline", inputs=inputs) as second:
            assert len(second.units["7"]) == 4 > len(first.units["7"])
            assert not torch.equal(model(inputs), output)
        assert_same_state(state(model), between)
    assert_same_state(state(model), before)


def test_hook_added_meanwhile_stays() -> None:
    model, inputs = made(conv)
    calls = []
    with prune_units(model, ranked({"0": [*range(6)]}), amount=0.5):
        handle = model.get_submodule("0").register_forward_pre_hook(lambda _module, _inputs: calls.append(1))
    model(inputs)
    assert calls == [1]
    handle.remove()
    model(inputs)
    assert calls == [1]


def test_masks_stay_in_force_while_the_model_is_trained() -> None:
    model, inputs = made(conv)
    model.requires_grad_(True)
    pruned = prune_units(model, ranked({"5": [*range(12)]}), amount=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model(inputs).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        assert not model[:6](inputs)[:, pruned.units["5"]].any()  # type: ignore[index]
        assert model[:6](inputs).any()  # type: ignore[index]


def test_frozen_model_stays_frozen() -> None:
    model, inputs = made(conv)
    model.requires_grad_(False)
    expected = copy.deepcopy(model)
    with prune_units(model, ranked({"5": [*range(12)]}), amount=0.5, value="baseline", inputs=inputs):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not torch.equal(model(inputs), expected(inputs))
    assert torch.equal(model(inputs), expected(inputs))
