"""Masks on parameters, as ``torch.nn.utils.prune`` makes them, and biases that are changed; all can be taken back."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from conductance.analysis._unit_weights import unit_count
from conductance.errors import ConductanceError

#: Parameters that masks are put on.
_MASKED = ("weight", "bias")


class Masks:
    """Masks and biases of some modules.

    Examples
    --------
    >>> layer, masks = nn.Linear(3, 2), Masks()
    >>> masks.mask(layer, "weight", torch.zeros(2, 3))
    >>> bool((layer(torch.ones(3)) == layer.bias).all())
    True
    >>> masks.undo()
    >>> sorted(name for name, _ in layer.named_parameters())
    ['bias', 'weight']
    """

    def __init__(self) -> None:
        self._saved: dict[nn.Module, _Saved] = {}
        self._masked: dict[tuple[nn.Module, str], None] = {}

    @property
    def parameters(self) -> list[tuple[nn.Module, str]]:
        """Modules and names of the parameters that are masked, as ``prune.remove`` takes them."""
        return list(self._masked)

    def mask(self, module: nn.Module, name: str, mask: Tensor) -> None:
        """Mask a parameter, on top of any mask that it has; None is left."""
        if getattr(module, name, None) is None:
            return
        self._save(module)
        # made in inference mode, no gradient could pass the mask later
        with torch.inference_mode(_underlying(module, name).is_inference()):
            prune.custom_from_mask(module, name, mask.clone())
        self._masked[module, name] = None

    def add_to_bias(self, module: nn.Module, values: Tensor) -> None:
        """Add to the bias; a module without one gets it."""
        with _changeable(module):
            self._bias(module).add_(values)
        self._refresh(module)

    def set_bias(self, module: nn.Module, units: list[int], values: Tensor) -> None:
        """Set the bias of some units; a module without one gets it."""
        with _changeable(module):
            bias = self._bias(module)
            bias[units] = values.to(bias)
        self._refresh(module)

    def undo(self) -> None:
        """Put all back as it was, bit for bit; a second time does nothing, and later masks of a module go too."""
        for module, saved in self._saved.items():
            stack = _STACKS.get(module, [])
            place = next((place for place, each in enumerate(stack) if each() is saved), None)
            if place is not None:  # else masks that are older were undone, and these with them
                del stack[place:]
                saved.restore(module)
        self._saved.clear()
        self._masked.clear()

    def _save(self, module: nn.Module) -> None:
        if module not in self._saved:
            self._saved[module] = saved = _Saved(module)
            _STACKS.setdefault(module, []).append(weakref.ref(saved))

    def _bias(self, module: nn.Module) -> Tensor:
        self._save(module)
        if getattr(module, "bias", None) is None:
            weight = _underlying(module, "weight")
            zeros = torch.zeros(unit_count(module), dtype=weight.dtype, device=weight.device)
            module.register_parameter("bias", nn.Parameter(zeros, requires_grad=weight.requires_grad))
        return _underlying(module, "bias")

    @staticmethod
    def _refresh(module: nn.Module) -> None:
        """Multiply by the mask again: until the module runs, its attribute would be the old product."""
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, prune.BasePruningMethod):
                hook(module, None)


class _Saved:
    """What of a module masks and biases change."""

    def __init__(self, module: nn.Module) -> None:
        self.parameters = dict(module._parameters)
        self.values = {name: each.detach().clone() for name, each in self.parameters.items() if each is not None}
        self.buffers = {name: module._buffers[name] for name in module._buffers if _is_mask(name)}
        self.products = {str(name): module.__dict__[name] for name in _MASKED if name in module.__dict__}
        self.hooks = dict(module._forward_pre_hooks)
        self.methods = {
            hook: hook._pruning_methods for hook in self.hooks.values() if isinstance(hook, prune.PruningContainer)
        }

    def restore(self, module: nn.Module) -> None:
        hooks = cast("dict[int, Any]", module._forward_pre_hooks)
        added = {key: hook for key, hook in hooks.items() if key not in self.hooks and not _prunes(hook)}
        kept = {key: hook for key, hook in self.hooks.items() if key in hooks or _prunes(hook)}
        _fill(hooks, {**kept, **added})
        for container, methods in self.methods.items():
            container._pruning_methods = methods
        for name in _MASKED:
            module.__dict__.pop(name, None)
        _fill(cast("dict[str, Any]", module._parameters), self.parameters)
        others = {name: each for name, each in module._buffers.items() if not _is_mask(name)}
        _fill(module._buffers, {**others, **self.buffers})
        module.__dict__.update(self.products)
        for name, value in self.values.items():
            parameter = cast("Tensor", self.parameters[name])
            with torch.inference_mode(parameter.is_inference()), torch.no_grad():
                parameter.copy_(value)


#: What masks have changed of each module, the oldest first.
_STACKS: weakref.WeakKeyDictionary[nn.Module, list[weakref.ref[_Saved]]] = weakref.WeakKeyDictionary()


@contextmanager
def _changeable(module: nn.Module) -> Iterator[None]:
    """Where parameters can be changed, and new ones are such as those that are there."""
    with torch.inference_mode(_underlying(module, "weight").is_inference()), torch.no_grad():
        yield


def _is_mask(name: str) -> bool:
    return name in [f"{masked}_mask" for masked in _MASKED]


def _underlying(module: nn.Module, name: str) -> Tensor:
    """The parameter itself, masked or not."""
    kind = type(module).__name__
    masked = f"{name}_mask" in module._buffers  # spectral_norm calls its parameter weight_orig too
    parameter = module._parameters.get(f"{name}_orig" if masked else name)
    if parameter is not None:
        return parameter
    raise ConductanceError(
        f"the {name} of this {kind} is no parameter but computed (weight_norm, spectral_norm or another "
        "parametrization), so that no mask can be put on it; make it one first, by "
        "torch.nn.utils.parametrize.remove_parametrizations or torch.nn.utils.remove_weight_norm"
    )


def _prunes(hook: Any) -> bool:
    return isinstance(hook, prune.BasePruningMethod)


def _fill(table: dict[Any, Any], entries: dict[Any, Any]) -> None:
    """Give a dict these entries, in their order; it stays the same object."""
    table.clear()
    table.update(entries)
