"""Activations and gradients as autograd gives them, exactly once, and nothing left behind."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from conductance.hooks import HookPoint, capture, select
from tests.hooks.nets import Lambda, mlp, residual_in_place, reusing, structured

Got = dict[str, list[tuple[Tensor, Tensor]]]


def collect(got: Got) -> Callable[[HookPoint, Tensor, Tensor], None]:
    def consumer(point: HookPoint, activation: Tensor, gradient: Tensor) -> None:
        got.setdefault(point.name, []).append((activation, gradient))

    return consumer


def captured(model: Any, layers: Any, run: Callable[[], Tensor], **options: Any) -> Got:
    """All that a capture delivers in one pass; run gives the scalar."""
    got: Got = {}
    with capture(model, layers, collect(got), **options):
        torch.autograd.backward(run())
    return got


def assert_delivered(got: Got, expected: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Exactly these points, each once, with these activations and gradients, detached."""
    assert sorted(got) == sorted(expected)
    for name, deliveries in got.items():
        assert len(deliveries) == 1, name
        for actual, wanted in zip(deliveries[0], expected[name], strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-14)
            assert not actual.requires_grad
            assert actual.grad_fn is None


def assert_untouched(model: nn.Module) -> None:
    """No hook on any module or parameter."""
    for name, module in model.named_modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            assert not getattr(module, kind), f"{name}.{kind}"
        assert not module._forward_pre_hooks_with_kwargs
        assert not module._forward_hooks_with_kwargs
    for name, parameter in model.named_parameters():
        assert not parameter._backward_hooks, name


def by_hand(steps: list[Tensor], output: Tensor) -> list[tuple[Tensor, Tensor]]:
    gradients = torch.autograd.grad(output, steps)
    return [(step.detach(), gradient) for step, gradient in zip(steps, gradients, strict=True)]


def test_outputs_agree_with_autograd() -> None:
    model, x = mlp(), torch.randn(6, 3, dtype=torch.float64)
    steps = [h := model[0](x)]
    for layer in list(model)[1:]:
        steps.append(h := layer(h))
    expected = dict(zip("01234", by_hand(steps, h[:, 1].exp().sum()), strict=True))
    assert_delivered(captured(model, None, lambda: model(x)[:, 1].exp().sum()), expected)
    assert_untouched(model)


def test_gradients_arrive_in_the_order_of_the_backward_pass() -> None:
    model, x = mlp(), torch.randn(6, 3, dtype=torch.float64)
    assert list(captured(model, ["0", "2", "3"], lambda: model(x).sum())) == ["3", "2", "0"]


def test_several_uses_of_a_tensor_give_one_delivery() -> None:
    model = Lambda(lambda self, x: (h := self.a(x)) * h.sin() + h, a=nn.Linear(3, 4)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    h = model.a(x)
    expected = {"a": by_hand([h], (h * h.sin() + h).sum())[0]}
    assert_delivered(captured(model, "a", lambda: model(x).sum()), expected)


def reuse_expected(x: Tensor, model: Any) -> list[tuple[Tensor, Tensor]]:
    steps = [model.act(model.a(x))]
    steps.append(model.act(model.b(steps[-1])))
    steps.append(model.act(model.c(steps[-1])))
    return by_hand(steps, steps[-1].exp().sum())


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("act", ["act", "act#1", "act#2"]),
        ("act#0", ["act#0"]),
        (["act#1", "act#2"], ["act#1", "act#2"]),
    ],
)
def test_calls_of_a_reused_module_are_counted(layers: Any, names: list[str]) -> None:
    model, x = reusing(), torch.randn(6, 3, dtype=torch.float64)
    steps = reuse_expected(x, model)
    expected = {name: steps[HookPoint.parse(name).call or 0] for name in names}
    assert_delivered(captured(model, layers, lambda: model(x).exp().sum()), expected)


def test_calls_are_counted_anew_in_each_pass_also_after_a_failed_one() -> None:
    model, x = reusing(), torch.randn(6, 3, dtype=torch.float64)
    steps = reuse_expected(x, model)
    got: Got = {}
    with capture(model, "act#1", collect(got)):
        model(x)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            model(torch.randn(6, 7, dtype=torch.float64))
        model(x).exp().sum().backward()
    assert_delivered(got, {"act#1": steps[1]})


