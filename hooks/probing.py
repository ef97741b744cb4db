"""One run of a model that finds out what can be tapped: what runs, how often, its tensors, and the cuts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from conductance.hooks._recording import Place, Recorder, Seen, copied_views
from conductance.hooks._trees import written
from conductance.hooks.batching import PACKED, Sizes, examples_axis, module_batch_axis
from conductance.hooks.points import HookPoint
from conductance.hooks.selecting import Selection
from conductance.hooks.structure import Edge, GraphView
from conductance.hooks.units import beside, module_unit_axis, producer_unit_axis

#: Why a view has no gradient of its own.
SHARED = (
    "is a view that the model modifies in place while its base is used elsewhere, so that the gradient before the "
    "modification is lost and a copy in its place changes the target; tap the base, or let the model modify a clone"
)


@dataclass(frozen=True)
class PointInfo:
    """What a probe found at one hook point.

    Attributes
    ----------
    point
        The concrete point: its call is set if the module ran more than once, its index if the output is not a
        bare tensor, its axes of examples and units always (not negative).
    module_type
        Class of the module.
    calls
        How often the module ran.
    shape, dtype, device
        Of the tensor, in the probe.
    is_cut
        Whether every way from the leaves to the target crosses this tensor; None without a target that
        depends on them.
    set_is_cut
        The same for all tensors of this output (or input) together; like `is_cut` for a bare tensor.
    used
        Whether the target depends on the tensor.
    moves
        Whether the tensor depends on a leaf.
    in_place
        Whether the model modifies the tensor in place after the tap, so that a capture must clone it.
    unbatched
        Why its values cannot be told apart by example; empty where they can, or where it was not asked.
    shared
        Why it has no gradient of its own: a view that is modified in place while its base is used elsewhere. Empty
        otherwise.
    """

    point: HookPoint
    module_type: str
    calls: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    is_cut: bool | None
    set_is_cut: bool | None
    used: bool
    moves: bool
    in_place: bool
    unbatched: str = ""
    shared: str = ""

    @property
    def name(self) -> str:
        """Name of the point."""
        return self.point.name


@dataclass(frozen=True)
class Probe:
    """What one run of a model showed.

    Attributes
    ----------
    points
        The points that ran, in the order in which they ran.
    never_run
        Names of requested points of which no tensor of floating-point numbers was seen.
    kinked
        Sorted names of the operators with kinks between a leaf and the target.
    gradient_flows
        Whether the target depends on a leaf.
    """

    points: tuple[PointInfo, ...]
    never_run: tuple[str, ...]
    kinked: tuple[str, ...]
    gradient_flows: bool


def probe(
    model: Callable[..., Any] | Mapping[str, nn.Module],
    selection: Selection,
    run: Callable[[], Tensor | None],
    leaves: Sequence[Tensor],
    *,
    rows: int | None = None,
    again: tuple[int, Callable[[], object]] | None = None,
) -> Probe:
    """Run a model once with the selected modules tapped, and ask its autograd graph.

    Parameters
    ----------
    model
        The model the selection was made in.
    selection
        What to look at, from `select`.
    run
        Executes the model on the leaves and returns the target, one number per row, or None for no target.
        Called again only where a tapped view is modified in place, with copies in the places of such views.
    leaves
        The tensors that move; they require grad. Read after the run, so that a run may add to a list of them.
    rows
        Rows of `run`, to say which tensors have an axis of the examples; None where it is not asked.
    again
        Another number of rows, and what runs the model on them: the axis whose size follows the rows is the
        axis of the examples. Without, it is taken from the class of the module.

    Returns
    -------
    Probe
        The points that ran, and the operators with kinks.

    Raises
    ------
    ValueError
        A point names a call, a tensor, an axis or a number of groups that its module's tensors do not have.

    Examples
    --------
    >>> from conductance.hooks.selecting import select
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> x = torch.ones(1, 3, requires_grad=True)
    >>> found = probe(model, select(model), lambda: model(x)[:, 0], [x])
    >>> [(info.name, info.shape, info.is_cut) for info in found.points], found.kinked
    ([('0', (1, 4), True), ('1', (1, 4), True), ('2', (1, 2), True)], ('Relu',))
    """
    recorder = Recorder(model, selection)
    target = recorder.record(run)
    moved = recorder.moved()
    views = {place for place in moved if recorder.seen[place].is_view}
    shared: set[Place] = set()
    if views and target is not None:
        copies, copied = copied_views(model, selection, run, target, views)
        shared = views - copies
        if copied is not None:
            recorder, target = copied
    view = GraphView(target, list(leaves))
    wanted, never_run = _match(selection, recorder)
    sizes = _sizes(recorder, rows, again, Recorder(model, selection))
    infos = tuple(
        replace(info, shared=SHARED) if place in shared else info
        for place, request in wanted.items()
        for info in [_info(place, request, recorder, view, place in moved - shared, sizes.get(place))]
    )
    return Probe(infos, never_run, view.kinked_operators(), view.gradient_flows)


def _sizes(
    recorder: Recorder, rows: int | None, again: tuple[int, Callable[[], object]] | None, other: Recorder
) -> dict[Place, Sizes]:
    """Shapes of all tensors for the rows of the run, and for another number of them."""
    if rows is None:
        return {}
    shapes: dict[Place, tuple[int, ...]] = {}
    if again is not None:
        other.record(again[1])
        alike = {key for key, calls in recorder.calls.items() if other.calls[key] == calls}
        shapes = {place: tuple(seen.alias.shape) for place, seen in other.seen.items() if place[:2] in alike}
    others = None if again is None else again[0]
    return {
        place: Sizes(tuple(seen.alias.shape), rows, shapes.get(place), others) for place, seen in recorder.seen.items()
    }


def _match(selection: Selection, recorder: Recorder) -> tuple[dict[Place, HookPoint], tuple[str, ...]]:
    """Which request each seen tensor answers to, in the order seen, and the requests that none answers to."""
    best: dict[Place, HookPoint] = {}
    never_run = []
    for request in sorted(selection.points, key=_precision):
        found = [place for place in recorder.seen if _answers(place, request, recorder)]
        if not found:
            _refuse_what_does_not_exist(request, recorder)
            never_run.append(request)
        best.update(dict.fromkeys(found, request))
    names = tuple(request.name for request in selection.points if request in never_run)
    return {place: best[place] for place in recorder.seen if place in best}, names


def _precision(request: HookPoint) -> tuple[bool, int]:
    return request.call is not None, len(request.index)


def _answers(place: Place, request: HookPoint, recorder: Recorder) -> bool:
    module, side, call, index = place
    if (module, side) != (request.module, request.side) or request.call not in (None, call):
        return False
    if side == "in" and not index:
        return request.index in ((), (0,))
    if side == "in" and not request.index and (module, side, call, ()) in recorder.seen:
        return False
    return index[: len(request.index)] == request.index


def _refuse_what_does_not_exist(request: HookPoint, recorder: Recorder) -> None:
    calls = recorder.calls[request.module, request.side]
    if not calls:
        return
    if request.call is not None and request.call >= calls:
        msg = (
            f"layers: {request.name!r} asks for call {request.call}, but the module ran {calls} time(s); "
            f"calls count from 0, up to {calls - 1}"
        )
        raise ValueError(msg)
    there = [place for place in recorder.seen if place[:2] == (request.module, request.side)]
    if request.index and there:
        names = dict.fromkeys(written(place[3]) for place in there)
        msg = f"layers: {request.name!r} is no tensor of this module; there is {', '.join(names)}"
        raise ValueError(msg)


def _info(
    place: Place, request: HookPoint, recorder: Recorder, view: GraphView, in_place: bool, sizes: Sizes | None
) -> PointInfo:
    name, side, call, index = place
    seen = recorder.seen[place]
    module = recorder.modules[name]
    calls = recorder.calls[name, side]
    shape = tuple(seen.alias.shape)
    batch, unbatched = module_batch_axis(module, side, index, len(shape)), ""
    if sizes is not None:
        batch, unbatched = examples_axis(sizes, request.batch_axis, batch)
    elif request.batch_axis:
        batch = request.batch_axis % max(1, len(shape))
    point = replace(
        request,
        call=call if calls > 1 else None,
        index=index,
        batch_axis=batch,
        unit_axis=_unit_axis(request, module, seen, batch),
    )
    _check_groups(point, shape)
    edges = [e for other in recorder.siblings(place) if (e := recorder.seen[other].edge) is not None]
    return PointInfo(
        point=point,
        module_type=type(module).__name__,
        calls=calls,
        shape=shape,
        dtype=seen.alias.dtype,
        device=seen.alias.device,
        is_cut=_cut(view, [] if seen.edge is None else [seen.edge]),
        set_is_cut=_cut(view, edges),
        used=seen.edge is not None and view.reaches_output(seen.edge),
        moves=seen.edge is not None and view.reached_from_leaf(seen.edge),
        in_place=in_place,
        unbatched=PACKED if seen.is_packed else unbatched,
    )


def _cut(view: GraphView, edges: Sequence[Edge]) -> bool | None:
    return view.is_cut(edges) if view.gradient_flows else None


def _unit_axis(request: HookPoint, module: nn.Module, seen: Seen, batch: int) -> int:
    ndim = seen.alias.ndim
    if request.unit_axis is not None:
        if not -ndim <= request.unit_axis < ndim:
            msg = (
                f"layers: {request.name!r} has unit_axis={request.unit_axis}, but its tensor has {ndim} "
                f"axes: {tuple(seen.alias.shape)}"
            )
            raise ValueError(msg)
        if ndim > 1 and request.unit_axis % ndim == batch % ndim:
            msg = (
                f"layers: {request.name!r} has unit_axis={request.unit_axis}, the axis of the examples (batch_axis="
                f"{batch}) of its tensor {tuple(seen.alias.shape)}; give another one, or unit_axis=None to find it"
            )
            raise ValueError(msg)
        return request.unit_axis % ndim
    by_class = module_unit_axis(module, ndim)
    axis = producer_unit_axis(seen.edge, ndim) if by_class is None else by_class
    return beside(batch, ndim) if axis == batch else axis


def _check_groups(point: HookPoint, shape: tuple[int, ...]) -> None:
    groups, axis = point.unit_groups, point.unit_axis
    if groups is not None and axis is not None and shape[axis] % groups:
        msg = (
            f"layers: {point.name!r} has unit_groups={groups}, which does not divide its {shape[axis]} units "
            f"(axis {axis} of {shape})"
        )
        raise ValueError(msg)
