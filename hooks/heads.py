"""Attention heads as units: where a model's attention mixes its values, and how many heads that has."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from conductance.hooks.points import HookPoint

#: Names that values and output projections go by in transformers' models, and in many others.
_VALUES = ("v_proj", "value", "v", "v_lin", "self.value", "self.value_proj", "attention.value", "to_v", "wv")
_OUTPUTS = ("o_proj", "out_proj", "o", "out_lin", "output.dense", "to_out.0", "wo", "c_proj", "dense")
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")


@dataclass(frozen=True)
class AttentionPoints:
    """The two ends of the heads of one attention layer.

    Attributes
    ----------
    name
        Name of the attention module.
    output
        What all heads together give: the input of the output projection, with the heads as units.
    value
        The values that they mix, with their heads as units; fewer than of `output` where queries share them.
    """

    name: str
    output: HookPoint
    value: HookPoint


def attention_points(model: nn.Module) -> list[AttentionPoints]:
    """Find the attention layers of a model that have a value and an output projection of their own.

    Parameters
    ----------
    model
        A model of transformers (BERT, ViT, Llama, T5 and their like), or one that names things as those do.

    Returns
    -------
    list of AttentionPoints
        In the order of the modules. ``nn.MultiheadAttention`` and layers that make queries, keys and values by one
        projection have no value tensor to tap; give their points by hand where there are any.

    Examples
    --------
    >>> class Attention(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.num_heads, self.num_key_value_heads = 4, 2
    ...         self.v_proj, self.o_proj = nn.Linear(8, 4), nn.Linear(8, 8)
    >>> (found,) = attention_points(nn.ModuleDict({"attn": Attention()}))
    >>> found.output.name, found.output.unit_groups, found.value.name, found.value.unit_groups
    ('attn.o_proj:in', 4, 'attn.v_proj', 2)
    """
    if not isinstance(model, nn.Module):
        msg = f"model is a {type(model).__name__}; expected a torch.nn.Module, in which layers can be found by name"
        raise TypeError(msg)
    found = []
    for name, module in model.named_modules():
        for value, output, heads in _ends(module):
            below = f"{name}." if name else ""
            size = _features(module, output, "in_features") // heads
            values = _features(module, value, "out_features")
            shared = values // size if values % size == 0 else heads
            found.append(
                AttentionPoints(
                    name,
                    HookPoint(below + output, side="in", unit_axis=-1, unit_groups=heads),
                    HookPoint(below + value, unit_axis=-1, unit_groups=shared),
                )
            )
    inner = {point.value.module for point in found}
    return [one for one in found if _innermost(one, found)] if len(inner) < len(found) else found


def _innermost(one: AttentionPoints, found: list[AttentionPoints]) -> bool:
    """Whether no module below finds the same values."""
    return not any(
        other is not one and other.value.module == one.value.module and other.name.startswith(one.name)
        for other in found
    )


def _ends(module: nn.Module) -> Iterator[tuple[str, str, int]]:
    """Names of the value and the output projection below a module, and its heads."""
    value = next((name for name in _VALUES if _features(module, name, "out_features")), None)
    output = next((name for name in _OUTPUTS if _features(module, name, "in_features")), None)
    heads = _number(module, _HEADS)
    if value is None or output is None or heads < 1:
        return
    if _features(module, output, "in_features") % heads == 0:
        yield value, output, heads


def _features(module: nn.Module, name: str, side: str) -> int:
    """Size of one side of a linear map below a module, or of what stands in for one; 0 if there is none."""
    try:
        size = getattr(module.get_submodule(name), side, 0)
    except AttributeError:
        return 0
    return size if isinstance(size, int) else 0


def _number(module: nn.Module, names: tuple[str, ...]) -> int:
    """A number of heads, from the module, one below it, or its configuration."""
    places = [module, *module.children(), getattr(module, "config", None)]
    return next((n for place in places for name in names if isinstance(n := getattr(place, name, None), int)), 0)