def test_restart_counts_anew_where_there_is_no_model() -> None:
    model, x = reusing(), torch.randn(6, 3, dtype=torch.float64)
    steps = reuse_expected(x, model)
    for again in (True, False):
        got: Got = {}
        with capture({"act": model.act}, "act#1", collect(got)) as taps:
            model(x)
            if again:
                taps.restart()
            model(x).exp().sum().backward()
        assert_delivered(got, {"act#1": steps[1]} if again else {})


def test_entering_a_capture_counts_anew() -> None:
    model, x = reusing(), torch.randn(6, 3, dtype=torch.float64)
    steps = reuse_expected(x, model)
    got: Got = {}
    taps = capture({"act": model.act}, "act#1", collect(got))
    for _ in range(2):
        with taps:
            model(x).exp().sum().backward()
        assert_delivered(got, {"act#1": steps[1]})
        got.clear()


def test_a_callable_is_tapped_by_its_modules() -> None:
    model, x = mlp(), torch.randn(6, 3, dtype=torch.float64)
    h = model[:3](x)
    expected = {"Linear_0": by_hand([h], model[3:](h).sum())[0]}
    run = lambda: model(x).sum()  # noqa: E731
    assert_delivered(captured(lambda x: model(x), model[2], run), expected)
    assert_delivered(captured(select(lambda x: model(x), model[2]).modules, "Linear_0", run), expected)


@pytest.mark.parametrize(
    ("form", "first", "second"),
    [
        ("tuple", "[0]", "[3]"),
        ("nested", "[1][0]", "[1][1][deep]"),
        ("dict", "[first]", "[second]"),
        ("namedtuple", "[0]", "[1]"),
        ("dataclass", "[hidden]", "[extra][0]"),
        ("model output", "[first]", "[second]"),
    ],
)
def test_tensors_of_nested_outputs(form: str, first: str, second: str) -> None:
    model, x = structured(form), torch.randn(6, 3, dtype=torch.float64)
    h = model.enter(x)
    a, b = by_hand([one := 2 * h, other := 3 * h], model.head(one * other.tanh()).sum())
    run = lambda: model(x).sum()  # noqa: E731
    assert_delivered(captured(model, "split", run), {f"split{first}": a, f"split{second}": b})
    assert_delivered(captured(model, f"split{second}", run), {f"split{second}": b})


def test_part_of_a_nested_output() -> None:
    model, x = structured("nested"), torch.randn(6, 3, dtype=torch.float64)
    got = captured(model, "split[1]", lambda: model(x).sum())
    assert sorted(got) == ["split[1][0]", "split[1][1][deep]"]


