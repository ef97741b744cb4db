"""One result a file: safetensors for the tensors, and all else as JSON in its metadata."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from conductance import _files
from conductance._result_examples import per_example_fields
from conductance._result_layers import LayerInfo

if TYPE_CHECKING:
    from conductance.results import TotalConductance

FORMAT = "conductance.total_conductance"
VERSION = 1


def write(result: "TotalConductance", path: str | Path) -> None:
    """Replace the file as a whole, or leave it as it is."""
    _files.write(path, FORMAT, VERSION, _tensors(result), _content(result))


def read(path: str | Path, kind: "type[TotalConductance]") -> "TotalConductance":
    """Read what `write` wrote. The class is an argument because its module imports this one."""
    tensors, content = _files.read(path, FORMAT, VERSION)
    try:
        return _from_content(kind, tensors, content)
    except (KeyError, TypeError, ValueError) as error:
        raise _files.damaged(path, FORMAT, error) from error


def _tensors(result: "TotalConductance") -> dict[str, Tensor]:
    """Tensors by their key in a file: the field, or ``field/layer``, which no field is called."""
    tensors: dict[str, Tensor] = {}
    for name in per_example_fields(result):
        value = getattr(result, name)
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, dict):
            tensors |= {f"{name}/{layer}": tensor for layer, tensor in value.items()}
    return tensors


def _content(result: "TotalConductance") -> dict[str, Any]:
    """All but the tensors; the list of layers keeps their order."""
    return {
        "layers": [asdict(result.info[layer]) for layer in result],
        "status": result.status,
        "jumps": result.jumps,
        "spread": result.spread is not None,
        "settings": result.settings,
    }


def _from_content(
    kind: "type[TotalConductance]", tensors: Mapping[str, Tensor], content: Mapping[str, Any]
) -> "TotalConductance":
    """Put a result together from its tensors and its metadata."""
    if not isinstance(content["settings"], dict):
        raise TypeError(f"settings is a {type(content['settings']).__name__}, expected a dict")
    info = {entry["name"]: LayerInfo(**{**entry, "shape": tuple(entry["shape"])}) for entry in content["layers"]}
    values: dict[str, Any] = {
        "status": tuple(content["status"]),
        "jumps": content["jumps"],
        "spread": None,
    }
    for name in ("output", "baseline_output", "unattributed", "evaluations", "converged"):
        values[name] = tensors[name]
    for name in ("conductance", "unit_error", "error", *(["spread"] if content["spread"] else [])):
        values[name] = {layer: tensors[f"{name}/{layer}"] for layer in info}
    return kind(**values, info=info, settings=content["settings"])
