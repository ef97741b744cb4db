"""Models that no hook can look into: TorchScript, exported programs, copies of a model in other threads."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

_EAGER = "pass the eager torch.nn.Module that it was made from"


def check_hookable(model: Callable[..., Any] | Mapping[str, nn.Module]) -> None:
    """Refuse a model whose modules do not run as Python, where and when it is called.

    Parameters
    ----------
    model
        A module, any callable, or a mapping of names to modules.

    Raises
    ------
    TypeError
        The message names what it is, and what to pass instead.

    Examples
    --------
    >>> check_hookable(nn.Linear(3, 2))
    """
    if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        msg = f"model is TorchScript ({type(model).__name__}), which runs without hooks; {_EAGER}"
        raise TypeError(msg)
    if _is_exported(model):
        msg = (
            "model is an exported program, whose modules were dissolved into one graph, so that no layer runs; "
            f"{_EAGER}, or torch.export.unflatten(exported_program)"
        )
        raise TypeError(msg)
    if isinstance(model, nn.Module):
        for name, module in model.named_modules():
            _check_in_one_place(name, module)


def check_hookable_modules(named: Iterable[tuple[str, nn.Module]]) -> None:
    """Refuse modules that take no hooks, the selected ones of a model that runs as Python otherwise.

    Raises
    ------
    TypeError
        A module is TorchScript.
    """
    scripted = [name for name, module in named if is_scripted(module)]
    if scripted:
        msg = (
            f"layers: {', '.join(map(repr, scripted[:3]))} {'are' if len(scripted) > 1 else 'is'} TorchScript, which "
            "takes no hooks; name layers outside of it, or build the model from the eager module"
        )
        raise TypeError(msg)


def is_scripted(module: nn.Module) -> bool:
    """Say whether a module was scripted or traced."""
    return isinstance(module, torch.jit.ScriptModule)


def _is_exported(model: object) -> bool:
    """Whether this is what torch.export gives, or its module, in which no submodule is called any more."""
    if isinstance(model, torch.fx.GraphModule):
        called = {node.target for node in model.graph.nodes if node.op == "call_module"}
        return bool(dict(model.named_parameters())) and called <= {"_guards_fn"}
    return not isinstance(model, nn.Module) and type(model).__name__ == "ExportedProgram"


def _check_in_one_place(name: str, module: nn.Module) -> None:
    where = f"model.{name}" if name else "model"
    if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
        msg = (
            f"{where} is a DataParallel over {len(module.device_ids)} devices, which runs copies of its modules in "
            f"threads of their own, where no hook of the originals is seen; pass {where}.module"
        )
        raise TypeError(msg)
    if isinstance(module, nn.parallel.DistributedDataParallel):
        msg = (
            f"{where} is a DistributedDataParallel, which waits for gradients of its parameters in every backward "
            f"pass, and none are asked for here; pass {where}.module"
        )
        raise TypeError(msg)
