"""Ablation curves, against a loop over sets of units, and rankings that do not fit the model."""

import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from conductance import analysis, hooks, total_conductance
from conductance.analysis import ablation_curve, curve_area
from conductance.errors import UnknownLayerError
from conductance.hooks import HookPoint
from tests.analysis.ablations import at_baseline, with_held
from tests.helpers import AttentionNet, ConvNet, normal, seeded

X = normal(6, 3, 8, 10)


def net() -> nn.Module:
    model = seeded(ConvNet)
    model.get_parameter("head.bias")[:] -= model(X).mean(0)
    return model


def ranked(*rows: tuple[str, int]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["layer", "unit"])


LABELS = net()(X).argmax(1)
LABELS[2] = (LABELS[2] + 1) % 4
LOADER = [(X[:4], LABELS[:4]), (X[4:], LABELS[4:])]
FC = ranked(*(("fc", unit) for unit in (3, 0, 6, 2, 5, 1, 4)))
BOTH = ranked(("fc", 2), ("conv", 4), ("conv", 0), ("fc", 6), *(("fc", unit) for unit in (0, 1, 3, 4, 5)),
              ("conv", 1), ("conv", 2), ("conv", 3))  # fmt: skip


def literal(model: nn.Module, rows: list[tuple[str, int]], start: Tensor | None) -> tuple[float, float]:
    """Mean logit of the label and accuracy with some units held."""
    held = {}
    for layer in {name for name, _ in rows}:
        value = 0.0 if start is None else at_baseline(model, layer, start)
        held[layer] = ([unit for name, unit in rows if name == layer], value, 1)
    output = with_held(model, X, held)
    return float(output.gather(1, LABELS[:, None]).mean()), float((output.argmax(1) == LABELS).double().mean())


@pytest.mark.parametrize("ranking", [FC, BOTH], ids=["one layer", "two layers"])
@pytest.mark.parametrize("start", [None, normal(6, 3, 8, 10, seed=5)], ids=["zero", "baseline"])
@pytest.mark.parametrize("rows", [None, 5])
def test_curve_is_that_of_a_loop(ranking: pd.DataFrame, start: Tensor | None, rows: int | None) -> None:
    model = net()
    seen: list[int] = []
    handle = model.register_forward_hook(lambda _module, _args, output: seen.append(len(output)))
    given: dict[str, Any] = {"value": "zero"} if start is None else {"baselines": lambda x: start[: len(x)]}
    loader = LOADER if start is None else [(X, LABELS)]
    curve = ablation_curve(model, loader, ranking, internal_batch_size=rows, random=2, seed=7, **given)
    handle.remove()
    assert rows is None or max(seen) <= rows
    order = list(zip(ranking["layer"], ranking["unit"], strict=True))
    shuffled = [torch.randperm(len(order), generator=torch.Generator().manual_seed(seed)).tolist() for seed in (7, 8)]
    orders = {
        ("most important first", -1): order,
        ("least important first", -1): order[::-1],
        ("random", 7): None,
        ("random", 8): None,
    }
    assert list(dict.fromkeys(zip(curve["order"], curve["seed"], strict=True))) == list(orders)
    for (name, seed), expected in orders.items():
        part = curve[(curve["order"] == name) & (curve["seed"] == seed)]
        assert part["ablated"].tolist() == list(range(len(order) + 1))
        np.testing.assert_allclose(part["share"], np.arange(len(order) + 1) / len(order))
        if expected is None:
            places = shuffled[seed - 7]
            expected = [one for _, one in sorted(zip(places, sorted(order), strict=True))]
        for _, row in part.iterrows():
            score, accuracy = literal(model, expected[: row["ablated"]], start)
            assert math.isclose(row["score"], score, abs_tol=1e-12)
            assert math.isclose(row["accuracy"], accuracy, abs_tol=1e-12)
    assert curve["score"].std() > 1e-3
    assert curve["accuracy"].nunique() > 2


def test_nothing_held_is_the_model_itself_and_all_orders_end_alike() -> None:
    model = net().float()
    loader = [(X.float(), LABELS)]
    curve = ablation_curve(model, loader, FC, random=3)
    whole = model(X.float()).gather(1, LABELS[:, None]).double().mean().item()
    assert (curve[curve["ablated"] == 0]["score"] == whole).all()
    assert curve[curve["ablated"] == 7]["score"].nunique() == 1
    assert len(curve) == 5 * 8


