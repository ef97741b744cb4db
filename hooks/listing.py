"""A table of everything in a model that can be tapped."""

import html
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from conductance.hooks._trees import tensors
from conductance.hooks.naming import check_names
from conductance.hooks.points import HookPoint
from conductance.hooks.probing import PointInfo, Probe, probe
from conductance.hooks.replacing import path_point, substitute
from conductance.hooks.selecting import LayerSpec, Selection, select_all
from conductance.hooks.surroundings import undisturbed, usable_by_autograd
from conductance.hooks.tapping import taps_called

Inputs: TypeAlias = "Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]"
Target: TypeAlias = int | Callable[[Any], Tensor] | None

_COLUMNS = ("name", "class", "calls", "shape", "batch axis", "unit axis", "cut")


class PointTable(tuple[PointInfo, ...]):
    """Hook points of a model, a tuple of `PointInfo` that prints as a table.

    The column *batch axis* is that of the examples, *none* where the values cannot be told apart by example
    (`PointInfo.unbatched` says why). The column *cut* says yes or no, *together* for a tensor that is a cut only
    with the other tensors of its output, *unused* where the target does not depend on it, *constant* where nothing
    that moves reaches it, *shared* for a view that has no gradient of its own (`PointInfo.shared` says why).
    """

    __slots__ = ()

    def rows(self) -> list[tuple[str, ...]]:
        """Give the cells of the table, as text."""
        cut_alone = {_output(info) for info in self if info.is_cut}
        return [_row(info, together=_output(info) not in cut_alone) for info in self]

    def __repr__(self) -> str:
        table = [_COLUMNS, *self.rows()]
        widths = [max(len(row[column]) for row in table) for column in range(len(_COLUMNS))]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{column}</th>" for column in _COLUMNS)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows()
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _output(info: PointInfo) -> HookPoint:
    """Give what all tensors of one output have in common."""
    return HookPoint(info.point.module, call=info.point.call, side=info.point.side)


def _row(info: PointInfo, *, together: bool) -> tuple[str, ...]:
    if info.is_cut is None:
        cut = "–"
    elif info.shared:
        cut = "shared"
    elif not info.used:
        cut = "unused"
    elif not info.moves:
        cut = "constant"
    else:
        cut = "yes" if info.is_cut else "together" if info.set_is_cut and together else "no"
    shape = "×".join(map(str, info.shape)) or "scalar"
    batch = "none" if info.unbatched else str(info.point.batch_axis)
    return info.name, info.module_type, str(info.calls), shape, batch, str(info.point.unit_axis), cut


def list_points(model: nn.Module, inputs: Inputs, *, target: Target = None, path_from: LayerSpec = None) -> PointTable:
    """List the hook points of a model: every module and tap that runs on these inputs, and each tensor it gives.

    Parameters
    ----------
    model
        The model. It is run on the inputs, and with one more example to see which axes are those of the examples; all
        that once more where it calls `tap`. It is left as it was: its buffers and the state of random numbers too.
    inputs
        A tensor, a tuple of positional inputs, or a mapping of keyword inputs. Tensors of floating-point
        numbers are what moves.
    target
        What a cut is relative to: an int for ``output[:, target]`` (of the output's ``logits`` if it has
        such), a callable of the output, or `None` for all numbers in the output.
    path_from
        A point whose output moves instead of the inputs, such as a token embedding.

    Returns
    -------
    PointTable
        In the order in which the tensors are made.

    Raises
    ------
    TypeError
        The model is not a module, or inputs or target are of another type.
    ValueError
        `path_from` is not one hook point that runs.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> list_points(model, torch.ones(5, 3), target=0)
    name     class       calls  shape  batch axis  unit axis  cut
    0        Linear      1      5×4    0           1          yes
    1        ReLU        1      5×4    0           1          yes
    2        Linear      1      5×2    0           1          yes
    (model)  Sequential  1      5×2    0           1          yes
    """
    if not isinstance(model, nn.Module):
        msg = f"list_points: model is a torch.nn.Module, got {type(model).__name__}"
        raise TypeError(msg)
    args, kwargs, leaves = _moving(inputs, fixed=path_from is not None)
    modules = select_all(model).modules

    def run() -> Tensor:
        return _scalar(model(*args, **kwargs), target)

    injection = _injection(model, path_from, leaves, lambda: model(*args, **kwargs))
    with undisturbed(model, {}, frozen=False), injection:
        batch = _batch(args, kwargs)
        more = None if batch is None else (batch + 1, _with_one_more(model, args, kwargs, batch))

        def seen(modules: dict[str, nn.Module]) -> Probe:
            every = Selection(modules, tuple(map(HookPoint, modules)))
            try:
                return probe(model, every, run, leaves, rows=batch, again=more)
            except Exception:  # the model takes this number of examples only, or the error comes again
                return probe(model, every, run, leaves, rows=batch)

        with taps_called() as taps:
            found = seen(modules)
        if taps:
            check_names(model, taps)
            found = seen({**modules, **taps})
    if path_from is not None and not leaves:
        msg = f"path_from: {path_from!r} never ran, or gives no tensor of floating-point numbers"
        raise ValueError(msg)
    return PointTable(found.points)


