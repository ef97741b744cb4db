"""What one run shows: calls, tensors, cuts, what moves in place, and the table of all that."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from conductance.hooks import HookPoint, PointInfo, PointTable, Probe, capture, list_points, probe, select
from tests.hooks.nets import Lambda, Output, mlp, residual_in_place, reusing, structured


def probed(model: nn.Module, x: Tensor, layers: Any = None, target: Callable[[Any], Tensor] | None = None) -> Probe:
    leaf = x.clone().requires_grad_()
    pick = target or (lambda out: out[:, 0])
    return probe(model, select(model, layers), lambda: pick(model(leaf)), [leaf])


def found(infos: Sequence[PointInfo]) -> dict[str, PointInfo]:
    return {info.name: info for info in infos}


def test_a_chain() -> None:
    model = mlp()
    result = probed(model, torch.randn(6, 3, dtype=torch.float64), [nn.Tanh, "0", "2:in", ""])
    assert [info.name for info in result.points] == ["0", "2:in", "3", "(model)"]
    first = result.points[0]
    assert first == PointInfo(
        point=HookPoint("0", unit_axis=1),
        module_type="Linear",
        calls=1,
        shape=(6, 4),
        dtype=torch.float64,
        device=torch.device("cpu"),
        is_cut=True,
        set_is_cut=True,
        used=True,
        moves=True,
        in_place=False,
    )
    assert result.never_run == ()
    assert result.kinked == ("Relu",)
    assert result.gradient_flows
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_points_come_in_the_order_of_the_run_with_all_calls() -> None:
    result = probed(reusing(), torch.randn(6, 3, dtype=torch.float64))
    assert [info.name for info in result.points] == ["a", "act#0", "b", "act#1", "c", "act#2"]
    assert [info.shape[1] for info in result.points] == [4, 4, 5, 5, 2, 2]
    assert [info.calls for info in result.points] == [1, 3, 1, 3, 1, 3]
    assert {info.point.call for info in result.points if info.module_type == "Linear"} == {None}


def test_one_call_of_several() -> None:
    result = probed(reusing(), torch.randn(6, 3, dtype=torch.float64), ["act#2", "act#0"])
    assert [info.name for info in result.points] == ["act#0", "act#2"]


def test_calls_are_counted_from_the_last_time_the_model_was_entered() -> None:
    model, x = reusing(), torch.randn(6, 3, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    result = probe(model, select(model, "act"), lambda: (model(x), model(leaf))[1][:, 0], [leaf])
    assert [info.name for info in result.points] == ["act#0", "act#1", "act#2"]
    assert all(info.moves for info in result.points)


def test_a_call_number_on_a_module_that_runs_once_is_dropped() -> None:
    result = probed(mlp(), torch.randn(6, 3, dtype=torch.float64), ["0#0", "0"])
    assert [info.name for info in result.points] == ["0"]


def test_what_is_asked_for_more_precisely_wins() -> None:
    layers = [HookPoint("act", call=1, unit_groups=5), HookPoint("act", unit_groups=2), "act#0"]
    result = probed(reusing(), torch.randn(6, 3, dtype=torch.float64), layers)
    assert [(info.name, info.point.unit_axis, info.point.unit_groups) for info in result.points] == [
        ("act#0", 1, None),
        ("act#1", 1, 5),
        ("act#2", 1, 2),
    ]


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("tuple", ["split[0]", "split[3]"]),
        ("nested", ["split[1][0]", "split[1][1][deep]"]),
        ("dict", ["split[first]", "split[second]"]),
        ("namedtuple", ["split[0]", "split[1]"]),
        ("dataclass", ["split[hidden]", "split[extra][0]"]),
        ("model output", ["split[first]", "split[second]"]),
    ],
)
def test_each_tensor_of_a_nested_output(form: str, names: list[str]) -> None:
    model, x = structured(form), torch.randn(6, 3, dtype=torch.float64)
    result = probed(model, x, "split")
    assert [info.name for info in result.points] == names
    assert [(info.is_cut, info.set_is_cut) for info in result.points] == [(False, True)] * 2
    second = probed(model, x, names[1]).points
    assert [(info.name, info.is_cut, info.set_is_cut) for info in second] == [(names[1], False, True)]


def test_a_concrete_point_is_what_a_capture_delivers() -> None:
    for model, layers in [
        (reusing(), None),
        (structured("nested"), None),
        (structured("dict"), ["split:in", "split"]),
    ]:
        x = torch.randn(6, 3, dtype=torch.float64)
        points = [info.point for info in probed(model, x, layers).points]
        delivered: list[HookPoint] = []

        def note(point: HookPoint, *_: Tensor, into: list[HookPoint] = delivered) -> None:
            into.append(point)

        with capture(model, points, note):
            model(x)[:, 0].sum().backward()
        used = [info.point for info in probed(model, x, layers).points if info.used]
        assert sorted(delivered, key=str) == sorted(used, key=str)


def test_inputs() -> None:
    def use(self: Any, x: Any, scale: Any = None) -> Any:
        return x * scale if scale is not None else x

    inner = Lambda(use)
    x = torch.randn(6, 3, dtype=torch.float64)
    calls: list[tuple[Callable[[Any, Tensor], Tensor], list[str], dict[str, list[str]]]] = [
        (lambda self, h: self.inner(2 * h), ["inner:in"], {"inner:in[0]": ["inner:in"]}),
        (
            lambda self, h: self.inner(2 * h, scale=h),
            ["inner:in"],
            {"inner:in[scale]": ["inner:in[scale]"], "inner:in[0]": ["inner:in"]},
        ),
        (
            lambda self, h: self.inner(2 * h, h),
            ["inner:in[0]", "inner:in[1]"],
            {"inner:in[1]": ["inner:in[1]"]},
        ),
        (lambda self, h: self.inner(x=h, scale=2.0), ["inner:in[x]"], {"inner:in[x]": ["inner:in[x]"]}),
    ]
    for forward, names, more in calls:
        model = Lambda(forward, inner=inner)
        for layers, expected in {"inner:in": names, **more}.items():
            result = probed(model, x, layers)
            assert [info.name for info in result.points] == expected
            assert all(info.used and info.moves for info in result.points)


def test_numbers_of_other_kinds_are_passed_over() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        out: Tensor = x * self.sign(x)
        return out

    model = Lambda(forward, sign=Lambda(lambda self, x: (x > 0).long()))
    result = probed(model, torch.randn(6, 3))
    assert result.points == ()
    assert result.never_run == ("sign",)


def test_modules_that_never_run_are_named() -> None:
    model = Lambda(
        lambda self, x: self.attn(x, x, x)[0],
        attn=nn.MultiheadAttention(6, 2, batch_first=True),
        aux=nn.Linear(6, 3),
    )
    result = probed(model, torch.randn(5, 4, 6), target=lambda out: out[:, 0, 0])
    assert result.points == ()
    assert result.never_run == ("attn.out_proj", "aux")
    result = probed(model, torch.randn(5, 4, 6), ["aux:in[3]", "attn"], target=lambda out: out[:, 0, 0])
    assert [info.name for info in result.points] == ["attn[0]", "attn[1]"]
    assert [(info.is_cut, info.used, info.point.unit_axis) for info in result.points] == [
        (True, True, 2),
        (False, False, 2),
    ]
    assert result.never_run == ("aux:in[3]",)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("act#3", r"layers: 'act#3' asks for call 3, but the module ran 3 time\(s\); .* up to 2"),
        ("a#1", r"layers: 'a#1' asks for call 1, but the module ran 1 time\(s\)"),
        ("a[1]", r"layers: 'a\[1\]' is no tensor of this module; there is a single tensor without index"),
        ("act:in[x]", r"layers: 'act:in\[x\]' is no tensor of this module"),
        (HookPoint("a", unit_axis=2), r"layers: 'a' has unit_axis=2, but its tensor has 2 axes: \(6, 4\)"),
        (HookPoint("a", unit_axis=-3), r"layers: 'a' has unit_axis=-3"),
        (HookPoint("a", unit_groups=3), r"layers: 'a' has unit_groups=3, which does not divide its 4 units"),
    ],
)
def test_what_a_module_does_not_have(layers: Any, message: str) -> None:
    model = reusing()
    with pytest.raises(ValueError, match=message):
        probed(model, torch.randn(6, 3, dtype=torch.float64), layers)


def test_what_a_nested_output_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"'split\[1\]' is no tensor of this module; there is \[0\], \[3\]"):
        probed(structured("tuple"), torch.randn(6, 3, dtype=torch.float64), "split[1]")


@pytest.mark.parametrize(("axis", "expected"), [(-1, 2), (1, 1), (2, 2), (None, 2)])
def test_a_given_unit_axis(axis: int | None, expected: int) -> None:
    point = HookPoint("0", unit_axis=axis, unit_groups=2)
    x = torch.randn(6, 8, 3, dtype=torch.float64)
    (info,) = probed(mlp(), x, point, target=lambda out: out.sum((1, 2))).points
    assert info.point == HookPoint("0", unit_axis=expected, unit_groups=2)


def test_units_are_inherited_from_the_producer() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(2), nn.Linear(6, 5), nn.Tanh())
    result = probed(model, torch.randn(7, 2, 5, 7), target=lambda out: out.sum((1, 2)))
    assert [info.point.unit_axis for info in result.points] == [1, 1, 1, 1, 2, 2]


def test_an_lstm_and_its_examples() -> None:
    model = Lambda(lambda self, x: self.lstm(x)[1][0][-1], lstm=nn.LSTM(3, 4, num_layers=2, batch_first=True))
    result = found(probed(model, torch.randn(6, 5, 3)).points)
    assert [(name, info.point.batch_axis) for name, info in result.items()] == [
        ("lstm[0]", 0),
        ("lstm[1][0]", 1),
        ("lstm[1][1]", 1),
    ]
    assert {name: info.used for name, info in result.items()}["lstm[1][0]"]
    assert all(info.set_is_cut for info in result.values())


def test_cuts_branches_and_what_does_not_move() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.enter(x)
        self.unused(h)
        out: Tensor = self.out(h + self.branch(h) + self.constant(torch.ones(1, 4)) + self.cut(h).detach())
        return out

    layers = {name: nn.Linear(4, 4) for name in ("branch", "constant", "unused", "cut", "out")}
    model = Lambda(forward, enter=nn.Linear(3, 4), **layers)
    result = found(probed(model, torch.randn(6, 3)).points)
    flags = {name: (info.is_cut, info.used, info.moves) for name, info in result.items()}
    assert flags == {
        "enter": (True, True, True),
        "unused": (False, False, True),
        "branch": (False, True, True),
        "constant": (False, True, False),
        "cut": (False, False, True),
        "out": (True, True, True),
    }


def test_two_inputs() -> None:
    model = Lambda(
        lambda self, x, z: self.c(self.a(x) * self.b(z)),
        a=nn.Linear(3, 4),
        b=nn.Linear(5, 4),
        c=nn.Linear(4, 2),
    )
    x, z = torch.randn(6, 3, requires_grad=True), torch.randn(6, 5, requires_grad=True)

    def cuts(*leaves: Tensor) -> list[bool | None]:
        result = probe(model, select(model), lambda: model(x, z)[:, 0], leaves)
        return [info.is_cut for info in result.points]

    assert cuts(x, z) == [False, False, True]
    assert cuts(x) == [True, False, True]


@pytest.mark.parametrize(
    "target", [lambda out: out.detach()[:, 0], lambda out: None, lambda out: out.argmax(1).double()]
)
def test_a_target_without_a_gradient_is_no_error(target: Callable[[Tensor], Tensor]) -> None:
    result = probed(mlp(), torch.randn(6, 3, dtype=torch.float64), target=target)
    assert not result.gradient_flows
    assert [(info.is_cut, info.set_is_cut, info.used, info.moves) for info in result.points] == [
        (None, None, False, True)
    ] * 5
    assert result.kinked == ()


def test_a_model_that_detaches_its_input() -> None:
    model = Lambda(lambda self, x: self.a(x.detach()), a=nn.Linear(3, 2))
    result = probed(model, torch.randn(6, 3))
    assert not result.gradient_flows
    assert [(info.is_cut, info.used, info.moves) for info in result.points] == [(None, True, False)]


def test_the_run_has_gradients_even_where_they_are_off() -> None:
    model, leaf = mlp(), torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        assert probe(model, select(model), lambda: model(leaf)[:, 0], [leaf]).gradient_flows


def test_leaves_are_read_after_the_run() -> None:
    model, leaves = mlp(), list[Tensor]()

    def run() -> Tensor:
        leaves.append(torch.randn(6, 3, dtype=torch.float64, requires_grad=True))
        out: Tensor = model(leaves[-1])[:, 0]
        return out

    assert probe(model, select(model), run, leaves).gradient_flows


def test_what_is_modified_in_place_is_told_and_captured_right() -> None:
    model, x = residual_in_place(), torch.randn(6, 2, 5, 6, dtype=torch.float64)
    layers = [None, "clip:in", "relu:in"]
    points = (*select(model).points, *select(model, layers[1:]).points)
    result = found(probed(model, x, points).points)
    assert [name for name, info in result.items() if info.in_place] == [
        "bn",
        "relu:in",
        "down",
        "flat",
        "clip:in",
    ]
    assert all(info.used for info in result.values())
    assert result["flat"].is_cut
    assert result["clip:in"].is_cut
    assert not result["conv"].is_cut
    assert result["stem"].is_cut
    activations: dict[str, Tensor] = {}
    clone = [info.point for info in result.values() if info.in_place]
    with capture(
        model,
        [info.point for info in result.values()],
        lambda p, a, g: activations.update({p.name: a}),
        clone=clone,
    ):
        model(x)[:, 0].sum().backward()
    assert sorted(activations) == sorted(result)
    stem = model.stem(x)
    torch.testing.assert_close(activations["bn"], model.bn(model.conv(stem)).detach())
    torch.testing.assert_close(activations["clip"], activations["flat"].clamp(0, 6))
    assert (activations["flat"] < 0).any()


def test_the_input_of_a_view_in_place_counts_too() -> None:
    model = Lambda(
        lambda self, x: self.act(self.flat(self.a(x))),
        a=nn.Conv1d(2, 3, 2),
        flat=nn.Flatten(),
        act=nn.ReLU(True),
    )
    result = found(probed(model, torch.randn(6, 2, 5)).points)
    assert {name: (info.in_place, info.used, info.is_cut) for name, info in result.items()} == {
        "a": (True, True, True),
        "flat": (True, True, True),
        "act": (False, True, True),
    }


def test_a_model_that_needs_its_view_to_stay_one_is_left_alone() -> None:
    """The view is modified and its base is read: a copy in the view's place would change the output."""

    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x)
        view = self.first(h)
        view.mul_(3)
        out: Tensor = self.b(h)
        return out

    model = Lambda(forward, a=nn.Linear(3, 4), first=Lambda(lambda self, h: h[:, :2]), b=nn.Linear(4, 2))
    result = found(probed(model, torch.randn(6, 3)).points)
    assert not result["first"].used
    assert not result["first"].in_place
    assert "its base is used elsewhere" in result["first"].shared
    assert not result["a"].shared
    assert result["a"].used
    assert result["a"].in_place


