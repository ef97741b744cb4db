"""Every architecture: each module can be tapped or says why not, cuts are complete, and the model is left as it was."""

import copy
import warnings
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance import ConvergenceWarning, TotalConductance, total_conductance
from conductance.hooks import HookPoint
from tests.models.architectures import FAMILIES, PREFIX, case, seen

pytest.importorskip("transformers")

REASONS = r"never ran in a forward pass|its axis 0 holds \d+ entries for each row|no axis of it is the batch"
POOLERS = ["bert", "vit", "albert"]


@cache
def explained(name: str) -> TotalConductance:
    """Every module of a model, the model itself included."""
    one = case(name)
    return total_conductance(one.model, **one.asked, layers=["*", "(model)"], rtol=one.family.rtol)


def output(name: str, inputs: dict[str, Tensor]) -> Tensor:
    """What is explained, ``(batch,)``."""
    one = case(name)
    found, target = one.model(**inputs), one.family.target
    if callable(target):
        value: Tensor = target(found)
        return value
    assert isinstance(target, tuple)
    picked: Tensor = found.logits[:, target[0], target[1]]
    return picked


@pytest.mark.parametrize("name", FAMILIES)
def test_every_module_is_tapped_or_says_why_not(name: str) -> None:
    one, total = case(name), explained(name)
    given = seen(one.model, lambda: one.model(**one.family.inputs))
    tapped: dict[str, int] = dict.fromkeys(given, 0)
    for layer in total:
        tapped[HookPoint.parse(layer).module] += 1
    left_out = total.settings["left_out"]
    assert isinstance(left_out, list)
    refused = [str(layer) for layer in left_out]
    for layer in refused:
        module = HookPoint.parse(layer).module
        if module in given:
            tapped[module] += 1
        with pytest.raises(ValueError, match=REASONS) as told:
            total_conductance(one.model, **one.asked, layers=layer)
        assert repr(layer) in str(told.value)
    assert tapped == {module: len(shapes) for module, shapes in given.items()}
    assert len(total) > 20


@pytest.mark.parametrize("name", FAMILIES)
def test_every_cut_carries_the_whole_change(name: str) -> None:
    one, total = case(name), explained(name)
    assert total.converged.all()
    inputs = dict(one.family.inputs)
    start = {**inputs, next(iter(inputs)): one.family.baselines}
    change = output(name, inputs) - output(name, start)
    assert change.abs().min() > 0.01
    torch.testing.assert_close(total.output_change, change, rtol=1e-9, atol=1e-9)
    assert set(one.family.cuts) <= {layer for layer in total if total.is_cut[layer]}
    for layer in total:
        size = total[layer].flatten(1).abs().sum(1)
        if total.is_cut[layer]:
            assert ((total[layer].flatten(1).sum(1) - change).abs() <= one.family.rtol * size).all(), layer
        if not (total.info[layer].used and total.info[layer].moves):
            assert float(size.max()) == 0.0, layer
    rest = [layer for layer in total if not total.is_cut[layer] and total.info[layer].used and total.info[layer].moves]
    assert any((total.coverage[layer] - 1).abs().min() > 0.1 for layer in rest)


def state(model: nn.Module) -> list[Any]:
    """All that a run could change."""
    hooks = ["_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"]
    return [
        {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())},
        {name: (parameter.requires_grad, parameter.grad) for name, parameter in model.named_parameters()},
        {name: (module.training, type(module)) for name, module in model.named_modules()},
        {name: [len(getattr(module, kind)) for kind in hooks] for name, module in model.named_modules()},
        {name: sorted(vars(module)) for name, module in model.named_modules()},
        torch.random.get_rng_state(),
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_model_is_left_as_it_was(name: str) -> None:
    one = case(name)
    model = copy.deepcopy(one.model)
    for number, (parameter, module) in enumerate(zip(model.parameters(), model.modules(), strict=False)):
        parameter.requires_grad_(number % 2 == 0)
        module.training = number % 3 == 0 and not list(module.children()) and isinstance(module, nn.Linear | nn.RMSNorm)
    model.register_forward_hook(lambda *_: None)
    before = state(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        total_conductance(model, **one.asked, layers="*", n_steps=5)
    after = state(model)
    for old, new in zip(before, after, strict=True):
        if isinstance(old, dict) and any(isinstance(value, Tensor) for value in old.values()):
            assert old.keys() == new.keys()
            assert all(torch.equal(value, new[key]) for key, value in old.items())
        elif isinstance(old, Tensor):
            assert torch.equal(old, new)
        else:
            assert old == new


def test_a_block_that_is_shared_is_one_point_a_call() -> None:
    total = explained("albert")
    block = "encoder.albert_layer_groups.0.albert_layers.0"
    calls = [layer for layer in total if HookPoint.parse(layer).module == block]
    assert calls == [f"{block}#{call}" for call in range(3)]
    assert [HookPoint.parse(layer).call for layer in total if layer.startswith(f"{block}.ffn#")] == [0, 1, 2]
    first, second, third = (total[layer] for layer in calls)
    assert min(float((one - other).abs().max()) for one, other in [(first, second), (second, third)]) > 1e-3


@pytest.mark.parametrize("name", POOLERS)
def test_a_pooler_that_is_not_asked_gets_nothing(name: str) -> None:
    total = explained(name)
    poolers = [layer for layer in total if layer.startswith("pooler")]
    assert poolers
    for layer in poolers:
        assert not total.info[layer].used
        assert not total.is_cut[layer]
        assert float(total[layer].abs().max()) == 0.0


def test_a_decoder_prefix_stays_where_it_is() -> None:
    """Until the decoder looks at the encoder nothing of it moves; the prefix may also be given as an argument."""
    one, total = case("t5"), explained("t5")
    still = [layer for layer in total if layer.startswith("decoder.block.0.layer.0.")]
    assert len(still) >= 5
    assert all(float(total[layer].abs().max()) == 0.0 for layer in still)
    assert float(total["decoder.block.0.layer.1[0]"].abs().max()) > 1e-3
    layers = ["encoder.block.0[0]", "decoder.block.1[0]"]
    options = {**one.asked, "inputs": {"input_ids": one.family.inputs["input_ids"]}, "rtol": one.family.rtol}
    apart = total_conductance(
        one.model, layers=layers, additional_forward_args={"decoder_input_ids": PREFIX}, **options
    )
    other = total_conductance(
        one.model, layers=layers, additional_forward_args={"decoder_input_ids": PREFIX.flip(1)}, **options
    )
    for layer in layers:
        size = total[layer].flatten(1).abs().sum(1)
        assert ((apart[layer] - total[layer]).flatten(1).abs().sum(1) <= 2 * one.family.rtol * size).all()
        assert (other[layer] - total[layer]).abs().max() > 1e-3
