"""One result a file: safetensors for the tensors, and all else as JSON in its metadata; never pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def write(path: str | Path, kind: str, version: int, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Replace the file as a whole, or leave it as it is.

    Parameters
    ----------
    path
        The file; its folder has to exist.
    kind, version
        What is in the file, checked when it is read.
    tensors
        By key.
    content
        All else, as JSON.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        msg = f"Cannot save to {path}: there is no folder {path.parent}. Create it first."
        raise FileNotFoundError(msg)
    # Copies, because safetensors takes neither views nor two tensors in one storage.
    copies = {key: one.cpu().clone(memory_format=torch.contiguous_format) for key, one in tensors.items()}
    metadata = {"format": kind, "version": str(version), "content": json.dumps(content)}
    with TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        file, ordinary = Path(folder) / "result", Path(folder) / "ordinary"
        save_file(copies, file, metadata=metadata)
        # safetensors lets only the owner read its file; give it the permissions that new files have here.
        ordinary.touch()
        file.chmod(ordinary.stat().st_mode)
        file.replace(path)


def kind_of(path: str | Path) -> str | None:
    """What a file says it holds; None if it says nothing."""
    return _opened(path)[0].get("format")


def read(path: str | Path, kind: str, version: int) -> tuple[dict[str, Tensor], Any]:
    """Tensors and content of a file that `write` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is another kind of file, of another version, or damaged.
    """
    metadata, tensors = _opened(path)
    if metadata.get("format") != kind:
        msg = f"{path} has the format {metadata.get('format')!r}, expected {kind!r}: another kind of file."
        raise ValueError(msg)
    if metadata.get("version") != str(version):
        found = metadata.get("version")
        msg = f"{path} has version {found} of {kind}, expected {version}: use the release that wrote it."
        raise ValueError(msg)
    try:
        return tensors, json.loads(metadata["content"])
    except (KeyError, ValueError) as error:
        raise damaged(path, kind, error) from error


def damaged(path: str | Path, kind: str, error: Exception) -> ValueError:
    """The error for a file whose content does not fit together."""
    return ValueError(f"{path} is a {kind} file, but damaged: {error!r}.")


def _opened(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not Path(path).is_file():
        msg = f"There is no file {path}."
        raise FileNotFoundError(msg)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is not iterable
    except SafetensorError as error:
        msg = f"{path} is not a complete safetensors file ({error}); expected one that a result saved."
        raise ValueError(msg) from error
    return dict(metadata), tensors
