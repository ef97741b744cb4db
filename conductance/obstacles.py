"""What keeps a model from being differentiated, said by name: int8 layers, re-entrant checkpoints, lost tensors.

Some of it is seen before the run, the rest comes as an error of PyTorch that tells neither cause nor way out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from conductance.errors import ConductanceError

_REENTRANT = (
    "the model uses re-entrant gradient checkpointing (torch.utils.checkpoint with use_reentrant=True), which works "
    "with backward() only, not with gradients at chosen tensors; use use_reentrant=False (transformers: "
    'model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})), or switch '
    "checkpointing off"
)
#: Part of a message of PyTorch, and what it means here.
_MEANT = {
    "use_reentrant=True": _REENTRANT,
    "Inference tensors cannot be saved for backward": (
        "the model, or the target, works with a tensor that was made in torch.inference_mode() and is neither a "
        "parameter nor a buffer nor an argument, which autograd cannot keep; make it outside of inference mode "
        "(torch.no_grad() will do), or clone() it where it is used"
    ),
    "cudnn RNN backward can only be called in training mode": (
        "a recurrent layer in eval mode ran with cuDNN, which keeps nothing for its backward pass then. For a layer "
        "that is a module of model cuDNN is switched off; pass as model the torch.nn.Module that holds it, or "
        "call inside torch.backends.cudnn.flags(enabled=False)"
    ),
}
_QUANTISED = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.")


@contextmanager
def causes_named() -> Iterator[None]:
    """Say of an error of PyTorch what it means where its own text does not."""
    try:
        yield
    except RuntimeError as error:
        raise_meant(error)
        raise


def raise_meant(error: Exception) -> None:
    """Raise in place of an error of PyTorch what it means here, if that is known."""
    for part, meant in _MEANT.items():
        if part in str(error) and str(error) != meant:
            raise ConductanceError(meant) from error


def check_not_reentrant(operators: Sequence[str]) -> None:
    """Refuse a graph with the node of a re-entrant checkpoint among its operators."""
    if any(name.startswith("CheckpointFunction") for name in operators):
        raise ConductanceError(_REENTRANT)


def check_not_quantised(model: Callable[..., Any], modules: Mapping[str, nn.Module]) -> None:
    """Refuse layers that compute with integers; lookups of embeddings have no gradient to lose."""
    roots = {"": model} if isinstance(model, nn.Module) else modules
    found = {
        f"{prefix}.{name}".strip("."): module
        for prefix, root in roots.items()
        for name, module in root.named_modules()
        if _is_quantised(module)
    }
    if found:
        told = ", ".join(f"{name!r} ({type(module).__name__})" for name, module in [*found.items()][:3])
        told += f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise ConductanceError(
            f"the model has quantised layers: {told}, which compute with integers and have no gradient; explain the "
            "model in floating point that they were made from (weights alone may be quantised if they are turned into "
            "floating point before they multiply)"
        )


def _is_quantised(module: nn.Module) -> bool:
    where, kind = type(module).__module__, type(module).__name__
    floating = ".reference." in where or "Embedding" in kind or "PackedParams" in kind
    return where.startswith(_QUANTISED) and not floating