def test_one_view_that_must_stay_one_does_not_hide_the_others() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x)
        self.first(h).mul_(3)
        other = self.flat(self.c(x))
        out: Tensor = self.b(h + other.tanh_())
        return out

    model = Lambda(
        forward,
        a=nn.Linear(3, 4),
        first=Lambda(lambda self, h: h[:, :2]),
        c=nn.Linear(3, 4),
        flat=Lambda(lambda self, h: h.view(-1, 4)),
        b=nn.Linear(4, 2),
    )
    result = found(probed(model, torch.randn(6, 3)).points)
    assert {name for name, info in result.items() if info.shared} == {"first"}
    assert result["flat"].in_place
    assert result["flat"].used


def test_recomputation_is_not_seen() -> None:
    inner = mlp()
    model = Lambda(lambda self, x: checkpoint(self.inner, x, use_reentrant=False), inner=inner)
    x = torch.randn(6, 3, dtype=torch.float64)

    def target(out: Tensor) -> Tensor:
        torch.autograd.backward(out.sum(), retain_graph=True)
        return out[:, 0]

    result = probed(model, x, target=target)
    assert [(info.name, info.calls, info.is_cut) for info in result.points] == [
        (f"inner.{i}", 1, True) for i in range(5)
    ]


def test_nothing_is_left_after_an_error() -> None:
    model = mlp()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        probed(model, torch.randn(6, 7, dtype=torch.float64), ["0", "2:in", ""])
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_the_table_lists_every_module_that_runs() -> None:
    model = Lambda(
        lambda self, x: self.b(self.lstm(x)[0][:, -1]) + self.c(x[:, 0]),
        lstm=nn.LSTM(3, 4, batch_first=True),
        b=nn.Sequential(nn.Linear(4, 2), nn.Tanh()),
        c=nn.Linear(3, 2),
        never=nn.Linear(3, 2),
    )
    table = list_points(model, torch.randn(6, 5, 3), target=1)
    assert isinstance(table, PointTable)
    lines = [line.split() for line in repr(table).splitlines()]
    assert lines == [
        ["name", "class", "calls", "shape", "batch", "axis", "unit", "axis", "cut"],
        ["lstm[0]", "LSTM", "1", "6×5×4", "0", "2", "no"],
        ["lstm[1][0]", "LSTM", "1", "1×6×4", "1", "2", "unused"],
        ["lstm[1][1]", "LSTM", "1", "1×6×4", "1", "2", "unused"],
        ["b.0", "Linear", "1", "6×2", "0", "1", "no"],
        ["b.1", "Tanh", "1", "6×2", "0", "1", "no"],
        ["b", "Sequential", "1", "6×2", "0", "1", "no"],
        ["c", "Linear", "1", "6×2", "0", "1", "no"],
        ["(model)", "Lambda", "1", "6×2", "0", "1", "yes"],
    ]


