"""Units of a model held at zero or at a constant, at every position, while the rest runs on.

``h_u`` becomes the constant wherever it occurs: a channel on its whole map, a feature at every token, a head in all of
its features. Everything behind it is computed from that.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from numbers import Real
from threading import get_ident
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from conductance.hooks.batching import module_batch_axis
from conductance.hooks.capturing import Side, in_backward
from conductance.hooks.eager import uncompiled
from conductance.hooks.handed_on import AxisOf, handed_on
from conductance.hooks.points import HookPoint
from conductance.hooks.replacing import substitute
from conductance.hooks.selecting import Selection, select
from conductance.hooks.structure import edge_of
from conductance.hooks.units import beside, inherited_unit_axis, module_unit_axis

#: What units are held at: a number, one for each unit, or one for each entry of the layer.
HeldValue: TypeAlias = float | Tensor
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@contextmanager
def ablate(
    model: Callable[..., Any] | Mapping[str, nn.Module],
    units: Mapping[Any, Any],
    value: HeldValue | Mapping[Any, HeldValue] = 0.0,
) -> Iterator[None]:
    """Hold units of some layers at a value: within the context, each time the model runs.

    Parameters
    ----------
    model
        The model, or a callable that runs the modules given.
    units
        By layer (a name, a module, a `HookPoint` or a row of `list_points`): the numbers of its units, or a mask of
        truth values, ``(units,)`` or, for other units in each row of a call, ``(rows, units)``. A module that runs
        several times is held in all its calls, ``"act#1"`` in its second one. Heads are the units of a point with
        ``unit_groups``.
    value
        A number; a tensor ``(units,)``; a tensor of the layer's shape without the batch axis; or one of these for
        each layer, by the same keys or by name. Other layers may be in it.

    Raises
    ------
    ValueError
        On entering: a layer that the model does not have, or that has no value. When the model runs: a unit or a
        shape that the layer does not have, an output of several tensors, or an axis of the units that cannot be known.
    TypeError
        A value or units of another kind.

    Warns
    -----
    UserWarning
        On leaving: the model ran, but one of the layers did not.

    Notes
    -----
    The axis of the units is the point's own, else that of the module's class, else that of the operator before it in
    the autograd graph; under ``no_grad`` that of the module before it, if activations, pooling and the like hand its
    very tensor on. Where there is none of these, as behind ``F.relu`` under ``no_grad``, layers with one axis beside
    the batch are clear; others are an error, which tells the way out.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False))
    >>> with ablate(model, {"1": [0, 1, 2, 3]}):
    ...     model(torch.ones(5, 3)).abs().sum().item()
    0.0
    """
    if not isinstance(units, Mapping):
        kind = type(units).__name__
        raise TypeError(f"units is a {kind}; expected units by layer, such as {{'features.3': [4, 17]}}")
    modules: dict[str, nn.Module] = dict(model) if isinstance(model, Mapping) else {}
    holds = []
    for key, selection in _selected(model, units):
        modules.update(selection.modules)
        holds += [_Hold(point, selection.modules[point.module], units[key], value, key) for point in selection.points]
    if isinstance(model, nn.Module):
        modules[""] = model

    requests = list(dict.fromkeys(hold.point for hold in holds))
    if not requests:
        yield
        return
    unclear = any(hold.point.unit_axis is None and module_unit_axis(hold.module, 3) is None for hold in holds)
    followed = dict(model.named_modules()) if isinstance(model, nn.Module) else modules
    with uncompiled(), handed_on(followed if unclear else {}) as axis_of:

        def held(point: HookPoint, tensor: Tensor) -> Tensor:
            for hold in holds:
                if hold.means(point):
                    tensor = hold(point, tensor, axis_of)
            return tensor

        with _Holding(modules, requests, held) as holding:
            yield
    idle = next((hold.point.name for hold in holds if holding.ran and not hold.met), None)
    if idle is not None:
        warnings.warn(
            f"the model ran, but {idle!r} did not, so that none of its units was held: its weights are read without a "
            "call (as by nn.MultiheadAttention), or another branch was taken",
            UserWarning,
            stacklevel=3,
        )


def hold_units(
    tensor: Tensor,
    mask: Tensor,
    value: HeldValue,
    *,
    batch_axis: int,
    unit_axis: int,
    unit_groups: int | None = None,
) -> Tensor:
    """Give a tensor with some of its units held at a value.

    Parameters
    ----------
    tensor
        Any tensor; an axis of length 1 is expanded to the rows of the mask.
    mask
        Which units, truth values ``(units,)`` or ``(rows, units)``.
    value
        A number, or a tensor that broadcasts with ``tensor``.
    batch_axis, unit_axis
        Axes of the rows and of the units, not negative. Where they are one, each row has one unit.
    unit_groups
        Number of groups of the unit axis that count as one unit each.

    Examples
    --------
    >>> hold_units(torch.ones(2, 3), torch.tensor([[True, False, False], [False, False, True]]), 5.0,
    ...            batch_axis=0, unit_axis=1)
    tensor([[5., 1., 1.],
            [1., 1., 5.]])
    """
    shape = [1] * tensor.ndim
    if unit_axis != batch_axis:
        if unit_groups is not None:
            mask = mask.repeat_interleave(tensor.shape[unit_axis] // unit_groups, -1)
        shape[unit_axis] = mask.shape[-1]
    if mask.ndim == 2:
        shape[batch_axis] = len(mask)
        mask = mask.T if unit_axis < batch_axis else mask
    return torch.where(mask.reshape(shape), value, tensor)


class _Holding(substitute):
    """Holds units also where checkpointing runs modules again, in the backward pass."""

    ran = False

    def _entered(self, _module: nn.Module, _args: Any) -> None:
        super()._entered(_module, _args)
        self.ran = self.ran or not self._is_other_run()

    def _is_other_run(self) -> bool:
        return get_ident() != self._thread and not in_backward()

    def _tap_all(self, key: tuple[str, Side], requests: list[HookPoint], tree: Any) -> Any:
        called = next((request for request in requests if request.call is not None), None)
        if called is not None and in_backward():
            raise ValueError(
                f"units: {called.name!r} is one call of a module that runs again in the backward pass (checkpointing), "
                f"where calls cannot be told apart; hold {called.module!r}, or switch checkpointing off"
            )
        return super()._tap_all(key, requests, tree)


class _Hold:
    """The units of one request, and what they are held at."""

    def __init__(self, point: HookPoint, module: nn.Module, units: Any, value: Any, key: Any) -> None:
        self.point = point
        self.module = module
        self.met = False
        self.units = _as_tensor(units, point.name)
        if isinstance(value, Mapping):
            found = [name for name in (key, point.name) if name in value]
            if not found:
                given = ", ".join(str(name) for name in value) or "nothing"
                raise ValueError(
                    f"value has none for {point.name!r}, only for {given}; give one for each layer of units"
                )
            value = value[found[0]]
        if isinstance(value, bool) or not isinstance(value, Real | Tensor):
            kind = type(value).__name__
            raise TypeError(f"value for {point.name!r} is a {kind}; expected a number, a tensor, or a dict by layer")
        self.value = cast("HeldValue", value)

    def means(self, point: HookPoint) -> bool:
        """Whether a tensor's point is one that was requested."""
        mine = self.point
        same = (mine.module, mine.side) == (point.module, point.side) and mine.call in (None, point.call or 0)
        return same and point.index[: len(mine.index)] == mine.index

    def __call__(self, point: HookPoint, tensor: Tensor, axis_of: AxisOf) -> Tensor:
        self.met = True
        single = point.index == self.point.index or (point.side == "in" and point.index == (0,))
        if not single:
            raise ValueError(
                f"units: {self.point.name!r} gives several tensors; name one of them, such as {point.name!r}"
            )
        batch = self.point.batch_axis or module_batch_axis(self.module, point.side, point.index, tensor.ndim)
        batch %= max(1, tensor.ndim)
        axis = _unit_axis(self.point, self.module, tensor, batch, axis_of)
        groups = self.point.unit_groups
        size = 1 if axis == batch else tensor.shape[axis]
        if groups is not None and size % groups:
            raise ValueError(f"units: {point.name!r} has unit_groups={groups}, which does not divide its {size} units")
        rows = tensor.shape[batch] if tensor.ndim else 1
        mask = self._mask(rows, groups or size, tensor.device)
        value = self._value(tensor, batch, axis)
        return hold_units(tensor, mask, value, batch_axis=batch, unit_axis=axis, unit_groups=groups)

    def _mask(self, rows: int, count: int, device: torch.device) -> Tensor:
        given, name = self.units, self.point.name
        if given.dtype == torch.bool:
            if tuple(given.shape) not in ((count,), (rows, count)):
                shape = tuple(given.shape)
                raise ValueError(
                    f"units: the mask of {name!r} has shape {shape}; expected ({count},) or {(rows, count)}"
                )
            return given.to(device)
        wrong = given[(given < 0) | (given >= count)]
        if len(wrong):
            raise ValueError(f"units: {name!r} has {count} units, 0 to {count - 1}; got {int(wrong[0])}")
        mask = torch.zeros(count, dtype=torch.bool)
        mask[given] = True
        return mask.to(device)

    def _value(self, tensor: Tensor, batch: int, axis: int) -> HeldValue:
        value = self.value
        if not isinstance(value, Tensor):
            return float(value)
        value = value.to(tensor.device, tensor.dtype)
        layer = tensor.shape[:batch] + tensor.shape[batch + 1 :]
        if value.ndim == 0:
            return value
        if value.shape == layer:
            return value.unsqueeze(batch)
        size = tensor.shape[axis]
        count = self.point.unit_groups or size
        if axis == batch or tuple(value.shape) != (count,):
            shapes = f"() or {tuple(layer)}" if axis == batch else f"({count},) or {tuple(layer)}"
            raise ValueError(f"value for {self.point.name!r} has shape {tuple(value.shape)}; expected {shapes}")
        shape = [1] * tensor.ndim
        shape[axis] = size
        return value.repeat_interleave(size // count).reshape(shape)


def _selected(
    model: Callable[..., Any] | Mapping[str, nn.Module], units: Mapping[Any, Any]
) -> Iterator[tuple[Any, Selection]]:
    """What each key means; the error of one that means nothing names `units`."""
    if not units:
        return
    try:
        # modules of a plain callable are named by their order among all of them
        known = model if isinstance(model, nn.Module | Mapping) else select(model, list(units)).modules
        for key in units:
            yield key, select(known, key)
    except (ValueError, TypeError) as error:
        raise type(error)(str(error).replace("layers:", "units:", 1)) from None


def _as_tensor(units: Any, name: str) -> Tensor:
    """Numbers of units as int64, or a mask."""
    try:
        given = units.cpu() if isinstance(units, Tensor) else torch.tensor(_as_list(units))
    except (TypeError, ValueError, RuntimeError):
        given = None
    if given is not None and given.dtype == torch.bool and given.ndim in (1, 2):
        return given
    if given is not None and given.numel() == 0:
        return torch.zeros(0, dtype=torch.int64)
    if given is None or given.ndim > 1 or given.dtype not in _WHOLE:
        raise TypeError(
            f"units of {name!r}: expected numbers of units such as [4, 17], or a mask of truth values (units,) or "
            f"(rows, units), got {units!r:.200}"
        )
    return given.reshape(-1).long()


def _as_list(units: Any) -> Any:
    """What torch makes a tensor of: arrays (of numpy, of pandas) as arrays, one number as itself."""
    if hasattr(units, "__array__"):
        return units.__array__()
    return units if isinstance(units, int) else list(units)


def _unit_axis(point: HookPoint, module: nn.Module, tensor: Tensor, batch: int, axis_of: AxisOf) -> int:
    """The axis of the units: the point's own, the class's, the producer's; of few axes the one beside the batch."""
    ndim = tensor.ndim
    if point.unit_axis is not None:
        if not -ndim <= point.unit_axis < ndim:
            shape = tuple(tensor.shape)
            raise ValueError(f"units: {point.name!r} has unit_axis={point.unit_axis}, but its tensor has shape {shape}")
        return point.unit_axis % ndim
    axis = module_unit_axis(module, ndim)
    if axis is None and tensor.requires_grad:
        axis = inherited_unit_axis(edge_of(tensor))
    if axis is None:
        axis = axis_of(module if point.side == "out" else None, tensor)
    if axis is None or axis >= ndim:
        if ndim > 2:
            way = replace(point, unit_axis=1)
            raise ValueError(
                f"units: which axis of {point.name!r}, {tuple(tensor.shape)}, counts its units cannot be known of a "
                f"{type(module).__name__} without an autograd graph; give it, such as HookPoint({way.module!r}, "
                "unit_axis=1), or a row of hooks.list_points(model, inputs), or run the model with gradients enabled"
            )
        return beside(batch, ndim)
    return beside(batch, ndim) if axis == batch else axis