def _moving(inputs: Inputs, *, fixed: bool) -> tuple[tuple[Any, ...], dict[str, Any], list[Tensor]]:
    """Positional and keyword inputs with leaves in place of the tensors that move, and the leaves."""
    leaves: list[Tensor] = []
    inputs = usable_by_autograd(inputs)

    def moving(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if fixed or not value.is_floating_point():
            return value
        leaves.append(value.detach().requires_grad_())
        return leaves[-1].clone()

    with torch.inference_mode(False), torch.enable_grad():
        if isinstance(inputs, Mapping):
            return (), {key: moving(value) for key, value in inputs.items()}, leaves
        if isinstance(inputs, Tensor):
            return (moving(inputs),), {}, leaves
        if isinstance(inputs, tuple | list):
            return tuple(map(moving, inputs)), {}, leaves
    kind = type(inputs).__name__
    msg = f"inputs: expected a tensor, a tuple or a mapping of keywords, got {kind}"
    raise TypeError(msg)


def _batch(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    """Give the number of examples, by the first tensor that moves, else by the first one."""
    values = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.ndim > 0]
    values.sort(key=lambda value: not value.is_floating_point())
    return values[0].shape[0] if values else None


def _with_one_more(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: int
) -> Callable[[], None]:
    """Give what runs the model with the first example twice."""

    def longer(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == batch:
            return torch.cat([value, value[:1]])
        return value

    def run() -> None:
        model(*map(longer, args), **{name: longer(value) for name, value in kwargs.items()})

    return run


def _scalar(output: Any, target: Target) -> Tensor:
    """Give the number whose graph is asked."""
    if target is None:
        parts = [tensor.sum() for _, tensor in tensors(output) if tensor.is_floating_point()]
        if not parts:
            msg = "target: the output has no tensor of floating-point numbers; give a callable"
            raise ValueError(msg)
        return torch.stack([part.to(parts[0]) for part in parts]).sum()
    if callable(target):
        result = target(output)
        if not isinstance(result, Tensor):
            msg = f"target: the callable returned {type(result).__name__}, expected a tensor"
            raise TypeError(msg)
        return result
    if not isinstance(target, int) or isinstance(target, bool):
        msg = f"target: expected an int, a callable or None, got {type(target).__name__}"
        raise TypeError(msg)
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    logits = output if isinstance(output, Tensor) else logits
    if not isinstance(logits, Tensor):
        kind = type(output).__name__
        msg = f"target: an int needs a tensor or .logits as output, got {kind}; give a callable"
        raise TypeError(msg)
    if logits.ndim < 2 or not -logits.shape[1] <= target < logits.shape[1]:
        expected = f"an index from 0 to {logits.shape[1] - 1}" if logits.ndim > 1 else "None or a callable"
        msg = f"target: {target} is out of range for an output of shape {tuple(logits.shape)}; expected {expected}"
        raise ValueError(msg)
    return logits[:, target]


def _injection(
    model: nn.Module, path_from: LayerSpec, leaves: list[Tensor], run: Callable[[], Any]
) -> AbstractContextManager[Any]:
    """Make the tensor at a point a leaf, each time the model runs."""
    if path_from is None:
        return nullcontext()

    def leaf(_point: HookPoint, tensor: Tensor) -> Tensor | None:
        if not tensor.is_floating_point():
            return None
        leaves.append(tensor.detach().requires_grad_())
        return leaves[-1].clone()

    return substitute(model, path_point(model, path_from, run).points, leaf)
