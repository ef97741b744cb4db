"""What a model is called with: inputs and additional arguments, repeated for rows of any examples."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from copy import copy
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

Inputs: TypeAlias = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
Key: TypeAlias = int | str


class Arguments:
    """Arguments of a model by position or name, and which of them may move along a path.

    Parameters
    ----------
    inputs
        A tensor, a tuple of positional inputs or a mapping of keyword inputs; axis 0 is the batch.
    extra
        Further arguments, that never move: a value, a tuple of positional ones or a mapping of keyword ones.
    fixed
        Names or positions of arguments that are handed on as they are: they neither move nor are repeated.

    Attributes
    ----------
    entries
        Every argument by position or name.
    candidates
        Keys of the inputs that may move: not fixed, not additional.
    single
        Whether the inputs are one tensor.

    Raises
    ------
    TypeError, ValueError
        For arguments that cannot be used; the message names them.

    Examples
    --------
    >>> Arguments(torch.ones(2, 3), torch.eye(2), fixed=(1,)).candidates
    [0]
    """

    def __init__(self, inputs: Inputs, extra: Any = None, fixed: Any = ()) -> None:
        positional, named = _split(inputs)
        additional = extra if isinstance(extra, (tuple, Mapping)) else () if extra is None else (extra,)
        self._positional = len(positional)
        self.entries: dict[Key, Any] = dict(enumerate(positional))
        self.entries.update(named)
        self.candidates = list(self.entries)
        self.single = isinstance(inputs, Tensor)
        if isinstance(additional, Mapping):
            self._add_named(additional)
        else:
            self.entries.update(enumerate(additional, self._positional))
            self._positional += len(additional)
        self.fixed = self._checked(fixed)
        self.candidates = [key for key in self.candidates if key not in self.fixed]

    def call(self, examples: Tensor, batch: int, given: Mapping[Key, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of a call for rows of examples, ``(rows,)``; ``given`` are those that are there already."""
        entries = {
            key: given[key] if key in given else value if key in self.fixed else repeated(value, examples, batch)
            for key, value in self.entries.items()
        }
        args = tuple(entries[place] for place in range(self._positional))
        return args, {name: value for name, value in entries.items() if isinstance(name, str)}

    def integers(self) -> list[Key]:
        """Keys of inputs that hold integers, such as token ids."""
        kinds = {key: self.entries[key] for key in self.candidates if isinstance(self.entries[key], Tensor)}
        return [key for key, one in kinds.items() if one.dim() > 0 and is_integer(one)]

    def _add_named(self, additional: Mapping[str, Any]) -> None:
        wrong = [name for name in additional if not isinstance(name, str)]
        if wrong:
            raise TypeError(f"additional_forward_args has the keys {wrong}; expected names of the model's arguments")
        twice = [name for name in additional if name in self.entries]
        if twice:
            raise ValueError(f"additional_forward_args names {twice}, which inputs holds already")
        self.entries.update(additional)

    def _checked(self, fixed: Any) -> frozenset[Key]:
        keys = [fixed] if isinstance(fixed, (int, str)) else fixed
        if not isinstance(keys, (Sequence, set, frozenset)) or any(
            isinstance(key, bool) or not isinstance(key, (int, str)) for key in keys
        ):
            raise TypeError(f"fixed is {fixed!r}; expected names or positions of arguments, such as ('mask', 1)")
        unknown = [key for key in keys if key not in self.entries]
        if unknown:
            raise ValueError(f"fixed names {unknown}, but the model's arguments are {list(self.entries)}")
        return frozenset(keys)


def repeated(value: Any, examples: Tensor, batch: int) -> Any:
    """Rows of a value whose first axis is the batch, within structures too; any other as it is."""
    if isinstance(value, Tensor):
        if value.dim() > 0 and value.shape[0] == batch:
            return value.index_select(0, examples.to(value.device))
        return value
    if isinstance(value, PackedSequence):
        return value
    if isinstance(value, (tuple, list)):
        items = [repeated(one, examples, batch) for one in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, MutableMapping):
        copied = copy(value)
        copied.update({key: repeated(one, examples, batch) for key, one in value.items()})
        return copied
    if is_dataclass(value) and not isinstance(value, type):
        changed: Any = copy(value)
        fresh = {field.name: repeated(getattr(value, field.name), examples, batch) for field in fields(value)}
        for name, one in fresh.items():
            object.__setattr__(changed, name, one)
        return changed
    return value


def is_moving(value: Any) -> bool:
    """Whether a value can move along a path: a tensor of floating-point numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()


def is_integer(value: Tensor) -> bool:
    """Whether a tensor holds integers, not truth values."""
    return not value.is_floating_point() and not value.is_complex() and value.dtype != torch.bool


def kind_of(value: Any) -> str:
    """A value as errors name it."""
    return f"{str(value.dtype).removeprefix('torch.')} tensor" if isinstance(value, Tensor) else type(value).__name__


def _split(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, PackedSequence):
        raise TypeError(
            "inputs is a PackedSequence, whose rows are tokens of all examples; give the padded tensor "
            "(torch.nn.utils.rnn.pad_packed_sequence) and the lengths, and a model that packs them itself"
        )
    if isinstance(inputs, Mapping):
        wrong = [name for name in inputs if not isinstance(name, str)]
        if wrong:
            raise TypeError(f"inputs has the keys {wrong}; expected names of the model's arguments")
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    raise TypeError(
        f"inputs is a {type(inputs).__name__}; expected a tensor, a tuple of tensors or a dict of tensors "
        "(a numpy array: torch.as_tensor(array))"
    )