def test_states_of_an_lstm() -> None:
    lstm = nn.LSTM(3, 4, num_layers=2, batch_first=True).double()
    x = torch.randn(6, 5, 3, dtype=torch.float64)
    model = Lambda(lambda self, x: (r := self.lstm(x))[0].sum(1) * r[1][0][1] + r[1][1][0], lstm=lstm)
    out, (hidden, cell) = lstm(x)
    steps = by_hand([out, hidden, cell], (out.sum(1) * hidden[1] + cell[0]).sum())
    names = ("lstm[0]", "lstm[1][0]", "lstm[1][1]")
    assert_delivered(captured(model, "lstm", lambda: model(x).sum()), dict(zip(names, steps, strict=True)))


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda m, a, b: m(a), {"inner:in": 0}),
        (lambda m, a, b: m(a, scale=b), {"inner:in": 0, "inner:in[scale]": 1}),
        (lambda m, a, b: m(a, b), {"inner:in": (0, 1), "inner:in[0]": 0, "inner:in[1]": 1}),
        (lambda m, a, b: m(x=a, scale=b), {"inner:in": ("x", "scale"), "inner:in[x]": 0}),
        (lambda m, a, b: m([a], scale=b), {"inner:in[0][0]": 0, "inner:in[scale]": 1}),
    ],
)
def test_inputs_of_every_kind(call: Callable[..., Tensor], names: dict[str, Any]) -> None:
    def use(self: Any, x: Any, scale: Any = 2.0) -> Tensor:
        x = x[0] if isinstance(x, list) else x
        product: Tensor = x.exp() * scale
        return product

    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.enter(x)
        return call(self.inner, 2 * h, 3 * h)

    model = Lambda(forward, enter=nn.Linear(3, 4), inner=Lambda(use)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    h = model.enter(x)
    tensors = [2 * h, 3 * h]
    output = call(model.inner, *tensors).sum()
    gradients = torch.autograd.grad(output, tensors, allow_unused=True)
    for layers, places in names.items():
        got = captured(model, layers, lambda: model(x).sum())
        if isinstance(places, int):
            gradient = gradients[places]
            assert gradient is not None
            assert_delivered(got, {layers: (tensors[places].detach(), gradient)})
        else:
            assert sorted(got) == sorted(f"{layers}[{place}]" for place in places)


def test_an_input_that_is_a_leaf_or_a_view_of_one() -> None:
    model = Lambda(lambda self, x: self.a(self.view(x)), view=nn.Flatten(), a=nn.Linear(20, 2)).double()
    x = torch.randn(6, 4, 5, dtype=torch.float64, requires_grad=True)
    layers = ["view:in", "view", "a:in"]
    got = captured(model, layers, lambda: model(x).exp().sum())
    leaf = x.grad
    assert leaf is not None
    seen = x.detach()
    expected = {"view:in": (seen, leaf), "view": (seen.flatten(1), leaf.flatten(1))}
    expected["a:in"] = expected["view"]
    assert_delivered(got, expected)
    assert not x._backward_hooks
    clones = [HookPoint.parse(name) for name in layers]
    x.grad = None
    assert_delivered(captured(model, layers, lambda: model(x).exp().sum(), clone=clones), expected)


def test_in_place_operations() -> None:
    model, x = residual_in_place(), torch.randn(6, 2, 5, 6, dtype=torch.float64)
    stem = model.stem(x)
    conv = model.conv(stem)
    bn = model.bn(conv)
    relu = (bn + stem).relu()
    down = model.down(relu)
    flat = down.flatten(1)
    clip = flat.clamp(0, 6)
    steps = {"stem": stem, "conv": conv, "bn": bn, "relu": relu, "flat": flat, "clip": clip}
    head = model.head(clip)
    expected = dict(zip(steps, by_hand(list(steps.values()), head.exp().sum()), strict=True))
    expected["clip:in"] = expected["flat"]
    clone = [HookPoint("bn"), HookPoint("flat"), HookPoint("clip", side="in")]
    got = captured(model, list(expected), lambda: model(x).exp().sum(), clone=clone)
    assert_delivered(got, expected)
    torch.testing.assert_close(model(x), head)
    assert_untouched(model)


@pytest.mark.parametrize("kind", [nn.Conv2d(2, 3, 2), nn.Flatten(), nn.BatchNorm2d(2)])
def test_a_value_lost_in_place_is_an_error(kind: nn.Module) -> None:
    act = nn.ReLU(inplace=True)
    model = nn.Sequential(Lambda(lambda self, x: 2 * x), kind, act).double()
    x = torch.randn(6, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    hidden = kind(2 * x)
    expected = {"1": by_hand([hidden], hidden.relu().exp().sum())[0]}
    assert_delivered(captured(model, "1", lambda: model(x).exp().sum(), clone=[HookPoint("1")]), expected)
    if isinstance(kind, nn.Flatten):
        # Autograd takes the view out of the graph when it is modified: no gradient can come.
        assert not captured(model, "1", lambda: model(x).exp().sum())
    else:
        with pytest.raises(RuntimeError, match=r"1: the model modified this tensor in place .* `clone`"):
            captured(model, "1", lambda: model(x).exp().sum())
    assert_untouched(model)


def test_one_tensor_before_and_after_an_operation_in_place() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True)).double(), torch.randn(6, 3).double()
    before = model[0](x)
    after = before.relu()
    first, second = by_hand([before, after], after.exp().sum())
    got = captured(model, None, lambda: model(x).exp().sum(), clone=[HookPoint("0")])
    assert_delivered(got, {"0": first, "1": second})


