"""Labelled results of total conductance: hook points and their tensors, with error figures, tables and files.

The conductance of unit ``i`` is ``C_i = ∫ ∂F/∂y_i dy_i`` along the path from the baseline ``x'`` to the input
``x`` (Dhamdhere, Sundararajan & Yan, 2018, arXiv:1805.12233). Over the units of a *cut*, a layer that
everything passes on its way to the target, ``Σ_i C_i = F(x) - F(x')``. Nothing here needs the model. All is
signed: absolute values are a choice of the reader.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from conductance import _result_examples, _result_files, _result_tables
from conductance._result_checks import JSON, STATUSES, as_json, check_examples, check_layers, check_names
from conductance._result_files import FORMAT, VERSION
from conductance._result_layers import LayerInfo, wide
from conductance.errors import UnknownLayerError

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "FORMAT",
    "JSON",
    "STATUSES",
    "VERSION",
    "Jump",
    "LayerInfo",
    "TotalConductance",
    "concatenate",
    "load",
]

Jump: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True, eq=False, repr=False)
class TotalConductance(Mapping[str, Tensor]):
    """Conductance of every unit, per example: a mapping of hook point names, in forward order, to tensors.

    Two results compare equal only if they are the same object.

    Parameters
    ----------
    conductance
        Per hook point ``(batch, *layer shape)``: signed and detached, on the layer's device, in float64 where the
        layer's tensor is and else in float32. ``total[name]`` is the same tensor.
    unit_error
        Per hook point ``(batch, units)``: estimated absolute error of `per_unit`.
    error
        Per hook point ``(batch,)``: estimated ``Σ|error| / Σ|C|`` over all elements of the layer.
    info
        Per hook point its `LayerInfo`.
    output, baseline_output
        ``(batch,)``: ``F(x)``, and ``F(x')`` averaged over the baselines.
    unattributed
        ``(batch,)``: ``F(x) - F(x')`` less the conductance of the leaf, which no unit accounts for.
    status
        Per example ``ok``, ``jump`` (F jumps on the path), ``gradient`` (its gradient is not its derivative),
        ``budget`` (evaluations ran out), ``precision`` (the tolerance lies below the rounding floor of the
        example) or ``interrupted``.
    jumps
        Per example the jumps of F found: ``(from alpha, to alpha, size)`` each.
    evaluations
        ``(batch,)`` int64: points of the path run forward and backward.
    converged
        ``(batch,)`` bool: whether the tolerance was reached.
    spread
        Per hook point ``(batch, *layer shape)``: standard deviation over several baselines; None with one.
    settings
        How it was computed (target, rtol, scheme, seconds, ...), as JSON: tuples become lists.

    Raises
    ------
    TypeError
        If a dtype is wrong or a setting is not JSON.
    ValueError
        If names, shapes or statuses do not fit together.

    Examples
    --------
    A linear layer ``F(x) = w · x`` from zero: the conductance of each input is ``w_i x_i``.

    >>> w, x = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0]])
    >>> total = TotalConductance(
    ...     conductance={"input": w * x},
    ...     unit_error={"input": torch.zeros(2, 3)},
    ...     error={"input": torch.zeros(2)},
    ...     info={"input": LayerInfo("input", "Linear", (3,), 1, None, is_cut=True, moves=True, used=True)},
    ...     output=x @ w,
    ...     baseline_output=torch.zeros(2),
    ...     unattributed=torch.zeros(2),
    ...     status=("ok", "ok"),
    ...     jumps=((), ()),
    ...     evaluations=torch.tensor([2, 2]),
    ...     converged=torch.tensor([True, True]),
    ...     spread=None,
    ...     settings={"target": 0},
    ... )
    >>> total
    TotalConductance(1 layer, 2 examples, 2 converged, median 2 evaluations, worst error 0.0e+00)
    >>> total["input"]
    tensor([[ 3., -2.,  1.],
            [ 1., -2.,  0.]])
    >>> total.output_change, total.coverage["input"]
    (tensor([ 2., -1.]), tensor([1., 1.]))
    >>> total.select([1]).per_unit("input")
    tensor([[ 1., -2.,  0.]])
    >>> total.to_dataframe().head(2)
       layer  unit  example  conductance  error
    0  input     0        0          3.0    0.0
    1  input     1        0         -2.0    0.0
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     total.save(Path(folder) / "total.safetensors")
    ...     again = load(Path(folder) / "total.safetensors")
    >>> concatenate([total, again])
    TotalConductance(1 layer, 4 examples, 4 converged, median 2 evaluations, worst error 0.0e+00)
    """

    conductance: dict[str, Tensor]
    unit_error: dict[str, Tensor]
    error: dict[str, Tensor]
    info: dict[str, LayerInfo]
    output: Tensor
    baseline_output: Tensor
    unattributed: Tensor
    status: tuple[str, ...]
    jumps: tuple[tuple[Jump, ...], ...]
    evaluations: Tensor
    converged: Tensor
    spread: dict[str, Tensor] | None
    settings: dict[str, JSON]

    def __post_init__(self) -> None:
        """Check the fields against each other, and copy jumps and settings in the form that a file keeps."""
        check_names(self)
        check_examples(self)
        check_layers(self)
        jumps = tuple(tuple((float(a), float(b), float(size)) for a, b, size in found) for found in self.jumps)
        object.__setattr__(self, "jumps", jumps)
        object.__setattr__(self, "settings", as_json(self.settings))

    def __getitem__(self, layer: str) -> Tensor:
        """Conductance of a hook point, ``(batch, *layer shape)``."""
        if layer not in self:
            raise UnknownLayerError(layer, self)
        return self.conductance[layer]

    def __iter__(self) -> Iterator[str]:
        """Names of the hook points, in forward order."""
        return iter(self.conductance)

    def __len__(self) -> int:
        """Count the hook points."""
        return len(self.conductance)

    def __contains__(self, layer: object) -> bool:
        """Whether there is a hook point of this name."""
        return layer in self.conductance

    def __eq__(self, other: object) -> bool:
        """Whether it is the same object: tensors have no one truth."""
        return self is other

    def __hash__(self) -> int:
        """Hash of the object, as for `__eq__`."""
        return id(self)

    def __repr__(self) -> str:
        """One line: sizes, cost and worst error."""
        return _result_tables.to_text(self)

    def _repr_html_(self) -> str:
        return _result_tables.to_html(self)

    @property
    def layers(self) -> list[str]:
        """Names of the hook points, in forward order."""
        return list(self)

    @property
    def output_change(self) -> Tensor:
        """``(batch,)``: ``F(x) - F(x')``, in at least float32."""
        return wide(self.output) - wide(self.baseline_output)

    @property
    def is_cut(self) -> dict[str, bool]:
        """Per hook point, whether everything that flows from the input to the target passes it."""
        return {layer: self.info[layer].is_cut for layer in self}

    @property
    def coverage(self) -> dict[str, Tensor]:
        """Per hook point ``(batch,)``: ``Σ C / (F(x) - F(x'))``, 1 at a cut up to `coverage_error`.

        Infinite, or nan if the sum is 0 too, for an example whose output does not change. Elsewhere than at a
        cut it may be anything: above 1, or negative, where other branches cancel part of it.
        """
        change = self.output_change
        return {layer: self._wide_per_unit(layer).sum(1).to(change.device) / change for layer in self}

    @property
    def coverage_error(self) -> dict[str, Tensor]:
        """Per hook point ``(batch,)``: estimated error of `coverage`, ``error · Σ|C| / |F(x) - F(x')|``."""
        size = self.output_change.abs()
        absolute = {layer: self[layer].to(size).abs().unsqueeze(1).flatten(1).sum(1) for layer in self}
        return {layer: self.error[layer].to(size) * absolute[layer] / size for layer in self}

    @property
    def diagnosis(self) -> tuple[str, ...]:
        """Why layers have no conductance, where some have none: sentences with the cause and the way out.

        Found on a few examples of the run; as in ``settings["diagnosis"]``, where their numbers stand too.
        """
        return _result_tables.diagnosis(self)

    def per_unit(self, layer: str) -> Tensor:
        """Conductance of each unit (channel, head or feature), summed over positions.

        Parameters
        ----------
        layer
            Name of a hook point.

        Returns
        -------
        Tensor
            ``(batch, units)``, signed.

        Raises
        ------
        KeyError
            If there is no such hook point.
        """
        tensor = self[layer]
        return self.info[layer].sum_positions(tensor)

    def _wide_per_unit(self, layer: str) -> Tensor:
        """`per_unit` in at least float32."""
        return self.info[layer].sum_positions(wide(self[layer]))

    def to_dataframe(self, layer: str | None = None) -> "pd.DataFrame":
        """One row a layer, example and unit.

        Parameters
        ----------
        layer
            Only this hook point; by default all of them.

        Returns
        -------
        pandas.DataFrame
            Columns ``layer``, ``unit``, ``example``, ``conductance`` and its estimated absolute ``error``; over several
            baselines ``spread`` too, its standard deviation (of several positions the sum of theirs, an upper bound).

        Raises
        ------
        KeyError
            If there is no such hook point.
        """
        return _result_tables.to_dataframe(self, layer)

    def summary(self) -> "pd.DataFrame":
        """One row a layer, over all examples.

        Returns
        -------
        pandas.DataFrame
            Columns ``layer``, ``type``, ``units``, ``cut``; ``conductance`` and ``abs``, the means over
            examples of ``Σ C`` and ``Σ|C|`` over units; ``coverage`` and ``coverage_error``, the medians
            over examples whose output changes (ratios to a change near 0 would rule a mean); ``error``, the largest
            over examples. Of no examples all of these are nan.
        """
        return _result_tables.summary(self)

    def select(self, examples: int | slice | Sequence[int] | Sequence[bool] | Tensor) -> "TotalConductance":
        """Keep some examples; ``settings`` stay as they are.

        Parameters
        ----------
        examples
            Indices in any order (negative ones count from the end), a slice, or a mask of ``batch`` booleans.

        Returns
        -------
        TotalConductance
            A copy of those examples.

        Raises
        ------
        IndexError
            If an index is out of range or a mask has another length.
        TypeError
            If the indices are neither integers nor booleans.
        """
        return _result_examples.select(self, examples)

    def to(
        self, device: torch.device | str | int | None = None, dtype: torch.dtype | None = None
    ) -> "TotalConductance":
        """Move every tensor to a device, and the floating-point ones to a dtype.

        Parameters
        ----------
        device, dtype
            Where to, and a floating-point dtype; None leaves it. Integers and booleans keep their dtype.

        Returns
        -------
        TotalConductance
            Shares the tensors that did not have to change.

        Raises
        ------
        TypeError
            If ``dtype`` is not a floating-point dtype.
        """
        return _result_examples.move(self, device, dtype)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: the tensors, and all else as JSON in its metadata.

        A file that is already there is replaced as a whole, or left as it is if writing fails.

        Parameters
        ----------
        path
            The file; its folder has to exist.

        Raises
        ------
        FileNotFoundError
            If the folder does not exist.
        """
        _result_files.write(self, path)

    @staticmethod
    def load(path: str | Path) -> "TotalConductance":
        """Read a result that `save` wrote; the same as `conductance.results.load`."""
        return load(path)


def load(path: str | Path) -> TotalConductance:
    """Read a result that `TotalConductance.save` wrote.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    TotalConductance
        On the CPU, bit for bit what was saved.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is another kind of file, of another version, or damaged.
    """
    return _result_files.read(path, TotalConductance)


def concatenate(results: Sequence[TotalConductance]) -> TotalConductance:
    """Put results for the same hook points together, one's examples after another's.

    Parameters
    ----------
    results
        At least one. Tensors go to the device of the first.

    Returns
    -------
    TotalConductance
        A layer is a cut if it is one in all results, and moves or is used if it does in any. Of ``settings``,
        ``seconds`` are added; others are kept where all agree and otherwise are lists, one entry a result.

    Raises
    ------
    TypeError
        If ``results`` is a single result.
    ValueError
        If it is empty, or the layers of two results differ; the message lists how.
    """
    if isinstance(results, TotalConductance):
        msg = "concatenate takes a list of results, got a single TotalConductance."
        raise TypeError(msg)
    if not results:
        msg = "concatenate needs at least one result, got none."
        raise ValueError(msg)
    return _result_examples.join(results)
