"""One batched pass: rows of many paths in, activation and gradient of every hook point out.

A row is one node of one path. All rows of a call go through the model together, and all hook points are served by
its one backward pass; each tensor is handed to the consumer the moment its gradient exists. The engine knows nothing
of the quantity that is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import forward_ad

from conductance.errors import ConductanceError
from conductance.hooks import HookPoint, PointInfo, capture, hold
from conductance.path import Rows, StraightPath
from conductance.sums import wide_dtype
from conductance.targeting import TargetFunction

#: Receives the number of the point, its activation and its gradient, both (rows, …) with the batch axis first.
Consumer: TypeAlias = Callable[[int, Tensor, Tensor], None]
#: Takes the same and gives another activation and gradient.
Change: TypeAlias = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Nodes:
    """What is known of each row after a call, on the host in float64.

    Attributes
    ----------
    output
        F of each row, shape ``(rows,)``.
    slope
        ``dF/da`` of each row: the leaf's gradient times ``x - x'``.
    """

    output: NDArray[np.float64]
    slope: NDArray[np.float64]


@dataclass(frozen=True)
class Held:
    """Rows run forward, with the autograd graph between their tensors.

    Attributes
    ----------
    output
        F of each row, shape ``(rows,)``.
    tensors
        Tensor of each point, or None where the point was not reached.
    leaves, directions
        What moves, and ``x - x'`` of each row, one tensor ``(rows, …)`` for each moving input.
    """

    output: Tensor
    tensors: list[Tensor | None]
    leaves: list[Tensor]
    directions: list[Tensor]

    def backward(self) -> tuple[Nodes, list[Tensor | None]]:
        """F and its slope along the path at every row, and F's gradient at every point; the graph stays."""
        there = [tensor for tensor in self.tensors if tensor is not None and tensor.requires_grad]
        wanted = [*self.leaves, *there]
        found = torch.autograd.grad(self.output.sum(), wanted, retain_graph=True, allow_unused=True)
        slope = torch.zeros(len(self.output), dtype=wide_dtype(self.output.device), device=self.output.device)
        for gradient, direction in zip(found, self.directions, strict=False):
            if gradient is not None:
                product = gradient.to(slope.dtype) * direction.to(slope.dtype)
                slope += product.reshape(len(slope), -1).sum(1).to(slope.device)
        at_points = iter(found[len(self.leaves) :])
        gradients = [next(at_points) if one is not None and one.requires_grad else None for one in self.tensors]
        return Nodes(_on_host(self.output), _on_host(slope)), gradients


