"""Forward and reverse mode give the same; where an operator lacks a derivative, a way around it is found and told."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance import NeuronConductance
from conductance.hooks import HookPoint
from tests.conductance.neuron_nets import CASES, TARGETS, LstmNet, Mlp, assert_same, case, flat, one, tensor
from tests.helpers import normal, seeded

LSTM = HookPoint("lstm", index=(0,), batch_axis=1)
#: What a fused attention kernel says on a CPU.
FUSED = {"multihead", "encoder", "fused", "bert"}
FORMULA = "attention by its formula"
PLAIN = "no oneDNN or cuDNN"
TWICE = "two reverse passes"


def _both(model: nn.Module, layer: Any, **arguments: Any) -> tuple[NeuronConductance, NeuronConductance]:
    reverse, forward = (one(model, layer, **arguments, mode=mode) for mode in ("reverse", "forward"))
    assert reverse.settings["mode"] == "reverse"
    assert reverse.settings["detour"] == []
    return reverse, forward


def _detour(found: NeuronConductance) -> list[str]:
    """The ways that were taken in the end, one after the other."""
    detour = found.settings["detour"]
    assert isinstance(detour, list)
    return [str(step).split("taken: ")[1] for step in detour]


@pytest.mark.parametrize("name", CASES)
def test_modes_agree(name: str) -> None:
    net = case(name)
    groups = "channel" if name == "conv" else None
    for layer in net.layers:
        point = LSTM if name == "lstm" else layer
        reverse, forward = _both(net.model, point, **net.whole, n_steps=4, feature_groups=groups)
        assert forward.settings["mode"] == "forward"
        assert_same(flat(forward), flat(reverse))
        assert_same(flat(forward).abs(), flat(reverse).abs())
        assert_same(forward.total, reverse.total)
        errors = [replace(found, values=found.value_error) for found in (forward, reverse)]
        assert_same(flat(errors[0]), flat(errors[1]), 1e-6)
        assert _detour(forward) == ([FORMULA] if name in FUSED else [])


@pytest.mark.parametrize("name", ["gelu", "relu", "attention"])
def test_modes_agree_to_a_tolerance(name: str) -> None:
    net = case(name)
    reverse, forward = _both(net.model, net.layers[1], **net.whole, rtol=1e-3, neurons=[0, 3])
    assert_same(flat(forward), flat(reverse), 1e-9)
    assert forward.evaluations.tolist() == reverse.evaluations.tolist()


def test_auto_takes_the_cheaper_side() -> None:
    net = case("gelu")
    chosen: dict[tuple[Any, Any], Any] = {}
    for neurons, groups in [("all", None), (0, None), ("all", torch.zeros(5).long()), (0, torch.zeros(5).long())]:
        found = one(net.model, "fc1", **net.whole, n_steps=3, neurons=neurons, feature_groups=groups)
        chosen[neurons, groups is None] = found.settings["mode"]
    assert chosen == {("all", True): "reverse", (0, True): "reverse", ("all", False): "forward", (0, False): "reverse"}


def test_several_layers_share_a_push_forward() -> None:
    """Two features against eleven units of two layers: forward pays for both together only."""
    net = case("gelu")
    groups = torch.tensor([0, 0, 1, 1, 2])
    alone = one(net.model, "fc1", **net.whole, n_steps=3, neurons=[0, 1, 2], feature_groups=groups)
    assert alone.settings["mode"] == "reverse"
    from conductance import neuron_conductance

    arguments = net.whole
    together = neuron_conductance(
        net.model, arguments.pop("inputs"), ["fc1", "act1"], **arguments, n_steps=3, neurons=[0, 1, 2],
        feature_groups=groups,
    )  # fmt: skip
    assert isinstance(together, dict)
    assert {found.settings["mode"] for found in together.values()} == {"forward"}
    assert_same(tensor(together["fc1"]), tensor(alone))


def test_a_recurrent_layer_in_single_precision_goes_without_onednn() -> None:
    model, inputs = seeded(LstmNet).float(), normal(3, 5, 6).float()
    before = torch.backends.mkldnn.enabled
    reverse, forward = _both(model, LSTM, inputs=inputs, target=TARGETS, n_steps=5)
    assert forward.settings["mode"] == "forward"
    assert _detour(forward) == [FORMULA, PLAIN]
    assert "mkldnn_rnn_layer" in str(forward.settings["detour"])
    assert_same(tensor(forward), tensor(reverse), 1e-5)
    double = one(seeded(LstmNet), LSTM, inputs=inputs.double(), target=TARGETS, n_steps=5)
    assert_same(tensor(forward).double(), tensor(double), 1e-5)
    assert torch.backends.mkldnn.enabled is before


class Sine(torch.autograd.Function):
    """A function without a forward derivative that can be differentiated twice."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return h.sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (h,) = ctx.saved_tensors
        return torch.mul(grad, h.cos())


class Once(Sine):
    """The same, but its backward pass cannot be differentiated."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (h,) = ctx.saved_tensors
        return torch.mul(grad, h.cos())


class Hidden(Sine):
    """The same, but its backward pass goes where autograd does not see."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (h,) = ctx.saved_tensors
        return torch.mul(torch.as_tensor(grad.detach().numpy()), h.cos())


