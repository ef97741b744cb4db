"""Units scored by conductance and by its rivals, and which of them tells the true effect of a unit.

Each measure gives one signed number for each example and unit, positions summed; the score of a unit is the mean of
the absolute values over examples (or of the values). With ``h`` a unit's activation at the input ``x``, ``h'`` at the
baseline ``x'`` and ``g = dF/dh``:

=======================  =====================================================================================
conductance              ``∫ g dh`` along the path (Dhamdhere, Sundararajan and Yan, 1805.12233)
gradient_x_difference    ``g(x) (h - h')``
gradient_x_activation    ``g(x) h``
activation               ``h``
internal_influence       ``∫ g da`` along the path (Leino et al., 1802.03788), by Captum
deeplift                 multiplier times ``h - h'`` (Shrikumar, Greenside and Kundaje, 1704.02685), by Captum
weight_magnitude         norm of the weights that lead into the unit (Li et al., 1608.08710)
random                   a normal number for each unit, from a seed
=======================  =====================================================================================
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from conductance.analysis._measure_agreement import agreement, correlation
from conductance.analysis._measure_batches import MEASURES, Options, values_by_batch
from conductance.analysis._values import as_floats
from conductance.analysis.ablation import FIRST, LAST, ablation_curve, curve_area, unit_effects
from conductance.arguments import Inputs
from conductance.baselines import Baseline
from conductance.errors import ConductanceError, check_choice
from conductance.hooks import LayerSpec
from conductance.loaders import SameBatches, repeatable
from conductance.targeting import Target

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MEASURES", "compare_measures", "measure_values", "unit_scores"]

#: How the values of a unit become its score.
BY = ("mean_abs", "mean")
#: What `compare_measures` says of a measure.
COLUMNS = (
    "pearson",
    "spearman",
    "example_pearson",
    "unit_pearson",
    "area_first",
    "area_last",
    "accuracy_first",
    "accuracy_last",
    "seconds",
)


def measure_values(
    model: Callable[..., Any],
    inputs: Inputs | Iterable[Any],
    layers: LayerSpec,
    *,
    target: Target | str,
    measures: Sequence[str] | str | None = None,
    baselines: Baseline | list[Any] = None,
    path_from: LayerSpec = None,
    rtol: float | None = None,
    n_steps: int = 128,
    norm: Literal["l1", "l2"] = "l2",
    seed: int = 0,
    internal_batch_size: int | None = None,
    progress: bool = False,
) -> dict[str, dict[str, Tensor]]:
    """Score every unit in every example, by several measures.

    Parameters
    ----------
    model
        As for `conductance.total_conductance`.
    inputs
        A tensor, tuple or dict as the model takes it; or a loader of batches (a ``DataLoader``, or a list).
    layers
        As for `conductance.total_conductance`.
    target
        An index, a callable, ``"predicted"`` or, for a loader that gives labels, ``"label"``.
    measures
        Some of `MEASURES`; None is all.
    baselines, path_from, rtol
        As for `conductance.total_conductance`; over several baselines every measure is the mean.
    n_steps
        Places on the path for internal influence. On networks with kinks, each jump of the gradient along the path
        counts wrong by at most ``1 / (2 n_steps)`` of its size.
    norm
        Of the weights that lead into a unit: ``"l2"`` or ``"l1"``.
    seed
        Of ``"random"``; a layer's numbers do not depend on the other layers.
    internal_batch_size
        Most rows of one model call.
    progress
        Show a progress bar over batches.

    Returns
    -------
    dict
        For each measure and layer a tensor ``(examples, units)``, signed, positions summed, float64. Those of
        "weight_magnitude" and "random" are the same for all examples.

    Raises
    ------
    ValueError, TypeError
        For an argument that cannot be used; the message names it.
    ConductanceError
        If a measure does not exist for the model: weights of a layer that has none; what Captum cannot see.

    Examples
    --------
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Hardtanh(-9, 1)).double()
    >>> _ = nn.init.constant_(model[0].weight, 2.0)
    >>> x = torch.ones(1, 1).double()
    >>> found = measure_values(
    ...     model, x, "0", target=0, measures=["conductance", "gradient_x_activation", "internal_influence"]
    ... )
    >>> {measure: round(layers["0"].item(), 6) for measure, layers in found.items()}
    {'conductance': 1.0, 'gradient_x_activation': 0.0, 'internal_influence': 0.5}
    """
    chosen = _chosen(measures)
    options = Options(chosen, baselines, path_from, rtol, n_steps, norm, seed, internal_batch_size)
    parts = list(values_by_batch(model, inputs, layers, target, options, progress=progress))
    return {
        measure: {layer: torch.cat([part[measure][layer] for part in parts]) for layer in parts[0][measure]}
        for measure in chosen
    }


def unit_scores(
    model: Callable[..., Any],
    inputs: Inputs | Iterable[Any],
    layers: LayerSpec,
    measure: str,
    *,
    target: Target | str,
    by: Literal["mean_abs", "mean"] = "mean_abs",
    baselines: Baseline | list[Any] = None,
    path_from: LayerSpec = None,
    rtol: float | None = None,
    n_steps: int = 128,
    norm: Literal["l1", "l2"] = "l2",
    seed: int = 0,
    internal_batch_size: int | None = None,
    progress: bool = False,
) -> "pd.DataFrame":
    """Rank all units of some layers by one measure, highest score first.

    Parameters
    ----------
    model, inputs, layers, target, baselines, path_from, rtol, n_steps, norm, seed, internal_batch_size, progress
        As for `measure_values`.
    measure
        One of `MEASURES`.
    by
        ``"mean_abs"`` scores a unit by the mean over examples of the absolute value (of its sum over positions);
        ``"mean"`` by the signed mean.

    Returns
    -------
    pandas.DataFrame
        A ranking: ``layer``, ``unit``, ``score``, one row for each unit. Ties stay in forward order. ``attrs`` has
        ``measure``, ``by`` and ``examples``.

    Raises
    ------
    ValueError, TypeError, ConductanceError
        As for `measure_values`.

    Examples
    --------
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Identity())
    >>> x = torch.tensor([[1.0, -4.0, 2.0], [3.0, 2.0, 2.0]])
    >>> unit_scores(model, x, "0", "activation", target=0)
      layer  unit  score
    0     0     1    3.0
    1     0     0    2.0
    2     0     2    2.0
    """
    check_choice("measure", measure, MEASURES)
    check_choice("by", by, BY)
    options = Options((measure,), baselines, path_from, rtol, n_steps, norm, seed, internal_batch_size)
    sums: dict[str, Tensor] = {}
    examples = 0
    for part in values_by_batch(model, inputs, layers, target, options, progress=progress):
        for layer, values in part[measure].items():
            sums[layer] = sums.get(layer, 0) + (values.abs() if by == "mean_abs" else values).sum(0)
        examples += len(next(iter(part[measure].values())))
    return _ranking({layer: of / examples for layer, of in sums.items()}, measure=measure, by=by, examples=examples)


def compare_measures(
    model: Callable[..., Any],
    loader: Iterable[Any],
    layer: LayerSpec,
    *,
    target: Target | str,
    measures: Sequence[str] | str | None = None,
    by: Literal["mean_abs", "mean"] = "mean_abs",
    value: Literal["baseline", "zero"] = "baseline",
    baselines: Baseline | list[Any] = None,
    path_from: LayerSpec = None,
    rtol: float | None = None,
    n_steps: int = 128,
    norm: Literal["l1", "l2"] = "l2",
    steps: int | Sequence[float] | None = None,
    seed: int = 0,
    internal_batch_size: int | None = None,
    progress: bool = False,
) -> "pd.DataFrame":
    """Judge measures of units by what happens when the units are held.

    The true effect of a unit on an example is ``F(x) - F(x with the unit held)``, see `unit_effects`.

    Parameters
    ----------
    model, target, baselines, path_from, rtol, n_steps, norm, seed, internal_batch_size
        As for `measure_values`.
    loader
        Batches, read once for the effects and twice for each measure: a ``DataLoader`` that does not shuffle, or a
        list.
    layer
        One hook point.
    measures
        Some of `MEASURES`; None is all.
    by
        How a measure scores units over all examples, see `unit_scores`.
    value
        What units are held at: their activation at the ``"baseline"``, or ``"zero"``.
    steps
        Points of the ablation curves, see `ablation_curve`.
    progress
        Show progress bars.

    Returns
    -------
    pandas.DataFrame
        One row a measure, in the order given: ``measure``; correlations of its signed values with the true effects,
        ``pearson`` and ``spearman`` over all pairs of example and unit, ``example_pearson``, the mean of those over the
        units of each example, and ``unit_pearson``, of the unit scores with the mean (absolute, as `by` says)
        effects; ``area_first`` and ``area_last``, the areas below the mean target as units are held with those of the
        highest score first, or last (the better, the smaller the one and the larger the other);
        ``accuracy_first`` and ``accuracy_last``, the same of the accuracy; ``seconds`` for the values.

        A measure that does not exist for the model has nan, and the reason in ``attrs["reasons"]``. A correlation
        with what is constant is nan. ``attrs`` also has ``layer``, ``examples``, ``units``, ``by`` and ``value``.

    Raises
    ------
    ValueError, TypeError
        For an argument that cannot be used; the message names it.
    ConductanceError
        If no effects can be measured.

    Examples
    --------
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False)).double()
    >>> x = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)).double()
    >>> table = compare_measures(model, [x], "1", target=0, measures=["gradient_x_difference", "deeplift"])
    >>> table[["measure", "pearson", "unit_pearson"]].round(6)
                     measure  pearson  unit_pearson
    0  gradient_x_difference      1.0           1.0
    1               deeplift      1.0           1.0
    """
    import pandas as pd

    check_choice("by", by, BY)
    chosen = _chosen(measures)
    options = Options(chosen, baselines, path_from, rtol, n_steps, norm, seed, internal_batch_size)
    batched = SameBatches(list(loader) if isinstance(loader, tuple) else repeatable(loader))
    same: dict[str, Any] = {"target": target, "baselines": baselines, "path_from": path_from, "value": value}
    same["internal_batch_size"] = internal_batch_size
    effects = unit_effects(model, batched, layer, progress=progress, **same)
    if len(effects) != 1:
        msg = f"layer must be one hook point, got {len(effects)}: {', '.join(effects)}."
        raise ValueError(msg)
    ((name, of_units),) = effects.items()
    true = as_floats(of_units)

    def row(measure: str) -> dict[str, Any]:
        started = time.perf_counter()
        parts = values_by_batch(model, batched, layer, target, replace(options, measures=(measure,)), progress=progress)
        values = as_floats(torch.cat([part[measure][name] for part in parts]))
        seconds = time.perf_counter() - started
        score, effect = (np.abs(each).mean(0) if by == "mean_abs" else each.mean(0) for each in (values, true))
        ranking = _ranking({name: torch.from_numpy(score)}, measure=measure, by=by, examples=len(values))
        curve = ablation_curve(model, batched, ranking, steps=steps, random=0, progress=progress, **same)
        unit = {"unit_pearson": correlation(score, effect)}
        return {**agreement(values, true), **unit, **_areas(curve), "seconds": seconds}

    rows, reasons = [], {}
    for measure in chosen:
        try:
            rows.append({"measure": measure, **row(measure)})
        except ConductanceError as error:
            rows.append({"measure": measure})
            reasons[measure] = str(error)
    table = pd.DataFrame(rows, columns=["measure", *COLUMNS])
    examples, units = true.shape
    table.attrs.update(layer=name, examples=examples, units=units, by=by, value=value, reasons=reasons)
    return table


def _chosen(measures: Sequence[str] | str | None) -> tuple[str, ...]:
    if measures is None:
        return MEASURES
    return (measures,) if isinstance(measures, str) else tuple(measures)


def _ranking(scores: dict[str, Tensor], **attrs: Any) -> "pd.DataFrame":
    """All units, highest score first; none of them can be NaN, which has no place in an order."""
    import pandas as pd

    for layer, of in scores.items():
        wrong = (~of.isfinite()).nonzero().flatten().tolist()
        if wrong:
            raise ConductanceError(
                f"unit {wrong[0]} of {layer!r} has score {float(of[wrong[0]])} by {attrs['measure']!r}, which has no "
                f"place in a ranking ({len(wrong)} of {len(of)} units): are there NaN or infinity in the weights, or "
                "numbers beyond the range of the dtype?"
            )

    columns = {
        "layer": [layer for layer, of in scores.items() for _ in range(len(of))],
        "unit": [unit for of in scores.values() for unit in range(len(of))],
        "score": torch.cat([*scores.values()]).numpy(),
    }
    table = pd.DataFrame(columns).astype({"layer": str})
    table = table.sort_values("score", ascending=False, kind="stable").reset_index(drop=True)
    table.attrs.update(attrs)
    return table


def _areas(curve: "pd.DataFrame") -> dict[str, float]:
    areas = {row["order"]: row for row in curve_area(curve).to_dict("records")}
    return {
        f"{name}_{end}": areas[order][column]
        for name, column in (("area", "score"), ("accuracy", "accuracy"))
        for end, order in (("first", FIRST), ("last", LAST))
    }
