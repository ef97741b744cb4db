"""The flow of conductance between units, as :func:`~conductance.flow.conductance_flow` returns it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from conductance import _files
from conductance._result_checks import JSON, as_json
from conductance._result_layers import LayerInfo, counted, wide
from conductance.errors import UnknownLayerError

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "conductance.conductance_flow"
VERSION = 1
#: The node layers at both ends of every flow graph.
SOURCE, SINK = "(input)", "(target)"
#: Label of the node that holds all units of a layer that have none of their own.
REST = "rest"

Unit: TypeAlias = int | str
Pair: TypeAlias = tuple[str, str]


@dataclass(frozen=True, eq=False, repr=False)
class ConductanceFlow:
    """Conserved flow of conductance from the input through units of the layers asked to the target.

    ``E_jk = ∫ v_k (∂z_k/∂y_j) dy_j`` is what unit ``j`` passes on to unit ``k`` directly, that is without crossing
    another layer asked. All a node has goes out: ``Σ_k E_jk = C_j`` exactly. What comes in, and the gap of the node,
    make it up: ``Σ_j E_jk + gap_k = C_k``.

    Attributes
    ----------
    units
        Per layer the labels of its nodes: numbers of units, then ``"rest"`` for all others together if there are
        any. ``"(input)"`` comes first, with one node for each feature group, ``"(target)"`` last, with one node.
    conductance
        Per layer ``(batch, nodes)``: total conductance of each node; integrated gradients of the input's groups,
        ``F(x) - F(x')`` at the target.
    edges
        Per pair of layers ``(from, to)`` between which something flows directly ``(batch, from nodes, to nodes)``.
    edge_error
        The same shape: estimated absolute error of each edge.
    gap
        Per layer ``(batch, nodes)``: conductance that no edge brings in: rounding of the integration rule, or a jump
        of the function (see `gap_kind`). Zero at the input, where conductance begins.
    error
        Per layer ``(batch,)``: estimated ``Σ|error| / Σ|E|`` of the edges that come in, or ``Σ|gap| / Σ|C|`` if that
        is larger; nan for the input.
    info
        Per layer asked its `LayerInfo`.
    output, baseline_output, unattributed
        ``(batch,)``: ``F(x)``, ``F(x')``, and what of their difference belongs to no input.
    status, evaluations, converged
        Per example, as of `TotalConductance`; evaluations count the rows of both runs, but not those that are run
        again because a panel does not fit into a call.
    settings
        How it was computed, as JSON.

    Examples
    --------
    ``F = 2 h`` of ``h = x1 + 3 x2``, from zero to (1, 2):

    >>> flow = ConductanceFlow(
    ...     units={"(input)": [0, 1], "h": [0], "(target)": ["target"]},
    ...     conductance={
    ...         "(input)": torch.tensor([[2.0, 12.0]]), "h": torch.tensor([[14.0]]), "(target)": torch.tensor([[14.0]])
    ...     },
    ...     edges={
    ...         ("(input)", "h"): torch.tensor([[[2.0], [12.0]]]), ("h", "(target)"): torch.tensor([[[14.0]]])
    ...     },
    ...     edge_error={("(input)", "h"): torch.zeros(1, 2, 1), ("h", "(target)"): torch.zeros(1, 1, 1)},
    ...     gap={"(input)": torch.zeros(1, 2), "h": torch.zeros(1, 1), "(target)": torch.zeros(1, 1)},
    ...     error={"(input)": torch.tensor([float("nan")]), "h": torch.zeros(1), "(target)": torch.zeros(1)},
    ...     info={"h": LayerInfo("h", "Linear", (1,), 1, None, is_cut=True, moves=True, used=True)},
    ...     output=torch.tensor([14.0]), baseline_output=torch.zeros(1), unattributed=torch.zeros(1),
    ...     status=("ok",), evaluations=torch.tensor([2]), converged=torch.tensor([True]), settings={},
    ... )
    >>> flow
    ConductanceFlow(1 layer, 4 nodes, 3 edges, 1 example, 1 converged)
    >>> flow.edges["(input)", "h"]
    tensor([[[ 2.],
             [12.]]])
    >>> flow.inflow("h"), flow.outflow("h")
    (tensor([[14.]]), tensor([[14.]]))
    """

    units: dict[str, list[Unit]]
    conductance: dict[str, Tensor]
    edges: dict[Pair, Tensor]
    edge_error: dict[Pair, Tensor]
    gap: dict[str, Tensor]
    error: dict[str, Tensor]
    info: dict[str, LayerInfo]
    output: Tensor
    baseline_output: Tensor
    unattributed: Tensor
    status: tuple[str, ...]
    evaluations: Tensor
    converged: Tensor
    settings: dict[str, JSON]

    def __post_init__(self) -> None:
        """Copy the settings in the form that a file keeps."""
        object.__setattr__(self, "settings", as_json(self.settings))

    def __repr__(self) -> str:
        """One line: sizes and how many examples converged."""
        nodes = sum(len(labels) for labels in self.units.values())
        edges = sum(one.shape[1] * one.shape[2] for one in self.edges.values())
        sizes = [counted(len(self.layers), "layer"), counted(nodes, "node"), counted(edges, "edge")]
        sizes.append(counted(self.batch, "example"))
        return f"ConductanceFlow({', '.join(sizes)}, {int(self.converged.sum())} converged)"

    @property
    def layers(self) -> list[str]:
        """Names of the layers asked, in forward order, without input and target."""
        return [name for name in self.units if name not in (SOURCE, SINK)]

    @property
    def batch(self) -> int:
        """Number of examples."""
        return len(self.status)

    @property
    def output_change(self) -> Tensor:
        """``(batch,)``: ``F(x) - F(x')``, in at least float32."""
        return wide(self.output) - wide(self.baseline_output)

    @property
    def gap_kind(self) -> tuple[str, ...]:
        """Per example what its gaps are: "integration", or "jump" where the function jumps or hides its derivative."""
        return tuple("jump" if status in ("jump", "gradient") else "integration" for status in self.status)

    def inflow(self, layer: str) -> Tensor:
        """``(batch, nodes)``: sum of the edges into each node of a layer."""
        return self._sum(layer, 1)

    def outflow(self, layer: str) -> Tensor:
        """``(batch, nodes)``: sum of the edges out of each node of a layer."""
        return self._sum(layer, 0)

    def _sum(self, layer: str, side: int) -> Tensor:
        if layer not in self.units:
            raise UnknownLayerError(layer, self.units)
        total = torch.zeros_like(self.conductance[layer])
        for pair, edge in self.edges.items():
            if pair[side] == layer:
                total += edge.sum(1 if side else 2).to(total)
        return total

    def to_dataframe(self) -> pd.DataFrame:
        """One row an edge and example.

        Returns
        -------
        pandas.DataFrame
            Columns ``from_layer``, ``from_unit``, ``to_layer``, ``to_unit``, ``example``, ``flow`` and its estimated
            absolute ``error``; gaps are edges from ``"(integration)"`` or ``"(jump)"``.
        """
        import pandas as pd

        tables = [self._table(start, stop, edge) for (start, stop), edge in self.edges.items()]
        tables += [self._gaps(layer) for layer in self.units if layer != SOURCE]
        return pd.concat([table for table in tables if len(table)], ignore_index=True)

    def _table(self, start: str, stop: str, edge: Tensor) -> pd.DataFrame:
        import pandas as pd

        index = pd.MultiIndex.from_product(
            [range(self.batch), self.units[start], self.units[stop]], names=["example", "from_unit", "to_unit"]
        )
        values = {"flow": edge, "error": self.edge_error[start, stop]}
        table = pd.DataFrame({name: wide(one).reshape(-1).cpu().numpy() for name, one in values.items()}, index)
        table = table.reset_index().assign(from_layer=start, to_layer=stop)
        return table[["from_layer", "from_unit", "to_layer", "to_unit", "example", "flow", "error"]]

    def _gaps(self, layer: str) -> pd.DataFrame:
        import pandas as pd

        rows = [
            (f"({kind})", kind, layer, unit, example, value, 0.0)
            for example, (kind, values) in enumerate(zip(self.gap_kind, wide(self.gap[layer]).tolist(), strict=True))
            for unit, value in zip(self.units[layer], values, strict=True)
            if value
        ]
        return pd.DataFrame(
            rows, columns=["from_layer", "from_unit", "to_layer", "to_unit", "example", "flow", "error"]
        )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; the folder has to exist. `conductance.load` reads it back."""
        tensors, content = to_content(self)
        _files.write(path, FORMAT, VERSION, tensors, content)

    @staticmethod
    def load(path: str | Path) -> ConductanceFlow:
        """Read a flow that `save` wrote, on the CPU.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is another kind of file, of another version, or damaged.
        """
        tensors, content = _files.read(path, FORMAT, VERSION)
        try:
            return from_content(tensors, content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _files.damaged(path, FORMAT, error) from error


_PER_EXAMPLE = ("output", "baseline_output", "unattributed", "evaluations", "converged")
_PER_LAYER = ("conductance", "gap", "error")
_PER_PAIR = ("edges", "edge_error")


def to_content(flow: ConductanceFlow) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON of a flow, as a file keeps them."""
    tensors: dict[str, Tensor] = {name: getattr(flow, name) for name in _PER_EXAMPLE}
    for name in _PER_LAYER:
        tensors |= {f"{name}/{layer}": one for layer, one in getattr(flow, name).items()}
    pairs = list(flow.edges)
    for name in _PER_PAIR:
        tensors |= {f"{name}/{number}": getattr(flow, name)[pair] for number, pair in enumerate(pairs)}
    content = {
        "units": list(flow.units.items()),
        "pairs": pairs,
        "info": [asdict(one) for one in flow.info.values()],
        "status": flow.status,
        "settings": flow.settings,
    }
    return tensors, content


def from_content(tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> ConductanceFlow:
    """The flow that `to_content` took apart."""
    units: dict[str, list[Unit]] = {layer: list(labels) for layer, labels in content["units"]}
    pairs: list[Pair] = [(start, stop) for start, stop in content["pairs"]]
    values: dict[str, Any] = {name: tensors[name] for name in _PER_EXAMPLE}
    values |= {name: {layer: tensors[f"{name}/{layer}"] for layer in units} for name in _PER_LAYER}
    values |= {name: {pair: tensors[f"{name}/{n}"] for n, pair in enumerate(pairs)} for name in _PER_PAIR}
    info = {one["name"]: LayerInfo(**{**one, "shape": tuple(one["shape"])}) for one in content["info"]}
    return ConductanceFlow(
        **values, units=units, info=info, status=tuple(content["status"]), settings=content["settings"]
    )
