"""What units do, by holding them: single effects, and what is left of a model as more and more units are held.

The effect of unit ``u`` on an example is ``F(x) - F(x with h_u held)``: at zero, or at ``h_u(x')``, the unit's own
activation at the baseline input, at each position. Unlike zero, the latter is a value that the rest of the model meets.

An ablation curve holds the units of a ranking one after another. The better a ranking, the faster the score falls
with the most important units first, and the slower with the least important ones first; random orders lie between.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from conductance._outputs import classes_of, everything
from conductance._progress import progress_bar
from conductance._result_layers import counted
from conductance.analysis._ablation_sets import FIRST as FIRST
from conductance.analysis._ablation_sets import LAST as LAST
from conductance.analysis._ablation_sets import CurveSets, SingleUnits, check_count, wanted_units
from conductance.analysis._rankings import ranked_layers
from conductance.analysis._values import check_single, check_table
from conductance.baselines import Baseline
from conductance.errors import UnknownLayerError, check_choice
from conductance.hooks import LayerSpec
from conductance.interventions import Reading, interventions
from conductance.loaders import Batch
from conductance.targeting import Target, TargetFunction

if TYPE_CHECKING:
    import pandas as pd

#: What units can be held at.
VALUES = ("baseline", "zero")


@dataclass(frozen=True, eq=False, repr=False)
class UnitEffects(Mapping[str, Tensor]):
    """What each unit does to the target of each example, as `unit_effects` gives it.

    Attributes
    ----------
    effects
        By layer ``(examples, units)``: F(x) − F(x with the unit held).
    units
        By layer the number of each unit, ``(units,)`` int64.
    output
        F(x), ``(examples,)``.
    value
        What the units were held at.
    """

    effects: dict[str, Tensor]
    units: dict[str, Tensor]
    output: Tensor
    value: str

    def __getitem__(self, layer: str) -> Tensor:
        """Effects of the units of a layer, ``(examples, units)``."""
        if layer not in self.effects:
            raise UnknownLayerError(layer, self.effects)
        return self.effects[layer]

    def __iter__(self) -> Iterator[str]:
        """Names of the layers."""
        return iter(self.effects)

    def __len__(self) -> int:
        """Number of layers."""
        return len(self.effects)

    def __repr__(self) -> str:
        """Layers and sizes."""
        layers = ", ".join(f"{name}: {counted(len(units), 'unit')}" for name, units in self.units.items())
        return f"UnitEffects({counted(len(self.output), 'example')}, held at {self.value}, {layers})"

    def to_dataframe(self) -> "pd.DataFrame":
        """One row a layer, unit and example: columns ``layer``, ``unit``, ``example``, ``effect``."""
        import pandas as pd

        tables = []
        for layer, values in self.effects.items():
            examples, units = values.shape
            columns = {
                "layer": layer,
                "unit": np.repeat(self.units[layer].cpu().numpy(), examples),
                "example": np.tile(np.arange(examples), units),
                "effect": values.T.reshape(-1).cpu().double().numpy(),
            }
            tables.append(pd.DataFrame(columns))
        table = pd.concat(tables, ignore_index=True)
        table.attrs["value"] = self.value
        return table


def baseline_values(
    model: Callable[..., Any],
    inputs: Any,
    layers: LayerSpec = None,
    *,
    baselines: Baseline | list[Any] = None,
    path_from: LayerSpec = None,
    internal_batch_size: int | None = None,
) -> dict[str, Tensor]:
    """Activation of layers at the baseline, as a constant to hold units at.

    Parameters
    ----------
    model, layers, path_from
        As for `conductance.total_conductance`.
    inputs
        A tensor ``(examples, …)``, a tuple of positional or a dict of keyword inputs.
    baselines
        Where paths would start, as for total conductance; of several the mean is taken. None is zero.
    internal_batch_size
        Rows of a call at most.

    Returns
    -------
    dict
        By hook point its activation at the baseline, of the layer's shape without the batch axis; the mean over
        the examples where it is not the same for all of them.

    Raises
    ------
    ValueError, TypeError, ConductanceError
        As for total conductance.

    Examples
    --------
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    >>> values = baseline_values(model, torch.ones(4, 2), "0")
    >>> bool((values["0"] == model[0].bias).all())
    True
    """
    # alone in a tuple nothing of a dict is taken for labels
    only = (tuple(inputs) if isinstance(inputs, list) else inputs,)
    with interventions(
        model, [only], layers, target=everything,
        baselines=baselines, path_from=path_from, internal_batch_size=internal_batch_size,
    ) as (runner, each):  # fmt: skip
        batch, _ = next(each)
        sums = runner.baseline_values(batch, baselines)
        kinds = {info.name: info.dtype for info in runner.points}
    return {name: (total / len(batch)).to(kinds[name]) for name, total in sums.items()}


def unit_effects(
    model: Callable[..., Any],
    loader: Iterable[Any],
    layers: LayerSpec = None,
    *,
    target: Target | str,
    value: Literal["baseline", "zero"] = "baseline",
    baselines: Baseline | list[Any] = None,
    units: Mapping[str, Sequence[int]] | Sequence[int] | None = None,
    path_from: LayerSpec = None,
    internal_batch_size: int | None = None,
    progress: bool = False,
) -> UnitEffects:
    """What each unit does, by holding one at a time: F(x) − F(x with the unit held).

    Parameters
    ----------
    model, layers, path_from
        As for `conductance.total_conductance`. The model is in eval mode, and its rows know nothing of each other.
    loader
        Batches as a ``DataLoader`` gives them: inputs, or pairs of inputs and labels.
    target
        ``"label"``, ``"predicted"``, a class, or any other target that means the same in each batch.
    value
        What a unit is held at: ``"baseline"``, its activation at each example's baseline (the mean of several
        baselines), at each position; or ``"zero"``.
    baselines
        Where paths would start, for ``value="baseline"``. None is zero.
    units
        Numbers of the units, by layer, or a list of them where there is one layer. None is all.
    internal_batch_size
        Rows of a call at most; None chooses by the size of the layers.
    progress
        Show a progress bar.

    Returns
    -------
    UnitEffects
        By layer ``(examples, units)``, in the order of the loader.

    Raises
    ------
    ValueError, TypeError, ConductanceError
        For an argument that cannot be used, an empty loader, and as for total conductance.

    Notes
    -----
    Rows of many examples and units run together, forward only; what lies before a layer is computed once for all units
    where the model lets it.

    Examples
    --------
    In a linear model a unit's effect is its weight times its distance from the baseline.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False)).double()
    >>> x = torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=torch.float64)
    >>> effects = unit_effects(model, [x], "0", target=0)
    >>> bool((effects["0"] - model[0](x) * model[1].weight).abs().max() < 1e-12)
    True
    """
    check_choice("value", value, VALUES)
    found: dict[str, list[Tensor]] = {}
    outputs = []
    with interventions(
        model, loader, layers, target=target, baselines=baselines, path_from=path_from,
        internal_batch_size=internal_batch_size,
    ) as (runner, each), progress_bar(progress, "ablation", "example") as bar:  # fmt: skip
        wanted = wanted_units(units, runner.layers)
        for batch, function in each:
            examples = runner.on(batch, baselines=baselines, value=value)
            outputs.append(examples.untouched(function))
            for layer, numbers in wanted.items():
                # the first set holds nothing: differences are taken within one call as far as can be
                sets = SingleUnits(layer, numbers, runner.layers[layer].units)
                values = examples.held(len(numbers) + 1, sets, function)
                found.setdefault(layer, []).append((values[:1] - values[1:]).T)
            bar.update(len(batch))
    effects = {layer: torch.cat(parts) for layer, parts in found.items()}
    return UnitEffects(effects, wanted, torch.cat(outputs), value)


def ablation_curve(
    model: Callable[..., Any],
    loader: Iterable[Any],
    ranking: "pd.DataFrame",
    *,
    target: Target | str = "label",
    value: Literal["baseline", "zero"] = "baseline",
    baselines: Baseline | list[Any] = None,
    steps: int | Sequence[float] | None = None,
    random: int = 5,
    seed: int = 0,
    layers: LayerSpec = None,
    path_from: LayerSpec = None,
    internal_batch_size: int | None = None,
    progress: bool = False,
) -> "pd.DataFrame":
    """What is left of a model as its units are held, more and more of them, in the order of a ranking.

    Parameters
    ----------
    model, loader, target, value, baselines, path_from, internal_batch_size, progress
        As for `unit_effects`.
    ranking
        A row a unit, the most important first, columns ``layer`` and ``unit``: all units of one layer or of several,
        such as ``rank_units(result, top=None)``. Units of several layers are held together.
    steps
        Number of points, both ends included, or the shares of units held at each; 0 and 1 are added. None is each
        unit up to 20, else every 20th part.
    random
        Number of random orders.
    seed
        Of the first random order; the others follow. They do not depend on the ranking.
    layers
        What the names in the ranking mean, where they do not say it all: points with a unit axis of their own, or with
        groups of units such as heads.

    Returns
    -------
    pandas.DataFrame
        Columns ``order`` ("most important first", "least important first", "random"), ``seed`` (of a random order,
        else −1), ``ablated`` (units held), ``share`` of all units, ``score`` (mean of the target over all examples)
        and ``accuracy`` (share of examples whose largest output is the label; NaN without labels, or with one output
        alone). With no units held it is the model as it is. ``attrs`` has ``examples``, ``units``, ``value`` and
        ``area``: by order, the mean area below score and accuracy (see `curve_area`).

    Raises
    ------
    ValueError
        If the ranking does not hold each unit of its layers once, or an argument is out of range.
    ValueError, TypeError, ConductanceError
        As for `unit_effects`.

    Examples
    --------
    >>> import pandas as pd
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Identity(), nn.Flatten())
    >>> x = torch.tensor([[4.0, 1.0, 2.0]])
    >>> ranking = pd.DataFrame({"layer": "0", "unit": [0, 2, 1]})
    >>> curve = ablation_curve(model, [x], ranking, target=lambda output: output.sum(1), random=0)
    >>> curve[["order", "ablated", "score"]]
                       order  ablated  score
    0   most important first        0    7.0
    1   most important first        1    3.0
    2   most important first        2    1.0
    3   most important first        3    0.0
    4  least important first        0    7.0
    5  least important first        1    6.0
    6  least important first        2    4.0
    7  least important first        3    0.0
    """
    check_choice("value", value, VALUES)
    check_count("random", random, 0)
    named = ranked_layers(ranking)
    with interventions(
        model, loader, named if layers is None else layers, target=target, baselines=baselines, path_from=path_from,
        internal_batch_size=internal_batch_size,
    ) as (runner, each), progress_bar(progress, "ablation", "example") as bar:  # fmt: skip
        plan = CurveSets.of(ranking, runner.layers, steps, random, seed)
        totals, count = np.zeros((len(plan.sets) + 2, 2)), 0
        for batch, function in each:
            examples = runner.on(batch, baselines=baselines, value=value)
            reading = _score_and_accuracy(function, batch)
            whole = examples.untouched(reading)[None]
            held = examples.held(len(plan.sets) + 1, plan, reading)
            totals += torch.cat([whole, held]).double().sum(1).cpu().numpy()
            count += len(batch)
            bar.update(len(batch))
    curve = plan.table(totals / count)
    area = curve_area(curve).groupby("order", sort=False)[["score", "accuracy"]].mean()
    curve.attrs.update(examples=count, units=plan.total, value=value, area=area.to_dict("index"))
    return curve


def curve_area(curve: "pd.DataFrame") -> "pd.DataFrame":
    """Area below the curves of an ablation, by trapezoids over the share of units held.

    Parameters
    ----------
    curve
        What `ablation_curve` returned.

    Returns
    -------
    pandas.DataFrame
        One row an order: ``order``, ``seed``, and the areas ``score`` and ``accuracy``. A ranking is the better, the
        smaller the area with the most important first, and the larger with the least important first.

    Raises
    ------
    TypeError
        If it is no table.
    ValueError
        If the table lacks a column, has no rows, or has several curves of one order and seed.

    Examples
    --------
    >>> import pandas as pd
    >>> curve = pd.DataFrame({"order": "random", "seed": 3, "share": [0.0, 0.5, 1.0], "score": [4.0, 2.0, 0.0],
    ...                       "accuracy": [1.0, 1.0, 0.0]})
    >>> curve_area(curve)
        order  seed  score  accuracy
    0  random     3    2.0      0.75
    """
    import pandas as pd

    check_table(curve, ("order", "seed", "share", "score", "accuracy"), "curve", "ablation_curve")
    rows = []
    check_single(curve, ("order", "seed", "share"), "curve", "several rankings in one? Give one ranking's at a time")
    for (order, seed), own in curve.groupby(["order", "seed"], sort=False, dropna=False):
        part = own.sort_values("share")  # in another order areas are wrong, down to their sign
        shares = torch.tensor(part["share"].to_numpy(float))
        areas = {
            name: float(torch.trapezoid(torch.tensor(part[name].to_numpy(float)), shares))
            for name in ("score", "accuracy")
        }
        rows.append({"order": order, "seed": seed, **areas})
    return pd.DataFrame(rows)


def _score_and_accuracy(function: TargetFunction, batch: Batch) -> Reading:
    labels = batch.labels

    def reading(output: Any, rows: Tensor) -> Tensor:
        score = function(output, rows)
        right = torch.full_like(score, torch.nan)
        scores = None if labels is None or labels.dim() != 1 or labels.is_floating_point() else classes_of(output)
        if labels is not None and scores is not None:
            right = (scores.argmax(1) == labels[rows.to(labels.device)].to(scores.device)).to(score)
        return torch.stack([score, right], 1)

    return reading
