"""Token ids as baselines: which input they stand for, and what an embedding makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from conductance.arguments import Arguments, Key, is_integer

#: The name that an input of token ids has in most models.
IDS = "input_ids"


class TokenIds:
    """Baselines of a path from a hook point, with the embedding of ids in place of ids.

    Parameters
    ----------
    arguments
        What the model is called with.
    ends
        The tensors at the hook point for the inputs, by the name of the point.
    at_point
        Gives those tensors where some of the arguments are others.
    entered
        Tensors of integers that entered the module of the hook point, of the first examples.
    pad
        The padding token, if one is known.
    bare
        Whether the module is an embedding and nothing else, so that whatever enters it are ids.
    """

    def __init__(
        self,
        arguments: Arguments,
        ends: Mapping[Key, Tensor],
        at_point: Callable[[Mapping[Key, Any]], dict[Key, Tensor]],
        entered: Sequence[Tensor],
        *,
        pad: int | None,
        bare: bool,
    ) -> None:
        self._arguments = arguments
        self._ends = ends
        self._at_point = at_point
        self._pad = pad
        self._bare = bare
        integers = arguments.integers()
        self._entering = [k for k in integers if any(_begins(arguments.entries[k], one) for one in entered)] or integers

    def embedded(self, baseline: Any) -> Any:
        """A baseline as it goes for tensors that move: numbers, tensors, callables and mappings of these."""
        if isinstance(baseline, str) and baseline == "pad":
            keys = self._entering if self._bare and self._entering else [self._the_key()]
            return self._at_point({key: self._padded(key) for key in keys})
        if isinstance(baseline, str) and baseline == "blur":
            raise ValueError("baselines is 'blur', which is for images; with path_from give 'pad', ids or vectors")
        if isinstance(baseline, Mapping):
            return self._of_mapping(baseline)
        if _may_be_ids(baseline):
            key = self._the_key()
            return self._at_point({key: self._checked(baseline, key)})
        if isinstance(baseline, tuple) and any(map(_may_be_ids, baseline)):
            raise TypeError(
                "baselines is a tuple that holds integers: a tuple has one baseline for each tensor at the hook point; "
                f"give token ids alone, or by the name of their input, {{{self._entering[:1] or IDS!r}: ids}}"
            )
        return baseline

    def _of_mapping(self, baseline: Mapping[Any, Any]) -> dict[Key, Any]:
        known = self._arguments.entries
        ids = {k: v for k, v in baseline.items() if k in known and (k not in self._ends or _may_be_ids(v))}
        others = {k: v for k, v in baseline.items() if k not in ids}
        wrong = [key for key, value in others.items() if key in self._ends and _may_be_ids(value)]
        if wrong:
            raise TypeError(
                f"baselines[{wrong[0]!r}] holds integers, but {wrong[0]!r} is the hook point, where vectors are; give "
                f"token ids by the name of their input ({self._entering})"
            )
        if not ids:
            return others
        checked = {key: self._checked(value, key) for key, value in ids.items()}
        for key, value in checked.items():
            if torch.equal(value, known[key]):
                continue
            found = self._at_point({key: value})
            if all(torch.equal(found[name], self._ends[name]) for name in self._ends):
                raise ValueError(
                    f"baselines names {key!r}, which does not enter the hook point of path_from: along the path it "
                    "stays that of the input; leave it out, or choose a hook point behind it"
                )
        found = self._at_point(checked)
        both = [name for name in others if name in found]
        if both:
            raise ValueError(f"baselines gives both token ids and vectors for {both[0]!r}; give one of them")
        return {**found, **others}

    def _the_key(self) -> Key:
        """The one input that holds token ids."""
        keys = [IDS] if len(self._entering) > 1 and IDS in self._entering and not self._bare else self._entering
        if not keys:
            raise ValueError("baselines stands for token ids, but no input holds integers; give the embedding itself")
        if len(keys) > 1:
            raise ValueError(
                f"baselines holds token ids, but which input they stand for is not clear (inputs of integers: {keys}); "
                f"give a dict such as {{{keys[0]!r}: ids}}"
            )
        return keys[0]

    def _checked(self, ids: Any, key: Key) -> Tensor:
        given: Tensor = self._arguments.entries[key]
        if not isinstance(ids, Tensor) or not is_integer(ids):
            kind = f"a {ids.dtype} tensor" if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
            raise TypeError(f"baselines[{key!r}] is {kind}; expected token ids, a tensor of integers")
        if not isinstance(given, Tensor) or tuple(ids.shape) not in (
            tuple(given.shape),
            (1, *given.shape[1:]),
            tuple(given.shape[1:]),
        ):
            shape = tuple(given.shape) if isinstance(given, Tensor) else ()
            raise ValueError(
                f"the token ids given as baselines have shape {tuple(ids.shape)}; expected the shape of inputs[{key!r}]"
                f", {shape}, or {shape[1:]} for all examples"
            )
        if not torch.equal(ids.to(given.dtype).to(ids.dtype), ids):
            raise ValueError(
                f"the token ids given as baselines do not fit into {given.dtype}, the type of inputs[{key!r}]; give "
                "the inputs as torch.int64 too"
            )
        return ids.to(device=given.device, dtype=given.dtype).expand_as(given)

    def _padded(self, key: Key) -> Tensor:
        if self._pad is None:
            raise ValueError(
                "baselines is 'pad', but neither model.config.pad_token_id nor the embedding's padding_idx tells it; "
                "give torch.full_like(input_ids, tokenizer.pad_token_id)"
            )
        return self._checked(torch.full(self._arguments.entries[key].shape, self._pad), key)


def _may_be_ids(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex()


def _begins(whole: Tensor, part: Tensor) -> bool:
    """Whether a tensor begins with another one."""
    return whole.shape[1:] == part.shape[1:] and torch.equal(whole[: len(part)].long(), part.long())
