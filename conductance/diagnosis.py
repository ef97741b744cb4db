"""Why conductances are zero: which of the known causes it is, found on a few rows after the run.

A zero can be right (a layer that the target does not use) or a slip (probabilities explained where they are saturated,
a detach in the model), and the numbers do not tell which. So a few examples are looked at once more: what moves along
their paths, what has a gradient, and which operator stands right before the target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import Node

from conductance._findings import Finding
from conductance._telling import tell
from conductance.collecting import Collector
from conductance.engine import Engine
from conductance.errors import ZeroConductanceWarning
from conductance.hooks import HookPoint, PointInfo, substitute

#: Places of the path that are looked at, inside it: a kink may sit at an end.
PLACES = (0.02, 0.382, 0.71, 0.98)
#: Examples that are looked at, at most.
EXAMPLES = 4
#: A target that changes by less than this, as part of 1 or of itself, may be a saturated probability …
SMALL = 1e-3
#: … and is one if its probabilities are this close to 0 and 1 at all places.
SATURATED = 1e-3

#: Changes of an activation by less than this many roundings are those of products of other numbers of rows.
ROUNDINGS = 16.0

_SATURATING = {"Softmax": "softmax", "LogSoftmax": "log-softmax", "Sigmoid": "sigmoid", "Tanh": "tanh"}
#: Operators that stand before the logits: the search for a saturated one ends there.
_WEIGHTED = ("Addmm", "Mm", "Bmm", "Baddbmm", "Convolution", "MkldnnLinear", "Linear", "Embedding", "ScaledDot")


def diagnosed(engine: Engine, taken: Collector, rows: int) -> list[dict[str, Any]]:
    """Look for the causes of zeros in a finished run, and warn where an example has nothing else.

    Parameters
    ----------
    engine
        Runs the rows, in calls of at most ``rows`` rows.
    taken
        The results.
    rows
        Rows of a call at most.

    Returns
    -------
    list
        The findings as a result keeps them in its settings, those about the target first.
    """
    known = np.array([status != "interrupted" for status in taken.status])
    zero = np.array([~_any(values) for values in taken.conductance]) & known
    small = _small(taken) & known
    odd = zero.all(0) | small
    at = [*np.flatnonzero(odd)[:EXAMPLES], *np.flatnonzero(zero.any(0) & ~odd)[: EXAMPLES // 2]]
    found: dict[tuple[str, str], tuple[dict[str, None], list[int]]] = {}
    for example in map(int, at):
        for cause, text, layer in _causes(engine, example, zero[:, example], bool(odd[example]), rows):
            layers, examples = found.setdefault((cause, text), ({}, []))
            layers.update({layer: None} if layer else {})
            examples.append(example)
    findings = [Finding(*key, tuple(layers), tuple(dict.fromkeys(seen))) for key, (layers, seen) in found.items()]
    findings.sort(key=lambda one: bool(one.layers))
    _warn(findings, zero.all(0), small, int(known.sum()))
    return [asdict(one) for one in findings]


def _warn(findings: Sequence[Finding], zero: Any, small: Any, count: int) -> None:
    """Warn if examples have no conductance anywhere: of slips always, of what single ones may well be if all are."""
    grave = [one for one in findings if not one.layers or any(zero[n] for n in one.examples)]
    of_target = any(not one.layers for one in grave)
    many = int((zero | small if of_target else zero).sum())
    told = grave if many == count else [one for one in grave if one.cause not in _MAY_WELL_BE]
    if told and many:
        tell(
            f"no conductance in any of the layers asked, for {many} of {count} examples. "
            + "; ".join(map(str, told[:3])),
            ZeroConductanceWarning,
            stacklevel=4,
        )


def _any(values: Tensor) -> Any:
    return values.flatten(1).any(1).cpu().numpy() if values.dim() > 1 else values.bool().cpu().numpy()


def _small(taken: Collector) -> Any:
    """Examples of which neither the target nor any layer's conductance is of the size that probabilities have."""
    allowed = SMALL * np.maximum(1.0, np.abs(taken.output))
    small = np.abs(taken.output - taken.baseline_output) <= allowed
    for example in np.flatnonzero(small):
        sizes = (float(values[example].abs().sum()) for values in taken.conductance)
        small[example] = all(size <= allowed[example] for size in sizes)
    return small


