"""One result a file: safetensors for the tensors, and all else as JSON in its metadata."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from conductance._result_examples import per_example_fields
from conductance._result_layers import LayerInfo

if TYPE_CHECKING:
    from conductance.results import TotalConductance

FORMAT = "conductance.total_conductance"
VERSION = 1


def write(result: "TotalConductance", path: str | Path) -> None:
    """Replace the file as a whole, or leave it as it is."""
    path = Path(path)
    if not path.parent.is_dir():
        msg = f"Cannot save to {path}: there is no folder {path.parent}. Create it first."
        raise FileNotFoundError(msg)
    with TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        file, ordinary = Path(folder) / "result", Path(folder) / "ordinary"
        save_file(_tensors(result), file, metadata=_metadata(result))
        # safetensors lets only the owner read its file; give it the permissions that new files have here.
        ordinary.touch()
        file.chmod(ordinary.stat().st_mode)
        file.replace(path)


def read(path: str | Path, kind: "type[TotalConductance]") -> "TotalConductance":
    """Read what `write` wrote. The class is an argument because its module imports this one."""
    if not Path(path).is_file():
        msg = f"There is no file {path}."
        raise FileNotFoundError(msg)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is not iterable
    except SafetensorError as error:
        msg = f"{path} is not a complete safetensors file ({error}); expected one from TotalConductance.save."
        raise ValueError(msg) from error
    _check_format(path, metadata)
    try:
        return _from_content(kind, tensors, json.loads(metadata["content"]))
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{path} is a {FORMAT} file, but damaged: {error!r}."
        raise ValueError(msg) from error


def _check_format(path: str | Path, metadata: Mapping[str, str]) -> None:
    """Refuse the files of others and those of later versions."""
    if metadata.get("format") != FORMAT:
        msg = f"{path} has the format {metadata.get('format')!r}, expected {FORMAT!r}: another kind of file."
        raise ValueError(msg)
    if metadata.get("version") != str(VERSION):
        found = metadata.get("version")
        msg = f"{path} has version {found} of {FORMAT}, expected {VERSION}: use the release that wrote it."
        raise ValueError(msg)


def _tensors(result: "TotalConductance") -> dict[str, Tensor]:
    """Tensors by their key in a file: the field, or ``field/layer``, which no field is called."""
    tensors: dict[str, Tensor] = {}
    for name in per_example_fields(result):
        value = getattr(result, name)
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, dict):
            tensors |= {f"{name}/{layer}": tensor for layer, tensor in value.items()}
    # Copies, because safetensors takes neither views nor two tensors in one storage.
    return {key: tensor.cpu().clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}


def _metadata(result: "TotalConductance") -> dict[str, str]:
    """All but the tensors; the list of layers keeps their order."""
    content = {
        "layers": [asdict(result.info[layer]) for layer in result],
        "status": result.status,
        "jumps": result.jumps,
        "spread": result.spread is not None,
        "settings": result.settings,
    }
    return {"format": FORMAT, "version": str(VERSION), "content": json.dumps(content)}


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
