"""Compiled code run as it was written: torch.compile leaves out hooks that were not there when it compiled."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

import torch

_lock = Lock()
_entered = 0
_outermost = ExitStack()


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run what ``torch.compile`` compiled eagerly, in all threads, until the last of them leaves.

    Examples
    --------
    >>> with uncompiled():
    ...     _ = torch.nn.Linear(3, 2)(torch.ones(1, 3))
    """
    global _entered
    # Without the import nothing is compiled, and it takes seconds; before torch 2.6 there is no such switch.
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        yield
        return
    with _lock:
        if not _entered:
            _outermost.enter_context(torch.compiler.set_stance("force_eager"))
        _entered += 1
    try:
        yield
    finally:
        with _lock:
            _entered -= 1
            if not _entered:
                _outermost.close()
