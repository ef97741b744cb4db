"""Internal influence and DeepLIFT of units, by Captum.

Internal influence (Leino et al., 1802.03788) is the gradient of F at a unit, averaged along the path, without the
change of the unit. DeepLIFT (Shrikumar, Greenside and Kundaje, 1704.02685) is the unit's change times a multiplier that
the rescale rule carries back from the output. Captum's hooks sit on modules: one that runs several times, and for
DeepLIFT a nonlinearity that is none of the modules that Captum has a rule for, is refused with the reason.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from conductance.analysis._measure_values import MOST_ROWS, Values, infos_of, summed
from conductance.errors import ConductanceError
from conductance.hooks import PointInfo
from conductance.running import Prepared

#: Part of the change of the output that DeepLIFT may leave over.
UNEXPLAINED = 0.01
_WAY_OUT = "leave this measure out, or build the model of modules that run once each (nn.ReLU() where relu() is called)"


class _Explained(nn.Module):
    """The target as a module of what moves and of each row's example: Captum repeats and joins rows."""

    def __init__(self, ready: Prepared) -> None:
        super().__init__()
        self.model = ready.model if isinstance(ready.model, nn.Module) else None
        self._ready = ready

    def forward(self, *tensors: Tensor) -> Tensor:
        *moved, examples = tensors
        path = self._ready.path
        rows = path.given(examples, dict(zip(path.moving, moved, strict=True)), [])
        return self._ready.function(rows.through(self._ready.model), examples)