def test_recomputation_in_the_backward_pass_is_not_tapped_again() -> None:
    inner = mlp()
    model = Lambda(lambda self, x: checkpoint(self.inner, x, use_reentrant=False), inner=inner)
    x = torch.randn(6, 3, dtype=torch.float64)
    runs: list[int] = []
    inner[2].register_forward_hook(lambda *_: runs.append(1))
    wanted = captured(inner, None, lambda: inner(x).exp().sum())
    runs.clear()
    forward: list[str] = []
    got = captured(
        model,
        "inner.[0-9]",
        lambda: model(x).exp().sum(),
        on_activation=lambda point, _: forward.append(point.name),
    )
    assert len(runs) == 2, "the layer was recomputed"
    assert forward == [f"inner.{i}" for i in range(5)]
    assert_delivered(got, {f"inner.{name}": pairs[0] for name, pairs in wanted.items()})


def test_activations_are_shown_in_the_forward_pass_even_without_gradients() -> None:
    model, x = mlp(), torch.randn(6, 3, dtype=torch.float64)
    seen: dict[str, Tensor] = {}

    def note(point: HookPoint, activation: Tensor) -> None:
        seen[point.name] = activation

    def fail(*_: Any) -> None:
        raise AssertionError

    with torch.no_grad(), capture(model, ["0", "1"], fail, on_activation=note):
        model(x)
    torch.testing.assert_close(seen, {"0": model[0](x).detach(), "1": model[:2](x).detach()})
    assert not any(value.requires_grad for value in seen.values())


def test_clone_saves_a_copy_and_nothing_else_does() -> None:
    model, x = mlp(), torch.randn(6, 3, dtype=torch.float64)
    own: dict[str, int] = {}
    handles = [
        model[i].register_forward_hook(lambda m, a, out, i=i: own.update({str(i): out.data_ptr()})) for i in (0, 2)
    ]
    got = captured(model, ["0", "2"], lambda: model(x).sum(), clone=[HookPoint("2")])
    assert got["0"][0][0].data_ptr() == own["0"]
    assert got["2"][0][0].data_ptr() != own["2"]
    for handle in handles:
        handle.remove()


def test_a_second_call_may_be_cloned_alone() -> None:
    model, x = reusing(), torch.randn(6, 3, dtype=torch.float64)
    pointers: list[int] = []
    model.act.register_forward_hook(lambda m, a, out: pointers.append(out.data_ptr()))
    got = captured(model, "act", lambda: model(x).sum(), clone=[HookPoint("act", call=1)])
    same = [got[name][0][0].data_ptr() == at for name, at in zip(["act", "act#1", "act#2"], pointers, strict=True)]
    assert same == [True, False, True]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("split[7]", r"split\[7\]: nothing at \[7\]; there is \[0\], \[2\], \[3\]"),
        ("split[-1]", r"split\[-1\]: nothing at \[-1\]; there is"),
        ("split[first]", r"split\[first\]: nothing at \[first\]"),
        ("split[1]", r"split\[1\]: expected a tensor of floating-point numbers there, found NoneType"),
        ("enter[0]", r"enter\[0\]: nothing at \[0\]; there is a single tensor without index"),
    ],
)
def test_a_tensor_that_is_not_there(layers: str, message: str) -> None:
    model, x = structured("tuple"), torch.randn(6, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        captured(model, layers, lambda: model(x).sum())
    assert_untouched(model)


def test_what_is_no_consumer() -> None:
    with pytest.raises(TypeError, match=r"consumer: expected a callable \(point, activation, gradient\), got None"):
        capture(mlp(), "0", None)  # type: ignore[arg-type]


def test_entered_twice_at_once_is_an_error_but_one_after_the_other_is_not() -> None:
    model, x = mlp(), torch.randn(6, 3, dtype=torch.float64)
    got: Got = {}
    taps = capture(model, "0", collect(got))
    for times in (1, 2):
        with taps:
            with pytest.raises(RuntimeError, match="already entered"):
                taps.__enter__()
            model(x).sum().backward()
        taps.remove()
        taps.remove()
        assert len(got["0"]) == times
    assert_untouched(model)


def test_two_captures_on_one_model_both_get_everything() -> None:
    model, x = mlp(), torch.randn(6, 3, dtype=torch.float64)
    one: Got = {}
    other: Got = {}
    with capture(model, "0", collect(one)), capture(model, ["0", "1"], collect(other)):
        model(x).sum().backward()
    assert (list(one), list(other)) == (["0"], ["1", "0"])


def test_every_pass_delivers() -> None:
    model = mlp()
    got: Got = {}
    with capture(model, "2", collect(got)):
        for rows in (6, 7):
            model(torch.randn(rows, 3, dtype=torch.float64)).sum().backward()
    assert [len(activation) for activation, _ in got["2"]] == [6, 7]


def test_a_second_backward_pass_through_one_graph_is_an_error() -> None:
    model, x = mlp(), torch.randn(6, 3, dtype=torch.float64)
    with capture(model, "2", lambda *_: None):
        output = model(x).sum()
        output.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="2: its activation was handed over in an earlier backward pass"):
            output.backward()


