"""The unit axis of tensors without an autograd graph: that of the module whose very tensor was handed on.

A convolution's output has its channels on axis 1, a linear map's its features last; activations, pooling, norms and
dropout keep the axes of the tensor that they are handed. Under ``no_grad`` nothing else tells where a tensor is from.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn.modules import activation, batchnorm, dropout, instancenorm, pooling
from torch.utils.weak import WeakTensorKeyDictionary

from conductance.hooks.reached import takes_hooks
from conductance.hooks.units import module_unit_axis

#: Takes a module, or None, and a tensor that it gave; gives the axis of its units, None where it is not known.
AxisOf: TypeAlias = Callable[[nn.Module | None, Tensor], int | None]

#: Modules of these files keep the axes of what they take …
_KEEPING = {one.__name__ for one in (activation, batchnorm, dropout, instancenorm, pooling)} | {
    "transformers.activations"
}
#: … but for these.
_MIXING = (nn.MultiheadAttention, nn.GLU)


@contextmanager
def handed_on(modules: Mapping[str, nn.Module]) -> Iterator[AxisOf]:
    """Follow tensors from module to module while a model runs.

    Parameters
    ----------
    modules
        The modules to follow.

    Yields
    ------
    Callable
        Takes a module that has just run and its output, or None and any tensor, and gives the axis of the units, not
        negative; None where tensors on the way were made outside of modules.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU())
    >>> with handed_on(dict(model.named_modules())) as axis_of, torch.no_grad():
    ...     axis_of(model[1], model(torch.ones(4, 2, 5)))
    1
    """
    known = WeakTensorKeyDictionary()
    taken: dict[nn.Module, int | None] = {}

    def before(module: nn.Module, args: Any) -> None:
        first = args[0] if args and isinstance(args[0], Tensor) else None
        taken[module] = None if first is None else known.get(first)

    def after(module: nn.Module, _args: Any, output: Any) -> None:
        axis = axis_of(module, output) if isinstance(output, Tensor) else None
        if axis is not None:
            known[output] = axis

    def axis_of(module: nn.Module | None, output: Tensor) -> int | None:
        axis = None if module is None else module_unit_axis(module, output.ndim)
        if axis is None:
            axis = known.get(output)
        if axis is None and module is not None and keeps_units(module):
            axis = taken.get(module)
        return axis if axis is None or axis < output.ndim else None

    with ExitStack() as handles:
        for module in dict.fromkeys(modules.values()):
            if takes_hooks(module):
                handles.callback(module.register_forward_pre_hook(before).remove)
                handles.callback(module.register_forward_hook(after, prepend=True).remove)
        yield axis_of


def keeps_units(module: nn.Module) -> bool:
    """Whether units of the output are those of the input, each in the same place.

    Examples
    --------
    >>> keeps_units(nn.ReLU()), keeps_units(nn.MaxPool2d(2)), keeps_units(nn.GLU()), keeps_units(nn.Flatten())
    (True, True, False, False)
    """
    if isinstance(module, nn.Identity):
        return True
    return type(module).__module__ in _KEEPING and not isinstance(module, _MIXING)
