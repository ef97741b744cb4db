"""Arguments as Captum takes them, checked and written as ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from conductance._telling import unwarned
from conductance.errors import check_choice
from conductance.targeting import TargetFunction, target_function

METHODS = ("riemann_right", "riemann_left", "riemann_middle", "riemann_trapezoid", "gausslegendre")
#: What grad_kwargs may ask for: unused tensors get zeros anyway, and no result keeps a graph.
GRADIENT_OPTIONS = ("allow_unused", "materialize_grads", "retain_graph")
#: A budget is spent until this much of the conductance is left in doubt.
RTOL = 1e-9
#: Fewer points of the path than this are laid out beforehand.
FEWEST = 5
#: Step of the inputs that stand beside those that move; a power of two, so that dividing by it is exact.
STEP = 2.0**-60


@dataclass(frozen=True)
class Given:
    """Inputs and what goes with them.

    Attributes
    ----------
    inputs, baselines
        One for each input.
    single
        Whether the inputs were a tensor by themselves.
    target
        As ours.
    extra
        Further positional arguments.
    converted
        Kinds of inputs that were no floating-point numbers.
    """

    inputs: tuple[Tensor, ...]
    baselines: tuple[Any, ...]
    single: bool
    target: Any
    extra: tuple[Any, ...]
    converted: tuple[str, ...]

    @property
    def function(self) -> TargetFunction:
        """The target as a function of outputs and the examples of their rows."""
        return target_function(self.target, len(self.inputs[0]))

    @property
    def arguments(self) -> dict[str, Any]:
        """What all quantities take."""
        return {"target": self.target, "baselines": self.baselines, "additional_forward_args": self.extra}


def given(inputs: Any, baselines: Any, target: Any, additional_forward_args: Any) -> Given:
    """Arguments of Captum's as ours.

    Raises
    ------
    TypeError, ValueError
        If inputs and baselines do not go together.
    """
    parts = (inputs,) if isinstance(inputs, Tensor) else inputs
    if not isinstance(parts, (tuple, list)) or not parts or not all(isinstance(one, Tensor) for one in parts):
        kind = (
            f"{type(inputs).__name__} of {', '.join(type(one).__name__ for one in inputs) or 'nothing'}"
            if (isinstance(inputs, (tuple, list)))
            else type(inputs).__name__
        )
        raise TypeError(f"inputs is a {kind}; expected a tensor or a tuple of tensors")
    if isinstance(baselines, (list, Mapping)):
        raise TypeError(
            f"baselines is a {type(baselines).__name__}; expected a number, a tensor, or a tuple with one for each "
            "input (several baselines to average over: conductance.total_conductance)"
        )
    converted = tuple(str(one.dtype) for one in parts if not (one.is_floating_point() or one.is_complex()))
    moving = tuple(
        one if one.is_floating_point() or one.is_complex() else one.to(torch.get_default_dtype()) for one in parts
    )
    each = baselines if isinstance(baselines, tuple) else (baselines,) * len(moving)
    if isinstance(baselines, Tensor) and len(moving) > 1:
        raise TypeError(f"baselines is one tensor for {len(moving)} inputs; give a tuple with one for each")
    if len(each) != len(moving):
        raise ValueError(f"baselines has {len(each)} entries for {len(moving)} inputs; give one for each")
    if isinstance(target, Tensor) and target.numel() == 1 and not target.is_floating_point():
        target = int(target)
    extra = () if additional_forward_args is None else additional_forward_args
    extra = extra if isinstance(extra, tuple) else (extra,)
    return Given(moving, each, isinstance(inputs, Tensor), target, extra, converted)


def check_options(method: Any, grad_kwargs: Any) -> None:
    """Refuse a method that is none of Captum's, and options of the gradient that results do not have."""
    check_choice("method", method, METHODS)
    if grad_kwargs is None:
        return
    if not isinstance(grad_kwargs, Mapping):
        raise TypeError(f"grad_kwargs is a {type(grad_kwargs).__name__}; expected a dict or None")
    unknown = [name for name in grad_kwargs if name not in GRADIENT_OPTIONS]
    if unknown:
        raise ValueError(
            f"grad_kwargs holds {', '.join(map(repr, unknown))}; expected {', '.join(GRADIENT_OPTIONS)}, none of which "
            "is needed: unused tensors get zeros, and results are detached (create_graph is not possible)"
        )


def budget(n_steps: Any, runs: int = 1) -> dict[str, Any]:
    """How points of the path are spent: where they are needed, if there are enough to choose.

    ``runs`` is how often each is run.
    """
    if isinstance(n_steps, int) and not isinstance(n_steps, bool) and n_steps >= FEWEST:
        return {"rtol": RTOL, "max_evaluations": runs * n_steps}
    if n_steps is None:
        raise TypeError("n_steps is None; expected a whole number of at least 2")
    return {"n_steps": n_steps}


@contextmanager
def quietly(converted: tuple[str, ...]) -> Iterator[None]:
    """Run without warnings of missed tolerances, for none was asked; errors say what became of integers."""
    token = unwarned.set(True)
    try:
        yield
    except Exception as error:
        if converted:
            error.add_note(
                f"inputs hold {', '.join(converted)} tensors, which move as floating-point numbers; token ids and "
                "other indices cannot: give their embeddings as inputs, or hand them over in additional_forward_args"
            )
        raise
    finally:
        unwarned.reset(token)


def beside(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """The same function with an input beside each of the first ``count``, which has its gradient but adds nothing."""

    def moved(*args: Any) -> Any:
        pairs = zip(args[:count], args[count : 2 * count], strict=True)
        return function(*(x + (u - u.detach()).to(x) for x, u in pairs), *args[2 * count :])

    return moved


def with_steps(those: Given) -> Given:
    """The inputs, and beside each one of its shape that moves by a step."""
    steps = tuple(
        torch.full_like(one, STEP, dtype=torch.promote_types(one.dtype, torch.float32)) for one in those.inputs
    )
    return replace(those, inputs=those.inputs + steps, baselines=those.baselines + (0.0,) * len(steps))
