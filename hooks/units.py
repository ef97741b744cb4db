"""The unit axis of a tensor: which axis counts channels or features.

By the class of the module that made it where that has a rule, else inherited from the operator in the
autograd graph that last mixed the units: the tensor of an activation function, a pooling or a sum is laid out
like that of the convolution or linear map before it. Operators that move axes (permute, transpose, view) are
followed.
"""

import math
import re
from collections.abc import Sequence

from torch import nn
from torch.autograd.graph import Node

from conductance.hooks.structure import Edge

_CHANNELS_SECOND: tuple[type[nn.Module], ...] = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
)
_FEATURES_LAST: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Bilinear,
    nn.LayerNorm,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.RNNCellBase,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)
_SECOND_MAKERS = re.compile(
    r"\w*Convolution(Transpose|Overrideable)?|\w*Conv(Transpose|Dilated|Depthwise)?[23]D"
    r"|\w*BatchNorm(Legit|LegitNoTraining|WithUpdate|NoUpdate)?|NativeGroupNorm"
)
_LAST_MAKERS = re.compile(
    r"(Sparse)?Addmm|Mm|(Mkldnn)?Linear|Bmm|Baddbmm|Matmul|NativeLayerNorm|FusedRmsNorm|Embedding(Bag)?"
    r"|ConvTbc"
)
_RESHAPES = re.compile(r"(Unsafe)?View|ReshapeAlias|Squeeze|Unsqueeze|MkldnnReshape")


def module_unit_axis(module: nn.Module, ndim: int) -> int | None:
    """Give the unit axis of the tensors of a module by its class; None for a class without a rule.

    Examples
    --------
    >>> module_unit_axis(nn.Conv2d(3, 4, 1), ndim=4), module_unit_axis(nn.Linear(3, 4), ndim=3)
    (1, 2)
    """
    if isinstance(module, _CHANNELS_SECOND):
        return min(1, ndim - 1)
    return ndim - 1 if isinstance(module, _FEATURES_LAST) else None


def producer_unit_axis(edge: Edge | None, ndim: int) -> int:
    """Find the unit axis of a tensor, inherited from its producer in the graph, else by its number of axes.

    Parameters
    ----------
    edge
        Where the tensor's gradient arrives, see `edge_of`; None for a tensor without one.
    ndim
        The tensor's number of axes.

    Returns
    -------
    int
        The axis, not negative. Without a producer: 1 for two axes and for four or more, the last for three.

    Examples
    --------
    >>> import torch
    >>> from conductance.hooks.structure import edge_of
    >>> y = nn.Linear(3, 4)(torch.ones(2, 5, 6, 3)).tanh()
    >>> producer_unit_axis(edge_of(y), y.ndim)
    3
    """
    axis = None if edge is None else inherited_unit_axis(edge)
    if axis is not None and axis < ndim:
        return axis
    return ndim - 1 if ndim in (1, 3) else min(1, max(ndim - 1, 0))


def beside(batch: int, ndim: int) -> int:
    """Give the unit axis by the number of axes where nothing else tells it, the examples on an axis of their own.

    The one after the examples for four axes or more, the last other one for fewer.

    Examples
    --------
    >>> beside(1, 5), beside(1, 3), beside(1, 2), beside(0, 2)
    (2, 2, 0, 1)
    """
    others = [axis for axis in range(ndim) if axis != batch]
    if not others:
        return 0
    return batch + 1 if ndim >= 4 and batch + 1 < ndim else others[-1]


def inherited_unit_axis(edge: Edge) -> int | None:
    """Walk back to the operator that made the units, first inputs first, and carry its axis forward again."""
    after: dict[Edge, Edge | None] = {edge: None}
    stack = [edge]
    while stack:
        here = stack.pop()
        axis = _made_axis(here[0].name().partition("Backward")[0], len(_shape(here)))
        if axis is not None:
            return _carried_along(axis, here, after)
        for source in reversed(_sources(here)):
            if source not in after:
                after[source] = here
                stack.append(source)
    return None


def _carried_along(axis: int | None, edge: Edge, after: dict[Edge, Edge | None]) -> int | None:
    while axis is not None and (following := after[edge]) is not None:
        axis = _carried(axis, following[0], _shape(edge), _shape(following))
        edge = following
    return axis


def _made_axis(name: str, ndim: int) -> int | None:
    if _SECOND_MAKERS.fullmatch(name):
        return min(1, ndim - 1)
    return ndim - 1 if _LAST_MAKERS.fullmatch(name) else None


def _sources(edge: Edge) -> list[Edge]:
    """List the inputs whose axes the output takes over: those that have as many; any for a reshape."""
    node, ndim = edge[0], len(_shape(edge))
    reshapes = _RESHAPES.match(node.name())
    made = [(below, number) for below, number in node.next_functions if below is not None]
    return [source for source in made if _shape(source) and (reshapes or len(_shape(source)) == ndim)]


def _carried(axis: int, node: Node, before: Sequence[int], after: Sequence[int]) -> int | None:
    """Say where a node puts an axis of its input."""
    name = node.name().partition("Backward")[0]
    if name == "Permute":
        dims = [_signed(dim) % len(before) for dim in node._saved_dims]  # type: ignore[attr-defined]
        return dims.index(axis)
    if name in ("Transpose", "T"):
        first, second = (0, 1) if name == "T" else _swapped(node, len(before))
        return {first: second, second: first}.get(axis, axis)
    if _RESHAPES.fullmatch(name):
        kept = (place for place in (axis, *range(1, len(after))) if _same_place(axis, before, place, after))
        return next(kept, None)
    return axis


def _same_place(axis: int, before: Sequence[int], place: int, after: Sequence[int]) -> bool:
    if place >= len(after) or after[place] != before[axis]:
        return False
    return math.prod(after[:place]) == math.prod(before[:axis])


def _swapped(node: Node, ndim: int) -> tuple[int, int]:
    first, second = node._saved_dim0, node._saved_dim1  # type: ignore[attr-defined]
    return _signed(first) % ndim, _signed(second) % ndim


def _signed(number: int) -> int:
    """Autograd shows saved negative axes as unsigned 64-bit numbers."""
    return number - 2**64 if number >= 2**63 else number


def _shape(edge: Edge) -> tuple[int, ...]:
    """Give the shape of the tensor at an edge, as autograd has noted it; empty where it has not."""
    metadata = getattr(edge[0], "_input_metadata", ())
    return tuple(metadata[edge[1]].shape) if edge[1] < len(metadata) else ()
