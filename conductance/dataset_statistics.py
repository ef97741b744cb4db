"""What the running sums of a layer come to: means, deviations, extremes, and how much cancels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from conductance._dataset_sums import LAYER_ROWS, LayerSums
from conductance._result_layers import LayerInfo


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Statistics of one layer over examples. Conductance is signed; positions are summed before anything else.

    Attributes
    ----------
    info
        What is known of the layer; its shape is ``(units,)``.
    count
        Number of examples.
    mean, std, standard_error
        ``(units,)`` float64: mean conductance over examples, its standard deviation between examples (of a sample:
        divided by ``count - 1``), and ``std / sqrt(count)``, how far the mean may be from that of all examples there
        are. The last two are nan of a single example.
    mean_abs, mean_abs_standard_error
        ``(units,)``: mean of ``|C|`` and its standard error.
    share_positive
        ``(units,)``: share of examples whose conductance is above 0.
    smallest, largest
        ``(units,)``: extremes of the signed conductance.
    error, largest_error
        ``(units,)``: mean and largest of the estimated absolute error of an example's conductance; the mean bounds the
        numerical error of both means.
    sum, sum_standard_error, abs
        Mean over examples of ``Σ C`` over units, its standard error, and mean of ``Σ|C|``.
    cancellation
        Mean of ``1 - |Σ C| / Σ|C|``, over examples where not all are 0.
    coverage, coverage_error
        Mean of ``Σ C / (F(x) - F(x'))``, and of its estimated error, over examples whose output changes.
    output_change
        Mean of ``F(x) - F(x')``.
    relative_error
        Largest estimated ``Σ|error| / Σ|C|``.
    """

    info: LayerInfo
    count: int
    mean: Tensor
    std: Tensor
    standard_error: Tensor
    mean_abs: Tensor
    mean_abs_standard_error: Tensor
    share_positive: Tensor
    smallest: Tensor
    largest: Tensor
    error: Tensor
    largest_error: Tensor
    sum: float
    sum_standard_error: float
    abs: float
    cancellation: float
    coverage: float
    coverage_error: float
    output_change: float
    relative_error: float


def statistics_of(info: LayerInfo, sums: LayerSums) -> LayerStatistics:
    """What the sums of a layer come to."""
    units = sums.units
    means, errors = units.mean, units.standard_error
    layer = dict(zip(LAYER_ROWS, sums.layer.mean.tolist(), strict=True))
    return LayerStatistics(
        info=info,
        count=int(units.count),
        mean=means[0],
        std=units.deviation[0],
        standard_error=errors[0],
        mean_abs=means[1],
        mean_abs_standard_error=errors[1],
        share_positive=means[2],
        smallest=-sums.extremes[1],
        largest=sums.extremes[0],
        error=means[3],
        largest_error=sums.extremes[2],
        sum_standard_error=float(sums.layer.standard_error[0]),
        relative_error=float(sums.worst),
        **layer,
    )
