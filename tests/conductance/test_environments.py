"""Where and how a model runs: gradient modes, recurrent layers, checkpoints, integers, offloading."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from conductance import ConductanceError, hooks, neuron_conductance, total_conductance
from conductance.hooks.surroundings import needs_cudnn_off
from tests.helpers import normal, seeded

X = normal(3, 4)


def net() -> nn.Sequential:
    built = seeded(
        lambda: nn.Sequential(
            nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)
        )
    )
    assert isinstance(built, nn.Sequential)
    return built


def expected(**options: Any) -> dict[str, Tensor]:
    total = total_conductance(net(), X, target=0, **options)
    assert float(total["1"].abs().sum()) > 0.1
    return dict(total)


def assert_same(found: Any, wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for name in found:
        assert torch.equal(found[name], wanted[name])
        assert not found[name].requires_grad
        assert found[name].grad_fn is None
        assert not found[name].is_inference()


# ---- gradient modes


def test_inputs_parameters_and_buffers_made_in_inference_mode_are_explained_and_stay() -> None:
    with torch.inference_mode():
        model, x = net(), X.clone()
        model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    kept = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert all(tensor.is_inference() for tensor in kept.values())
    assert_same(total_conductance(model, x, target=0, baselines=x * 0), expected())
    with torch.inference_mode():
        assert_same(total_conductance(model, x, target=0), expected())
    assert {**dict(model.named_parameters()), **dict(model.named_buffers())}.keys() == kept.keys()
    now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert all(now[name] is kept[name] for name in kept)


def test_further_arguments_made_in_inference_mode_are_fine_and_hidden_tensors_are_named() -> None:
    with torch.inference_mode():
        weights = torch.full((4,), 2.0, dtype=torch.float64)

    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor, weights: Tensor) -> Tensor:
            output: Tensor = self.net(x * weights)
            return output

    found = total_conductance(Weighted(), X, additional_forward_args=(weights,), target=0)
    torch.testing.assert_close(found["net.1"], total_conductance(net(), 2 * X, target=0)["1"])
    model = net()
    with pytest.raises(ConductanceError, match=r"tensor that was made in torch\.inference_mode\(\).*clone\(\)"):
        total_conductance(lambda x: model(x * weights), X, [model[1]], target=0)


def test_results_hold_no_graph_even_where_everything_requires_gradients() -> None:
    model, x = net().requires_grad_(), X.clone().requires_grad_()
    total = total_conductance(model, x, target=0, baselines=x * 0.5)
    for value in vars(total).values():
        for tensor in value.values() if isinstance(value, dict) else [value]:
            assert not (isinstance(tensor, Tensor) and (tensor.requires_grad or tensor.grad_fn))
    assert x.grad is None
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


# ---- train mode


def test_dropout_and_batch_norm_in_train_mode_are_named_and_buffers_put_back() -> None:
    model = nn.Sequential(net(), nn.Dropout(0.5), nn.Linear(2, 2).double())
    model[0].eval()
    model.get_submodule("0.3").train()
    kept = {name: value.clone() for name, value in model.named_buffers()}
    with pytest.raises(ValueError, match=r"0\.3 \(BatchNorm1d\), 1 \(Dropout\).*model\.eval\(\)"):
        total_conductance(model, X, target=0)
    with pytest.warns(UserWarning, match=r"0\.3 \(BatchNorm1d\), 1 \(Dropout\)"):
        total_conductance(model, X, target=0, n_steps=5, on_train="warn")
    assert kept
    assert all(torch.equal(value, kept[name]) for name, value in model.named_buffers())
    assert [module.training for module in model] == [False, True, True]


# ---- recurrent layers on cuDNN


class FakeParameter:
    """A parameter as far as it is asked where it is."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)


