"""Losses as targets: one for each row, from functions that would reduce over the batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from conductance._outputs import rowless
from conductance._values import text_of

#: Labels of this value are left out, as torch does.
IGNORED = -100


def label_loss(given: Callable[..., Tensor] | None) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of output and labels that gives one loss for each row.

    Raises
    ------
    TypeError, ValueError
        If it is not callable, or a module that reduces over the batch.
    """
    if given is None:
        return _cross_entropy
    if not callable(given) or isinstance(given, type):
        made = " a class: make an instance, with reduction='none'" if isinstance(given, type) else f" {given!r}"
        raise TypeError(f"targets.loss: loss_function is{made}; expected a function of output and labels, or None")
    if getattr(given, "reduction", "none") != "none":
        raise ValueError(
            f"targets.loss: loss_function is {text_of(given)} with reduction={given.reduction!r}, one value for the "  # type: ignore[attr-defined]
            "batch; one value per example is explained: make it with reduction='none'"
        )
    return partial(_each, function=partial(given, reduction="none") if _reduces(given) else given)


def _reduces(function: Callable[..., Any]) -> bool:
    try:
        return "reduction" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return False


def _each(output: Tensor, labels: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A loss for each row, averaged over the further axes."""
    found, rows = function(output, labels), len(output)
    if not isinstance(found, Tensor):
        raise TypeError(
            f"targets.loss: the loss function returned a {type(found).__name__}; expected a tensor ({rows},)"
        )
    further = found.shape[1:]
    if found.shape[:1] != (rows,) or further not in ((), (1,), output.shape[1:], labels.shape[1:]):
        reason = "it reduces over the batch" if found.dim() == 0 else "one value per example is explained"
        raise ValueError(
            f"targets.loss: the loss function returned shape {tuple(found.shape)} for an output {tuple(output.shape)} "
            f"and labels {tuple(labels.shape)}; expected ({rows},), or axes of the output or the labels: {reason} "
            "(reduction='none'; labels of the output's shape, such as labels[:, None], where it compares entries)"
        )
    return found.flatten(1).mean(1) if further else found


def _cross_entropy(output: Tensor, labels: Tensor) -> Tensor:
    if labels.is_floating_point():
        raise TypeError(
            f"targets.loss: labels hold {labels.dtype} numbers, and the cross-entropy takes integers, classes; name "
            "the loss function, such as F.mse_loss"
        )
    if output.dim() < 2 or output.shape[1] < 2 or labels.shape != (len(output), *output.shape[2:]):
        raise ValueError(
            f"targets.loss: the cross-entropy takes an output (batch, classes, …) of several classes and labels "
            f"(batch, …), got {rowless(output)} and {rowless(labels)}; name another loss function (one logit: "
            "F.binary_cross_entropy_with_logits; tokens: targets.token)"
        )
    counted = labels != IGNORED
    bad = labels[counted & ((labels < 0) | (labels >= output.shape[1]))]
    if len(bad):
        raise ValueError(
            f"targets.loss: label {int(bad[0])} is out of range for an output of shape {rowless(output)}; expected "
            f"0 … {output.shape[1] - 1}, or {IGNORED} to leave one out"
        )
    if not bool(counted.reshape(len(output), -1).any(1).all()):
        raise ValueError(f"targets.loss: every label of an example is {IGNORED}; it has no loss")
    found = F.cross_entropy(output, labels, reduction="none", ignore_index=IGNORED).reshape(len(output), -1)
    return found.sum(1) / counted.reshape(len(output), -1).sum(1)
