"""What users of Captum's classes ran into, and what the drop-ins make of it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance.captum import LayerConductance, NeuronConductance
from conductance.errors import ZeroConductanceWarning
from conductance.hooks import HookPoint
from tests.helpers import frozen, normal, seeded
from tests.hooks.nets import Lambda

X, SEQUENCE = normal(3, 4), normal(3, 7, 4)


def _mlp() -> nn.Sequential:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)))
    assert isinstance(model, nn.Sequential)
    return model


def _net(function: Any, **modules: nn.Module) -> Lambda:
    """A frozen network of a function and its modules."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in modules.values():
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.5)
    model = frozen(Lambda(function, **modules))
    assert isinstance(model, Lambda)
    return model


def _assert_conserved(found: Tensor, model: Any, inputs: Tensor, target: int = 0, tolerance: float = 1e-6) -> None:
    """The layer is a cut, so that its conductance is the change of the output."""
    change = model(inputs)[:, target] - model(torch.zeros_like(inputs))[:, target]
    assert change.abs().min() > 1e-3
    torch.testing.assert_close(found.reshape(len(found), -1).sum(1), change, rtol=tolerance, atol=0)


@pytest.mark.parametrize("most", [4, 10, 37])
def test_rows_of_a_call_stay_below_internal_batch_size_for_any_batch(most: int) -> None:
    model, inputs = _mlp(), normal(20, 4)
    rows: list[int] = []
    handle = model[0].register_forward_pre_hook(lambda _module, args: rows.append(len(args[0])))
    found = LayerConductance(model, model[1]).attribute(inputs, target=0, internal_batch_size=most, n_steps=20)
    assert max(rows) <= most
    rows.clear()
    through = NeuronConductance(model, model[1])
    one = through.attribute(inputs, 2, target=0, internal_batch_size=most, n_steps=20)
    assert max(rows) <= most
    whole = LayerConductance(model, model[1]).attribute(inputs, target=0, n_steps=20)
    assert max(rows) > 37
    handle.remove()
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-3 * float(whole.abs().max()))
    other = through.attribute(inputs, 2, target=0, n_steps=20)
    torch.testing.assert_close(one, other, rtol=0, atol=2e-2 * float(other.abs().max()))


def test_layers_that_give_tuples_with_none() -> None:
    model = _net(
        lambda net, z: net.head(net.attn(z, z, z, need_weights=False)[0].mean(1)),
        attn=nn.MultiheadAttention(4, 2, batch_first=True),
        head=nn.Linear(4, 2),
    )
    found = LayerConductance(model, model.attn).attribute(SEQUENCE, target=0)
    assert isinstance(found, Tensor)
    assert found.shape == (3, 7, 4)
    _assert_conserved(found, model, SEQUENCE)


def test_layers_that_give_nested_tuples_and_heads_that_nothing_uses() -> None:
    model = _net(
        lambda net, z: net.head(net.rnn(z)[0][:, -1]), rnn=nn.LSTM(4, 5, batch_first=True), head=nn.Linear(5, 2)
    )
    found, delta = LayerConductance(model, model.rnn).attribute(SEQUENCE, target=0, return_convergence_delta=True)
    assert [tuple(part.shape) for part in found] == [(3, 7, 5), (3, 1, 5), (3, 1, 5)]
    _assert_conserved(found[0], model, SEQUENCE)
    assert delta.abs().max() < 1e-6
    assert not found[1].any()
    assert not found[2].any()
    for name in ("rnn[0]", HookPoint("rnn", index=(0,))):
        torch.testing.assert_close(LayerConductance(model, name).attribute(SEQUENCE, target=0), found[0])
    neuron = NeuronConductance(model, model.rnn)
    through = neuron.attribute(SEQUENCE, lambda parts: parts[0][:, 6, 2], target=0)
    torch.testing.assert_close(through.sum((1, 2)), found[0][:, 6, 2])
    with pytest.warns(ZeroConductanceWarning, match=r"layer 'rnn\[1\]\[0\]': the target does not use it"):
        assert not neuron.attribute(SEQUENCE, lambda parts: parts[1][0, :, 2], target=0).any()
    with pytest.raises(ValueError, match=r"several tensors, 'rnn\[0\]', 'rnn\[1\]\[0\]'.*function of the tuple"):
        neuron.attribute(SEQUENCE, 2, target=0)


def test_unused_layers_need_no_grad_kwargs() -> None:
    def forward(net: Any, z: Tensor) -> Tensor:
        hidden = net.a(z).tanh()
        net.aux(hidden)
        out: Tensor = net.b(hidden)
        return out

    model = _net(forward, a=nn.Linear(4, 5), aux=nn.Linear(5, 3), b=nn.Linear(5, 2))
    for options in (None, {"materialize_grads": True}, {"allow_unused": True, "retain_graph": False}):
        found = LayerConductance(model, [model.aux, model.b]).attribute(X, target=0, grad_kwargs=options)
        assert found[0].shape == (3, 3)
        assert not found[0].any()
        _assert_conserved(found[1], model, X)
        with pytest.warns(ZeroConductanceWarning, match="layer 'aux': the target does not use it"):
            through = NeuronConductance(model, model.aux).attribute(X, 1, target=0, grad_kwargs=options)
        assert through.shape == (3, 4)
        assert not through.any()


