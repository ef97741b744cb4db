"""Tensors without a module, given a name in the forward pass, are hook points like the outputs of modules."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import conductance as cd
from conductance.hooks import HookPoint, LayerSpec, capture, list_points, probe, select, tap
from conductance.hooks.tapping import known_taps
from tests.helpers import normal, seeded

X = normal(3, 4, seed=1)


class Gated(nn.Module):
    """``(batch, 4)`` to two logits through a product that no module makes; `named` puts it into hook points or not."""

    def __init__(self, named: Callable[[nn.Module, str, Tensor], Tensor], width: int = 5) -> None:
        super().__init__()
        self.value, self.switch = nn.Linear(4, width), nn.Linear(4, width)
        self.again, self.head = nn.Linear(width, width), nn.Linear(width, 2)
        self.gate, self.mean = nn.Identity(), nn.Identity()
        self.named = named

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        gated = self.named(self, "gate", torch.sigmoid(self.switch(x)) * self.value(x))
        gated = self.named(self, "gate", torch.tanh(self.again(gated)) * gated)
        mean = self.named(self, "mean", gated - gated.mean(1, keepdim=True))
        output: Tensor = self.head(mean)
        return output


def by_module(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """As hook points were made before there were taps."""
    passed: Tensor = model.get_submodule(name)(tensor)
    return passed


def by_tap(_model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """By a name that no module has: ``t.gate``, ``t.mean``."""
    return tap(f"t.{name}", tensor)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test be the first to call a tap."""
    monkeypatch.setattr("conductance.hooks.tapping._taps", {})


def pair() -> tuple[nn.Module, nn.Module]:
    """One network twice: with modules for the tensors, and with taps."""
    return seeded(lambda: Gated(by_module)), seeded(lambda: Gated(by_tap))


# --- the function ---


@pytest.mark.parametrize("tensor", [torch.ones(2, 3), torch.tensor(1), torch.ones(2, requires_grad=True) * 2])
def test_a_tensor_is_the_same_object_where_nothing_is_analysed(tensor: Tensor) -> None:
    for _ in range(2):  # the second call finds the name
        assert tap("gate", tensor) is tensor
    with torch.inference_mode():
        assert tap("gate", tensor) is tensor


def test_a_tensor_keeps_its_identity_while_it_is_tapped() -> None:
    passed: list[tuple[Tensor, Tensor]] = []

    def named(_model: nn.Module, name: str, tensor: Tensor) -> Tensor:
        passed.append((tensor, tap(f"t.{name}", tensor)))
        return passed[-1][1]

    model = seeded(lambda: Gated(named))
    cd.total_conductance(model, X, "t.gate", target=0)
    assert len(passed) > 6
    assert all(before is after for before, after in passed)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X, "gate"), TypeError, r"tap: name is a Tensor; expected a string, as in tap\('gate', tensor\)"),
        ((3, X), TypeError, "tap: name is a int; expected a string"),
        (("", X), ValueError, "tap: name is empty; expected one that no module of the model has"),
        (("gate", (X, X)), TypeError, r"tap: 'gate' is given a tuple; expected a tensor \(tap several one by one\)"),
        (("gate", None), TypeError, "tap: 'gate' is given a NoneType; expected a tensor"),
    ],
)
def test_what_cannot_be_tapped(arguments: tuple[Any, Any], error: type[Exception], message: str) -> None:
    for _ in range(2):
        with pytest.raises(error, match=message):
            tap(*arguments)
    tap("gate", X)
    with pytest.raises(error, match=message):
        tap(*arguments)


def test_traced_code_passes_taps_by() -> None:
    _, model = pair()
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(X), model(X))


# --- what is found ---


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ("mean", "t.mean"),
        ("gate", "t.gate"),
        ("gate#1", "t.gate#1"),
        ("mean:in", "t.mean:in"),
        (["gate#0", "head", "value"], ["t.gate#0", "head", "value"]),
        (["m*", "gat*"], "t.*"),
        (HookPoint("gate", call=1), HookPoint("t.gate", call=1)),
        (None, None),
        ("*", "*"),
    ],
)
def test_a_fresh_model_with_taps_gives_the_numbers_of_one_with_modules(there: Any, here: Any) -> None:
    modules, taps = pair()
    expected = cd.total_conductance(modules, X, there, target=0, rtol=1e-6)
    found = cd.total_conductance(taps, X, here, target=0, rtol=1e-6)
    names = {name: f"t.{name}" if name.startswith(("gate", "mean")) else name for name in expected}
    assert set(found) == set(names.values())
    for name, tapped in names.items():
        assert expected[name].abs().max() > 1e-3
        assert torch.equal(found[tapped], expected[name])
        assert found.is_cut[tapped] == expected.is_cut[name]


