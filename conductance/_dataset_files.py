"""Statistics of a data set in a file: tensors with an axis of groups, and all else as JSON in the metadata."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conductance import _files
from conductance._dataset_groups import from_json
from conductance._dataset_state import State
from conductance._dataset_sums import LAYER_ROWS, UNIT_ROWS, LayerSums, Moments
from conductance._result_layers import LayerInfo

FORMAT = "conductance.dataset_conductance"
VERSION = 1
_NUMBERS = ("count", "left_out", "evaluations", "unconverged")
#: What `write` is given as settings: those that statistics began with, and those that they have now.
SETTINGS = ("given", "settings")


def write(path: str | Path, state: State, settings: Mapping[str, Any]) -> None:
    """Replace the file as a whole, or leave it as it is; ``settings`` are kept beside the state."""
    groups = list(state.sums)
    tensors = {
        f"{name}/{layer}": torch.stack([_tensors(state.sums[group][layer])[name] for group in groups])
        for layer in state.info
        for name in (_SHAPES if groups else ())
    }
    content = {
        **{name: getattr(state, name) for name in _NUMBERS},
        "layers": [asdict(info) for info in state.info.values()],
        "groups": groups,
        "settings": dict(settings),
    }
    _files.write(path, FORMAT, VERSION, tensors, content)


def read(path: str | Path) -> tuple[State, dict[str, Any]]:
    """Read the state and the settings that `write` wrote."""
    tensors, content = _files.read(path, FORMAT, VERSION)
    try:
        info = {one["name"]: LayerInfo(**{**one, "shape": tuple(one["shape"])}) for one in content["layers"]}
        groups = [from_json(group) for group in content["groups"]]
        _check_content(content, info, groups)
        sums: dict[Hashable, dict[str, LayerSums]] = {
            group: {
                layer: _sums(
                    {name: _row(tensors, f"{name}/{layer}", number, len(groups)) for name in _SHAPES}, one.units
                )
                for layer, one in info.items()
            }
            for number, group in enumerate(groups)
        }
        numbers = {name: content[name] for name in _NUMBERS}
        _check_counts(sums, numbers["count"])
        return State(info=info, sums=sums, **numbers), {name: content["settings"][name] for name in SETTINGS}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise _files.damaged(path, FORMAT, error) from error


#: Shape of each tensor of one layer and group; -1 stands for units.
_SHAPES: dict[str, tuple[int, ...]] = {
    "count": (),
    "total": (len(UNIT_ROWS), -1),
    "squares": (len(UNIT_ROWS), -1),
    "layer_count": (len(LAYER_ROWS),),
    "layer_total": (len(LAYER_ROWS),),
    "layer_squares": (len(LAYER_ROWS),),
    "extremes": (3, -1),
    "worst": (),
}


def _check_content(content: Mapping[str, Any], info: Mapping[str, LayerInfo], groups: list[Hashable]) -> None:
    """Refuse what would make numbers go wrong later, far from the file."""
    counts = {name: content[name] for name in _NUMBERS[:3]} | content["unconverged"]
    for name, number in counts.items():
        if type(number) is not int or number < 0:
            raise ValueError(f"{name} is {number!r}, expected a whole number")
    for name in SETTINGS:
        if not isinstance(content["settings"][name], dict):
            raise TypeError(f"settings hold a {type(content['settings'][name]).__name__} under {name!r}")
    if len(info) != len(content["layers"]) or len(set(groups)) != len(groups):
        raise ValueError("a layer or a group is in it twice")
    if groups and not info:
        raise ValueError("it has groups but no layers")
    if None in groups and len(groups) > 1:
        raise ValueError("only some examples have groups")


def _check_counts(sums: Mapping[Hashable, Mapping[str, LayerSums]], count: int) -> None:
    """Every layer has to have all examples, each in one group."""
    of_groups = [{int(one.units.count) for one in layers.values()} for layers in sums.values()]
    if any(len(each) > 1 or min(each) < 1 for each in of_groups) or sum(map(min, of_groups)) != count:
        raise ValueError(f"the examples of its layers and groups do not add up to the {count} that it tells")


def _row(tensors: Mapping[str, Tensor], name: str, number: int, groups: int) -> Tensor:
    """What a tensor holds of one group."""
    expected = torch.int64 if name.split("/")[0] in ("count", "layer_count") else torch.float64
    if len(tensors[name]) != groups or tensors[name].dtype != expected:
        found = f"{tensors[name].dtype} of {len(tensors[name])} groups"
        raise ValueError(f"{name} is {found}, expected {expected} of {groups}")
    return tensors[name][number].clone()


def _tensors(sums: LayerSums) -> dict[str, Tensor]:
    units, layer = sums.units, sums.layer
    every = (
        units.count,
        units.total,
        units.squares,
        layer.count,
        layer.total,
        layer.squares,
        sums.extremes,
        sums.worst,
    )
    return dict(zip(_SHAPES, every, strict=True))


def _sums(tensors: Mapping[str, Tensor], units: int) -> LayerSums:
    for name, shape in _SHAPES.items():
        expected = tuple(units if size == -1 else size for size in shape)
        if tensors[name].shape != expected:
            raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, expected {expected}")
    moments = Moments(tensors["count"], tensors["total"], tensors["squares"])
    layer = Moments(tensors["layer_count"], tensors["layer_total"], tensors["layer_squares"])
    return LayerSums(moments, layer, tensors["extremes"], tensors["worst"])
