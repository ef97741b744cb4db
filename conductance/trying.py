"""The first run of a model: what can be tapped, and whether its rows depend on themselves alone.

Everything rests on rows that do not know of each other: an example's rows share calls with those of any others. So two
rows are tried together, and then each beside copies of itself; if a row does not give the same again, the model is
random or mixes its rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from conductance._failing import mixing, not_rows, raise_failed, taken_for_batch, why_failing
from conductance._requests import PROBED
from conductance._telling import tell
from conductance.engine import check_rows
from conductance.errors import ConductanceError
from conductance.hooks import LayerSpec, Probe, Selection, names_run, probe_layers
from conductance.obstacles import check_not_reentrant, raise_meant
from conductance.path import Rows, StraightPath
from conductance.targeting import TargetFunction

#: Places of the two rows: they differ even where there is one example only.
PLACES = (1.0, 0.618)
#: Two runs differ if they do by more than this many roots of the rounding error, as part of the output's size.
DIFFERENT = 4.0


def tried(
    model: Callable[..., Any],
    layers: LayerSpec,
    path: StraightPath,
    function: TargetFunction,
    *,
    most: int,
    warn: bool | None,
) -> tuple[Selection, Probe]:
    """Run two rows to see what there is, and refuse what cannot be explained.

    Parameters
    ----------
    model, layers, path, function
        What is run, tapped and explained.
    most
        Rows that calls have at most, 0 for any number; where there are several, they must not influence each other.
    warn
        Warn of a model that is random or mixes its rows; False refuses it, None is for one known to be so.
    """
    trial = _Trial(model, path, function)
    paths = torch.tensor([0, path.count - 1], device=path.device)
    places = torch.tensor(PLACES, device=path.device)
    rows = path.rows(paths, places)
    first: list[Tensor] = []

    def run() -> Tensor:
        first.append(trial.run(rows, paths))
        return first[-1]

    # copies of the first row, in another number; not for a model whose calls are known to depend on chance
    copies = 3 if most == 0 or most > 2 else 1
    alone: list[Tensor] = []

    def again() -> Tensor:
        alone.append(trial.again(paths, places, [0] * copies))
        return alone[-1]

    other = None if warn is None else (copies, again)
    selection, found = probe_layers(model, layers, run, rows.leaves, rows=PROBED, again=other)
    check_not_reentrant(found.kinked)
    if not found.gradient_flows:
        raise ConductanceError(
            "the target does not depend on the inputs through differentiable operations: the model detaches its output "
            "(detach(), no_grad, numpy, argmax), or the target is a constant; explain the logits before that operation"
        )
    if warn is not None:
        trial.coarsest = max((info.dtype for info in found.points), key=_eps, default=path.dtype)
        reason = trial.impure(first[0].detach(), alone[0][0], paths, places, most)
        if reason and not warn:
            raise ConductanceError(f'{reason}, or pass on_train="warn" to go on')
        if reason:
            tell(reason, UserWarning, stacklevel=5)
    return selection, found


def that_ran(model: Callable[..., Any], selection: Selection, path: StraightPath) -> list[str]:
    """Names of the modules and taps that run, of a callable those of the ones that were asked."""
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else selection.modules
    first = torch.tensor([0, path.count - 1], device=path.device)
    rows = path.rows(first, torch.tensor(PLACES, device=path.device))
    return [name for name in names_run(modules, lambda: rows.through(model)) if name]


class _Trial:
    """Runs of a few rows, forward only."""

    def __init__(self, model: Callable[..., Any], path: StraightPath, function: TargetFunction) -> None:
        self.model, self.path, self.function = model, path, function
        self.coarsest = path.dtype
        self.size = 0.0
        self.ran = 0  # rows of the last call that the model ran on

    def run(self, rows: Rows, paths: Tensor) -> Tensor:
        """F of some rows; notes the size of the output."""
        count = len(paths)
        try:
            output = rows.through(self.model)
        except ConductanceError:
            raise
        except Exception as error:
            raise_meant(error)
            reason = why_failing(self.model, self.path, count, self.ran * (self.ran != count), error)
            if reason:
                raise ConductanceError(reason) from error
            raise_failed(error, taken_for_batch(self.path))
        self.ran = count
        value = self._explained(output, paths)
        for tensor in (value, output):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel():
                self.size = max(self.size, float(tensor.detach().abs().nan_to_num(0, 0).max()))
        return value

    def _explained(self, output: Any, paths: Tensor) -> Tensor:
        """The target's value; an error says what was taken for the batch."""
        value: Any = output
        try:
            value = self.function(output, paths // self.path.per_example)
            check_rows(value, len(paths))
        except ValueError as error:
            hint = not_rows(self.path, value, len(paths))
            if hint:
                raise ValueError(f"{error}{hint}") from error
            error.add_note(taken_for_batch(self.path))
            raise
        explained: Tensor = value
        return explained

    def again(self, paths: Tensor, places: Tensor, which: list[int]) -> Tensor:
        """F of some of the rows."""
        return self.run(self.path.rows(paths[which], places[which]), paths[which]).detach()

    def impure(self, first: Tensor, beside_copies: Tensor, paths: Tensor, places: Tensor, most: int) -> str:
        """Why F of a row is not a matter of that row alone; "" if it is.

        ``beside_copies`` is F of the first row in a call of copies of it, another number of rows than the first call's.
        """
        if most == 1:
            alone = self.again(paths, places, [0, 1])
        else:
            alone = torch.stack([beside_copies, self.again(paths, places, [1] * 2)[0]])
        if self._same(first, alone):
            return ""
        repeated = self.again(paths, places, [0, 1])
        if not self._same(first, repeated):
            return (
                f"the model is random: the same two rows gave {_told(first)}, and then {_told(repeated)} (dropout or "
                "noise that is on in eval mode, sampling); make it deterministic, such as by "
                "F.dropout(x, training=self.training) and model.eval()"
            )
        return (
            f"the rows of the model influence each other: two rows gave {_told(first)} together, and {_told(alone)} "
            "each beside copies of itself (normalising over the batch, a target or loss that compares rows, a decision "
            f"on the whole batch such as 'if x.sum() > 0'; {taken_for_batch(self.path)}); change the model so that "
            f"each row depends on itself only, pass internal_batch_size=1, which runs each row alone{mixing(self.path)}"
        )

    def _same(self, first: Tensor, second: Tensor) -> bool:
        coarsest = max(self.coarsest, first.dtype, key=_eps)
        allowed = DIFFERENT * _eps(coarsest) ** 0.5 * self.size
        return torch.allclose(first, second, rtol=0.0, atol=allowed, equal_nan=True)


def _eps(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).eps)


def _told(values: Tensor) -> str:
    return " and ".join(f"{value:.6g}" for value in values.tolist())