class Engine:
    """Runs rows of a path through a model and serves every hook point.

    Parameters
    ----------
    model
        The model, or any callable that runs the modules.
    modules
        The modules of the points by name.
    points
        What is tapped, from a probe. The leaves follow as further points: point ``len(points) + i`` is the i-th
        moving input.
    path
        The path that rows lie on.
    target
        Reduces a model output to one number a row.
    fewest
        Rows that a call of the model needs at least; fewer are filled up with copies, which nothing is told of.
    change
        Makes of a point's activation and gradient, rows first, those that the consumer gets: another basis.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        modules: Mapping[str, nn.Module],
        points: Sequence[PointInfo],
        path: StraightPath,
        target: TargetFunction,
        fewest: int = 1,
        change: Change | None = None,
    ) -> None:
        self.model = model
        self.points = tuple(points)
        self.path = path
        self.target = target
        self.fewest = fewest
        self.change = change
        self.evaluations = 0
        self.ran: Callable[[int], None] | None = None  # told the evaluations so far, after each call
        self._delivered: set[int] | None = None
        root = {"": model} if isinstance(model, nn.Module) else {}
        self.modules = {**modules, **root}
        self._numbers = {info.point: number for number, info in enumerate(points)}
        self._clone = [info.point for info in points if info.in_place]

    def run(self, paths: NDArray[np.int64], alphas: NDArray[np.float64], consumer: Consumer) -> Nodes:
        """Run rows forward and backward.

        Parameters
        ----------
        paths, alphas
            Path and place of each row, shape ``(rows,)``.
        consumer
            Called for every tapped tensor that the target depends on, in the order of the backward pass, the
            leaves last.

        Returns
        -------
        Nodes
            F and its slope along the path at every row.
        """
        which, rows = self._rows(paths, alphas, fewest=self.fewest)
        count, ran = len(paths), len(which)
        wide = wide_dtype(which.device)
        delivered: set[int] = set()

        def hand_over(number: int, activation: Tensor, gradient: Tensor) -> None:
            delivered.add(number)
            pair = activation[:count], gradient[:count]
            if self.change is not None and number < len(self.points):
                pair = self.change(number, *pair)
            consumer(number, *pair)

        def deliver(point: HookPoint, activation: Tensor, gradient: Tensor) -> None:
            number = self._numbers.get(point)
            if number is None:
                raise ConductanceError(
                    f"layer {point.name!r} ran, but not when the model was tried first: the model's control flow "
                    "depends on its data, so that rows differ in what they run; leave the layer out"
                )
            axis = point.batch_axis
            _check_rows_of(self.points[number], activation, ran)
            hand_over(number, activation.movedim(axis, 0), gradient.movedim(axis, 0))

        with capture(self.modules, list(self._numbers), deliver, clone=self._clone):
            output = self.target(rows.through(self.model), which // self.path.per_example)
            check_rows(output, ran)
            gradients = torch.autograd.grad(output[:count].sum(), rows.leaves, allow_unused=True)
        slope = torch.zeros(count, dtype=wide, device=which.device)
        found = zip(rows.leaves, gradients, self.path.directions(which), strict=True)
        for number, (leaf, gradient, direction) in enumerate(found, len(self.points)):
            if gradient is None:
                continue
            product = (gradient.to(wide) * direction.to(wide))[:count]
            slope += product.reshape(count, -1).sum(1).to(which.device)
            hand_over(number, leaf.detach(), gradient)
        self._check_graph(delivered)
        self.evaluations += count
        if self.ran is not None:
            self.ran(self.evaluations)
        return Nodes(_on_host(output[:count]), _on_host(slope))

    def _check_graph(self, delivered: set[int]) -> None:
        """Refuse a model of which other tensors receive gradients than in the first call."""
        if self._delivered is None:
            self._delivered = delivered
        for number in sorted(self._delivered ^ delivered):
            leaf = number - len(self.points)
            told = f"layer {self.points[number].name!r}" if leaf < 0 else self.path.labels[self.path.moving[leaf]]
            raise ConductanceError(
                f"the model's graph changes between calls: {told} receives a gradient in some calls but not in others "
                "(control flow that depends on the data), so that its conductance along a path is not known; leave it "
                "out, or write the decision with torch.where"
            )

    def forward(self, paths: NDArray[np.int64], alphas: NDArray[np.float64]) -> NDArray[np.float64]:
        """F of rows that are run forward only, ``(rows,)``; with gradients on, so that the same kernels run."""
        which, rows = self._rows(paths, alphas, fewest=self.fewest)
        output = self.target(rows.through(self.model), which // self.path.per_example)
        check_rows(output, len(which))
        return _on_host(output[: len(paths)])

    def hold(self, paths: NDArray[np.int64], alphas: NDArray[np.float64]) -> Held:
        """Run rows forward and hold every point's tensor in the autograd graph, to differentiate from and to it."""
        which, rows = self._rows(paths, alphas)
        return self._held(which, rows)

    def push(
        self, paths: NDArray[np.int64], alphas: NDArray[np.float64], tangents: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Push tangents of the leaves forward: the tangent of each point, or None where it has none.

        Raises
        ------
        NotImplementedError, RuntimeError
            If an operator has no forward derivative.
        """
        with torch.no_grad(), forward_ad.dual_level():
            which, rows = self._rows(paths, alphas, tangents)
            held = self._held(which, rows)
            return [None if one is None else forward_ad.unpack_dual(one).tangent for one in held.tensors]

    def _held(self, which: Tensor, rows: Rows) -> Held:
        with hold(self.modules, list(self._numbers), clone=self._clone) as held:
            output = self.target(rows.through(self.model), which // self.path.per_example)
        check_rows(output, len(which))
        tensors = [held.tensors.get(info.point) for info in self.points]
        for info, tensor in zip(self.points, tensors, strict=True):
            if tensor is not None:
                _check_rows_of(info, tensor, len(which))
        return Held(output, tensors, rows.leaves, self.path.directions(which))

    def _rows(
        self,
        paths: NDArray[np.int64],
        alphas: NDArray[np.float64],
        tangents: Sequence[Tensor] | None = None,
        fewest: int = 1,
    ) -> tuple[Tensor, Rows]:
        """Path of each row, and the rows: as many as are asked, then copies up to the fewest that a call needs."""
        device = self.path.device
        filled = np.minimum(np.arange(max(len(paths), fewest)), len(paths) - 1)
        which = torch.as_tensor(paths[filled], device=device)
        places = torch.as_tensor(alphas[filled]).to(device=device, dtype=wide_dtype(device))
        return which, self.path.rows(which, places, tangents)

    def diagnose(self, paths: NDArray[np.int64], alphas: NDArray[np.float64]) -> str:
        """Say where NaN or infinity first appears on rows known to hold one; a sentence for an error."""
        forward: list[str] = []
        backward: list[str] = []

        def activation(point: HookPoint, tensor: Tensor) -> None:
            if not bool(torch.isfinite(tensor).all()):
                forward.append(point.name)

        def gradient(point: HookPoint, _: Tensor, tensor: Tensor) -> None:
            if not bool(torch.isfinite(tensor).all()):
                backward.append(point.name)

        which, rows = self._rows(paths, alphas)
        points = list(self._numbers)
        with capture(self.modules, points, gradient, clone=self._clone, on_activation=activation):
            output = self.target(rows.through(self.model), which // self.path.per_example)
            if not forward:
                torch.autograd.grad(output.sum(), rows.leaves, allow_unused=True)
        if forward:
            return f"the activation of layer {forward[0]!r} holds NaN or infinity"
        if not bool(torch.isfinite(output).all()):
            return "the target is NaN or infinity although the activations of the layers asked are finite"
        if backward:
            return f"the gradient at layer {backward[0]!r} holds NaN or infinity, its activation does not"
        return "the gradient at the inputs holds NaN or infinity, at the layers asked it does not"


def check_rows(output: Tensor, rows: int) -> None:
    """Refuse a target that is not one number a row."""
    if tuple(output.shape) != (rows,):
        raise ValueError(
            f"target gave shape {tuple(output.shape)} for {rows} rows; expected ({rows},): the model must keep its "
            "rows apart and the target must give one number for each"
        )


def check_finite(points: Sequence[PointInfo], scale: NDArray[np.float64]) -> None:
    """Refuse layers whose conductance is not finite though F and its slope are; ``scale (examples, points)``."""
    bad = [info.name for column, info in enumerate(points) if not np.isfinite(scale[:, column]).all()]
    if bad:
        raise ConductanceError(
            f"layer {bad[0]!r} holds NaN or infinity that the target does not show (a mask of minus infinity, an "
            "overflow); leave this layer out" + (f", and {', '.join(map(repr, bad[1:4]))}" if len(bad) > 1 else "")
        )


def non_finite(engine: Engine, paths: NDArray[np.int64], alphas: NDArray[np.float64]) -> ConductanceError:
    """The error for rows whose target or gradient is not finite: says where, at which place of which example."""
    example = int(paths[0]) // engine.path.per_example
    return ConductanceError(
        f"{engine.diagnose(paths[:1], alphas[:1])} (example {example}, at {alphas[0]:.6g} of the path from baseline to "
        "input); choose a baseline at which the model is well defined, or a target before the operation that overflows"
    )


def _check_rows_of(info: PointInfo, tensor: Tensor, rows: int) -> None:
    """Refuse a tensor that has another shape than the one of the first call, up to the number of rows."""
    axis = info.point.batch_axis
    expected = (*info.shape[:axis], rows, *info.shape[axis + 1 :])
    if tuple(tensor.shape) == expected:
        return
    raise ConductanceError(
        f"layer {info.name!r} gave a tensor of shape {tuple(tensor.shape)} for {rows} rows, where {expected} was "
        "expected: its shape depends on what the rows hold, so that its values cannot be told apart by example "
        "(sequences padded to the longest of a call: give pad_packed_sequence a total_length; tokens sorted by "
        "expert); leave this layer out"
    )


def _on_host(values: Tensor) -> NDArray[np.float64]:
    result: NDArray[np.float64] = values.detach().to("cpu").double().numpy()
    return result
