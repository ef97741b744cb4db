"""Tensors inside nested outputs (tuples, lists, mappings, dataclasses), addressed by the keys on the way."""

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

Index = tuple[int | str, ...]


def children(node: object) -> Iterable[tuple[int | str, Any]]:
    """List keys and values one level down; nothing for a tensor or any other object.

    Positions for tuples, named tuples and lists, keys for mappings (a ``ModelOutput`` is one), field names
    for dataclasses. Keys that are neither integers nor strings cannot be written in a name and are passed
    over.
    """
    if isinstance(node, Mapping):
        return [(key, value) for key, value in node.items() if isinstance(key, int | str)]
    if isinstance(node, tuple | list):
        return enumerate(node)
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return [(field.name, getattr(node, field.name)) for field in dataclasses.fields(node)]
    return ()


def tensors(tree: object, prefix: Index = ()) -> Iterator[tuple[Index, Tensor]]:
    """Yield all tensors of a nested structure with their index, in order.

    Examples
    --------
    >>> import torch
    >>> [index for index, _ in tensors((torch.ones(2), {"a": [None, torch.ones(3)]}))]
    [(0,), (1, 'a', 1)]
    """
    if isinstance(tree, Tensor):
        yield prefix, tree
        return
    for key, value in children(tree):
        yield from tensors(value, (*prefix, key))


def pick(tree: object, index: Index) -> Any:
    """Give what lies at an index.

    Raises
    ------
    LookupError
        Nothing lies there; the message lists what does.
    """
    node = tree
    for key in index:
        try:
            node = _child(node, key)
        except LookupError:
            there = ", ".join(written(place) for place, _ in tensors(tree)) or "no tensor"
            msg = f"nothing at {written(index)}; there is {there}"
            raise LookupError(msg) from None
    return node


def _child(node: Any, key: int | str) -> Any:
    if isinstance(node, tuple | list) and isinstance(key, int) and key >= 0:
        return node[key]
    if isinstance(node, Mapping):
        return node[key]
    return dict(children(node))[key]


def replaced(tree: Any, index: Index, value: Tensor) -> Any:
    """Copy a structure, not deeply, with another tensor at an index; the structure itself is not touched.

    Examples
    --------
    >>> import torch
    >>> replaced((1, {"a": 2}), (1, "a"), torch.tensor(3))
    (1, {'a': tensor(3)})
    """
    if not index:
        return value
    key, rest = index[0], index[1:]
    inner = replaced(pick(tree, (key,)), rest, value)
    if isinstance(tree, Mapping):
        changed: Any = copy.copy(tree)
        changed[key] = inner
        return changed
    if isinstance(tree, tuple | list):
        items = [inner if position == key else item for position, item in enumerate(tree)]
        return _sequence_like(tree, items)
    changed = copy.copy(tree)
    object.__setattr__(changed, str(key), inner)
    return changed


def _sequence_like(tree: Sequence[Any], items: list[Any]) -> Any:
    if hasattr(tree, "_make"):
        return tree._make(items)
    return type(tree)(items)  # type: ignore[call-arg]


def written(index: Index) -> str:
    """Write an index as in names, ``[0][hidden_states]``."""
    return "".join(f"[{key}]" for key in index) or "a single tensor without index"


def inputs_tree(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int | str, Any]:
    """Make one structure of the inputs of a call: positional ones by number, keyword ones by name."""
    tree: dict[int | str, Any] = dict(enumerate(args))
    tree.update(kwargs)
    return tree


def inputs_again(tree: dict[int | str, Any], args: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give positional and keyword inputs from a changed tree; `args` are the old ones."""
    keywords = {key: value for key, value in tree.items() if isinstance(key, str)}
    return tuple(tree[position] for position in range(len(args))), keywords


def is_single(tree: Mapping[int | str, Any]) -> bool:
    """Say whether the inputs have one positional tensor, which goes without an index."""
    return isinstance(tree.get(0), Tensor) and 1 not in tree
