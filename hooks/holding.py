"""Tensors of a forward pass as they lie in the autograd graph, for more than one backward pass through it."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn

from conductance.hooks.capturing import capture
from conductance.hooks.points import HookPoint
from conductance.hooks.selecting import LayerSpec


class hold(capture):
    """Tap a model and hold the tensors themselves, with their graph, until they are let go of.

    Where `capture` serves one backward pass, these can be differentiated as often as needed, from and to, in
    reverse or forward mode.

    Parameters
    ----------
    model, points
        As for `capture`.
    clone
        Points whose tensor is modified in place later on in the model: the model goes on with a copy, so that
        the tensor held stays as it was.

    Attributes
    ----------
    tensors
        The tensor of each point, in the order of the forward pass; kept after the context is left.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    >>> x = torch.ones(5, 3, requires_grad=True)
    >>> with hold(model, ["1"]) as held:
    ...     output = model(x)
    >>> (hidden,) = held.tensors.values()
    >>> [torch.autograd.grad(hidden[:, unit].sum(), x, retain_graph=True)[0].shape for unit in (0, 1)]
    [torch.Size([5, 3]), torch.Size([5, 3])]
    """

    def __init__(
        self,
        model: Callable[..., Any] | Mapping[str, nn.Module],
        points: LayerSpec,
        *,
        clone: Collection[HookPoint] = (),
    ) -> None:
        super().__init__(model, points, _unused, clone=clone)
        self.tensors: dict[HookPoint, Tensor] = {}

    def _tap(self, point: HookPoint, tensor: Tensor, clone: bool) -> Tensor | None:
        self.tensors[point] = tensor
        return tensor.clone() if clone else None


def _unused(_point: HookPoint, _activation: Tensor, _gradient: Tensor) -> None:
    """No gradient is waited for."""
