"""Neurons as Captum's users select them: a column, an index tuple with slices, a function of the layer's tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor

from conductance._captum_arguments import Given
from conductance._captum_layers import Asked, answering
from conductance.hooks import PointInfo
from conductance.running import layout_of, prepared
from conductance.units import chosen

#: Index tuples ``(rows, …)`` without the rows: one for a box of elements, else one for each element.
Indices: TypeAlias = list[tuple[int | slice, ...]]


def tensors_of(layers: Asked, those: Given) -> list[list[PointInfo]]:
    """What each layer stands for: its tensors, in the order in which they are made when the model is tried."""
    with prepared(
        layers.model,
        those.inputs,
        layers.points,
        target=those.function,
        baselines=those.baselines,
        additional_forward_args=those.extra,
        fixed=(),
        path_from=None,
        on_train="error",
        most=0,
    ) as ready:
        by_name = {info.name: info for info in ready.points}
    return [[by_name[name] for name in answering(request, by_name)] for request in layers.requests]


def selected(selector: Any, tensors: Sequence[PointInfo]) -> list[tuple[PointInfo, Indices]]:
    """Where the elements are that a selector selects; their conductances are summed.

    Parameters
    ----------
    selector
        A column, an index tuple or slice, or a function of the tensors (of the tensor, if there is one only) that
        gives an element of each row, or a sum of some.
    tensors
        The tensors of the layer.

    Raises
    ------
    TypeError, ValueError
        If it selects nothing that is there, or does anything but select and sum.
    """
    if callable(selector):
        return _called(selector, tensors)
    if len(tensors) > 1:
        raise ValueError(
            f"neuron_selector is {selector!r}, but the layer has several tensors, "
            f"{', '.join(repr(info.name) for info in tensors)}: give one of these names as layer, or a function of the "
            "tuple of tensors, such as lambda tensors: tensors[0][:, 2]"
        )
    info = tensors[0]
    index = selector if isinstance(selector, tuple) else (selector,)
    index += (slice(None),) * (len(layout_of(info).shape) - len(index))
    chosen([index], layout_of(info), info.name, argument="neuron_selector")
    return [(info, [index])]


def _called(selector: Callable[..., Tensor], tensors: Sequence[PointInfo]) -> list[tuple[PointInfo, Indices]]:
    """Ask a function which elements it takes: those whose derivative is one, whatever their value."""
    masks, again = (_derivatives(selector, tensors, sign) for sign in (1.0, -1.0))
    found: list[tuple[PointInfo, Indices]] = []
    for info, mask, other in zip(tensors, masks, again, strict=True):
        taken = mask == 1.0
        alike = bool((taken == taken[:1]).all()) and torch.equal(mask, other)
        if not alike or not bool((taken | (mask == 0.0)).all()):
            raise ValueError(
                f"neuron_selector weighs or changes the units of layer {info.name!r}; expected a function that selects "
                "the same units in each row, or sums some: the conductance of a group is the sum of its units' "
                "(directions: conductance.dictionary_conductance)"
            )
        if bool(taken.any()):
            found.append((info, _indices(taken[0])))
    if not found:
        raise ValueError("neuron_selector selects no unit: its result does not depend on the layer's tensors")
    return found


def _derivatives(selector: Callable[..., Tensor], tensors: Sequence[PointInfo], sign: float) -> list[Tensor]:
    """Derivative of what it selects by each tensor, the batch axis first."""
    with torch.inference_mode(False), torch.enable_grad():
        leaves = [_values(info, sign) for info in tensors]
        result = selector(tuple(leaves) if len(leaves) > 1 else leaves[0])
        rows = tensors[0].shape[tensors[0].point.batch_axis]
        if not isinstance(result, Tensor) or tuple(result.shape) != (rows,):
            given = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ValueError(
                f"neuron_selector gave {given} for {rows} rows; expected a tensor ({rows},): one unit, or the sum of "
                "some, for each row"
            )
        known = result.requires_grad
        found = (
            torch.autograd.grad(result.sum(), leaves, materialize_grads=True)
            if known
            else map(torch.zeros_like, leaves)
        )
    return [one.movedim(info.point.batch_axis, 0) for one, info in zip(found, tensors, strict=True)]


def _values(info: PointInfo, sign: float) -> Tensor:
    """Numbers in the shape of a tensor, of both signs."""
    place = torch.arange(prod(info.shape), device=info.device).reshape(info.shape)
    return (sign * (1.0 - 2.0 * (place % 2))).to(info.dtype).requires_grad_()


def _indices(mask: Tensor) -> Indices:
    """A mask ``(…)`` as one index tuple with slices if it is a box, else element by element."""
    places = mask.nonzero()
    sides = [torch.unique(column).tolist() for column in places.T]
    if prod(map(len, sides)) != len(places) or any(side[-1] - side[0] + 1 != len(side) for side in sides):
        return [tuple(place) for place in places.tolist()]
    return [tuple(side[0] if len(side) == 1 else slice(side[0], side[-1] + 1) for side in sides)]
