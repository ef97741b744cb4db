"""Size of the weights that lead into each unit: the norm of its row, or filter, in the layer that makes it.

For pruning, filters were ranked by their L1 norm by Li et al. (1608.08710). The bias does not count.
"""

from typing import Literal, cast

import torch
from torch import Tensor, nn

from conductance.analysis._measure_values import infos_of
from conductance.errors import ConductanceError
from conductance.hooks import HookPoint, PointInfo, hold, keeps_units
from conductance.running import Prepared

_Convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_Transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

Key = tuple[str, int, str]


def weight_values(ready: Prepared, norm: Literal["l1", "l2"]) -> dict[str, Tensor]:
    """Norm of the incoming weights of the units of every layer, ``(units,)`` each.

    The layer is a Linear or convolution; or what follows one through activations, pooling, batch norm and dropout,
    all modules, each taking the very tensor that the one before gave.

    Raises
    ------
    ConductanceError
        If no such producer is found.
    """
    producers = _producers(ready)
    found = {}
    for name, info in infos_of(ready).items():
        rows = _rows(producers[name])
        axis = len(info.shape) if isinstance(producers[name], nn.Linear) else 1
        if info.unit_axis != axis or info.shape[axis - 1] != len(rows):
            raise _no_weights(name, f"the {len(rows)} rows of weights before it are none for the units of its {info}")
        by_unit = rows.detach().cpu().double().reshape(info.units, -1)
        found[name] = torch.linalg.vector_norm(by_unit, 1 if norm == "l1" else 2, dim=1)
    return found


def _rows(module: nn.Module) -> Tensor:
    """Weights with one row for each output."""
    weight: Tensor = cast("Tensor", module.weight)
    if isinstance(module, _Transposed):  # (inputs, outputs / groups, …), inputs in groups
        parts = weight.unflatten(0, (module.groups, -1)).transpose(1, 2)
        weight = parts.flatten(0, 1)
    return weight.flatten(1)


def _producers(ready: Prepared) -> dict[str, nn.Module]:
    """The Linear or convolution that makes the units of each layer."""
    model = ready.model
    modules = {**dict(model.named_modules()), **ready.selection.modules} if isinstance(model, nn.Module) else {
        **ready.selection.modules
    }  # fmt: skip
    plain = {name: one for name, one in modules.items() if name and _known(one)}
    requests = [HookPoint(name, side=side) for name in plain for side in ("out", "in")]
    paths = torch.zeros(1, dtype=torch.int64, device=ready.path.device)
    own = [info.point for info in ready.points]
    with hold(modules, list(dict.fromkeys([*own, *requests]))) as held:
        ready.path.rows(paths, torch.ones(1, device=ready.path.device)).through(model)
    tensors = {_key(point): tensor for point, tensor in held.tensors.items()}
    return {info.name: _producer(info, tensors, plain) for info in ready.points}


def _producer(info: PointInfo, tensors: dict[Key, Tensor], modules: dict[str, nn.Module]) -> nn.Module:
    """Walk back from a layer to the module whose weights make its units."""
    name, call, side = _key(info.point)
    while True:
        if side == "in":
            before = _made_by((name, call, side), tensors)
            if before is None:
                raise _no_weights(info.name, f"what makes the input of {name!r} is not the output of a module")
            name, call, side = before
        module = modules.get(name)
        if isinstance(module, (nn.Linear, *_Convolutions, *_Transposed)):
            return module
        if module is None:
            raise _no_weights(info.name, f"{name!r} neither has weights for each unit nor keeps the units of its input")
        side = "in"


def _made_by(key: Key, tensors: dict[Key, Tensor]) -> Key | None:
    """The output that is the tensor of an input; the last one before it, where modules work in place."""
    order = list(tensors)
    earlier = order[: order.index(key)]
    return next((one for one in reversed(earlier) if one[2] == "out" and tensors[one] is tensors[key]), None)


def _known(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, *_Convolutions, *_Transposed)) or keeps_units(module)


def _key(point: HookPoint) -> Key:
    return point.module, point.call or 0, point.side


def _no_weights(layer: str, reason: str) -> ConductanceError:
    return ConductanceError(
        f"'weight_magnitude' needs the weights that lead into the units of layer {layer!r}, but {reason}; name the "
        "Linear or convolution that makes the units, or leave this measure out"
    )
