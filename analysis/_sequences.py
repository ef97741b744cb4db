"""What makes the units of a layer, as far as that can be read off a ``Sequential`` that is run as a whole."""

from __future__ import annotations

import torch
from torch import nn

from conductance.analysis._unit_weights import MIXING, makes_units, unit_count
from conductance.analysis._wiring import Maker
from conductance.errors import ConductanceError

#: Modules that work on each channel alone, and give zero where it is zero.
_POOLS: tuple[type[nn.Module], ...] = (
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
)
#: Modules of which pooling would mix the units.
_FEATURES_LAST = (nn.Linear, nn.LayerNorm)
#: Modules beside the activation functions of one number.
_NO_FUNCTIONS = (nn.MultiheadAttention, nn.GLU, nn.RReLU)


def maker_before(model: nn.Module, layer: str) -> Maker:
    """Find the module whose weights make a layer's units, for units that are held at zero.

    Raises
    ------
    ValueError
        If that cannot be known without a run; the message asks for ``inputs``.
    ConductanceError
        For the last linear map of ``nn.MultiheadAttention``, which is never called.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(), nn.ReLU(), nn.Linear(4, 3))
    >>> maker_before(model, "2")
    Maker(name='0', units=4, axis=None, behind=())
    """
    if isinstance(model.get_submodule(layer), nn.modules.linear.NonDynamicallyQuantizableLinear):
        raise ConductanceError(
            f"{layer!r} is not run: its attention layer reads its weights alone, which masks would not follow in "
            "training; rank another layer"
        )
    passed: list[nn.Module] = []
    for name, module in [(layer, model.get_submodule(layer)), *_before(model, layer)]:
        if makes_units(module):
            mixed = isinstance(module, _FEATURES_LAST) and any(isinstance(each, _POOLS) for each in passed)
            if mixed or (name != layer and _names(model, module) > 1):
                break
            return Maker(name, unit_count(module), None, _behind(model, name, module))
        if not _zero_stays(module) or _names(model, module) > 1:
            break
        passed.append(module)
    raise ValueError(
        f"layer {layer!r} has no weights of its own, and it is not clear without a run that it is zero where one "
        "with weights is: give inputs, a batch as the model takes it, or rank the layer with the weights"
    )


def _before(model: nn.Module, layer: str) -> list[tuple[str, nn.Module]]:
    """The modules of a ``Sequential`` before one of them, the nearest first."""
    above, _, last = layer.rpartition(".")
    parent = model.get_submodule(above)
    if type(parent).forward is not nn.Sequential.forward or not layer:
        return []
    children = list(parent.named_children())
    names = [name for name, _ in children]
    earlier = children[: names.index(last)] if last in names else []
    return [(f"{above}.{name}" if above else name, module) for name, module in reversed(earlier)]


def _behind(model: nn.Module, name: str, module: nn.Module) -> tuple[str, ...]:
    """The layer just before a batch norm."""
    before = _before(model, name)[:1] if isinstance(module, nn.modules.batchnorm._BatchNorm) else []
    return tuple(
        other
        for other, mixing in before
        if isinstance(mixing, MIXING) and unit_count(mixing) == unit_count(module) and _names(model, mixing) == 1
    )


def _names(model: nn.Module, module: nn.Module) -> int:
    """How often a module is part of a model: one that runs in several places has several layers before it."""
    return sum(each is module for _, each in model.named_modules(remove_duplicate=False))


def _zero_stays(module: nn.Module) -> bool:
    """Whether a module gives 0 for a unit that is 0."""
    if isinstance(module, (nn.Identity, nn.modules.dropout._DropoutNd, *_POOLS)):
        return True
    if type(module).__module__ != nn.ReLU.__module__ or isinstance(module, _NO_FUNCTIONS):
        return False
    like = next(module.parameters(), torch.zeros(()))
    units = max(2, int(getattr(module, "num_parameters", 2)))
    with torch.no_grad():
        return not bool(module(torch.zeros(2, units, 2, 2, dtype=like.dtype, device=like.device)).any())
