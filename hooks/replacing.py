"""Other tensors in place of those at hook points."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

from conductance.hooks.capturing import capture
from conductance.hooks.points import HookPoint
from conductance.hooks.selecting import LayerSpec, Selection, select
from conductance.hooks.tapping import taps_called

#: Takes a point and its tensor, and gives the one that the model goes on with; None leaves it.
Substitution: TypeAlias = Callable[[HookPoint, Tensor], Tensor | None]


class substitute(capture):
    """Put another tensor in place of a hook point's: within the context, each time the model runs.

    Other hooks see the new tensor, also those that were there before.

    Parameters
    ----------
    model, points
        As for `capture`. A point without a call number means all calls; the second and later ones carry their number.
    value
        Called with the concrete point and its tensor; gives the tensor to go on with, or None to leave it.

    Raises
    ------
    ValueError
        A point names no module of the model, or no tensor of its output.

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

    def _tap(self, point: HookPoint, tensor: Tensor, clone: bool) -> Tensor | None:  # noqa: ARG002
        return self._value(point, tensor)


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
