"""Every argument of the drop-ins means what it means in Captum, and each has a test that fails if it is ignored."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import LayerConductance as CaptumLayer
from captum.attr import NeuronConductance as CaptumNeuron
from torch import Tensor, nn

from conductance import total_conductance
from conductance.captum import LayerConductance, NeuronConductance
from tests.helpers import CaptumToy, frozen, normal, seeded
from tests.hooks.nets import Lambda

X = normal(3, 4)
#: Of Captum's rules for layers, the one whose many points are cheap to lay out.
FINE = "riemann_trapezoid"


def _mlp() -> nn.Sequential:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)))
    assert isinstance(model, nn.Sequential)
    return model


def _assert_same(found: Any, expected: Any, tolerance: float = 1e-8) -> None:
    if isinstance(expected, Tensor):
        expected = expected.detach()
        assert isinstance(found, Tensor)
        assert found.shape == expected.shape
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
        return
    assert type(found) is type(expected)
    for one, other in zip(found, expected, strict=True):
        _assert_same(one, other, tolerance)


@pytest.mark.parametrize(("ours", "theirs"), [(LayerConductance, CaptumLayer), (NeuronConductance, CaptumNeuron)])
def test_signatures_are_captums(ours: type, theirs: type) -> None:
    for name in ("__init__", "attribute", "compute_convergence_delta", "has_convergence_delta", "get_name"):
        mine, others = (
            [(one.name, one.default, one.kind) for one in inspect.signature(getattr(kind, name)).parameters.values()]
            for kind in (ours, theirs)
        )
        assert mine == others, name
    model = _mlp()
    one, other = ours(model, model[1]), theirs(model, model[1])
    public = {name for name in dir(other) if not name.startswith("_")} - {"attribute_future", "gradient_func"}
    assert public <= set(dir(one))
    for name in ("multiplies_by_inputs", "forward_func", "layer", "device_ids"):
        assert getattr(one, name) == getattr(other, name)
    assert one.has_convergence_delta() == other.has_convergence_delta()
    assert one.get_name() == other.get_name()


def test_positional_arguments_go_where_captum_puts_them() -> None:
    model = CaptumToy().double()
    x, start = normal(2, 3, scale=5.0), normal(2, 3, seed=1)
    layer: tuple[Any, ...] = (x, start, 1, None, 2000, FINE, None, True, True, None)
    ours = LayerConductance(model, model.relu, None).attribute(*layer)
    _assert_same(ours[0], CaptumLayer(model, model.relu, None).attribute(*layer)[0], 1e-2)
    assert ours[1].abs().max() < 1e-9
    neuron: tuple[Any, ...] = (x, (2,), start, 1, None, 1000, FINE, None, True, None)
    ours_neuron = NeuronConductance(model, model.relu, None, False).attribute(*neuron)
    _assert_same(ours_neuron, CaptumNeuron(model, model.relu, None, False).attribute(*neuron), 1e-2)


BASELINES: list[Any] = [None, 1, 0.25, normal(3, 4, seed=1), normal(1, 4, seed=2), (0.5,), (normal(1, 4, seed=3),)]


@pytest.mark.parametrize("baselines", BASELINES)
def test_baselines_are_captums(baselines: Any) -> None:
    model = _mlp()
    ours = LayerConductance(model, model[1]).attribute(X, baselines, 0)
    _assert_same(ours, CaptumLayer(model, model[1]).attribute(X, baselines, 0, n_steps=2000, method=FINE), 1e-3)
    through = NeuronConductance(model, model[1]).attribute(X, 2, baselines, 0)
    theirs = CaptumNeuron(model, model[1]).attribute(X, 2, baselines, 0, method="gausslegendre")
    _assert_same(through, theirs, 1e-6)


def _cube(z: Tensor) -> Tensor:
    return z.reshape(len(z), 5, 1) * torch.arange(1.0, 4.0, dtype=z.dtype) + z[:, :1, None].tanh()


TARGETS: list[tuple[Any, bool]] = [
    (2, False),
    (torch.tensor(2), False),
    (torch.tensor([2]), False),
    ([2, 0, 1], False),
    (torch.tensor([2, 0, 1]), False),
    ((2, 1), True),
    ([(2, 1), (0, 0), (4, 2)], True),
]


@pytest.mark.parametrize(("target", "deep"), TARGETS)
def test_targets_are_captums(target: Any, deep: bool) -> None:
    inner = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)))

    def model(x: Tensor) -> Tensor:
        out: Tensor = inner(x)
        return _cube(out) if deep else out

    ours = LayerConductance(model, inner[1]).attribute(X, target=target)  # type: ignore[index]
    theirs = CaptumLayer(model, inner[1]).attribute(X, target=target, n_steps=2000, method=FINE)  # type: ignore[index]
    _assert_same(ours, theirs, 1e-3)


@pytest.mark.parametrize("reduce", [lambda out: out[:, 1], lambda out: out[:, 1:]])
def test_one_output_an_example_needs_no_target(reduce: Callable[[Tensor], Tensor]) -> None:
    model = _mlp()
    found = LayerConductance(lambda x: reduce(model(x)), model[0]).attribute(X)
    _assert_same(found, LayerConductance(model, model[0]).attribute(X, target=1))


def test_tuples_of_inputs_and_further_arguments() -> None:
    inner = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)))
    first, second, weight = X, normal(3, 4, seed=4), normal(3, 1, seed=5)

    def model(a: Tensor, b: Tensor, w: Tensor, power: int) -> Tensor:
        return inner(a + b * b) * w**power  # type: ignore[no-any-return]

    arguments: dict[str, Any] = {"target": 1, "additional_forward_args": (weight, 2)}
    ours = LayerConductance(model, inner[1]).attribute((first, second), (0.0, 1), **arguments)  # type: ignore[index]
    theirs = CaptumLayer(model, inner[1])  # type: ignore[index]
    _assert_same(ours, theirs.attribute((first, second), (0.0, 1), n_steps=2000, method=FINE, **arguments), 1e-3)
    through = NeuronConductance(model, inner[1]).attribute((first, second), 3, (0.0, 1), **arguments)  # type: ignore[index]
    others = CaptumNeuron(model, inner[1])  # type: ignore[index]
    _assert_same(through, others.attribute((first, second), 3, (0.0, 1), method="gausslegendre", **arguments), 1e-6)
    single = NeuronConductance(lambda a: model(a, a, weight[:1], 1), inner[1])  # type: ignore[index]
    assert isinstance(single.attribute((first,), 3, target=1), tuple)
    assert isinstance(single.attribute(first, 3, target=1), Tensor)


def test_whole_numbers_move_as_in_captum() -> None:
    model = _mlp().float()
    x = torch.arange(12).reshape(3, 4)
    ours = LayerConductance(model, model[1]).attribute(x, target=0)
    _assert_same(ours, CaptumLayer(model, model[1]).attribute(x, target=0, n_steps=2000, method=FINE), 1e-2)


def test_token_ids_are_told_what_they_need() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(RuntimeError) as caught:
        LayerConductance(model, model[2]).attribute(torch.tensor([[1, 5, 8]]), target=0)
    assert "give their embeddings as inputs" in " ".join(caught.value.__notes__)


@pytest.mark.filterwarnings("ignore::conductance.errors.ConvergenceWarning")
def test_n_steps_is_the_most_points_of_a_path() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 37), nn.ReLU(), nn.Linear(37, 31), nn.ReLU(), nn.Linear(31, 2)))
    seen = _count(model)
    errors = []
    exact = total_conductance(model, X, ["2"], target=0, rtol=1e-10)["2"]
    for n_steps in (3, 8, 40, 400):
        seen.clear()
        found = LayerConductance(model, model[2]).attribute(X, target=0, n_steps=n_steps)  # type: ignore[index]
        errors.append(float((found - exact).abs().sum() / exact.abs().sum()))
        assert (
            sum(seen) <= 3 * n_steps + 3 * 2 + 20
        )  # the model is tried, true ends are run forward, zeros are looked into
        seen.clear()
        NeuronConductance(model, model[2]).attribute(X, 1, target=0, n_steps=n_steps)  # type: ignore[index]
        assert sum(seen) <= 2 * 3 * n_steps + 3 * 2 + 20
    assert errors[0] > 1e-2 > errors[2] > errors[3]
    assert errors[3] < 1e-9


def _count(model: nn.Module) -> list[int]:
    rows: list[int] = []
    model.register_forward_pre_hook(lambda _module, args: rows.append(len(args[0])))
    return rows


@pytest.mark.parametrize("method", ["riemann_right", "riemann_left", "riemann_middle", "riemann_trapezoid"])
def test_method_does_not_choose_the_rule(method: str) -> None:
    model = _mlp()
    layer, neuron = LayerConductance(model, model[1]), NeuronConductance(model, model[1])
    assert torch.equal(layer.attribute(X, target=0, method=method), layer.attribute(X, target=0))
    assert torch.equal(neuron.attribute(X, 1, target=0, method=method), neuron.attribute(X, 1, target=0))


@pytest.mark.filterwarnings("ignore::conductance.errors.ConvergenceWarning")
def test_delta_is_the_gap_to_completeness() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)))
    layer = LayerConductance(model, model[0])  # type: ignore[index]
    found, delta = layer.attribute(X, 0.5, 1, n_steps=3, return_convergence_delta=True)
    expected = found.sum(1) - (model(X) - model(torch.full_like(X, 0.5)))[:, 1]
    assert expected.abs().max() > 1e-4  # three points do not do
    torch.testing.assert_close(delta, expected)
    torch.testing.assert_close(layer.compute_convergence_delta(found, 0.5, X, 1), expected)
    theirs = CaptumLayer(model, model[0]).compute_convergence_delta(found, 0.5, X, 1)  # type: ignore[index]
    torch.testing.assert_close(delta, theirs)


def test_delta_knows_tuples_targets_and_further_arguments() -> None:
    def model(a: Tensor, b: Tensor, factor: Tensor) -> Tensor:
        return torch.stack([a.sum(1) * b[:, 0], b.exp().sum(1)], 1) * factor

    a, b, factor = normal(3, 4), normal(3, 2, seed=1), normal(3, 1, seed=2)
    parts = (normal(3, 5, seed=3), normal(3, 2, 2, seed=4))
    arguments: tuple[Any, ...] = (parts, (normal(1, 4, seed=5), 1.0), (a, b), [1, 0, 1], (factor,))
    layer = nn.Linear(1, 1)
    found = NeuronConductance(model, layer).compute_convergence_delta(*arguments)
    torch.testing.assert_close(found, CaptumNeuron(model, layer).compute_convergence_delta(*arguments))


def test_layer_input_is_the_output_of_the_layer_before() -> None:
    model = _mlp()
    before, after = (LayerConductance(model, model[k]) for k in (1, 2))
    _assert_same(after.attribute(X, target=0, attribute_to_layer_input=True), before.attribute(X, target=0))
    one, other = (NeuronConductance(model, model[k]) for k in (1, 2))
    found = other.attribute(X, 3, target=0, attribute_to_neuron_input=True)
    _assert_same(found, one.attribute(X, 3, target=0))
    function = LayerConductance(lambda x: model(x), model[2])
    _assert_same(function.attribute(X, target=0, attribute_to_layer_input=True), before.attribute(X, target=0))


def test_interpolate_stretches_positions() -> None:
    stretched = LayerConductance.interpolate(torch.tensor([[[[1.0, 2.0]]]]), (2, 4))
    assert stretched.tolist() == [[[[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]]]


MISTAKES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"method": "simpson"}, ValueError, "method must be 'riemann_right'.*got 'simpson'"),
    ({"n_steps": 1}, ValueError, "n_steps is 1; expected at least 2"),
    ({"n_steps": 2.5}, TypeError, "n_steps is 2.5; expected a whole number"),
    ({"n_steps": None}, TypeError, "n_steps is None"),
    ({"internal_batch_size": 0}, ValueError, "internal_batch_size is 0"),
    ({"target": 7}, ValueError, "target 7 is out of range"),
    ({"target": None}, ValueError, "target is missing"),
    ({"target": [0, 1]}, ValueError, "target has 2 entries for 3 examples"),
    ({"baselines": [0.0]}, TypeError, "baselines is a list.*total_conductance"),
    ({"baselines": (0.0, 1.0)}, ValueError, "baselines has 2 entries for 1 inputs"),
    ({"inputs": (X, X), "baselines": X}, TypeError, "baselines is one tensor for 2 inputs"),
    ({"inputs": {"x": X}}, TypeError, "inputs is a dict; expected a tensor or a tuple"),
    ({"inputs": (X, 3)}, TypeError, "inputs is a tuple of Tensor, int"),
    ({"grad_kwargs": {"create_graph": True}}, ValueError, "grad_kwargs holds 'create_graph'.*detached"),
    ({"grad_kwargs": ["allow_unused"]}, TypeError, "grad_kwargs is a list"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), MISTAKES)
def test_mistakes_are_named(arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    model = _mlp()
    arguments = {"inputs": X, "target": 0, **arguments}
    with pytest.raises(kind, match=message):
        LayerConductance(model, model[1]).attribute(**arguments)
    with pytest.raises(kind, match=message):
        NeuronConductance(model, model[1]).attribute(neuron_selector=0, **arguments)


def test_several_devices_are_refused() -> None:
    model = _mlp()
    with pytest.raises(ValueError, match=r"device_ids names devices \[0, 1\].*model.module"):
        LayerConductance(model, model[1], device_ids=[0, 1]).attribute(X, target=0)
    parallel = nn.DataParallel(model)
    alone = LayerConductance(parallel, model[1], device_ids=[0]).attribute(X, target=0)
    _assert_same(alone, LayerConductance(model, model[1]).attribute(X, target=0))
    parallel.device_ids = [0, 1]
    with pytest.raises(TypeError, match=r"DataParallel over 2 devices.*pass model.module"):
        NeuronConductance(parallel, model[1]).attribute(X, 0, target=0)


def test_attributions_must_fit_the_points() -> None:
    model = _mlp()
    with pytest.raises(ValueError, match=r"attributions have \[2\] examples, but the points have 3"):
        LayerConductance(model, model[1]).compute_convergence_delta(X[:2], 0, X, 0)


def test_an_interruption_is_passed_on() -> None:
    model = _mlp()
    calls = 0

    def interrupted(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise KeyboardInterrupt
        out: Tensor = model(x)
        return out

    with pytest.raises(KeyboardInterrupt):
        LayerConductance(interrupted, model[1]).attribute(X, target=0)


def test_the_model_is_left_as_it_was() -> None:
    model = frozen(CaptumToy()).requires_grad_()
    for multiply in (True, False):
        NeuronConductance(model, model.relu, multiply_by_inputs=multiply).attribute(normal(2, 3), 1, target=0)
    LayerConductance(model, model.relu).attribute(normal(2, 3), target=0, attribute_to_layer_input=True)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(one.requires_grad and one.grad is None for one in model.parameters())


def test_captum_is_not_imported() -> None:
    import subprocess
    import sys

    text = "import sys, conductance.captum; assert 'captum' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", text], check=False).returncode == 0


def test_a_plain_function_may_call_any_module() -> None:
    model = Lambda(lambda net, x: net.b(net.a(x).tanh()), a=nn.Linear(4, 5), b=nn.Linear(5, 2)).double()
    found = LayerConductance(model.forward, [model.b, model.a]).attribute(X, target=0)
    expected = LayerConductance(model, ["b", "a"]).attribute(X, target=0)
    _assert_same(found, expected)
