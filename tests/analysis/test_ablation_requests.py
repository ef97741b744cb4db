"""What ablations are asked for in other forms: numbers of numpy, tables in another order, outputs without classes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from conductance.analysis import ablation_curve, baseline_values, curve_area, measure_values, unit_effects
from tests.analysis.pruned_nets import made, mlp, ranked

RANKING = ranked({"1": [*range(7)]})


class Other(nn.Module):
    """Gives its output in another form, without logits."""

    def __init__(self, model: nn.Module, form: str) -> None:
        super().__init__()
        self.model, self.form = model, form

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        output = self.model(x if labels is None else x + labels)
        return {"scores": output} if self.form == "dict" else (x.mean(), output)


def test_area_does_not_hang_on_the_order_of_rows() -> None:
    model, x = made(mlp)
    curve = ablation_curve(model, [x], RANKING, target=0, random=2)
    expected = curve_area(curve).set_index(["order", "seed"]).sort_index()
    found = curve_area(curve.sample(frac=1, random_state=0)).set_index(["order", "seed"]).sort_index()
    pd.testing.assert_frame_equal(found, expected)


def test_curves_that_an_area_cannot_be_taken_of() -> None:
    model, x = made(mlp)
    curve = ablation_curve(model, [x], RANKING, target=0, random=0)
    with pytest.raises(ValueError, match=r"several rows for order 'most important first', seed -1, .*several rankings"):
        curve_area(pd.concat([curve, curve]))
    with pytest.raises(ValueError, match="curve is an empty table"):
        curve_area(curve.head(0))
    with pytest.raises(TypeError, match="curve must be the table that ablation_curve returns"):
        curve_area([curve])  # type: ignore[arg-type]


def test_no_units_at_all_are_refused() -> None:
    model, x = made(mlp)
    with pytest.raises(ValueError, match="units is an empty dict"):
        unit_effects(model, [x], "1", target=0, units={})


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (0.5, TypeError), (True, TypeError), ("a", TypeError)])
def test_seed_is_a_whole_number(seed: Any, error: type[Exception]) -> None:
    model, x = made(mlp)
    with pytest.raises(error, match=r"seed is .*expected"):
        ablation_curve(model, [x], RANKING, target=0, seed=seed)


def test_numbers_of_numpy_are_numbers() -> None:
    model, x = made(mlp)
    found = ablation_curve(model, [x], RANKING, target=0, seed=np.int64(3), internal_batch_size=np.int64(4))  # type: ignore[arg-type]
    expected = ablation_curve(model, [x], RANKING, target=0, seed=3, internal_batch_size=4)
    pd.testing.assert_frame_equal(found, expected)


def test_names_that_a_file_turned_into_numbers() -> None:
    model, x = made(mlp)
    with pytest.raises(ValueError, match=r"ranking holds layer 1 of type int.*dtype=\{'layer': str\}"):
        ablation_curve(model, [x], RANKING.assign(layer=1), target=0)


@pytest.mark.parametrize("form", ["dict", "tuple"])
def test_baseline_values_need_no_logits(form: str) -> None:
    model, x = made(mlp)
    expected = baseline_values(model, x, "1")["1"]
    torch.testing.assert_close(baseline_values(Other(model, form), x, "model.1")["model.1"], expected)


def test_an_input_called_labels_is_an_input() -> None:
    model, x = made(mlp)
    given = {"x": x, "labels": torch.full_like(x, 2.0)}
    baselines = {"x": torch.full_like(x, -2.0)}
    found = baseline_values(Other(model, "dict"), given, "model.1", baselines=baselines)["model.1"]
    torch.testing.assert_close(found, baseline_values(model, x, "1")["1"])


def test_accuracy_is_nan_where_there_are_no_classes() -> None:
    model, x = made(mlp)
    labels = torch.zeros(len(x), dtype=torch.int64)
    ranking = RANKING.assign(layer="model.1")
    curve = ablation_curve(
        Other(model, "dict"), [(x, labels)], ranking, target=lambda output: output["scores"][:, 0], random=0
    )
    assert curve["accuracy"].isna().all()
    assert curve["score"].notna().all()
    one = nn.Sequential(model, nn.Linear(4, 1).double())
    curve = ablation_curve(one, [(x, labels)], RANKING.assign(layer="0.1"), target=0, random=0)
    assert curve["accuracy"].isna().all()


def test_labels_that_are_none() -> None:
    model, x = made(mlp)
    labels = torch.zeros(len(x), dtype=torch.int64)
    labels[2] = -1
    with pytest.raises(ValueError, match="a label is -1, which is no class"):
        unit_effects(model, [(x, labels)], "1", target="label")


@pytest.mark.parametrize("what", ["effects", "values", "curve"])
def test_refused_model_in_train_mode_is_as_it_was(what: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)).train()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    numbers, x = torch.get_rng_state(), torch.linspace(-1, 1, 18).reshape(6, 3)
    run: Callable[[], Any] = {
        "effects": lambda: unit_effects(model, [x], "1", target="predicted"),
        "values": lambda: measure_values(model, x, "1", target="predicted", measures="activation"),
        "curve": lambda: ablation_curve(model, [x], ranked({"1": [*range(4)]}), target="predicted"),
    }[what]
    with pytest.raises(ValueError, match="train mode"):
        run()
    assert torch.equal(torch.get_rng_state(), numbers)
    for name, each in model.state_dict().items():
        assert torch.equal(each, before[name])