def test_a_model_with_a_tap_agrees_with_the_closed_form() -> None:
    weight = torch.tensor([2.0, -1.0, 0.5, 3.0], dtype=torch.float64)
    found = cd.total_conductance(lambda x: tap("square", x**2) @ weight, X, "square", target=lambda out: out, rtol=1e-9)
    torch.testing.assert_close(found["square"], X**2 * weight, rtol=1e-9, atol=1e-12)


def test_finer_quantities_take_taps() -> None:
    modules, taps = pair()
    neuron = [cd.neuron_conductance(m, X, n, target=0) for m, n in ((modules, "gate#1"), (taps, "t.gate#1"))]
    assert isinstance(neuron[0], cd.NeuronConductance)
    assert isinstance(neuron[1], cd.NeuronConductance)
    assert isinstance(neuron[0].values, Tensor)
    assert isinstance(neuron[1].values, Tensor)
    assert torch.equal(neuron[0].values, neuron[1].values)
    assert neuron[0].values.abs().max() > 1e-3
    flows = [
        cd.conductance_flow(m, X, [f"{p}gate", f"{p}mean"], target=0, top=2) for m, p in ((modules, ""), (taps, "t."))
    ]
    there, here = flows[0].edges["gate#1", "mean"], flows[1].edges["t.gate#1", "t.mean"]
    assert torch.equal(here, there)
    assert there.abs().max() > 1e-3
    heads = torch.eye(5, dtype=X.dtype)
    codes = cd.dictionary_conductance(taps, X, "t.mean", encode=lambda y: y @ heads, decoder=heads, target=0, rtol=1e-6)
    total = cd.total_conductance(taps, X, "t.mean", target=0, rtol=1e-6)
    torch.testing.assert_close(codes["t.mean"][:, :5], total["t.mean"], rtol=1e-4, atol=1e-7)


def test_the_listing_shows_taps_among_the_modules_and_is_taken_as_layers() -> None:
    _, model = pair()
    table = list_points(model, X, target=0)
    assert [info.name for info in table] == [
        "switch", "value", "t.gate#0", "again", "t.gate#1", "t.mean", "head", "(model)",
    ]  # fmt: skip
    shown = {info.name: (info.module_type, info.calls, info.shape, info.is_cut) for info in table}
    assert shown["t.gate#1"] == ("Tap", 2, (3, 5), True)
    assert shown["t.mean"] == ("Tap", 1, (3, 5), True)
    found = cd.total_conductance(model, X, table[2:6], target=0)
    assert found.layers == ["t.gate#0", "again", "t.gate#1", "t.mean"]


def test_the_units_of_a_tap_are_those_of_what_it_comes_from() -> None:
    conv, norm = seeded(lambda: nn.Conv2d(3, 5, 2)), seeded(lambda: nn.LayerNorm(6))
    image = list_points(seeded(lambda: nn.Sequential(conv, Tapped())), normal(2, 3, 6, 7))
    tokens = list_points(seeded(lambda: nn.Sequential(norm, Tapped())), normal(2, 4, 5, 6))
    assert [info.point.unit_axis for table in (image, tokens) for info in table if info.name == "tanh"] == [1, 3]


def test_the_examples_of_a_tap_may_lie_along_another_axis() -> None:
    x = normal(3, 4, 5, seed=2)
    found = cd.total_conductance(
        lambda x: tap("times", x.transpose(0, 1) ** 2).sum((0, 2)), x, "times", target=lambda y: y
    )
    torch.testing.assert_close(found["times"], x**2)


class Tapped(nn.Module):
    """A hyperbolic tangent with a tap."""

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return tap("tanh", torch.tanh(x)) * 2


def test_the_lower_functions_take_taps_that_have_been_called() -> None:
    _, model = pair()
    message = (
        r"layers: no module named 't.mean'.*; hooks.list_points\(model, inputs\).*taps are known once the model has run"
    )
    with pytest.raises(ValueError, match=message):
        capture(model, "t.mean", print)
    with pytest.raises(ValueError, match=message):
        select(model, "t.mean")
    model(X)
    x = X.clone().requires_grad_()
    found = probe(model, select(model, ["t.mean", "t.gate#1"]), lambda: model(x)[:, 0], [x])
    assert [info.name for info in found.points] == ["t.gate#1", "t.mean"]
    seen: list[str] = []
    with capture(model, "t.*", lambda point, activation, gradient: seen.append(point.name)):
        for _ in range(2):  # calls are counted from 0 each time
            model(x).sum().backward()
    assert seen == ["t.mean", "t.gate#1", "t.gate"] * 2


