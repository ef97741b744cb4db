"""What a model runs: the names of its modules and taps, in the order of their first calls."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from conductance.hooks.tapping import taps_called


def takes_hooks(module: nn.Module) -> bool:
    """Say whether hooks can be put on a module; what ``torch.jit.script`` made takes none."""
    return not isinstance(module, torch.jit.RecursiveScriptModule)  # type: ignore[attr-defined]


def names_run(modules: Mapping[str, nn.Module], run: Callable[[], Any]) -> list[str]:
    """Run a model and list the names of the modules and taps that it calls.

    Parameters
    ----------
    modules
        The modules by name.
    run
        Executes the model.

    Examples
    --------
    >>> model = nn.ModuleDict({"used": nn.Linear(3, 4), "idle": nn.Linear(3, 4)})
    >>> names_run(dict(model.named_children()), lambda: model["used"](torch.ones(1, 3)))
    ['used']
    """
    ran: dict[str, None] = {}

    def note(name: str, _module: nn.Module, _args: Any) -> None:
        ran[name] = None

    with ExitStack() as handles, taps_called() as taps:
        for name, module in modules.items():
            if takes_hooks(module):
                handles.callback(module.register_forward_pre_hook(partial(note, name)).remove)
        run()
    return [*ran, *taps]
