"""What is known of one hook point of a result, and sums over its positions."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, repr=False)
class LayerInfo:
    """What is known of one hook point of a result.

    Parameters
    ----------
    name
        Name of the hook point.
    module_type
        Class name of the module.
    shape
        Shape of the tensor without its batch axis.
    unit_axis
        The axis of the units in the tensor whose batch axis is 0: at least 1, or 0 if the tensor has only the
        batch axis and so is one unit.
    unit_groups
        Number of contiguous groups on the unit axis (attention heads), one unit each; None if each entry is.
    is_cut
        Whether everything that flows from the input to the target passes here.
    moves
        Whether its value depends on what moves along the path.
    used
        Whether the target depends on its value.

    Raises
    ------
    ValueError
        If ``unit_axis`` or ``unit_groups`` does not fit ``shape``.

    Examples
    --------
    >>> LayerInfo("attn.o_proj:in", "Linear", (7, 12), 2, 3, is_cut=False, moves=True, used=True)
    LayerInfo('attn.o_proj:in', Linear, shape (7, 12), 3 units)
    """

    name: str
    module_type: str
    shape: tuple[int, ...]
    unit_axis: int
    unit_groups: int | None
    is_cut: bool
    moves: bool
    used: bool

    def __post_init__(self) -> None:
        """Check that the axis and the groups fit the shape."""
        lowest = 1 if self.shape else 0
        if not lowest <= self.unit_axis <= len(self.shape):
            msg = (
                f"unit_axis of {self.name!r} is {self.unit_axis}, expected {lowest} to {len(self.shape)} "
                f"for the shape {self.shape} behind a batch axis 0."
            )
            raise ValueError(msg)
        size = self.shape[self.unit_axis - 1] if self.shape else 1
        if self.unit_groups is not None and (self.unit_groups < 1 or size % self.unit_groups):
            msg = (
                f"unit_groups of {self.name!r} is {self.unit_groups}, expected None or a divisor of {size}, "
                "the size of the unit axis."
            )
            raise ValueError(msg)

    def __repr__(self) -> str:
        """Name, class, shape and number of units."""
        return f"LayerInfo({self.name!r}, {self.module_type}, shape {self.shape}, {counted(self.units, 'unit')})"

    @property
    def units(self) -> int:
        """Number of units."""
        if self.unit_groups is not None:
            return self.unit_groups
        return self.shape[self.unit_axis - 1] if self.shape else 1

    def sum_positions(self, tensor: Tensor) -> Tensor:
        """Sum a tensor of this hook point over everything but examples and units.

        Parameters
        ----------
        tensor
            ``(batch, *shape)``.

        Returns
        -------
        Tensor
            ``(batch, units)``, signed; may share memory with ``tensor``.
        """
        if not self.shape:
            return tensor.unsqueeze(1)
        if self.unit_groups is not None:
            group = self.shape[self.unit_axis - 1] // self.unit_groups
            before, after = tensor.shape[: self.unit_axis], tensor.shape[self.unit_axis + 1 :]
            tensor = tensor.reshape(*before, self.unit_groups, group, *after)
        others = [axis for axis in range(1, tensor.ndim) if axis != self.unit_axis]
        return tensor.sum(others) if others else tensor


def wide(tensor: Tensor) -> Tensor:
    """Half precision as float32: sums over a layer need the digits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def counted(number: int, noun: str) -> str:
    """Write ``1 layer`` or ``2 layers``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
