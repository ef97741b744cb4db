"""Paths of a tensor inside the model: token embeddings, for inputs that are integers.

Token ids cannot be interpolated, but what an embedding makes of them can. The model is called with the ids as they
are; at the hook point the moving tensor takes the place of the one that was computed. Masks, lengths and all that the
model makes of the ids elsewhere stay those of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from conductance._failing import raise_failed
from conductance.arguments import Arguments, Key, is_integer, is_moving, repeated
from conductance.baselines import Baseline, named_keys, starts_of
from conductance.errors import ConductanceError
from conductance.hooks import HookPoint, LayerSpec, Selection, path_point, substitute, undisturbed
from conductance.path import Rows, StraightPath, check_ends, several_of

#: Examples of a call that finds out what is at the hook point, if the user names no size.
CHUNK = 64


class InnerPath(StraightPath):
    """Rows of straight paths of the tensor at a hook point.

    Parameters
    ----------
    model
        The model.
    arguments
        What it is called with.
    baselines
        As for inputs; besides, a tensor of integers is token ids whose embedding is the start, ``"pad"`` stands for
        the model's padding token everywhere, and a mapping may name the input that holds ids.
    selection
        The hook point, from :func:`found_point` or ``hooks.path_point``. Without a call number all its calls move.
    most
        Examples of a call at most, 0 for any number.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        arguments: Arguments,
        baselines: Baseline | list[Any],
        selection: Selection,
        most: int,
    ) -> None:
        self._model = model
        self._most = most
        self._points = selection.points
        self._modules = {**selection.modules, **({"": model} if isinstance(model, nn.Module) else {})}
        self._examples = _batch_of(arguments)
        self._entered: list[Tensor] = []  # integers that entered the module in the first call of the model
        several = several_of(baselines)
        self.arguments = arguments
        ends = self._at_point({})
        labels = {key: f"path_from {key!r}" for key in ends}
        starts = [self._meant(one, ends) for one in several]
        chosen = named_keys(starts, list(ends), labels)
        ends = {key: ends[key] for key in chosen}
        check_ends(ends, labels)
        self._check_batch(ends, labels)
        self._set(arguments, ends, labels)
        self.starts = [starts_of(one, ends, labels) for one in starts]
        self.per_example = len(several)

    def _given(self, examples: Tensor, moved: dict[Key, Tensor], leaves: list[Tensor]) -> Rows:
        args, kwargs = self.arguments.call(examples, self.batch, {})
        return Rows(args, kwargs, leaves, partial(substitute, self._modules, self._points, partial(_in_place, moved)))

    def _at_point(self, given: Mapping[Key, Any]) -> dict[Key, Tensor]:
        """The tensors at the hook point for all examples, of the arguments or of others in their place."""
        chunk = min(self._most or CHUNK, CHUNK)
        parts: list[dict[Key, Tensor]] = []
        points = (*self._points, *(replace(point, side="in", index=()) for point in self._points))

        def record(point: HookPoint, tensor: Tensor) -> None:
            if is_integer(tensor) and not given and len(parts) == 1:
                self._entered.append(tensor)
            if tensor.is_floating_point() and point.side == self._points[0].side:
                parts[-1][point.name] = tensor.detach().clone()

        for first in range(0, self._examples, chunk):
            examples = torch.arange(first, min(first + chunk, self._examples))
            entries = {key: repeated(value, examples, self._examples) for key, value in given.items()}
            args, kwargs = self.arguments.call(examples, self._examples, entries)
            parts.append({})
            try:
                with torch.no_grad(), substitute(self._modules, tuple(dict.fromkeys(points)), record):
                    self._model(*args, **kwargs)
            except ValueError as error:
                if str(error).startswith(f"{self._points[0].name}:"):
                    raise ValueError(f"path_from: {error}") from None
                raise
            except Exception as error:
                names = [*given] or [key for key in self.arguments.entries if key in self.arguments.candidates]
                told = "baselines gave token ids for" if given else "inputs are"
                raise_failed(error, f"{told} {', '.join(f'inputs[{key!r}]' for key in names)}")
            if parts[-1].keys() != parts[0].keys():
                raise _changing(self._points[0].name)
        if not parts[0]:
            raise ValueError(
                f"path_from: {self._points[0].name!r} never ran, or gives no tensor of floating-point numbers; "
                "conductance.hooks.list_points(model, inputs) lists what does"
            )
        for key, first_part in parts[0].items():
            for part in parts:
                if part[key].shape[1:] != first_part.shape[1:]:
                    raise _differing(key, part[key], first_part)
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def _check_batch(self, ends: Mapping[Key, Tensor], labels: Mapping[Key, str]) -> None:
        for key, end in ends.items():
            if len(end) != self._examples:
                raise ValueError(
                    f"{labels[key]} gave a tensor of {len(end)} rows for {self._examples} examples: its axis 0 is not "
                    "the batch; choose a hook point behind which the batch is the first axis"
                )

    def _meant(self, baseline: Any, ends: Mapping[Key, Tensor]) -> Any:
        """A baseline with the embedding of ids in place of ids."""
        if isinstance(baseline, str) and baseline == "pad":
            baseline = {key: torch.full_like(self.arguments.entries[key], self._pad()) for key in self._ids_keys()}
        if isinstance(baseline, Mapping):
            ids = {key: value for key, value in baseline.items() if key in self.arguments.entries and key not in ends}
            if not ids:
                return baseline
            found = self._at_point({key: self._checked_ids(value, key) for key, value in ids.items()})
            return found | {key: value for key, value in baseline.items() if key not in ids}
        if isinstance(baseline, Tensor) and not baseline.is_floating_point() and not baseline.is_complex():
            keys = self._ids_keys()
            if len(keys) > 1:
                raise ValueError(
                    f"baselines holds token ids, but which input they stand for is not clear (inputs of integers: "
                    f"{keys}); give a dict such as {{'input_ids': ids}}"
                )
            return self._at_point({keys[0]: self._checked_ids(baseline, keys[0])})
        return baseline

    def _ids_keys(self) -> list[Key]:
        """The inputs that enter the module; where none enters as it is, those of integers."""
        integers = self.arguments.integers()
        entering = [key for key in integers if any(_begins(self.arguments.entries[key], one) for one in self._entered)]
        if not integers:
            raise ValueError("baselines stands for token ids, but no input holds integers; give the embedding itself")
        return entering or integers

    def _checked_ids(self, ids: Any, key: Key) -> Tensor:
        given: Tensor = self.arguments.entries[key]
        if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex():
            kind = f"a {ids.dtype} tensor" if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
            raise TypeError(f"baselines[{key!r}] is {kind}; expected token ids, a tensor of integers")
        if tuple(ids.shape) not in (tuple(given.shape), (1, *given.shape[1:]), tuple(given.shape[1:])):
            raise ValueError(
                f"the token ids given as baselines have shape {tuple(ids.shape)}; expected the shape of inputs[{key!r}]"
                f", {tuple(given.shape)}, or {tuple(given.shape[1:])} for all examples"
            )
        return ids.to(device=given.device, dtype=given.dtype).expand_as(given)

    def _pad(self) -> int:
        """The padding token, as the model's configuration or the embedding tells."""
        config = getattr(self._model, "config", None)
        module = self._modules[self._points[0].module]
        for found in (getattr(config, "pad_token_id", None), getattr(module, "padding_idx", None)):
            if isinstance(found, int):
                return found
        raise ValueError(
            "baselines is 'pad', but neither model.config.pad_token_id nor the embedding's padding_idx tells it; give "
            "torch.full_like(input_ids, tokenizer.pad_token_id)"
        )


