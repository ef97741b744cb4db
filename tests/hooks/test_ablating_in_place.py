"""Units are held wherever they occur: in modules that work in place, and in those that checkpointing runs again."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from conductance.analysis import unit_effects
from conductance.hooks import ablate, substitute

HELD = [1, 3]


class InPlace(nn.Module):
    """A ReLU in place, whose input is read again: in a skip connection, or instead of its output."""

    def __init__(self, *, skip: bool) -> None:
        super().__init__()
        self.one, self.act, self.two, self.head = (
            nn.Linear(3, 4),
            nn.ReLU(inplace=True),
            nn.Linear(4, 4),
            nn.Linear(4, 2),
        )
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.one(x)
        output = self.act(hidden)
        return self.rest(hidden, output if self.skip else hidden)

    def rest(self, hidden: Tensor, output: Tensor) -> Tensor:
        logits: Tensor = self.head(self.two(output) + hidden)
        return logits

    def held(self, x: Tensor, units: list[int]) -> Tensor:
        """The output with units at 0, written down."""
        keep = torch.ones(4, dtype=x.dtype)
        keep[units] = 0
        hidden = self.one(x).relu() * keep
        return self.rest(hidden, hidden)


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool | None) -> None:
        super().__init__()
        self.one, self.act, self.two, self.head = nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Linear(5, 2)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        def block(x: Tensor) -> Tensor:
            hidden: Tensor = self.two(self.act(self.one(x)))
            return hidden

        hidden = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        logits: Tensor = self.head(hidden.tanh())
        return logits


def made(seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(5, 3, dtype=torch.float64)


def gradients(model: nn.Module, output: Tensor) -> list[Tensor]:
    model.zero_grad()
    torch.autograd.backward(output.pow(2).sum())
    return [each.grad.clone() for each in model.parameters() if each.grad is not None]


@pytest.mark.parametrize("skip", [True, False])
def test_gradients_with_units_of_an_in_place_module_held(skip: bool) -> None:
    x = made()
    model = InPlace(skip=skip).double()
    wanted = model.held(x, HELD)
    expected = gradients(model, wanted)
    with ablate(model, {"act": HELD}):
        output = model(x)
        found = gradients(model, output)
    torch.testing.assert_close(output, wanted)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_in_place_module_without_gradients(mode: Callable[[], AbstractContextManager[None]]) -> None:
    x = made()
    model = InPlace(skip=True).double()
    with mode(), ablate(model, {"act": HELD}):
        torch.testing.assert_close(model(x), model.held(x, HELD))


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("count", [1, 5])
def test_effects_of_units_of_an_in_place_module(skip: bool, count: int) -> None:
    x = made()[:count]
    model = InPlace(skip=skip).double()
    with torch.no_grad():
        expected = torch.stack([(model(x) - model.held(x, [unit]))[:, 0] for unit in range(4)], 1)
    assert expected.any()
    effects = unit_effects(model, [x], "act", target=0, value="zero")
    torch.testing.assert_close(effects["act"], expected)


def test_what_only_passes_a_tensor_on_leaves_its_input() -> None:
    class Passed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout()

        def forward(self, x: Tensor) -> Tensor:
            hidden = 2 * x
            output: Tensor = self.drop(hidden) + hidden
            return output

    model, x = Passed().eval(), made()
    with ablate(model, {"drop": [0, 1, 2]}):
        torch.testing.assert_close(model(x), 2 * x)


def test_another_shape_cannot_be_written_in_place() -> None:
    model = InPlace(skip=True).double()
    with (
        substitute(model, "act", lambda _point, tensor: tensor.repeat(2, 1)),
        pytest.raises(ValueError, match=r"'act' works in place.*got \(10, 4\).*inplace=False"),
    ):
        model(made())


@pytest.mark.parametrize("reentrant", [True, False])
def test_units_are_held_where_checkpointing_runs_them_again(reentrant: bool) -> None:
    found = []
    for how in (None, reentrant):
        x = made().requires_grad_()
        model = Checkpointed(reentrant=how).double()
        with ablate(model, {"act": HELD}, 0.3):
            found.append(gradients(model, model(x)))
    torch.testing.assert_close(found[1], found[0])


def test_one_call_cannot_be_told_where_checkpointing_runs_it_again() -> None:
    x = made().requires_grad_()
    model = Checkpointed(reentrant=False).double()
    with ablate(model, {"act#0": HELD}):
        output = model(x)
        with pytest.raises(ValueError, match=r"'act#0' is one call.*hold 'act'"):
            gradients(model, output)


@pytest.mark.parametrize("kind", ["float32", "int64"])
def test_numbers_of_numpy(kind: str) -> None:
    numpy = pytest.importorskip("numpy")
    model, x = nn.Sequential(nn.Identity()), made()
    with ablate(model, {"0": [1]}, getattr(numpy, kind)(2)):
        torch.testing.assert_close(model(x)[:, 1], torch.full((5,), 2.0).double())


def test_layer_that_does_not_run_is_told() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    with pytest.warns(UserWarning, match=r"model ran, but 'self_attn.out_proj' did not"):  # noqa: SIM117
        with ablate(model, {"self_attn.out_proj": [0]}):
            model(torch.randn(2, 3, 4))
    with ablate(model, {"self_attn.out_proj": [0]}):
        pass


def test_another_thread_may_meet_a_hook_before_it_takes_keywords() -> None:
    model, x = InPlace(skip=True).double(), made()
    with substitute(model, ["act", "head:in"], lambda _point, tensor: torch.zeros_like(tensor)):
        expected = model(x)
        hooks = [*model.act._forward_pre_hooks.values(), *model.head._forward_pre_hooks.values()]
        assert len(hooks) == 2
        with ThreadPoolExecutor(1) as pool:
            assert [pool.submit(hook, model.act, (x,)).result() for hook in hooks] == [None, None]
        assert torch.equal(model(x), expected)
