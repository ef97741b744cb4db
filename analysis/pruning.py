"""Units pruned by masks: their weights multiplied by 0, as ``torch.nn.utils.prune`` does, nothing taken out.

A pruned unit is held at zero, or at its activation at the baseline. The model with its masks then computes what it
computes under `hooks.ablate` with the same units and values, so that what an ablation said of them stays true.

At zero, the row of weights and the bias that make the unit are masked; behind a batch norm, those of the norm too. At
the baseline, what the constant adds in each layer that reads the unit moves into that layer's bias, ``b + W[:, u] c``,
and the column ``W[:, u]`` is masked: the unit could be taken out. Where that cannot be exact (a residual sum, which
reads more than the unit; a convolution that pads with zeros, whose border lacks the constant), the constant moves into
the bias that makes the unit instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from conductance._outputs import chosen
from conductance.analysis._masks import Masks
from conductance.analysis._pruning_plans import Plan, apply_plans, found_plans, plans_held, zero_plan
from conductance.analysis._rankings import checked_ranking, ranked_layers
from conductance.analysis._sequences import maker_before
from conductance.analysis._wiring import Maker, Wiring, evaluated
from conductance.arguments import Inputs
from conductance.baselines import Baseline
from conductance.errors import ConductanceError, UnknownLayerError, check_choice
from conductance.hooks import HookPoint, LayerSpec
from conductance.loaders import called

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class PrunedUnits:
    """Units that are masked in a model; leaving it as a context, or `undo`, puts the model back.

    Attributes
    ----------
    units
        By layer the numbers of its masked units.
    values
        By layer what they are held at, ``(units of the layer,)``.
    folded
        By layer the modules whose biases have taken its constants up. The units of such a layer, and all that are held
        at zero, could be taken out of the model; a layer pruned at the baseline that is missing here has its constants
        in the bias of the module that makes its units.
    """

    units: dict[str, list[int]]
    values: dict[str, Tensor]
    folded: dict[str, tuple[str, ...]]
    _masks: Masks

    @property
    def parameters(self) -> list[tuple[nn.Module, str]]:
        """Modules and names of the masked parameters; ``torch.nn.utils.prune.remove(*each)`` makes each mask final."""
        return self._masks.parameters

    def undo(self) -> None:
        """Put the weights, biases and masks of the modules concerned back as they were, bit for bit.

        Also after ``prune.remove``, and what these modules were trained since is lost. Masks that were put on them
        since go too: undoing those later does nothing to these modules. A second time does nothing.
        """
        self._masks.undo()

    def __enter__(self) -> PrunedUnits:
        """The masks are there already."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Put the model back."""
        self.undo()

    def __repr__(self) -> str:
        """Layers and how many units of each."""
        counts = ", ".join(f"{layer}: {len(units)} of {len(self.values[layer])}" for layer, units in self.units.items())
        return f"PrunedUnits({counts})"


def prune_units(
    model: nn.Module,
    ranking: pd.DataFrame,
    *,
    amount: float | Mapping[str, float],
    value: Literal["zero", "baseline"] = "zero",
    inputs: Inputs | None = None,
    baselines: Baseline | list[Any] = None,
    path_from: LayerSpec = None,
) -> PrunedUnits:
    """Mask the least important units of each ranked layer.

    Parameters
    ----------
    model
        It is changed: `PrunedUnits.undo` puts it back, ``torch.nn.utils.prune.remove`` makes masks final. It may have
        masks already, and may be in training mode.
    ranking
        A row for each unit of the layers to prune, most important first, columns ``layer`` and ``unit``, such as
        ``rank_units(result, top=None)`` gives. Layers are outputs of modules.
    amount
        Share of each layer's units, rounded to a whole number: 0 leaves a layer as it is, 1 masks all of it. Or shares
        by layer; a layer not in it is left.
    value
        ``"zero"`` holds the units at zero; ``"baseline"`` at their activation at the baseline: one constant for each
        unit, the mean over positions.
    inputs
        A batch as the model takes it, a small one will do: it is run to find out what makes and reads the units, and to
        check the result. Needed for ``"baseline"``; at zero only for layers without weights of their own that are not
        in a ``Sequential``, which is taken to be run as a whole.
    baselines, path_from
        As for `conductance.total_conductance`, for ``value="baseline"``.

    Returns
    -------
    PrunedUnits
        What was masked; it can be undone.

    Raises
    ------
    ValueError
        If an amount is outside 0 to 1, ``value`` unknown, ``inputs`` missing, or the ranking incomplete, of another
        model, or of tensors that are no module's output.
    TypeError
        If the model is no module or the ranking no table.
    UnknownLayerError
        If the model has no such layer.
    ConductanceError
        If no weights make a layer's units, or no mask holds them at the value: an activation that is not zero at zero,
        units that are used in several places. The model is left as it was.

    Examples
    --------
    >>> import pandas as pd
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    >>> ranking = pd.DataFrame({"layer": "1", "unit": [3, 0, 2, 1]})
    >>> with prune_units(model, ranking, amount=0.5) as pruned:
    ...     print(pruned.units, model[1](model[0](torch.ones(2).double()))[[1, 2]].abs().tolist())
    {'1': [1, 2]} [0.0, 0.0]
    """
    check_choice("value", value, ("zero", "baseline"))
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, whose weights can be masked, got {type(model).__name__}")
    compiled = getattr(model, "_orig_mod", None)  # layers go by the names of the module that was compiled
    model = compiled if isinstance(compiled, nn.Module) else model
    layers = _modules(model, ranked_layers(ranking))
    shares = _shares(amount, layers)
    if value == "baseline" and inputs is None:
        raise ValueError("value='baseline' needs inputs, a batch as the model takes it: what reads the units is found "
                         "by running the model")  # fmt: skip
    if inputs is None:
        makers = {layer: maker_before(model, layer) for layer in layers}
        plans = [zero_plan(layer, makers[layer], units) for layer, units in _least(ranking, makers, shares).items()]
        return _masked(model, plans)
    with evaluated(model):
        wiring = Wiring(model, inputs, layers)
        makers = {layer: wiring.maker(layer) for layer in layers}
        plans = found_plans(wiring, makers, _least(ranking, makers, shares), value, baselines, path_from)
        with plans_held(model, plans):
            expected = chosen(called(model, inputs))
    pruned = _masked(model, plans)
    try:
        _check_same(wiring, plans, expected)
    except BaseException:
        pruned.undo()
        raise
    return pruned


