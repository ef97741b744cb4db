"""Every tensor that passes chosen modules in one run: where, its version, and its place in the graph."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Set
from contextlib import ExitStack
from dataclasses import dataclass
from threading import get_ident
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from conductance.hooks._trees import Index, inputs_again, inputs_tree, is_single, pick, replaced, tensors
from conductance.hooks.capturing import Side, in_backward
from conductance.hooks.reached import takes_hooks
from conductance.hooks.selecting import Selection
from conductance.hooks.structure import Edge, edge_of
from conductance.hooks.tapping import heard

T = TypeVar("T")
Place: TypeAlias = tuple[str, Side, int, Index]


@dataclass(frozen=True)
class Seen:
    """One tensor as it passed a hook."""

    alias: Tensor
    version: int
    edge: Edge | None
    is_view: bool
    is_packed: bool


class Recorder:
    """Hooks on the selected modules that note every tensor of floating-point numbers that passes.

    `copied`: views that go on through the model as copies, as a capture sends them on.
    """

    def __init__(
        self,
        model: Callable[..., Any] | Mapping[str, nn.Module],
        selection: Selection,
        copied: Collection[Place] = (),
    ) -> None:
        self.modules = selection.modules
        self.root = model.get("") if isinstance(model, Mapping) else model
        self.copied = copied
        self.sides = dict.fromkeys((point.module, point.side) for point in selection.points)
        self.seen: dict[Place, Seen] = {}
        self.calls: Counter[tuple[str, Side]] = Counter()
        self.thread = get_ident()

    def record(self, run: Callable[[], T]) -> T:
        """Run, and note what passes; calls are counted anew each time the model is entered."""
        with ExitStack() as handles, heard(self.modules.values()), torch.enable_grad():
            if isinstance(self.root, nn.Module) and takes_hooks(self.root):
                handles.callback(self.root.register_forward_pre_hook(self._entered, prepend=True).remove)
            for name, side in self.sides:
                module = self.modules[name]
                if not takes_hooks(module):
                    continue
                if side == "in":
                    handle = module.register_forward_pre_hook(self._before(name), with_kwargs=True)
                else:
                    handle = module.register_forward_hook(self._after(name))
                handles.callback(handle.remove)
            return run()

    def moved(self) -> set[Place]:
        """List the tensors whose version has moved since they were seen."""
        return {place for place, seen in self.seen.items() if seen.alias._version != seen.version}

    def siblings(self, place: Place) -> list[Place]:
        """List all tensors of the same output or inputs."""
        return [other for other in self.seen if other[:3] == place[:3]]

    def _entered(self, _module: nn.Module, _args: Any) -> None:
        if not self._is_other_run():
            self.calls.clear()

    def _is_other_run(self) -> bool:
        """Whether the model runs inside a backward pass, or for someone else in another thread."""
        return in_backward() or get_ident() != self.thread

    def _after(self, name: str) -> Callable[..., Any]:
        return lambda _module, _args, output: self._note(name, "out", output)

    def _before(self, name: str) -> Callable[..., Any]:
        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            changed = self._note(name, "in", inputs_tree(args, kwargs))
            return None if changed is None else inputs_again(changed, args)

        return before

    def _note(self, name: str, side: Side, tree: Any) -> Any:
        """Note the tensors of one call; the changed tree where copies go on, else None."""
        if self._is_other_run():
            return None
        call = self.calls[name, side]
        self.calls[name, side] += 1
        single = side == "in" and is_single(tree)
        changed = None
        for index, tensor in tensors(tree):
            if not tensor.is_floating_point():
                continue
            place: Place = (name, side, call, () if single and index == (0,) else index)
            if place in self.copied:
                tensor = tensor.clone()
                changed = replaced(tree if changed is None else changed, index, tensor)
            edge = edge_of(tensor) if tensor.requires_grad else None
            packed = bool(index) and isinstance(pick(tree, index[:-1]), PackedSequence)
            self.seen[place] = Seen(tensor.detach(), tensor._version, edge, tensor._is_view(), packed)
        return changed


def copied_views(
    model: Callable[..., Any] | Mapping[str, nn.Module],
    selection: Selection,
    run: Callable[[], Tensor | None],
    target: Tensor,
    views: Set[Place],
) -> tuple[Set[Place], tuple[Recorder, Tensor] | None]:
    """Find the views that may go on as copies, for the target is the same; and the run in which they did."""

    def tried(copies: Set[Place]) -> tuple[Recorder, Tensor] | None:
        recorder = Recorder(model, selection, copied=copies)
        repeated = recorder.record(run)
        return (recorder, repeated) if repeated is not None and _same(target, repeated) else None

    copied = tried(views)
    if copied is None and len(views) > 1:  # each by itself: one whose base is read need not hide the others
        views = {place for place in views if tried({place}) is not None}
        copied = tried(views) if views else None
    return (views, copied) if copied is not None else (set(), None)


def _same(first: Tensor, second: Tensor) -> bool:
    """Whether two runs gave the same target, up to what rounding may do."""
    tolerance = torch.finfo(first.dtype).eps ** 0.5
    scale = float(first.detach().abs().max()) if first.numel() else 0.0
    return torch.allclose(first, second, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
