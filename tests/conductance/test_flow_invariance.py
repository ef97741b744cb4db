"""What must not change a flow: the rows of a call, the order of the batch, further layers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance.flow import conductance_flow
from conductance.flow_results import SINK, SOURCE, ConductanceFlow
from tests.conductance.flows import assert_balanced, assert_near, assert_same
from tests.helpers import AttentionNet, ConvNet, ResidualNet, normal, seeded

NETS: dict[str, tuple[nn.Module, Tensor, list[str]]] = {
    "conv": (seeded(ConvNet), normal(3, 3, 8, 10), ["conv", "pool", "fc"]),
    "attention": (seeded(AttentionNet), normal(3, 5, 6), ["query", "value", "softmax", "act"]),
    "residual": (seeded(ResidualNet), normal(3, 7), ["stem", "act1", "act2"]),
}


def _flow(
    name: str, layers: list[str] | None = None, rows: slice | list[int] = slice(None), **options: Any
) -> ConductanceFlow:
    model, inputs, every = NETS[name]
    return conductance_flow(model, inputs[rows], every if layers is None else layers, **{"target": 1, **options})


ROWS = [*((6, rows) for rows in (1, 2, 3, 7, 1000)), (40, 3), (40, 7)]


@pytest.mark.parametrize(("n_steps", "rows"), ROWS)
@pytest.mark.parametrize(("name", "layers"), [("conv", ["conv", "fc"]), ("attention", ["query", "act"])])
def test_rows_of_a_call(name: str, layers: list[str], n_steps: int, rows: int) -> None:
    """Panels that do not fit into a call are put together from several."""
    _assert_rows_do_not_matter(name, layers, rows, n_steps=n_steps, top=1, baselines=0.2)


@pytest.mark.parametrize("rows", [2, 7])
@pytest.mark.parametrize("name", ["conv", "residual"])
def test_rows_of_a_call_to_a_tolerance(name: str, rows: int) -> None:
    _assert_rows_do_not_matter(name, NETS[name][2], rows, rtol=1e-3, top=1)


def _assert_rows_do_not_matter(name: str, layers: list[str], rows: int, **options: Any) -> None:
    expected, found = _flow(name, layers, **options), _flow(name, layers, **options, internal_batch_size=rows)
    assert found.settings["internal_batch_size"] == rows
    assert found.status == expected.status
    assert bool((found.evaluations >= expected.evaluations).all())  # a node between two calls belongs to both
    assert_same(found, expected, 1e-8)
    for pair, error in expected.edge_error.items():
        scale = expected.edges[pair].abs().sum((1, 2), keepdim=True)
        assert float(((found.edge_error[pair] - error) / scale).abs().max()) < 1e-8


def test_no_call_has_more_rows_than_allowed() -> None:
    model, inputs, layers = NETS["conv"]
    seen: list[int] = []
    handle = model.register_forward_hook(lambda _module, args, _output: seen.append(len(args[0])))
    try:
        conductance_flow(model, inputs, layers, target=1, n_steps=12, internal_batch_size=5)
    finally:
        handle.remove()
    assert max(seen) == 5


@pytest.mark.parametrize("steps", [{"n_steps": 5}, {"rtol": 1e-4}], ids=str)
@pytest.mark.parametrize("name", NETS)
def test_order_and_company_of_examples(name: str, steps: dict[str, Any]) -> None:
    together = _flow(name, **steps, top=None)
    turned = _flow(name, rows=[2, 0, 1], **steps, top=None)
    for pair, edge in together.edges.items():
        assert_near(turned.edges[pair], edge[[2, 0, 1]], 1e-9)
    alone = _flow(name, rows=[1], **steps, top=None)
    for pair, edge in together.edges.items():
        assert_near(alone.edges[pair], edge[1:2], 1e-9)
    assert alone.evaluations.tolist() == together.evaluations[1:2].tolist()


@pytest.mark.parametrize("name", NETS)
def test_two_calls_give_the_same_bits(name: str) -> None:
    first, second = _flow(name, rtol=1e-3), _flow(name, rtol=1e-3)
    for pair, edge in first.edges.items():
        assert torch.equal(edge, second.edges[pair])


def test_the_order_in_which_layers_are_asked() -> None:
    assert_same(_flow("residual", ["act2", "stem", "act1"], n_steps=6), _flow("residual", n_steps=6), 0.0)


@pytest.mark.parametrize(
    ("name", "fewer", "more"),
    [
        ("conv", ["conv", "fc"], ["conv", "pool", "fc"]),
        ("conv", ["conv"], ["conv", "act", "fc"]),
        ("attention", ["norm1", "act"], ["norm1", "query", "key", "value", "act"]),
        ("residual", ["stem", "act2"], ["stem", "act1", "down1", "sum1", "act2"]),
        ("residual", ["act1"], ["stem", "act1", "act2"]),
    ],
)
def test_further_layers_only_refine(name: str, fewer: list[str], more: list[str]) -> None:
    """What a unit passes on is the same, sent on directly or through what lies between; so is what arrives."""
    coarse, fine = (_flow(name, layers, n_steps=17, top=None) for layers in (fewer, more))
    assert_balanced(fine)
    for layer in fewer:
        assert_near(fine.outflow(layer), coarse.outflow(layer), 1e-10)
        assert_near(fine.conductance[layer], coarse.conductance[layer], 1e-10)
    for pair, edge in fine.edges.items():
        if pair in coarse.edges and not _between(fine, pair):
            assert_near(edge, coarse.edges[pair], 1e-10)


def _between(flow: ConductanceFlow, pair: tuple[str, str]) -> bool:
    """Whether another way leads from one layer to the other."""
    reached, waiting = set(), [stop for start, stop in flow.edges if start == pair[0] and stop != pair[1]]
    while waiting:
        layer = waiting.pop()
        reached.add(layer)
        waiting += [stop for start, stop in flow.edges if start == layer and stop not in reached]
    return pair[1] in reached


def test_a_layer_between_takes_what_went_past_it() -> None:
    """A → C without B is what goes directly with B asked, and what B takes from A, per unit of A."""
    model, x = seeded(ResidualNet), normal(3, 7)
    without = conductance_flow(model, x, ["stem", "sum1"], target=1, top=None, rtol=1e-10)
    with_b = conductance_flow(model, x, ["stem", "act1", "sum1"], target=1, top=None, rtol=1e-10)
    direct, into_b = with_b.edges["stem", "sum1"], with_b.edges["stem", "act1"]
    assert_near(direct.sum(2) + into_b.sum(2), without.edges["stem", "sum1"].sum(2), 1e-10)
    out_of_b = with_b.edges["act1", "sum1"]
    assert_near(direct.sum(1) + out_of_b.sum(1), without.edges["stem", "sum1"].sum(1), 1e-8)
    assert_near(direct.diagonal(dim1=1, dim2=2), direct.sum(2), 1e-12)  # the stream itself goes unit by unit


def test_scaling_a_unit_changes_nothing() -> None:
    """y → c y with the next weights divided by c is the same network."""
    model, x = seeded(ResidualNet), normal(3, 7)
    before = conductance_flow(model, x, ["stem", "up1", "sum1"], target=1, top=None, n_steps=6)
    factors = torch.tensor([0.25, 3.0, 1.0, -2.0, 0.5, 8.0], dtype=torch.float64)
    scaled = _Scaled(model, factors)
    after = conductance_flow(scaled, x, ["scale", "net.up1", "net.sum1"], target=1, top=None, n_steps=6)
    for (start, stop), edge in before.edges.items():
        names = {"stem": "scale", "up1": "net.up1", "sum1": "net.sum1"}
        assert_near(after.edges[names.get(start, start), names.get(stop, stop)], edge, 1e-10)
    assert {SOURCE, SINK} <= set(after.units)


class _Scaled(nn.Module):
    """A residual net whose stream is scaled behind the stem, and scaled back where it is read."""

    def __init__(self, net: nn.Module, factors: Tensor) -> None:
        super().__init__()
        self.net = net
        self.scale = nn.Identity()
        self.factors = factors

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        scaled: Tensor = self.scale(net.get_submodule("stem")(x) * self.factors)
        stream = scaled / self.factors

        def run(name: str, y: Tensor) -> Tensor:
            result: Tensor = net.get_submodule(name)(y)
            return result

        stream = run("sum1", stream + run("down1", run("act1", run("up1", stream))))
        return run("head", stream + run("down2", run("act2", run("up2", stream))))
