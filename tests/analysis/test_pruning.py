"""Masks compute what holding the same units computes, and constants move into the biases of what reads them."""

from collections.abc import Callable, Mapping
from typing import Literal, cast

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from conductance import hooks
from conductance.analysis import PrunedUnits, baseline_values, prune_units
from tests.analysis.pruned_nets import Joined, Residual, conv, made, mlp, ranked, tokens

BASELINE = 0.3
LAYERS: list[tuple[Callable[[], nn.Module], list[str]]] = [
    (mlp, ["0"]),
    (mlp, ["1", "4"]),
    (mlp, ["0", "1", "2", "3", "4"]),
    (conv, ["0"]),
    (conv, ["1"]),
    (conv, ["3"]),
    (conv, ["4"]),
    (conv, ["2", "5", "8"]),
    (tokens, ["0"]),
    (tokens, ["2", "3"]),
    (Residual, ["stem"]),
    (Residual, ["norm"]),
    (Residual, ["inner", "outer"]),
    (Joined, ["left", "right"]),
]


def shuffled(model: nn.Module, inputs: Tensor, layers: list[str]) -> tuple[pd.DataFrame, dict[str, hooks.HookPoint]]:
    """A ranking in a random order, and the points of its layers."""
    points = {info.name: info for info in hooks.list_points(model, inputs) if info.name in layers}
    numbers = torch.Generator().manual_seed(3)
    order = {
        layer: torch.randperm(points[layer].shape[points[layer].point.unit_axis or 0], generator=numbers).tolist()
        for layer in layers
    }
    return ranked(order), {layer: points[layer].point for layer in layers}


def constants(model: nn.Module, inputs: Tensor, points: Mapping[str, hooks.HookPoint]) -> dict[str, Tensor]:
    """Activations at the baseline, positions averaged."""
    found = baseline_values(model, inputs, list(points), baselines=BASELINE)
    moved = {layer: each.movedim((points[layer].unit_axis or 0) - 1, 0) for layer, each in found.items()}
    return {layer: each.flatten(1).mean(1) if each.ndim > 1 else each for layer, each in moved.items()}


def output_held(model: nn.Module, inputs: Tensor, points: Mapping[str, hooks.HookPoint], pruned: PrunedUnits,
                values: Mapping[str, Tensor] | None) -> Tensor:  # fmt: skip
    units = {points[layer]: each for layer, each in pruned.units.items()}
    value = 0.0 if values is None else {points[layer]: each for layer, each in values.items()}
    with torch.no_grad(), hooks.ablate(model, units, value):
        output: Tensor = model(inputs)
    return output


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("kind", "layers"), LAYERS)
def test_zero_is_what_ablation_gives(kind: Callable[[], nn.Module], layers: list[str], known: bool) -> None:
    model, inputs = made(kind)
    ranking, points = shuffled(model, inputs, layers)
    with prune_units(model, ranking, amount=0.5, inputs=inputs if known else None) as pruned:
        found = model(inputs)
    expected = output_held(model, inputs, points, pruned, None)
    assert torch.equal(found, expected)
    assert (expected - model(inputs)).abs().max() > 1e-2
    assert not pruned.folded


@pytest.mark.parametrize(("kind", "layers"), LAYERS)
def test_baseline_is_what_ablation_gives(kind: Callable[[], nn.Module], layers: list[str]) -> None:
    model, inputs = made(kind)
    ranking, points = shuffled(model, inputs, layers)
    values = constants(model, inputs, points)
    with prune_units(model, ranking, amount=0.5, value="baseline", inputs=inputs, baselines=BASELINE) as pruned:
        found = model(inputs)
        other = model(2 * inputs)
    torch.testing.assert_close(found, output_held(model, inputs, points, pruned, values), rtol=0, atol=1e-12)
    torch.testing.assert_close(other, output_held(model, 2 * inputs, points, pruned, values), rtol=0, atol=1e-12)
    assert (found - output_held(model, inputs, points, pruned, None)).abs().max() > 1e-3
    for layer, each in values.items():
        torch.testing.assert_close(pruned.values[layer], each, rtol=0, atol=1e-12)


