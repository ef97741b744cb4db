"""Which measure of a unit tells what it does: correlations with true effects, ablation curves, label flips.

Digit networks of several seeds; every hidden activation layer; the target is the logit of the label, the baseline a
black image. Numbers as found: nothing here is chosen so that some measure wins.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from conductance import hooks
from conductance.analysis import MEASURES, baseline_values, compare_measures, measure_values, unit_effects
from tests.benchmarks import nets
from tests.benchmarks.tables import Row, Table

NETWORKS = ("mlp", "conv")
LAYERS = ("act1", "act2", "act3")
SEEDS = range(5)
#: The order by the true effects themselves.
ORACLE = "true effect"
_AREA = (
    "Area below the label's mean logit as units are held at their baseline values in the order of mean |value|; "
    "1 is the logit of the whole network; {} is better."
)
_ACCURACY = "Area below the accuracy on the same curves; {} is better."
_FLIPS = (
    "Share of the units to hold, those of the highest value for the digit first, before a digit that was right is "
    "wrong (all, if it never is); lower is better."
)


def run(*, quick: bool) -> Iterable[Table]:
    """Compare all measures, and tell medians and ranges over seeds."""
    images = 30 if quick else nets.TEST_IMAGES
    seeds = SEEDS[:2] if quick else SEEDS
    settings = [(name, layer, seed) for name in NETWORKS for layer in LAYERS for seed in seeds]
    found = pd.concat([_compared(*setting, images) for setting in settings], ignore_index=True)
    shapes = ", ".join(f"{name} {_units(found, name)}" for name in NETWORKS)
    told = f"{len(seeds)} seeds, {images} test digits; {shapes} units. Median over seeds (lowest to highest)."
    effect = "the true effect F(x) − F(x with the unit at its baseline value), F the label's logit"
    for column, title, text in (
        ("pearson", "Measures: correlation over all pairs of digit and unit", f"Pearson's, with {effect}."),
        ("spearman", "Measures: rank correlation over all pairs", f"Spearman's, with {effect}."),
        ("example_pearson", "Measures: correlation over the units of one digit", f"Mean of Pearson's, with {effect}."),
        (
            "unit_pearson",
            "Measures: correlation of scores",
            "Pearson's, of mean |value| with mean |effect| over units.",
        ),
        ("area_first", "Measures: ablation, most important first", _AREA.format("lower")),
        ("area_last", "Measures: ablation, least important first", _AREA.format("higher")),
        ("accuracy_first", "Measures: accuracy, most important first", _ACCURACY.format("lower")),
        ("accuracy_last", "Measures: accuracy, least important first", _ACCURACY.format("higher")),
        ("flips", "Measures: label flips", _FLIPS),
        ("seconds", "Measures: time", f"Seconds for the values of {images} digits in one batch."),
    ):
        yield Table(title, f"{text} {told}", _rows(found, column))


def _compared(name: str, layer: str, seed: int, images: int) -> pd.DataFrame:
    """One row a measure."""
    model, data = nets.trained(name, seed=seed), nets.digits()
    x, labels = data.test[:images], data.test_labels[:images]
    table = compare_measures(model, [(x, labels)], layer, target="label", seed=seed)
    with torch.no_grad():
        table[["area_first", "area_last"]] /= float(model(x).gather(1, labels[:, None]).mean())
    values = measure_values(model, x, layer, target=labels, seed=seed)
    values[ORACLE] = dict(unit_effects(model, [(x, labels)], layer, target="label"))
    flips = [
        {"measure": measure, "flips": _flips(model, layer, of[layer], x, labels)} for measure, of in values.items()
    ]
    table = table.merge(pd.DataFrame(flips), on="measure", how="right")
    return table.assign(network=name, layer=layer, units=values[ORACLE][layer].shape[1])


def _flips(model: nn.Module, layer: str, values: Tensor, x: Tensor, labels: Tensor) -> float:
    """Mean share of the units that are held, the highest values of each example first, when it turns wrong."""
    start = baseline_values(model, x, layer)[layer]
    order = values.argsort(dim=1, descending=True, stable=True)
    place = order.argsort(1)
    units = values.shape[1]
    with torch.no_grad():
        right = model(x).argmax(1) == labels
        needed = torch.full((len(x),), float(units))
        open_ = right.clone()
        for count in range(1, units + 1):
            mask = place < count
            with hooks.ablate(model, {hooks.HookPoint(layer, unit_axis=1): mask}, value=start):
                wrong = model(x).argmax(1) != labels
            needed[open_ & wrong] = count
            open_ &= ~wrong
    return float(needed[right].mean()) / units


def _units(found: pd.DataFrame, name: str) -> str:
    part = found[found["network"] == name].drop_duplicates("layer")
    return " / ".join(str(units) for units in part["units"])


def _rows(found: pd.DataFrame, column: str) -> list[Row]:
    rows: list[Row] = []
    for measure in (*MEASURES, ORACLE):
        of_measure: Any = found[found["measure"] == measure]
        if of_measure[column].isna().all():
            continue
        row: Row = {"measure": measure}
        for (name, layer), part in of_measure.groupby(["network", "layer"], sort=False):
            middle, low, high = (f"{value:.2f}" for value in np.quantile(part[column], (0.5, 0, 1)))
            row[f"{name} {layer}"] = f"{middle} ({low} to {high})"
        rows.append(row)
    return rows
