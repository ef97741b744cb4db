"""Requests that may mean taps, whose names are known once the model has run: a first probe tells them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from conductance.hooks.probing import Probe, probe
from conductance.hooks.selecting import LayerSpec, Selection, select
from conductance.hooks.tapping import Tap, taps_called


def probe_layers(
    model: Callable[..., Any] | Mapping[str, nn.Module],
    layers: LayerSpec,
    run: Callable[[], Tensor | None],
    leaves: Sequence[Tensor],
    *,
    rows: int | None = None,
    again: tuple[int, Callable[[], object]] | None = None,
) -> tuple[Selection, Probe]:
    """Probe what a request for layers means, taps included.

    Parameters
    ----------
    model, run, leaves, rows, again
        As for `probe`; where taps are asked for, the model is probed twice.
    layers
        As for `select`.

    Returns
    -------
    Selection, Probe
        The modules and taps that were asked, and what the probe found.

    Raises
    ------
    ValueError
        As for `select` and `probe`; and if the model calls a tap by the name of one of its modules.

    Examples
    --------
    >>> import torch
    >>> from conductance.hooks import tap
    >>> x = torch.ones(1, 3, requires_grad=True)
    >>> def model(x):
    ...     return tap("square", x**2).sum(1)
    >>> selection, found = probe_layers(model, "sq*", lambda: model(x), [x])
    >>> [info.name for info in found.points]
    ['square']
    """
    selection = select(model, layers, tentative=True)
    with taps_called() as taps:
        found = probe(model, selection, run, leaves, rows=rows, again=again)
    check_names(model, taps)
    asked = select(model, layers, taps=taps)
    if asked.points == selection.points:
        return selection, found
    return asked, probe(model, asked, run, leaves, rows=rows, again=again)


def check_names(model: Callable[..., Any] | Mapping[str, nn.Module], taps: Mapping[str, Tap]) -> None:
    """Refuse taps by the name of a module: two points of one name could not be told apart."""
    named: Mapping[str, Any] = dict(model.named_modules(remove_duplicate=False)) if isinstance(model, nn.Module) else {}
    named = model if isinstance(model, Mapping) else named
    both = [name for name in taps if name in named]
    if both:
        msg = f"tap: {both[0]!r} is the name of a module of the model; give the tap another name"
        raise ValueError(msg)
