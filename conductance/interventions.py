"""What a model gives where units are held: rows of many examples × many sets of units, forward only.

A row is one example with one set of units held. What lies before the first layer that is held is the same for all sets,
so the model is called with the examples alone, and at that layer its tensor is repeated for every set: only what
follows it is computed once a set. That holds where nothing else that has a row for each example joins in later (a skip
connection, a mask); each size of call is tried against the repeated inputs first, which are used where it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from conductance.arguments import Arguments, Inputs
from conductance.baselines import Baseline
from conductance.errors import ConductanceError
from conductance.hooks import HookPoint, LayerSpec, PointInfo, hold_units, substitute, usable_by_autograd
from conductance.inner_path import InnerPath, found_point
from conductance.loaders import Batch, batches, device_of
from conductance.path import StraightPath
from conductance.results import LayerInfo
from conductance.running import CALL_BYTES, layer_info, layout_of, prepared
from conductance.targeting import Target, TargetFunction, target_function

#: For some sets of units, by their numbers: the units of each layer that are held, ``(sets, units)`` truth values.
Masks: TypeAlias = Callable[[range], Mapping[str, Tensor]]
#: Takes the model's output and the example of each row; gives numbers, ``(rows, …)``.
Reading: TypeAlias = Callable[[Any, Tensor], Tensor]
#: Rows of a call when the user names no size, at most: they run forward only.
MOST_ROWS = 2048
#: Outputs differ if they do by more than this many roots of the rounding error, as part of their size.
DIFFERENT = 4.0


@dataclass
class Interventions:
    """A model that was tried once, and can be run with its units held.

    Attributes
    ----------
    model, modules
        The model, and its modules by name.
    points
        The layers that may be held, in the order in which they run.
    rows
        Rows of a call at most.
    most
        The same as the user gave it, 0 for any number.
    path_from
        Hook point whose tensor moves from the baseline, if it is not the inputs.
    """

    model: Callable[..., Any]
    modules: Mapping[str, nn.Module]
    points: list[PointInfo]
    rows: int
    most: int
    path_from: LayerSpec
    _shared: dict[tuple[int, ...], bool] = field(default_factory=dict)

    @property
    def layers(self) -> dict[str, LayerInfo]:
        """What is known of each layer, by name."""
        return {info.name: layer_info(info, layout_of(info)) for info in self.points}

    def on(self, batch: Batch, *, baselines: Baseline | list[Any], value: Literal["baseline", "zero"]) -> Examples:
        """The examples of a batch, and what units are held at: zero, or their activations at the baseline."""
        inputs = usable_by_autograd(batch.inputs)
        path = self._path(inputs, baselines) if value == "baseline" else None
        return Examples(self, Arguments(inputs), len(batch), path)

    def baseline_values(self, batch: Batch, baselines: Baseline | list[Any]) -> dict[str, Tensor]:
        """Activations at the baseline, summed over the examples and averaged over baselines, ``(*layer shape)``."""
        examples = self.on(batch, baselines=baselines, value="baseline")
        sums: dict[str, Tensor] = {}
        for first in range(0, len(batch), self.rows):
            which = range(first, min(first + self.rows, len(batch)))
            for name, each in examples.values(which, list(self.layers)).items():
                axis = _batch_axis(self.points, name)
                total = each.sum(axis, dtype=torch.promote_types(each.dtype, torch.float32))
                total = total * (len(which) // each.shape[axis])  # one may stand for all
                sums[name] = sums[name] + total if name in sums else total
        return sums

    def _path(self, inputs: Inputs, baselines: Baseline | list[Any]) -> StraightPath:
        arguments = Arguments(inputs)
        inner = found_point(self.model, arguments, self.path_from)
        if inner is None:
            return StraightPath(arguments, baselines)
        return InnerPath(self.model, arguments, baselines, inner, self.most)


@dataclass
class Examples:
    """The examples of one batch in a model whose units are held."""

    runner: Interventions
    arguments: Arguments
    batch: int
    path: StraightPath | None
    _known: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def _same_start(self) -> bool:
        """Whether the model gets the same at the baseline of each example."""
        path = self.path
        if path is None or isinstance(path, InnerPath) or set(path.moving) != set(path.arguments.entries):
            return False
        return all(bool((start[:1] == start).all()) for starts in path.starts for start in starts.values())

    @property
    def device(self) -> torch.device:
        """Where the inputs are."""
        tensors = [entry for entry in self.arguments.entries.values() if isinstance(entry, Tensor)]
        found: torch.device = tensors[0].device
        return found

    def untouched(self, reading: Reading) -> Tensor:
        """What is read from the model as it is, ``(examples, …)``."""
        parts = []
        for first in range(0, self.batch, self.runner.rows):
            which = torch.arange(first, min(first + self.runner.rows, self.batch), device=self.device)
            parts.append(reading(self._called(which), which))
        return torch.cat(parts)

    def held(self, sets: int, masks: Masks, reading: Reading) -> Tensor:
        """What is read from the model with each set of units held, ``(sets, examples, …)``."""
        rows = self.runner.rows
        examples = max(1, min(self.batch, rows // sets))
        parts = [self._some(range(first, min(first + examples, self.batch)), sets, masks, reading)
                 for first in range(0, self.batch, examples)]  # fmt: skip
        return torch.cat(parts, 1)

    def values(self, which: range, names: list[str]) -> dict[str, Tensor]:
        """Activations of some examples at the baseline, at some layers, averaged over the baselines.

        One example stands for all where the model gets the same at the baseline of each.
        """
        path = self.path
        if path is None:
            return {}
        if not self._same_start:
            return self._averaged(path, which, names)
        unknown = [name for name in names if name not in self._known]
        if unknown:
            self._known.update(self._averaged(path, range(1), unknown))
        return {name: self._known[name] for name in names}

    def _averaged(self, path: StraightPath, which: range, names: list[str]) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for number in range(path.per_example):
            paths = torch.arange(which.start, which.stop, device=path.device) * path.per_example + number
            starts = torch.zeros(len(paths), device=path.device)
            for name, value in self._seen(path, paths, starts, names).items():
                sums[name] = sums[name] + value / path.per_example if number else value / path.per_example
        return sums

    def _seen(self, path: StraightPath, paths: Tensor, places: Tensor, names: list[str]) -> dict[str, Tensor]:
        points = {info.point: info.name for info in self.runner.points if info.name in names}
        seen: dict[str, Tensor] = {}

        def see(point: HookPoint, tensor: Tensor) -> None:
            if point in points:
                seen[points[point]] = tensor.detach().clone()

        with substitute(self.runner.modules, list(points), see):
            path.rows(paths, places).through(self.runner.model)
        missing = [name for name in names if name not in seen]
        if missing:
            raise ConductanceError(
                f"layer {missing[0]!r} ran for the inputs, but not at their baseline: the model's control flow depends "
                "on the data; choose another baseline, or value='zero'"
            )
        return seen

    def _some(self, which: range, sets: int, masks: Masks, reading: Reading) -> Tensor:
        """The same for some of the examples, whose values at the baseline are found out once."""
        each = max(1, self.runner.rows // len(which))
        chunks = [range(first, min(first + each, sets)) for first in range(0, sets, each)]
        examples = torch.arange(which.start, which.stop, device=self.device)
        values = self.values(which, list(masks(chunks[0])))
        return torch.cat([self._chunk(examples, masks(chunk), len(chunk), values, reading) for chunk in chunks])

    def _chunk(
        self, examples: Tensor, masks: Mapping[str, Tensor], sets: int, values: Mapping[str, Tensor], reading: Reading
    ) -> Tensor:
        """One call: some sets, some examples."""
        if sets > 1 and self._shares(examples, masks, values, reading):
            try:
                return self._call(examples, masks, sets, values, reading, shared=True)
            except Exception:
                self.runner._shared[self._key(examples, masks)] = False
        return self._call(examples, masks, sets, values, reading, shared=False)

    def _call(
        self,
        examples: Tensor,
        masks: Mapping[str, Tensor],
        sets: int,
        values: Mapping[str, Tensor],
        reading: Reading,
        *,
        shared: bool,
    ) -> Tensor:
        count = len(examples)
        rows = examples.repeat(sets)
        infos = {info.point: info for info in self.runner.points if info.name in masks}

        def put(point: HookPoint, tensor: Tensor) -> Tensor:
            info = infos.get(point)
            if info is None:
                raise ConductanceError(
                    f"layer {point.name!r} ran, but not when the model was tried first: its control flow depends on "
                    "the data; name one call of the module"
                )
            return _held(info, tensor, masks[info.name], values.get(info.name, 0.0), (sets, count))

        with substitute(self.runner.modules, list(infos), put):
            output = self._called(examples if shared else rows)
        found = reading(output, rows)
        return found.reshape(sets, count, *found.shape[1:])

    def _called(self, examples: Tensor) -> Any:
        args, kwargs = self.arguments.call(examples, self.batch, {})
        return self.runner.model(*args, **kwargs)

    def _shares(
        self, examples: Tensor, masks: Mapping[str, Tensor], values: Mapping[str, Tensor], reading: Reading
    ) -> bool:
        """Whether a call may share what lies before the layers: tried with nothing, all and every second unit held."""
        key = self._key(examples, masks)
        if key not in self.runner._shared:
            most = self.runner.rows // len(examples)
            trial = {name: _patterns(mask)[:most] for name, mask in masks.items()}
            sets = min(most, 3)
            slow = self._call(examples, trial, sets, values, reading, shared=False)
            try:
                fast = self._call(examples, trial, sets, values, reading, shared=True)
            except Exception:
                self.runner._shared[key] = False
            else:
                self.runner._shared[key] = _same(slow, fast)
        return self.runner._shared[key]

    def _key(self, examples: Tensor, masks: Mapping[str, Tensor]) -> tuple[Any, ...]:
        return (len(examples), *masks)


@contextmanager
def interventions(
    model: Callable[..., Any],
    loader: Iterable[Any],
    layers: LayerSpec,
    *,
    target: Target | str,
    baselines: Baseline | list[Any] = None,
    path_from: LayerSpec = None,
    internal_batch_size: int | None = None,
) -> Iterator[tuple[Interventions, Iterator[tuple[Batch, TargetFunction]]]]:
    """Try a model on the first batch of a loader; within the context it can be run with units held.

    Parameters
    ----------
    model, layers, baselines, path_from, internal_batch_size
        As for total conductance.
    loader, target
        What :func:`conductance.loaders.batches` reads, and the target for each of its batches.

    Yields
    ------
    Interventions
        What runs.
    Iterator
        The batches, each with its target.
    """
    read = batches(loader, device_of(model))
    first = next(read)
    most = _checked_rows(internal_batch_size)

    def rest(batch: Batch | None) -> Iterator[tuple[Batch, TargetFunction]]:
        while batch is not None:
            yield batch, target_function(batch.target(target, model), len(batch))
            batch = next(read, None)

    explained = target_function(first.target(target, model), len(first))

    # a function: whoever names a class is warned where the baseline has one itself, which no effect depends on
    def function(output: Any, examples: Tensor) -> Tensor:
        return explained(output, examples)

    with prepared(
        model, first.inputs, layers, target=function, baselines=baselines,
        additional_forward_args=None, fixed=(), path_from=path_from, on_train="error", most=most,
    ) as ready, torch.no_grad():  # fmt: skip
        tapped = sum(layout.size * layout.dtype.itemsize for layout in map(layout_of, ready.points))
        rows = most or max(1, min(MOST_ROWS, CALL_BYTES // max(1, tapped)))
        root = {"": model} if isinstance(model, nn.Module) else {}
        modules = {**ready.selection.modules, **root}
        yield Interventions(model, modules, ready.points, rows, most, path_from), rest(first)


def _checked_rows(internal_batch_size: int | None) -> int:
    rows = internal_batch_size
    if rows is None:
        return 0
    if isinstance(rows, bool) or not isinstance(rows, int | np.integer):
        raise TypeError(f"internal_batch_size is {rows!r}; expected a whole number of at least 1")
    if rows < 1:
        raise ValueError(f"internal_batch_size is {rows}; expected at least 1")
    return int(rows)


def _held(info: PointInfo, tensor: Tensor, mask: Tensor, value: float | Tensor, size: tuple[int, int]) -> Tensor:
    """Rows of sets × examples of a tensor, units held; made of the examples alone where it has no more rows."""
    batch, unit = info.point.batch_axis, info.point.unit_axis or 0
    sets, count = size
    found = tensor.shape[batch]
    if found not in (count, sets * count):
        raise ConductanceError(f"layer {info.name!r} gave {found} rows for {count} examples and {sets} sets of units")
    split = tensor.unsqueeze(batch) if found == count else tensor.unflatten(batch, (sets, count))
    if isinstance(value, Tensor):
        value = value.unsqueeze(batch)
    inner = batch if unit == batch else unit + (unit > batch)
    mixed = hold_units(
        split, mask.to(tensor.device), value, batch_axis=batch, unit_axis=inner, unit_groups=info.point.unit_groups
    )
    return mixed.flatten(batch, batch + 1)


def _patterns(mask: Tensor) -> Tensor:
    """Nothing, everything and every second unit held, ``(3, units)``."""
    trial = mask.new_zeros(3, mask.shape[1])
    trial[1] = True
    trial[2, ::2] = True
    return trial


def _same(first: Tensor, second: Tensor) -> bool:
    """Whether two readings agree up to rounding, each column by its own size."""
    if first.numel() == 0:
        return True
    size = first.abs().nan_to_num(0.0, 0.0, 0.0).amax((0, 1), keepdim=True)
    allowed = DIFFERENT * torch.finfo(first.dtype).eps ** 0.5 * size
    alike = (first == second) | (first.isnan() & second.isnan())
    return bool((alike | ((first - second).abs() <= allowed)).all())


def _batch_axis(points: list[PointInfo], name: str) -> int:
    return next(info.point.batch_axis for info in points if info.name == name)
