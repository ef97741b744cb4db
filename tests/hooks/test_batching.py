"""The axis of the examples: by the rows of two runs, else by the class of a module."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance.hooks import PointInfo, list_points, probe, select
from conductance.hooks.batching import Sizes, examples_axis, module_batch_axis
from tests.hooks.nets import Lambda

FOUND: dict[str, tuple[Sizes, int, int]] = {
    "first": (Sizes((2, 5), 2, (3, 5), 3), 0, 0),
    "second, as long as the first": (Sizes((2, 2, 5), 2, (2, 3, 5), 3), 0, 1),
    "last": (Sizes((5, 4, 2), 2, (5, 4, 3), 3), 0, 2),
    "one row": (Sizes((5, 2, 4), 2, (5, 1, 4), 1), 0, 1),
    "given and right": (Sizes((5, 2, 4), 2, (5, 3, 4), 3), 1, 1),
    "given from the end": (Sizes((5, 2, 4), 2, (5, 3, 4), 3), -2, 1),
    "given without a second run": (Sizes((5, 2, 4), 2), -2, 1),
    "by class without a second run": (Sizes((2, 5, 4), 2), 0, 0),
}


@pytest.mark.parametrize("name", FOUND)
def test_the_axis_follows_the_rows(name: str) -> None:
    sizes, given, axis = FOUND[name]
    assert examples_axis(sizes, given, by_class=0) == (axis, "")


REFUSED: dict[str, tuple[Sizes, int, str]] = {
    "none": (Sizes((2, 5), 2, (2, 5), 3), 0, r"gave shape \(2, 5\) for 2 rows and for 3: no axis"),
    "no axes": (Sizes((), 2, (), 3), 0, r"gave shape \(\) for 2 rows and for 3: no axis"),
    "two": (Sizes((2, 2), 2, (3, 3), 3), 0, "depends on what the rows hold"),
    "sorted tokens": (Sizes((7, 5), 2, (9, 5), 3), 0, "depends on what the rows hold"),
    "rows and length": (Sizes((2, 6, 5), 2, (3, 4, 5), 3), 0, "total_length"),
    "all tokens": (Sizes((12, 5), 2, (18, 5), 3), 0, "axis 0 holds 6 entries for each row"),
    "another number of axes": (Sizes((2, 5), 2, (5,), 1), 0, "number of axes"),
    "not given by both runs": (Sizes((2, 5), 2, None, 3), 0, "ran for 2 rows otherwise than for 3"),
    "given and wrong": (Sizes((5, 2, 4), 2, (5, 3, 4), 3), 2, "the batch is its axis 1, not batch_axis=2"),
    "given and beyond": (Sizes((2, 4), 2, (3, 4), 3), 5, "the batch is its axis 0, not batch_axis=5"),
    "one run, another size": (Sizes((5, 4), 2), 0, r"axis 0 is not the batch.*HookPoint\(…, batch_axis=…\)"),
    "one run, beyond": (Sizes((5, 4), 2), 3, "axis 3 is not the batch"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_told_apart_by_example_says_why(name: str) -> None:
    sizes, given, reason = REFUSED[name]
    _, told = examples_axis(sizes, given, by_class=0)
    assert re.search(reason, told)


def probed(model: nn.Module, steps: int) -> dict[str, PointInfo]:
    leaf = torch.randn(2, steps, 3, requires_grad=True)
    found = probe(
        model,
        select(model),
        lambda: model(leaf)[:, 0],
        [leaf],
        rows=2,
        again=(3, lambda: model(torch.randn(3, steps, 3))),
    )
    return {info.name: info for info in found.points}


def test_a_probe_with_two_numbers_of_rows() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        for _ in range(len(x)):
            m.looped(x)
        out: Tensor = m.head(m.act(x.transpose(0, 1))).sum(0)
        return out

    model = Lambda(forward, looped=nn.Tanh(), act=nn.Tanh(), head=nn.Linear(3, 4))
    found = probed(model, steps=2)
    assert {name: info.point.batch_axis for name, info in found.items() if not info.unbatched} == {"act": 1, "head": 1}
    assert {name: info.point.unit_axis for name, info in found.items()}["head"] == 2
    assert "what runs depends on the data" in found["looped#0"].unbatched
    assert not model.act._forward_hooks


def test_the_table_shows_the_axis_of_the_examples() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        out: Tensor = m.head(m.act(x.transpose(0, 1)).sum(0) + m.table(torch.arange(3)).sum())
        return out

    model = Lambda(forward, act=nn.Tanh(), table=nn.Embedding(3, 4), head=nn.Linear(4, 2))
    cells = {row[0]: row[4] for row in list_points(model, torch.randn(3, 3, 4)).rows()}
    assert cells == {"act": "1", "table": "none", "head": "0", "(model)": "0"}


@pytest.mark.parametrize(
    ("module", "side", "index", "ndim", "axis"),
    [
        (nn.LSTM(2, 3, batch_first=True), "out", (0,), 3, 0),
        (nn.LSTM(2, 3, batch_first=True), "out", (1, 0), 3, 1),
        (nn.GRU(2, 3, batch_first=True), "out", (1,), 3, 1),
        (nn.GRU(2, 3), "out", (0,), 3, 1),
        (nn.GRU(2, 3, batch_first=True), "in", (0,), 3, 0),
        (nn.GRU(2, 3, batch_first=True), "in", ("hx",), 3, 1),
        (nn.GRU(2, 3), "out", (0,), 2, 0),
        (nn.MultiheadAttention(4, 2), "out", (0,), 3, 1),
        (nn.MultiheadAttention(4, 2), "in", (1,), 3, 1),
        (nn.MultiheadAttention(4, 2), "out", (1,), 3, 0),
        (nn.MultiheadAttention(4, 2, batch_first=True), "out", (0,), 3, 0),
        (nn.Linear(2, 3), "out", (), 3, 0),
    ],
)
def test_axis_of_the_examples(module: nn.Module, side: str, index: tuple[int | str, ...], ndim: int, axis: int) -> None:
    assert module_batch_axis(module, side, index, ndim) == axis
