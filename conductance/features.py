"""Groups of input features: every element for itself, superpixels, tokens, columns.

A group is what neuron conductance and flow graphs count as one input. A single group that covers a patch of an image
gives the image-patch attribution of a neuron (2202.11912).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from conductance.arguments import Key
from conductance.path import StraightPath

#: None, a mask or one for each moving input, or the name or number of an axis.
FeatureGroups: TypeAlias = Tensor | Sequence[Any] | Mapping[str, Any] | str | int | None
#: Axes that go by a name, counted with the batch.
AXES = {"token": 1, "channel": 1}


class Features:
    """The features of the moving inputs, numbered from 0.

    Parameters
    ----------
    groups
        None: every element. An integer mask of the input's shape, with or without the batch axis: elements of equal
        number are one feature, numbers are its labels. ``"token"`` (axis 1 of ``(batch, tokens, size)``),
        ``"channel"`` (axis 1 of ``(batch, channels, …)``), or an axis number: one feature for each place on it. Of
        several moving inputs each takes its own in a tuple or dict; masks then share their numbers.
    path
        The path, which knows the inputs.

    Attributes
    ----------
    labels
        Label of each feature, or None if every element is one.
    count
        Number of features.

    Raises
    ------
    TypeError, ValueError
        If groups do not fit the inputs; the message says which shape would.

    Examples
    --------
    >>> path = StraightPath(torch.ones(5, 2, 3), None)
    >>> Features(torch.tensor([[7, 7, 8], [8, 9, 9]]), path).labels
    [7, 8, 9]
    """

    def __init__(self, groups: FeatureGroups, path: StraightPath) -> None:
        self.keys = path.moving
        self.shapes = [tuple(path.ends[key].shape[1:]) for key in self.keys]
        self.sizes = [path.ends[key][0].numel() for key in self.keys]
        self.labels: list[int | str] | None = None
        self.count = sum(self.sizes)
        self._ids: list[Tensor] | None = None
        if groups is None:
            return
        masks = [self._mask(one, key, path) for one, key in zip(self._for_each(groups), self.keys, strict=True)]
        if isinstance(groups, (str, int)) and len(masks) > 1:  # an axis of each input: no number is shared
            offsets = [0, *torch.tensor([int(mask.max()) + 1 for mask in masks]).cumsum(0).tolist()]
            masks = [mask + offset for mask, offset in zip(masks, offsets, strict=False)]
        numbers = torch.unique(torch.cat([mask.reshape(-1).cpu() for mask in masks]))
        self.labels = numbers.tolist()
        self.count = len(numbers)
        self._ids = [torch.searchsorted(numbers.to(mask.device), mask.contiguous()) for mask in masks]

    def sums(self, tensors: Sequence[Tensor | None], examples: Tensor) -> Tensor:
        """Sum ``(rows, …)``, one tensor for each moving input, over features: ``(rows, features)``.

        ``examples`` numbers the example of each row; None stands for zeros.
        """
        rows, known = len(examples), next(tensor for tensor in tensors if tensor is not None)
        flat = [
            known.new_zeros(rows, size) if tensor is None else tensor.reshape(rows, -1)
            for tensor, size in zip(tensors, self.sizes, strict=True)
        ]
        if self._ids is None:
            return flat[0] if len(flat) == 1 else torch.cat([one.to(known.device) for one in flat], 1)
        result = known.new_zeros(rows, self.count)
        for one, ids in zip(flat, self._ids, strict=True):
            result.scatter_add_(1, self._rows(ids, examples).to(result.device), one.to(result))
        return result

    def part(self, feature: int, tensors: Sequence[Tensor], examples: Tensor) -> list[Tensor]:
        """The same tensors with every element zero that is not of the feature."""
        if self._ids is None:
            first, parts = 0, []
            for tensor, size in zip(tensors, self.sizes, strict=True):
                flat = torch.zeros_like(tensor).reshape(len(tensor), -1)
                if first <= feature < first + size:
                    flat[:, feature - first] = tensor.reshape(len(tensor), -1)[:, feature - first]
                parts.append(flat.reshape(tensor.shape))
                first += size
            return parts
        return [
            tensor * (self._rows(ids, examples) == feature).reshape(tensor.shape).to(tensor)
            for tensor, ids in zip(tensors, self._ids, strict=True)
        ]

    def shaped(self, values: Tensor) -> Tensor | tuple[Tensor, ...]:
        """``(…, features)`` as users get it: elements in the shape of their input, a tuple if several inputs move."""
        if self._ids is not None:
            return values
        parts = torch.split(values, self.sizes, dim=-1)
        shaped = [part.reshape(*part.shape[:-1], *shape) for part, shape in zip(parts, self.shapes, strict=True)]
        return shaped[0] if len(shaped) == 1 else tuple(shaped)

    def _rows(self, ids: Tensor, examples: Tensor) -> Tensor:
        return ids.expand(len(examples), -1) if len(ids) == 1 else ids.index_select(0, examples.to(ids.device))

    def _for_each(self, groups: Any) -> list[Any]:
        """What is meant for each moving input."""
        if isinstance(groups, Mapping):
            unknown = [name for name in groups if name not in self.keys]
            missing = [key for key in self.keys if key not in groups]
            if unknown or missing:
                raise ValueError(
                    f"feature_groups names the inputs {list(groups)}, but those that move are {list(self.keys)}"
                )
            return [groups[key] for key in self.keys]
        if isinstance(groups, (tuple, list)):
            if len(groups) != len(self.keys):
                raise ValueError(
                    f"feature_groups has {len(groups)} entries, expected one for each of {len(self.keys)} inputs that "
                    "move (a mask is a tensor of integers)"
                )
            return list(groups)
        if isinstance(groups, (str, int)) and not isinstance(groups, bool):
            return [groups] * len(self.keys)
        if not isinstance(groups, Tensor):
            raise TypeError(
                f"feature_groups is a {type(groups).__name__}; expected None, a tensor of integers, 'token', "
                "'channel', an axis number, or a tuple or dict of these with one for each input"
            )
        if len(self.keys) > 1:
            raise ValueError(f"feature_groups is one mask, but {len(self.keys)} inputs move: give a tuple of masks")
        return [groups]

    def _mask(self, groups: Any, key: Key, path: StraightPath) -> Tensor:
        """Feature numbers ``(1 or batch, elements)`` of one input."""
        end: Tensor = path.ends[key]
        if isinstance(groups, Tensor):
            return _checked(groups.to(end.device), path.labels[key], end)
        axis = _axis(groups, path.labels[key], end)
        places = torch.arange(end.shape[axis], device=end.device)
        shape = [1] * end.dim()
        shape[axis] = -1
        return places.reshape(shape).expand(1, *end.shape[1:]).reshape(1, -1)


def _checked(mask: Tensor, label: str, end: Tensor) -> Tensor:
    if mask.is_floating_point() or mask.is_complex():
        raise TypeError(f"feature_groups is a mask of {mask.dtype}; expected integers, one number for each feature")
    if tuple(mask.shape) == tuple(end.shape):
        return mask.long().reshape(len(end), -1)
    if tuple(mask.shape) in (tuple(end.shape[1:]), (1, *end.shape[1:])):
        return mask.long().reshape(1, -1)
    raise ValueError(
        f"feature_groups has shape {tuple(mask.shape)}; expected the shape of {label}, {tuple(end.shape)}, or "
        f"{tuple(end.shape[1:])} for all examples"
    )


def _axis(groups: Any, label: str, end: Tensor) -> int:
    if isinstance(groups, str):
        if groups not in AXES:
            raise ValueError(
                f"feature_groups is {groups!r}; expected {' or '.join(map(repr, AXES))}, or an axis number"
            )
        axis = AXES[groups]
        if end.dim() < 3:
            raise ValueError(
                f"feature_groups is {groups!r}, but {label} has shape {tuple(end.shape)}: expected at least "
                "three axes (leave feature_groups out: every column is a feature)"
            )
        return axis
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(f"feature_groups holds a {type(groups).__name__}; expected a mask, an axis name or number")
    axis = groups % end.dim() if -end.dim() <= groups < end.dim() else 0
    if axis == 0:
        raise ValueError(f"feature_groups is axis {groups}; {label} has axes 1 to {end.dim() - 1} besides the batch")
    return axis
