"""What is kept in a result of why conductances are zero."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One cause of zeros.

    Attributes
    ----------
    cause
        Its name in a few words.
    text
        What was found and the way out.
    layers
        The layers that are zero for it; empty if it is a matter of the target, and concerns all.
    examples
        The numbers of the examples looked at for which it holds.
    """

    cause: str
    text: str
    layers: tuple[str, ...]
    examples: tuple[int, ...]

    def __str__(self) -> str:
        which = f"layer{'s' if len(self.layers) > 1 else ''} {', '.join(map(repr, self.layers[:5]))}: "
        more = f" and {len(self.layers) - 5} more layers" if len(self.layers) > 5 else ""
        return f"{self.cause}: {which if self.layers else ''}{self.text}{more}"


def findings_of(kept: Any) -> Iterator[Finding]:
    """Give the findings that a result's settings hold; of results put together, those of each.

    Examples
    --------
    >>> kept = {"cause": "unused layer", "text": "the target does not use it", "layers": ["aux"], "examples": [0]}
    >>> [str(one) for one in findings_of([[kept], None])]
    ["unused layer: layer 'aux': the target does not use it"]
    """
    if isinstance(kept, dict):
        yield Finding(kept["cause"], kept["text"], tuple(kept["layers"]), tuple(kept["examples"]))
    for one in kept if isinstance(kept, list | tuple) else ():
        yield from findings_of(one)
