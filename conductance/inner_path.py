"""Paths of a tensor inside the model: token embeddings, for inputs that are integers.

Token ids cannot be interpolated, but what an embedding makes of them can. The model is called with the ids as they
are; at the hook point the moving tensor takes the place of the one that was computed. Masks, lengths and all that the
model makes of the ids elsewhere stay those of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from conductance._failing import raise_failed
from conductance._telling import tell
from conductance.arguments import Arguments, Key, is_integer, is_moving, kind_of, repeated
from conductance.baselines import Baseline, named_keys, starts_of
from conductance.errors import ConductanceError
from conductance.hooks import HookPoint, LayerSpec, Selection, in_backward, path_point, substitute, undisturbed
from conductance.path import Rows, StraightPath, check_ends, several_of
from conductance.token_ids import TokenIds

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
        bare = isinstance(self._modules[self._points[0].module], nn.Embedding)
        ids = TokenIds(arguments, ends, self._at_point, self._entered, pad=self._pad(), bare=bare)
        starts = [ids.embedded(one) for one in several]
        chosen = named_keys(starts, list(ends), labels)
        ends = {key: ends[key] for key in chosen}
        check_ends(ends, labels)
        self._check_batch(ends, labels)
        self._set(arguments, ends, labels)
        self.starts = [starts_of(one, ends, labels) for one in starts]
        self.per_example = len(several)

    def given(self, examples: Tensor, moved: dict[Key, Tensor], leaves: list[Tensor]) -> Rows:
        """Model arguments for rows of some examples, with other tensors in place of those that move."""
        args, kwargs = self.arguments.call(examples, self.batch, {})
        return Rows(args, kwargs, leaves, partial(substitute, self._modules, self._points, partial(_in_place, moved)))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Refuse a model that runs the hook point's module again in the backward pass: nothing moves there then."""

        def refuse(_module: nn.Module, _args: Any) -> None:
            if in_backward():
                raise ConductanceError(
                    f"path_from {self._points[0].name!r} runs again in the backward pass (gradient checkpointing), "
                    "where the model goes on with what it computes there itself; switch checkpointing off, or choose a "
                    "hook point outside of the checkpointed block"
                )

        handle = self._modules[self._points[0].module].register_forward_pre_hook(refuse)
        try:
            yield
        finally:
            handle.remove()

    def _at_point(self, given: Mapping[Key, Any]) -> dict[Key, Tensor]:
        """The tensors at the hook point for all examples, of the arguments or of others in their place."""
        chunk = min(self._most or CHUNK, CHUNK)
        parts: list[dict[Key, Tensor]] = []
        for first in range(0, self._examples, chunk):
            examples = torch.arange(first, min(first + chunk, self._examples))
            entries = {key: repeated(value, examples, self._examples) for key, value in given.items()}
            parts.append(self._run(self.arguments.call(examples, self._examples, entries), [*given]))
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

    def _run(self, call: tuple[tuple[Any, ...], dict[str, Any]], given: list[Key]) -> dict[Key, Tensor]:
        """The tensors at the hook point in one call; notes the integers that entered its module in the first one."""
        found: dict[Key, Tensor] = {}
        entered: list[Tensor] = []

        def record(point: HookPoint, tensor: Tensor) -> None:
            if tensor.is_floating_point():
                found[point.name] = tensor.detach().clone()

        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entered.extend(one for one in (*args, *kwargs.values()) if isinstance(one, Tensor) and is_integer(one))

        entering = self._modules[self._points[0].module].register_forward_pre_hook(enter, with_kwargs=True)
        try:
            with torch.no_grad(), substitute(self._modules, self._points, record):
                self._model(*call[0], **call[1])
        except ValueError as error:
            if str(error).startswith(f"{self._points[0].name}:"):
                raise ValueError(f"path_from: {error}") from None
            raise
        except Exception as error:
            told = "baselines gave token ids for" if given else "inputs are"
            names = given or [key for key in self.arguments.entries if key in self.arguments.candidates]
            raise_failed(error, f"{told} {', '.join(f'inputs[{key!r}]' for key in names)}")
        finally:
            entering.remove()
        self._entered = self._entered or entered
        return found

    def _check_batch(self, ends: Mapping[Key, Tensor], labels: Mapping[Key, str]) -> None:
        for key, end in ends.items():
            if len(end) != self._examples:
                raise ValueError(
                    f"{labels[key]} gave a tensor of {len(end)} rows for {self._examples} examples: its axis 0 is not "
                    "the batch; choose a hook point behind which the batch is the first axis"
                )

    def _pad(self) -> int | None:
        """The padding token, as the model's configuration or the embedding tells."""
        config = getattr(self._model, "config", None)
        module = self._modules[self._points[0].module]
        found = (getattr(config, "pad_token_id", None), getattr(module, "padding_idx", None))
        return next((one for one in found if isinstance(one, int)), None)


def found_point(model: Callable[..., Any], arguments: Arguments, path_from: LayerSpec) -> Selection | None:
    """The hook point that a path moves: the one asked, the token embedding if no input can move, or None for inputs."""
    if path_from is not None:
        return path_point(model, path_from, partial(_run_once, model, arguments))
    if not arguments.integers() or not isinstance(model, nn.Module):
        return None
    moving = [key for key in arguments.candidates if is_moving(arguments.entries[key])]
    if moving:
        _warn_of_masks(arguments, moving)
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


def _warn_of_masks(arguments: Arguments, moving: list[Key]) -> None:
    """Warn where all that moves looks like masks of token ids."""
    shapes = {arguments.entries[key].shape for key in arguments.integers()}
    tensors = [arguments.entries[key] for key in moving]
    if all(one.shape in shapes and bool(((one == 0) | (one == 1)).all()) for one in tensors):
        tell(
            f"inputs[{moving[0]!r}] holds zeros and ones of floating point, so it is what moves along the path, while "
            f"inputs[{arguments.integers()[0]!r}], of integers, stays as it is; for the path of token embeddings give "
            "path_from= the embedding (a mask of integers or truth values does not move)",
            UserWarning,
            stacklevel=5,
        )


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
    given = ", ".join(f"inputs[{key!r}]: {kind_of(arguments.entries[key])}" for key in arguments.candidates)
    fixed = f", beside {sorted(map(repr, arguments.fixed))} in fixed" if arguments.fixed else ""
    raise ValueError(
        f"inputs holds no tensor with a batch axis (given {given or 'nothing'}{fixed}); expected token ids of shape "
        "(batch, tokens), such as torch.tensor(ids), in inputs"
    )


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
