"""Increments of tensors over panels, and what becomes of a gradient that is multiplied with them.

An integral ``∫ v dy`` over the panels of a path is ``Σ_k v_k U_k`` with the increments ``U_k = Σ_l A_kl y_l`` of the
activation, which are known after the forward pass; so each gradient can be reduced the moment it exists, and is never
stored. Straight integrals ``∫ g da`` are the case ``y = a``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conductance.smooth import FALL, SAFETY
from conductance.sums import SPREAD, wide_dtype, work_dtype

#: Sums ``(n, elements)`` over groups of elements: ``(n, groups)``.
Grouping: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Alike:
    """Panels of equal size: rows ``(panels, nodes)``, places of their examples, matrices, factor on the estimate."""

    rows: NDArray[np.int64]
    slots: NDArray[np.int64]
    value: NDArray[np.float64]
    difference: NDArray[np.float64]
    before: NDArray[np.float64] | None
    credit: NDArray[np.float64]
    tangents: NDArray[np.bool_]
    straight: NDArray[np.bool_]


class Increments:
    """Increments of one tensor over the panels of some rows.

    Attributes
    ----------
    value
        ``U_k = Σ_l A_kl y_l`` of each row, ``(rows, elements)``.
    slots
        Place of each row's example.
    errors
        The same for the differences of rules on two levels, signed, if they were asked for.
    """

    def __init__(self, alike: list[Alike], activation: Tensor, examples: int, *, with_error: bool = False) -> None:
        y = activation.to(work_dtype(activation.dtype))
        self.value = torch.zeros_like(y)
        self.errors = [torch.zeros_like(y) for _ in range(2 if with_error else 0)]
        self.examples = examples
        self._panels: list[tuple[Tensor, Tensor, list[Tensor]]] = []
        self.slots = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        for one in alike:
            rows, slots = (torch.as_tensor(part, device=y.device) for part in (one.rows, one.slots))
            rise = y[rows.reshape(-1)].reshape(*rows.shape, -1)
            rise = rise - rise[:, :1]  # the constant cancels
            matrices = [one.value, one.difference, *([] if one.before is None else [one.before])]
            with torch.autocast(y.device.type, enabled=False):  # it is meant for the model, not for sums
                value, *errors = (torch.bmm(torch.as_tensor(m, dtype=y.dtype).to(y.device), rise) for m in matrices)
            self.value.index_add_(0, rows.reshape(-1), value.reshape(-1, y.shape[1]))
            self.slots[rows.reshape(-1)] = slots.repeat_interleave(rows.shape[1])
            for whole, error in zip(self.errors, errors, strict=False):
                whole.index_add_(0, rows.reshape(-1), error.reshape(-1, y.shape[1]))
            self._panels.append((rows, slots, errors))

    def integrate(self, gradient: Tensor, group: Grouping, first: int = 0) -> Parts:
        """Reduce the gradient ``(n, elements)`` of the rows from ``first`` on.

        Where the increments are one number a row, the gradient is the integrand of a straight integral, with any
        number of elements.
        """
        v = gradient.to(self.value.dtype)
        wide = wide_dtype(v.device)
        own = slice(first, first + len(v))
        rows = group(v * self.value[own]).to(wide)
        value = torch.zeros(self.examples, rows.shape[1], dtype=wide, device=v.device)
        value.index_add_(0, self.slots[own], rows)
        if len(v) < len(self.value):
            whole = v.new_zeros(len(self.value), v.shape[1])
            whole[own] = v
            v = whole
        panels = []
        for at, slots, errors in self._panels:
            chosen = v[at.reshape(-1)].reshape(*at.shape, -1)
            panels.append((slots, [group((chosen * error).sum(1)).to(wide) for error in errors]))
        return Parts(value, panels)


@dataclass
class Parts:
    """An integral over the rows of one or several calls: values of examples, and local estimates of panels.

    Attributes
    ----------
    value
        ``(examples, groups)``.
    panels
        For panels of equal size the place of their example, and their differences of rules ``(panels, groups)``.
    """

    value: Tensor
    panels: list[tuple[Tensor, list[Tensor]]]

    def __add__(self, other: Parts) -> Parts:
        """The same over the rows of both."""
        panels = [
            (slots, [one + two for one, two in zip(mine, theirs, strict=True)])
            for (slots, mine), (_, theirs) in zip(self.panels, other.panels, strict=True)
        ]
        return Parts(self.value + other.value, panels)

    def closed(self) -> Tensor:
        """Sum over panels, once all their rows are in.

        Returns
        -------
        Tensor
            ``(5, examples, groups)``: value, signed error, its squares, absolute differences of rules on two levels.
        """
        result = self.value.new_zeros(5, *self.value.shape)
        result[0] = self.value
        for slots, (fine, *coarse) in self.panels:
            for row, one in enumerate([fine, fine * fine, fine.abs(), *(one.abs() for one in coarse)], 1):
                result[row].index_add_(0, slots, one)
        return result


def estimated(sums: Tensor) -> Tensor:
    """Estimated absolute error ``(groups,)`` from the sums ``(5, groups)`` over all panels of an example."""
    _, signed, square, fine, coarse = sums
    bound = torch.maximum(signed.abs(), SPREAD * square.clamp(min=0.0).sqrt())
    before = float(coarse.sum())
    fall = float(fine.sum()) / before if before > 0 else 1.0
    return bound * (min(1.0, SAFETY * fall) if fall <= 1 / FALL else 1.0)
