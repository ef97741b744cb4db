"""Attention heads as units, and each head's conductance in two parts: through its pattern, and through its values.

A head gives ``O = P V``, with the pattern ``P`` made of queries and keys. Along the path ``dO = dP V + P dV``, so its
conductance ``∫ v · dO`` splits into what the moving pattern contributes and what the moving values do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from conductance import _files
from conductance._result_layers import counted
from conductance.errors import UnknownLayerError
from conductance.flow import conductance_flow
from conductance.flow_results import ConductanceFlow, from_content, to_content
from conductance.hooks import AttentionPoints, attention_points
from conductance.path import Inputs

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "conductance.attention_conductance"
VERSION = 1


@dataclass(frozen=True, eq=False, repr=False)
class AttentionConductance:
    """Conductance of attention heads, split into pattern and value part.

    Attributes
    ----------
    total, pattern, value
        Per attention layer ``(batch, heads)``; ``pattern + value`` is ``total`` within the tolerance.
    error
        Per attention layer ``(batch,)``: estimated ``Σ|error|`` of the parts, or ``Σ|total - pattern - value|`` if
        larger, over ``Σ|total|``.
    head_error
        Per attention layer ``(batch, heads)``: estimated absolute error of the two parts of each head together.
    points
        Per attention layer the names of its two layers of the flow: the values, and the heads.
    flow
        The flow that it was read off: from every value head to every head. It has ``output_change``, ``status``,
        ``evaluations`` and ``settings``.
    """

    total: dict[str, Tensor]
    pattern: dict[str, Tensor]
    value: dict[str, Tensor]
    error: dict[str, Tensor]
    head_error: dict[str, Tensor]
    points: dict[str, tuple[str, str]]
    flow: ConductanceFlow

    def __repr__(self) -> str:
        """One line: sizes and how many examples converged."""
        heads = sum(one.shape[1] for one in self.total.values())
        sizes = [counted(len(self.total), "layer"), counted(heads, "head"), counted(self.flow.batch, "example")]
        return f"AttentionConductance({', '.join(sizes)}, {int(self.converged.sum())} converged)"

    @property
    def layers(self) -> list[str]:
        """Names of the attention layers."""
        return list(self.total)

    @property
    def converged(self) -> Tensor:
        """``(batch,)`` bool: whether the tolerance was reached."""
        return self.flow.converged

    def to_dataframe(self, layer: str | None = None) -> pd.DataFrame:
        """One row a head and example.

        Columns are ``layer``, ``head``, ``example``, ``total``, ``pattern``, ``value``, and the estimated absolute
        ``error`` of the parts.

        Raises
        ------
        KeyError
            If there is no such layer.
        """
        import pandas as pd

        if layer is not None and layer not in self.total:
            raise UnknownLayerError(layer, self.total)
        tables = []
        for name in self.total if layer is None else [layer]:
            batch, heads = self.total[name].shape
            index = pd.MultiIndex.from_product([range(batch), range(heads)], names=["example", "head"])
            parts = {part: getattr(self, field)[name] for part, field in _COLUMNS.items()}
            columns = {part: one.reshape(-1).cpu().numpy() for part, one in parts.items()}
            tables.append(pd.DataFrame(columns, index).reset_index().assign(layer=name))
        return pd.concat(tables, ignore_index=True)[["layer", "head", "example", *_COLUMNS]]

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; the folder has to exist. `conductance.load` reads it back."""
        tensors, content = to_content(self.flow)
        _files.write(path, FORMAT, VERSION, tensors, {**content, "points": list(self.points.items())})

    @staticmethod
    def load(path: str | Path) -> AttentionConductance:
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
            points = {name: (value, heads) for name, (value, heads) in content["points"]}
            return _read_off(points, from_content(tensors, content))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _files.damaged(path, FORMAT, error) from error


_COLUMNS = {"total": "total", "pattern": "pattern", "value": "value", "error": "head_error"}


