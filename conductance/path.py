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
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import make_dual

from conductance.arguments import Arguments, Inputs, Key, is_moving, kind_of
from conductance.baselines import Baseline, named_keys, starts_of


@dataclass(frozen=True)
class Rows:
    """Arguments of one model call, and the leaf tensors among them.

    Attributes
    ----------
    args, kwargs
        What the model is called with.
    leaves
        The moving tensors, each ``(rows, …)`` and requiring a gradient.
    within
        Makes the context to call the model in.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    leaves: list[Tensor]
    within: Callable[[], AbstractContextManager[Any]] = nullcontext

    def through(self, model: Callable[..., Any]) -> Any:
        """What the model gives for these rows."""
        with self.within():
            return model(*self.args, **self.kwargs)


class StraightPath:
    """Rows of the straight paths from baselines to inputs.

    Parameters
    ----------
    inputs
        What the model is called with; or a tensor, a tuple of positional inputs or a mapping of keyword inputs. Axis 0
        is the batch.
    baselines
        Where paths start (see :mod:`conductance.baselines`); a list is several baselines to average over. None is
        zero. Of a mapping only the keys move.

    Attributes
    ----------
    moving
        Keys of what moves.
    ends, starts
        The moving tensors, and those that they start from: one mapping for each baseline.
    labels
        What errors call the moving tensors.
    batch, per_example
        Number of examples, and of baselines.

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

    def __init__(self, inputs: Arguments | Inputs, baselines: Baseline | list[Any]) -> None:
        arguments = inputs if isinstance(inputs, Arguments) else Arguments(inputs)
        several = several_of(baselines)
        moving = _moving(arguments)
        labels = {key: f"inputs[{key!r}]" for key in moving}
        chosen = named_keys(several, moving, labels)
        ends = {key: arguments.entries[key].detach() for key in chosen}
        check_ends(ends, labels)
        self._set(arguments, ends, labels)
        self.starts = [starts_of(one, ends, labels) for one in several]
        self.per_example = len(several)

    def _set(self, arguments: Arguments, ends: dict[Key, Tensor], labels: Mapping[Key, str]) -> None:
        self.arguments = arguments
        self.moving = list(ends)
        self.ends = ends
        self.labels = {key: labels[key] for key in ends}
        self.batch = len(next(iter(ends.values())))

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
        leaves = []
        for number, key in enumerate(self.moving):
            leaf = self._moved(key, paths, examples, alphas)
            leaves.append(leaf.requires_grad_() if tangents is None else make_dual(leaf, tangents[number]))
        # copies, so that a model may work on its input in place
        return self.given(examples, {key: leaf.clone() for key, leaf in zip(self.moving, leaves, strict=True)}, leaves)

    def given(self, examples: Tensor, moved: dict[Key, Tensor], leaves: list[Tensor]) -> Rows:
        """Model arguments for rows of some examples, with other tensors in place of those that move."""
        return Rows(*self.arguments.call(examples, self.batch, moved), leaves)

    def watched(self) -> AbstractContextManager[None]:
        """A context to run the model in."""
        return nullcontext()

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


def several_of(baselines: Baseline | list[Any]) -> list[Any]:
    """Baselines as a list."""
    several = list(baselines) if isinstance(baselines, list) else [baselines]
    if not several:
        raise ValueError("baselines is an empty list; give None (zeros), one baseline, or a list of at least one")
    return several


def check_ends(ends: Mapping[Key, Tensor], labels: Mapping[Key, str]) -> None:
    """Refuse what cannot move along a path: numbers that are not finite, no batch, batches of different sizes."""
    for key, tensor in ends.items():
        if tensor.dim() == 0:
            raise ValueError(f"{labels[key]} has no batch axis (shape ()); expected shape (batch, …)")
        if tensor.numel() == 0 and len(tensor) > 0:
            raise ValueError(f"{labels[key]} is empty: it has shape {tuple(tensor.shape)}")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{labels[key]} holds NaN or infinity; clean the data first")
    sizes = {labels[key]: tensor.shape[0] for key, tensor in ends.items()}
    if len(set(sizes.values())) > 1:
        given = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise ValueError(
            f"inputs disagree on the batch size, axis 0 ({given}); name those without a batch axis in fixed=(…)"
        )
    if 0 in sizes.values():
        raise ValueError("inputs is an empty batch: axis 0 has length 0; expected at least one example")


def _moving(arguments: Arguments) -> list[Key]:
    """Inputs that can move."""
    for key in arguments.candidates:
        _check_usable(key, arguments.entries[key])
    moving = [key for key in arguments.candidates if is_moving(arguments.entries[key])]
    if not moving:
        given = ", ".join(f"inputs[{key!r}]: {kind_of(arguments.entries[key])}" for key in arguments.candidates)
        raise ValueError(
            f"inputs holds no floating-point tensor that could move along a path (given {given or 'nothing'}); token "
            "ids and other integers cannot be interpolated: give path_from= the embedding that they enter, or "
            "inputs.float() if they are measurements"
        )
    return moving


def _check_usable(key: Key, value: Any) -> None:
    if not isinstance(value, Tensor):
        return
    if value.is_complex():
        raise TypeError(
            f"inputs[{key!r}] is a {kind_of(value)}; complex numbers have no path here: give real and imaginary "
            "parts as real tensors (torch.view_as_real), and a model that joins them"
        )
    if value.layout != torch.strided:
        raise TypeError(
            f"inputs[{key!r}] is sparse ({value.layout}); give inputs[{key!r}].to_dense(), or, if it does not "
            "move, give it in additional_forward_args"
        )
