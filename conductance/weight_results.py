"""Conductance of every weight, as :func:`~conductance.weights.weight_conductance` returns it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from conductance import _files
from conductance._result_checks import JSON, as_json
from conductance._result_layers import counted, wide
from conductance.errors import UnknownLayerError

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "conductance.weight_conductance"
VERSION = 1


@dataclass(frozen=True)
class WeightInfo:
    """What is known of one weight.

    Attributes
    ----------
    name, module_type
        Name and class of its layer.
    shape
        Of the weight.
    input_first
        Whether axis 0 counts inputs and axis 1 outputs (transposed convolutions), not the other way round.
    groups
        Groups of a grouped convolution.
    """

    name: str
    module_type: str
    shape: tuple[int, ...]
    input_first: bool
    groups: int

    def ends(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of a tensor like the weight over all weights of each output, and of each input."""
        flat = values.reshape(self.shape[0], self.shape[1], -1).sum(2)
        grouped = flat.reshape(self.groups, self.shape[0] // self.groups, self.shape[1])
        first, second = grouped.sum(2).reshape(-1), grouped.sum(1).reshape(-1)
        return (second, first) if self.input_first else (first, second)


@dataclass(frozen=True, eq=False, repr=False)
class WeightConductance(Mapping[str, Tensor]):
    """Conductance of every weight, summed over examples: a mapping of layer names to tensors like their weights.

    Results of several batches add up: ``a + b``, or ``sum(results)``.

    Attributes
    ----------
    conductance
        Per layer a tensor like its weight: ``W_ji ∫ v_j dx_i``, summed over positions, calls and examples; signed.
    error_parts
        Per layer ``(2, *weight shape)``: sum of the signed estimates of the error, and of their squares.
    info
        Per layer its `WeightInfo`.
    count, converged, evaluations
        Number of examples, how many of them converged, and rows run for them.
    output_change, unattributed
        ``F(x) - F(x')``, and what of it belongs to no input, summed over examples.
    settings
        How it was computed, as JSON; of the first batch.

    Examples
    --------
    >>> info = WeightInfo("fc", "Linear", (1, 2), input_first=False, groups=1)
    >>> one = WeightConductance(
    ...     conductance={"fc": torch.tensor([[3.0, -2.0]])}, error_parts={"fc": torch.zeros(2, 1, 2)},
    ...     info={"fc": info}, count=1, converged=1, evaluations=4, output_change=1.0, unattributed=0.0, settings={},
    ... )
    >>> both = one + one
    >>> both
    WeightConductance(1 layer, 2 examples, 2 converged)
    >>> both["fc"], both.mean("fc")
    (tensor([[ 6., -4.]]), tensor([[ 3., -2.]]))
    >>> both.per_output("fc"), both.per_input("fc")
    (tensor([2.]), tensor([ 6., -4.]))
    """

    conductance: dict[str, Tensor]
    error_parts: dict[str, Tensor]
    info: dict[str, WeightInfo]
    count: int
    converged: int
    evaluations: int
    output_change: float
    unattributed: float
    settings: dict[str, JSON]

    def __post_init__(self) -> None:
        """Check the shapes, and copy the settings in the form that a file keeps."""
        for name, info in self.info.items():
            found = tuple(self.conductance[name].shape), tuple(self.error_parts[name].shape)
            if found != (info.shape, (2, *info.shape)):
                raise ValueError(f"{name!r} has tensors of shapes {found}, expected {info.shape} and 2 of them")
        object.__setattr__(self, "settings", as_json(self.settings))

    def __getitem__(self, layer: str) -> Tensor:
        """Conductance of the weights of a layer, summed over examples."""
        if layer not in self.conductance:
            raise UnknownLayerError(layer, self)
        return self.conductance[layer]

    def __iter__(self) -> Iterator[str]:
        """Names of the layers, in forward order."""
        return iter(self.conductance)

    def __len__(self) -> int:
        """Count the layers."""
        return len(self.conductance)

    def __eq__(self, other: object) -> bool:
        """Whether it is the same object: tensors have no one truth."""
        return self is other

    def __hash__(self) -> int:
        """Hash of the object, as for `__eq__`."""
        return id(self)

    def __repr__(self) -> str:
        """One line: sizes."""
        return (
            f"WeightConductance({counted(len(self), 'layer')}, {counted(self.count, 'example')}, "
            f"{self.converged} converged)"
        )

    def __add__(self, other: WeightConductance) -> WeightConductance:
        """Both batches together.

        Raises
        ------
        ValueError
            If the layers or their weights differ; the message names them.
        """
        if not isinstance(other, WeightConductance):
            return NotImplemented
        if self.info != other.info:
            raise ValueError(f"these results are of different layers and do not add up: {_difference(self, other)}")
        return WeightConductance(
            conductance={name: one + other[name].to(one) for name, one in self.conductance.items()},
            error_parts={name: one + other.error_parts[name].to(one) for name, one in self.error_parts.items()},
            info=self.info,
            count=self.count + other.count,
            converged=self.converged + other.converged,
            evaluations=self.evaluations + other.evaluations,
            output_change=self.output_change + other.output_change,
            unattributed=self.unattributed + other.unattributed,
            settings=self.settings,
        )

    def __radd__(self, other: int) -> WeightConductance:
        """Let ``sum`` begin at 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in forward order."""
        return list(self)

    def mean(self, layer: str) -> Tensor:
        """Mean over examples, like the weight."""
        return self[layer] / max(1, self.count)

    def error(self, layer: str) -> Tensor:
        """Estimated absolute error of the sum over examples, like the weight."""
        self[layer]
        return error_of(*self.error_parts[layer])

    def per_output(self, layer: str) -> Tensor:
        """Sum over the weights into each output unit, ``(outputs,)``: the units' total conductance behind the layer."""
        values = self[layer]
        return self.info[layer].ends(values)[0]

    def per_input(self, layer: str) -> Tensor:
        """Sum over the weights out of each input unit, ``(inputs,)``.

        The inputs' total conductance, if the layer is the only one that reads them; else its share of it.
        """
        values = self[layer]
        return self.info[layer].ends(values)[1]

    def to_dataframe(self, layer: str | None = None, *, top: int | None = None) -> pd.DataFrame:
        """One row a weight.

        Parameters
        ----------
        layer
            Only this one; by default all.
        top
            Only so many weights of each layer, those of the largest absolute conductance, in this order.

        Returns
        -------
        pandas.DataFrame
            Columns ``layer``, ``index`` (into the weight), ``conductance`` and its estimated absolute ``error``, both
            of the sum over examples.
        """
        import numpy as np
        import pandas as pd

        if top is not None and (isinstance(top, bool) or not isinstance(top, int)):
            raise TypeError(f"top is {top!r}; expected a whole number of weights, or None for all")
        if top is not None and top < 1:
            raise ValueError(f"top is {top}; expected at least 1, or None for all weights")
        tables = []
        for name in self if layer is None else [layer]:
            values = wide(self[name]).cpu().numpy().reshape(-1)
            order = np.arange(len(values)) if top is None else np.argsort(-np.abs(values), kind="stable")[:top]
            index = zip(*np.unravel_index(order, self.info[name].shape), strict=True)
            tables.append(
                pd.DataFrame(
                    {
                        "layer": name,
                        "index": [tuple(map(int, one)) for one in index],
                        "conductance": values[order],
                        "error": wide(self.error(name)).cpu().numpy().reshape(-1)[order],
                    }
                )
            )
        return pd.concat(tables, ignore_index=True)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; the folder has to exist. `conductance.load` reads it back."""
        tensors = {f"conductance/{name}": one for name, one in self.conductance.items()}
        tensors |= {f"error_parts/{name}": one for name, one in self.error_parts.items()}
        content = {name: getattr(self, name) for name in _NUMBERS}
        content |= {"info": [asdict(one) for one in self.info.values()], "settings": self.settings}
        _files.write(path, FORMAT, VERSION, tensors, content)

    @staticmethod
    def load(path: str | Path) -> WeightConductance:
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
            info = {one["name"]: WeightInfo(**{**one, "shape": tuple(one["shape"])}) for one in content["info"]}
            parts: dict[str, Any] = {
                field: {name: tensors[f"{field}/{name}"] for name in info} for field in ("conductance", "error_parts")
            }
            numbers = {name: content[name] for name in _NUMBERS}
            return WeightConductance(**parts, **numbers, info=info, settings=content["settings"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _files.damaged(path, FORMAT, error) from error


def error_of(signed: Tensor, square: Tensor) -> Tensor:
    """Estimated absolute error from the sums of signed errors and of their squares."""
    return torch.maximum(signed.abs(), 2.0 * square.clamp(min=0.0).sqrt())


def _difference(one: WeightConductance, other: WeightConductance) -> str:
    """The first few layers that differ."""
    names = [name for name in {**one.info, **other.info} if one.info.get(name) != other.info.get(name)]
    told = [f"{name!r} is {_told(one.info.get(name))} and {_told(other.info.get(name))}" for name in names[:3]]
    return "; ".join(told) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")


def _told(info: WeightInfo | None) -> str:
    return "missing" if info is None else f"{info.module_type} {info.shape}"


_NUMBERS = ("count", "converged", "evaluations", "output_change", "unattributed")
