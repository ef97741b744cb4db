"""Warnings; in a loop over batches each is given once, with the batch that it came from first."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

#: Set where missed tolerances are not told of each run: none was asked, or they are counted up.
unwarned: ContextVar[bool] = ContextVar("unwarned", default=False)
#: What was told in the loop that runs, and the number of its batch. Of each thread its own, unlike warning filters.
_loop: ContextVar[tuple[set[tuple[type, str]], int] | None] = ContextVar("loop", default=None)


def tell(text: str, category: type[Warning], *, stacklevel: int) -> None:
    """Warn, as ``warnings.warn`` does, unless the loop that runs has said so of another batch."""
    now = _loop.get()
    if now is not None:
        told, batch = now
        # Numbers in it, such as that of an example, make no other warning.
        key = category, re.sub(r"[\d.]+", "", text)
        if key in told:
            return
        told.add(key)
        text, stacklevel = f"batch {batch} of the loader: {text}", stacklevel + 1  # the loop's own frame
    warnings.warn(text, category, stacklevel=stacklevel + 1)


@contextmanager
def in_batch(number: int, told: set[tuple[type, str]]) -> Iterator[None]:
    """Name the batch where something fails or warns; what is in ``told``, and missed tolerances, are not said."""
    token, quiet = _loop.set((told, number)), unwarned.set(True)
    try:
        yield
    except Exception as error:
        error.add_note(f"in batch {number} of the loader")
        raise
    finally:
        _loop.reset(token)
        unwarned.reset(quiet)
