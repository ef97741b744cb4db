"""What makes the units of a layer, and what reads them: found by running a model with tensors changed here and there.

Nothing is taken from the names or the order of modules: a layer is made by the last module before it that has weights
and whose change shows in it, and is read by those whose input changes with it while the outputs of all others stay.
Changes are large numbers of either sign, so that they pass a ReLU or a maximum.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from conductance._outputs import chosen
from conductance.analysis._unit_weights import MIXING, makes_units, unit_axis, unit_count
from conductance.arguments import Inputs
from conductance.errors import ConductanceError
from conductance.hooks import HookPoint, substitute, undisturbed
from conductance.loaders import called

#: Takes a point and its tensor, and gives the one to go on with; None leaves it.
Change = Callable[[HookPoint, Tensor], Tensor | None]


@dataclass(frozen=True)
class Maker:
    """What makes the units of a layer.

    Attributes
    ----------
    name
        Of the module whose weights make them.
    units
        How many there are.
    axis
        The axis of the units in the layer's tensor; None where nothing was run.
    behind
        Convolutions and linear layers that only a batch norm, the maker, reads.
    """

    name: str
    units: int
    axis: int | None
    behind: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Reader:
    """A module that reads units which are constant.

    Attributes
    ----------
    name, columns
        The module, and which of its inputs are theirs.
    constants
        Its input for one example, zero but for these.
    """

    name: str
    columns: list[int]
    constants: Tensor


@dataclass
class Run:
    """What was seen in one run.

    Attributes
    ----------
    output
        Of the model, ``(examples, …)``.
    seen
        Tensors of each module and side, one for each call.
    """

    output: Tensor
    seen: dict[tuple[str, str], list[Tensor]] = field(default_factory=dict)


class Wiring:
    """A model in evaluation mode, its inputs, and the layers that are asked about."""

    def __init__(self, model: nn.Module, inputs: Inputs, layers: Sequence[str]) -> None:
        self.model = model
        self.inputs = inputs
        self.makers = {name: module for name, module in model.named_modules() if makes_units(module)}
        self._outputs = [HookPoint(name) for name in dict.fromkeys([*self.makers, *layers])]
        mixing = [name for name, module in self.makers.items() if isinstance(module, MIXING)]
        self._both = [*self._outputs, *(HookPoint(name, side="in") for name in mixing)]
        self.clean = self.run(keep=[*self.makers, *layers], reading=True)
        self.rounding = torch.finfo(self.clean.output.dtype).eps ** 0.5
        for layer in layers:
            self._check_runs(layer)

    def run(
        self,
        change: Change | None = None,
        *,
        keep: Collection[str] = (),
        reading: bool = False,
        inputs: Inputs | None = None,
    ) -> Run:
        """Run the model, some tensors changed, or on other inputs.

        Kept are outputs by name and, if asked for, what mixing layers read.
        """
        seen: dict[tuple[str, str], list[Tensor]] = {}

        def see(point: HookPoint, tensor: Tensor) -> Tensor | None:
            new = None if change is None else change(point, tensor)
            if point.side == "in" or point.module in keep:
                seen.setdefault((point.module, point.side), []).append((tensor if new is None else new).clone())
            return new

        with substitute(self.model, self._both if reading else self._outputs, see):
            given = self.inputs if inputs is None else inputs
            return Run(chosen(called(self.model, given)).clone(), seen)

    def shaken(self) -> Run | None:
        """A run in which all is otherwise that can be: inputs, embeddings and what mixing layers give.

        Units that are held are no constants for the rest of the model where they meet something else, a gate, an
        attention weight; of one example that cannot be told. None where the model cannot be run so.
        """
        embeddings = [name for name, module in self.model.named_modules() if isinstance(module, nn.Embedding)]
        mixing = [name for name, module in self.makers.items() if isinstance(module, MIXING)]
        inputs = tree_map_only(Tensor, _shaken, self.inputs)

        def shake(point: HookPoint, tensor: Tensor) -> Tensor | None:
            return _shaken(tensor) if point.side == "out" else None

        try:
            with substitute(self.model, [HookPoint(name) for name in [*embeddings, *mixing]], shake):
                return self.run(reading=True, inputs=inputs)
        except Exception:
            return None

    def maker(self, layer: str) -> Maker:
        """Find what makes the units of a layer."""
        if layer in self.makers:
            module = self.makers[layer]
            tensor = self.clean.seen[layer, "out"][0]
            return Maker(layer, unit_count(module), unit_axis(module, tensor.ndim), self._behind(layer))
        order = [name for name, side in self.clean.seen if side == "out"]
        earlier = [name for name in order[: order.index(layer)] if name in self.makers]
        name = next((name for name in reversed(earlier) if self._feeds(name, layer)), None)
        if name is None:
            raise ConductanceError(
                f"no linear layer, convolution or norm makes the units of {layer!r}, so that there are no weights to "
                f"mask; hold its units by hooks.ablate(model, {{{layer!r}: units}}) instead"
            )
        axis = self._axis(name, layer)
        return Maker(name, unit_count(self.makers[name]), axis, self._behind(name))

    def passes(self, maker: Maker, layer: str, units: list[int], made: Tensor, wanted: Tensor) -> bool:
        """Whether the layer's units are as wanted where its maker's are as made; both ``(units,)``."""
        if maker.name == layer:
            return True

        def change(point: HookPoint, tensor: Tensor) -> Tensor | None:
            return self._set(tensor, maker.name, units, made) if point.module == maker.name else None

        assert maker.axis is not None
        for tensor in self.run(change, keep=[layer]).seen[layer, "out"]:
            found = tensor.movedim(maker.axis, -1)[..., units]
            if not self.same(found, wanted.to(found)[units].expand_as(found), self.clean.seen[layer, "out"][0]):
                return False
        return True

    def readers(self, maker: Maker, layer: str, units: list[int], held: Run, shaken: Run | None) -> list[Reader] | None:
        """Find what reads some units that are held at constants; None where the constants cannot move into biases.

        Parameters
        ----------
        maker, layer, units
            The units, and what makes them.
        held, shaken
            A run in which they are held; and another, of which `shaken` tells.
        """
        if shaken is None:
            return None
        found: dict[str, set[int]] = {}
        for sign in (1.0, -1.0):
            run = self.run(self._pinned(layer, maker, units, sign), reading=True)
            if not torch.equal(run.output, self.clean.output):
                return None  # they are part of the output
            for (name, side), tensors in run.seen.items():
                if side == "in" and not all(map(torch.equal, tensors, self.clean.seen[name, side])):
                    if len(tensors) > 1:
                        return None  # one bias for calls that read different tensors
                    columns = _columns(tensors[0], self.clean.seen[name, side][0], self.makers[name])
                    found.setdefault(name, set()).update(columns)
        readers = [self._reader(name, sorted(columns), held.seen[name, "in"][0], shaken.seen[name, "in"][0])
                   for name, columns in found.items()]  # fmt: skip
        return None if any(reader is None for reader in readers) else [each for each in readers if each is not None]

    def same(self, tensor: Tensor, other: Tensor, scale: Tensor) -> bool:
        """Whether two tensors are the same but for rounding of numbers as large as those of a third."""
        return bool(((tensor - other).abs() <= self.rounding * scale.abs().max()).all())

    def _reader(self, name: str, columns: list[int], tensor: Tensor, other: Tensor) -> Reader | None:
        """What a module reads of units that are held, if that is the same for all examples, in another run too."""
        module = self.makers[name]
        axis = unit_axis(module, tensor.ndim)
        mask = torch.zeros(tensor.shape[axis], dtype=torch.bool, device=tensor.device)
        mask[columns] = True
        shape = [-1 if place == axis else 1 for place in range(tensor.ndim)]
        constants, others = (torch.where(mask.reshape(shape), each, 0.0) for each in (tensor, other))
        same = all(self.same(each, constants[:1], tensor) for each in (constants, others))
        return Reader(name, columns, constants[:1]) if same else None

    def _pinned(self, layer: str, maker: Maker, units: list[int], sign: float) -> Change:
        """Change a layer's units, while the outputs of all mixing layers but its maker stay as they are."""

        def change(point: HookPoint, tensor: Tensor) -> Tensor | None:
            if point.side == "in":
                return None
            if point.module == layer:
                return _changed(tensor, maker.axis, units, sign)
            if point.module == maker.name or not isinstance(self.makers.get(point.module), MIXING):
                return None
            return self.clean.seen[point.module, "out"][point.call or 0].clone()

        return change

    def _behind(self, name: str) -> tuple[str, ...]:
        """The layer that feeds a batch norm, if nothing else reads it."""
        if not isinstance(self.makers[name], nn.modules.batchnorm._BatchNorm):
            return ()
        order = [each for each, side in self.clean.seen if side == "out"]
        earlier = [each for each in order[: order.index(name)] if each in self.makers]
        behind = next((each for each in reversed(earlier) if self._feeds(each, name)), None)
        if behind is None or not isinstance(self.makers[behind], MIXING):
            return ()
        if unit_count(self.makers[behind]) != unit_count(self.makers[name]):
            return ()
        outputs = [self.run(self._cut(behind, name, sign)).output for sign in (0.0, 1.0, -1.0)]
        return (behind,) if all(torch.equal(output, outputs[0]) for output in outputs) else ()

    def _cut(self, behind: str, norm: str, sign: float) -> Change:
        """Change a layer, while the norm behind it stays as it is."""

        def change(point: HookPoint, tensor: Tensor) -> Tensor | None:
            if point.module == norm:
                return self.clean.seen[norm, "out"][point.call or 0].clone()
            if point.module == behind:
                return _changed(tensor, None, [], sign)
            return None

        return change

    def _feeds(self, name: str, layer: str) -> bool:
        return any(bool(different.any()) for sign in (1.0, -1.0) for different in self._response(name, layer, [], sign))

    def _axis(self, name: str, layer: str) -> int:
        """The axis on which a layer has the units of its maker: the first unit changes the first slice only."""
        count = unit_count(self.makers[name])
        different = torch.stack([self._response(name, layer, [0], sign)[0] for sign in (1.0, -1.0)]).any(0)
        for axis in range(1, different.ndim):
            slices = different.movedim(axis, 0).flatten(1)
            if len(slices) == count and slices[0].any() and not slices[1:].any():
                return axis
        raise ConductanceError(
            f"the units of {layer!r}, {tuple(different.shape[1:])} for each example, are not the {count} of {name!r}, "
            f"whose weights they come from; rank {name!r}"
        )

    def _response(self, name: str, layer: str, units: list[int], sign: float) -> list[Tensor]:
        """Where a layer changes, in each call, as some units (none: all) of another do."""

        def change(point: HookPoint, tensor: Tensor) -> Tensor | None:
            if point.module != name:
                return None
            return _changed(tensor, unit_axis(self.makers[name], tensor.ndim), units, sign)

        run = self.run(change, keep=[layer])
        return [new != old for new, old in zip(run.seen[layer, "out"], self.clean.seen[layer, "out"], strict=True)]

    def _set(self, tensor: Tensor, name: str, units: list[int], values: Tensor) -> Tensor:
        axis = unit_axis(self.makers[name], tensor.ndim)
        new = tensor.movedim(axis, -1).clone()
        new[..., units] = values.to(new)[units]
        return new.movedim(-1, axis)

    def _check_runs(self, layer: str) -> None:
        if (layer, "out") not in self.clean.seen:
            raise ConductanceError(
                f"layer {layer!r} gives no tensor for these inputs: it does not run, or only inside others"
            )


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; modes, buffers and random numbers are put back afterwards."""
    training = {module: module.training for module in model.modules()}
    with undisturbed(model, {}, frozen=False):
        try:
            model.eval()
            with torch.no_grad():
                yield
        finally:
            for module, mode in training.items():
                module.training = mode


def _changed(tensor: Tensor, axis: int | None, units: list[int], sign: float) -> Tensor:
    """Add large numbers of one sign to some units, to all if none is named; the same ones in every run."""
    numbers = torch.Generator().manual_seed(0)
    noise = 0.5 + torch.rand(tensor.shape, generator=numbers).to(tensor)
    new = tensor + sign * (1 + tensor.abs().max()) * noise
    if axis is None or not units:
        return new
    mixed = tensor.movedim(axis, -1).clone()
    mixed[..., units] = new.movedim(axis, -1)[..., units]
    return mixed.movedim(-1, axis)


def _shaken(tensor: Tensor) -> Tensor:
    """Another tensor, if it is of floating-point numbers: no row of it as another."""
    return _changed(tensor, None, [], 1.0) if tensor.is_floating_point() else tensor


def _columns(tensor: Tensor, other: Tensor, module: nn.Module) -> list[int]:
    """Which inputs of a mixing layer differ."""
    axis = unit_axis(module, tensor.ndim)
    return (tensor != other).movedim(axis, 0).flatten(1).any(1).nonzero().flatten().tolist()
