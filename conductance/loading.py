"""Reading a file of any result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from conductance import _files, attention, dataset_results, flow_results, neuron_results, results, weight_results
from conductance.attention import AttentionConductance
from conductance.dataset_results import DatasetConductance
from conductance.flow_results import ConductanceFlow
from conductance.neuron_results import NeuronConductance
from conductance.results import TotalConductance
from conductance.weight_results import WeightConductance

Result: TypeAlias = (
    TotalConductance
    | NeuronConductance
    | ConductanceFlow
    | WeightConductance
    | AttentionConductance
    | DatasetConductance
)

_KINDS: dict[str, Callable[[str | Path], Result]] = {
    results.FORMAT: TotalConductance.load,
    neuron_results.FORMAT: NeuronConductance.load,
    flow_results.FORMAT: ConductanceFlow.load,
    weight_results.FORMAT: WeightConductance.load,
    attention.FORMAT: AttentionConductance.load,
    dataset_results.FORMAT: DatasetConductance.load,
}


def load(path: str | Path) -> Result:
    """Read a result that its ``save`` wrote, whichever it is.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    TotalConductance, NeuronConductance, ConductanceFlow, ...
        On the CPU, bit for bit what was saved.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is another kind of file, of another version, or damaged.
    """
    kind = _files.kind_of(path)
    if kind not in _KINDS:
        msg = f"{path} has the format {kind!r}, expected one of {', '.join(_KINDS)}: another kind of file."
        raise ValueError(msg)
    return _KINDS[kind](path)
