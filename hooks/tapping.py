"""Tensors without a module of their own as hook points: a function that users place in their forward pass."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, fx, nn

from conductance.hooks.eager import uncompiled


class Tap(nn.Module):
    """What the tensors of one name pass while something listens, so that hooks fire as they do at any module."""

    def forward(self, tensor: Tensor) -> Tensor:
        """Give the tensor itself."""
        return tensor


#: Every tap by its name, from its first call on.
_taps: dict[str, Tap] = {}
#: The taps that have been called, where somebody wants to know.
_called: ContextVar[dict[str, Tap] | None] = ContextVar("_called", default=None)


def tap(name: str, tensor: Tensor) -> Tensor:
    """Give a tensor in a forward pass a name, by which it is a hook point like the output of a module.

    Parameters
    ----------
    name
        The name, which no module of the model has. Called several times with one name in a forward pass, the calls
        are ``"gate#0"``, ``"gate#1"`` and so on.
    tensor
        Any tensor, of any shape.

    Returns
    -------
    Tensor
        The tensor itself. A view that the model modifies in place later on goes on as a copy while it is analysed;
        where that would change the output, since the model reads its base again, it cannot be analysed.

    Raises
    ------
    TypeError, ValueError
        The name is not a string, or empty; what is tapped is not a tensor.

    Notes
    -----
    Where nothing is analysed a call is a look-up. Compiled code does not contain it at all: analyses run the model
    uncompiled. A tap belongs to whatever runs: models may use the same names, unless one runs within another's pass.

    Examples
    --------
    >>> from conductance import hooks, total_conductance
    >>> class Gated(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.value, self.switch, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)
    ...     def forward(self, x):
    ...         return self.head(hooks.tap("gated", torch.sigmoid(self.switch(x)) * self.value(x)))
    >>> total = total_conductance(Gated(), torch.rand(5, 3), "gated", target=0)
    >>> total["gated"].shape, total.is_cut["gated"]
    (torch.Size([5, 4]), True)
    """
    if torch.compiler.is_compiling():
        return tensor
    known = _taps.get(name) if isinstance(tensor, Tensor) else None
    if known is None:
        if isinstance(tensor, fx.Proxy):
            return tensor
        known = _new(name, tensor)
    called = _called.get()
    if called is not None:
        called[name] = known
    if not known._forward_hooks and not known._forward_pre_hooks:
        return tensor
    result: Tensor = known(tensor)
    return result


def _new(name: Any, tensor: Any) -> Tap:
    if not isinstance(name, str):
        msg = f"tap: name is a {type(name).__name__}; expected a string, as in tap('gate', tensor)"
        raise TypeError(msg)
    if not name:
        msg = "tap: name is empty; expected one that no module of the model has, such as 'gate'"
        raise ValueError(msg)
    if not isinstance(tensor, Tensor):
        msg = f"tap: {name!r} is given a {type(tensor).__name__}; expected a tensor (tap several one by one)"
        raise TypeError(msg)
    return _taps.setdefault(name, Tap())


def known_taps() -> Mapping[str, Tap]:
    """Give all taps that any model has called so far."""
    return dict(_taps)


@contextmanager
def taps_called() -> Iterator[dict[str, Tap]]:
    """Fill a dictionary with the taps that are called in this thread, in their order.

    Examples
    --------
    >>> with taps_called() as taps:
    ...     _ = tap("gate", torch.ones(3))
    >>> list(taps)
    ['gate']
    """
    called: dict[str, Tap] = {}
    token = _called.set(called)
    try:
        with uncompiled():
            yield called
    finally:
        _called.reset(token)


@contextmanager
def heard(modules: Collection[nn.Module]) -> Iterator[None]:
    """Run uncompiled what has taps among these modules: they are no part of compiled code, and would go unheard."""
    if not any(isinstance(module, Tap) for module in modules):
        yield
        return
    with uncompiled():
        yield
