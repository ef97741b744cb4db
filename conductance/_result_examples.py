"""New results from others: chosen and joined examples, other devices and dtypes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from conductance._result_checks import JSON
    from conductance._result_layers import LayerInfo
    from conductance.results import TotalConductance

_NOT_PER_EXAMPLE = ("info", "settings")


def select(
    result: "TotalConductance", examples: int | slice | Sequence[int] | Sequence[bool] | Tensor
) -> "TotalConductance":
    """Keep some examples."""
    chosen = as_indices(examples, len(result.status))
    return _replace_examples(result, lambda value: _pick(value, chosen))


def move(
    result: "TotalConductance", device: torch.device | str | int | None, dtype: torch.dtype | None
) -> "TotalConductance":
    """Move every tensor to a device, and the floating-point ones to a dtype."""
    if dtype is not None and not dtype.is_floating_point:
        msg = f"dtype must be a floating-point dtype such as torch.float32, got {dtype}."
        raise TypeError(msg)

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device=device, dtype=dtype if value.is_floating_point() else None)

    return _replace_examples(result, moved)


def join(results: Sequence["TotalConductance"]) -> "TotalConductance":
    """Put the examples of results for the same hook points one after another."""
    _check_same_layers(results)
    names = per_example_fields(results[0])
    joined = {name: _join([getattr(each, name) for each in results]) for name in names}
    info = {layer: _join_info([each.info[layer] for each in results]) for layer in results[0]}
    settings = _join_settings([each.settings for each in results])
    return replace(results[0], **joined, info=info, settings=settings)


def per_example_fields(result: "TotalConductance") -> list[str]:
    """Names of the fields whose entries belong to examples."""
    return [field.name for field in fields(result) if field.name not in _NOT_PER_EXAMPLE]


def _replace_examples(result: "TotalConductance", change: Callable[[Any], Any]) -> "TotalConductance":
    """Change every tensor and tuple whose first axis is the examples."""
    changed: dict[str, Any] = {}
    for name in per_example_fields(result):
        value = getattr(result, name)
        if isinstance(value, dict):
            changed[name] = {layer: change(each) for layer, each in value.items()}
        else:
            changed[name] = change(value)
    return replace(result, **changed)


def as_indices(examples: int | slice | Sequence[int] | Sequence[bool] | Tensor, batch: int) -> list[int]:
    """Write a choice of examples as a list of indices from 0."""
    if isinstance(examples, slice):
        return list(range(batch)[examples])
    try:
        chosen = torch.as_tensor(examples)
    except (TypeError, ValueError, RuntimeError) as error:
        msg = f"examples must be integers, a slice or a mask of booleans, got {examples!r}."
        raise TypeError(msg) from error
    if chosen.dtype == torch.bool:
        if chosen.shape != (batch,):
            msg = f"A mask needs one entry for each of {batch} examples, got the shape {tuple(chosen.shape)}."
            raise IndexError(msg)
        return chosen.nonzero().flatten().tolist()
    if chosen.numel() and (chosen.is_floating_point() or chosen.is_complex() or chosen.ndim > 1):
        found = f"{chosen.dtype} of shape {tuple(chosen.shape)}"
        msg = f"examples must be integers, a slice or a mask of booleans, got {found}."
        raise TypeError(msg)
    indices: list[int] = chosen.flatten().tolist()
    outside = [index for index in indices if not -batch <= index < batch]
    if outside:
        msg = f"There is no example {outside[0]}: the result has {batch}, numbered from 0."
        raise IndexError(msg)
    return [int(index) % batch for index in indices]


def _pick(value: Any, chosen: list[int]) -> Any:
    """Entries of a tensor or a tuple."""
    if isinstance(value, Tensor):
        return value.index_select(0, torch.tensor(chosen, dtype=torch.int64, device=value.device))
    return None if value is None else tuple(value[index] for index in chosen)


def _check_same_layers(results: Sequence["TotalConductance"]) -> None:
    """Refuse to join results that differ in more than their examples."""
    for number, other in enumerate(results[1:], start=1):
        differences = list(_differences(results[0], other))
        if differences:
            found = "; ".join(differences)
            msg = f"Results to join need the same layers, but result {number} differs from result 0: {found}."
            raise ValueError(msg)


def _differences(first: "TotalConductance", other: "TotalConductance") -> Iterator[str]:
    """Say what keeps two results apart."""
    for layer in first:
        if layer not in other:
            yield f"{layer!r} is missing"
            continue
        for field in ("module_type", "shape", "unit_axis", "unit_groups"):
            before, now = getattr(first.info[layer], field), getattr(other.info[layer], field)
            if before != now:
                yield f"{layer!r} has {field} {now}, not {before}"
    yield from (f"{layer!r} is new" for layer in other if layer not in first)
    if (first.spread is None) != (other.spread is None):
        yield "only one has a spread over baselines"


def _join(values: Sequence[Any]) -> Any:
    """Concatenate tensors, dicts of them, or tuples."""
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat([value.to(first.device) for value in values])
    if isinstance(first, dict):
        return {layer: _join([value[layer] for value in values]) for layer in first}
    return None if first is None else tuple(entry for value in values for entry in value)


def _join_info(infos: Sequence["LayerInfo"]) -> "LayerInfo":
    """Join what may differ between batches of one model: its graph may depend on the data."""
    return replace(
        infos[0],
        is_cut=all(info.is_cut for info in infos),
        moves=any(info.moves for info in infos),
        used=any(info.used for info in infos),
    )


def _join_settings(settings: Sequence[Mapping[str, "JSON"]]) -> "dict[str, JSON]":
    """Keep what agrees, add the seconds, list the rest."""
    joined: dict[str, JSON] = {}
    for name in dict.fromkeys(name for each in settings for name in each):
        entries = [each.get(name) for each in settings]
        seconds = [entry for entry in entries if isinstance(entry, int | float)]
        if name == "seconds" and len(seconds) == len(entries):
            joined[name] = sum(seconds)
        else:
            joined[name] = entries[0] if all(entry == entries[0] for entry in entries) else entries
    return joined