def influence_values(ready: Prepared, n_steps: int, rows: int) -> Values:
    """Internal influence of the units of every layer, by ``captum.attr.InternalInfluence``.

    Parameters
    ----------
    ready
        The model and the inputs, in the state to run in.
    n_steps
        Places on the path. Where the model has kinks the gradient jumps along it, and Captum's middle Riemann sum is
        taken: a jump counts wrong by at most ``1 / (2 n_steps)`` of its size. Without kinks Gauss–Legendre nodes are.
    rows
        Rows of a call at most, 0 for `MOST_ROWS`.
    """
    from captum.attr import InternalInfluence

    explained = _Explained(ready)
    most = rows or MOST_ROWS
    method = "riemann_middle" if ready.kinked else "gausslegendre"

    def values(layer: PointInfo, examples: Tensor, inputs: tuple[Tensor, ...], starts: tuple[Tensor, ...]) -> Any:
        return InternalInfluence(explained, _module_of(ready, layer)).attribute(
            inputs,
            starts,
            additional_forward_args=(examples,),
            n_steps=n_steps,
            method=method,
            internal_batch_size=max(most, len(examples)),
            attribute_to_layer_input=layer.point.side == "in",
        )

    return _of_layers(ready, "internal_influence", values, max(1, most // n_steps))


def deeplift_values(ready: Prepared, rows: int) -> Values:
    """DeepLIFT (rescale rule) of the units of every layer, by ``captum.attr.LayerDeepLift``.

    Parameters
    ----------
    ready
        The model and the inputs, in the state to run in.
    rows
        Rows of a call at most, 0 for `MOST_ROWS`.

    Raises
    ------
    ConductanceError
        If contributions do not add up to the change of the output, to `UNEXPLAINED` of their absolute sum: those of the
        layer where it is a cut, else those of the inputs.
    """
    from captum.attr import DeepLift, LayerDeepLift

    if not isinstance(ready.model, nn.Module):
        raise _cannot("deeplift", "", "the model is a plain callable, whose modules Captum cannot find")
    explained = _Explained(ready)

    def values(layer: PointInfo, examples: Tensor, inputs: tuple[Tensor, ...], starts: tuple[Tensor, ...]) -> Any:
        given = {"additional_forward_args": (examples,), "return_convergence_delta": True}
        found, left = LayerDeepLift(explained, _module_of(ready, layer)).attribute(
            inputs, starts, attribute_to_layer_input=layer.point.side == "in", **given
        )
        judged = found if layer.is_cut else None
        if judged is None:
            judged, left = DeepLift(explained).attribute(inputs, starts, **given)
        _check_sum(judged if isinstance(judged, tuple) else (judged,), left)
        return found

    with _as_they_were(ready.model), _own_inputs(ready.model):
        return _of_layers(ready, "deeplift", values, max(1, (rows or MOST_ROWS) // 2))


def _of_layers(ready: Prepared, measure: str, values: Callable[..., Any], most: int) -> Values:
    """Values of every layer, some examples at a time, the mean over several baselines."""
    path, infos = ready.path, infos_of(ready)
    found: Values = {}
    for layer in ready.points:
        _check_layer(measure, layer)
        parts = []
        for examples in torch.arange(path.batch, device=path.device).split(most):
            inputs = tuple(path.ends[key][examples].requires_grad_() for key in path.moving)
            of_baselines = []
            for start in path.starts:
                starts = tuple(start[key][examples] for key in path.moving)
                with _told(measure, layer.name):
                    of_baselines.append(_only(values(layer, examples, inputs, starts)))
            parts.append(summed(infos[layer.name], torch.stack(of_baselines).mean(0)))
        found[layer.name] = torch.cat(parts)
    return found


def _module_of(ready: Prepared, layer: PointInfo) -> nn.Module:
    return ready.selection.modules[layer.point.module]


def _only(found: Any) -> Tensor:
    """The tensor that Captum gives; a tuple of one for the input of a layer."""
    tensor: Tensor = found[0] if isinstance(found, tuple) else found
    return tensor


def _check_layer(measure: str, layer: PointInfo) -> None:
    """Refuse points that Captum has no words for."""
    point = layer.point
    if point.call is not None:
        reason = f"its module runs {layer.calls} times, and Captum looks at modules, not at calls"
    elif point.index not in ((), (0,) if point.side == "in" else ()):
        reason = "it is one of several tensors of its module, and Captum takes them all"
    elif point.batch_axis:
        reason = f"its examples lie along axis {point.batch_axis}, and Captum takes them to lie along axis 0"
    else:
        return
    raise _cannot(measure, layer.name, reason)


def _check_sum(found: tuple[Tensor, ...], left: Tensor) -> None:
    sizes = torch.stack([one.detach().double().abs().flatten(1).sum(1) for one in found]).sum(0)
    share = left.detach().double().abs() / sizes.clamp_min(torch.finfo(torch.float64).tiny)
    rounding = 100 * torch.finfo(found[0].dtype).eps
    if bool((share > UNEXPLAINED + rounding).any()):
        raise ValueError(
            f"its contributions miss the change of the output by {float(share.max()):.0%} of their absolute sum: some "
            "nonlinearity on the way is none of the modules for which Captum has a rule that adds up (a function such "
            "as torch.relu, GELU, softmax, a product of two tensors)"
        )


@contextmanager
def _told(measure: str, layer: str) -> Iterator[None]:
    """Say what Captum could not do, without its warnings of hooks that it sets and removes."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*Setting forward, backward hooks", category=UserWarning)
            yield
    except ConductanceError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise _cannot(measure, layer, text or type(error).__name__) from error


def _cannot(measure: str, layer: str, reason: str) -> ConductanceError:
    where = f" of layer {layer!r}" if layer else ""
    return ConductanceError(f"Captum cannot give {measure!r}{where}: {reason}; {_WAY_OUT}")


@contextmanager
def _own_inputs(model: nn.Module) -> Iterator[None]:
    """Give every module a copy of its input.

    Captum hooks the tensors: where a module takes the very tensor that another one gave, as max-pooling behind a ReLU
    does, the first one's hook reads the gradient before the second one's rule has changed it, and the rule is lost.
    """

    def copied(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(one.clone() if isinstance(one, Tensor) else one for one in args)

    with ExitStack() as handles:
        for module in model.modules():
            if not any(True for _ in module.children()):
                handles.callback(module.register_forward_pre_hook(copied).remove)
        yield


@contextmanager
def _as_they_were(model: nn.Module) -> Iterator[None]:
    """Take off what Captum leaves on modules that the backward pass does not reach: ``input`` and ``output``."""
    before = {module: set(vars(module)) for module in model.modules()}
    try:
        yield
    finally:
        for module, names in before.items():
            for name in {"input", "output"} & set(vars(module)) - names:
                delattr(module, name)
