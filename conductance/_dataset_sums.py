"""Running sums over examples that add up in any order, in float64 on the CPU.

Counts, sums and maxima simply add up. Squared deviations of two parts with means ``m``, ``m'`` and counts ``n``, ``n'``
are ``S + S' + (m' - m)² n n' / (n + n')`` together (Chan, Golub & LeVeque, 1983, equation 1.5b), which loses no digits
to large means as a sum of squares would.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from conductance.results import TotalConductance

#: What is kept of a unit in each example, and of a layer.
UNIT_ROWS = ("conductance", "size", "positive", "error")
LAYER_ROWS = ("sum", "abs", "cancellation", "coverage", "coverage_error", "output_change")


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, sum, and sum of squared deviations from the mean, of many numbers side by side.

    Attributes
    ----------
    count
        int64, ``()`` or like ``total``.
    total, squares
        float64, both of one shape.

    Examples
    --------
    >>> one, other = Moments.of(torch.tensor([[1.0], [2.0]])), Moments.of(torch.tensor([[6.0]]))
    >>> both = one.merged(other)
    >>> both.mean, both.deviation
    (tensor([3.]), tensor([2.6458]))
    """

    count: Tensor
    total: Tensor
    squares: Tensor

    @staticmethod
    def of(values: Tensor, *, gaps: bool = False) -> Moments:
        """Sum up ``(examples, …)``; with ``gaps``, nan is a number that is missing."""
        here = ~values.isnan() if gaps else torch.ones((), dtype=torch.bool)
        count = here.sum(0) if gaps else torch.tensor(len(values))
        known = values.where(here, 0.0) if gaps else values
        total = known.sum(0)
        apart = (known - total / count.clamp(min=1)).where(here, 0.0) if gaps else known - total / count.clamp(min=1)
        return Moments(count, total, apart.square().sum(0))

    def merged(self, other: Moments) -> Moments:
        """Both parts together."""
        count = self.count + other.count
        weight = self.count.double() * other.count.double() / count.clamp(min=1)
        squares = self.squares + other.squares + (other.mean - self.mean).square() * weight
        # Where one part is empty its mean is nan, and there is nothing between the parts.
        squares = torch.where(weight > 0, squares, self.squares + other.squares)
        return Moments(count, self.total + other.total, squares)

    @property
    def mean(self) -> Tensor:
        """Mean, nan of none."""
        return self.total / self.count

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of a sample (``n - 1``), nan of fewer than two."""
        return (self.squares / (self.count - 1).clamp(min=0)).sqrt()

    @property
    def standard_error(self) -> Tensor:
        """Standard error of the mean, nan of fewer than two."""
        return self.deviation / self.count.double().sqrt()  # of integers it is float32


@dataclass(frozen=True, eq=False)
class LayerSums:
    """What is kept of one layer over one group of examples.

    Attributes
    ----------
    units
        Moments of `UNIT_ROWS`, ``(4, units)``.
    layer
        Moments of `LAYER_ROWS`, ``(6,)``; each counts the examples for which it is defined.
    extremes
        ``(3, units)``: largest conductance, largest negated conductance, largest estimated error.
    worst
        ``()``: largest estimated ``Σ|error| / Σ|C|``.
    """

    units: Moments
    layer: Moments
    extremes: Tensor
    worst: Tensor

    def merged(self, other: LayerSums) -> LayerSums:
        """Both groups together."""
        return LayerSums(
            self.units.merged(other.units),
            self.layer.merged(other.layer),
            torch.maximum(self.extremes, other.extremes),
            torch.maximum(self.worst, other.worst),
        )


@dataclass(frozen=True, eq=False)
class LayerValues:
    """The same of each example: ``(examples, 4, units)``, ``(examples, 6)``, ``(examples,)``."""

    units: Tensor
    layer: Tensor
    worst: Tensor

    def summed(self, examples: Tensor) -> LayerSums:
        """Sums over some examples, ``(some,)`` numbers of them."""
        units = self.units[examples]
        values, errors = units[:, 0], units[:, 3]
        extremes = torch.stack([values.amax(0), (-values).amax(0), errors.amax(0)])
        layer = Moments.of(self.layer[examples], gaps=True)
        return LayerSums(Moments.of(units), layer, extremes, self.worst[examples].amax(0))


def unit_values(result: TotalConductance) -> tuple[dict[str, Tensor], Tensor]:
    """Conductance of each unit, positions summed, and which examples are finished.

    Returns
    -------
    tuple of dict and Tensor
        Per hook point ``(examples, units)`` in float64 on the CPU; and ``(examples,)`` bool: False where an example was
        interrupted, or holds NaN or infinity in any layer.
    """
    values = {layer: result.info[layer].sum_positions(in_double(result[layer])).cpu() for layer in result}
    finished = torch.tensor([status != "interrupted" for status in result.status], dtype=torch.bool)
    for each in values.values():
        finished = finished & each.isfinite().all(1)
    return values, finished


def layer_values(result: TotalConductance, layer: str, values: Tensor) -> LayerValues:
    """What is summed up of one layer, whose units have ``values``, ``(examples, units)``."""
    errors = in_double(result.unit_error[layer]).cpu()
    change = in_double(result.output).cpu() - in_double(result.baseline_output).cpu()
    change_or_none = change.where(change != 0, float("nan"))
    sums, sizes = values.sum(1), values.abs().sum(1)
    elements = in_double(result[layer]).abs().unsqueeze(1).flatten(1).sum(1).cpu()
    worst = in_double(result.error[layer]).cpu()
    rows = [
        sums,
        sizes,
        1 - sums.abs() / sizes,  # nan where all are 0
        sums / change_or_none,
        worst * elements / change_or_none.abs(),
        change,
    ]
    units = torch.stack([values, values.abs(), (values > 0).double(), errors], 1)
    return LayerValues(units, torch.stack(rows, 1), worst)


def members(groups: Sequence[Hashable], finished: Tensor) -> dict[Hashable, Tensor]:
    """Numbers of the finished examples of each group, in the order in which groups turn up."""
    found: dict[Hashable, list[int]] = {}
    for example in finished.nonzero().flatten().tolist():
        found.setdefault(groups[example], []).append(example)
    return {group: torch.tensor(examples) for group, examples in found.items()}


def in_double(tensor: Tensor) -> Tensor:
    """As float64; on the CPU where the device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