def test_the_column_cut() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        first, second = self.split(self.enter(x))
        out: Tensor = first * second + self.constant(torch.ones(1, 3))
        return out

    model = Lambda(
        forward, enter=nn.Linear(3, 6), split=Lambda(lambda self, h: h.chunk(2, 1)), constant=nn.Linear(3, 3)
    )
    cells = {row[0]: row[-1] for row in list_points(model, torch.randn(5, 3)).rows()}
    assert cells == {
        "enter": "yes",
        "split[0]": "together",
        "split[1]": "together",
        "constant": "constant",
        "(model)": "yes",
    }
    both = Lambda(lambda self, x: (x.exp(), x.exp().sum()))
    main = Lambda(lambda self, x: self.both(x)[0].sum(1), both=both)
    cells = {row[0]: row[-1] for row in list_points(main, torch.randn(5, 3)).rows()}
    assert cells == {"both[0]": "yes", "both[1]": "unused", "(model)": "yes"}
    ids = {row[0]: row[-1] for row in list_points(nn.Embedding(9, 3), torch.ones(5, 2, dtype=torch.long)).rows()}
    assert ids == {"(model)": "–"}


def test_html_is_escaped() -> None:
    model = nn.Sequential()
    model.add_module("<b>&", nn.Linear(3, 2))
    text = list_points(model, torch.randn(5, 3))._repr_html_()
    assert text.startswith("<table><thead><tr><th>name</th>")
    assert text.count("<tr>") == 3
    assert "&lt;b&gt;&amp;" in text
    assert "<b>" not in text


