"""Batches of a data loader: the inputs as a model takes them, and the labels beside them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from conductance._outputs import chosen
from conductance.arguments import Inputs
from conductance.hooks import undisturbed, usable_by_autograd
from conductance.targeting import Target

#: What the labels of a batch that is a dict may be called.
LABELS = ("labels", "label")


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples that a loader gives together.

    Attributes
    ----------
    inputs
        A tensor ``(examples, …)``, or a tuple or dict of inputs, as a model takes them.
    labels
        ``(examples, …)``, or None where the loader gives none.
    """

    inputs: Inputs
    labels: Tensor | None

    def __len__(self) -> int:
        """Number of examples."""
        values = self.inputs.values() if isinstance(self.inputs, Mapping) else self.inputs
        tensors = [self.inputs] if isinstance(self.inputs, Tensor) else [v for v in values if isinstance(v, Tensor)]
        return len(tensors[0]) if tensors and tensors[0].dim() else 0

    def target(self, target: Target | str, model: Callable[..., Any]) -> Target:
        """What is explained in this batch: ``"label"`` and ``"predicted"`` become one class for each example.

        Parameters
        ----------
        target
            ``"label"``, ``"predicted"`` (the largest of the output's second axis), or a target that means the same in
            every batch.
        model
            Asked for its prediction, without gradients.

        Raises
        ------
        ValueError
            If there are no labels, one is negative, or the text is another one.
        TypeError
            If one index for each example is given: batches differ.
        """
        if isinstance(target, str):
            if target == "predicted":
                return predicted(model, self.inputs)
            if target != "label":
                raise ValueError(f"target must be 'label', 'predicted', a class or a callable, got {target!r}")
            if self.labels is None:
                raise ValueError("target='label' needs labels: let the loader give pairs (inputs, labels)")
            if self.labels.is_floating_point():
                raise TypeError(
                    f"target='label' takes the labels for classes, but the loader gives {self.labels.dtype}: make them "
                    "integers, or name what is explained, such as target=0 (None where the output is one number a row)"
                )
            if bool((self.labels < 0).any()):
                raise ValueError(
                    f"target='label', but a label is {int(self.labels.min())}, which is no class (-1 and -100 mark "
                    "examples without one); leave these examples out"
                )
            return self.labels
        if isinstance(target, Tensor | list):
            raise TypeError("target holds one entry for each example, but the loader gives many batches: 'label' takes "
                            "the labels that the loader gives with the inputs")  # fmt: skip
        return target


def batches(loader: Iterable[Any], device: torch.device | None = None) -> Iterator[Batch]:
    """Batches of a loader, none of them empty.

    Parameters
    ----------
    loader
        A ``DataLoader`` or any other iterable. A batch is the inputs, or a pair of inputs and labels, where the labels
        are a tensor with one entry (an integer, or more) for each example; a dict holds keyword inputs, its labels
        under ``"labels"`` or ``"label"``. Several positional inputs are a tuple: ``((ids, mask), labels)``.
    device
        Where the tensors go; None leaves them.

    Yields
    ------
    Batch
        Inputs and labels.

    Raises
    ------
    TypeError
        If the loader is no iterable, or a batch none of these.
    ValueError
        If there is no batch, a batch has no examples, or has more or fewer labels.

    Examples
    --------
    >>> for batch in batches([(torch.ones(3, 2), torch.tensor([1, 0, 1]))]):
    ...     print(len(batch), batch.labels.tolist())
    3 [1, 0, 1]
    """
    if isinstance(loader, Tensor | Mapping | str) or not isinstance(loader, Iterable):
        kind = type(loader).__name__
        raise TypeError(f"loader must give batches, as a DataLoader does, or a list of them, got {kind}")
    number = -1
    for number, given in enumerate(loader):
        batch = _batch(given, number)
        if not len(batch):
            raise ValueError(f"loader: batch {number} has no examples")
        if batch.labels is not None and (batch.labels.dim() == 0 or len(batch.labels) != len(batch)):
            shape = tuple(batch.labels.shape)
            raise ValueError(f"loader: batch {number} has {len(batch)} examples and labels {shape}")
        yield batch if device is None else Batch(_moved(batch.inputs, device), _moved(batch.labels, device))
    if number < 0:
        raise ValueError("loader gives no batches; an iterator can be read only once: give a DataLoader or a list")


