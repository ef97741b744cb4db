"""Everything around a run that must not show in it, or be changed by it: modes, flags, parameters, buffers, seeds."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from conductance.hooks.eager import uncompiled
from conductance.hooks.keeping import tensors_kept


@contextmanager
def undisturbed(model: Callable[..., Any], modules: Mapping[str, nn.Module], *, frozen: bool = True) -> Iterator[None]:
    """Run a model for gradients at its inputs and layers, and leave it as it came.

    Random state, buffers and renormalised weights are put back. It works inside ``no_grad`` and
    ``inference_mode``, and for a model that was made there; what is compiled runs eagerly, for compiled code passes by
    hooks; a recurrent layer in eval mode runs without cuDNN.

    Parameters
    ----------
    model
        A module, or any callable that runs modules.
    modules
        The modules that are known of a callable.
    frozen
        Whether parameters need no gradient meanwhile.

    Examples
    --------
    >>> model = nn.Linear(3, 2)
    >>> with torch.no_grad(), undisturbed(model, {}):
    ...     x = torch.ones(1, 3, requires_grad=True)
    ...     flows, stored = model(x).requires_grad, model.weight.requires_grad
    >>> flows, stored, model.weight.requires_grad
    (True, False, True)
    """
    roots = [model] if isinstance(model, nn.Module) else list(modules.values())
    every = list(dict.fromkeys(module for root in roots for module in root.modules()))
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        _numbers_kept(every),
        _usable_by_autograd(every),
        _without_gradients(every) if frozen else ExitStack(),
        tensors_kept(every),
        uncompiled(),
        _without_cudnn() if needs_cudnn_off(every) else ExitStack(),
    ):
        yield


def usable_by_autograd(tree: Any) -> Any:
    """Copy the tensors of a nested structure that were made in inference mode, which autograd cannot keep.

    Examples
    --------
    >>> with torch.inference_mode():
    ...     made = {"x": torch.ones(2)}
    >>> usable_by_autograd(made)["x"].is_inference()
    False
    """
    with torch.inference_mode(False):
        return tree_map_only(Tensor, lambda tensor: tensor.clone() if tensor.is_inference() else tensor, tree)


def needs_cudnn_off(modules: Iterable[nn.Module]) -> bool:
    """Say whether one of these is a recurrent layer in eval mode that cuDNN would run.

    cuDNN keeps what the backward pass of a recurrent layer needs in train mode only ("cudnn RNN backward can only be
    called in training mode"). Train mode would switch dropout on between its layers, so cuDNN is switched off: the
    same layer then runs on kernels that are slower and have a backward pass in either mode. Weights on the meta
    device are loaded to the device they run on when their module is called, which may be one with cuDNN.
    """
    return any(
        isinstance(module, nn.RNNBase)
        and not module.training
        and any(parameter.device.type in ("cuda", "meta") for parameter in module.parameters())
        for module in modules
    )


@contextmanager
def _numbers_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put the state of random numbers back, of the CPU and of the devices that run the model."""
    devices = {
        parameter.device for module in modules for parameter in module._parameters.values() if parameter is not None
    }
    kind = next((device.type for device in devices if device.type in ("cuda", "xpu")), "cuda")
    numbers = {device.index for device in devices if device.type == kind}
    if torch.cuda.is_available() and torch.cuda.is_initialized() and kind == "cuda":
        numbers.add(torch.cuda.current_device())
    with torch.random.fork_rng(sorted(numbers), device_type=kind):
        yield


@contextmanager
def _without_gradients(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Parameters need no gradient; noted by name, for offloading puts others in their places when a module runs."""
    trained = [
        (module, name, parameter)
        for module in modules
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.requires_grad
    ]
    try:
        for _, _, parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, name, parameter in trained:
            parameter.requires_grad_()
            now = dict(module._parameters.items()).get(name)  # TorchScript's table has no get
            if now is not None:
                now.requires_grad_()


@contextmanager
def _usable_by_autograd(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Copies in place of the parameters and buffers that were made in inference mode."""
    copies: dict[Tensor, Tensor] = {}
    replaced: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        for module in modules:
            tables: list[dict[str, Any]] = [cast("dict[str, Any]", module._parameters), module._buffers]
            for table in tables:
                for name, tensor in table.items():
                    if tensor is None or not tensor.is_inference():
                        continue
                    if tensor not in copies:
                        copy = tensor.detach().clone()
                        copies[tensor] = nn.Parameter(copy, False) if isinstance(tensor, nn.Parameter) else copy
                    replaced.append((table, name, tensor))
        for table, name, tensor in replaced:
            table[name] = copies[tensor]
        yield
    finally:
        for table, name, tensor in replaced:
            table[name] = tensor


_lock = Lock()
_without = 0
_before = True


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """Switch cuDNN off, in all threads, until the last of them leaves; its other settings stay."""
    global _without, _before
    with _lock:
        if not _without:
            _before, torch.backends.cudnn.enabled = torch.backends.cudnn.enabled, False
        _without += 1
    try:
        yield
    finally:
        with _lock:
            _without -= 1
            if not _without:
                torch.backends.cudnn.enabled = _before