def _masked(model: nn.Module, plans: list[Plan]) -> PrunedUnits:
    masks = Masks()
    try:
        folded = apply_plans(model, plans, masks)
    except BaseException:
        masks.undo()
        raise
    units = {plan.layer: plan.units for plan in plans}
    return PrunedUnits(units, {plan.layer: plan.values for plan in plans}, folded, masks)


def _check_same(wiring: Wiring, plans: list[Plan], expected: Tensor) -> None:
    """Refuse masks under which the model does not compute what it computes with the units held."""
    with evaluated(wiring.model):
        found = chosen(called(wiring.model, wiring.inputs))
    if not wiring.same(found, expected, wiring.clean.output):
        layers = ", ".join(repr(plan.layer) for plan in plans)
        most = float((found - expected).abs().max())
        raise ConductanceError(
            f"masks for {layers} change the output by up to {most:.2g} more than holding the units does: the weights "
            "that make them also make others, or are read elsewhere (a module that is used twice, a tensor before the "
            "ranked layer that something else reads); rank the layers whose weights make the units, or hold the units "
            "by hooks.ablate"
        )


def _modules(model: nn.Module, layers: list[str]) -> list[str]:
    """Refuse layers that are not the outputs of modules."""
    known = dict(model.named_modules())
    for layer in layers:
        if layer in known:
            continue
        point = HookPoint.parse(layer) if isinstance(layer, str) else None
        if point is None or point.module not in known:
            raise UnknownLayerError(layer, [name for name in known if name])
        raise ValueError(
            f"ranking has layer {layer!r}, one tensor or call of a module; masks hold in every call: rank units of the "
            "output of a module that makes them"
        )
    return layers


def _shares(amount: Any, layers: list[str]) -> dict[str, float]:
    """The share of each layer, checked."""
    given = dict(amount) if isinstance(amount, Mapping) else dict.fromkeys(layers, amount)
    for layer, share in given.items():
        if layer not in layers:
            raise ValueError(f"amount names layer {layer!r}, which is not in the ranking; it has {', '.join(layers)}")
        if isinstance(share, bool) or not isinstance(share, Real):
            raise TypeError(f"amount must be a share from 0 to 1, or shares by layer, got {share!r}")
        if not 0 <= float(share) <= 1:
            raise ValueError(f"amount must be a share from 0 to 1, got {share}; 0.3 masks 30 % of each layer's units")
    return {layer: float(share) for layer, share in given.items()}


def _least(ranking: pd.DataFrame, makers: dict[str, Maker], shares: dict[str, float]) -> dict[str, list[int]]:
    """The least important units of each layer; layers of which none is pruned are left out."""
    order = checked_ranking(ranking, {layer: maker.units for layer, maker in makers.items()}, whole=True)
    counts = {layer: round(share * makers[layer].units) for layer, share in shares.items()}
    return {layer: sorted(order[layer][-count:]) for layer, count in counts.items() if count}
