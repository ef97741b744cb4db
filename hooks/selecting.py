"""From what a user writes for `layers` (names, globs, types, modules, points, lists) to hook points."""

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import nn

from conductance.hooks.hookable import check_hookable, check_hookable_modules, is_scripted
from conductance.hooks.points import HookPoint

if TYPE_CHECKING:
    from conductance.hooks.probing import PointInfo

LayerSpec: TypeAlias = "str | nn.Module | type[nn.Module] | HookPoint | PointInfo | Sequence[LayerSpec] | None"

#: What torch.compile puts into the names of the modules below it.
_COMPILED = re.compile(r"(?<![^.])_orig_mod\.")
_LISTING = "hooks.list_points(model, inputs) lists what can be tapped"


@dataclass(frozen=True)
class Selection:
    """What a request for layers stands for in one model.

    Attributes
    ----------
    modules
        The modules of the points by name, in module order.
    points
        The points as requested, calls and tensors not yet resolved, in module order, each once.
    """

    modules: dict[str, nn.Module]
    points: tuple[HookPoint, ...]


def select(model: Callable[..., Any] | Mapping[str, nn.Module], layers: LayerSpec = None) -> Selection:
    """Find the modules that a request for layers means.

    Parameters
    ----------
    model
        The model; a plain callable will do when all layers are modules, a mapping of names to modules stands
        for a model.
    layers
        `None`: every module without children (the model itself if it has none). A string: a name with its
        suffixes (see `HookPoint`) or a glob over module names such as ``"features.*"``. A module of the
        model; a type, for all modules of that type; a `HookPoint`, or a `PointInfo` of one; or a list of these, such
        as the table of `list_points`.

    Returns
    -------
    Selection
        The modules and the points, in module order, without duplicates. A module that goes by several names
        in the model goes by the first.

    Raises
    ------
    ValueError
        Nothing in the model answers to the request.
    TypeError
        The request is none of the above, or hooks cannot look into the model (TorchScript, an exported program,
        ``DataParallel`` over several devices); the message says what to pass instead.

    Notes
    -----
    What ``torch.compile`` wrapped goes by the names of the module inside; those with ``_orig_mod`` are known too.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> [point.name for point in select(model).points]
    ['0', '1', '2']
    >>> [point.name for point in select(model, [nn.Linear, "1:in"]).points]
    ['0', '1:in', '2']
    """
    check_hookable(model)
    directory = _Directory.of(model, layers)
    found = dict.fromkeys(directory.find(layers))
    by_name: dict[str, HookPoint] = {}
    for point in found:
        if by_name.setdefault(point.name, point) != point:
            msg = f"layers: {point.name!r} is asked for with two sets of axes: {by_name[point.name]}, {point}"
            raise ValueError(msg)
    order = {name: position for position, name in enumerate(directory.modules)}
    points = tuple(sorted(found, key=lambda point: order[point.module]))
    modules = {point.module: directory.modules[point.module] for point in points}
    check_hookable_modules(modules.items())
    return Selection(modules, points)


def select_all(model: nn.Module) -> Selection:
    """Find every module of a model that takes hooks, itself too, each at its output."""
    check_hookable(model)
    modules = _Directory(model.named_modules(), complete=True).modules
    taken = {name: module for name, module in modules.items() if not is_scripted(module)}
    return Selection(taken, tuple(map(HookPoint, taken)))


