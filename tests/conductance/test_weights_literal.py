"""Conductance of weights against loops over nodes and positions, written as the definition reads."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conductance import weight_conductance
from conductance.quadrature import fixed_nodes, fixed_panels
from tests.helpers import normal, seeded
from tests.reference import lagrange_matrix, relative_error

N_STEPS = 4


class Around(nn.Module):
    """A layer between two curved functions, as smooth or as kinked as asked; output ``(batch, 3)``."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...], *, kinked: bool = False) -> None:
        super().__init__()
        self.layer = layer
        self.kinked = kinked
        with torch.no_grad():
            size = self.layer(torch.zeros(1, *shape)).numel()
        self.head = nn.Linear(size, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(torch.sin(x) + 0.3 * x)
        output: Tensor = self.head((torch.relu(found) if self.kinked else torch.tanh(found)).flatten(1))
        return output


def matrix(*, kinked: bool) -> tuple[list[float], Tensor]:
    """Nodes of the fixed rule and its matrix on all of them."""
    alphas = fixed_nodes(N_STEPS, kinked=kinked)
    spans = (
        [(k, k + 1) for k in range(N_STEPS - 1)] if kinked else [(one.start, one.stop) for one in fixed_panels(N_STEPS)]
    )
    whole = np.zeros((N_STEPS, N_STEPS))
    for start, stop in spans:
        whole[start : stop + 1, start : stop + 1] += np.array(lagrange_matrix(alphas[start : stop + 1].tolist()))
    return alphas.tolist(), torch.tensor(whole)


def both_ends(model: nn.Module, name: str, x: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """Input of a layer and gradient behind it, of one row."""
    caught: list[tuple[Tensor, Tensor]] = []
    layer = model.get_submodule(name)
    handle = layer.register_forward_hook(lambda _module, args, output: caught.append((args[0], output)))
    try:
        score = model(x.requires_grad_())[0, target]
    finally:
        handle.remove()
    ((before, behind),) = caught
    return before[0].detach(), torch.autograd.grad(score, behind)[0][0].detach()


def dense_positions(x: Tensor, v: Tensor, module: Any) -> Tensor:
    """``Σ_positions v_j x_i`` of a linear layer, one position after the other; ``(outputs, inputs)``."""
    found = torch.zeros(v.shape[-1], x.shape[-1], dtype=x.dtype)
    for place in np.ndindex(*x.shape[:-1]):
        for j, i in itertools.product(range(found.shape[0]), range(found.shape[1])):
            found[j, i] += v[place][j] * x[place][i]
    return found


def conv_positions(x: Tensor, v: Tensor, module: Any) -> Tensor:
    """``Σ_positions v_j x_i`` of a convolution: for each weight the places that it connects, one by one."""
    found = torch.zeros_like(module.weight)
    kernel, space = module.kernel_size, len(module.kernel_size)
    each_in, each_out = x.shape[0] // module.groups, v.shape[0] // module.groups
    if isinstance(module.padding, str):
        total = [d * (k - 1) if module.padding == "same" else 0 for d, k in zip(module.dilation, kernel, strict=True)]
        low = [one // 2 for one in total]
    else:
        total, low = [2 * one for one in module.padding], list(module.padding)
    for out, place in itertools.product(range(v.shape[0]), np.ndindex(*v.shape[1:])):
        for i, at in itertools.product(range(each_in), np.ndindex(*kernel)):
            source = [place[n] * module.stride[n] + at[n] * module.dilation[n] - low[n] for n in range(space)]
            value = place_value(x[out // each_out * each_in + i], source, module.padding_mode)
            found[(out, i, *at)] += v[(out, *place)] * value
    return found


def place_value(x: Tensor, place: Sequence[int], mode: str) -> Tensor:
    """Value at a place that may lie in the padding."""
    inside = []
    for n, size in zip(place, x.shape, strict=True):
        if mode == "zeros" and not 0 <= n < size:
            return x.new_zeros(())
        reflected = -n if n < 0 else 2 * (size - 1) - n if n >= size else n
        inside.append(
            {"zeros": n, "reflect": reflected, "circular": n % size, "replicate": min(max(n, 0), size - 1)}[mode]
        )
    return x[tuple(inside)]


def transposed_positions(x: Tensor, v: Tensor, module: Any) -> Tensor:
    """The same of a transposed convolution, whose inputs are laid out over the outputs."""
    found = torch.zeros_like(module.weight)
    space = len(module.kernel_size)
    each_in, each_out = x.shape[0] // module.groups, v.shape[0] // module.groups
    for i, place in itertools.product(range(x.shape[0]), np.ndindex(*x.shape[1:])):
        for j, at in itertools.product(range(each_out), np.ndindex(*module.kernel_size)):
            goal = [place[n] * module.stride[n] + at[n] * module.dilation[n] - module.padding[n] for n in range(space)]
            if all(0 <= goal[n] < v.shape[n + 1] for n in range(space)):
                found[(i, j, *at)] += v[(i // each_in * each_out + j, *goal)] * x[(i, *place)]
    return found


def literal(
    model: nn.Module, name: str, inputs: Tensor, targets: list[int], positions: Callable[..., Tensor], *, kinked: bool
) -> Tensor:
    """``W Σ_examples Σ_kl A_kl v_k x_l``, with one product for each pair of nodes."""
    module: Any = model.get_submodule(name)
    alphas, weights = matrix(kinked=kinked)
    found = torch.zeros_like(module.weight)
    for x, target in zip(inputs, targets, strict=True):
        rows = [both_ends(model, name, (alpha * x[None]).detach(), target) for alpha in alphas]
        for k, (_, v) in enumerate(rows):
            # The loop over the second node, taken inside, for the positions are many.
            rise = sum((float(weights[k, n]) * before for n, (before, _) in enumerate(rows)), torch.zeros(()).to(v))
            found += positions(rise, v, module)
    whole: Tensor = found * module.weight
    return whole


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.Conv1d(2, 3, 4, stride=2, padding=1), (2, 7)),
    "1d-reflect": (lambda: nn.Conv1d(2, 3, 4, padding=2, padding_mode="reflect", stride=3), (2, 7)),
    "2d": (lambda: nn.Conv2d(2, 3, (2, 3), stride=(1, 2), padding=(2, 1), dilation=(2, 1)), (2, 5, 6)),
    "2d-same": (lambda: nn.Conv2d(2, 3, (2, 4), padding="same", dilation=(1, 2)), (2, 4, 7)),
    "2d-valid": (lambda: nn.Conv2d(2, 3, (2, 3), padding="valid", bias=False), (2, 4, 5)),
    "2d-groups": (lambda: nn.Conv2d(4, 6, (2, 3), groups=2, padding=1), (4, 3, 5)),
    "2d-depthwise": (lambda: nn.Conv2d(3, 6, (2, 3), groups=3), (3, 4, 5)),
    "2d-circular": (lambda: nn.Conv2d(2, 3, (2, 3), padding=(1, 2), padding_mode="circular"), (2, 4, 5)),
    "2d-same-replicate": (lambda: nn.Conv2d(2, 3, (2, 3), padding="same", padding_mode="replicate"), (2, 4, 5)),
    "3d": (lambda: nn.Conv3d(2, 3, (1, 2, 3), stride=(2, 1, 1), padding=(1, 0, 1)), (2, 3, 4, 5)),
}
TRANSPOSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.ConvTranspose1d(2, 3, 4, stride=3, padding=1, output_padding=2), (2, 4)),
    "2d": (
        lambda: nn.ConvTranspose2d(4, 6, (2, 3), stride=(3, 2), padding=(0, 1), output_padding=(1, 0), groups=2),
        (4, 2, 3),
    ),
    "2d-dilated": (lambda: nn.ConvTranspose2d(2, 3, (2, 3), dilation=(1, 2), padding=1, bias=False), (2, 3, 4)),
}
DENSE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (lambda: nn.Linear(4, 5), (4,)),
    "positions": (lambda: nn.Linear(4, 5), (3, 4)),
    "no-bias": (lambda: nn.Linear(4, 5, bias=False), (2, 3, 4)),
}
CASES = [
    *((f"conv-{name}", case, conv_positions) for name, case in CONVOLUTIONS.items()),
    *((f"transposed-{name}", case, transposed_positions) for name, case in TRANSPOSED.items()),
    *((f"linear-{name}", case, dense_positions) for name, case in DENSE.items()),
]


def assert_literal(
    model: nn.Module, shape: tuple[int, ...], positions: Callable[..., Tensor], *, kinked: bool, filled: float = 0.99
) -> None:
    inputs, targets = normal(2, *shape, seed=3), [2, 0]
    found = weight_conductance(model, inputs, "layer", target=targets, n_steps=N_STEPS)
    assert found.settings["scheme"] == ("kinked" if kinked else "smooth")
    expected = literal(model, "layer", inputs, targets, positions, kinked=kinked)
    assert float((expected.abs() > 1e-6 * expected.abs().max()).double().mean()) > filled
    assert relative_error(found["layer"], expected) < 1e-9


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("case", "positions"), [one[1:] for one in CASES], ids=[one[0] for one in CASES])
def test_each_weight_is_what_the_definition_says(
    case: tuple[Callable[[], nn.Module], tuple[int, ...]], positions: Callable[..., Tensor]
) -> None:
    build, shape = case
    assert_literal(seeded(lambda: Around(build(), shape)), shape, positions, kinked=False)


@pytest.mark.parametrize(("name", "positions"), [("2d-groups", conv_positions), ("positions", dense_positions)])
def test_the_same_where_there_are_kinks(name: str, positions: Callable[..., Tensor]) -> None:
    build, shape = (CONVOLUTIONS | DENSE)[name]
    assert_literal(seeded(lambda: Around(build(), shape, kinked=True)), shape, positions, kinked=True, filled=0.7)


class Sized(nn.Module):
    """A transposed convolution that is told the size of its output in the call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ConvTranspose1d(2, 3, 4, stride=3)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(torch.tanh(self.layer(torch.sin(x), output_size=[15])).sum(2))
        return output


def test_a_size_named_in_the_call() -> None:
    assert_literal(seeded(Sized), (2, 4), transposed_positions, kinked=False)


class Spread(nn.Module):
    """GPT-2's linear map on tokens."""

    def __init__(self) -> None:
        from transformers.pytorch_utils import Conv1D

        super().__init__()
        self.layer = Conv1D(5, 4)
        nn.init.normal_(self.layer.weight)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(torch.tanh(self.layer(torch.sin(x))).sum(1))
        return output


def test_the_linear_map_of_gpt2() -> None:
    def turned(x: Tensor, v: Tensor, module: Any) -> Tensor:
        return dense_positions(x, v, module).T

    model = seeded(Spread)
    assert_literal(model, (2, 4), turned, kinked=False)
    found = weight_conductance(model, normal(2, 2, 4, seed=3), "layer", target=1, n_steps=N_STEPS)
    assert found["layer"].shape == (4, 5)
    torch.testing.assert_close(found.per_output("layer"), found["layer"].sum(0))
    torch.testing.assert_close(found.per_input("layer"), found["layer"].sum(1))


class Tied(nn.Module):
    """Tokens' embeddings, moved by what is added to them, and a projection back with the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)
        self.layer = nn.Linear(4, 7, bias=False)
        self.layer.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embedding(torch.arange(3)).expand(len(x), -1, -1)
        output: Tensor = torch.tanh(self.layer(torch.tanh(self.mix(x * tokens)))).sum(1)
        return output


def test_an_output_projection_that_shares_its_weight() -> None:
    model = seeded(Tied)
    assert_literal(model, (3, 4), dense_positions, kinked=False, filled=0.2)  # two targets of seven
    assert weight_conductance(model, normal(2, 3, 4), target=1, n_steps=3).layers == ["mix", "layer"]
