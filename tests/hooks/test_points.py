"""Names of hook points, and how requests for layers are answered."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from conductance.hooks import HookPoint, select
from tests.hooks.nets import Lambda, mlp, reusing

keys = st.one_of(st.integers(0, 99), st.text(), st.sampled_from(["hidden_states", "0", "a.b", "a]", '"', "#1", "-"]))
modules = st.one_of(
    st.text(),
    st.from_regex(r"[a-z]+(\.[a-z0-9_]+)*", fullmatch=True),
    st.sampled_from(["a#1", "a[0]", "x:in", "(model)", '"', "a\n", "*", "\\"]),
)
points = st.builds(
    HookPoint,
    module=modules,
    call=st.none() | st.integers(0, 20),
    index=st.lists(keys, max_size=3).map(tuple),
    side=st.sampled_from(["out", "in"]),
)


@given(points)
def test_a_name_is_read_back(point: HookPoint) -> None:
    assert HookPoint.parse(point.name) == point


@given(points, points)
def test_two_points_have_two_names(one: HookPoint, other: HookPoint) -> None:
    assert (one.name == other.name) == (one == other)


@pytest.mark.parametrize(
    ("point", "name"),
    [
        (HookPoint("encoder.layer.3"), "encoder.layer.3"),
        (HookPoint("lstm", index=(0,)), "lstm[0]"),
        (HookPoint("lstm", index=(1, 0)), "lstm[1][0]"),
        (HookPoint("act", call=2), "act#2"),
        (HookPoint("mlp.down_proj", side="in"), "mlp.down_proj:in"),
        (HookPoint("attn", side="in", index=("hidden_states",)), "attn:in[hidden_states]"),
        (HookPoint("act", call=1, side="in", index=(0, "0")), 'act#1:in[0]["0"]'),
        (HookPoint(""), "(model)"),
        (HookPoint("", index=("logits",)), "(model)[logits]"),
        (HookPoint("odd#1", call=1), '"odd#1"#1'),
    ],
)
def test_names_as_people_write_them(point: HookPoint, name: str) -> None:
    assert point.name == name
    assert HookPoint.parse(name) == point


def test_axes_are_no_part_of_the_name() -> None:
    assert HookPoint("a", batch_axis=1, unit_axis=2, unit_groups=4).name == "a"


@pytest.mark.parametrize("name", ["", "#1"])
def test_what_is_no_name(name: str) -> None:
    if name:
        assert HookPoint.parse(name).module == "#1"
        return
    with pytest.raises(ValueError, match=r"'' is not the name of a hook point; expected a dotted module name"):
        HookPoint.parse(name)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"module": nn.ReLU()}, TypeError, "module is a dotted name, got ReLU"),
        ({"module": "a", "side": "left"}, ValueError, "side is 'out' or 'in', got 'left'"),
        ({"module": "a", "call": -1}, ValueError, "call counts from 0, or is None for all calls, got -1"),
        ({"module": "a", "index": 0}, TypeError, "index is a tuple of integers and strings, got 0"),
        (
            {"module": "a", "index": (1.5,)},
            TypeError,
            r"index is a tuple of integers and strings, got \(1.5,\)",
        ),
        ({"module": "a", "unit_groups": 0}, ValueError, "unit_groups is a positive number, got 0"),
    ],
)
def test_fields_are_checked(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        HookPoint(**arguments)


def test_parse_wants_a_string() -> None:
    with pytest.raises(TypeError, match=r"HookPoint.parse reads a string, got int"):
        HookPoint.parse(3)  # type: ignore[arg-type]


def names(model: Any, layers: Any = None) -> list[str]:
    return [point.name for point in select(model, layers).points]


class Nested(nn.Module):
    """Two blocks that share one activation, a module under two names, and an odd name."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.ReLU()
        self.features = nn.Sequential(nn.Linear(3, 4), act, nn.Linear(4, 5), act)
        self.head = nn.Sequential(nn.Dropout(), nn.Linear(5, 2))
        self.last = self.head[1]
        self.add_module("odd#1", nn.Tanh())


NET = Nested()


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, ["features.0", "features.1", "features.2", "head.0", "head.1", '"odd#1"']),
        ("features.2", ["features.2"]),
        ("head", ["head"]),
        ("", ["(model)"]),
        ("(model)", ["(model)"]),
        ("(model)[logits]", ["(model)[logits]"]),
        ("odd#1", ['"odd#1"']),
        ("odd#1#2", ['"odd#1"#2']),
        ("features.3", ["features.1"]),
        ("last", ["head.1"]),
        ("last:in", ["head.1:in"]),
        ("last*", ["head.1"]),
        ("features.1#1", ["features.1#1"]),
        ("features.2:in[0]", ["features.2:in[0]"]),
        ("features.*", ["features.0", "features.1", "features.2"]),
        ("*", ["features", "features.0", "features.1", "features.2", "head", "head.0", "head.1", '"odd#1"']),
        ("*.0", ["features.0", "head.0"]),
        ("features.[02]", ["features.0", "features.2"]),
        ("features.[!0]", ["features.1", "features.2"]),
        ("features.?:in", ["features.0:in", "features.1:in", "features.2:in"]),
        ("*.1#0", ["features.1#0", "head.1#0"]),
        (NET, ["(model)"]),
        (NET.last, ["head.1"]),
        (NET.features[3], ["features.1"]),
        (nn.Linear, ["features.0", "features.2", "head.1"]),
        (nn.modules.dropout._DropoutNd, ["head.0"]),
        (HookPoint("last", call=1), ["head.1#1"]),
        (HookPoint("features.0", side="in"), ["features.0:in"]),
        (["head.1", "features.0"], ["features.0", "head.1"]),
        (("head.1", NET.last, nn.Linear, HookPoint("last")), ["features.0", "features.2", "head.1"]),
        ([["head.1"], [["head.0"]]], ["head.0", "head.1"]),
        ({"head.1", "features.0"}, ["features.0", "head.1"]),
        (["head.1:in", "head.1", "head.1#0"], ["head.1:in", "head.1", "head.1#0"]),
    ],
)
def test_every_way_to_ask(layers: Any, expected: list[str]) -> None:
    assert names(NET, layers) == expected


