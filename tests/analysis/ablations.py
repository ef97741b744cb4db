"""Ablation as one would write it down: one example, one unit, one hook at a time."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def at_baseline(model: nn.Module, layer: str, inputs: Any) -> Tensor:
    """Activation of a layer for some inputs, ``(examples, …)``."""
    kept: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _module, _args, output: kept.append(output))
    called(model, inputs)
    handle.remove()
    return kept[0]


def called(model: nn.Module, inputs: Any) -> Tensor:
    output: Tensor
    if isinstance(inputs, Mapping):
        output = model(**inputs)
    else:
        output = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return output


def rows_of(inputs: Any, n: int) -> Any:
    """One example."""
    if isinstance(inputs, Mapping):
        return {key: value[n : n + 1] for key, value in inputs.items()}
    return tuple(one[n : n + 1] for one in inputs) if isinstance(inputs, tuple) else inputs[n : n + 1]


def with_held(model: nn.Module, inputs: Any, held: Mapping[str, tuple[list[int], Any, int]]) -> Tensor:
    """Output with units held: by layer, their numbers, the value (a number or the layer's tensor), the unit axis."""
    handles = []
    for layer, (units, value, axis) in held.items():

        def put(
            _module: Any, _args: Any, output: Tensor, units: Any = units, value: Any = value, axis: int = axis
        ) -> Tensor:
            output = output.clone()
            for unit in units:
                place = (*(slice(None),) * axis, unit)
                output[place] = value[place] if isinstance(value, Tensor) else value
            return output

        handles.append(model.get_submodule(layer).register_forward_hook(put))
    try:
        return called(model, inputs)
    finally:
        for handle in handles:
            handle.remove()


def literal_effects(
    model: nn.Module, inputs: Any, layer: str, target: Any, *, start: Any = None, axis: int = 1
) -> Tensor:
    """What each unit does to output ``target`` (one, or one an example), ``(examples, units)``; ``start``: baseline."""
    count = len(target)
    rows = []
    for n in range(count):
        one = rows_of(inputs, n)
        value = 0.0 if start is None else at_baseline(model, layer, rows_of(start, n))
        units = at_baseline(model, layer, one).shape[axis]
        whole = called(model, one)[0, target[n]]
        rows.append(
            torch.stack(
                [whole - with_held(model, one, {layer: ([u], value, axis)})[0, target[n]] for u in range(units)]
            )
        )
    return torch.stack(rows)
