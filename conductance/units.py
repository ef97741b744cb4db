"""Units as users name them: numbers, index tuples, slices; and where they lie in a tensor of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from conductance.sums import Layout

#: "all", a unit, an index tuple, a slice, or a list of these.
Neurons: TypeAlias = str | int | slice | tuple[Any, ...] | Sequence[Any]


@dataclass(frozen=True)
class Neuron:
    """Some elements of a layer that count as one.

    Attributes
    ----------
    label
        The unit's number, or the index as it was given.
    index
        Where it is in a tensor ``(rows, *shape)``.
    """

    label: int | str
    index: tuple[Any, ...]

    def sum(self, rows: Tensor) -> Tensor:
        """Sum over its elements, ``(rows,)``."""
        return rows[self.index].reshape(len(rows), -1).sum(1)


def unit_count(layout: Layout) -> int:
    """Units of a layer."""
    if layout.unit_axis is None:
        return 1
    return layout.unit_groups or layout.shape[layout.unit_axis]


def neuron_of(layout: Layout, unit: int) -> Neuron:
    """A unit: a channel, feature or head, with all its positions."""
    if layout.unit_axis is None:
        return Neuron(unit, (slice(None),))
    size = layout.shape[layout.unit_axis] // unit_count(layout)
    before = (slice(None),) * (layout.unit_axis + 1)
    return Neuron(unit, (*before, slice(unit * size, (unit + 1) * size)))


def chosen(neurons: Neurons, layout: Layout, layer: str, argument: str = "neurons") -> list[Neuron]:
    """The neurons that a user named.

    Parameters
    ----------
    neurons
        ``"all"`` units; a unit's number (all its positions together); a slice of unit numbers; a tuple, an index into
        the layer's shape without the batch (slices in it are summed over); or a list of these.
    layout, layer
        Shape and name of the layer.
    argument
        Name of the argument, for messages.

    Raises
    ------
    TypeError, ValueError
        If a neuron is not there; the message gives the range.

    Examples
    --------
    >>> import torch
    >>> layout = Layout((4, 6, 6), 0, None, torch.float32, torch.device("cpu"))
    >>> [one.label for one in chosen([2, slice(0, 2), (3, 5, 5)], layout, "conv")]
    [2, 0, 1, '(3, 5, 5)']
    """
    units = unit_count(layout)
    if isinstance(neurons, str):
        if neurons != "all":
            raise ValueError(f"{argument} is {neurons!r}; expected 'all', unit numbers, slices or index tuples")
        return [neuron_of(layout, unit) for unit in range(units)]
    if hasattr(neurons, "tolist"):  # an array or tensor of unit numbers
        neurons = neurons.tolist()
    several = neurons if isinstance(neurons, (list, range)) else [neurons]
    found = [one for given in several for one in _found(given, layout, units, layer, argument)]
    if not found:
        raise ValueError(f"{argument} is empty; layer {layer!r} has units 0 to {units - 1}")
    return found


def _found(given: Any, layout: Layout, units: int, layer: str, argument: str) -> list[Neuron]:
    if isinstance(given, slice):
        _check_slice(given, argument)
        return [neuron_of(layout, unit) for unit in range(*given.indices(units))]
    if isinstance(given, tuple):
        return [_indexed(given, layout, layer, argument)]
    if isinstance(given, bool) or not hasattr(given, "__index__"):
        raise TypeError(
            f"{argument} holds a {type(given).__name__}; expected 'all', a unit's number, a slice, an index tuple, or "
            "a list of these"
        )
    unit = int(given)
    if not -units <= unit < units:
        raise ValueError(f"{argument}: layer {layer!r} has units 0 to {units - 1}, got {unit}")
    return [neuron_of(layout, unit % units)]


def _check_slice(given: slice, argument: str) -> None:
    try:
        given.indices(1)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{argument} holds {given}: {error}") from error


def _indexed(index: tuple[Any, ...], layout: Layout, layer: str, argument: str) -> Neuron:
    shape = layout.shape
    if len(index) != len(shape):
        raise ValueError(
            f"{argument}: {index} has {len(index)} entries, but a row of layer {layer!r} has shape {shape}: expected "
            f"{len(shape)} (a unit with all its positions is one number, several units are a list)"
        )
    places: list[Any] = []
    for axis, (one, size) in enumerate(zip(index, shape, strict=True)):
        if isinstance(one, slice):
            _check_slice(one, argument)
            if not len(range(*one.indices(size))):
                raise ValueError(
                    f"{argument}: {_written(index)} is empty; axis {axis} of layer {layer!r} has {size} places"
                )
            places.append(one)
            continue
        if isinstance(one, bool) or not hasattr(one, "__index__"):
            raise TypeError(f"{argument}: {index} holds a {type(one).__name__}; expected whole numbers or slices")
        if not -size <= int(one) < size:
            raise ValueError(
                f"{argument}: {index} is out of range; axis {axis} of layer {layer!r} runs from 0 to {size - 1}"
            )
        places.append(int(one) % size)
    return Neuron(_written(tuple(places)), (slice(None), *places))


def _written(index: tuple[Any, ...]) -> str:
    words = [_sliced(one) if isinstance(one, slice) else str(one) for one in index]
    return f"({', '.join(words)}{',' if len(words) == 1 else ''})"


def _sliced(one: slice) -> str:
    start, stop = ("" if end is None else end for end in (one.start, one.stop))
    return f"{start}:{stop}" + ("" if one.step is None else f":{one.step}")
