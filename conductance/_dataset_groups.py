"""Groups of examples: what may be one, and their order."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor


def checked_groups(groups: Any, examples: int) -> Sequence[Hashable]:
    """One group for each example, as a file can keep it: all None if none are given.

    Raises
    ------
    TypeError
        If they are no sequence of texts, numbers or tuples of them.
    ValueError
        If there is not one for each example.

    Examples
    --------
    >>> import torch
    >>> checked_groups(torch.tensor([3, 1]), 2), checked_groups(None, 2)
    ([3, 1], [None, None])
    """
    if groups is None:
        return [None] * examples
    if isinstance(groups, str | Mapping) or not isinstance(groups, Iterable) or not hasattr(groups, "__len__"):
        raise TypeError(f"groups must hold one entry for each example, got {type(groups).__name__}.")
    # The length first: iterating a tensor without axes fails.
    entries = groups.tolist() if isinstance(groups, Tensor) else list(groups)
    if not isinstance(entries, list) or len(entries) != examples:
        found = len(entries) if isinstance(entries, list) else 0
        raise ValueError(f"groups has {found} entries, expected one for each of {examples} examples.")
    return [checked_group(entry) for entry in entries]


def in_order(groups: Iterable[Hashable]) -> list[Hashable]:
    """Sort what can be compared; else by kind and how it is written.

    Examples
    --------
    >>> in_order([2, 10, 1]), in_order(["b", 1, "a"])
    ([1, 2, 10], [1, 'a', 'b'])
    """
    found: list[Any] = list(groups)
    try:
        return sorted(found)
    except TypeError:
        return sorted(found, key=lambda group: (type(group).__name__, repr(group)))


def from_json(group: Any) -> Hashable:
    """Read a group back: a file has lists where it was given tuples."""
    return tuple(map(from_json, group)) if isinstance(group, list) else group


def checked_group(group: Any) -> Hashable:
    """Write one group as plain Python.

    Raises
    ------
    TypeError
        If it is no text, number or tuple of them.

    Examples
    --------
    >>> import torch
    >>> checked_group(torch.tensor(3)), checked_group(("cat", 1))
    (3, ('cat', 1))
    """
    if isinstance(group, tuple):
        return tuple(map(checked_group, group))
    group = group.item() if hasattr(group, "item") and getattr(group, "ndim", None) == 0 else group
    if not isinstance(group, str | int | float) or group != group:
        raise TypeError(
            f"groups holds {group!r}, a {type(group).__name__}; expected a text, a number, or a tuple of them for each "
            "example: write other things as text, str(…)."
        )
    return group