def test_constant_of_a_linear_net_is_in_the_next_bias() -> None:
    first, second = nn.Linear(2, 3), nn.Linear(3, 2, bias=False)
    model = nn.Sequential(first, second).double()
    first.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]).double()
    first.bias.data = torch.tensor([0.5, -1.0, 2.0]).double()
    second.weight.data = torch.tensor([[1.0, 2.0, 3.0], [-4.0, 5.0, -6.0]]).double()
    pruned = prune_units(model, ranked({"0": [1, 2, 0]}), amount=2 / 3, value="baseline",
                         inputs=torch.ones(1, 2).double(), baselines=torch.tensor([[1.0, -1.0]]))  # fmt: skip
    # units 0 and 2 at (1, -1): 1 - 2 + 0.5 = -0.5 and 5 - 6 + 2 = 1
    assert pruned.units == {"0": [0, 2]}
    assert pruned.values["0"][[0, 2]].tolist() == [-0.5, 1.0]
    assert pruned.folded == {"0": ("1",)}
    assert second.bias.tolist() == [-0.5 + 3, 2.0 - 6]
    assert second.weight.tolist() == [[0, 2, 0], [0, 5, 0]]
    assert first.weight.tolist() == [[0, 0], [3, 4], [0, 0]]
    assert first.bias.tolist() == [0, -1, 0]
    assert {(type(module).__name__, name) for module, name in pruned.parameters} == {
        ("Linear", "weight"),
        ("Linear", "bias"),
    }


@pytest.mark.parametrize(
    ("padding", "mode", "folded"), [(1, "zeros", False), (1, "circular", True), (0, "zeros", True)]
)
def test_border_of_zeros_keeps_constants_where_they_are_made(
    padding: int, mode: Literal["zeros", "circular"], folded: bool
) -> None:
    def padded() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 3, padding=padding, padding_mode=mode), nn.Flatten(1)
        )

    model = padded().double()
    inputs = torch.randn(4, 2, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ranking, points = shuffled(model, inputs, ["1"])
    values = constants(model, inputs, points)
    with prune_units(model, ranking, amount=0.7, value="baseline", inputs=inputs, baselines=BASELINE) as pruned:
        found = model(inputs)
    torch.testing.assert_close(found, output_held(model, inputs, points, pruned, values), rtol=0, atol=1e-12)
    assert bool(pruned.folded) == folded
    assert pruned.values["1"][pruned.units["1"]].any()


def test_sum_of_a_residual_block_keeps_constants_where_they_are_made() -> None:
    model, inputs = made(Residual)
    ranking, _ = shuffled(model, inputs, ["outer", "act"])
    before = model.get_parameter("outer.bias").detach().clone()
    pruned = prune_units(model, ranking, amount=0.5, value="baseline", inputs=inputs, baselines=BASELINE)
    assert pruned.folded == {"act": ("outer",)}
    units = pruned.units["outer"]
    torch.testing.assert_close(model.get_parameter("outer.bias")[units], pruned.values["outer"][units])
    assert not torch.equal(model.get_parameter("outer.bias")[units], before[units])


def test_what_a_batch_norm_alone_reads_is_masked_too() -> None:
    model, inputs = made(Residual)
    pruned = prune_units(model, shuffled(model, inputs, ["act"])[0], amount=0.5, inputs=inputs)
    assert {each for each, _ in pruned.parameters} == {model.get_submodule("norm"), model.get_submodule("inner")}
    assert not model.get_submodule("inner").weight[pruned.units["act"]].any()  # type: ignore[index]


def test_batch_norm_beside_another_reader_is_masked_alone() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm, self.head = nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.fc(x)
            output: Tensor = self.head(self.norm(hidden) + hidden.tanh())
            return output

    model, inputs = Both().double().eval(), torch.randn(4, 3).double()
    with prune_units(model, ranked({"norm": [4, 1, 0, 2, 3]}), amount=0.4, inputs=inputs) as pruned:
        assert {each for each, _ in pruned.parameters} == {model.norm}
        found = model(inputs)
    with hooks.ablate(model, {"norm": [2, 3]}):
        assert torch.equal(found, model(inputs))


def test_activation_that_is_not_zero_at_zero_is_held_by_what_reads_it() -> None:
    model, inputs = made(mlp)
    with prune_units(model, ranked({"6": [4, 1, 0, 2, 3]}), amount=0.4, inputs=inputs) as pruned:
        found = model(inputs)
    with hooks.ablate(model, {"6": [2, 3]}):
        torch.testing.assert_close(found, model(inputs), rtol=0, atol=1e-12)
    assert pruned.folded == {"6": ("7",)}


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        (0, {}),
        (0.2, {"0": [6], "2": [5]}),
        (0.35, {"0": [1, 6], "2": [0, 5]}),
        (1, {"0": [*range(7)], "2": [*range(6)]}),
        ({"2": 0.5}, {"2": [0, 4, 5]}),
        ({"0": 0.1, "2": 0.0}, {"0": [6]}),
    ],
)
def test_amount_counts_the_least_important_of_each_layer(
    amount: float | dict[str, float], expected: dict[str, list[int]]
) -> None:
    model, _ = made(mlp)
    ranking = ranked({"2": [1, 2, 3, 4, 0, 5], "0": [0, 2, 3, 5, 4, 1, 6]})
    pruned = prune_units(model, ranking, amount=amount)
    assert pruned.units == expected
    for layer in ("0", "2"):
        rows = cast("Tensor", model.get_submodule(layer).weight)
        assert (rows == 0).all(1).nonzero().flatten().tolist() == expected.get(layer, [])
    if not expected:
        assert not prune.is_pruned(model)
        assert repr(pruned) == "PrunedUnits()"


