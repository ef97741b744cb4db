"""Which model it was: enough of its weights to tell it from another one, or from itself after more training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from conductance._reporting import described

#: Numbers looked at of each parameter and buffer, spread evenly.
LOOKED_AT = 64


def fingerprint(model: Callable[..., Any]) -> dict[str, str]:
    """Class of a model, and a digest of names, shapes and some numbers of its parameters and buffers.

    Examples
    --------
    >>> layer = nn.Linear(3, 2)
    >>> first = fingerprint(layer)
    >>> with torch.no_grad():
    ...     _ = layer.weight.mul_(1.001)
    >>> first["model"], fingerprint(layer) == first
    ('Linear', False)
    """
    if not isinstance(model, nn.Module):
        return {"model": getattr(model, "__qualname__", type(model).__name__)}
    digest = hashlib.sha256()
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        digest.update(name.replace("_orig_mod.", "").encode())  # as torch.compile calls what it wrapped
        digest.update(_sample(tensor))
    inner = getattr(model, "_orig_mod", model)
    return {"model": type(inner).__name__, "weights_fingerprint": digest.hexdigest()[:16]}


def told_apart(value: Any) -> Any:
    """A value as it can stand in a saved result, with a digest of what is too large to be written out.

    Examples
    --------
    >>> import torch
    >>> told_apart(2.0), told_apart((torch.ones(2), "mean"))
    (2.0, [[1.0, 1.0], 'mean'])
    >>> told_apart(torch.zeros(3, 40)) == told_apart(torch.ones(3, 40))
    False
    """
    if isinstance(value, Mapping):
        return {str(name): told_apart(one) for name, one in value.items()}
    if isinstance(value, (tuple, list)):
        return [told_apart(one) for one in value]
    told = described(value)
    if not isinstance(told, str) or not isinstance(value, Tensor) or value.is_meta or value.layout is not torch.strided:
        return told
    numbers = value.detach().reshape(-1).cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return f"{told}, {value.dtype}, {hashlib.sha256(numbers).hexdigest()[:16]}"


def _sample(tensor: Tensor) -> bytes:
    if is_lazy(tensor):
        return b""
    told = f"{tuple(tensor.shape)} {tensor.dtype}".encode()
    if tensor.is_meta or tensor.layout is not torch.strided or not tensor.numel():
        return told
    flat = tensor.detach().reshape(-1)
    some = flat[:: max(1, flat.numel() // LOOKED_AT)]
    return told + some.cpu().contiguous().view(torch.uint8).numpy().tobytes()
