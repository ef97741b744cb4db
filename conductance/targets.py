"""Ready-made targets: what of a model's output is explained, to be given as ``target=``.

Each function here returns a target, one number for each row of an output, for rows of any examples in any order.
Where an argument may differ between examples it takes one value for all, or a list or tensor of one for each example
of the inputs. What is looked at is the output itself if that is a tensor, else its ``logits``, or the tensor that
``key`` names: an entry of a dict, an attribute, or a place in a tuple.

A target can be called on an output, with the example number of each row unless these are all examples in order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from conductance._losses import label_loss
from conductance._outputs import Key, rowless
from conductance._places import Examples, Places
from conductance._region_targets import class_pixels, output_sum
from conductance._target_parts import Activation, Index, Quantity, check_classes, named, place_of, score, wide
from conductance._token_targets import token, tokens
from conductance._values import numbers
from conductance.errors import check_choice
from conductance.targeting import OutputTarget

__all__ = [
    "OutputTarget",
    "class_pixels",
    "cosine_similarity",
    "log_probability",
    "logit",
    "logit_difference",
    "loss",
    "margin",
    "output_sum",
    "probability",
    "token",
    "tokens",
]


def logit(index: Index, *, key: Key = None) -> OutputTarget:
    """One entry of the output, as ``target=index`` does, of any tensor in the output.

    Parameters
    ----------
    index
        Class or column: an int, or one int for each example. In an output ``(batch, …)`` of several axes a tuple of
        ints, or a tensor ``(batch, axes)`` or list of one tuple for each example. Negative ones count from the end.
    key
        Which tensor of the output; None is the output itself, or its ``logits``.

    Raises
    ------
    TypeError, ValueError
        If ``index`` is none of these; when it is run, if it does not fit the output or the examples.

    Examples
    --------
    >>> output = torch.tensor([[1.0, 2.0, 4.0], [3.0, 9.0, 5.0]])
    >>> logit([2, 0])(output)
    tensor([4., 3.])
    >>> logit([2, 0])
    targets.logit([2, 0])
    """
    place = place_of("logit", "index", index)
    return named("logit", place.pick, place, key=key)


def logit_difference(a: Index, b: Index, *, key: Key = None) -> OutputTarget:
    """Logit ``a`` minus logit ``b``: why this class and not that one.

    Parameters
    ----------
    a, b
        As ``index`` of :func:`logit`, each of its own.
    key
        Which tensor of the output; None is the output itself, or its ``logits``.

    Examples
    --------
    >>> logit_difference(2, [0, 1])(torch.tensor([[1.0, 2.0, 4.0], [3.0, 9.0, 5.0]]))
    tensor([ 3., -4.])
    """
    first, second = (place_of("logit_difference", name, given) for name, given in (("a", a), ("b", b)))
    return named("logit_difference", partial(_difference, a=first, b=second), first, second, key=key)


def _difference(output: Tensor, examples: Examples, a: Places, b: Places) -> Tensor:
    return wide(a.pick(output, examples)) - wide(b.pick(output, examples))


def margin(index: Index, *, key: Key = None) -> OutputTarget:
    """Logit of a class minus the largest logit of the others: positive where the class is predicted.

    It has a kink wherever another class becomes the strongest rival.

    Parameters
    ----------
    index
        The class, of an output ``(batch, classes)``: an int, or one int for each example.
    key
        Which tensor of the output; None is the output itself, or its ``logits``.

    Examples
    --------
    >>> margin([2, 0])(torch.tensor([[1.0, 2.0, 4.0], [3.0, 9.0, 5.0]]))
    tensor([ 2., -6.])
    """
    place = place_of("margin", "index", index, axes=1)
    return named("margin", partial(_margin, index=place), place, key=key)


def _margin(output: Tensor, examples: Examples, index: Places) -> Tensor:
    check_classes("margin", output)
    output = wide(output)
    own = index.of_rows(examples, output.shape[1:], output)
    return output.gather(1, own)[:, 0] - output.scatter(1, own, -torch.inf).amax(1)


def probability(index: Index, *, activation: Activation = "softmax", key: Key = None) -> OutputTarget:
    """Probability of a class, from its logits.

    Where it is close to 0 or 1 it hardly changes any more; :func:`log_probability` and :func:`logit_difference` do.

    Parameters
    ----------
    index
        The class, of logits ``(batch, classes)``: an int, or one int for each example.
    activation
        "softmax" over the classes, or "sigmoid" of each logit, for labels that do not exclude each other and for a
        single logit ``(batch, 1)``.
    key
        Which tensor of the output; None is the output itself, or its ``logits``.

    Examples
    --------
    >>> output = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 9.0]])
    >>> probability(2)(output), probability(2, activation="sigmoid")(output)
    (tensor([0.3333, 0.5000]), tensor([0.5000, 0.9999]))
    """
    return _scored("probability", index, activation, key)


def log_probability(index: Index, *, activation: Activation = "softmax", key: Key = None) -> OutputTarget:
    """Logarithm of the probability of a class, from its logits; minus the cross-entropy.

    Parameters
    ----------
    index, activation, key
        As for :func:`probability`.

    Examples
    --------
    >>> log_probability([1, 0])(torch.tensor([[0.0, 0.0], [-90.0, 90.0]]))
    tensor([  -0.6931, -180.0000])
    """
    return _scored("log_probability", index, activation, key)


def _scored(name: Quantity, index: Index, activation: Activation, key: Key) -> OutputTarget:
    check_choice("activation", activation, ("softmax", "sigmoid"))
    place = place_of(name, "index", index, axes=1)
    function = partial(score, index=place, quantity=name, activation=activation)
    return named(name, function, place, key=key, activation=None if activation == "softmax" else activation)


def loss(loss_function: Callable[..., Tensor] | None, labels: Any, *, key: Key = None) -> OutputTarget:
    """The loss of each example: what has positive conductance raises the loss, and speaks against the label.

    Parameters
    ----------
    loss_function
        A function of output and labels: one of ``torch.nn.functional`` (run with ``reduction="none"``), a loss module
        made with ``reduction="none"``, or your own that returns ``(rows,)``. A loss for each entry of the output or of
        the labels is averaged over all axes but the first. None is the cross-entropy of logits ``(batch, classes, …)``
        with labels ``(batch, …)``, averaged over the labels that are not -100.
    labels
        What the output is compared with: a tensor, array or list with one entry for each example. A single int is the
        label of all; a single float is what every entry of the output is compared with.
    key
        Which tensor of the output; None is the output itself, or its ``logits``.

    Raises
    ------
    TypeError, ValueError
        If the function reduces over the batch, or the labels are NaN, boolean, or not numbers; when it is run, if
        there is not one label for each example, or the loss is not one value for each.

    Notes
    -----
    The labels stay the same along the path: with an autoencoder's input ``x`` as labels, what is explained is the
    distance from the output to ``x``, and no unit gets a share for a change of ``x``.

    Examples
    --------
    >>> loss(F.mse_loss, torch.tensor([[1.0, 1.0, 1.0]]))(torch.tensor([[1.0, 1.0, 4.0]]))
    tensor([3.])
    >>> loss(None, [1, 0])
    targets.loss(None, [1, 0])
    """
    function, given = label_loss(loss_function), numbers("targets.loss: labels", labels)
    return named("loss", partial(_loss, function=function, labels=given), loss_function, given, key=key)


def _loss(output: Tensor, examples: Examples, function: Callable[[Tensor, Tensor], Tensor], labels: Tensor) -> Tensor:
    if labels.dim():
        labels = examples.take(labels, "targets.loss: labels").to(output.device)
    else:
        labels = labels.to(output.device).expand(output.shape if labels.is_floating_point() else len(output))
    output = wide(output)
    return function(output, labels.to(output.dtype) if labels.is_floating_point() else labels.long())


def cosine_similarity(reference: Any, *, key: Key = None) -> OutputTarget:
    """Cosine of the angle between the output ``(batch, dims)``, such as an embedding, and a reference vector.

    Parameters
    ----------
    reference
        Finite numbers and not zero, ``(dims,)`` for all examples or ``(batch, dims)`` for one each.
    key
        Which tensor of the output, such as "pooler_output"; None is the output itself, or its ``logits``.

    Examples
    --------
    >>> cosine_similarity([1.0, 0.0])(torch.tensor([[3.0, 4.0], [-2.0, 0.0]]))
    tensor([ 0.6000, -1.0000])
    """
    name = "targets.cosine_similarity: reference"
    vector = numbers(name, reference)
    if vector.dim() not in (1, 2):
        raise ValueError(f"{name} has shape {tuple(vector.shape)}; expected (dims,) or (batch, dims)")
    if not bool(vector.ne(0).any(-1).all()):
        raise ValueError(f"{name} holds a vector of zeros, which has no direction")
    return named("cosine_similarity", partial(_cosine, reference=vector, name=name), vector, key=key)


def _cosine(output: Tensor, examples: Examples, reference: Tensor, name: str) -> Tensor:
    if output.dim() != 2 or reference.shape[-1] != output.shape[1]:
        raise ValueError(
            f"{name} has shape {tuple(reference.shape)} and the output {rowless(output)}; expected an output "
            f"(batch, {reference.shape[-1]}): pool tokens in the model, or choose another tensor by key="
        )
    each = examples.take(reference, name) if reference.dim() == 2 else reference.expand(len(output), -1)
    output = wide(output)
    return F.cosine_similarity(output, each.to(device=output.device, dtype=output.dtype), dim=1)
