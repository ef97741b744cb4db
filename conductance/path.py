"""The straight path ``g(a) = x' + a (x - x')`` from a baseline to an input, in rows for one model call.

What moves are the floating-point tensors of the inputs; everything else the model receives is repeated for every
row as it is. A path is one (example, baseline) pair: with ``M`` baselines, path ``n · M + m`` leads from baseline
``m`` to example ``n``.

References
----------
Sundararajan, Taly and Yan, Axiomatic Attribution for Deep Networks (1703.01365), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.forward_ad import make_dual

Inputs: TypeAlias = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
Baseline: TypeAlias = float | int | Tensor | Callable[[Tensor], Tensor] | tuple[Any, ...] | Mapping[str, Any] | None
Key: TypeAlias = int | str


@dataclass(frozen=True)
class Rows:
    """Arguments of one model call, and the leaf tensors among them.

    Attributes
    ----------
    args, kwargs
        What the model is called with.
    leaves
        The moving tensors, each ``(rows, …)`` and requiring a gradient.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    leaves: list[Tensor]


class StraightPath:
    """Rows of the straight paths from baselines to inputs.

    Parameters
    ----------
    inputs
        A tensor, a tuple of positional inputs or a mapping of keyword inputs; axis 0 is the batch.
    baselines
        A number, a tensor or a callable (given the input, returns the baseline); a tuple is one per input, a
        list is several baselines to average over. None is zero.
    extra
        Further positional arguments; tensors whose first axis is the batch are repeated with the rows.

    Raises
    ------
    TypeError, ValueError
        For inputs or baselines that cannot be used; the message names the argument.

    Examples
    --------
    >>> path = StraightPath(torch.tensor([[2.0, 4.0]]), None)
    >>> path.rows(torch.tensor([0, 0]), torch.tensor([0.5, 1.0])).args[0]
    tensor([[1., 2.],
            [2., 4.]], grad_fn=<CloneBackward0>)
    """

    def __init__(self, inputs: Inputs, baselines: Baseline | list[Any], extra: tuple[Any, ...] = ()) -> None:
        self._positional, self._named = _split(inputs, extra)
        self._entries: dict[Key, Any] = {}
        self._entries.update(enumerate(self._positional))
        self._entries.update(self._named)
        candidates = [key for key in self._entries if isinstance(key, str) or key < len(self._positional) - len(extra)]
        self.moving = _moving(self._entries, candidates)
        self.batch = _batch_size({key: self._entries[key] for key in self.moving})
        several = list(baselines) if isinstance(baselines, list) else [baselines]
        if not several:
            raise ValueError("baselines is an empty list; give None (zeros), one baseline, or a list of at least one")
        self.ends = {key: self._entries[key].detach() for key in self.moving}
        self.starts = [_starts(one, self.ends, isinstance(inputs, Tensor)) for one in several]
        self.per_example = len(several)

    @property
    def count(self) -> int:
        """Number of paths: examples times baselines."""
        return self.batch * self.per_example

    @property
    def still(self) -> Tensor:
        """Whether an example is its own baseline, all of them: ``(batch,)`` bool."""
        found = torch.ones(self.batch, dtype=torch.bool, device=self.device)
        for key in self.moving:
            for start in self.starts:
                found &= (start[key] == self.ends[key]).reshape(self.batch, -1).all(1).to(self.device)
        return found

    @property
    def device(self) -> torch.device:
        """Device of the inputs that move."""
        device: torch.device = self.ends[self.moving[0]].device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the inputs that move (the coarsest of them)."""
        kinds: list[torch.dtype] = [end.dtype for end in self.ends.values()]
        return max(kinds, key=lambda kind: torch.finfo(kind).eps)

    def rows(self, paths: Tensor, alphas: Tensor, tangents: Sequence[Tensor] | None = None) -> Rows:
        """Model arguments for nodes of paths.

        Parameters
        ----------
        paths
            Path of each row, shape ``(rows,)``, int64.
        alphas
            Place of each row on its path, shape ``(rows,)``.
        tangents
            For forward mode: the tangent of each leaf; the arguments are then dual tensors, and need no gradient.
        """
        examples = torch.div(paths, self.per_example, rounding_mode="floor")
        entries = {key: self._repeated(value, examples) for key, value in self._entries.items() if key not in self.ends}
        leaves = []
        for number, key in enumerate(self.moving):
            leaf = self._moved(key, paths, examples, alphas)
            leaf = leaf.requires_grad_() if tangents is None else make_dual(leaf, tangents[number])
            leaves.append(leaf)
            entries[key] = leaf.clone()  # so that a model may work on its input in place
        args = tuple(entries[place] for place in range(len(self._positional)))
        return Rows(args, {name: entries[name] for name in self._named}, leaves)

    def directions(self, paths: Tensor) -> list[Tensor]:
        """``x - x'`` of each row, one tensor for each leaf."""
        examples = torch.div(paths, self.per_example, rounding_mode="floor")
        return [self.ends[key].index_select(0, examples) - self._start(key, paths, examples) for key in self.moving]

    def _start(self, key: Key, paths: Tensor, examples: Tensor) -> Tensor:
        if self.per_example == 1:
            return self.starts[0][key].index_select(0, examples)
        which = paths % self.per_example
        stacked = [self.starts[m][key].index_select(0, examples[which == m]) for m in range(self.per_example)]
        start = torch.empty_like(self.ends[key].index_select(0, examples))
        for m, part in enumerate(stacked):
            start[which == m] = part
        return start

    def _moved(self, key: Key, paths: Tensor, examples: Tensor, alphas: Tensor) -> Tensor:
        end = self.ends[key].index_select(0, examples)
        start = self._start(key, paths, examples)
        wide = torch.promote_types(end.dtype, torch.float32)
        place = alphas.to(wide).reshape(-1, *(1,) * (end.dim() - 1))
        # ``end + (a - 1)(end - start)`` near the end: the last node is the input itself, bit for bit
        step = end.to(wide) - start.to(wide)
        moved = torch.where(place < 0.5, start.to(wide) + place * step, end.to(wide) - (1 - place) * step)
        return moved.to(end.dtype)

    def _repeated(self, value: Any, examples: Tensor) -> Any:
        if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == self.batch:
            return value.index_select(0, examples.to(value.device))
        return value