def kwargs_model() -> Lambda:
    return Lambda(
        lambda self, ids=None, dense=None, scale=1.0: Output(
            logits=self.head(self.embed(ids).mean(1) + scale * self.dense(dense))
        ),
        embed=nn.Embedding(9, 4),
        dense=nn.Linear(3, 4),
        head=nn.Linear(4, 2),
    )


def test_inputs_and_targets_of_every_kind() -> None:
    model, ids, dense = kwargs_model(), torch.randint(0, 9, (5, 7)), torch.randn(5, 3)
    by_name = list_points(model, {"ids": ids, "dense": dense, "scale": 2.0}, target=1)
    by_position = list_points(model, (ids, dense), target=lambda out: out.logits[:, 1])
    everything = list_points(model, [ids, dense])
    for table in (by_name, by_position, everything):
        cuts = {info.name: info.is_cut for info in table}
        assert cuts == {"embed": False, "dense": True, "head": True, "(model)[logits]": True}
    single = list_points(mlp(), torch.randn(5, 3, dtype=torch.float64), target=lambda out: out[:, 0])
    assert [info.is_cut for info in single] == [True] * 6


def test_the_output_of_a_point_may_move_instead() -> None:
    model, ids, dense = kwargs_model(), torch.randint(0, 9, (5, 7)), torch.randn(5, 3)
    for path_from in ("embed", model.embed, HookPoint("embed")):
        table = found(list_points(model, (ids, dense), path_from=path_from))
        assert {name: (info.is_cut, info.moves) for name, info in table.items()} == {
            "embed": (True, True),
            "dense": (False, False),
            "head": (True, True),
            "(model)[logits]": (True, True),
        }
    reused = found(list_points(reusing(), torch.randn(5, 3, dtype=torch.float64), path_from="act#1"))
    assert [name for name, info in reused.items() if info.is_cut] == ["act#1", "c", "act#2", "(model)"]
    assert [name for name, info in reused.items() if not info.moves] == ["a", "act#0", "b"]


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    x = torch.randn(6, 3)
    x_before = x.clone()
    model(x).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    buffers = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    state = torch.random.get_rng_state()
    list_points(model, x, target=1, path_from="1")
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name][0]
        assert torch.equal(buffer, buffers[name][1]), name
    assert [p.grad for p in model.parameters()] != []
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)
    assert model.training
    assert not x.requires_grad
    assert torch.equal(x, x_before)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_a_buffer_that_is_replaced_comes_back_and_inputs_changed_in_place_too() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.count = self.count + 1
        x += 1
        out: Tensor = self.a(x)
        return out

    model = Lambda(forward, a=nn.Linear(3, 2))
    model.register_buffer("count", torch.zeros(2))
    count, x = model.count, torch.zeros(5, 3)
    list_points(model, x)
    assert model.count is count
    assert torch.equal(x, torch.zeros(5, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": lambda x: x}, TypeError, "list_points: model is a torch.nn.Module, got function"),
        ({"inputs": 3}, TypeError, "inputs: expected a tensor, a tuple or a mapping of keywords, got int"),
        ({"target": "a"}, TypeError, "target: expected an int, a callable or None, got str"),
        ({"target": lambda out: 3}, TypeError, "target: the callable returned int, expected a tensor"),
        (
            {"model": Lambda(lambda self, x: (x, x)), "target": 0},
            TypeError,
            "target: an int needs a tensor or .logits",
        ),
        (
            {"model": Lambda(lambda self, x: x > 0)},
            ValueError,
            "target: the output has no tensor of floating-point",
        ),
        ({"path_from": "never"}, ValueError, "path_from: 'never' never ran"),
        ({"path_from": ["a", "never"]}, ValueError, "path_from: expected one hook point"),
        ({"path_from": "zzz"}, ValueError, "path_from: no module named 'zzz'"),
    ],
)
def test_errors_of_the_listing(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    model = Lambda(lambda self, x: self.a(x), a=nn.Linear(3, 2), never=nn.Linear(3, 2))
    with pytest.raises(error, match=message):
        list_points(**{"model": model, "inputs": torch.randn(5, 3), **arguments})
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
