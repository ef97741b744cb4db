"""Targets that sum the output over a region: a class's pixels, or what a mask selects or weighs."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from conductance._outputs import Key, rowless
from conductance._places import Examples, Places
from conductance._target_parts import Index, named, place_of, wide
from conductance._values import weights
from conductance.targeting import OutputTarget


def class_pixels(index: Index, mask: Any = None, *, key: Key = None) -> OutputTarget:
    """Sum of a class's logits over the pixels of a segmentation ``(batch, classes, *pixels)``.

    Parameters
    ----------
    index
        The class: an int, or one for each example.
    mask
        Which pixels count, or with what weight: ``pixels`` for all examples, or ``(batch, *pixels)`` for one each, of
        booleans or numbers; None is all. The pixels where the class is predicted: ``model(x).argmax(1) == index``.
    key
        Which tensor of the output; None is the output itself, or its ``logits``.

    Examples
    --------
    >>> output = torch.arange(8.0).reshape(1, 2, 2, 2)
    >>> class_pixels(1)(output), class_pixels(1, torch.eye(2))(output)
    (tensor([22.]), tensor([11.]))
    """
    place, each = place_of("class_pixels", "index", index, axes=1), weights("targets.class_pixels: mask", mask)
    function = partial(_class_pixels, index=place, mask=each)
    given = () if each is None else (each,)
    return named("class_pixels", function, place, *given, key=key)


def _class_pixels(output: Tensor, examples: Examples, index: Places, mask: Tensor | None) -> Tensor:
    if output.dim() < 3:
        raise ValueError(
            f"targets.class_pixels takes an output of shape (batch, classes, *pixels), got {rowless(output)}; for "
            "(batch, classes) there is targets.logit"
        )
    which = index.of_rows(examples, output.shape[1:2], output)[:, 0]
    picked = output[torch.arange(len(output), device=output.device), which]
    return _masked_sum("targets.class_pixels: mask", picked, examples, mask)


def output_sum(mask: Any = None, *, key: Key = None) -> OutputTarget:
    """Sum of the output over all axes but the batch, or over what a mask selects or weighs.

    Parameters
    ----------
    mask
        Of the output's shape without the batch, for all examples, or with it, for one each: booleans, or numbers as
        weights (any linear function of the output); None is all.
    key
        Which tensor of the output; None is the output itself, or its ``logits``.

    Examples
    --------
    >>> output_sum([0.5, 0.0, -1.0])(torch.tensor([[1.0, 2.0, 4.0], [3.0, 9.0, 5.0]]))
    tensor([-3.5000, -3.5000])
    """
    each = weights("targets.output_sum: mask", mask)
    return named("output_sum", partial(_output_sum, mask=each), *(() if each is None else (each,)), key=key)


def _output_sum(output: Tensor, examples: Examples, mask: Tensor | None) -> Tensor:
    return _masked_sum("targets.output_sum: mask", output, examples, mask)


def _masked_sum(name: str, output: Tensor, examples: Examples, mask: Tensor | None) -> Tensor:
    output = wide(output)
    if mask is not None:
        axes = output.dim() - 1
        if mask.dim() not in (axes, axes + 1) or mask.shape[mask.dim() - axes :] != output.shape[1:]:
            raise ValueError(
                f"{name} has shape {tuple(mask.shape)}; expected {tuple(output.shape[1:])}, or one for each example: "
                f"{rowless(output)}"
            )
        each = (examples.take(mask, name) if mask.dim() > axes else mask).to(output.device)
        output = output.masked_fill(each == 0, 0.0) * each.to(output.dtype)
    return output.flatten(1).sum(1) if output.dim() > 1 else output