def repeatable(loader: Iterable[Any]) -> Iterable[Any]:
    """Refuse an iterator, whose second reading would be empty.

    Raises
    ------
    TypeError
        If the loader can be read only once.

    Examples
    --------
    >>> repeatable([1, 2])
    [1, 2]
    """
    if isinstance(loader, Iterator):
        raise TypeError(
            "loader is read several times, but an iterator only once: give a DataLoader or a list of batches"
        )
    return loader


class SameBatches:
    """A loader that is read several times and must give the same batches each time, for what is compared by example.

    Examples
    --------
    >>> batches = SameBatches([torch.ones(2, 3)])
    >>> [len(batch) for batch in batches], [len(batch) for batch in batches]
    ([2], [2])
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self._loader = loader
        self._digests: list[list[int]] = []
        self._known = False

    def __length_hint__(self) -> int:
        return length_hint(self._loader)

    def __iter__(self) -> Iterator[Any]:
        """Give the batches; ValueError for one that is not what it was in the first reading."""
        for number, batch in enumerate(self._loader):
            digest = [_digest(each) for each in tree_leaves(batch) if isinstance(each, Tensor)]
            if not self._known:
                self._digests.append(digest)
            elif self._digests[number : number + 1] != [digest]:
                raise ValueError(
                    f"loader: batch {number} is not what it was when the loader was read first: it shuffles, or "
                    "changes examples at random; give a DataLoader with shuffle=False, or a list of batches"
                )
            yield batch
        self._known = True


def _digest(tensor: Tensor) -> int:
    """A number that tells the bytes of a tensor."""
    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return zlib.crc32(raw.numpy().tobytes())


def predicted(model: Callable[..., Any], inputs: Inputs) -> Tensor:
    """The class that a model gives each example, ``(examples,)``: the largest of the output's second axis.

    Raises
    ------
    ValueError
        If the output, or its logits, is not ``(examples, classes)``.

    Examples
    --------
    >>> predicted(lambda x: x, torch.tensor([[0.0, 2.0], [3.0, 1.0]]))
    tensor([1, 0])
    """
    with undisturbed(model, {}, frozen=False):
        output = chosen(called(model, usable_by_autograd(inputs)))
    if output.dim() != 2 or output.shape[1] == 1:
        shape = tuple(output.shape)
        way = "; with one number a row there is no class to choose: take a threshold of your own" * (output.dim() < 3)
        raise ValueError(f"'predicted' needs an output (examples, classes), the model gives {shape}{way}")
    return output.argmax(1)


def called(model: Callable[..., Any], inputs: Inputs) -> Any:
    """The model's output, without gradients."""
    with torch.no_grad():
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(inputs) if isinstance(inputs, Tensor) else model(*inputs)


def device_of(model: Callable[..., Any]) -> torch.device | None:
    """Where the first parameter or buffer of a module is; None where there is none."""
    tensors = chain(model.parameters(), model.buffers()) if isinstance(model, nn.Module) else iter(())
    first = next(tensors, None)
    return None if first is None or first.device.type == "meta" else first.device


def _batch(given: Any, number: int) -> Batch:
    if isinstance(given, Tensor):
        return Batch(given, None)
    if isinstance(given, Mapping):
        name = next((name for name in LABELS if name in given), None)
        return Batch({key: value for key, value in given.items() if key != name}, given[name] if name else None)
    if isinstance(given, tuple | list) and len(given) in (1, 2):
        inputs = tuple(given[0]) if isinstance(given[0], list) else given[0]
        labels = given[1] if len(given) == 2 else None
        if isinstance(inputs, Tensor | tuple | Mapping) and (labels is None or isinstance(labels, Tensor)):
            return Batch(inputs, labels)
    told = f"{type(given).__name__} of {len(given)}" if isinstance(given, tuple | list) else type(given).__name__
    raise TypeError(
        f"loader: batch {number} is a {told}; expected the inputs (a tensor or a dict), or a pair (inputs, labels) "
        "with labels as a tensor; put several positional inputs in a tuple: ((ids, mask), labels)"
    )


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {key: _moved(each, device) for key, each in value.items()}
    if isinstance(value, tuple):
        return tuple(_moved(each, device) for each in value)
    return value.to(device) if isinstance(value, Tensor) else value
