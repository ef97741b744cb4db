"""Buffers and renormalised weights of a model put back as they were, whatever a forward pass does to them."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def tensors_kept(modules: Collection[nn.Module]) -> Iterator[None]:
    """Put back the buffers of some modules afterwards, and the weights of those with a ``max_norm``.

    Buffers may be changed in place or replaced; an embedding with a ``max_norm`` shrinks rows in place.

    Parameters
    ----------
    modules
        Each of them, without its children.

    Examples
    --------
    >>> norm = nn.BatchNorm1d(3)
    >>> with tensors_kept(norm.modules()):
    ...     _ = norm(torch.rand(4, 3))
    >>> int(norm.num_batches_tracked)
    0
    """
    kept = [
        (module, name, buffer, None if buffer is None else (buffer.clone(), _version(buffer)))
        for module in modules
        for name, buffer in module._buffers.items()
    ]
    weights = [
        (parameter, parameter.detach().clone(), parameter._version)
        for module in modules
        if getattr(module, "max_norm", None) is not None
        for _, parameter in module._parameters.items()
        if parameter is not None and not parameter.is_inference()
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, saved in kept:
                module._buffers[name] = buffer
                if buffer is None or saved is None:
                    continue
                # batch norm in train mode changes its statistics without a new version of the tensor
                moved = module.training or saved[1] is None or _version(buffer) != saved[1]
                if moved and not torch.equal(buffer, saved[0]):
                    _copy(buffer, saved[0])
            for parameter, value, version in weights:
                if parameter._version != version:
                    parameter.copy_(value)


def _version(buffer: Tensor) -> int | None:
    return None if buffer.is_inference() else buffer._version


def _copy(buffer: Tensor, value: Tensor) -> None:
    with torch.inference_mode(buffer.is_inference()):
        buffer.copy_(value)