@pytest.mark.parametrize("as_function", [False, True])
def test_every_call_of_a_module_that_is_used_twice_is_explained(as_function: bool) -> None:
    act = nn.Tanh()
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 5), act, nn.Linear(5, 6), act, nn.Linear(6, 2)))
    forward: Any = (lambda x: model(x)) if as_function else model
    first, second = LayerConductance(forward, act).attribute(X, target=0)
    assert (first.shape, second.shape) == ((3, 5), (3, 6))
    _assert_conserved(first, model, X)
    _assert_conserved(second, model, X)
    through = NeuronConductance(forward, act).attribute(X, lambda calls: calls[1][:, 4], target=0)
    torch.testing.assert_close(through.sum(1), second[:, 4])
    if not as_function:
        torch.testing.assert_close(LayerConductance(model, "1#0").attribute(X, target=0), first)
        torch.testing.assert_close(LayerConductance(model, "1#1").attribute(X, target=0), second)


def test_several_layers_in_one_pass() -> None:
    model = _mlp()
    rows: list[int] = []
    handle = model.register_forward_pre_hook(lambda _module, args: rows.append(len(args[0])))
    layers = [model[3], "0", model[1]]
    found, deltas = LayerConductance(model, layers).attribute(X, target=0, n_steps=20, return_convergence_delta=True)
    together = sum(rows)
    rows.clear()
    LayerConductance(model, layers[1]).attribute(X, target=0, n_steps=20)
    assert together <= sum(rows) + 3 * 20 / 2  # not three times as many
    handle.remove()
    assert [tuple(part.shape) for part in found] == [(3, 6), (3, 5), (3, 5)]
    assert not torch.equal(found[1], found[2])
    for one, delta, layer in zip(found, deltas, layers, strict=True):
        alone = LayerConductance(model, layer).attribute(X, target=0, n_steps=200)
        torch.testing.assert_close(one, alone, rtol=0, atol=3e-2 * float(alone.abs().max()))
        change = model(X)[:, 0] - model(torch.zeros_like(X))[:, 0]
        torch.testing.assert_close(delta, one.sum(1) - change)
    neurons = NeuronConductance(model, layers).attribute(X, 2, target=0)
    assert isinstance(neurons, list)
    for through, layer in zip(neurons, layers, strict=True):
        torch.testing.assert_close(through, NeuronConductance(model, layer).attribute(X, 2, target=0))
    assert isinstance(LayerConductance(model, [model[3]]).attribute(X, target=0), list)