def test_random_orders_follow_their_seed() -> None:
    model = net()
    one, again, other = (ablation_curve(model, LOADER, FC, random=2, seed=seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(one, again)
    shared = [part[part["seed"] == 4]["score"].tolist() for part in (one, other)]
    assert shared[0] == shared[1]
    assert one[one["seed"] == 3]["score"].tolist() != shared[0]
    none = ablation_curve(model, LOADER, FC, random=0)
    assert set(none["order"]) == {"most important first", "least important first"}


def test_rankings_of_one_seed_share_their_random_orders() -> None:
    one, other = (ablation_curve(net(), LOADER, ranking, random=2) for ranking in (FC, FC.iloc[::-1]))
    drawn = one["order"] == "random"
    assert one[drawn]["score"].tolist() == other[drawn]["score"].tolist()
    assert one[drawn]["score"].nunique() > 4
    assert one[~drawn]["score"].tolist() != other[~drawn]["score"].tolist()


@pytest.mark.parametrize(("steps", "expected"), [
    (2, [0, 7]), (3, [0, 4, 7]), (100, list(range(8))), ([0.5], [0, 4, 7]), ([0.9, 0.15, 0.1], [0, 1, 6, 7]),
    ([], [0, 7]), (None, list(range(8))),
])  # fmt: skip
def test_steps(steps: Any, expected: list[int]) -> None:
    curve = ablation_curve(net(), LOADER, FC, steps=steps, random=0)
    part = curve[curve["order"] == "most important first"]
    assert part["ablated"].tolist() == expected


def test_many_units_have_21_points() -> None:
    model = nn.Sequential(nn.Linear(3, 60), nn.Linear(60, 2))
    ranking = pd.DataFrame({"layer": "0", "unit": range(60)})
    curve = ablation_curve(model, [(torch.ones(2, 3), torch.zeros(2).long())], ranking, random=0)
    assert curve["ablated"].tolist()[:21] == list(range(0, 61, 3))


def test_without_labels_there_is_no_accuracy() -> None:
    curve = ablation_curve(net(), [X], FC, target=1, random=1)
    assert curve["accuracy"].isna().all()
    assert curve["score"].notna().all()
    assert np.isnan(curve.attrs["area"]["random"]["accuracy"])
    with pytest.raises(ValueError, match="target='label' needs labels"):
        ablation_curve(net(), [X], FC)


def test_one_output_alone_has_no_accuracy() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)))
    ranking = ranked(*(("1", unit) for unit in range(4)))
    curve = ablation_curve(model, [(normal(5, 3), torch.tensor([0, 1, 1, 0, 1]))], ranking, target=0, random=1)
    assert curve["accuracy"].isna().all()
    assert curve["score"].notna().all()


def test_area_is_the_trapezoid() -> None:
    curve = ablation_curve(net(), LOADER, FC, random=2, steps=[0.3])
    areas = curve_area(curve)
    assert list(areas) == ["order", "seed", "score", "accuracy"]
    assert areas["seed"].tolist() == [-1, -1, 0, 1]
    part = curve[curve["seed"] == 1]
    scores, shares = part["score"].to_numpy(), part["share"].to_numpy()
    expected = ((scores[1:] + scores[:-1]) / 2 * np.diff(shares)).sum()
    assert math.isclose(areas["score"][3], expected)
    means = areas.groupby("order")["accuracy"].mean().to_dict()
    assert {order: each["accuracy"] for order, each in curve.attrs["area"].items()} == means
    assert curve.attrs["units"] == 7
    assert curve.attrs["examples"] == 6
    assert curve.attrs["value"] == "baseline"
    with pytest.raises(ValueError, match=r"curve lacks the columns \['seed'\]"):
        curve_area(curve.drop(columns="seed"))


def test_ranking_of_conductance_falls_faster_than_its_reverse() -> None:
    model = net()
    total = total_conductance(model, X, "fc", target=LABELS)
    table = analysis.rank_units(total, by="mean", top=7)
    area = ablation_curve(model, LOADER, table).attrs["area"]
    assert area["most important first"]["score"] < area["random"]["score"] < area["least important first"]["score"]