def test_a_request_means_the_taps_of_this_model_alone() -> None:
    tap("other", X)
    _, model = pair()
    for layers in (None, "*", "t.*"):
        found = cd.total_conductance(model, X, layers, target=0)
        assert "other" not in found
        assert "other" not in str(found.settings["left_out"])
    with pytest.raises(ValueError, match="layers: no module named 'other'"):
        cd.total_conductance(model, X, "other", target=0)
    with pytest.raises(ValueError, match=r"layers: no module named 't.maen'. Nearest: 't.mean'"):
        cd.total_conductance(model, X, "t.maen", target=0)


def test_a_path_may_begin_at_a_tap_of_a_fresh_model() -> None:
    modules, taps = pair()
    expected = cd.total_conductance(modules, X, ["mean", "head"], target=0, path_from="gate#1", rtol=1e-6)
    found = cd.total_conductance(taps, X, ["t.mean", "head"], target=0, path_from="t.gate#1", rtol=1e-6)
    assert torch.equal(found["t.mean"], expected["mean"])
    assert expected["mean"].abs().max() > 1e-3
    torch.testing.assert_close(found["t.mean"].sum(1), found.output_change, rtol=1e-5, atol=1e-8)
    with pytest.raises(ValueError, match=r"path_from: no module named 't.gat'. Nearest: 't.gate'"):
        cd.total_conductance(taps, X, "head", target=0, path_from="t.gat")


def test_a_listing_may_begin_at_a_tap_of_a_fresh_model() -> None:
    _, model = pair()
    behind = list_points(model, X, target=0, path_from="t.mean")
    assert [info.name for info in behind if info.moves] == ["t.mean", "head", "(model)"]


def test_two_models_with_the_same_names_stay_apart() -> None:
    first, second = seeded(lambda: Gated(by_tap)), seeded(lambda: Gated(by_tap, width=7), seed=1)
    alone = cd.total_conductance(first, X, "t.mean", target=0)
    other = cd.total_conductance(second, X, "t.mean", target=0)
    again = cd.total_conductance(first, X, "t.mean", target=0)
    assert other["t.mean"].shape == (3, 7)
    assert torch.equal(again["t.mean"], alone["t.mean"])
    assert list_points(second, X)[5].shape == (3, 7)


def test_a_tap_by_the_name_of_a_module_is_an_error() -> None:
    model = seeded(lambda: Gated(lambda _, name, tensor: tap(name, tensor)))
    message = "tap: 'gate' is the name of a module of the model; give the tap another name"
    model(X)
    for use in (lambda: cd.total_conductance(model, X, "head", target=0), lambda: list_points(model, X)):
        with pytest.raises(ValueError, match=message):
            use()


def test_a_plain_callable_may_be_asked_for_taps() -> None:
    _, model = pair()
    assert isinstance(model, Gated)
    expected = cd.total_conductance(model, X, ["t.mean", "head", "t.gate"], target=0)

    def run(x: Tensor) -> Tensor:
        return model.forward(x)

    several: list[LayerSpec] = ["t.mean", "t.m*", HookPoint("t.mean"), ["t.mean", model.head]]
    for layers in several:
        found = cd.total_conductance(run, X, layers, target=0)
        assert torch.equal(found["t.mean"], expected["t.mean"])
    assert torch.equal(found["Linear_0"], expected["head"])
    assert cd.total_conductance(run, X, target=0).layers == ["t.gate#0", "t.gate#1", "t.mean"]
    with pytest.raises(ValueError, match=r"plain callable.* or as names of taps.* got 't.maen'.* Nearest: 't.mean'"):
        cd.total_conductance(run, X, "t.maen", target=0)
    with pytest.raises(ValueError, match=r"plain callable.* got 'head'"):
        cd.total_conductance(run, X, ["t.mean", "head"], target=0)


# --- surroundings ---


