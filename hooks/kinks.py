"""Which operators of the autograd graph have kinks or jumps, by the names of their backward nodes.

Kinks decide how a path integral is refined: smooth integrands gain from polynomials of high degree, kinked
ones from splitting the path. What counts is the operator, not whether the path really crosses its kink; but a
clamp at a tiny bound that nothing reaches guards a division (``F.normalize``), and does not count. ELU, CELU and SELU
are only once differentiable and count. Of custom functions only the name is known: those called
some ReLU count.
"""

import math
import re
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

_KINKED = frozenset(
    {
        *("Relu", "LeakyRelu", "PreluKernel", "RreluWithNoise", "RreluWithNoiseFunctional", "Threshold"),
        *("Hardtanh", "Hardsigmoid", "Hardswish", "Hardshrink", "Softshrink", "Elu", "Celu"),
        *("ClampMax", "Abs", "Copysign", "Renorm"),
        *("Max", "Min", "Maximum", "Minimum", "Amax", "Amin", "Aminmax", "Fmax", "Fmin", "Cummax", "Cummin"),
        *("ForeachMaximum", "ForeachMinimum", "Sort", "Topk", "Kthvalue", "Median", "Nanmedian", "Mode"),
        *("L1Loss", "SmoothL1Loss", "HuberLoss", "MultiMarginLoss", "MultilabelMarginLoss"),
        *("Sign", "Sgn", "Round", "Floor", "Ceil", "Trunc", "Frac", "Fmod", "Remainder"),
    }
)
_FAMILIES = re.compile(r"\w*MaxPool\w*|FakeQuantize\w*|FusedMovingAvgObsFq\w*|(?i:\w*relu\w*)")
_OPAQUE = re.compile(r"CompiledFunction\w*|CheckpointFunction\w*|\w*DifferentiableGraph\w*")
_NORMS = frozenset({"LinalgVectorNorm", "Norm", "Dist", "Cdist", "Pdist", "ForeachNorm"})
#: Lower bounds above zero and up to this keep a number from zero, and are no activation.
_TINY = 1e-3
_BACKWARD = re.compile(r"Backward\w*$")


def kinked_name(node: Node) -> str | None:
    """Name the operator of a backward node if it has kinks or jumps, such as ``"Relu"``, else None.

    Nodes that hide their operators (compiled, traced or re-entrantly checkpointed code) are taken to have
    some.

    Examples
    --------
    >>> import torch
    >>> x = torch.ones(3, requires_grad=True)
    >>> kinked_name(x.relu().grad_fn), kinked_name(x.tanh().grad_fn)
    ('Relu', None)
    """
    name = _BACKWARD.sub("", node.name().rpartition("::")[2])
    if name in _KINKED or _FAMILIES.fullmatch(name) or _OPAQUE.fullmatch(name):
        return name
    return name if _kinked_as_called(name, node) else None


def _kinked_as_called(name: str, node: Node) -> bool:
    """Operators with kinks for some values of their arguments only."""
    if name in _NORMS:
        order = next((value for key in ("ord", "p") if (value := _saved(node, key)) is not None), 2.0)
        return float(order) == 1.0 or math.isinf(float(order))
    if name in ("ScatterReduce", "IndexReduce", "SegmentReduce"):
        return _saved(node, "reduce") in ("amax", "amin", "max", "min")
    if name == "EmbeddingBag":
        return bool(_saved(node, "mode") == 2)
    if name in ("Clamp", "ClampMin"):
        return not _guards(node)
    return name == "Div" and _saved(node, "rounding_mode") is not None


def _guards(node: Node) -> bool:
    """Whether a clamp keeps numbers from zero that are well above it."""
    least, given = _saved(node, "min"), _saved(node, "self")
    if _saved(node, "max") is not None or not isinstance(least, (int, float)) or not isinstance(given, Tensor):
        return False
    return 0 < least <= _TINY and bool((given.detach() > 10 * least).all())


def _saved(node: Node, key: str) -> Any:
    return getattr(node, f"_saved_{key}", None)