def test_rankings_of_heads_are_told_what_their_names_mean() -> None:
    model, x = seeded(AttentionNet), normal(3, 5, 6)
    ranking, heads = ranked(("out:in", 1), ("out:in", 0)), HookPoint("out", side="in", unit_groups=2)
    with pytest.raises(ValueError, match="has 2 of the 6 units"):
        ablation_curve(model, [x], ranking, target=1)
    curve = ablation_curve(model, [x], ranking, target=1, value="zero", random=0, layers=[heads, "act"])
    with hooks.ablate(model, {heads: [1]}):
        held = model(x)[:, 1].mean().item()
    assert math.isclose(curve["score"][1], held, abs_tol=1e-12)
    assert not math.isclose(curve["score"][0], held, abs_tol=1e-6)


BAD: list[tuple[Any, type[Exception], str]] = [
    (FC.assign(layer="fc1"), ValueError, "no module named 'fc1'. Nearest: 'fc'"),
    (FC.assign(unit=FC["unit"] + 1), ValueError, "unit 7 of 'fc', which has 7 (0 to 6): is it the ranking of another"),
    (FC.assign(unit=FC["unit"] - 1), ValueError, "unit -1 of 'fc'"),
    (pd.concat([FC, FC[:1]]), ValueError, "unit 3 of 'fc' twice"),
    (FC[:5], ValueError, "has 5 of the 7 units of 'fc', and all are needed: rank them with top=None"),
    (FC[:0], ValueError, "ranking has no rows"),
    (FC.drop(columns="unit"), ValueError, "ranking has no column 'unit', only 'layer'"),
    (FC.assign(unit=0.5), ValueError, "units of type float64; expected whole numbers"),
    ([1, 2], TypeError, "ranking is a list; expected a table"),
]


@pytest.mark.parametrize(("ranking", "kind", "text"), BAD)
def test_rankings_that_do_not_fit(ranking: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=re.escape(text)):
        ablation_curve(net(), LOADER, ranking)


def test_rankings_are_checked_against_layers() -> None:
    from conductance.analysis._rankings import checked_ranking

    assert checked_ranking(BOTH, {"fc": 7, "conv": 5}, whole=True) == {
        "fc": [2, 6, 0, 1, 3, 4, 5],
        "conv": [4, 0, 1, 2, 3],
    }
    assert checked_ranking(FC[:2], {"fc": 7}, whole=False) == {"fc": [3, 0]}
    with pytest.raises(UnknownLayerError, match="No layer 'conv' here"):
        checked_ranking(BOTH, {"fc": 7}, whole=False)


def test_bad_calls_name_the_argument() -> None:
    for given, kind, text in [
        ({"value": "mean"}, ValueError, "value must be 'baseline' or 'zero', got 'mean'"),
        ({"random": -1}, ValueError, "random is -1; expected at least 0"),
        ({"random": 1.5}, TypeError, "random is 1.5; expected a whole number"),
        ({"steps": 1}, ValueError, "steps is 1; expected at least 2"),
        ({"steps": [0.5, 1.5]}, ValueError, "steps holds shares outside 0 to 1"),
        ({"steps": "all"}, TypeError, "steps is 'all'; expected a number of points, or shares"),
    ]:
        with pytest.raises(kind, match=re.escape(text)):
            ablation_curve(net(), LOADER, FC, **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="loader gives no batches"):
        ablation_curve(net(), [], FC)


def test_rows_in_any_order_have_the_same_area() -> None:
    columns = {"order": "random", "seed": 3, "share": [0.0, 0.5, 1.0], "score": [4.0, 2.0, 0.0], "accuracy": 1.0}
    curve = pd.DataFrame(columns)
    for table in (curve, curve[::-1], curve.iloc[[1, 2, 0]]):
        assert curve_area(table)[["score", "accuracy"]].to_numpy().tolist() == [[2.0, 1.0]]
    with pytest.raises(ValueError, match=r"curve has several rows for order 'random', seed 3, share 0.0"):
        curve_area(pd.concat([curve, curve]))
