"""How well a classifier does on labelled data, and a short training of one, masks in force."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from conductance._outputs import chosen
from conductance.hooks import usable_by_autograd
from conductance.loaders import Batch, batches, called, device_of

#: Step size of Adam.
LEARNING_RATE = 1e-3


class Score(NamedTuple):
    """Share of the examples that are classified right, and the mean cross entropy."""

    accuracy: float
    loss: float


def score(model: nn.Module, test: Iterable[Any]) -> Score:
    """Evaluate a classifier.

    Raises
    ------
    ValueError
        If there are no labels, or the output is not ``(examples, classes)``.

    Examples
    --------
    >>> found = score(nn.Identity(), [(torch.zeros(2, 4), torch.tensor([0, 1]))])
    >>> found.accuracy, round(found.loss, 4)
    (0.5, 1.3863)
    """
    right = count = 0
    loss = 0.0
    for batch in batches(test, device_of(model)):
        logits = chosen(called(model, batch.inputs))
        labels = class_labels(batch, logits, "test")
        right += int((logits.argmax(1) == labels).sum())
        loss += float(nn.functional.cross_entropy(logits.double(), labels, reduction="sum"))
        count += len(labels)
    return Score(right / count, loss / count)


def trained(model: nn.Module, train: Iterable[Any], epochs: int) -> None:
    """Train a classifier by Adam on the cross entropy; a list of batches comes in a random order.

    Raises
    ------
    ValueError
        If there are no labels, no parameter takes a gradient, or the output is not ``(examples, classes)``.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("fine_tune: no parameter of the model takes a gradient; call model.requires_grad_(True)")
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    for _ in range(epochs):
        for batch in batches(_shuffled(train), device_of(model)):
            inputs = usable_by_autograd(batch.inputs)
            with torch.enable_grad():
                output = model(**inputs) if isinstance(inputs, Mapping) else model(*_positional(inputs))
                logits = chosen(output)
                loss = nn.functional.cross_entropy(logits, class_labels(batch, logits, "train"))
                optimizer.zero_grad()
                torch.autograd.backward(loss)
            optimizer.step()


def class_labels(batch: Batch, logits: Tensor, name: str) -> Tensor:
    """The class of each example, checked against the output."""
    labels = batch.labels
    if labels is None:
        raise ValueError(f"{name} needs labels: let the loader give pairs (inputs, labels)")
    if logits.dim() != 2 or labels.dim() != 1 or labels.is_floating_point():
        raise ValueError(
            f"{name}: accuracy and cross entropy need an output (examples, classes) and one class for each example, "
            f"got {tuple(logits.shape)} and labels {tuple(labels.shape)} of {labels.dtype}"
        )
    lowest, highest, classes = int(labels.min()), int(labels.max()), logits.shape[1]
    if classes == 1:
        raise ValueError(
            f"{name}: accuracy and cross entropy need a logit for each class, got one: give a model whose output is "
            "torch.cat([torch.zeros_like(logit), logit], 1)"
        )
    if lowest < 0 or highest >= classes:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"{name}: label {wrong} is none of the {classes} classes of the output, 0 … {classes - 1}")
    return labels.long()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's random numbers from a seed, put back as they were afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _shuffled(train: Iterable[Any]) -> Iterable[Any]:
    if isinstance(train, Sequence):
        return [train[place] for place in torch.randperm(len(train)).tolist()]
    return train


def _positional(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)
