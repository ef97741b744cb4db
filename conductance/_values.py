"""Values that targets compare an output with, or weigh it by, and how they are written."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from conductance._places import Places

#: A tensor of more numbers is written as its shape, unless it is one integer for each example.
MOST_WRITTEN = 64


def numbers(name: str, given: Any) -> Tensor:
    """Finite numbers from a tensor, an array, a list or a number.

    Raises
    ------
    TypeError, ValueError
        If they are none, or boolean, or NaN; the message begins with ``name``.
    """
    found = _tensor(name, given)
    if found.dtype == torch.bool:
        raise TypeError(f"{name} is boolean; expected numbers: .long() for classes, .float() for values")
    return found


def weights(name: str, given: Any) -> Tensor | None:
    """Booleans or finite numbers that are not all zero; None stays None."""
    if given is None:
        return None
    found = _tensor(name, given)
    if not bool((found != 0).any()):
        raise ValueError(f"{name} selects nothing: all of it is zero")
    return found


def _tensor(name: str, given: Any) -> Tensor:
    try:
        found: Tensor = given.detach() if isinstance(given, Tensor) else torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(
            f"{name} is a {type(given).__name__} that is no tensor ({error}); expected a tensor, an array or a list"
        ) from error
    if found.is_complex() or found.layout != torch.strided:
        raise TypeError(f"{name} is {'complex' if found.is_complex() else 'sparse'}; expected real, dense numbers")
    if found.numel() == 0:
        raise ValueError(f"{name} is empty, shape {tuple(found.shape)}")
    if found.is_floating_point() and not bool(torch.isfinite(found).all()):
        raise ValueError(f"{name} holds NaN or infinity; clean the data first")
    return found


def text_of(value: Any) -> str:
    """A value as Python would write it, the same in every run: no addresses, and large tensors by their shape.

    Examples
    --------
    >>> text_of(torch.tensor([1.0, 2.0])), text_of(torch.zeros(8, 9)), text_of(nn.functional.mse_loss)
    ('[1.0, 2.0]', '<tensor (8, 9) of float32>', 'mse_loss')
    """
    if isinstance(value, Places):
        return str(value)
    if isinstance(value, Tensor):
        whole = value.numel() <= MOST_WRITTEN or (value.dim() == 1 and not value.is_floating_point())
        kind = str(value.dtype).removeprefix("torch.")
        return str(value.tolist()) if whole else f"<tensor {tuple(value.shape)} of {kind}>"
    if isinstance(value, partial):
        given = [*map(text_of, value.args), *(f"{name}={text_of(one)}" for name, one in value.keywords.items())]
        return f"partial({', '.join([text_of(value.func), *given])})"
    if value is None or isinstance(value, (bool, int, float, str, nn.Module)):
        return repr(value)
    return str(getattr(value, "__qualname__", type(value).__name__))