# ---- one example

_STILL = ("input is its baseline", "nothing moves on a path of no length; choose another baseline")
_CONSTANT = (
    "constant target",
    "the target is the same at all points looked at and has no gradient at the inputs; choose another target, or "
    "another baseline",
)
_FLAT = (
    "no gradient",
    "the target changes along the path, but its gradient at the inputs is zero (detach(), rounding, argmax, a step "
    "function); explain the numbers before that operation",
)


#: What is no slip in single examples of many: a dead unit explained, an example that is its own baseline.
_MAY_WELL_BE = {_STILL[0], _CONSTANT[0], "still layer", "nothing passes", "zero gradient", "layer not run"}


def _causes(engine: Engine, example: int, zero: Any, odd: bool, rows: int) -> Iterator[tuple[str, str, str]]:
    """Cause, text and layer (none for the target's causes) of the zeros of one example."""
    if bool(engine.path.still[example]):
        yield *_STILL, ""
        return
    seen = _Seen(engine, example * engine.path.per_example, rows)
    if odd:
        of_target = _of_target(seen)
        if of_target:
            yield *of_target, ""
            return
    for number, info in enumerate(engine.points):
        if zero[number]:
            yield *_of_layer(seen, number, info), info.name


def _of_target(seen: _Seen) -> tuple[str, str] | None:
    if seen.saturated:
        kind = seen.saturated
        extremes = "-1 and 1" if kind == "tanh" else "0 and 1"
        return (
            f"saturated {kind}",
            f"the {kind} before the target is within {SATURATED:g} of {extremes} at all points looked at, so that the "
            f"target hardly changes whatever its input does; explain what goes into the {kind} (the logits)",
        )
    if seen.slope:
        return None
    return _FLAT if np.ptp(seen.output) > 0 else _CONSTANT


def _of_layer(seen: _Seen, number: int, info: PointInfo) -> tuple[str, str]:
    if not seen.reached[number]:
        return "layer not run", "does not run for these rows"
    if not seen.moves[number]:
        return "still layer", "its activation is the same at all points looked at: nothing that moves reaches it"
    if not seen.in_graph[number]:
        return (
            "gradient cut",
            "its activation moves with the input, but the gradient is cut before it (detach(), no_grad, .data, numpy, "
            "argmax, integers); results leave that way out",
        )
    if seen.gradient[number]:
        return "nothing passes", "no unit both moves and has a gradient"
    if seen.linked[number]:
        return (
            "zero gradient",
            "the target's gradient there is zero at all points looked at: what follows is off (dead or saturated "
            "units, a step function such as rounding), or what it adds cancels",
        )
    if seen.matters(info.point):
        return (
            "gradient cut",
            "another activation in its place changes the target, but the gradient is cut behind it (detach(), no_grad, "
            ".data, numpy, argmax)",
        )
    return "unused layer", "the target does not use it: another activation in its place does not change the target"


