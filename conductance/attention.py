"""Attention heads as units, and each head's conductance in two parts: through its pattern, and through its values.

A head gives ``O = P V``, with the pattern ``P`` made of queries and keys. Along the path ``dO = dP V + P dV``, so its
conductance ``∫ v · dO`` splits into what the moving pattern contributes and what the moving values do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from conductance.errors import UnknownLayerError
from conductance.flow import conductance_flow
from conductance.flow_results import ConductanceFlow
from conductance.hooks import AttentionPoints, attention_points
from conductance.path import Inputs

if TYPE_CHECKING:
    import pandas as pd


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
    flow
        The flow that it was read off: from every value head to every head.
    """

    total: dict[str, Tensor]
    pattern: dict[str, Tensor]
    value: dict[str, Tensor]
    error: dict[str, Tensor]
    flow: ConductanceFlow

    def __repr__(self) -> str:
        """One line: sizes."""
        heads = sum(one.shape[1] for one in self.total.values())
        return f"AttentionConductance({len(self.total)} layers, {heads} heads, {self.flow.batch} examples)"

    @property
    def layers(self) -> list[str]:
        """Names of the attention layers."""
        return list(self.total)

    @property
    def converged(self) -> Tensor:
        """``(batch,)`` bool: whether the tolerance was reached."""
        return self.flow.converged

    def to_dataframe(self, layer: str | None = None) -> pd.DataFrame:
        """One row a head and example: columns ``layer``, ``head``, ``example``, ``total``, ``pattern``, ``value``.

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
            parts = {"total": self.total[name], "pattern": self.pattern[name], "value": self.value[name]}
            columns = {part: one.reshape(-1).cpu().numpy() for part, one in parts.items()}
            tables.append(pd.DataFrame(columns, index).reset_index().assign(layer=name))
        return pd.concat(tables, ignore_index=True)[["layer", "head", "example", "total", "pattern", "value"]]


def attention_conductance(
    model: nn.Module, inputs: Inputs, layers: Sequence[str | AttentionPoints] | str | None = None, **options: Any
) -> AttentionConductance:
    """Conductance of attention heads, each split into a pattern and a value part.

    Parameters
    ----------
    model, inputs
        As for :func:`~conductance.total.total_conductance`.
    layers
        Names of attention modules, or the two ends of their heads (``hooks.AttentionPoints``) where these cannot be
        found by name; None is all that `hooks.attention_points` finds.
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
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}; expected a module, in which attention layers are looked for"
        )
    chosen = _chosen(model, layers)
    points = [point for one in chosen for point in (one.value, one.output)]
    flow = conductance_flow(model, inputs, points, top=None, **options)
    total, pattern, value, error = {}, {}, {}, {}
    for one in chosen:
        there, before = one.output.name, one.value.name
        name = one.name or "(model)"
        total[name] = flow.conductance[there]
        incoming = {pair[0]: edge.sum(1) for pair, edge in flow.edges.items() if pair[1] == there}
        value[name] = incoming.pop(before, torch.zeros_like(total[name]))
        pattern[name] = sum(incoming.values(), torch.zeros_like(total[name]))
        error[name] = flow.error[there]
    return AttentionConductance(total, pattern, value, error, flow)


def _chosen(model: nn.Module, layers: Sequence[str | AttentionPoints] | str | None) -> list[AttentionPoints]:
    known = {one.name: one for one in attention_points(model)}
    if layers is None:
        if not known:
            raise ValueError(
                "no attention layer with a value and an output projection was found in the model; give layers as "
                "hooks.AttentionPoints(name, output, value)"
            )
        return list(known.values())
    several = [layers] if isinstance(layers, (str, AttentionPoints)) else list(layers)
    if not several:
        raise ValueError("layers is empty; expected names of attention modules, or None for all")
    unknown = [one for one in several if isinstance(one, str) and one not in known]
    if unknown:
        raise ValueError(f"layers names {unknown[0]!r}, which is no attention layer; found were {list(known)}")
    return [known[one] if isinstance(one, str) else one for one in several]