def test_points_of_a_mapping_are_tapped_once_each() -> None:
    model, x = mlp(), torch.randn(6, 3, dtype=torch.float64)
    points = [HookPoint("act"), HookPoint("first"), HookPoint("act")]
    modules = {"first": model[0], "act": model[1]}
    got = captured(modules, points, lambda: model(x).sum())
    assert {name: len(deliveries) for name, deliveries in got.items()} == {"act": 1, "first": 1}
    with pytest.raises(ValueError, match=r"layers: no module named 'firts'. Nearest: 'first'"):
        capture(modules, [HookPoint("act"), HookPoint("firts")], collect({}))
    with pytest.raises(ValueError, match="layers: got an empty list"):
        capture(modules, [], collect({}))


def test_gradients_asked_for_at_a_tapped_leaf() -> None:
    model, x = nn.Sequential(nn.Identity(), nn.Linear(3, 2)).double(), torch.randn(6, 3, dtype=torch.float64)
    x.requires_grad_()
    got: Got = {}
    with capture(model, ["0:in", "0"], collect(got)):
        (gradient,) = torch.autograd.grad(model(x).exp().sum(), [x])
    assert_delivered(got, {name: (x.detach(), gradient) for name in ("0:in", "0")})


def test_gradients_that_never_come_are_no_deliveries() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.unused(x)
        out: Tensor = self.b(self.cut(x).detach()) + self.a(x)
        return out

    model = Lambda(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 4), cut=nn.Linear(3, 4), unused=nn.Linear(3, 5))
    got = captured(model, None, lambda: model(torch.randn(6, 3)).sum())
    assert sorted(got) == ["a", "b"]


def test_activations_are_released_one_by_one_as_gradients_arrive() -> None:
    """While the k-th gradient is consumed, the activations of all later layers are gone."""
    model = nn.Sequential(*(Lambda(lambda self, x: 2 * x) for _ in range(5)))
    x = torch.randn(6, 3, requires_grad=True)
    alive: list[weakref.ref[Tensor]] = []
    counts: list[int] = []

    def note(point: HookPoint, activation: Tensor) -> None:
        alive.append(weakref.ref(activation))

    def consumer(point: HookPoint, activation: Tensor, gradient: Tensor) -> None:
        counts.append(sum(ref() is not None for ref in alive))

    with capture(model, None, consumer, on_activation=note):
        output = model(x).sum()
        assert sum(ref() is not None for ref in alive) == 5
        output.backward()
    assert counts == [5, 4, 3, 2, 1]


class Wrong(Exception):
    """Raised by the user's code."""


def raising(*_: Any, **__: Any) -> Any:
    raise Wrong


class FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise Wrong


def good_model(tail: Callable[..., Any] = lambda self, h: h) -> Lambda:
    return Lambda(
        lambda self, x: self.tail(self.c(self.b(self.b(self.a(x))))),
        a=nn.Linear(3, 4),
        b=nn.Tanh(),
        c=nn.Linear(4, 2),
        tail=Lambda(tail),
    )