@pytest.mark.parametrize(
    ("training", "device", "off"),
    [(False, "cuda", True), (True, "cuda", False), (False, "cpu", False), (False, "meta", True)],
)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_cudnn_is_off_for_a_recurrent_layer_in_eval_mode_only(
    kind: type[nn.LSTM | nn.GRU | nn.RNN], training: bool, device: str, off: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No GPU here: what is decided is tested with parameters that say they are on one.
    layer = kind(3, 4).train(training)
    monkeypatch.setattr(layer, "parameters", lambda: iter([FakeParameter(device)]))
    assert needs_cudnn_off([nn.Linear(2, 2), layer]) is off
    linear = nn.Linear(2, 2).eval()
    monkeypatch.setattr(linear, "parameters", lambda: iter([FakeParameter(device)]))
    assert not needs_cudnn_off([linear])


def test_cudnn_stays_off_until_the_last_run_leaves_and_its_other_settings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conductance.hooks.surroundings.needs_cudnn_off", lambda modules: True)
    cudnn = torch.backends.cudnn
    before = cudnn.enabled, cudnn.benchmark, cudnn.deterministic
    seen = []
    model = nn.Linear(4, 2).double()
    model.register_forward_hook(lambda *_: seen.append(cudnn.enabled))
    total_conductance(model, X, target=0)
    assert seen
    assert not any(seen)
    assert (cudnn.enabled, cudnn.benchmark, cudnn.deterministic) == before
    outer, inner = hooks.undisturbed(model, {}), hooks.undisturbed(model, {})
    with outer:
        with inner:
            assert not cudnn.enabled
        assert not cudnn.enabled
    assert cudnn.enabled == before[0]


def test_a_recurrent_layer_in_eval_mode_is_explained() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.fc = nn.LSTM(4, 5, 2, batch_first=True, dropout=0.3), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.fc(self.rnn(x)[0][:, -1])
            return output

    total = total_conductance(seeded(Recurrent), normal(3, 6, 4), "rnn[0]", target=0, rtol=1e-4)
    torch.testing.assert_close(total["rnn[0]"].sum((1, 2)), total.output_change, rtol=1e-3, atol=1e-9)
    assert not total["rnn[0]"][:, :-1].any()  # only the last step is read


# ---- gradient checkpointing


class Checkpointed(nn.Module):
    """The middle layers run in a checkpoint."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.net, self.reentrant = net(), reentrant

    def forward(self, x: Tensor) -> Tensor:
        first: Tensor = self.net[1](self.net[0](x))
        middle: Any = checkpoint(lambda h: self.net[3](self.net[2](h)), first, use_reentrant=self.reentrant)
        output: Tensor = self.net[5](self.net[4](middle))
        return output


@pytest.mark.parametrize("layer", ["net.1", "net.2", "net.4"])
def test_a_checkpoint_that_is_not_reentrant_changes_nothing(layer: str) -> None:
    found = total_conductance(Checkpointed(reentrant=False), X, layer, target=0)
    torch.testing.assert_close(found[layer], total_conductance(net(), X, layer[4:], target=0)[layer[4:]])


@pytest.mark.parametrize("layer", [None, "net.1", "net.2", "net.4"])
def test_a_reentrant_checkpoint_is_named_with_the_way_out(layer: str | None) -> None:
    with pytest.raises(ConductanceError, match=r"re-entrant gradient checkpointing.*use use_reentrant=False"):
        total_conductance(Checkpointed(reentrant=True), X, layer, target=0)
    with pytest.raises(ConductanceError, match="re-entrant gradient checkpointing"):
        neuron_conductance(Checkpointed(reentrant=True), X, "net.1", target=0)


# ---- integers


class Int8Weights(nn.Module):
    """A linear layer whose weights alone are integers."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = layer.weight.detach()
        self.register_buffer("scale", weight.abs().amax(1, keepdim=True) / 127)
        self.register_buffer("weight", (weight / self.get_buffer("scale")).round().to(torch.int8))
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        weight = self.get_buffer("weight").to(x.dtype) * self.get_buffer("scale").to(x.dtype)
        return nn.functional.linear(x, weight, self.bias)


def test_weights_alone_in_int8_are_explained() -> None:
    model = net()
    model[0], model[2] = Int8Weights(model[0]), Int8Weights(model[2])  # type: ignore[arg-type]
    total = total_conductance(model, X, target=0, rtol=1e-4)
    torch.testing.assert_close(total["1"].sum(1), total.output_change, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(total["1"], expected(rtol=1e-4)["1"], rtol=0.1, atol=0.02)


@pytest.mark.parametrize("whole", [True, False])
def test_layers_that_compute_in_int8_are_named_with_the_way_out(whole: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is deprecated, but there are such models
        part = torch.ao.quantization.quantize_dynamic(net().float(), {nn.Linear}, dtype=torch.qint8)
    model = part if whole else nn.Sequential(nn.Linear(4, 4), part)
    name = "'0' " if whole else "'1.0' "
    with pytest.raises(ConductanceError, match=rf"quantised layers: {name}\(Linear\).*in floating point"):
        total_conductance(model, X.float(), target=0)


# ---- offloading


def offloaded(how: str, folder: Path) -> nn.Module:
    import accelerate  # takes seconds

    cpu, model = torch.device("cpu"), net().requires_grad_()
    if how == "cpu":
        return accelerate.cpu_offload(model, execution_device=cpu)  # type: ignore[no-any-return]
    if how == "disk":
        return accelerate.disk_offload(model, str(folder), execution_device=cpu)  # type: ignore[no-any-return]
    device_map = {name: "disk" if name in "25" else "cpu" for name, _ in model.named_children()}
    return accelerate.dispatch_model(  # type: ignore[no-any-return]
        model, device_map, main_device="cpu", offload_dir=str(folder), force_hooks=True
    )


@pytest.mark.parametrize("how", ["cpu", "disk", "device_map"])
def test_offloaded_models_give_the_same_and_are_offloaded_and_trainable_afterwards(how: str, tmp_path: Path) -> None:
    model = offloaded(how, tmp_path)
    placed = {name: (p.device, p.requires_grad) for name, p in model.named_parameters()}
    assert any(device.type == "meta" for device, _ in placed.values())
    assert_same(total_conductance(model, X, target=0), expected())
    assert {name: (p.device, p.requires_grad) for name, p in model.named_parameters()} == placed
    neurons: Any = neuron_conductance(model, X, "1", target=0)
    whole: Any = neuron_conductance(net(), X, "1", target=0)
    assert torch.equal(neurons.values, whole.values)


# ---- progress


def test_progress_is_shown_on_request_only(capsys: pytest.CaptureFixture[str]) -> None:
    total_conductance(net(), X, target=0)
    assert capsys.readouterr().err == ""
    total_conductance(net(), X, target=0, progress=True)
    assert "3/3" in capsys.readouterr().err


ROUTES: list[Callable[[nn.Module], Any]] = [
    lambda model: total_conductance(model, X, target=0),
    lambda model: neuron_conductance(model, X, "1", target=0),
    lambda model: hooks.list_points(model, X),
]


@pytest.mark.parametrize("route", ROUTES)
def test_parameters_that_were_trained_are_trained_afterwards_and_frozen_ones_stay_frozen(route: Any) -> None:
    model = net().requires_grad_()
    model[2].requires_grad_(False)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert len(set(trained.values())) == 2
    route(model)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trained
