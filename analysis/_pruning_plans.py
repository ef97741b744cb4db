"""How the units of each layer are held at their values by masks and biases: what to mask, and where constants go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from conductance.analysis._masks import Masks
from conductance.analysis._unit_weights import own_mask, reading_mask, unit_axis
from conductance.analysis._wiring import Maker, Reader, Wiring
from conductance.analysis.ablation import baseline_values
from conductance.baselines import Baseline
from conductance.errors import ConductanceError
from conductance.hooks import HookPoint, LayerSpec, ablate


@dataclass(frozen=True, eq=False)
class Plan:
    """How units of one layer are held.

    Attributes
    ----------
    layer, maker, units
        The units, and what makes them.
    values
        What they are held at, ``(units of the layer,)``.
    made
        What the maker must give for that, ``(units of the layer,)``; None where nothing does.
    readers
        Where the constants go instead, if they can.
    """

    layer: str
    maker: Maker
    units: list[int]
    values: Tensor
    made: Tensor | None
    readers: list[Reader] | None = None


def zero_plan(layer: str, maker: Maker, units: list[int]) -> Plan:
    """Units that are zero where the weights that make them are."""
    zeros = torch.zeros(maker.units)
    return Plan(layer, maker, units, zeros, zeros)


def found_plans(
    wiring: Wiring,
    makers: dict[str, Maker],
    units: dict[str, list[int]],
    value: Literal["zero", "baseline"],
    baselines: Baseline | list[Any],
    path_from: LayerSpec,
) -> list[Plan]:
    """Find out for each layer how its units can be held."""
    names = list(dict.fromkeys([*units, *(makers[layer].name for layer in units)]))
    axes = {layer: makers[layer].axis for layer in units}
    shapes = {name: wiring.clean.seen[name, "out"][0] for name in names}
    for name in set(names) - set(axes):
        axes[name] = unit_axis(wiring.makers[name], shapes[name].ndim)
    values = {name: shapes[name].new_zeros(shapes[name].shape[axis or 0]) for name, axis in axes.items()}
    if value == "baseline" and units:
        found = baseline_values(wiring.model, wiring.inputs, names, baselines=baselines, path_from=path_from)
        values = {name: _per_unit(found[name], (axes[name] or 0) - 1) for name in names}
    plans = [Plan(layer, makers[layer], chosen, values[layer], None) for layer, chosen in units.items()]
    with plans_held(wiring.model, plans):
        held, shaken = wiring.run(reading=True), wiring.shaken()
    return [_found(wiring, plan, values[plan.maker.name], (held, shaken), value) for plan in plans]


def _found(wiring: Wiring, plan: Plan, at_baseline: Tensor, held: Any, value: str) -> Plan:
    ways = [plan.values, at_baseline] if value == "baseline" else [plan.values]
    made = next((way for way in ways if wiring.passes(plan.maker, plan.layer, plan.units, way, plan.values)), None)
    readers = None
    if value == "baseline" or made is None:
        readers = wiring.readers(plan.maker, plan.layer, plan.units, *held)
    return Plan(plan.layer, plan.maker, plan.units, plan.values, made, readers)


@contextmanager
def plans_held(model: nn.Module, plans: list[Plan]) -> Iterator[None]:
    """Hold the units of all plans at their values, by `hooks.ablate`."""
    points = {HookPoint(plan.layer, unit_axis=plan.maker.axis): plan for plan in plans}
    units = {point: plan.units for point, plan in points.items()}
    with ablate(model, units, {point: plan.values for point, plan in points.items()}):
        yield


def apply_plans(model: nn.Module, plans: list[Plan], masks: Masks) -> dict[str, tuple[str, ...]]:
    """Put masks on the weights and constants into biases; gives by layer the modules that took its constants."""
    folded = {plan.layer: names for plan in plans if (names := _fold(model, plan, masks)) is not None}
    # rows last: a layer that takes constants up and is pruned itself must not add them to a bias that is set here
    for plan in plans:
        if plan.layer not in folded and plan.made is None:
            raise ConductanceError(_cannot(plan))
        _mask_rows(model, plan, masks, folded=plan.layer in folded)
    return folded


def _fold(model: nn.Module, plan: Plan, masks: Masks) -> tuple[str, ...] | None:
    """Move constants into the biases of what reads them; None where that is not exact."""
    if plan.readers is None:
        return None
    added = [_added(model.get_submodule(reader.name), reader.constants) for reader in plan.readers]
    if any(each is None for each in added):
        return None
    for reader, each in zip(plan.readers, added, strict=True):
        module = model.get_submodule(reader.name)
        masks.mask(module, "weight", reading_mask(module, reader.columns))
        if each is not None and bool(each.any()):
            masks.add_to_bias(module, each)
    return tuple(reader.name for reader in plan.readers)


def _added(module: nn.Module, constants: Tensor) -> Tensor | None:
    """What constant inputs add to each unit; None if that depends on the position, as at a border of zeros."""
    with torch.no_grad():
        added = module.forward(constants) - module.forward(torch.zeros_like(constants))
    rows = added.movedim(unit_axis(module, added.ndim), 0).flatten(1)
    rounding = torch.finfo(rows.dtype).eps ** 0.5
    uniform = (rows - rows[:, :1]).abs().max() <= rounding * rows.abs().max()
    return rows[:, 0] if bool(uniform) else None


def _mask_rows(model: nn.Module, plan: Plan, masks: Masks, *, folded: bool) -> None:
    """Mask what makes the units; their biases too, unless these keep the constants."""
    constants = None if folded or plan.made is None or not bool(plan.made[plan.units].any()) else plan.made
    for name in (plan.maker.name, *plan.maker.behind):
        module = model.get_submodule(name)
        masks.mask(module, "weight", own_mask(module, plan.units))
        if constants is not None and name == plan.maker.name:
            masks.set_bias(module, plan.units, constants[plan.units])
        elif (bias := getattr(module, "bias", None)) is not None:
            kept = torch.ones_like(bias)
            kept[plan.units] = 0
            masks.mask(module, "bias", kept)


def _per_unit(value: Tensor, axis: int) -> Tensor:
    """Mean over positions, ``(units,)``."""
    return value.movedim(axis, 0).flatten(1).mean(1) if value.ndim > 1 else value


def _cannot(plan: Plan) -> str:
    if plan.values[plan.units].any():
        why = "its constants can neither move into the biases of what reads them nor into that of the maker"
    else:
        why = f"it is not zero where {plan.maker.name!r} is zero"
    return (
        f"the units of {plan.layer!r} cannot be held by masks on {plan.maker.name!r}, which makes them: {why}; rank "
        f"{plan.maker.name!r} itself, or hold the units by hooks.ablate"
    )