def found_point(model: Callable[..., Any], arguments: Arguments, path_from: LayerSpec) -> Selection | None:
    """The hook point that a path moves: the one asked, the token embedding if no input can move, or None for inputs."""
    if path_from is not None:
        return path_point(model, path_from, partial(_run_once, model, arguments))
    if (
        any(is_moving(arguments.entries[key]) for key in arguments.candidates)
        or not arguments.integers()
        or not isinstance(model, nn.Module)
    ):
        return None
    embeddings = {name: one for name, one in model.named_modules() if isinstance(one, nn.Embedding)}
    two = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    # of two stacks each may have an embedding of its own, with the weights of one that never runs
    found = (_asked(_asked(model, "get_encoder"), "get_input_embeddings") if two else None) or _asked(
        model, "get_input_embeddings"
    )
    if found is not None:
        (point,) = path_point(model, found).points
        return path_point(model, HookPoint(point.module, call=0 if two else None))
    if len(embeddings) > 1:
        raise ValueError(
            "inputs holds integers only, which cannot be interpolated: name the embedding that they enter, path_from="
            + " or ".join(map(repr, embeddings))
        )
    return path_point(model, next(iter(embeddings))) if embeddings else None


def _asked(module: nn.Module | None, method: str) -> nn.Module | None:
    """The module that a method gives, if there is one."""
    try:
        found = getattr(module, method)()
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return found if isinstance(found, nn.Module) else None


def _run_once(model: Callable[..., Any], arguments: Arguments) -> None:
    """Run two of the examples, to see which taps there are."""
    count = _batch_of(arguments)
    args, kwargs = arguments.call(torch.arange(min(2, count)), count, {})
    with undisturbed(model, {}), torch.no_grad():
        model(*args, **kwargs)


def _begins(whole: Tensor, part: Tensor) -> bool:
    """Whether a tensor begins with another one."""
    return whole.shape[1:] == part.shape[1:] and torch.equal(whole[: len(part)], part)


def _in_place(moved: Mapping[Key, Tensor], point: HookPoint, tensor: Tensor) -> Tensor | None:
    """The moving tensor for a hook point."""
    new = moved.get(point.name)
    if new is None:
        return None
    if new.shape != tensor.shape:
        raise _differing(point.name, tensor, new)
    return new


def _batch_of(arguments: Arguments) -> int:
    """Number of examples: axis 0 of the first input tensor."""
    tensors = [arguments.entries[key] for key in arguments.candidates]
    for tensor in tensors:
        if isinstance(tensor, Tensor) and tensor.dim() > 0:
            if len(tensor) == 0:
                raise ValueError("inputs is an empty batch: axis 0 has length 0; expected at least one example")
            return len(tensor)
    raise ValueError("inputs holds no tensor with a batch axis; expected shape (batch, …)")


def _differing(name: Key, tensor: Tensor, other: Tensor) -> ConductanceError:
    return ConductanceError(
        f"path_from {name!r} gave shape {tuple(tensor.shape)} in one call and {tuple(other.shape)} in another: what "
        "comes before it depends on the other examples of a call; give examples of one length, or one at a time"
    )


def _changing(name: str) -> ConductanceError:
    return ConductanceError(
        f"path_from {name!r} runs more often for some examples than for others; give those apart, or name a call "
        f"({name}#0)"
    )