def _split(inputs: Inputs, extra: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Tensor):
        return (inputs, *extra), {}
    if isinstance(inputs, Mapping):
        return extra, dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return (*inputs, *extra), {}
    raise TypeError(
        f"inputs is a {type(inputs).__name__}; expected a tensor, a tuple of tensors or a dict of tensors "
        "(a numpy array: torch.as_tensor(array))"
    )


def _moving(entries: Mapping[Key, Any], candidates: Sequence[Key]) -> list[Key]:
    tensors = [key for key in candidates if isinstance(entries[key], Tensor)]
    for key in tensors:
        if entries[key].is_complex():
            raise TypeError(
                f"{_label(key)} is a {_kind(entries[key])}; complex numbers have no path here: give real and imaginary "
                "parts as real tensors (torch.view_as_real), and a model that joins them"
            )
        if entries[key].layout != torch.strided:
            raise TypeError(
                f"{_label(key)} is sparse ({entries[key].layout}); give {_label(key)}.to_dense(), or, if it does not "
                "move, give it in additional_forward_args"
            )
    moving = [key for key in tensors if entries[key].is_floating_point()]
    if not moving:
        given = ", ".join(f"{_label(key)}: {_kind(entries[key])}" for key in candidates) or "nothing"
        raise ValueError(
            f"inputs holds no floating-point tensor that could move along a path (given {given}); token ids and other "
            "integers cannot be interpolated: pass their embeddings, or inputs.float() if they are measurements"
        )
    for key in moving:
        tensor = entries[key]
        if tensor.dim() == 0:
            raise ValueError(f"{_label(key)} has no batch axis (shape ()); expected shape (batch, …)")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{_label(key)} holds NaN or infinity; clean the data first")
    return moving


