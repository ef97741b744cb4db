"""Cuts against a slow definition, reachability, and the operators with kinks one by one."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from conductance.hooks import Edge, GraphView, edge_of


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def is_cut(output: Tensor, leaves: Sequence[Tensor], *tensors: Tensor) -> bool:
    return GraphView(output.sum(), leaves).is_cut([edge_of(tensor) for tensor in tensors])


def test_every_tensor_of_a_chain_is_a_cut() -> None:
    x = leaf(3, 4)
    a = x.exp()
    b = a.tanh()
    assert [is_cut(b, [x], tensor) for tensor in (x, a, b)] == [True, True, True]
    target = b.sum()
    assert GraphView(target, [x]).is_cut([edge_of(target)])


def test_a_residual_branch_is_none_and_with_the_skip_it_is() -> None:
    x = leaf(3, 4)
    h = x.exp()
    branch = h.tanh()
    skip = h * 1
    out = branch + skip
    assert [is_cut(out, [x], tensor) for tensor in (h, branch, skip, out)] == [True, False, False, True]
    assert is_cut(out, [x], branch, skip)
    assert is_cut(out, [x], branch, h)
    assert not is_cut(out, [x], branch, branch.exp())


def test_halves_of_a_chunk_are_told_apart() -> None:
    x = leaf(3, 4)
    h = x.exp()
    first, second = h.chunk(2, dim=1)
    out = first * second.tanh()
    assert first.grad_fn is second.grad_fn
    assert [is_cut(out, [x], tensor) for tensor in (h, first, second)] == [True, False, False]
    assert is_cut(out, [x], first, second)
    assert is_cut(first.exp(), [x], first), "the other half is not used"


@pytest.mark.parametrize(
    "split", [lambda h: h.unbind(1), lambda h: h.split([1, 2, 1], 1), lambda h: h.tensor_split(3, 1)]
)
def test_other_operators_with_several_outputs(split: Callable[[Tensor], Sequence[Tensor]]) -> None:
    x = leaf(3, 4)
    h = x.exp()
    parts = split(h)
    out = torch.stack([part.sum() for part in parts])
    assert is_cut(out, [x], h)
    assert is_cut(out, [x], *parts)
    assert not any(is_cut(out, [x], part) for part in parts)
    assert not is_cut(out, [x], *parts[1:])


def test_branches_that_are_concatenated() -> None:
    x = leaf(3, 4)
    a, b = x.exp(), x.tanh()
    out = torch.cat([a, b], 1)
    assert [is_cut(out.exp(), [x], tensor) for tensor in (a, b, out)] == [False, False, True]
    assert is_cut(out.exp(), [x], a, b)


def test_several_leaves_are_joined() -> None:
    x, z, other = leaf(3, 4), leaf(3, 4), leaf(3, 4)
    a, b = x.exp(), z.tanh()
    out = a * b
    assert [is_cut(out, [x, z], tensor) for tensor in (x, a, b, out)] == [False, False, False, True]
    assert is_cut(out, [x, z], x, z)
    assert is_cut(out, [x, z], a, z)
    assert is_cut(out, [x], a), "z is no leaf here"
    assert is_cut(out, [x, other], a), "the other leaf is not used"


def test_parameters_are_no_leaves() -> None:
    x, layer = leaf(3, 4), nn.Linear(4, 5).double()
    h = layer(x)
    out = h * layer.weight.sum()
    assert is_cut(out, [x], h)
    assert not is_cut(out, [x, layer.weight], h)
    assert not is_cut(layer(x.detach()), [x], layer.weight)


def test_a_shared_module() -> None:
    x, layer = leaf(3, 4), nn.Linear(4, 4).double()
    first = layer(x)
    second = layer(first)
    assert is_cut(second, [x], first)
    assert not is_cut(second + first, [x], second)
    assert is_cut(second + first, [x], first)


def test_the_states_of_an_lstm_are_a_cut_together() -> None:
    x, lstm = leaf(2, 5, 3), nn.LSTM(3, 4, batch_first=True).double()
    out, (hidden, cell) = lstm(x)
    both = out.sum() + cell.sum()
    assert not is_cut(both, [x], out)
    assert not is_cut(both, [x], cell)
    assert is_cut(both, [x], out, cell)
    assert is_cut(both, [x], out, hidden, cell)
    assert is_cut(out, [x], out)


def test_a_leaf_as_output() -> None:
    x = leaf(3)
    view = GraphView(x, [x])
    assert view.is_cut([edge_of(x)])
    assert view.gradient_flows


@pytest.mark.parametrize("output", [None, torch.ones(3), torch.ones(3, requires_grad=True).exp()])
def test_no_way_means_no_cut(output: Tensor | None) -> None:
    x = leaf(3)
    view = GraphView(output, [x])
    edges = [edge_of(x)]
    assert not view.gradient_flows
    assert not view.is_cut(edges)
    assert not view.is_cut(edges * 2)
    assert not view.reaches_output(edges[0])
    assert view.reached_from_leaf(edge_of(x.exp()))
    assert view.kinked_operators() == ()


def test_what_reaches_what() -> None:
    x, weight = leaf(3), leaf(3)
    used = x * weight
    unused = x.exp()
    scale = weight.exp()
    view = GraphView((used * scale).sum(), [x])
    tensors = {"x": x, "used": used, "unused": unused, "scale": scale, "weight": weight}
    reaches = [name for name, tensor in tensors.items() if view.reaches_output(edge_of(tensor))]
    moving = [name for name, tensor in tensors.items() if view.reached_from_leaf(edge_of(tensor))]
    assert reaches == ["x", "used", "scale", "weight"]
    assert moving == ["x", "used", "unused"]


def test_ways_that_avoid_other_tensors() -> None:
    x = leaf(3)
    a = x.exp()
    b, c = a.tanh(), a.sin()
    d = b + c
    view = GraphView(d.sum(), [x])
    at = {name: edge_of(tensor) for name, tensor in {"a": a, "b": b, "c": c, "d": d}.items()}
    leaf_edge = edge_of(x)

    def sources(later: str | None, *points: str) -> set[Edge]:
        return set(view.direct_sources(None if later is None else at[later], [at[name] for name in points]))

    assert sources("d", "a") == {at["a"]}
    assert sources("a", "d") == {leaf_edge}
    assert sources("b", "c") == {leaf_edge}
    assert sources("d", "a", "b") == {at["a"], at["b"]}
    assert sources("d", "a", "b", "c") == {at["b"], at["c"]}
    assert sources("d", *at) == {at["b"], at["c"]}
    assert sources(None, "a", "b") == {at["a"], at["b"]}
    assert sources(None, *at) == {at["d"]}


def test_an_edge_needs_grad() -> None:
    with pytest.raises(ValueError, match="edge_of: the tensor does not require grad"):
        edge_of(torch.ones(3))


def test_a_deep_graph_is_walked_without_recursion() -> None:
    x = leaf(2)
    h = x
    for _ in range(5000):
        h = h * 1.0
    view = GraphView(h.sum(), [x])
    assert view.is_cut([edge_of(x)])
    assert view.reached_from_leaf(edge_of(h.exp()))


# A program: every step makes tensors from earlier ones, by number. Some steps make two tensors of one node.
steps = st.lists(
    st.tuples(st.integers(0, 99), st.integers(0, 99), st.sampled_from(["add", "mul", "exp", "chunk", "constant"])),
    min_size=1,
    max_size=12,
)


def run_program(program: Sequence[tuple[int, int, str]], inputs: Sequence[Tensor]) -> list[Tensor]:
    made = list(inputs)
    for first, second, kind in program:
        a, b = made[first % len(made)], made[second % len(made)]
        if kind == "chunk":
            made.extend(torch.cat([a, b]).chunk(2))
        elif kind == "constant":
            made.append(torch.ones(2, requires_grad=True).exp())
        else:
            made.append({"add": a + b, "mul": a * b, "exp": a.exp()}[kind])
    return made


def slow_is_cut(output: Edge, leaves: Sequence[Edge], removed: Sequence[Edge]) -> bool:
    """The definition: with these vertices gone, no way leads from the output to a leaf; one did before."""

    def leads(edge: Edge, gone: Sequence[Edge]) -> bool:
        if edge in gone:
            return False
        below = [(node, number) for node, number in edge[0].next_functions if node is not None]
        return edge in leaves or any(leads(following, gone) for following in below)

    return leads(output, []) and not leads(output, removed)


@given(steps, st.integers(1, 2), st.lists(st.integers(0, 99), min_size=2, max_size=3))
def test_cuts_agree_with_the_definition(program: list[tuple[int, int, str]], count: int, several: list[int]) -> None:
    inputs = [torch.randn(2, requires_grad=True) for _ in range(2)]
    made = run_program(program, inputs)
    output, leaves = made[-1].sum(), inputs[:count]
    view = GraphView(output, leaves)
    edges = [edge_of(tensor) for tensor in made]
    leaf_edges = edges[:count]
    for edge in edges:
        assert view.is_cut([edge]) == slow_is_cut(edge_of(output), leaf_edges, [edge])
    chosen = [edges[number % len(edges)] for number in several]
    assert view.is_cut(chosen) == slow_is_cut(edge_of(output), leaf_edges, chosen)


KINKED: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu_": lambda x: torch.relu_(x * 1),
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "leaky_relu_": lambda x: F.leaky_relu_(x * 1),
    "prelu": lambda x: F.prelu(x, torch.ones(4, dtype=x.dtype) / 3),
    "rrelu": lambda x: F.rrelu(x, training=True),
    "threshold": lambda x: F.threshold(x, 0.1, 0.0),
    "hardtanh": F.hardtanh,
    "hardtanh_": lambda x: F.hardtanh_(x * 1),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "softsign": F.softsign,
    "clamp": lambda x: x.clamp(-1, 1),
    "clamp min": lambda x: x.clamp(min=0),
    "clamp max": lambda x: x.clamp(max=0),
    "clamp tensor": lambda x: x.clamp(min=torch.zeros(4)),
    "clamp_min_": lambda x: (x * 1).clamp_min_(0),
    "abs": torch.abs,
    "copysign": lambda x: torch.copysign(x, torch.ones(4)),
    "max_pool1d": lambda x: F.max_pool1d(x, 2),
    "max_pool2d": lambda x: F.max_pool2d(x[None], 2),
    "max_pool2d indices": lambda x: F.max_pool2d(x[None], 2, return_indices=True)[0],
    "max_pool3d": lambda x: F.max_pool3d(x[None, None], (1, 2, 2)),
    "adaptive_max_pool1d": lambda x: F.adaptive_max_pool1d(x, 2),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x[None], 2),
    "fractional_max_pool2d": lambda x: F.fractional_max_pool2d(x[None], 1, output_size=2),
    "max": torch.max,
    "max of an axis": lambda x: x.max(1).values,
    "min": torch.min,
    "min of an axis": lambda x: x.min(1).values,
    "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "minimum": lambda x: torch.minimum(x, x.exp()),
    "amax": lambda x: x.amax(1),
    "amin": lambda x: x.amin(1),
    "aminmax": lambda x: x.aminmax(dim=1).max,
    "fmax": lambda x: torch.fmax(x, torch.zeros_like(x)),
    "fmin": lambda x: torch.fmin(x, torch.zeros_like(x)),
    "cummax": lambda x: x.cummax(1).values,
    "cummin": lambda x: x.cummin(1).values,
    "sort": lambda x: x.sort(1).values,
    "topk": lambda x: x.topk(2, 1).values,
    "kthvalue": lambda x: x.kthvalue(2, 1).values,
    "median": torch.median,
    "median of an axis": lambda x: x.median(1).values,
    "nanmedian": torch.nanmedian,
    "quantile": lambda x: x.quantile(0.3),
    "l1_loss": lambda x: F.l1_loss(x, torch.zeros_like(x)),
    "smooth_l1_loss": lambda x: F.smooth_l1_loss(x, torch.zeros_like(x)),
    "huber_loss": lambda x: F.huber_loss(x, torch.zeros_like(x)),
    "multi_margin_loss": lambda x: F.multi_margin_loss(x[0], torch.zeros(4, dtype=torch.long)),
    "multilabel_margin_loss": lambda x: F.multilabel_margin_loss(x[0], torch.zeros(4, 4, dtype=torch.long)),
    "hinge_embedding_loss": lambda x: F.hinge_embedding_loss(x, -torch.ones_like(x)),
    "norm 1": lambda x: torch.linalg.vector_norm(x, 1),
    "norm inf": lambda x: torch.linalg.vector_norm(x, float("inf")),
    "norm -inf": lambda x: x.norm(-float("inf")),
    "dist 1": lambda x: torch.dist(x, torch.zeros_like(x), 1),
    "cdist 1": lambda x: torch.cdist(x, torch.zeros_like(x), 1),
    "sign": torch.sign,
    "sgn": torch.sgn,
    "round": torch.round,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "trunc": torch.trunc,
    "frac": torch.frac,
    "fmod": lambda x: torch.fmod(x, 1.5),
    "remainder": lambda x: torch.remainder(x, 1.5),
    "floor division": lambda x: torch.div(x, 1.5, rounding_mode="floor"),
    "scatter amax": lambda x: x.scatter_reduce(1, torch.zeros_like(x, dtype=torch.long), x, "amax"),
    "index amax": lambda x: x.index_reduce(0, torch.tensor([0, 0, 1]), x, "amax"),
    "embedding bag max": lambda x: F.embedding_bag(torch.tensor([[0, 1]]), x[0], mode="max"),
}

SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
    "glu": F.glu,
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(1),
    "logsumexp": lambda x: x.logsumexp(1),
    "logcumsumexp": lambda x: x.logcumsumexp(1),
    "layer norm": lambda x: F.layer_norm(x, (4,)),
    "group norm": lambda x: F.group_norm(x, 2),
    "batch norm": lambda x: F.batch_norm(x, None, None, training=True),
    "rms norm": lambda x: F.rms_norm(x, (4,)),
    "instance norm": F.instance_norm,
    "avg_pool": lambda x: F.avg_pool2d(x[None], 2),
    "adaptive_avg_pool": lambda x: F.adaptive_avg_pool2d(x[None], 2),
    "interpolate": lambda x: F.interpolate(x[None], scale_factor=2.0, mode="bilinear"),
    "linear": lambda x: F.linear(x, torch.ones(5, 4, dtype=x.dtype)),
    "convolution": lambda x: F.conv1d(x, torch.ones(2, 4, 2, dtype=x.dtype)),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "norm 2": lambda x: torch.linalg.vector_norm(x, 2),
    "norm": torch.norm,
    "norm 3": lambda x: x.norm(3),
    "dist": lambda x: torch.dist(x, torch.zeros_like(x)),
    "cdist": lambda x: torch.cdist(x, torch.zeros_like(x)),
    "mse_loss": lambda x: F.mse_loss(x, torch.zeros_like(x)),
    "cross_entropy": lambda x: F.cross_entropy(x[0], torch.zeros(4, dtype=torch.long)),
    "soft_margin_loss": lambda x: F.soft_margin_loss(x, torch.ones_like(x)),
    "division": lambda x: torch.div(x, 1.5),
    "scatter sum": lambda x: x.scatter_reduce(1, torch.zeros_like(x, dtype=torch.long), x, "sum"),
    "index mean": lambda x: x.index_reduce(0, torch.tensor([0, 0, 1]), x, "mean"),
    "embedding bag": lambda x: F.embedding_bag(torch.tensor([[0, 1]]), x[0]),
    "where": lambda x: torch.where(torch.tensor([True, False, True, True]), x, 0.0),
    "products": lambda x: (x * x.exp() / (1 + x.square())).sin() @ x.cos(),
}


@pytest.mark.parametrize("name", KINKED)
@pytest.mark.filterwarnings("ignore:index_reduce:UserWarning")
def test_operators_with_kinks(name: str) -> None:
    x = leaf(3, 4, 4)
    found = GraphView(KINKED[name](x.exp() - 1).sum(), [x]).kinked_operators()
    assert len(found) == 1, found
    assert "Backward" not in found[0]


@pytest.mark.parametrize(
    ("guarded", "kinks"),
    [
        (lambda x: nn.functional.normalize(x, dim=1), False),
        (lambda x: x.exp().clamp(min=1e-6).log(), False),
        (lambda x: x.exp().clamp_min(1e-6).log(), False),
        (lambda x: x.clamp(min=1e-6), True),  # binds
        (lambda x: x.exp().clamp(min=0.0), True),  # nothing is below, yet it is an activation
        (lambda x: x.exp().clamp(min=0.01), True),
        (lambda x: x.exp().clamp(1e-6, 50.0), True),
        (lambda x: x.exp().clamp(max=1e-3), True),
    ],
)
def test_a_clamp_that_guards_a_division_is_no_kink(guarded: Callable[[Tensor], Tensor], kinks: bool) -> None:
    x = leaf(3, 4, 4)
    assert bool(GraphView(guarded(x).sum(), [x]).kinked_operators()) == kinks


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.filterwarnings("ignore:index_reduce:UserWarning")
def test_operators_without(name: str) -> None:
    x = leaf(3, 4, 4)
    output = SMOOTH[name](x.exp() - 1).sum()
    assert output.requires_grad
    assert GraphView(output, [x]).kinked_operators() == ()


def test_names_are_sorted_and_come_once() -> None:
    x = leaf(2, 3, 6, 6)
    out = F.max_pool2d(x.relu().relu().abs(), 2)
    assert GraphView(out.sum(), [x]).kinked_operators() == ("Abs", "MaxPool2DWithIndices", "Relu")


def test_only_operators_between_leaf_and_output_count() -> None:
    x, weight = leaf(3), leaf(3)
    x.abs()
    beside = weight.relu()
    before = x.sort().values
    view = GraphView((before.exp() * beside).sum(), [before])
    assert view.kinked_operators() == ()
    assert GraphView((x * beside).sum(), [x]).kinked_operators() == ()
    assert GraphView((x * beside).sum(), [x, weight]).kinked_operators() == ("Relu",)


class MyReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def test_custom_functions_count_by_name_and_hidden_ones_to_be_safe() -> None:
    x = leaf(3)
    custom = MyReLU.apply(x)  # type: ignore[no-untyped-call]
    assert GraphView(custom.sum(), [x]).kinked_operators() == ("MyReLU",)
    hidden = torch.utils.checkpoint.checkpoint(torch.tanh, x, use_reentrant=True)
    assert GraphView(hidden.sum(), [x]).kinked_operators() == ("CheckpointFunction",)
