"""Where paths start: baselines as users give them, and some by name.

No baseline is right for every question: zero is meaningful for some inputs (an embedding, a padded series) and a
picture for others (black pixels). Several can be given at once; the spread over them tells how much hangs on that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from conductance.arguments import Key

Baseline: TypeAlias = (
    float | int | str | Tensor | Callable[[Tensor], Tensor] | tuple[Any, ...] | Mapping[Any, Any] | None
)


def zeros(inputs: Tensor) -> Tensor:
    """Zero everywhere, the default.

    Examples
    --------
    >>> zeros(torch.ones(1, 2))
    tensor([[0., 0.]])
    """
    return torch.zeros_like(inputs)


def mean(inputs: Tensor) -> Tensor:
    """Mean over the examples of the batch, the same for all of them.

    Raises
    ------
    ValueError
        For a batch of one, whose mean is itself.

    Examples
    --------
    >>> mean(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    tensor([[2., 4.],
            [2., 4.]])
    """
    _check_several(inputs, "mean")
    return inputs.mean(0, keepdim=True).expand_as(inputs)


def permuted(inputs: Tensor, seed: int = 0) -> Tensor:
    """Another example of the batch for each, drawn at random; none is its own baseline.

    Raises
    ------
    ValueError
        For a batch of one.

    Examples
    --------
    >>> permuted(torch.tensor([[1.0], [2.0]]))
    tensor([[2.],
            [1.]])
    """
    _check_several(inputs, "permuted")
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    source = torch.empty_like(order)
    source[order] = order.roll(1)
    return inputs.index_select(0, source.to(inputs.device))


def blur(inputs: Tensor, sigma: float | None = None) -> Tensor:
    """Images out of focus: a Gaussian over the axes behind batch and channel.

    Parameters
    ----------
    inputs
        ``(batch, channels, …)`` with one to three axes of places.
    sigma
        Width of the Gaussian in pixels; None is an eighth of the longest axis. Pixels beyond the border count as
        those at the border.

    Raises
    ------
    ValueError
        For inputs of other shapes, and a width that is not above zero.

    Examples
    --------
    >>> blur(torch.eye(4).reshape(1, 1, 4, 4), sigma=8.0).std().item() < 0.05
    True
    """
    if not 3 <= inputs.dim() <= 5:
        raise ValueError(
            f"baselines: 'blur' takes images (batch, channels, height, width), got shape {tuple(inputs.shape)}"
        )
    sigma = max(inputs.shape[2:]) / 8 if sigma is None else sigma
    if not 0 < sigma < math.inf:
        raise ValueError(f"baselines: sigma of 'blur' is {sigma}; expected a width in pixels above 0")
    reach = max(1, math.ceil(3 * sigma))
    places = torch.arange(
        -reach, reach + 1, device=inputs.device, dtype=torch.promote_types(inputs.dtype, torch.float32)
    )
    weights = torch.exp(-0.5 * (places / sigma) ** 2)
    weights = weights / weights.sum()
    blurred = inputs.to(weights.dtype)
    for axis in range(2, inputs.dim()):
        moved = blurred.movedim(axis, -1)
        lines = functional.pad(moved.reshape(-1, 1, moved.shape[-1]), (reach, reach), mode="replicate")
        blurred = functional.conv1d(lines, weights[None, None]).reshape(moved.shape).movedim(-1, axis)
    return blurred.to(inputs.dtype)


#: Baselines by name.
NAMED: dict[str, Callable[[Tensor], Tensor]] = {"zeros": zeros, "mean": mean, "permuted": permuted, "blur": blur}


def starts_of(baseline: Baseline, ends: Mapping[Key, Tensor], labels: Mapping[Key, str]) -> dict[Key, Tensor]:
    """One baseline as a tensor for each input that moves, of the input's shape.

    Parameters
    ----------
    baseline
        As the user gives it, not a list; a mapping names inputs that move.
    ends
        The inputs that move.
    labels
        What errors call them.
    """
    if isinstance(baseline, Mapping):
        return {key: start_of(baseline[key], labels[key], end) for key, end in ends.items()}
    if isinstance(baseline, tuple):
        if len(baseline) != len(ends):
            raise ValueError(
                f"baselines is a tuple of {len(baseline)}, one for each input, but {len(ends)} inputs move "
                "(several baselines for one input: a list)"
            )
        return {key: start_of(one, labels[key], end) for one, (key, end) in zip(baseline, ends.items(), strict=True)}
    if isinstance(baseline, Tensor) and len(ends) > 1:
        raise ValueError(f"baselines is one tensor but {len(ends)} inputs move; give a tuple with one for each")
    return {key: start_of(baseline, labels[key], end) for key, end in ends.items()}


def named_keys(baselines: list[Any], moving: list[Key], labels: Mapping[Key, str]) -> list[Key]:
    """The inputs that move: all that can, or those that a mapping of baselines names."""
    named = [one for one in baselines if isinstance(one, Mapping)]
    for one in named:
        unknown = [name for name in one if name not in moving]
        if unknown:
            raise ValueError(f"baselines names {unknown}, but the inputs that can move are {list(labels.values())}")
        if not one or set(one) != set(named[0]):
            raise ValueError("baselines: every dict must name the same inputs, at least one: those are what moves")
    return [key for key in moving if not named or key in named[0]]


def start_of(baseline: Any, label: str, end: Tensor) -> Tensor:
    """A baseline of one input as a tensor of its shape."""
    if isinstance(baseline, str):
        baseline = _of_name(baseline)
    if callable(baseline):
        baseline = baseline(end.clone())
        if not isinstance(baseline, Tensor):
            raise TypeError(f"the callable given as baselines returned a {type(baseline).__name__}, expected a tensor")
    if baseline is None or (isinstance(baseline, (int, float)) and not isinstance(baseline, bool)):
        if abs(baseline or 0) > torch.finfo(end.dtype).max:
            raise ValueError(f"baselines is a number beyond the range of {end.dtype}, or infinite; give a finite one")
        start = torch.full_like(end, 0.0 if baseline is None else float(baseline))
    elif isinstance(baseline, Tensor):
        start = _fitted(baseline.detach(), label, end)
    else:
        raise TypeError(
            f"baselines is a {type(baseline).__name__}; expected a number, a tensor, a callable, a name ("
            f"{', '.join(NAMED)}), a tuple (one for each input) or a list (several baselines)"
        )
    if not bool(torch.isfinite(start).all()):
        raise ValueError(f"the baseline of {label} holds NaN or infinity")
    return start


def _fitted(baseline: Tensor, label: str, end: Tensor) -> Tensor:
    """A baseline of the input's shape from one of it, of a batch of one, or without the batch axis."""
    if baseline.is_complex() or baseline.layout != torch.strided:
        raise TypeError(
            f"the baseline of {label} is {'complex' if baseline.is_complex() else 'sparse'}; expected real "
            "numbers in a dense tensor"
        )
    shape = tuple(baseline.shape)
    fits = shape in (tuple(end.shape), (1, *end.shape[1:]), tuple(end.shape[1:]), ())
    if not fits:
        raise ValueError(
            f"the baseline of {label} has shape {shape}; expected {tuple(end.shape)}, {(1, *end.shape[1:])} or "
            f"{tuple(end.shape[1:])}"
        )
    return baseline.to(device=end.device, dtype=end.dtype).expand_as(end)


def _of_name(name: str) -> Callable[[Tensor], Tensor]:
    if name not in NAMED:
        raise ValueError(
            f"baselines is {name!r}; expected one of {', '.join(map(repr, NAMED))}, or 'pad' for paths from token "
            "embeddings"
        )
    return NAMED[name]


def _check_several(inputs: Tensor, name: str) -> None:
    if len(inputs) < 2:
        raise ValueError(f"baselines: {name!r} takes a batch of at least two examples, got {len(inputs)}")
