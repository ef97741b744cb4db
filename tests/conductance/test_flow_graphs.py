"""Random networks: edges exist exactly where a way leads past the other layers, and nothing is lost."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from conductance import total_conductance
from conductance.flow import conductance_flow
from conductance.flow_results import SINK, SOURCE
from tests.conductance.flows import assert_balanced, assert_near
from tests.helpers import frozen, normal

WIDTH, HALF, INPUTS = 4, 3, 5
LEAF = "leaf"

pytestmark = pytest.mark.filterwarnings("ignore:the baseline is itself confident")  # as random networks may be


@dataclass(frozen=True)
class Op:
    """One operation: its kind, and the two earlier values it may take."""

    kind: str
    first: int
    second: int


KINDS = ("dense", "gelu", "tanh", "shared", "add", "gate", "cat", "split", "relu_", "stem")


class Net(nn.Module):
    """A network of operations on values of one width; every value, and both sides of a ReLU, has a name.

    ``ways`` holds, by name, the names that a value is made of; ``out`` is the target.
    """

    def __init__(self, ops: list[Op]) -> None:
        super().__init__()
        self.ops = ops
        self.shared = nn.Linear(WIDTH, WIDTH)
        self.made = nn.ModuleDict()
        self.ways: dict[str, set[str]] = {}
        self.values: list[str] = []
        self._name("v0", {LEAF})
        self.made["stem0"] = nn.Linear(INPUTS, WIDTH)
        for number, op in enumerate(ops, 1):
            self._plan(number, op)
        self.head = nn.Linear(WIDTH, 2)
        self.ways["out"] = set(self._ends())

    def _name(self, name: str, sources: set[str], *, value: bool = True) -> None:
        self.made[name] = nn.Identity()
        self.ways[name] = sources
        if value:
            self.values.append(name)

    def _ends(self) -> list[str]:
        return self.values[-2:]

    def _plan(self, number: int, op: Op) -> None:
        a, b = (self.values[place % len(self.values)] for place in (op.first, op.second))
        sizes = {"cat": (2 * WIDTH, WIDTH), "split": (WIDTH, 2 * HALF), "stem": (INPUTS, WIDTH)}
        self.made[f"fc{number}"] = nn.Linear(*sizes.get(op.kind, (WIDTH, WIDTH)))
        if op.kind == "split":
            for side in "ab":
                self._name(f"v{number}{side}", {a}, value=False)
                self.made[f"fc{number}{side}"] = nn.Linear(HALF, WIDTH)
            self._name(f"v{number}", {f"v{number}a", f"v{number}b"})
        elif op.kind == "relu_":
            self._name(f"v{number}pre", {a}, value=False)
            self.made[f"act{number}"] = nn.ReLU(inplace=True)
            self._name(f"v{number}", {f"v{number}pre"})
        else:
            both = {"add", "gate", "cat"}
            self._name(f"v{number}", {LEAF} if op.kind == "stem" else {a, b} if op.kind in both else {a})

    def forward(self, x: Tensor) -> Tensor:
        known = {"v0": self.made["v0"](torch.tanh(self.made["stem0"](x)))}
        names = ["v0"]
        for number, op in enumerate(self.ops, 1):
            a, b = (known[names[place % len(names)]] for place in (op.first, op.second))
            known[f"v{number}"] = self.made[f"v{number}"](self._run(number, op, x, a, b))
            names.append(f"v{number}")
        output: Tensor = self.head(sum(known[name] for name in self._ends()))
        return output

    def _run(self, number: int, op: Op, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        made, fc = self.made, self.made[f"fc{number}"]
        if op.kind == "split":
            halves = zip("ab", fc(a).chunk(2, 1), strict=True)
            parts = [made[f"fc{number}{side}"](made[f"v{number}{side}"](half)) for side, half in halves]
            result: Tensor = torch.tanh(parts[0]) * parts[1]
        elif op.kind == "relu_":
            result = made[f"act{number}"](made[f"v{number}pre"](fc(a)))
        else:
            result = self._simple(op.kind, fc, x, a, b)
        return result

    def _simple(self, kind: str, fc: nn.Module, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        kinds: dict[str, Callable[[], Tensor]] = {
            "dense": lambda: fc(a),
            "gelu": lambda: nn.functional.gelu(fc(a)),
            "tanh": lambda: torch.tanh(fc(a)),
            "shared": lambda: torch.tanh(self.shared(a)),
            "add": lambda: 0.5 * a + torch.sigmoid(b),
            "gate": lambda: a * torch.sigmoid(1.5 * b),
            "cat": lambda: torch.tanh(fc(torch.cat([a, b], 1))),
            "stem": lambda: fc(x) * 0.7,
        }
        return kinds[kind]()

    def direct(self, later: str, layers: Collection[str]) -> set[str]:
        """What leads to a value past all other layers: layers, or the leaf."""
        found, seen, waiting = set(), set(), list(self.ways[later])
        while waiting:
            name = waiting.pop()
            if name in layers or name == LEAF:
                found.add(name)
            elif name not in seen:
                seen.add(name)
                waiting += self.ways[name]
        return found

    def used(self) -> list[str]:
        """Values that the target depends on."""
        found, waiting = set(), ["out"]
        while waiting:
            waiting += [name for name in self.ways.get(waiting.pop(), ()) if name not in found and name != LEAF]
            found.update(waiting)
        return [name for name in self.ways if name in found]


def _built(ops: list[Op], seed: int = 0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Net(ops)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.8)
    frozen(net)
    return net


OPS = st.lists(st.builds(Op, st.sampled_from(KINDS), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=7)
EXAMPLES = normal(3, INPUTS, seed=4)


def _alive(net: Net) -> Tensor:
    """The examples whose target moves: a ReLU with all its units dead carries nothing to compare."""
    with torch.no_grad():
        change = (net(EXAMPLES) - net(torch.zeros_like(EXAMPLES)))[:, 1]
    return EXAMPLES[change.abs() > 1e-3]


def assert_conserved(ops: list[Op], asked: list[bool], n_steps: int, rows: int | None) -> None:
    """Wiring, conservation and balance of one network."""
    net = _built(ops)
    examples = _alive(net)
    if not len(examples):
        assume(False)
    used = net.used()
    layers = [name for name, chosen in zip(used, asked, strict=False) if chosen] or used[:1]
    names = {f"made.{layer}": layer for layer in layers}
    options: dict[str, Any] = {"target": 1, "n_steps": n_steps, "internal_batch_size": rows}
    flow = conductance_flow(net, examples, list(names), top=2, **options)
    expected = {
        (SOURCE if source == LEAF else f"made.{source}", SINK if later == "out" else f"made.{later}")
        for later in (*layers, "out")
        for source in net.direct(later, layers)
    }
    assert set(flow.edges) == expected
    if not any(op.kind == "relu_" for op in ops):
        for edge in flow.edges.values():
            assert float(edge.abs().sum()) > 0.0
    total = total_conductance(net, examples, list(names), **options)
    scale = flow.output_change[:, None]
    for layer in flow.layers:
        size = torch.cat([total[layer].abs(), scale.abs()], 1)
        assert_near(flow.outflow(layer).sum(1, keepdim=True), total[layer].sum(1, keepdim=True), 1e-10, size)
        own = [int(unit) for unit in flow.units[layer][:2]]
        assert_near(flow.outflow(layer)[:, :2], total[layer][:, own], 1e-10, size)
        assert_near(flow.inflow(layer) + flow.gap[layer], flow.conductance[layer], 1e-12, size)
    brought = flow.conductance[SOURCE].sum(1, keepdim=True) + sum(g.sum(1, keepdim=True) for g in flow.gap.values())
    parts = torch.cat([scale, *(edge.flatten(1) for edge in flow.edges.values())], 1)
    assert_near(brought, scale, 1e-11, parts)


@settings(max_examples=40, deadline=None)
@given(
    OPS, st.lists(st.booleans(), min_size=16, max_size=16), st.sampled_from([2, 3, 5, 8]), st.sampled_from([None, 1, 4])
)
def test_random_networks(ops: list[Op], asked: list[bool], n_steps: int, rows: int | None) -> None:
    assert_conserved(ops, asked, n_steps, rows)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(
    OPS, st.lists(st.booleans(), min_size=16, max_size=16), st.sampled_from([2, 3, 5, 8]), st.sampled_from([None, 1, 4])
)
def test_many_random_networks(ops: list[Op], asked: list[bool], n_steps: int, rows: int | None) -> None:
    assert_conserved(ops, asked, n_steps, rows)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_operation(kind: str) -> None:
    """Twice each, behind and beside each other, every value asked."""
    assert_conserved([Op(kind, 0, 0), Op(kind, 1, 0), Op("add", 2, 1)], [True] * 16, 5, None)


def test_calls_of_a_shared_module_are_layers_of_their_own() -> None:
    net = _built([Op("shared", 0, 0), Op("shared", 1, 0), Op("shared", 0, 0), Op("gate", 2, 3)])
    flow = conductance_flow(net, EXAMPLES, "shared", target=0, top=None, rtol=1e-6)
    assert set(flow.edges) == {
        (SOURCE, "shared#0"), ("shared#0", "shared#1"), (SOURCE, "shared#2"), ("shared#2", SINK), ("shared#1", SINK)
    }  # fmt: skip
    assert_balanced(flow)
    for layer in flow.layers:
        assert_near(flow.inflow(layer), flow.conductance[layer], 1e-6)


def test_edges_are_there_where_holding_all_others_still_moves_the_layer() -> None:
    """By perturbation: a source is moved while the other layers are held at what they were."""
    ops = [Op("gelu", 0, 0), Op("split", 1, 0), Op("stem", 0, 0), Op("cat", 2, 3), Op("relu_", 4, 0), Op("add", 1, 5)]
    net = _built(ops, seed=3)
    layers = ["v1", "v2a", "v2", "v3", "v4", "v5pre"]
    kept: dict[str, Tensor] = {}
    _with_taps(net, dict.fromkeys(layers), EXAMPLES, kept)
    moved = {layer: value + 0.5 * normal(*value.shape, seed=8) for layer, value in kept.items() if layer != "out"}
    expected = set()
    for source in (LEAF, *layers):
        for later in (*layers, "out"):
            if source == later:
                continue
            found: dict[str, Tensor] = {}
            others = {layer: kept[layer] for layer in layers if layer not in (source, later)}
            others |= {} if source == LEAF else {source: moved[source]}
            _with_taps(net, others, EXAMPLES * 0.5 if source == LEAF else EXAMPLES, found)
            if float((found[later] - kept[later]).abs().max()) > 1e-9:
                start = SOURCE if source == LEAF else f"made.{source}"
                expected.add((start, SINK if later == "out" else f"made.{later}"))
    flow = conductance_flow(net, EXAMPLES, [f"made.{layer}" for layer in layers], target=1, top=None, n_steps=5)
    assert set(flow.edges) == expected
    assert len(expected) >= 9


def _with_taps(net: Net, given: Mapping[str, Tensor | None], x: Tensor, found: dict[str, Tensor]) -> None:
    """Run with layers replaced where a tensor is given for them; keep what each would have been."""
    names = [name for name in net.ways if name != "out"]

    def hook(name: str) -> Callable[..., Tensor | None]:
        def replace(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            found[name] = output.detach().clone()
            tensor = given.get(name)
            return None if tensor is None else tensor.clone()

        return replace

    handles = [net.made[name].register_forward_hook(hook(name)) for name in names]
    try:
        found["out"] = net(x)[:, 1:].detach()
    finally:
        for handle in handles:
            handle.remove()
