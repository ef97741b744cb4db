"""What the fields of a result have to satisfy."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from conductance.errors import check_choice

if TYPE_CHECKING:
    from conductance.results import TotalConductance

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

STATUSES = ("ok", "jump", "gradient", "budget", "precision", "interrupted")


def check_names(result: "TotalConductance") -> None:
    """Check that every per-layer field has the layers of ``conductance``."""
    layers = set(result.conductance)
    if not layers:
        msg = "A result needs at least one layer, got none."
        raise ValueError(msg)
    for field in ("unit_error", "error", "info", "spread"):
        found = getattr(result, field)
        if found is not None and set(found) != layers:
            missing, extra = sorted(layers - set(found)), sorted(set(found) - layers)
            msg = f"{field} must have the layers of conductance, but lacks {missing} and adds {extra}."
            raise ValueError(msg)
    for layer, info in result.info.items():
        if info.name != layer:
            msg = f"info[{layer!r}] has the name {info.name!r}, expected {layer!r}."
            raise ValueError(msg)


def check_examples(result: "TotalConductance") -> None:
    """Check that the per-example fields have one entry an example."""
    batch = len(result.status)
    for field in ("output", "baseline_output", "unattributed"):
        _check_tensor(field, getattr(result, field), (batch,))
    _check_tensor("evaluations", result.evaluations, (batch,), torch.int64)
    _check_tensor("converged", result.converged, (batch,), torch.bool)
    if len(result.jumps) != batch:
        msg = f"jumps has {len(result.jumps)} entries, expected one for each of {batch} examples."
        raise ValueError(msg)
    for status in result.status:
        check_choice("status", status, STATUSES)


def check_layers(result: "TotalConductance") -> None:
    """Check the per-layer tensors against the number of examples and the layer's `LayerInfo`."""
    batch = len(result.status)
    for layer, info in result.info.items():
        expected = {"conductance": (batch, *info.shape), "unit_error": (batch, info.units), "error": (batch,)}
        if result.spread is not None:
            expected["spread"] = (batch, *info.shape)
        for field, shape in expected.items():
            _check_tensor(f"{field}[{layer!r}]", getattr(result, field)[layer], shape)


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> None:
    """Check the shape of a tensor, its dtype (by default any floating-point one), and that it is detached."""
    if tensor.shape != shape:
        msg = f"{name} has shape {tuple(tensor.shape)}, expected {shape}; status has {shape[0]} examples."
        raise ValueError(msg)
    if tensor.dtype != dtype and not (dtype is None and tensor.is_floating_point()):
        msg = f"{name} has dtype {tensor.dtype}, expected {dtype or 'a floating-point dtype'}."
        raise TypeError(msg)
    if tensor.requires_grad:
        msg = f"{name} requires grad, but results are detached: pass {name}.detach()."
        raise ValueError(msg)


def as_json(settings: Mapping[str, Any]) -> dict[str, JSON]:
    """Copy the settings as a file would give them back, and refuse now what could not be saved later."""
    copy: dict[str, JSON] = {}
    for name, value in settings.items():
        try:
            copy[name] = json.loads(json.dumps(value))
        except (TypeError, ValueError) as error:
            kind = type(value).__name__
            msg = f"settings[{name!r}], a {kind}, is not JSON ({error}); describe it by numbers or a string."
            raise TypeError(msg) from error
    return copy
