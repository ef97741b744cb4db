"""A batch gives what its examples give alone, two calls give the same bits, and the model stays as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance import neuron_conductance, total_conductance
from conductance.hooks import list_points
from tests.hooks.nets import Lambda


def recurrent() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        outputs, (state, _) = m.lstm(x.flatten(2).transpose(0, 1))
        logits: Tensor = m.head(m.act(outputs).sum(0) + state[-1])
        return logits

    return Lambda(forward, lstm=nn.LSTM(12, 7, 2), act=nn.Tanh(), head=nn.Linear(7, 4))


def convolutional() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        logits: Tensor = m.head(m.act(m.norm(m.conv(x))).flatten(1))
        return logits

    return Lambda(forward, conv=nn.Conv2d(5, 6, 2), norm=nn.BatchNorm2d(6), act=nn.SiLU(), head=nn.Linear(6 * 2 * 3, 4))


def attending() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        tokens = m.enter(x.flatten(2))
        mixed, _ = m.attention(tokens, tokens, tokens)
        logits: Tensor = m.head(m.drop(m.norm(tokens + mixed)).mean(1))
        return logits

    return Lambda(
        forward, enter=nn.Linear(12, 8), attention=nn.MultiheadAttention(8, 2, batch_first=True),
        norm=nn.LayerNorm(8), drop=nn.Dropout(0.2), head=nn.Linear(8, 4),
    )  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {
    "recurrent": recurrent,
    "convolutional": convolutional,
    "attending": attending,
}


def made(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A float32 model in evaluation mode with statistics of its own, six examples ``(6, 5, 3, 4)``, their baselines."""
    torch.manual_seed(2)
    model = MODELS[name]().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 1.5)
    return model, torch.randn(6, 5, 3, 4), 0.3 * torch.randn(6, 5, 3, 4)


@pytest.mark.parametrize("how", [{"n_steps": 17}, {"rtol": 1e-3}], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_batched_result_equals_the_single_ones(name: str, how: dict[str, Any]) -> None:
    model, x, baselines = made(name)
    given: dict[str, Any] = {"target": 1, **how}
    whole = total_conductance(model, x, None, baselines=baselines, **given)
    for example in range(len(x)):
        one = slice(example, example + 1)
        alone = total_conductance(model, x[one], None, baselines=baselines[one], **given)
        assert alone.layers == whole.layers
        for layer in whole:
            difference = (whole[layer][one] - alone[layer]).norm()
            assert difference <= 1e-6 * alone[layer].norm() + 1e-9
        assert any(alone[layer].any() for layer in alone)


@pytest.mark.parametrize("name", MODELS)
def test_two_calls_give_the_same_bits(name: str) -> None:
    model, x, baselines = made(name)
    results = [total_conductance(model, x, baselines=baselines, target=2, rtol=1e-3) for _ in range(2)]
    assert results[0].layers == results[1].layers
    for layer in results[0]:
        assert torch.equal(results[0][layer], results[1][layer])
        assert torch.equal(results[0].unit_error[layer], results[1].unit_error[layer])
        assert torch.equal(results[0].error[layer], results[1].error[layer])
    assert torch.equal(results[0].evaluations, results[1].evaluations)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything that a run could leave changed; tensors as copies."""
    state: dict[str, Any] = {"random": torch.get_rng_state()}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        gradient = None if tensor.grad is None else tensor.grad.clone()
        state[name] = (tensor.detach().clone(), tensor.requires_grad, gradient, tensor.data_ptr())
    for name, module in model.named_modules():
        hooks = [
            dict(getattr(module, kind))
            for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        ]
        state[f"module {name}"] = (module.training, hooks, sorted(vars(module)))
    return state


def assert_same(first: Any, second: Any) -> None:
    assert type(first) is type(second)
    if isinstance(first, Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (tuple, list)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == second


@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_left_as_it_was(name: str) -> None:
    model, x, _ = made(name)
    model(x).sum().backward()  # gradients of the user's own
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    model.head.register_forward_hook(lambda _module, _args, output: None)  # type: ignore[union-attr]
    given, before = x.clone(), state_of(model)
    total_conductance(model, x, target=0, n_steps=4)
    neuron_conductance(model, x, "head", neurons=[0], target=0, n_steps=4)
    list_points(model, x, target=0)
    with pytest.raises(ValueError, match="target"):
        total_conductance(model, x, target=9)
    with pytest.raises(ValueError, match="layers"):
        total_conductance(model, x, "nowhere", target=0)
    assert_same(state_of(model), before)
    assert torch.equal(x, given)
    assert not x.requires_grad
