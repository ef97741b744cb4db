"""Gradients and activations of units at the ends of the path, for the measures that are products of them.

With ``h`` the activation at the input ``x``, ``h'`` that at the baseline ``x'`` and ``g = dF/dh`` at the input, a unit
is worth ``g (h - h')``, ``g h`` or ``h``, summed over its positions. One forward and backward pass at the inputs serves
all three; the first takes a forward pass at the baselines besides.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from conductance.hooks import HookPoint, capture
from conductance.results import LayerInfo
from conductance.running import Prepared, layer_info, layout_of

#: Rows of a call where the user names no number.
MOST_ROWS = 1024
#: Per layer ``(examples, units)``, float64.
Values: TypeAlias = dict[str, Tensor]
#: Made of the gradient at the input, the activation there and the one at the baseline.
PRODUCTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "gradient_x_difference": lambda gradient, end, start: gradient * (end - start),
    "gradient_x_activation": lambda gradient, end, _: gradient * end,
    "activation": lambda _, end, __: end,
}


@dataclass(frozen=True, eq=False)
class Tapped:
    """What one call delivers at each layer, examples first.

    Attributes
    ----------
    activations, gradients
        ``(rows, *layer shape)``; of the gradients, those that there are.
    """

    activations: dict[str, Tensor]
    gradients: dict[str, Tensor]


def end_values(ready: Prepared, measures: Sequence[str], rows: int) -> dict[str, Values]:
    """Values of the units of all layers by the measures that are products of gradient and activation.

    Parameters
    ----------
    ready
        The model and the inputs, in the state to run in.
    measures
        Names of measures; those that are none of `PRODUCTS` are passed over.
    rows
        Rows of a call at most, 0 for `MOST_ROWS`.
    """
    wanted = {name: PRODUCTS[name] for name in PRODUCTS if name in measures}
    if not wanted:
        return {}
    infos = infos_of(ready)
    parts: dict[str, dict[str, list[Tensor]]] = {name: {layer: [] for layer in infos} for name in wanted}
    several = ready.path.per_example
    for examples in chunks(ready, rows):
        ends = tapped(ready, examples * several, 1.0)
        starts = _starts(ready, examples) if "gradient_x_difference" in wanted else {}
        for layer, info in infos.items():
            h = ends.activations[layer]
            g = ends.gradients.get(layer)
            g = torch.zeros_like(h) if g is None else g
            for name, product in wanted.items():
                parts[name][layer].append(summed(info, product(g, h, starts.get(layer, h))))
    return {name: {layer: torch.cat(of) for layer, of in layers.items()} for name, layers in parts.items()}


def tapped(ready: Prepared, paths: Tensor, place: float, *, backward: bool = True) -> Tapped:
    """Run rows at one place of their paths, forward and, unless told otherwise, backward."""
    activations: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}

    def arrive(point: HookPoint, activation: Tensor) -> None:
        activations[point.name] = activation.movedim(point.batch_axis, 0)

    def return_(point: HookPoint, _: Tensor, gradient: Tensor) -> None:
        gradients[point.name] = gradient.movedim(point.batch_axis, 0)

    root = {"": ready.model} if isinstance(ready.model, nn.Module) else {}
    points = [info.point for info in ready.points]
    clone = [info.point for info in ready.points if info.in_place]
    rows = ready.path.rows(paths, torch.full((len(paths),), place, device=paths.device))
    modules = {**ready.selection.modules, **root}
    with capture(modules, points, return_, clone=clone, on_activation=arrive):
        output = ready.function(rows.through(ready.model), paths // ready.path.per_example)
        if backward:
            torch.autograd.grad(output.sum(), rows.leaves, allow_unused=True)
    return Tapped(activations, gradients)


def infos_of(ready: Prepared) -> dict[str, LayerInfo]:
    """What is known of each layer."""
    return {info.name: layer_info(info, layout_of(info)) for info in ready.points}


def chunks(ready: Prepared, rows: int) -> Iterator[Tensor]:
    """Numbers of the examples, as many at a time as a call may have."""
    yield from torch.arange(ready.path.batch, device=ready.path.device).split(rows or MOST_ROWS)


def summed(info: LayerInfo, tensor: Tensor) -> Tensor:
    """Sum over positions in float64: ``(examples, units)``."""
    return info.sum_positions(tensor.detach().cpu().double())


def _starts(ready: Prepared, examples: Tensor) -> dict[str, Tensor]:
    """Activations at the baseline of each example, the mean over several baselines."""
    several = ready.path.per_example
    parts = [tapped(ready, examples * several + number, 0.0, backward=False).activations for number in range(several)]
    return {layer: torch.stack([part[layer] for part in parts]).mean(0) for layer in parts[0]}