class _Seen:
    """What a few rows of one path show of each point: whether it moves, and has a gradient."""

    def __init__(self, engine: Engine, path: int, rows: int) -> None:
        self._engine = engine
        self._path = path
        self._rows = rows
        count = len(engine.points)
        self.reached, self.in_graph, self.moves, self.linked, self.gradient = np.zeros((5, count), dtype=bool)
        self.slope = False
        kinds: list[str] = []
        outputs: list[Any] = []
        first: dict[int, Tensor] = {}
        for paths, alphas in self._calls():
            held = engine.hold(paths, alphas)
            watched = _Watched(held.output)
            outputs.append(held.output.detach().cpu().double().numpy())
            _, gradients = held.backward()
            leaves = torch.autograd.grad(held.output.sum(), held.leaves, allow_unused=True)
            kinds.append(watched.saturated())
            self.slope |= any(one is not None and bool(one.any()) for one in leaves)
            for number, (tensor, gradient) in enumerate(zip(held.tensors, gradients, strict=True)):
                if tensor is None:
                    continue
                values = tensor.detach().movedim(engine.points[number].point.batch_axis, 0)
                self.reached[number] = True
                self.in_graph[number] |= tensor.requires_grad
                start = first.setdefault(number, values[:1].clone())
                allowed = ROUNDINGS * torch.finfo(values.dtype).eps * values.abs().amax() if values.numel() else 0.0
                self.moves[number] |= bool(((values - start).abs() > allowed).any())
                self.linked[number] |= gradient is not None
                self.gradient[number] |= gradient is not None and bool(gradient.any())
        self.output = np.concatenate(outputs)
        self.saturated = kinds[0] if all(kinds) else ""

    def _calls(self) -> Iterator[tuple[Any, Any]]:
        size = max(1, min(self._rows, len(PLACES)))
        for start in range(0, len(PLACES), size):
            alphas = np.array(PLACES[start : start + size])
            yield np.full(len(alphas), self._path), alphas

    def matters(self, point: HookPoint) -> bool:
        """Whether F is another where the point's tensor is another."""

        def shifted(_point: HookPoint, tensor: Tensor) -> Tensor:
            return tensor + tensor.abs().amax().clamp(min=1.0)

        with substitute(self._engine.modules, [point], shifted):
            again = [self._engine.forward(paths, alphas) for paths, alphas in self._calls()]
        size = float(np.abs(self.output).max())
        rounding = torch.finfo(self._engine.path.dtype).eps ** 0.5 * max(1.0, size)
        return not np.allclose(np.concatenate(again), self.output, rtol=0.0, atol=rounding, equal_nan=True)


# ---- what stands before the target


class _Watched:
    """The operators right before the target that may be saturated; judged in the backward pass.

    Only what the target depends on counts: of many probabilities the one that is explained.
    """

    def __init__(self, output: Tensor) -> None:
        self._saturated: dict[str, bool] = {}
        for node in _before_weights(output.grad_fn):
            if _operator(node) in _SATURATING and isinstance(getattr(node, "_saved_result", None), Tensor):
                node.register_prehook(partial(self._judge, node, _operator(node)))

    def _judge(self, node: Any, kind: str, gradients: tuple[Tensor, ...]) -> None:
        away, counts = _away(kind, node, node._saved_result.detach(), gradients[0] != 0)
        if bool(counts.any()):
            self._saturated.setdefault(kind, bool((away[counts] <= SATURATED).all()))

    def saturated(self) -> str:
        """Name of the operator nearest to the target that is saturated, "" if there is none."""
        return next((_SATURATING[kind] for kind, found in self._saturated.items() if found), "")


def _operator(node: Node) -> str:
    return node.name().rpartition("::")[2].partition("Backward")[0]


def _before_weights(start: Node | None) -> Iterator[Node]:
    """Walk the nodes behind the target, nearest first, as far as the layers that make logits."""
    seen, queue = {start}, [start]
    while queue:
        node = queue.pop(0)
        if node is None:
            continue
        yield node
        if not node.name().startswith(_WEIGHTED):
            for below, _ in node.next_functions:
                if below not in seen:
                    seen.add(below)
                    queue.append(below)


def _away(kind: str, node: Node, result: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """How far results are from their extremes, and which of them count; a softmax has one for each distribution."""
    if kind in ("Softmax", "LogSoftmax"):
        dim = int(getattr(node, "_saved_dim", -1))
        dim = dim - (1 << 64) if dim >= 1 << 63 else dim  # told as an unsigned number
        largest = result.amax(dim)
        return 1 - (largest.exp() if kind == "LogSoftmax" else largest), counts.any(dim)
    return (torch.minimum(result, 1 - result) if kind == "Sigmoid" else 1 - result.abs()), counts
