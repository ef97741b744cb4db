"""Which layers a request for weights means, and the points at both ends of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from torch import nn

from conductance.hooks import HookPoint, LayerSpec, Selection, select
from conductance.weighing import has_weights, refusal, without_values


class WeightLayers:
    """The layers that were asked: their modules, and the points at both ends of each."""

    def __init__(self, model: Callable[..., Any], layers: LayerSpec) -> None:
        if layers is None and isinstance(model, nn.Module):
            every: list[LayerSpec] = [module for module in model.modules() if has_weights(module)]
            if not every:
                raise ValueError("the model has no layers with weights; expected linear layers or convolutions")
            selection, named = select(model, every), set[str]()
        else:
            selection = select(model, layers)
            named = {name for one in _one_by_one(layers) for name in _named(model, one, selection)}
        reasons = {name: refusal(module) for name, module in selection.modules.items()}
        self.named = named
        self.modules = {name: module for name, module in selection.modules.items() if reasons[name] is None}
        bad = [
            name
            for name, module in selection.modules.items()
            if reasons[name] and (name in named or not self.modules or without_values(module))
        ]
        if bad:
            told = "; ".join(
                f"{HookPoint(name).name!r} ({_class_of(selection.modules[name])}), which {reasons[name]}"
                for name in bad[:5]
            )
            raise ValueError(f"layers names {told}")
        self._refused = [name for name, module in selection.modules.items() if reasons[name] and has_weights(module)]
        self.model = model if isinstance(model, nn.Module) else _Called(model, self.modules)

    @property
    def points(self) -> LayerSpec:
        """Both ends of each layer; what is in the list inside does not count as named."""
        named: list[LayerSpec] = [HookPoint(name) for name in self.modules if name in self.named]
        others: list[LayerSpec] = [HookPoint(name) for name in self.modules if name not in self.named]
        return [*named, [*others, *(HookPoint(name, side="in") for name in self.modules)]]

    def left_out(self, found: dict[str, nn.Module]) -> list[str]:
        """Names of the layers that cannot be explained."""
        return [
            HookPoint(name).name for name in [*self._refused, *(name for name in self.modules if name not in found)]
        ]


class _Called(nn.Module):
    """A plain callable as a module with the modules that it runs, so that these have names."""

    def __init__(self, function: Callable[..., Any], modules: dict[str, nn.Module]) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        return self.function(*args, **kwargs)


def _one_by_one(layers: LayerSpec) -> Iterator[Any]:
    if isinstance(layers, (Sequence, AbstractSet)) and not isinstance(layers, str):
        for one in layers:
            yield from _one_by_one(one)
    else:
        yield layers


def _named(model: Callable[..., Any], one: Any, selection: Selection) -> list[str]:
    """Modules that a part of a request names, not by a glob, a type or a table of points."""
    if isinstance(one, str):
        if any(sign in one for sign in "*?"):
            return []
        point = HookPoint(one) if one in selection.modules else HookPoint.parse(one)
    elif isinstance(one, HookPoint):
        point = one
    elif isinstance(one, nn.Module):
        return [name for name, module in selection.modules.items() if module is one]
    else:
        return []
    if point.call is not None or point.side == "in" or point.index:
        raise ValueError(
            f"layers names {point.name!r}, one tensor at a layer; weights are explained for all calls of a layer "
            f"together: give {HookPoint(point.module).name!r}"
        )
    return list(select(model, one).modules)


def _class_of(module: nn.Module) -> str:
    kind = type(module)
    return kind.__name__ if kind.__module__.startswith("torch.nn.modules") else f"{kind.__module__}.{kind.__name__}"
