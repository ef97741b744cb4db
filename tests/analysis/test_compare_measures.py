"""Measures side by side: correlations with literal effects, areas of their curves, reasons where one does not exist."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor, nn

from conductance.analysis import (
    MEASURES,
    ablation_curve,
    compare_measures,
    curve_area,
    measure_values,
    unit_scores,
)
from conductance.hooks import substitute
from tests.helpers import normal, seeded

BASELINE = 0.4
X, LABELS = normal(6, 3, 7, seed=2), torch.tensor([0, 3, 1, 2, 2, 1])
LOADER = [(X[:4], LABELS[:4]), (X[4:], LABELS[4:])]
SOME = ("gradient_x_difference", "activation", "internal_influence", "deeplift", "weight_magnitude", "random")


def build() -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(3, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(25, 4))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return seeded(build)


def literal_effects(net: nn.Module, held: Any) -> Tensor:
    """F(x) − F(x with one unit held), one example and one unit at a time."""
    effects = torch.zeros(6, 5, dtype=torch.float64)
    for example in range(6):
        x, label = X[example : example + 1], LABELS[example]
        for unit in range(5):

            def hold(_point: Any, tensor: Tensor, unit: int = unit) -> Tensor:
                changed = tensor.clone()
                changed[:, unit] = held(tensor)[:, unit]
                return changed

            with substitute(net, "1", hold):
                effects[example, unit] = net(x)[0, label]
            effects[example, unit] = net(x)[0, label] - effects[example, unit]
    return effects


@pytest.mark.parametrize("value", ["baseline", "zero"])
def test_correlations_with_the_literal_effects(net: nn.Module, value: Any) -> None:
    start = net[1](net[0](torch.full_like(X[:1], BASELINE)))  # type: ignore[index]
    effects = literal_effects(net, lambda tensor: start if value == "baseline" else torch.zeros_like(tensor))
    table = compare_measures(net, LOADER, "1", target="label", measures=SOME, baselines=BASELINE, value=value)
    assert table["measure"].tolist() == list(SOME)
    assert table.attrs == {
        "layer": "1", "examples": 6, "units": 5, "by": "mean_abs", "value": value, "reasons": {},
    }  # fmt: skip
    found = measure_values(net, X, "1", target=LABELS, measures=SOME, baselines=BASELINE)
    true = effects.numpy()
    for row in table.to_dict("records"):
        values = found[row["measure"]]["1"].numpy()
        assert row["pearson"] == pytest.approx(np.corrcoef(values.ravel(), true.ravel())[0, 1], abs=1e-10)
        if row["measure"] != "internal_influence":  # whose ties, in a linear rest, are broken by rounding
            expected = stats.spearmanr(values.ravel(), true.ravel()).statistic
            assert row["spearman"] == pytest.approx(expected, abs=1e-10)
        each = [np.corrcoef(values[n], true[n])[0, 1] for n in range(6)]
        assert row["example_pearson"] == pytest.approx(np.mean(each), abs=1e-10)
        means = np.corrcoef(np.abs(values).mean(0), np.abs(true).mean(0))[0, 1]
        assert row["unit_pearson"] == pytest.approx(means, abs=1e-10)
        assert row["seconds"] > 0
    # the layer is followed by a linear one alone: the difference is the effect of holding units at the baseline
    exact = table.set_index("measure")["pearson"]
    assert (exact["gradient_x_difference"] == pytest.approx(1, abs=1e-9)) == (value == "baseline")
    assert exact.nunique() >= 5


@pytest.mark.parametrize("by", ["mean_abs", "mean"])
def test_areas_are_those_of_the_ablation_curve_of_the_ranking(net: nn.Module, by: Any) -> None:
    given: dict[str, Any] = {"target": "label", "baselines": BASELINE}
    table = compare_measures(net, LOADER, "1", measures=["activation", "random"], by=by, steps=3, seed=7, **given)
    for row in table.to_dict("records"):
        ranking = unit_scores(net, LOADER, "1", row["measure"], by=by, seed=7, **given)
        areas = curve_area(ablation_curve(net, LOADER, ranking, steps=3, random=0, **given)).set_index("order")
        for name, column in (("area", "score"), ("accuracy", "accuracy")):
            assert row[f"{name}_first"] == pytest.approx(areas.loc["most important first", column], abs=1e-12)
            assert row[f"{name}_last"] == pytest.approx(areas.loc["least important first", column], abs=1e-12)
    assert table["area_first"].nunique() == 2


def test_every_measure_by_default_and_options_reach_the_values() -> None:
    net = seeded(lambda: nn.Sequential(*build(), nn.Tanh(), nn.Linear(4, 2)))

    def column(**given: Any) -> Any:
        measures = ["weight_magnitude", "random", "conductance", "internal_influence"]
        asked = {"measures": measures, **given}
        return compare_measures(net, LOADER, "1", target=1, **asked).set_index("measure")["pearson"]

    plain = column()
    assert compare_measures(net, LOADER, "1", target=1)["measure"].tolist() == list(MEASURES)
    assert column(norm="l1")["weight_magnitude"] != plain["weight_magnitude"]
    assert column(seed=5)["random"] != plain["random"]
    assert column(rtol=1e-8)["conductance"] != plain["conductance"]
    assert column(n_steps=2)["internal_influence"] != plain["internal_influence"]
    assert (column(baselines=0.9) != plain).any()
    assert column(internal_batch_size=2).to_numpy() == pytest.approx(plain.to_numpy(), abs=1e-2)


def test_what_a_model_has_no_measure_for_is_nan_with_the_reason() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.sum, self.head = nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.head(torch.relu(self.sum(self.fc(x) + 1)))
            return output

    table = compare_measures(seeded(Functional), [normal(5, 3)], "sum", target=0)
    missing = table.set_index("measure")["pearson"].isna()
    assert missing[missing].index.tolist() == ["deeplift", "weight_magnitude"]
    assert set(table.attrs["reasons"]) == {"deeplift", "weight_magnitude"}
    assert "Captum cannot give 'deeplift' of layer 'sum'" in table.attrs["reasons"]["deeplift"]
    assert "name the Linear or convolution" in table.attrs["reasons"]["weight_magnitude"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"measures": ["lime"]}, ValueError, "measure must be .* got 'lime'"),
        ({"by": "median"}, ValueError, "by must be 'mean_abs' or 'mean', got 'median'"),
        ({"value": "mean"}, ValueError, "value must be 'baseline' or 'zero', got 'mean'"),
        ({"layer": ["0", "1"]}, ValueError, "layer must be one hook point, got 2: 0, 1"),
        ({"layer": "conv9"}, ValueError, "conv9"),
        ({"loader": []}, ValueError, "loader gives no batches"),
        ({"loader": iter(LOADER)}, TypeError, "only once"),
        ({"loader": [X]}, ValueError, "needs labels"),
    ],
)
def test_bad_input(net: nn.Module, given: dict[str, Any], error: type[Exception], message: str) -> None:
    asked: dict[str, Any] = {"loader": LOADER, "layer": "1", "target": "label", **given}
    loader, layer = asked.pop("loader"), asked.pop("layer")
    with pytest.raises(error, match=message):
        compare_measures(net, loader, layer, **asked)


def test_a_ranking_of_another_model_is_refused(net: nn.Module) -> None:
    other = seeded(lambda: nn.Sequential(nn.Conv1d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(30, 4)))
    ranking = unit_scores(other, LOADER, "1", "activation", target="label")
    with pytest.raises((ValueError, KeyError), match="unit"):
        ablation_curve(net, LOADER, ranking)