def test_modules_go_with_the_points() -> None:
    selection = select(NET, ["last", "features.0:in", "features.0"])
    assert list(selection.modules) == ["features.0", "head.1"]
    assert selection.modules["head.1"] is NET.last


def test_axes_given_in_a_point_are_kept() -> None:
    point = HookPoint("features.0", batch_axis=1, unit_axis=-1, unit_groups=2)
    assert select(NET, point).points == (point,)


def test_a_model_without_children_is_its_own_leaf() -> None:
    assert names(nn.Linear(3, 4)) == ["(model)"]


def test_a_container_without_modules_counts_as_leaf() -> None:
    assert names(nn.Sequential(nn.Sequential(), nn.ReLU())) == ["0", "1"]


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ("featurs.2", ValueError, r"layers: no module named 'featurs.2'. Nearest: 'features.2'.*list_points"),
        ("features.22:in", ValueError, r"layers: no module named 'features.22:in'. Nearest: 'features.2'"),
        ("zzzzzz", ValueError, r"layers: no module named 'zzzzzz'. hooks.list_points\(model, inputs\) lists"),
        ("feature.*", ValueError, r"layers: no module matches 'feature.\*'. Nearest: 'features.3'"),
        ("*.conv:in", ValueError, r"layers: no module matches '\*.conv:in'"),
        ("features.[9]", ValueError, r"layers: no module named 'features.\[9\]'"),
        (HookPoint("nothing"), ValueError, "layers: no module named 'nothing'"),
        (
            nn.Linear(3, 4),
            ValueError,
            r"layers: this Linear is not a module of the model .*Linear\(in_features=3",
        ),
        (nn.Conv2d, ValueError, "layers: the model has no Conv2d; it has Dropout, Linear, Nested, ReLU"),
        ([], ValueError, r"layers: got an empty list; give at least one"),
        (["head", []], ValueError, "layers: got an empty list"),
        ([HookPoint("last", unit_axis=1), "last"], ValueError, "'head.1' is asked for with two sets of axes"),
        (["head", None], TypeError, "layers: None inside a list"),
        (3, TypeError, "layers: expected a name, a glob, a module, .* got int: 3"),
        (["head", 3], TypeError, "layers: expected a name, .* got int: 3"),
        (int, TypeError, "layers: expected a name, .* got type"),
        ({"head": 1}, TypeError, "layers: expected a name, .* got dict"),
    ],
)
def test_errors_name_the_cause_and_the_way_out(layers: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        select(NET, layers)


def test_a_callable_goes_with_modules() -> None:
    net = reusing()
    selection = select(lambda x: net(x).exp(), [net.a, net.act, net.b, net.a])
    assert list(selection.modules) == ["Linear_0", "Tanh_1", "Linear_2"]
    assert selection.modules["Linear_2"] is net.b
    assert [point.name for point in selection.points] == ["Linear_0", "Tanh_1", "Linear_2"]
    assert names(net.forward, net.c) == ["Linear_0"]


@pytest.mark.parametrize("layers", [None, "a", nn.Linear, HookPoint("a"), ["a"]])
def test_a_callable_has_no_names(layers: Any) -> None:
    message = (
        r"layers: the model is a plain callable, so its layers must be given as modules.* or as names of taps.* got "
    )
    given = "a" if isinstance(layers, list | HookPoint) else layers
    with pytest.raises(ValueError, match=message + re.escape(repr(given))):
        select(lambda x: x, layers)


def test_a_callable_with_nonsense() -> None:
    with pytest.raises(TypeError, match=r"layers: expected a name, .* got int: 3"):
        select(lambda x: x, [3])  # type: ignore[list-item]


def test_what_is_no_model() -> None:
    with pytest.raises(TypeError, match=r"model is a module or a callable, got int"):
        select(3, "a")  # type: ignore[arg-type]


def test_a_mapping_stands_for_a_model() -> None:
    net = mlp()
    selection = select({"first": net[0], "act": net[1]}, ["act", net[0]])
    assert selection.modules == {"first": net[0], "act": net[1]}


def test_a_module_that_holds_itself_twice_is_found_once() -> None:
    act = nn.Tanh()
    net = Lambda(lambda self, x: x, one=act, two=act)
    assert names(net) == ["one"]
    assert names(net, ["one", "two", act, nn.Tanh]) == ["one"]


def test_a_layer_with_a_parametrised_weight_is_a_leaf() -> None:
    model = nn.Sequential(weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2))
    assert [point.name for point in select(model, None).points] == ["0", "1", "2"]