class _Directory:
    """The modules of a model under their first names, and the first name of every alias."""

    def __init__(self, named: Iterable[tuple[str, nn.Module]], *, complete: bool) -> None:
        self.modules: dict[str, nn.Module] = {}
        self.first_name: dict[str, str] = {}
        self.complete = complete
        names: dict[nn.Module, str] = {}
        for name, module in named:
            plain = _COMPILED.sub("", name)
            if module not in names:
                names[module] = plain
                self.modules[plain] = module
            self.first_name[name] = self.first_name[plain] = names[module]
        self.name_of = names

    @classmethod
    def of(cls, model: Callable[..., Any] | Mapping[str, nn.Module], layers: LayerSpec) -> "_Directory":
        if isinstance(model, nn.Module):
            return cls(model.named_modules(remove_duplicate=False), complete=True)
        if isinstance(model, Mapping):
            return cls(model.items(), complete=True)
        if not callable(model):
            msg = f"model is a module or a callable, got {type(model).__name__}"
            raise TypeError(msg)
        modules = dict.fromkeys(_modules_alone(layers))
        named = [(f"{type(module).__name__}_{i}", module) for i, module in enumerate(modules)]
        return cls(named, complete=False)

    def find(self, layers: LayerSpec) -> Iterator[HookPoint]:
        if layers is None:
            yield from self._leaves()
        elif isinstance(layers, str):
            yield from self._named(layers)
        elif isinstance(point := getattr(layers, "point", layers), HookPoint):  # or a PointInfo
            yield replace(point, module=self._known(point.module, point.name))
        elif isinstance(layers, nn.Module):
            yield HookPoint(self._identified(layers))
        elif isinstance(layers, type) and issubclass(layers, nn.Module):
            yield from self._typed(layers)
        elif isinstance(layers, Sequence | AbstractSet):
            if not layers:
                msg = "layers: got an empty list; give at least one, or None for all leaf modules"
                raise ValueError(msg)
            for layer in layers:
                if layer is None:
                    msg = "layers: None inside a list; None alone stands for every leaf module"
                    raise TypeError(msg)
                yield from self.find(layer)
        else:
            raise TypeError(_wrong_type(layers))

    def _leaves(self) -> Iterator[HookPoint]:
        for name, module in self.modules.items():
            if next(module.children(), None) is None and not is_scripted(module):
                yield HookPoint(name)

    def _named(self, text: str) -> Iterator[HookPoint]:
        if text in self.first_name:
            yield HookPoint(self.first_name[text])
            return
        try:
            request = HookPoint.parse(text)
        except ValueError as error:
            msg = f"layers: {error}"
            raise ValueError(msg) from None
        if request.module in self.first_name:
            yield replace(request, module=self.first_name[request.module])
        elif matches := self._matching(request.module):
            yield from (replace(request, module=name) for name in matches)
        elif matches := self._matching(text):
            yield from (HookPoint(name) for name in matches)
        elif any(sign in request.module for sign in "*?"):
            msg = f"layers: no module matches {text!r}. {self._near(text)}"
            raise ValueError(msg)
        else:
            self._known(request.module, text)

    def _matching(self, pattern: str) -> list[str]:
        if not any(sign in pattern for sign in "*?["):
            return []
        named = ((name, first) for name, first in self.first_name.items() if name)
        return list(dict.fromkeys(first for name, first in named if fnmatch.fnmatchcase(name, pattern)))

    def _typed(self, kind: type[nn.Module]) -> Iterator[HookPoint]:
        matched = [name for name, module in self.modules.items() if isinstance(module, kind)]
        if not matched:
            kinds = sorted({type(module).__name__ for module in self.modules.values()})
            msg = f"layers: the model has no {kind.__name__}; it has {', '.join(kinds)}"
            raise ValueError(msg)
        yield from map(HookPoint, matched)

    def _identified(self, module: nn.Module) -> str:
        if module not in self.name_of:
            msg = (
                f"layers: this {type(module).__name__} is not a module of the model (a copy, or another "
                f"model's?): {module!r}. {_LISTING}"
            )
            raise ValueError(msg)
        return self.name_of[module]

    def _known(self, module: str, given: str) -> str:
        if module not in self.first_name:
            msg = f"layers: no module named {given!r}. {self._near(module)}"
            raise ValueError(msg)
        return self.first_name[module]

    def _near(self, text: str) -> str:
        near = difflib.get_close_matches(text, [name for name in self.first_name if name], n=3)
        hint = f"Nearest: {', '.join(map(repr, near))}; " if near else ""
        return hint + _LISTING


def _modules_alone(layers: LayerSpec) -> Iterator[nn.Module]:
    """Yield the modules of a request that goes with a callable, which has no names to look up."""
    if isinstance(layers, nn.Module):
        yield layers
    elif isinstance(layers, Sequence | AbstractSet) and not isinstance(layers, str):
        for layer in layers:
            yield from _modules_alone(layer)
    elif layers is None or isinstance(layers, str | type | HookPoint):
        given = "None" if layers is None else f"{layers!r}"
        msg = (
            "layers: the model is a plain callable, so its layers must be given as modules, such as "
            f"[net.features[3]]; got {given}. Names, globs, types and None need a torch.nn.Module as model"
        )
        raise ValueError(msg)
    else:
        raise TypeError(_wrong_type(layers))


def _wrong_type(layers: object) -> str:
    return (
        "layers: expected a name, a glob, a module, a module type, a HookPoint or a list of these, "
        f"got {type(layers).__name__}: {layers!r:.200}"
    )
