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
from conductance.arguments import Inputs
from conductance.errors import UnknownLayerError
from conductance.flow import conductance_flow
from conductance.flow_results import ConductanceFlow, from_content, to_content
from conductance.hooks import AttentionPoints, HookPoint, LayerSpec, attention_points, select

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
        Per attention layer the names of its layers of the flow: those of the values, and the heads.
    flow
        The flow that it was read off: from every value head to every head. It has ``output_change``, ``status``,
        ``evaluations`` and ``settings``.
    """

    total: dict[str, Tensor]
    pattern: dict[str, Tensor]
    value: dict[str, Tensor]
    error: dict[str, Tensor]
    head_error: dict[str, Tensor]
    points: dict[str, tuple[list[str], str]]
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
            points = {name: (list(values), heads) for name, (values, heads) in content["points"]}
            return _read_off(points, from_content(tensors, content))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _files.damaged(path, FORMAT, error) from error


_COLUMNS = {"total": "total", "pattern": "pattern", "value": "value", "error": "head_error"}


def attention_conductance(
    model: nn.Module,
    inputs: Inputs,
    layers: Sequence[str | AttentionPoints] | AttentionPoints | str | None = None,
    **options: Any,
) -> AttentionConductance:
    """Conductance of attention heads, each split into a pattern and a value part.

    Parameters
    ----------
    model, inputs
        As for :func:`~conductance.total.total_conductance`.
    layers
        Names of attention modules (or globs), or the two ends of their heads (``hooks.AttentionPoints``) where these
        cannot be found by name; None is all that `hooks.attention_points` finds and that conductance flows through.
    **options
        ``target``, ``rtol``, ``n_steps`` and the others of :func:`~conductance.flow.conductance_flow`, but ``top`` and
        ``units``.

    Returns
    -------
    AttentionConductance
        Per layer and head, with grouped queries per query head. A layer that runs several times has a number for each
        of its calls, as in ``"attention#1"``.

    Raises
    ------
    ValueError, TypeError
        If no attention layer is found, or a name is none; for ``top`` or ``units``; and as for a flow.

    Notes
    -----
    The value part is the flow from the values to the head, the pattern part all that comes to the head on other ways,
    which lead through queries and keys (and through a gate on the head, if there is one). Values that do not move along
    the path, as those of a decoder that reads a fixed text, have the part zero.

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
    flow = conductance_flow(model, inputs, _asked(chosen, layers), top=None, **options)
    points: dict[str, tuple[list[str], str]] = {}
    for one in chosen:
        before = list(_calls(model, flow, one.value).values())
        for call, there in _calls(model, flow, one.output).items():
            points[(one.name or "(model)") + ("" if call is None else f"#{call}")] = before, there
    return _read_off(points, flow)


def _read_off(points: Mapping[str, tuple[list[str], str]], flow: ConductanceFlow) -> AttentionConductance:
    total, pattern, value, error, head_error = {}, {}, {}, {}, {}
    for name, (before, there) in points.items():
        total[name] = flow.conductance[there]
        none = torch.zeros_like(total[name])
        parts = {kept: none.clone() for kept in (False, True)}
        for (start, stop), edge in flow.edges.items():
            if stop == there:
                parts[start in before] += edge.sum(1).to(none)
        pattern[name], value[name], error[name] = parts[False], parts[True], flow.error[there]
        head_error[name] = sum((one.sum(1) for pair, one in flow.edge_error.items() if pair[1] == there), none)
    return AttentionConductance(total, pattern, value, error, head_error, dict(points), flow)


def _chosen(
    model: nn.Module, layers: Sequence[str | AttentionPoints] | AttentionPoints | str | None
) -> list[AttentionPoints]:
    """The attention layers asked, each once."""
    known = {one.name: one for one in attention_points(model)}
    several = (
        [*known.values()] if layers is None else [layers] if isinstance(layers, (str, AttentionPoints)) else layers
    )
    if not isinstance(several, (list, tuple)):
        raise TypeError(f"layers is a {type(layers).__name__}; expected names of attention modules, or None for all")
    if layers is not None and not several:
        raise ValueError("layers is empty; expected names of attention modules, or None for all")
    if not known and not any(isinstance(one, AttentionPoints) for one in several):
        raise ValueError(
            "no attention layer with a value and an output projection was found in the model "
            "(nn.MultiheadAttention, and one projection of queries, keys and values, have no value tensor to tap); "
            "give layers as hooks.AttentionPoints(name, output, value)"
        )
    for one in several:
        if not isinstance(one, (str, AttentionPoints)):
            raise TypeError(
                f"layers holds a {type(one).__name__}; expected names of attention modules or hooks.AttentionPoints"
            )
    chosen = list(dict.fromkeys(found for one in several for found in _meant(one, known)))
    twice = [one.name for n, one in enumerate(chosen) if one.name in {other.name for other in chosen[:n]}]
    if twice:
        raise ValueError(f"layers holds two AttentionPoints of the name {twice[0]!r}; give them names that differ")
    return chosen


def _meant(one: str | AttentionPoints, known: Mapping[str, AttentionPoints]) -> list[AttentionPoints]:
    """What a name or a glob means."""
    if isinstance(one, AttentionPoints):
        return [one]
    names = [one] if one in known else [name for name in known if fnmatchcase(name, one)]
    if not names:
        raise ValueError(f"layers names {one!r}, which is no attention layer; found were {', '.join(known)}")
    return [known[name] for name in names]


def _asked(chosen: list[AttentionPoints], layers: object) -> LayerSpec:
    """Both ends of all heads as layers of a flow; what is in the list inside is left out if nothing flows there.

    Values found by name may stand still; of points given by hand, and of heads asked for, that is refused.
    """
    given = [layers] if isinstance(layers, AttentionPoints) else layers if isinstance(layers, (list, tuple)) else []
    named: list[LayerSpec] = [] if layers is None else [one.output for one in chosen]
    named += [one.value for one in chosen if one in given]
    others: list[LayerSpec] = [one.output for one in chosen] if layers is None else []
    others += [one.value for one in chosen if one not in given]
    return [*named, others] if others else named


def _calls(model: nn.Module, flow: ConductanceFlow, point: HookPoint) -> dict[int | None, str]:
    """Name of a point's tensor in the flow for each call of its module; none if nothing flows there."""
    (asked,) = select(model, point).points
    found: dict[int | None, str] = {}
    for name in flow.layers:
        one = HookPoint.parse(name)
        if (one.module, one.side, one.index[: len(asked.index)]) != (asked.module, asked.side, asked.index):
            continue
        if None not in (one.call, asked.call) and one.call != asked.call:
            continue
        if one.call in found:
            raise ValueError(f"layers holds {point.name!r}, which is several tensors: {found[one.call]!r}, {name!r}")
        found[one.call] = name
    return found
