"""What ready-made targets share: arguments read, names given, classes and their probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from conductance._outputs import Key, rowless
from conductance._places import Examples, Places, places
from conductance._values import text_of
from conductance.targeting import OutputTarget

Index: TypeAlias = Any  # an int, or a list, array or tensor of one for each example
Activation: TypeAlias = Literal["softmax", "sigmoid"]
Quantity: TypeAlias = Literal["logit", "log_probability", "probability"]

ANYWHERE = "an int, a tuple of ints (an output of several axes), or a list or tensor of one of these an example"
ONE_AXIS = "an int, or a list or tensor of one int an example"


def place_of(function: str, argument: str, given: Any, axes: int | None = None) -> Places:
    """Read an index or position, an argument of one of the functions."""
    expected = ANYWHERE if axes is None else ONE_AXIS
    return places(f"targets.{function}: {argument}", given, expected=expected, axes=axes)


def named(name: str, function: Callable[..., Tensor], *arguments: Any, key: Key, **options: Any) -> OutputTarget:
    """A target, with the call that makes it as its text; options that are None are left out of it."""
    if key is not None and (isinstance(key, bool) or not isinstance(key, (str, int))):
        raise TypeError(f"targets.{name}: key is {key!r}; expected the name of a tensor in the output, or its place")
    shown = [text_of(one) for one in arguments]
    shown += [f"{option}={value!r}" for option, value in (*options.items(), ("key", key)) if value is not None]
    return OutputTarget(f"targets.{name}({', '.join(shown)})", function, key)


def check_classes(name: str, output: Tensor, least: int = 2) -> None:
    """Raise ``ValueError`` unless the output is ``(batch, classes)``."""
    if output.dim() != 2:
        raise ValueError(
            f"targets.{name} takes an output of shape (batch, classes), got {rowless(output)}; for tokens there is "
            "targets.token(position, token_id, quantity=…), for pixels targets.class_pixels"
        )
    if output.shape[1] < least:
        raise ValueError(
            f"targets.{name} compares classes, but the output has shape {rowless(output)}; a single logit is explained "
            'by targets.logit(0) or targets.probability(0, activation="sigmoid")'
        )


def wide(tensor: Tensor) -> Tensor:
    """Half precision as float32: a softmax, a difference or a sum would lose what it has."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def score(output: Tensor, examples: Examples, index: Places, quantity: Quantity, activation: Activation) -> Tensor:
    """What each row of logits gives the class at its index."""
    check_classes(quantity, output, least=2 if activation == "softmax" else 1)
    if activation == "softmax":
        logs = F.log_softmax(wide(output), 1)
        picked = index.pick(logs, examples)
        return picked.exp() if quantity == "probability" else picked
    picked = wide(index.pick(output, examples))
    return picked.sigmoid() if quantity == "probability" else F.logsigmoid(picked)
