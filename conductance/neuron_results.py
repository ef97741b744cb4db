"""Input features × hidden units, as :func:`~conductance.neuron.neuron_conductance` returns it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from conductance import _files
from conductance._result_checks import JSON, as_json
from conductance._result_layers import LayerInfo, counted, wide
from conductance.results import Jump

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "conductance.neuron_conductance"
VERSION = 1

#: One tensor, or one for each moving input.
Values: TypeAlias = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True, eq=False, repr=False)
class NeuronConductance:
    """What each input feature contributes to the target through each neuron of a layer.

    Attributes
    ----------
    values
        ``(batch, neurons, *input shape)``, or ``(batch, neurons, features)`` with feature groups; signed, detached. A
        tuple with one tensor for each input if several move and there are no groups.
    value_error
        The same shape: estimated absolute error of each.
    total, total_error
        ``(batch, neurons)``: total conductance of each neuron on the same nodes, and its estimated absolute error.
    error
        ``(batch,)``: estimated ``Σ|error| / Σ|C|`` over all features and neurons, or ``Σ|gap| / Σ|C|`` if larger.
    neurons
        Unit numbers, or indices as they were given.
    features
        Labels of the feature groups, or None if every input element is a feature.
    info
        What is known of the layer.
    output, baseline_output, unattributed, status, jumps, evaluations, converged, settings
        As of `TotalConductance`.

    Examples
    --------
    >>> info = LayerInfo("h", "Linear", (2,), 1, None, is_cut=True, moves=True, used=True)
    >>> one = torch.zeros(1)
    >>> found = NeuronConductance(
    ...     values=torch.tensor([[[2.0, 4.0], [0.0, -6.0]]]), value_error=torch.zeros(1, 2, 2),
    ...     total=torch.tensor([[6.0, -6.0]]), total_error=torch.zeros(1, 2), error=one, neurons=[0, 1], features=None,
    ...     info=info, output=one, baseline_output=one, unattributed=one, status=("ok",),
    ...     jumps=((),), evaluations=torch.tensor([4]), converged=torch.tensor([True]), settings={},
    ... )
    >>> found
    NeuronConductance('h', 2 neurons × 2 features, 1 example, 1 converged, worst error 0.0e+00)
    >>> found.gap
    tensor([[0., 0.]])
    >>> found.to_dataframe()
      layer  neuron feature  example  conductance  error
    0     h       0       0        0          2.0    0.0
    1     h       0       1        0          4.0    0.0
    2     h       1       0        0          0.0    0.0
    3     h       1       1        0         -6.0    0.0
    """

    values: Values
    value_error: Values
    total: Tensor
    total_error: Tensor
    error: Tensor
    neurons: list[int | str]
    features: list[int | str] | None
    info: LayerInfo
    output: Tensor
    baseline_output: Tensor
    unattributed: Tensor
    status: tuple[str, ...]
    jumps: tuple[tuple[Jump, ...], ...]
    evaluations: Tensor
    converged: Tensor
    settings: dict[str, JSON]

    def __post_init__(self) -> None:
        """Copy the settings in the form that a file keeps."""
        object.__setattr__(self, "settings", as_json(self.settings))

    def __repr__(self) -> str:
        """One line: sizes and worst error."""
        size = sum(part[0, 0].numel() for part in _parts(self.values)) if len(self.status) else 0
        worst = float(torch.nan_to_num(self.error, nan=0.0).max()) if len(self.status) else 0.0
        return (
            f"NeuronConductance({self.info.name!r}, {counted(len(self.neurons), 'neuron')} × "
            f"{counted(size, 'feature')}, {counted(len(self.status), 'example')}, {int(self.converged.sum())} "
            f"converged, worst error {worst:.1e})"
        )

    def _repr_html_(self) -> str:
        from html import escape

        table = self.summary().to_html(index=False, float_format="{:.4g}".format, border=0)
        return f"<p>{escape(repr(self))}</p>{table}"

    @property
    def layer(self) -> str:
        """Name of the layer."""
        return self.info.name

    @property
    def output_change(self) -> Tensor:
        """``(batch,)``: ``F(x) - F(x')``, in at least float32."""
        return wide(self.output) - wide(self.baseline_output)

    @property
    def gap(self) -> Tensor:
        """``(batch, neurons)``: the neurons' total conductance less the sum over features; 0 within the tolerance."""
        return self.total - torch.cat([_flat(part) for part in _parts(self.values)], 2).sum(2)

    def summary(self) -> pd.DataFrame:
        """One row a neuron, means over examples: ``total``, ``Σ|C|`` over features, and the estimated error of that."""
        import pandas as pd

        flat = torch.cat([_flat(wide(part)) for part in _parts(self.values)], 2)
        error = torch.cat([_flat(wide(part)) for part in _parts(self.value_error)], 2)
        return pd.DataFrame(
            {
                "layer": self.layer,
                "neuron": self.neurons,
                "total": wide(self.total).nanmean(0).cpu().numpy(),
                "abs": flat.abs().sum(2).nanmean(0).cpu().numpy(),
                "error": error.sum(2).nanmean(0).cpu().numpy(),
            }
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a neuron, feature and example.

        Returns
        -------
        pandas.DataFrame
            Columns ``layer``, ``neuron``, ``feature``, ``example``, ``conductance``, ``error``. A feature is the label
            of its group, or the place of an input element ("2" or "0, 3, 5", "0" for an input of one number a row;
            with the input's number before it if several inputs move).
        """
        import pandas as pd

        parts, errors = _parts(self.values), _parts(self.value_error)
        labels = [label for number, part in enumerate(parts) for label in self._labels(number, part, len(parts))]
        index = pd.MultiIndex.from_product(
            [range(len(self.status)), self.neurons, labels], names=["example", "neuron", "feature"]
        )
        columns = {"conductance": parts, "error": errors}
        table = pd.DataFrame(
            {
                name: torch.cat([_flat(wide(part)) for part in several], 2).reshape(-1).cpu().numpy()
                for name, several in columns.items()
            },
            index,
        )
        table = table.reset_index().assign(layer=self.layer)
        return table[["layer", "neuron", "feature", "example", "conductance", "error"]]

    def _labels(self, number: int, part: Tensor, parts: int) -> list[int | str]:
        if self.features is not None:
            return self.features
        before = f"{number}: " if parts > 1 else ""
        places = product(*(range(size) for size in part.shape[2:] or (1,)))
        return [before + ", ".join(map(str, place)) for place in places]

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; the folder has to exist. `conductance.load` reads it back."""
        tensors: dict[str, Tensor] = {name: getattr(self, name) for name in _TENSORS}
        for name in _VALUES:
            tensors |= {f"{name}/{number}": part for number, part in enumerate(_parts(getattr(self, name)))}
        content = {
            "several": None if isinstance(self.values, Tensor) else len(self.values),
            "neurons": self.neurons,
            "features": self.features,
            "info": asdict(self.info),
            "status": self.status,
            "jumps": self.jumps,
            "settings": self.settings,
        }
        _files.write(path, FORMAT, VERSION, tensors, content)

    @staticmethod
    def load(path: str | Path) -> NeuronConductance:
        """Read a result that `save` wrote, on the CPU.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is another kind of file, of another version, or damaged.
        """
        tensors, content = _files.read(path, FORMAT, VERSION)
        try:
            several = content["several"]
            values: dict[str, Any] = {name: tensors[name] for name in _TENSORS}
            for name in _VALUES:
                parts = tuple(tensors[f"{name}/{number}"] for number in range(several or 1))
                values[name] = parts[0] if several is None else parts
            info = LayerInfo(**{**content["info"], "shape": tuple(content["info"]["shape"])})
            return NeuronConductance(
                **values,
                neurons=content["neurons"],
                features=content["features"],
                info=info,
                status=tuple(content["status"]),
                jumps=tuple(tuple((a, b, size) for a, b, size in found) for found in content["jumps"]),
                settings=content["settings"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _files.damaged(path, FORMAT, error) from error


_VALUES = ("values", "value_error")
_TENSORS = (
    "total", "total_error", "error", "output", "baseline_output", "unattributed", "evaluations", "converged",
)  # fmt: skip


def _parts(values: Values) -> tuple[Tensor, ...]:
    return (values,) if isinstance(values, Tensor) else values


def _flat(part: Tensor) -> Tensor:
    """``(batch, neurons, elements)``."""
    return part.reshape(*part.shape[:2], -1)
