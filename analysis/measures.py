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

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from conductance.analysis._measure_batches import MEASURES, Options, values_by_batch
from conductance.arguments import Inputs
from conductance.baselines import Baseline
from conductance.errors import check_choice
from conductance.hooks import LayerSpec
from conductance.targeting import Target

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MEASURES", "measure_values", "unit_scores"]


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
    chosen = MEASURES if measures is None else (measures,) if isinstance(measures, str) else tuple(measures)
    options = Options(chosen, baselines, path_from, rtol, n_steps, norm, seed, internal_batch_size)
    parts = list(values_by_batch(model, inputs, layers, target, options, progress=progress))
    return {
        measure: {layer: torch.cat([part[measure][layer] for part in parts]) for layer in parts[0][measure]}
        for measure in options.measures
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
    import pandas as pd

    check_choice("measure", measure, MEASURES)
    check_choice("by", by, ("mean_abs", "mean"))
    options = Options((measure,), baselines, path_from, rtol, n_steps, norm, seed, internal_batch_size)
    sums: dict[str, Tensor] = {}
    examples = 0
    for part in values_by_batch(model, inputs, layers, target, options, progress=progress):
        for layer, values in part[measure].items():
            sums[layer] = sums.get(layer, 0) + (values.abs() if by == "mean_abs" else values).sum(0)
        examples += len(values)
    columns = {
        "layer": [layer for layer, of in sums.items() for _ in range(len(of))],
        "unit": [unit for of in sums.values() for unit in range(len(of))],
        "score": torch.cat([*sums.values()]).numpy() / examples,
    }
    table = pd.DataFrame(columns).astype({"layer": str})
    table = table.sort_values("score", ascending=False, kind="stable").reset_index(drop=True)
    table.attrs.update(measure=measure, by=by, examples=examples)
    return table
