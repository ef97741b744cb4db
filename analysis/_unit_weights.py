"""Which weights make a unit, and which read it: masks over the weights of linear layers, convolutions and norms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

#: Layers that mix their inputs: each unit has weights of its own, and each input has weights that read it.
MIXING: tuple[type[nn.Module], ...] = (nn.Linear, nn.modules.conv._ConvNd)
#: Layers that scale and shift each unit.
SCALING: tuple[type[nn.Module], ...] = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def makes_units(module: nn.Module) -> bool:
    """Say whether each unit of a module's output has weights of its own.

    Examples
    --------
    >>> makes_units(nn.Linear(3, 4)), makes_units(nn.ReLU()), makes_units(nn.BatchNorm1d(4, affine=False))
    (True, False, False)
    """
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) != 1:
        return False
    return isinstance(module, (*MIXING, *SCALING)) and getattr(module, "weight", None) is not None


def unit_count(module: nn.Module) -> int:
    """Number of units that a module makes.

    Examples
    --------
    >>> unit_count(nn.ConvTranspose2d(3, 4, 2))
    4
    """
    if isinstance(module, nn.modules.conv._ConvNd):
        return module.out_channels
    return len(_weight(module))


def unit_axis(module: nn.Module, ndim: int) -> int:
    """Axis of the units, or of what is read, in a tensor of a module: the last of linear maps, else the second."""
    return ndim - 1 if isinstance(module, nn.Linear | nn.LayerNorm) else min(1, ndim - 1)


def own_mask(module: nn.Module, units: Sequence[int]) -> Tensor:
    """Mask of the weights: 0 for those that make these units.

    Examples
    --------
    >>> own_mask(nn.ConvTranspose1d(4, 6, 1, groups=2), [4])[..., 0]
    tensor([[1., 1., 1.],
            [1., 1., 1.],
            [1., 0., 1.],
            [1., 0., 1.]])
    """
    mask = torch.ones_like(_weight(module))
    if _is_transposed(module):
        _by_group(mask, module)[_group(units, mask.shape[1])] = 0
    else:
        mask[list(units)] = 0
    return mask


def reading_mask(module: nn.Module, columns: Sequence[int]) -> Tensor:
    """Mask of the weights of a mixing layer: 0 for those that read these inputs.

    Examples
    --------
    >>> reading_mask(nn.Conv1d(6, 4, 1, groups=2), [4])[..., 0]
    tensor([[1., 1., 1.],
            [1., 1., 1.],
            [1., 0., 1.],
            [1., 0., 1.]])
    """
    mask = torch.ones_like(_weight(module))
    if _is_transposed(module):
        mask[list(columns)] = 0
    else:
        _by_group(mask, module)[_group(columns, mask.shape[1])] = 0
    return mask


def _weight(module: nn.Module) -> Tensor:
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.detach()


def _is_transposed(module: nn.Module) -> bool:
    return bool(getattr(module, "transposed", False))


def _by_group(mask: Tensor, module: nn.Module) -> Tensor:
    """View a mask as ``(groups, weights on the second axis, weights of the group on the first, …)``."""
    groups = int(getattr(module, "groups", 1))
    return mask.view(groups, mask.shape[0] // groups, *mask.shape[1:]).transpose(1, 2)


def _group(numbers: Sequence[int], size: int) -> tuple[list[int], list[int]]:
    """Group of each number, and its place there."""
    return [number // size for number in numbers], [number % size for number in numbers]