def test_a_glob_or_type_gives_a_tuple_in_forward_order() -> None:
    model = _mlp()
    found = LayerConductance(model, nn.Linear).attribute(X, target=0)
    assert [tuple(part.shape) for part in found] == [(3, 5), (3, 6), (3, 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_keep_no_graph_whatever_requires_a_gradient(dtype: torch.dtype) -> None:
    model = _mlp().to(dtype).requires_grad_()
    inputs = X.to(dtype).requires_grad_()
    found = LayerConductance(model, model[1]).attribute(inputs, target=0, return_convergence_delta=True)
    through = NeuronConductance(model, model[1]).attribute(inputs, 1, target=0)
    local = NeuronConductance(model, model[1], multiply_by_inputs=False).attribute(inputs, 1, target=0)
    for one in (*found, through, local):
        assert not one.requires_grad
        assert one.grad_fn is None
        assert one.dtype == dtype
    assert inputs.grad is None


def test_inputs_of_a_layer_that_is_called_with_keywords() -> None:
    model = _net(
        lambda net, z: net.attn(query=net.a(z), key=net.b(z), value=net.c(z))[0].mean(1),
        attn=nn.MultiheadAttention(4, 2, batch_first=True),
        a=nn.Linear(4, 4),
        b=nn.Linear(4, 4),
        c=nn.Linear(4, 4),
    )
    found = LayerConductance(model, model.attn).attribute(SEQUENCE, target=0, attribute_to_layer_input=True)
    outputs = LayerConductance(model, [model.a, model.b, model.c]).attribute(SEQUENCE, target=0)
    assert isinstance(found, tuple)
    for one, other in zip(found, outputs, strict=True):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)
    query = LayerConductance(model, "attn:in[query]").attribute(SEQUENCE, target=0)
    torch.testing.assert_close(query, found[0], rtol=1e-5, atol=1e-9)
    neuron = NeuronConductance(model, model.attn)
    through = neuron.attribute(SEQUENCE, lambda parts: parts[2][:, 3, 1], target=0, attribute_to_neuron_input=True)
    torch.testing.assert_close(through.sum((1, 2)), found[2][:, 3, 1], rtol=1e-4, atol=1e-9)


def test_layers_by_name_and_those_that_never_ran() -> None:
    model = _mlp()
    named = LayerConductance(model, "1").attribute(X, target=0)
    torch.testing.assert_close(named, LayerConductance(model, model[1]).attribute(X, target=0))
    with pytest.raises(ValueError, match=r"no module named '11'. Nearest: '1'"):
        LayerConductance(model, "11").attribute(X, target=0)
    aside = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="never ran in a forward pass"):
        LayerConductance(lambda x: model(x), aside).attribute(X, target=0)
    with pytest.raises(ValueError, match="layers must be given as modules"):
        LayerConductance(lambda x: model(x), "1").attribute(X, target=0)
    with pytest.raises(ValueError, match="layer is an empty list"):
        NeuronConductance(model, []).attribute(X, 0, target=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TorchScript itself
def test_torchscript_is_told_that_its_layers_run_unseen() -> None:
    traced = torch.jit.trace(_mlp(), X)
    with pytest.raises(TypeError, match=r"model is TorchScript.*pass the eager"):
        LayerConductance(traced, getattr(traced, "1")).attribute(X, target=0)


GROUPS: list[tuple[Any, list[tuple[int, int, int]]]] = [
    ((slice(0, 2), 1, 0), [(0, 1, 0), (1, 1, 0)]),
    ((2, slice(None, None, 2), slice(1, 2)), [(2, 0, 1), (2, 2, 1)]),
    ((1,), [(1, i, j) for i in range(3) for j in range(2)]),
    (1, [(1, i, j) for i in range(3) for j in range(2)]),
    (slice(2, 4), [(k, i, j) for k in (2, 3) for i in range(3) for j in range(2)]),
    (lambda t: t[:, 1:3, 2, 0].sum(1), [(1, 2, 0), (2, 2, 0)]),
    (lambda t: t[:, 0, 1, 1] + t[:, 3, 0, 0], [(0, 1, 1), (3, 0, 0)]),
    (lambda t: t[:, [0, 3]].sum((1, 2, 3)), [(k, i, j) for k in (0, 3) for i in range(3) for j in range(2)]),
]


@pytest.mark.parametrize(("selector", "elements"), GROUPS)
def test_a_slice_of_units_is_the_sum_of_its_units(selector: Any, elements: list[tuple[int, int, int]]) -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(24, 2)))
    images = normal(2, 2, 4, 3)
    neuron = NeuronConductance(model, "1")
    expected = torch.stack([neuron.attribute(images, one, target=1) for one in elements]).sum(0)
    assert expected.abs().max() > 1e-3
    found = neuron.attribute(images, selector, target=1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    layer = LayerConductance(model, "1").attribute(images, target=1)
    total = torch.stack([layer[(slice(None), *one)] for one in elements]).sum(0)
    torch.testing.assert_close(found.sum((1, 2, 3)), total, rtol=1e-6, atol=1e-9)


SELECTORS: list[tuple[Any, type[Exception], str]] = [
    (9, ValueError, r"neuron_selector: \(9,\) is out of range; axis 0 of layer '1' runs from 0 to 4"),
    ((1, 1), ValueError, r"neuron_selector: \(1, 1\) has 2 entries"),
    (slice(3, 3), ValueError, r"neuron_selector: \(3:3,\) is empty"),
    ([0, 1], TypeError, "neuron_selector: .* holds a list"),
    (True, TypeError, "neuron_selector: .* holds a bool"),
    (lambda t: t[:, 1] * 2, ValueError, "neuron_selector weighs or changes the units of layer '1'"),
    (lambda t: t[:, 1].relu(), ValueError, "weighs or changes"),
    (lambda t: t.amax(1), ValueError, "weighs or changes"),
    (lambda t: t[:1, 1].expand(len(t)), ValueError, "weighs or changes"),
    (lambda t: t, ValueError, r"neuron_selector gave \(2, 5\) for 2 rows"),
    (lambda _: 1.0, ValueError, "neuron_selector gave float for 2 rows"),
    (lambda t: torch.ones(len(t)), ValueError, "neuron_selector selects no unit"),
]


@pytest.mark.parametrize(("selector", "kind", "message"), SELECTORS)
def test_selectors_that_select_nothing_are_refused(selector: Any, kind: type[Exception], message: str) -> None:
    model = _mlp()
    with pytest.raises(kind, match=message):
        NeuronConductance(model, "1").attribute(X, selector, target=0)


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_results_have_the_precision_of_the_layer_whatever_the_default(dtype: torch.dtype, default: torch.dtype) -> None:
    model = _mlp()
    exact = LayerConductance(model, model[1]).attribute(X, target=0)
    through = NeuronConductance(model, model[1], multiply_by_inputs=False).attribute(X, 1, target=0)
    torch.set_default_dtype(default)
    model = model.to(dtype)
    found, delta = LayerConductance(model, model[1]).attribute(X.to(dtype), target=0, return_convergence_delta=True)
    local = NeuronConductance(model, model[1], multiply_by_inputs=False).attribute(X.to(dtype), 1, target=0)
    assert found.dtype == local.dtype == delta.dtype == torch.promote_types(dtype, torch.float32)
    tolerance = {torch.bfloat16: 0.1, torch.float32: 1e-5, torch.float64: 1e-9}[dtype]
    for one, other in ((found, exact), (local, through)):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance * float(other.abs().max()))
