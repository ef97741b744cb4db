"""Progress bars: in notebooks as widgets, and nothing at all, widgets' warnings included, where none is asked for."""

from collections.abc import Iterable
from typing import Any


def progress_bar(
    progress: bool, desc: str, unit: str, *, total: int | None = None, given: Iterable[Any] | None = None
) -> Any:
    """Make a bar of tqdm; ``progress=False`` makes one that shows nothing.

    Parameters
    ----------
    progress
        Whether to show it.
    desc, unit, total
        As for tqdm.
    given
        What the bar goes over, if it is not moved on by hand.

    Examples
    --------
    >>> with progress_bar(False, "conductance", "example", total=3) as bar:
    ...     bar.update(2)
    >>> list(progress_bar(False, "training", "epoch", given=range(2)))
    [0, 1]
    """
    if not progress:  # tqdm.auto warns when it is imported in a notebook without ipywidgets
        from tqdm.std import tqdm

        return tqdm(given, disable=True)
    from tqdm.auto import tqdm as shown

    return shown(given, desc=desc, unit=unit, total=total)
