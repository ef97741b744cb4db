"""Taps: activations on the forward pass, gradients on the backward pass, handed over while they are fresh."""

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from threading import get_ident
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from conductance.hooks._trees import Index, inputs_again, inputs_tree, is_single, pick, replaced, tensors
from conductance.hooks.points import HookPoint
from conductance.hooks.reached import takes_hooks
from conductance.hooks.selecting import LayerSpec, Selection, select
from conductance.hooks.tapping import heard, known_taps

Consumer: TypeAlias = Callable[[HookPoint, Tensor, Tensor], None]
Side: TypeAlias = Literal["out", "in"]


def in_backward() -> bool:
    """Say whether this thread is in a backward pass; a module called now is being recomputed."""
    return torch._C._current_graph_task_id() != -1


class capture:
    """Tap a model: within the context, hand each activation with its gradient to a consumer.

    The consumer is called in the backward pass, once per tapped tensor, as soon as the gradient is complete;
    the tap lets go of the activation at that moment, so memory falls as the backward pass proceeds. On exit,
    error or not, every hook and every stored tensor is gone.

    Parameters
    ----------
    model
        The model, or a mapping of names to modules (with ``""`` the model itself, if it is to reset the count
        of calls).
    points
        What to tap: hook points, or anything else that `select` takes. A point without a call number taps all
        calls; the second and later calls carry their number. A point whose index stops short of a tensor taps
        all tensors below it. Names of taps (see `tap`) are known once they have been called.
    consumer
        Called with the point, its activation and its gradient, both detached and of the tensor's shape.
    clone
        Points whose tensor is modified in place later on in the model: the activation is saved as a copy, and
        a view goes on through the model as a copy too, since its gradient would be lost otherwise.
    on_activation
        Called in the forward pass with each point and its activation, detached, whether or not a gradient
        will come.

    Raises
    ------
    ValueError
        A point names no module of the model, or no tensor of its output.
    RuntimeError
        Entered twice at once; an activation was modified in place and its point is not in `clone`; or a
        second backward pass through the same graph.

    Notes
    -----
    Modules that run inside a backward pass (checkpointing) are not tapped again: the first run was. Calls are
    counted from 0 each time the model is entered; where the model is a plain callable, `restart` does it.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    >>> seen = {}
    >>> def keep(point, activation, gradient):
    ...     seen[point.name] = (activation * gradient).sum(1)
    >>> with capture(model, ["0", "1"], keep):
    ...     model(torch.ones(5, 3)).sum().backward()
    >>> list(seen), seen["0"].shape
    (['1', '0'], torch.Size([5]))
    """

    _prepend = False  # whether its hooks go before those that a module has

    def __init__(
        self,
        model: Callable[..., Any] | Mapping[str, nn.Module],
        points: LayerSpec,
        consumer: Consumer,
        *,
        clone: Collection[HookPoint] = (),
        on_activation: Callable[[HookPoint, Tensor], None] | None = None,
    ) -> None:
        if not callable(consumer):
            msg = f"consumer: expected a callable (point, activation, gradient), got {consumer!r}"
            raise TypeError(msg)
        selection = _selected(model, points)
        self._root = model.get("") if isinstance(model, Mapping) else model
        self._modules = selection.modules
        self._requests: dict[tuple[str, Side], list[HookPoint]] = {}
        for point in selection.points:
            self._requests.setdefault((point.module, point.side), []).append(point)
        self._consumer = consumer
        self._clone = frozenset(clone)
        self._on_activation = on_activation
        self._calls: dict[tuple[str, Side], int] = {}
        self._taps: weakref.WeakSet[_Tap] = weakref.WeakSet()
        self._handles: ExitStack | None = None
        self._thread = get_ident()

    def __enter__(self) -> Self:
        if self._handles is not None:
            msg = "this capture is already entered; leave it first, or make a second capture"
            raise RuntimeError(msg)
        self._thread = get_ident()
        with ExitStack() as handles:
            handles.enter_context(heard(self._modules.values()))
            if isinstance(self._root, nn.Module) and takes_hooks(self._root):
                handles.callback(self._root.register_forward_pre_hook(self._entered, prepend=True).remove)
            for (name, side), requests in self._requests.items():
                handles.callback(self._register(name, side, requests))
            self._handles = handles.pop_all()
        self.restart()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Take every hook off the model and let go of every stored tensor; a second time does nothing."""
        handles, self._handles = self._handles, None
        if handles is not None:
            handles.close()
        for tap in list(self._taps):
            tap.remove()
        self._taps.clear()

    def restart(self) -> None:
        """Count the calls of every module from 0 again, as entering the model does by itself."""
        self._calls.clear()

    def _entered(self, _module: nn.Module, _args: Any) -> None:
        if not self._is_other_run():
            self.restart()

    def _is_other_run(self) -> bool:
        """Whether the model runs inside a backward pass, or for someone else in another thread."""
        return in_backward() or get_ident() != self._thread

    def _register(self, name: str, side: Side, requests: list[HookPoint]) -> Callable[[], None]:
        def after(_module: nn.Module, _args: Any, output: Any) -> Any:
            return None if self._is_other_run() else self._tap_all((name, side), requests, output)

        # another thread may meet the hook before torch has noted that it takes keywords
        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
            if self._is_other_run() or kwargs is None:
                return None
            changed = self._tap_all((name, side), requests, inputs_tree(args, kwargs))
            return None if changed is None else inputs_again(changed, args)

        module = self._modules[name]
        if side == "in":
            return module.register_forward_pre_hook(before, with_kwargs=True, prepend=self._prepend).remove
        return module.register_forward_hook(after, prepend=self._prepend).remove

    def _tap_all(self, key: tuple[str, Side], requests: list[HookPoint], tree: Any) -> Any:
        """Tap what the requests mean in one call; the changed tree where a copy goes on, else None."""
        call = self._calls.get(key, 0)
        self._calls[key] = call + 1
        changed = None
        for request in requests:
            if request.call is not None and request.call != call:
                continue
            for index, tensor in _requested(request, tree if changed is None else changed):
                point = _concrete(request, call, index)
                clone = bool(self._clone) and (request in self._clone or point in self._clone)
                copy = self._tap(point, tensor, clone)
                if copy is not None:
                    place = (0,) if request.side == "in" and not index else index
                    changed = replaced(tree if changed is None else changed, place, copy)
        return changed

    def _tap(self, point: HookPoint, tensor: Tensor, clone: bool) -> Tensor | None:
        """Tap one tensor; returns its copy, if the model must go on with one."""
        copy = tensor.clone() if clone and tensor.requires_grad and tensor._is_view() else None
        tensor = tensor if copy is None else copy
        activation = tensor.detach().clone() if clone else tensor.detach()
        if self._on_activation is not None:
            self._on_activation(point, activation)
        if tensor.requires_grad:
            self._taps.add(_Tap(point, tensor, activation, self._consumer))
        return copy


class _Tap:
    """The hook on one tensor: holds the activation until its gradient arrives."""

    __slots__ = ("__weakref__", "activation", "consumer", "handle", "point", "version")

    def __init__(self, point: HookPoint, tensor: Tensor, activation: Tensor, consumer: Consumer) -> None:
        self.point = point
        self.activation: Tensor | None = activation
        self.version = activation._version
        self.consumer = consumer
        self.handle: RemovableHandle = tensor.register_hook(self)

    def __call__(self, gradient: Tensor) -> None:
        activation, self.activation = self.activation, None
        if activation is None:
            msg = (
                f"{self.point.name}: its activation was handed over in an earlier backward pass through the "
                "same graph; run the model again before the next backward pass"
            )
            raise RuntimeError(msg)
        if activation._version != self.version:
            msg = (
                f"{self.point.name}: the model modified this tensor in place after it was tapped, its value "
                "is gone; name the point in `clone`"
            )
            raise RuntimeError(msg)
        self.consumer(self.point, activation, gradient.detach() if gradient.requires_grad else gradient)

    def remove(self) -> None:
        self.activation = None
        self.handle.remove()


def _selected(model: Callable[..., Any] | Mapping[str, nn.Module], points: LayerSpec) -> Selection:
    """Select; without a search where each point names a module of a mapping, as is done for every pass."""
    if isinstance(model, Mapping) and isinstance(points, tuple | list):
        known = [point for point in points if isinstance(point, HookPoint) and point.module in model]
        if known and len(known) == len(points):
            return Selection({point.module: model[point.module] for point in known}, tuple(dict.fromkeys(known)))
    return select(model, points, taps=known_taps())


def _concrete(request: HookPoint, call: int, index: Index) -> HookPoint:
    if request.call is None and call > 0:
        return replace(request, call=call, index=index)
    return request if request.index == index else replace(request, index=index)


def _requested(request: HookPoint, tree: Any) -> Iterator[tuple[Index, Tensor]]:
    """Find the tensors a request means: the one at its index, or all below it that can have a gradient."""
    if request.side == "in" and not request.index and is_single(tree):
        yield (), tree[0]
        return
    try:
        found = pick(tree, request.index)
    except LookupError as error:
        msg = f"{request.name}: {error}"
        raise ValueError(msg) from None
    if isinstance(found, Tensor):
        yield request.index, found
        return
    below = [(i, t) for i, t in tensors(found, request.index) if t.is_floating_point()]
    if request.index and not below:
        kind = type(found).__name__
        msg = f"{request.name}: expected a tensor of floating-point numbers there, found {kind}"
        raise ValueError(msg)
    yield from below
