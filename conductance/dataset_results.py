"""Statistics of conductance over a data set: running sums that take results batch by batch and add up.

No tensor with an axis of examples is kept, so memory does not grow with them: eleven numbers for each unit and group.
Everything is summed in float64 on the CPU; statistics are those of all examples at once, in whatever batches they came
and in whatever order the parts were merged, up to rounding.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from conductance import _dataset_files, _dataset_tables
from conductance._dataset_files import FORMAT, VERSION
from conductance._dataset_groups import checked_group, checked_groups, in_order
from conductance._dataset_state import State
from conductance._dataset_sums import LayerSums, layer_values, members, unit_values
from conductance._result_checks import as_json
from conductance._result_layers import LayerInfo
from conductance.dataset_statistics import LayerStatistics, statistics_of
from conductance.errors import UnknownLayerError
from conductance.results import TotalConductance

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FORMAT", "VERSION", "DatasetConductance"]

#: Settings of a result that are kept, and have to be those of the results before it.
_SHARED = ("moving", "rtol", "atol", "n_steps")
#: Settings that say how a run went, not what was run.
_OF_THE_RUN = ("seconds", "interrupted")
#: Held while sums are replaced: one for all statistics, since one of their own could be neither pickled nor copied.
_ADDING = threading.Lock()


class DatasetConductance:
    """Statistics of total conductance over many examples, by group if asked; as `dataset_conductance` returns them.

    Its methods are those of a metric of torchmetrics. It needs no model: results of one's own loop can be added too, by
    several threads at once.

    Parameters
    ----------
    settings
        What was run, as JSON (target, baselines, …). Statistics merge only if the settings that both know are equal.

    Attributes
    ----------
    settings
        Those, ``moving``, ``rtol``, ``atol`` and ``n_steps`` of the results, and from `dataset_conductance`
        ``seconds`` and ``interrupted``.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> import conductance as cd
    >>> x = torch.tensor([[1.0, -4.0], [3.0, 2.0], [2.0, 5.0]], dtype=torch.float64)
    >>> stats = cd.DatasetConductance()
    >>> for batch, labels in ((x[:2], ["cat", "dog"]), (x[2:], ["dog"])):
    ...     total = cd.total_conductance(nn.Sequential(nn.Identity()), batch, target=lambda output: output.sum(1))
    ...     stats.update(total, labels)
    >>> stats
    DatasetConductance(1 layer, 3 examples, 3 converged, 2 groups)
    >>> stats.compute("dog")["0"].mean.round(decimals=6).tolist()
    [2.5, 3.5]
    >>> stats.to_dataframe()[["layer", "unit", "group", "count", "mean", "mean_abs"]].round(6)
      layer  unit group  count  mean  mean_abs
    0     0     0   cat      1   1.0       1.0
    1     0     1   cat      1  -4.0       4.0
    2     0     0   dog      2   2.5       2.5
    3     0     1   dog      2   3.5       3.5
    """

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        if settings is not None and not isinstance(settings, Mapping):
            raise TypeError(f"settings must be a dict of what was run, or None, got {type(settings).__name__}.")
        self._given = as_json(settings or {})
        self.reset()

    def __repr__(self) -> str:
        """One line: sizes and how many examples converged."""
        return _dataset_tables.to_text(self)

    def _repr_html_(self) -> str:
        return _dataset_tables.to_html(self)

    @property
    def layers(self) -> list[str]:
        """Names of the hook points, in forward order; none before the first result."""
        return list(self._state.info)

    @property
    def info(self) -> dict[str, LayerInfo]:
        """Per hook point its `LayerInfo`: with the shape ``(units,)``, a cut only if it is one in all results."""
        return dict(self._state.info)

    @property
    def groups(self) -> list[Hashable]:
        """The groups, sorted where they can be; empty if examples are not grouped."""
        return in_order(group for group in self._state.sums if group is not None)

    @property
    def count(self) -> int:
        """Number of examples in the statistics: those that were finished."""
        return self._state.count

    @property
    def left_out(self) -> int:
        """Number of examples that were interrupted, or hold NaN or infinity."""
        return self._state.left_out

    @property
    def unconverged(self) -> dict[str, int]:
        """Number of examples in the statistics that missed the tolerance, by status."""
        return dict(self._state.unconverged)

    @property
    def evaluations(self) -> int:
        """Points of the path run forward and backward, over all examples."""
        return self._state.evaluations

    @property
    def interrupted(self) -> bool:
        """Whether the loop over the loader was ended before the loader was."""
        return bool(self.settings.get("interrupted", False))

    def update(self, result: TotalConductance, groups: Sequence[Hashable] | Tensor | None = None) -> None:
        """Add the examples of a result.

        Parameters
        ----------
        result
            What `total_conductance` returned; on any device. Positions may differ from those of results before it, as
            sequences of other lengths have them, and so may target and baselines.
        groups
            The group of each example, such as its class: texts, numbers or tuples of them. None for all results, or
            given for all.

        Raises
        ------
        TypeError
            If ``result`` is none, or a group neither text nor number.
        ValueError
            If the layers, their units or the tolerance are not those of the results before, there is not one group for
            each example, or only some results have groups. Nothing is added then.
        """
        if not isinstance(result, TotalConductance):
            found = type(result).__name__
            raise TypeError(f"result must be a TotalConductance, as total_conductance returns it, got {found}.")
        values, finished = unit_values(result)
        of_each = checked_groups(groups, len(result.status))
        every = members(of_each, finished)
        sums: dict[Hashable, dict[str, LayerSums]] = {group: {} for group in every}
        for layer in result:
            of_layer = layer_values(result, layer, values[layer])
            for group, examples in every.items():
                sums[group][layer] = of_layer.summed(examples)
        missed = [
            s for s, good, done in zip(result.status, result.converged, finished, strict=True) if done and not good
        ]
        added = State(
            info={layer: _folded(info) for layer, info in result.info.items()},
            sums=sums,
            count=int(finished.sum()),
            left_out=int((~finished).sum()),
            unconverged={status: missed.count(status) for status in dict.fromkeys(missed)},
            evaluations=int(result.evaluations.sum()),
        )
        shared = {name: result.settings[name] for name in _SHARED if name in result.settings}
        with _ADDING:
            self._add(added, shared, "the result")

    def merge_state(self, other: DatasetConductance) -> None:
        """Add statistics of other examples, such as those of another process.

        Parameters
        ----------
        other
            Stays as it is.

        Raises
        ------
        TypeError
            If it holds no statistics of a data set.
        ValueError
            If layers, units or settings differ (another model, target, tolerance, …), only one has groups, or it is
            these statistics themselves, whose examples would count twice. Nothing is added then.
        """
        if not isinstance(other, DatasetConductance):
            raise TypeError(f"other must be a DatasetConductance, got {type(other).__name__}.")
        if other is self:
            raise ValueError(
                "other is these statistics themselves, whose examples would count twice; give another part."
            )
        settings = {name: value for name, value in other.settings.items() if name not in _OF_THE_RUN}
        with _ADDING:
            self._add(other._state, settings, "the other")
            for name in _OF_THE_RUN:  # seconds add up, and one interrupt is enough
                known: list[Any] = [one.settings[name] for one in (self, other) if name in one.settings]
                self.settings |= {name: max(known) if name == "interrupted" else round(sum(known), 3)} if known else {}

    def reset(self) -> None:
        """Forget all examples, and all settings but those given at first."""
        self._state = State()
        self.settings = dict(self._given)

    def compute(self, group: Hashable = None) -> dict[str, LayerStatistics]:
        """Take the statistics of every layer.

        Parameters
        ----------
        group
            Only of this group, written as `update` takes it; None is all examples.

        Returns
        -------
        dict of str to LayerStatistics
            In forward order.

        Raises
        ------
        TypeError
            If nothing of this kind can be a group.
        ValueError
            If there is no such group, or no example is finished.
        """
        sums = self._state.sums
        group = None if group is None else checked_group(group)
        if group is not None and group not in sums:
            several = ", ".join(map(repr, self.groups[:12])) + (", …" if len(self.groups) > 12 else "")
            raise ValueError(f"group is {group!r}, expected {several or 'None: examples are not grouped'}.")
        if not sums:
            seen = (
                f"each of the {self.left_out} was interrupted or holds NaN or infinity"
                if self.left_out
                else "none given"
            )
            raise ValueError(f"These statistics hold no finished example: {seen}.")
        # In the order of the groups, so that parts merged in any order give the same bits where they can.
        parts = [sums[one] for one in (self.groups or [None])] if group is None else [sums[group]]
        return {
            layer: statistics_of(info, reduce(LayerSums.merged, [part[layer] for part in parts]))
            for layer, info in self._state.info.items()
        }

    def to_dataframe(self, layer: str | None = None) -> pd.DataFrame:
        """One row a group, layer and unit.

        Parameters
        ----------
        layer
            Only this hook point; None is all.

        Returns
        -------
        pandas.DataFrame
            Columns ``layer``, ``unit``, ``group`` ("all" where examples are not grouped), ``count`` of examples, and
            ``mean``, ``mean_abs``, ``std``, ``standard_error``, ``share_positive``, ``smallest``, ``largest``,
            ``error`` and ``largest_error`` as in `LayerStatistics`.

        Raises
        ------
        KeyError
            If there is no such hook point.
        ValueError
            If no example is finished.
        """
        if layer is not None and layer not in self._state.info:
            raise UnknownLayerError(layer, self.layers)
        return _dataset_tables.to_dataframe(self, layer)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; the folder has to exist. `conductance.load` reads it back, to add more or merge.

        Parameters
        ----------
        path
            The file; replaced as a whole if it is there.

        Raises
        ------
        FileNotFoundError
            If the folder does not exist.
        """
        _dataset_files.write(path, self._state, {"given": self._given, "settings": as_json(self.settings)})

    @staticmethod
    def load(path: str | Path) -> DatasetConductance:
        """Read statistics that `save` wrote, bit for bit.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is another kind of file, of another version, or damaged.
        """
        state, kept = _dataset_files.read(path)
        stats = DatasetConductance(kept["given"])
        stats._state, stats.settings = state, kept["settings"]
        return stats

    def _add(self, added: State, settings: Mapping[str, Any], told: str) -> None:
        """Add one state to the other at once, so that an interrupt leaves the one or the other; `_ADDING` is held."""
        known = self.settings
        shared = [name for name in settings if name in known and known[name] != settings[name]]
        differences = [f"{name} is {settings[name]!r}, not {known[name]!r}" for name in shared]
        differences += self._state.differences(added)
        if differences:
            raise ValueError(
                f"{told} does not add up with these statistics: {'; '.join(differences)}. Keep statistics of different "
                "models, layers or settings apart."
            )
        self._state, self.settings = self._state.merged(added), {**self.settings, **settings}


def _folded(info: LayerInfo) -> LayerInfo:
    """The layer with its positions summed."""
    return replace(info, shape=(info.units,), unit_axis=1, unit_groups=None)
