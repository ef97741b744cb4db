"""Where a target looks in an output: one place for all examples, or one for each, whatever rows arrive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conductance._outputs import rowless


@dataclass(frozen=True)
class Examples:
    """The example of each row.

    Attributes
    ----------
    numbers
        Example number of each row, ``(rows,)``, int64: any examples in any order.
    batch
        Number of examples that there are; None if that is not known.
    """

    numbers: Tensor
    batch: int | None

    def take(self, values: Tensor, name: str) -> Tensor:
        """Values of the rows, from values that have one entry for each example."""
        if self.batch is not None and values.shape[0] != self.batch:
            raise ValueError(
                f"{name} has {values.shape[0]} entries for {self.batch} examples; give one for each, or a single one"
            )
        return values[self.numbers.to(values.device)]


@dataclass(frozen=True)
class Places:
    """Indices into the axes of an output behind the batch.

    Attributes
    ----------
    name
        What messages call it.
    index
        ``(axes,)`` for all examples, ``(batch, axes)`` for one place an example; int64, on the CPU.
    """

    name: str
    index: Tensor

    def check(self, batch: int | None) -> None:
        """Raise ``ValueError`` unless there is one place, or one for each example."""
        if batch is not None and self.index.dim() == 2 and self.index.shape[0] != batch:
            raise ValueError(
                f"{self.name} has {len(self.index)} entries for {batch} examples; give one for each, or a single int"
            )

    def pick(self, output: Tensor, examples: Examples) -> Tensor:
        """The number of each row of an output ``(rows, *axes)``, as ``(rows,)``."""
        self.check(examples.batch)
        if self.index.shape[-1] != output.dim() - 1:
            raise ValueError(
                f"{self.name} gives {_indices(self.index.shape[-1])} but the model's output has shape "
                f"{rowless(output)}: expected {_wanted(output)}, or a callable"
            )
        sizes = output.shape[1:]
        if self.index.dim() == 1:  # the same place for all
            self._check_range(sizes, output)
            for one in self.index.tolist():
                output = output.select(1, one)
            return output
        each = self.of_rows(examples, sizes, output)
        place = torch.zeros_like(each[:, 0])
        for axis, size in enumerate(sizes):
            place = place * size + each[:, axis]
        return output.reshape(len(each), -1).gather(1, place[:, None])[:, 0]

    def of_rows(self, examples: Examples, sizes: Sequence[int], output: Tensor) -> Tensor:
        """Indices of each row, counted from the front, ``(rows, axes)``, on the device of the output."""
        self.check(examples.batch)
        self._check_range(sizes, output)
        index = (self.index % self.index.new_tensor(sizes)).to(output.device)
        if index.dim() == 1:
            return index.expand(len(examples.numbers), -1)
        return index[examples.numbers.to(output.device)]

    def _check_range(self, sizes: Sequence[int], output: Tensor) -> None:
        lowest, highest = self.index.reshape(-1, len(sizes)).aminmax(dim=0)
        for place in (lowest.tolist(), highest.tolist()):
            for one, size in zip(place, sizes, strict=True):
                if not -size <= one < size:
                    expected = f"0 … {size - 1}" if size > 1 else "0"
                    if tuple(output.shape[1:]) == (1,):
                        expected += ": one number a row, with no class to choose (target=0 explains it, or None)"
                    raise ValueError(
                        f"{self.name} {place[0] if len(place) == 1 else tuple(place)} is out of range for an output of "
                        f"shape {rowless(output)}; expected {expected}"
                    )

    def __str__(self) -> str:
        """As Python would write it."""
        places: list[Any] = self.index.reshape(-1, self.index.shape[-1]).tolist()
        plain = [place[0] if len(place) == 1 else tuple(place) for place in places]
        return str(plain if self.index.dim() == 2 else plain[0])


def places(name: str, given: Any, *, expected: str, axes: int | None = None) -> Places:
    """Read places as users give them.

    Parameters
    ----------
    name, expected
        What messages call it, and what they say it should be.
    given
        An int; a tuple of ints (one place in an output of more axes); a tensor or list of one of these an example.
    axes
        Number of axes that a place has; None for any.

    Raises
    ------
    TypeError, ValueError
        If it is none of these.

    Examples
    --------
    >>> print(places("index", torch.tensor([2, 0, 1]), expected="integers"))
    [2, 0, 1]
    >>> print(places("index", (4, 0), expected="integers"))
    (4, 0)
    """
    if isinstance(given, (bool, str, bytes, float)):
        raise TypeError(f"{name} is {given!r}; expected {expected}")
    index = _integers(name, given, expected)
    if isinstance(given, tuple):
        index = index.reshape(-1)
    elif index.dim() == 0:
        index = index.reshape(1)
    elif index.dim() == 1:
        index = index[:, None]
    elif index.dim() > 2:
        raise ValueError(f"{name} has shape {tuple(index.shape)}; expected (batch,) or (batch, axes of the output)")
    if axes is not None and index.shape[-1] != axes:
        raise ValueError(f"{name} gives {_indices(index.shape[-1])} for one place; expected {expected}")
    return Places(name, index)


def _integers(name: str, given: Any, expected: str) -> Tensor:
    try:
        index = (given.detach() if isinstance(given, Tensor) else torch.as_tensor(given)).cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(f"{name} is no index ({type(given).__name__}: {error}); expected {expected}") from error
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise TypeError(f"{name} holds {index.dtype} numbers; expected integers")
    return index.long()


def _indices(count: int) -> str:
    return "1 index" if count == 1 else f"{count} indices"


def _wanted(output: Tensor) -> str:
    axes = output.dim() - 1
    several = f"{tuple_of(axes)}, a function of conductance.targets (token, class_pixels, output_sum, …)"
    return {0: "no target", 1: "one index"}.get(axes, several)


def tuple_of(axes: int) -> str:
    """What an index into several axes looks like."""
    return f"a tuple of {axes} indices such as ({', '.join(['0'] * axes)})"