def unfinished(model: nn.Module, x: Tensor, **how: Any) -> Tensor:
    """A pass whose backward never comes, with the graph still alive."""
    with capture(model, ["a", "b", "c:in", ""], lambda *_: None, **how):
        output: Tensor = model(x)
    return output


SITUATIONS = [
    "success",
    "no backward",
    "forward",
    "backward",
    "consumer",
    "on_activation",
    "layer",
    "index",
    "entering",
]


@pytest.mark.parametrize("situation", SITUATIONS)
def test_nothing_is_left_behind(situation: str) -> None:
    tails = {"forward": raising, "backward": lambda self, h: FailsBackward.apply(h)}  # type: ignore[no-untyped-call]
    model, x = good_model(tails.get(situation, lambda self, h: h)), torch.randn(6, 3)
    alive: list[weakref.ref[Tensor]] = []
    error = {"layer": ValueError, "index": ValueError, "success": None, "no backward": None}.get(situation, Wrong)
    layers: Any = ["a", "b", "c:in", {"layer": "zzz", "index": "c[3]"}.get(situation, "c")]
    if situation == "entering":
        model.c.register_forward_hook = raising

    def note(point: HookPoint, activation: Tensor) -> None:
        alive.append(weakref.ref(activation))
        if situation == "on_activation" and point.name == "c:in":
            raise Wrong

    def consumer(point: HookPoint, activation: Tensor, gradient: Tensor) -> None:
        if situation == "consumer" and point.name == "b":
            raise Wrong

    kept: list[Tensor] = []

    def use() -> None:
        with capture(model, layers, consumer, on_activation=note):
            output = model(x)
            kept.append(output)
            if situation != "no backward":
                output.sum().backward()

    if error is None:
        use()
    else:
        with pytest.raises(error) as info:
            use()
        del info
    gc.collect()
    assert_untouched(model)
    assert alive or situation in ("layer", "entering")
    assert not any(ref() is not None for ref in alive)
    assert bool(kept) == (situation in ("success", "no backward", "backward", "consumer"))


def test_hooks_on_tensors_are_gone_from_a_graph_that_lives_on() -> None:
    model, x = good_model(), torch.randn(6, 3, requires_grad=True)
    called: list[str] = []
    with capture(model, ["a:in", "a", "b"], lambda point, *_: called.append(point.name)):
        output = model(x)
    assert not x._backward_hooks
    output.sum().backward()
    assert called == []
    assert x.grad is not None


def test_the_model_keeps_nothing_of_a_capture_alive() -> None:
    model, x = good_model(), torch.randn(6, 3)
    taps = capture(model, None, collect({}))
    with taps:
        output = model(x)
    there = weakref.ref(taps)
    del taps
    gc.collect()
    assert there() is None
    assert output.requires_grad


def test_hooks_of_others_stay() -> None:
    model = good_model()
    seen: list[int] = []
    model.a.register_forward_hook(lambda *_: seen.append(1))
    with capture(model, "a", lambda *_: None):
        model(torch.randn(6, 3))
    model(torch.randn(6, 3))
    assert seen == [1, 1]


def test_gradients_and_parameters_are_as_without_taps() -> None:
    model, x = residual_in_place(), torch.randn(6, 2, 5, 6, dtype=torch.float64)
    model(x).exp().sum().backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    points = [HookPoint(name) for name in ("bn", "down", "flat")]
    captured(model, None, lambda: model(x).exp().sum(), clone=points)
    torch.testing.assert_close({name: p.grad for name, p in model.named_parameters()}, plain, rtol=0, atol=0)


def test_gradients_are_detached_when_the_backward_pass_has_a_graph_of_its_own() -> None:
    model, x = mlp(), torch.randn(6, 3, dtype=torch.float64)
    got: Got = {}
    with capture(model, "0", collect(got)):
        torch.autograd.grad(model(x).exp().sum(), list(model.parameters()), create_graph=True)
    assert not got["0"][0][1].requires_grad
