"""Which operators of the autograd graph have kinks or jumps, by the names of their backward nodes.

Kinks decide how a path integral is refined: smooth integrands gain from polynomials of high degree, kinked
ones from splitting the path. What counts is the operator, not whether the path really crosses its kink. ELU,
CELU and SELU are only once differentiable and count. Of custom functions only the name is known: those called
some ReLU count.
"""

import math
import re
from typing import Any

from torch.autograd.graph import Node

_KINKED = frozenset(
    {
        *("Relu", "LeakyRelu", "PreluKernel", "RreluWithNoise", "RreluWithNoiseFunctional", "Threshold"),
        *("Hardtanh", "Hardsigmoid", "Hardswish", "Hardshrink", "Softshrink", "Elu", "Celu"),
        *("Clamp", "ClampMin", "ClampMax", "Abs", "Copysign", "Renorm"),
        *("Max", "Min", "Maximum", "Minimum", "Amax", "Amin", "Aminmax", "Fmax", "Fmin", "Cummax", "Cummin"),
        *("ForeachMaximum", "ForeachMinimum", "Sort", "Topk", "Kthvalue", "Median", "Nanmedian", "Mode"),
        *("L1Loss", "SmoothL1Loss", "HuberLoss", "MultiMarginLoss", "MultilabelMarginLoss"),
        *("Sign", "Sgn", "Round", "Floor", "Ceil", "Trunc", "Frac", "Fmod", "Remainder"),
    }
)
_FAMILIES = re.compile(r"\w*MaxPool\w*|FakeQuantize\w*|FusedMovingAvgObsFq\w*|(?i:\w*relu\w*)")
_OPAQUE = re.compile(r"CompiledFunction\w*|CheckpointFunction\w*|\w*DifferentiableGraph\w*")
_NORMS = frozenset({"LinalgVectorNorm", "Norm", "Dist", "Cdist", "Pdist", "ForeachNorm"})
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
    return name == "Div" and _saved(node, "rounding_mode") is not None


def _saved(node: Node, key: str) -> Any:
    return getattr(node, f"_saved_{key}", None)