def _batch_size(moving: Mapping[Key, Tensor]) -> int:
    sizes = {_label(key): tensor.shape[0] for key, tensor in moving.items()}
    if len(set(sizes.values())) > 1:
        given = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise ValueError(f"inputs disagree on the batch size, axis 0 ({given})")
    size = next(iter(sizes.values()))
    if size == 0:
        raise ValueError("inputs is an empty batch: axis 0 has length 0; expected at least one example")
    return size


def _starts(baseline: Baseline, ends: Mapping[Key, Tensor], single: bool) -> dict[Key, Tensor]:
    """The baseline as one tensor for each moving input, of the input's shape."""
    if isinstance(baseline, Mapping):
        unknown = [name for name in baseline if name not in ends]
        if unknown:
            raise ValueError(f"baselines names {unknown}, but the inputs that move are {[*map(_label, ends)]}")
        return {key: _start_of(baseline.get(str(key)), key, end) for key, end in ends.items()}
    if isinstance(baseline, tuple):
        if len(baseline) != len(ends):
            raise ValueError(
                f"baselines is a tuple of {len(baseline)}, one for each input, but {len(ends)} inputs move "
                "(several baselines for one input: a list)"
            )
        return {key: _start_of(one, key, end) for one, (key, end) in zip(baseline, ends.items(), strict=True)}
    if isinstance(baseline, Tensor) and not single and len(ends) > 1:
        raise ValueError(f"baselines is one tensor but {len(ends)} inputs move; give a tuple with one for each")
    return {key: _start_of(baseline, key, end) for key, end in ends.items()}


def _start_of(baseline: Any, key: Key, end: Tensor) -> Tensor:
    if callable(baseline):
        baseline = baseline(end.clone())
        if not isinstance(baseline, Tensor):
            raise TypeError(f"the callable given as baselines returned a {type(baseline).__name__}, expected a tensor")
    if baseline is None or (isinstance(baseline, (int, float)) and not isinstance(baseline, bool)):
        if abs(baseline or 0) > torch.finfo(end.dtype).max:
            raise ValueError(f"baselines is a number beyond the range of {end.dtype}, or infinite; give a finite one")
        start = torch.full_like(end, 0.0 if baseline is None else float(baseline))
    elif isinstance(baseline, Tensor):
        start = _fitted(baseline.detach(), key, end)
    else:
        raise TypeError(
            f"baselines is a {type(baseline).__name__}; expected a number, a tensor, a callable, a tuple (one for each "
            "input) or a list (several baselines)"
        )
    if not bool(torch.isfinite(start).all()):
        raise ValueError(f"the baseline of {_label(key)} holds NaN or infinity")
    return start


def _fitted(baseline: Tensor, key: Key, end: Tensor) -> Tensor:
    """A baseline of the input's shape from one of it, of a batch of one, or without the batch axis."""
    if baseline.is_complex() or baseline.layout != torch.strided:
        raise TypeError(
            f"the baseline of {_label(key)} is {'complex' if baseline.is_complex() else 'sparse'}; expected real "
            "numbers in a dense tensor"
        )
    shape = tuple(baseline.shape)
    fits = shape in (tuple(end.shape), (1, *end.shape[1:]), tuple(end.shape[1:]), ())
    if not fits:
        raise ValueError(
            f"the baseline of {_label(key)} has shape {shape}; expected {tuple(end.shape)}, {(1, *end.shape[1:])} or "
            f"{tuple(end.shape[1:])}"
        )
    return baseline.to(device=end.device, dtype=end.dtype).expand_as(end)


def _label(key: Key) -> str:
    return f"inputs[{key!r}]"


def _kind(value: Any) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} tensor" if isinstance(value, Tensor) else type(value).__name__
