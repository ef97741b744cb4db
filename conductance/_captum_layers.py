"""Layers as Captum's users name them, as hook points of a model whose modules have names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from conductance.hooks import HookPoint, select


class Called(nn.Module):
    """A callable as a model, with names for the modules that it runs."""

    def __init__(self, function: Callable[..., Any], modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Any) -> Any:
        """Call it."""
        return self.function(*args)


@dataclass(frozen=True)
class Asked:
    """A model, and what was asked of it.

    Attributes
    ----------
    model
        The model as a module.
    requests
        The hook points that each layer stands for; calls and tensors are not yet told apart.
    several
        Whether a list of layers was given.
    """

    model: nn.Module
    requests: list[tuple[HookPoint, ...]]
    several: bool

    @property
    def points(self) -> list[HookPoint]:
        """All points, each once."""
        return list(dict.fromkeys(point for request in self.requests for point in request))

    def wrapped(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Asked:
        """The same points in another function of the model."""

        def inside(point: HookPoint) -> HookPoint:
            return replace(point, module=f"model.{point.module}".rstrip("."))

        requests = [tuple(map(inside, request)) for request in self.requests]
        return Asked(Called(wrap(self.model), {"model": self.model}), requests, self.several)


def asked(
    forward_func: Callable[..., Any], layer: Any, device_ids: Sequence[int] | None, *, layer_input: bool
) -> Asked:
    """Find the layers in the model.

    Raises
    ------
    TypeError, ValueError
        If a layer is not there, or the model runs on several devices at once.
    """
    _refuse_several(device_ids)
    layers = list(layer) if isinstance(layer, (list, tuple)) else [layer]
    if not layers:
        raise ValueError("layer is an empty list; give a layer, or a list of at least one")
    model = forward_func
    if not isinstance(model, nn.Module):
        model = Called(forward_func, select(forward_func, layers).modules)
    requests = [select(model, one).points for one in layers]
    if layer_input:
        requests = [tuple(_input(point) for point in request) for request in requests]
    return Asked(model, requests, isinstance(layer, (list, tuple)))


def answering(request: Iterable[HookPoint], found: Iterable[str]) -> list[str]:
    """Names among those found that a request stands for."""
    return [name for name in found if any(_answers(HookPoint.parse(name), one) for one in request)]


def _answers(found: HookPoint, request: HookPoint) -> bool:
    if (found.module, found.side) != (request.module, request.side):
        return False
    if request.call not in (None, found.call or 0):
        return False
    alone = found.side == "in" and not found.index and request.index == (0,)  # the only input needs no number
    return alone or found.index[: len(request.index)] == request.index


def _input(point: HookPoint) -> HookPoint:
    return point if point.side == "in" else HookPoint(point.module, call=point.call, side="in")


def _refuse_several(device_ids: Sequence[int] | None) -> None:
    if device_ids is not None and len(device_ids) > 1:
        raise ValueError(
            f"device_ids names devices {list(device_ids)}, whose replicas are not tapped; give the module itself "
            "(model.module) on one device, or run one process for each device with its share of the examples"
        )