class StraightThrough(Sine):
    """Rounds; the gradient goes straight through, the forward derivative is the true one, zero."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return h.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 1.0

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return torch.zeros_like(tangent)


class Normed(nn.Module):
    """Divides by a norm that no gradient flows through."""

    def forward(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            norm = h.norm(dim=1, keepdim=True)
        return torch.div(h * h, norm)


class Applied(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, h: Tensor) -> Tensor:
        output: Tensor = self.function(h)
        return output


#: What stands between two layers, the mode taken in the end, and the last way taken.
ODD: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "custom": (lambda: Applied(Sine.apply), "forward", TWICE),
    "once": (lambda: Applied(Once.apply), "reverse", "reverse mode"),
    "hidden": (lambda: Applied(Hidden.apply), "reverse", "reverse mode"),
    "straight-through": (lambda: Applied(StraightThrough.apply), "forward", TWICE),
    "no-grad": (Normed, "forward", TWICE),
}


@pytest.mark.parametrize("name", ODD)
def test_custom_functions_and_no_grad_are_seen_through(name: str) -> None:
    build, mode, way = ODD[name]
    model = seeded(lambda: Mlp(build))
    for layer in ("act1", "fc2", "head"):
        reverse, forward = _both(model, layer, inputs=normal(3, 5), target=TARGETS, n_steps=4)
        assert_same(flat(forward), flat(reverse))
        assert_same(flat(forward).abs(), flat(reverse).abs())
        assert forward.settings["mode"] == mode
        assert _detour(forward)[-1] == way
    before, forward = _both(model, "fc1", inputs=normal(3, 5), target=TARGETS, n_steps=4)  # nothing odd on the way
    assert_same(flat(forward), flat(before))


def test_what_is_found_out_holds_for_the_rows_to_come() -> None:
    """Several calls: the detour is found once, not for each."""
    model = seeded(lambda: Mlp(lambda: Applied(Once.apply)))
    inputs = normal(7, 5)
    forward = one(model, "act2", inputs=inputs, target=1, n_steps=4, mode="forward", internal_batch_size=8)
    assert _detour(forward) == [FORMULA, PLAIN, TWICE, "reverse mode"]
    assert_same(tensor(forward), tensor(one(model, "act2", inputs=inputs, target=1, n_steps=4)))


@pytest.mark.filterwarnings("ignore::conductance.ZeroConductanceWarning")
def test_two_passes_where_a_layer_does_not_depend_on_the_input() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Mlp(lambda: Applied(Sine.apply))
            self.aside = nn.Linear(2, 4)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x) + self.aside(x.new_ones(len(x), 2))
            return logits

    model = seeded(Aside)
    forward = one(model, "aside", inputs=normal(3, 5), target=1, n_steps=4, mode="forward")
    assert forward.settings["mode"] == "forward"
    assert float(tensor(forward).abs().max()) == 0.0


def test_errors_of_the_model_are_not_taken_for_missing_derivatives() -> None:
    calls = 0

    def fails(h: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise RuntimeError("out of memory, say")
        return h.sin()

    with pytest.raises(RuntimeError, match="out of memory, say"):
        one(seeded(lambda: Mlp(lambda: Applied(fails))), "fc1", inputs=normal(3, 5), target=1, mode="forward")


def _flags() -> dict[str, Any]:
    backends: Any = torch.backends
    return {
        "onednn": backends.mkldnn.enabled,
        "cudnn": (backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic),
        "fast path": backends.mha.get_fastpath_enabled(),
        "kernels": [
            backends.cuda.flash_sdp_enabled(), backends.cuda.math_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(), backends.cuda.cudnn_sdp_enabled(),
        ],
        "grad": torch.is_grad_enabled(),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["once", "custom", "fails"])
def test_settings_of_torch_are_put_back(name: str) -> None:
    before = _flags()

    class Broken(Sine):
        @staticmethod
        def forward(ctx: Any, h: Tensor) -> Tensor:
            if not torch.backends.mha.get_fastpath_enabled():
                raise ValueError("mine")
            return Sine.forward(ctx, h)

    if name == "fails":
        model = seeded(lambda: Mlp(lambda: Applied(Broken.apply)))
        with pytest.raises(ValueError, match="mine"):
            one(model, "act1", inputs=normal(3, 5), target=1, n_steps=3, mode="forward")
    else:
        model = seeded(lambda: Mlp(ODD[name][0]))
        found = one(model, "act1", inputs=normal(3, 5), target=1, n_steps=3, mode="forward")
        assert found.settings["detour"]
    assert _flags() == before


@pytest.mark.slow
def test_no_warning_in_a_fresh_process() -> None:
    """Torch warns when its forward derivatives are first used, and when precisions of oneDNN are set."""
    code = (
        "import torch; from torch import nn; from conductance import neuron_conductance, hooks\n"
        "class Net(nn.Module):\n"
        "    def __init__(self): super().__init__(); self.lstm = nn.LSTM(4, 3, batch_first=True)\n"
        "    def forward(self, x): return self.lstm(x)[0].sum(1)\n"
        "x = torch.randn(2, 5, 4)\n"
        "found = neuron_conductance(Net().eval(), x, 'lstm[0]', target=0, n_steps=3, mode='forward')\n"
        "assert found.settings['mode'] == 'forward' and found.values.abs().sum() > 0\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