def attention_conductance(
    model: nn.Module, inputs: Inputs, layers: Sequence[str | AttentionPoints] | str | None = None, **options: Any
) -> AttentionConductance:
    """Conductance of attention heads, each split into a pattern and a value part.

    Parameters
    ----------
    model, inputs
        As for :func:`~conductance.total.total_conductance`.
    layers
        Names of attention modules (or globs), or the two ends of their heads (``hooks.AttentionPoints``) where these
        cannot be found by name; None is all that `hooks.attention_points` finds.
    **options
        ``target``, ``rtol``, ``n_steps`` and the others of :func:`~conductance.flow.conductance_flow`, but ``top`` and
        ``units``.

    Returns
    -------
    AttentionConductance
        Per layer and head, with grouped queries per query head.

    Raises
    ------
    ValueError
        If no attention layer is found, or a name is none.

    Notes
    -----
    The value part is the flow from the values to the head, the pattern part all that comes to the head on other ways,
    which lead through queries and keys (and through a gate on the head, if there is one).

    Examples
    --------
    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
    ...                     vocab_size=11, num_labels=3)
    >>> model = BertForSequenceClassification(config).double().eval()
    >>> x = torch.randn(2, 5, 8, dtype=torch.float64)
    >>> found = attention_conductance(model, {"inputs_embeds": x}, target=1, rtol=1e-6)
    >>> parts = found.pattern["bert.encoder.layer.0.attention"] + found.value["bert.encoder.layer.0.attention"]
    >>> bool((parts - found.total["bert.encoder.layer.0.attention"]).abs().max() < 1e-6)
    True
    """
    for name in ("top", "units"):
        if name in options:
            raise TypeError(f"attention_conductance takes no {name}: its units are the heads")
    chosen = _chosen(model, layers)
    points = [point for one in chosen for point in (one.value, one.output)]
    flow = conductance_flow(model, inputs, points, top=None, **options)
    return _read_off({one.name or "(model)": (one.value.name, one.output.name) for one in chosen}, flow)


def _read_off(points: Mapping[str, tuple[str, str]], flow: ConductanceFlow) -> AttentionConductance:
    total, pattern, value, error, head_error = {}, {}, {}, {}, {}
    for name, (before, there) in points.items():
        total[name] = flow.conductance[there]
        none = torch.zeros_like(total[name])
        incoming = {pair[0]: edge.sum(1) for pair, edge in flow.edges.items() if pair[1] == there}
        value[name] = incoming.pop(before, none)
        pattern[name] = sum(incoming.values(), none)
        error[name] = flow.error[there]
        head_error[name] = sum((one.sum(1) for pair, one in flow.edge_error.items() if pair[1] == there), none)
    return AttentionConductance(total, pattern, value, error, head_error, dict(points), flow)


def _chosen(model: nn.Module, layers: Sequence[str | AttentionPoints] | str | None) -> list[AttentionPoints]:
    known = {one.name: one for one in attention_points(model)}
    if layers is None:
        if not known:
            raise ValueError(
                "no attention layer with a value and an output projection was found in the model "
                "(nn.MultiheadAttention, and one projection of queries, keys and values, have no value tensor to tap); "
                "give layers as hooks.AttentionPoints(name, output, value)"
            )
        return list(known.values())
    several = [layers] if isinstance(layers, (str, AttentionPoints)) else list(layers)
    if not several:
        raise ValueError("layers is empty; expected names of attention modules, or None for all")
    found: dict[AttentionPoints, None] = {}
    for one in several:
        if isinstance(one, AttentionPoints):
            found[one] = None
            continue
        names = [one] if one in known else [name for name in known if fnmatchcase(name, one)]
        if not names:
            raise ValueError(f"layers names {one!r}, which is no attention layer; found were {list(known)}")
        found |= dict.fromkeys(known[name] for name in names)
    return list(found)
