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
from conductance.hooks.tapping import known_taps

if TYPE_CHECKING:
    from conductance.hooks.probing import PointInfo

LayerSpec: TypeAlias = "str | nn.Module | type[nn.Module] | HookPoint | PointInfo | Sequence[LayerSpec] | None"

#: What torch.compile puts into the names of the modules below it.
_COMPILED = re.compile(r"(?<![^.])_orig_mod\.")
_LISTING = "hooks.list_points(model, inputs) lists what can be tapped"
_ALONE = (
    "layers: the model is a plain callable, so its layers must be given as modules, such as [net.features[3]], or as "
    "names of taps (hooks.tap); got {}. Names of modules, globs, types and None need a torch.nn.Module as model"
)


@dataclass(frozen=True)
class Selection:
    """What a request for layers stands for in one model.

    Attributes
    ----------
    modules
        The modules of the points by name, in module order, taps behind them.
    points
        The points as requested, calls and tensors not yet resolved, in the same order, each once.
    """

    modules: dict[str, nn.Module]
    points: tuple[HookPoint, ...]


def select(
    model: Callable[..., Any] | Mapping[str, nn.Module],
    layers: LayerSpec = None,
    *,
    taps: Mapping[str, nn.Module] | None = None,
    tentative: bool = False,
) -> Selection:
    """Find the modules that a request for layers means.

    Parameters
    ----------
    model
        The model; a plain callable will do when all layers are modules or taps, a mapping of names to modules
        stands for a model.
    layers
        `None`: every module without children (the model itself if it has none), and the taps given. A string: a
        name with its suffixes (see `HookPoint`) or a glob over names such as ``"features.*"``. A module of the
        model; a type, for all modules of that type; a `HookPoint`, or a `PointInfo` of one; or a list of these, such
        as the table of `list_points`.
    taps
        The taps that the model calls (see `tap`), as modules by their names. None: a request may name any tap that
        has been called before, but globs do not find them. A module of the model goes before a tap of its name.
    tentative
        Pass over names that nothing answers to: they may be those of taps, which are known once the model has run.

    Returns
    -------
    Selection
        The modules and the points, in module order, without duplicates. A module that goes by several names
        in the model goes by the first.

    Raises
    ------
    ValueError
        Nothing in the model answers to the request, and it is not tentative.
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
    directory = _Directory.of(model, layers, taps, tentative=tentative)
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
    modules = _Directory(model.named_modules(), None, model=True, tentative=False).modules
    taken = {name: module for name, module in modules.items() if not is_scripted(module)}
    return Selection(taken, tuple(map(HookPoint, taken)))


class _Directory:
    """The modules of a model and its taps under their first names, and the first name of every alias."""

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Module]],
        taps: Mapping[str, nn.Module] | None,
        *,
        model: bool,
        tentative: bool,
    ) -> None:
        self.modules: dict[str, nn.Module] = {}
        self.first_name: dict[str, str] = {}
        self.model = model
        self.tentative = tentative
        self.others = known_taps() if taps is None and not tentative else {}
        names: dict[nn.Module, str] = {}
        for name, module in named:
            plain = _COMPILED.sub("", name)
            if module not in names:
                names[module] = plain
                self.modules[plain] = module
            self.first_name[name] = self.first_name[plain] = names[module]
        self.name_of = names
        for name, module in (taps or {}).items():
            self._add(name, module)

    @classmethod
    def of(
        cls,
        model: Callable[..., Any] | Mapping[str, nn.Module],
        layers: LayerSpec,
        taps: Mapping[str, nn.Module] | None,
        *,
        tentative: bool,
    ) -> "_Directory":
        if isinstance(model, nn.Module):
            return cls(model.named_modules(remove_duplicate=False), taps, model=True, tentative=tentative)
        if isinstance(model, Mapping):
            return cls(model.items(), taps, model=True, tentative=tentative)
        if not callable(model):
            msg = f"model is a module or a callable, got {type(model).__name__}"
            raise TypeError(msg)
        modules = dict.fromkeys(_modules_alone(layers))
        named = [(f"{type(module).__name__}_{i}", module) for i, module in enumerate(modules)]
        return cls(named, taps, model=False, tentative=tentative)

    def _add(self, name: str, tap: nn.Module) -> None:
        if name not in self.first_name:
            self.modules[name] = tap
            self.first_name[name] = name

    def _has(self, name: str) -> bool:
        if name in self.others:
            self._add(name, self.others[name])
        return name in self.first_name

    def find(self, layers: LayerSpec) -> Iterator[HookPoint]:
        if layers is None:
            yield from self._leaves()
        elif isinstance(layers, str):
            yield from self._named(layers)
        elif isinstance(point := getattr(layers, "point", layers), HookPoint):  # or a PointInfo
            if self._has(point.module):
                yield replace(point, module=self.first_name[point.module])
            else:
                self._refuse(point.module, point.name)
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
        if not self.modules and not self.model:
            self._refuse("", None)
        for name, module in self.modules.items():
            parts = [child for child, _ in module.named_children() if child != "parametrizations"]
            if not parts and ".parametrizations" not in f".{name}" and not is_scripted(module):
                yield HookPoint(name)

    def _named(self, text: str) -> Iterator[HookPoint]:
        if self._has(text):
            yield HookPoint(self.first_name[text])
            return
        try:
            request = HookPoint.parse(text)
        except ValueError as error:
            msg = f"layers: {error}"
            raise ValueError(msg) from None
        if self._has(request.module):
            yield replace(request, module=self.first_name[request.module])
        elif matches := self._matching(request.module):
            yield from (replace(request, module=name) for name in matches)
        elif matches := self._matching(text):
            yield from (HookPoint(name) for name in matches)
        else:
            self._refuse(request.module, text)

    def _matching(self, pattern: str) -> list[str]:
        if not any(sign in pattern for sign in "*?["):
            return []
        named = ((name, first) for name, first in self.first_name.items() if name)
        return list(dict.fromkeys(first for name, first in named if fnmatch.fnmatchcase(name, pattern)))

    def _typed(self, kind: type[nn.Module]) -> Iterator[HookPoint]:
        matched = [name for name, module in self.modules.items() if isinstance(module, kind)]
        if not self.model:
            raise ValueError(_ALONE.format(repr(kind)))
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

    def _refuse(self, name: str, given: str | None) -> None:
        """Say that nothing has this name, unless it may still turn out to be a tap's."""
        if self.tentative:
            return
        near = difflib.get_close_matches(name, [known for known in self.first_name if known], n=3)
        hint = f". Nearest: {', '.join(map(repr, near))}" if near else ""
        verb = "matches" if any(sign in name for sign in "*?") else "named"
        msg = f"layers: no module {verb} {given!r}{hint}; {_LISTING}; taps are known once the model has run"
        raise ValueError(msg if self.model else _ALONE.format(repr(given)) + hint)


def _modules_alone(layers: LayerSpec) -> Iterator[nn.Module]:
    """Yield the modules of a request that goes with a callable, of which nothing but taps can be looked up."""
    if isinstance(layers, nn.Module):
        yield layers
    elif isinstance(layers, Sequence | AbstractSet) and not isinstance(layers, str):
        for layer in layers:
            yield from _modules_alone(layer)


def _wrong_type(layers: object) -> str:
    return (
        "layers: expected a name, a glob, a module, a module type, a HookPoint or a list of these, "
        f"got {type(layers).__name__}: {layers!r:.200}"
    )