class InPlace(nn.Module):
    """A tensor and a view of one, both written over behind the tap, or not."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace
        self.fc, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        h = tap("before", torch.sin(self.fc(x)))
        h = h.mul_(3) if self.inplace else h * 3
        pairs = tap("pairs", h.view(-1, 2, 3))
        pairs = torch.tanh_(pairs) if self.inplace else torch.tanh(pairs)
        output: Tensor = self.head(pairs.reshape(-1, 6))
        return output


def test_what_is_written_over_behind_a_tap_keeps_its_value() -> None:
    expected, found = (
        cd.total_conductance(seeded(partial(InPlace, inplace)), X, ["before", "pairs"], target=0, rtol=1e-6)
        for inplace in (False, True)
    )
    for name in ("before", "pairs"):
        assert expected[name].abs().max() > 1e-3
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)


class ViewWrittenOver(nn.Module):
    """Two units are doubled in place through a view of all; the base goes on."""

    def __init__(self, named: Callable[[nn.Module, str, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.gate, self.head, self.named = nn.Linear(4, 5), nn.Identity(), nn.Linear(5, 2), named

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        hidden = self.fc(x)
        self.named(self, "gate", hidden[:, :3]).mul_(2)
        output: Tensor = self.head(torch.tanh(hidden))
        return output


@pytest.mark.parametrize(("named", "name"), [(by_module, "gate"), (by_tap, "t.gate")])
def test_a_view_written_over_whose_base_goes_on_is_no_converged_zero(
    named: Callable[[nn.Module, str, Tensor], Tensor], name: str
) -> None:
    model = seeded(lambda: ViewWrittenOver(named))
    for layers in (name, ["fc", name]):
        with pytest.raises(ValueError, match=f"{name}', which is a view that the model modifies in place"):
            cd.total_conductance(model, X, layers, target=0)
    total = cd.total_conductance(model, X, target=0, rtol=1e-6)
    assert list(total) == ["fc", "head"]
    assert name in str(total.settings["left_out"])
    assert total["fc"].abs().min() > 1e-6
    torch.testing.assert_close(total["fc"].sum(1), total.output_change, rtol=1e-5, atol=1e-8)
    cuts = {row[0]: row[-1] for row in list_points(model, X, target=0).rows()}
    assert cuts == {"fc": "yes", name: "shared", "head": "yes", "(model)": "yes"}


def test_nothing_stays_on_a_tap() -> None:
    _, model = pair()
    cd.total_conductance(model, X, target=0)
    with pytest.raises(RuntimeError, match="on purpose"):
        cd.total_conductance(model, X, "t.mean", target=failing)
    assert set(known_taps()) == {"t.gate", "t.mean"}
    for one in known_taps().values():
        assert not one._forward_hooks
        assert not one._forward_pre_hooks


def failing(_output: Tensor) -> Tensor:
    """A target that fails."""
    raise RuntimeError("on purpose")


def test_taps_in_a_checkpointed_block_are_seen_once() -> None:
    _, model = pair()
    assert isinstance(model, Gated)
    expected = cd.total_conductance(model, X, "t.gate", target=0)
    found = cd.total_conductance(lambda x: checkpoint(model.forward, x, use_reentrant=False), X, "t.gate", target=0)
    assert found.layers == expected.layers == ["t.gate#0", "t.gate#1"]
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-9)


def test_threads_that_explain_models_with_the_same_names_do_not_hear_each_other() -> None:
    models = [seeded(partial(Gated, by_tap, width)) for width in (5, 6, 7)]
    expected = [cd.total_conductance(model, X, "t.*", target=0, rtol=1e-8) for model in models]
    found: dict[int, cd.TotalConductance] = {}
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(3):
                found[number] = cd.total_conductance(models[number], X, "t.*", target=0, rtol=1e-8)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for number, one in enumerate(expected):
        assert found[number].layers == one.layers
        assert all(torch.equal(found[number][name], one[name]) for name in one)


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch 2.6 brought set_stance")
@pytest.mark.parametrize("run_before", [False, True])
def test_a_compiled_model_with_taps_gives_the_numbers_of_the_model_uncompiled(run_before: bool) -> None:
    _, model = pair()
    expected = cd.total_conductance(model, X, "t.*", target=0, rtol=1e-6)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert isinstance(compiled, nn.Module)
    if run_before:
        torch.testing.assert_close(compiled(X), model(X))
    found = cd.total_conductance(compiled, X, "t.*", target=0, rtol=1e-6)
    assert found.layers == expected.layers
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    x, seen = X.clone().requires_grad_(), []
    with capture(compiled, "t.mean", lambda point, activation, gradient: seen.append(activation.shape)):
        compiled(x).sum().backward()
    assert seen == [(3, 5)]
    assert len(graphs) == run_before
    compiled(X)
    assert len(graphs) == 1, "no tap and no analysis makes compiled code out of date"
