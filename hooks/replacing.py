"""Other tensors in place of those at hook points."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from conductance.hooks._trees import tensors
from conductance.hooks.capturing import Side, capture
from conductance.hooks.points import HookPoint
from conductance.hooks.selecting import LayerSpec, Selection, select
from conductance.hooks.tapping import taps_called

#: Takes a point and its tensor, and gives the one that the model goes on with; None leaves it.
Substitution: TypeAlias = Callable[[HookPoint, Tensor], Tensor | None]


class substitute(capture):
    """Put another tensor in place of a hook point's: within the context, each time the model runs.

    Other hooks see the new tensor, also those that were there before. Where a module works in place, its input is the
    same tensor, which the model may read again: the new one is written into it.

    Parameters
    ----------
    model, points
        As for `capture`. A point without a call number means all calls; the second and later ones carry their number.
    value
        Called with the concrete point and its tensor; gives the tensor to go on with, or None to leave it.

    Raises
    ------
    ValueError
        A point names no module of the model, or no tensor of its output; the new tensor of a module that works in place
        is of another shape.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False))
    >>> with substitute(model, "1", lambda point, tensor: torch.zeros_like(tensor)):
    ...     model(torch.ones(5, 3)).abs().sum().item()
    0.0
    """

    _prepend = True  # what taps the same tensor sees the new one

    def __init__(
        self, model: Callable[..., Any] | Mapping[str, nn.Module], points: LayerSpec, value: Substitution
    ) -> None:
        super().__init__(model, points, _unused)
        self._value = value
        self._given: dict[str, dict[int, int]] = {}

    def remove(self) -> None:
        """Take every hook off the model; a second time does nothing."""
        super().remove()
        self._given.clear()

    def _register(self, name: str, side: Side, requests: list[HookPoint]) -> Callable[[], None]:
        if side == "in":
            return super()._register(name, side, requests)

        # another thread may meet the hook before torch has noted that it takes keywords
        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
            if not self._is_other_run():
                self._given[name] = {id(tensor): _version(tensor) for _, tensor in tensors((args, kwargs))}

        handles = ExitStack()
        handles.callback(self._modules[name].register_forward_pre_hook(before, with_kwargs=True).remove)
        handles.callback(super()._register(name, side, requests))
        return handles.close

    def _tap(self, point: HookPoint, tensor: Tensor, clone: bool) -> Tensor | None:  # noqa: ARG002
        new = self._value(point, tensor)
        given = self._given.get(point.module, {}) if point.side == "out" else {}
        if new is None or new is tensor or id(tensor) not in given:
            return new
        changed = getattr(self._modules[point.module], "inplace", False) or _version(tensor) != given[id(tensor)]
        return _written(point, tensor, new) if changed else new


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; tensors of inference mode do not tell."""
    return -1 if tensor.is_inference() else tensor._version


def _written(point: HookPoint, tensor: Tensor, new: Tensor) -> Tensor:
    """The tensor itself with other numbers."""
    if new.shape != tensor.shape or new.dtype != tensor.dtype:
        told = f"{tuple(new.shape)} of {new.dtype} for {tuple(tensor.shape)} of {tensor.dtype}"
        raise ValueError(
            f"{point.name!r} works in place, so that its output is its input too and what is put there is written "
            f"into it: expected the same shape and dtype, got {told}; build the module with inplace=False"
        )
    if tensor.is_inference():
        return tensor.copy_(new)
    # what the module keeps for its backward pass is this tensor: where it is replaced the gradient is 0 in any case
    with _unsafe_preserve_version_counter(tensor):
        return tensor.copy_(new)


def path_point(model: Callable[..., Any], path_from: LayerSpec, run: Callable[[], Any] | None = None) -> Selection:
    """Select the one hook point whose tensor a path moves.

    Parameters
    ----------
    model, path_from
        The model, and the point as for `select`.
    run
        Executes the model: where nothing known has the name, it may be that of a tap that the model calls.

    Raises
    ------
    ValueError, TypeError
        It is no hook point, or more than one; the message names `path_from`.

    Examples
    --------
    >>> path_point(nn.Sequential(nn.Embedding(7, 3), nn.Flatten()), "0").points[0].name
    '0'
    """
    try:
        selection = _found(model, path_from, run)
    except (ValueError, TypeError) as error:
        raise type(error)(str(error).replace("layers:", "path_from:", 1)) from None
    if path_from is None or len(selection.points) != 1:
        given = f"{path_from!r}, which means {len(selection.points)}"
        msg = f"path_from: expected one hook point, such as the token embedding, got {given}"
        raise ValueError(msg)
    return selection


def _found(model: Callable[..., Any], path_from: LayerSpec, run: Callable[[], Any] | None) -> Selection:
    try:
        return select(model, path_from)
    except ValueError:
        if run is None:
            raise
    with taps_called() as taps:
        run()
    return select(model, path_from, taps=taps)


def _unused(_point: HookPoint, _activation: Tensor, _gradient: Tensor) -> None:
    """No gradient is waited for."""
