"""Which model it was: enough of its weights to tell it from another one, or from itself after more training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

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
        digest.update(_sample(tensor.detach()))
    inner = getattr(model, "_orig_mod", model)
    return {"model": type(inner).__name__, "weights": digest.hexdigest()[:16]}


def _sample(tensor: Tensor) -> bytes:
    if is_lazy(tensor):
        return b""
    told = f"{tuple(tensor.shape)} {tensor.dtype}".encode()
    if tensor.is_meta or tensor.layout is not torch.strided or not tensor.numel():
        return told
    flat = tensor.reshape(-1)
    some = flat[:: max(1, flat.numel() // LOOKED_AT)]
    return told + some.cpu().contiguous().view(torch.uint8).numpy().tobytes()