def test_dict_of_ids_goes_through_a_model_of_keywords() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.fc, self.head = nn.Embedding(11, 5), nn.Linear(5, 7), nn.Linear(7, 3)

        def forward(self, *, ids: Tensor, scale: Tensor) -> dict[str, Tensor]:
            return {"logits": self.head(self.fc(self.embed(ids) * scale[:, None, None]).tanh().mean(1))}

    model = Bag().double()
    inputs = {"ids": torch.arange(8).reshape(4, 2), "scale": torch.linspace(0.5, 1, 4).double()}
    ranking = ranked({"fc": [*range(7)]})
    with prune_units(model, ranking, amount=0.5, value="baseline", inputs=inputs) as pruned:
        found = model(**inputs)["logits"]
    values = baseline_values(model, inputs, "fc")["fc"].mean(0)
    with hooks.ablate(model, {"fc": pruned.units["fc"]}, values):
        torch.testing.assert_close(found, model(**inputs)["logits"], rtol=0, atol=1e-12)
    assert pruned.folded == {"fc": ("head",)}


def test_baseline_of_token_ids_is_that_of_their_embeddings() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(11, 5), nn.Linear(5, 7), nn.Tanh(), nn.Flatten(), nn.Linear(14, 3)).double()
    ids = torch.arange(8).reshape(4, 2)
    options = {"amount": 0.5, "value": "baseline", "inputs": ids, "path_from": "0", "baselines": 0.7}
    with prune_units(model, ranked({"2": [*range(7)]}), **options) as pruned:  # type: ignore[arg-type]
        found = model(ids)
    value = model[2](model[1](torch.full((5,), 0.7, dtype=torch.float64)))
    torch.testing.assert_close(pruned.values["2"], value.detach(), rtol=0, atol=1e-12)
    with hooks.ablate(model, {hooks.HookPoint("2", unit_axis=2): pruned.units["2"]}, value):
        torch.testing.assert_close(found, model(ids), rtol=0, atol=1e-12)
    assert pruned.folded == {"2": ("4",)}
