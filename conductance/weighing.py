"""Layers that are linear in their input: their weights, and sums of products of what is at both ends of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from conductance.sums import wide_dtype
from conductance.weight_results import WeightInfo

_LINEAR = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def has_weights(module: nn.Module) -> bool:
    """Whether a module is a linear map or a convolution."""
    return isinstance(module, _LINEAR) or _is_transposed_linear(module)


def refusal(module: nn.Module) -> str | None:
    """Say why the weights of a module cannot be explained; None if they can."""
    if not has_weights(module):
        return "has no weight between an input and an output; expected linear layers or convolutions"
    forward = getattr(type(module), "forward", None)
    if isinstance(module, _LINEAR) and forward not in [kind.forward for kind in _LINEAR]:
        return "has a forward of its own, so that its weight need not be what its input is multiplied with"
    weight = weight_of(module)
    if without_values(module):
        return (
            "has its weight on the meta device, without values; load the model first (if this layer is offloaded, keep "
            "it loaded)"
        )
    if not weight.is_floating_point():
        return f"has a weight of {weight.dtype}, which stands for other numbers (quantised?); expected floating point"
    return None


def without_values(module: nn.Module) -> bool:
    """Whether a layer's weight is not there yet, so that it cannot be run at all."""
    return has_weights(module) and weight_of(module).is_meta


def weight_of(module: Any) -> Tensor:
    """Weight of a module as its forward uses it, detached: of a parametrised one, what the parameters make."""
    weight = module.weight
    if not isinstance(weight, Tensor):
        raise TypeError(f"the weight of this {type(module).__name__} is a {type(weight).__name__}, expected a tensor")
    return weight.detach()


def weight_info(name: str, module: nn.Module) -> WeightInfo:
    """What a result says of a weight."""
    weight = weight_of(module)
    turned = bool(getattr(module, "transposed", False)) or _is_transposed_linear(module)
    return WeightInfo(name, type(module).__name__, tuple(weight.shape), turned, int(getattr(module, "groups", 1)))


def products(module: Any, inputs: Tensor, outputs: Tensor) -> Tensor:
    """``Σ inputs · outputs`` over rows and positions for the two ends of each weight, like the weight.

    It is the gradient of ``Σ outputs · module(inputs)`` by the weight.

    Parameters
    ----------
    module
        One that `has_weights`.
    inputs, outputs
        Like its input and its output, ``(rows, …)``.
    """
    with torch.autocast(inputs.device.type, enabled=False):  # it is meant for the model, not for sums
        return _products(module, inputs, outputs)


def _products(module: Any, inputs: Tensor, outputs: Tensor) -> Tensor:
    if isinstance(module, nn.modules.conv._ConvNd):
        return _convolved(module, inputs, outputs)
    ends = inputs.reshape(-1, inputs.shape[-1]), outputs.reshape(-1, outputs.shape[-1])
    first, second = ends if _is_transposed_linear(module) else ends[::-1]
    return first.T @ second


def _convolved(module: Any, inputs: Tensor, outputs: Tensor) -> Tensor:
    padding, output_padding = module.padding, module.output_padding
    if module.transposed:  # a call may have named the output's size instead
        sizes = zip(inputs.shape[2:], outputs.shape[2:], module.weight.shape[2:], strict=True)
        output_padding = [
            behind - (before - 1) * module.stride[n] + 2 * padding[n] - module.dilation[n] * (kernel - 1) - 1
            for n, (before, behind, kernel) in enumerate(sizes)
        ]
    if isinstance(padding, str) or module.padding_mode != "zeros":
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        inputs = nn.functional.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * len(module.stride)
    found = torch.ops.aten.convolution_backward(
        outputs.contiguous(),
        inputs.contiguous(),
        weight_of(module).to(inputs.dtype),
        None,
        module.stride,
        padding,
        module.dilation,
        module.transposed,
        output_padding,
        module.groups,
        [False, True, False],
    )
    result: Tensor = found[1]
    return result


def changes_what_it_made(module: Any, inputs: Tensor, outputs: Tensor) -> bool:
    """Whether the output is not what the layer's own forward makes of the input: hooks, a patched forward.

    The gradient behind the layer then belongs to another tensor than its weight made.
    """
    turned = bool(getattr(module, "transposed", False))  # a call may have named the output's size instead
    sizes = {"output_size": list(outputs.shape[2:])} if turned else {}
    with torch.no_grad():
        own = type(module).forward(module, inputs.detach(), **sizes).to(outputs)
        difference, size = (own - outputs).abs().max(), torch.maximum(own.abs().max(), outputs.abs().max())
    return bool(float(difference) > torch.finfo(outputs.dtype).eps ** 0.5 * float(size))


class WeightSums:
    """Running sums for every weight of a layer, in which only the examples count that are done.

    Errors are summed with their signs over the panels of one example, and their squares over examples: so the size
    of a call changes neither.
    """

    def __init__(self, module: nn.Module) -> None:
        self._weight = weight_of(module)
        size, dtype, device = self._weight.shape, wide_dtype(self._weight.device), self._weight.device
        self._kept, self._open = (torch.zeros(3, *size, dtype=dtype, device=device) for _ in range(2))
        self._under_way = torch.zeros(size, dtype=dtype, device=device)

    def add(self, products: Tensor) -> None:
        """Take in products of some rows."""
        self._open[0] += products

    def add_error(self, products: Tensor) -> None:
        """Take in products of some rows of the example under way, for its error."""
        self._under_way += products

    def end_example(self) -> None:
        """All rows of the example under way are in."""
        self._open[1] += self._under_way
        self._open[2] += self._under_way.square_()
        self._under_way.zero_()

    def keep(self) -> None:
        """No example is half done: count what is in."""
        self._kept += self._open
        self._open.zero_()

    def result(self) -> Tensor:
        """Conductance, signed error and sum of its squares, ``(3, *weight shape)``."""
        weight = self._weight.to(self._kept)
        return self._kept * torch.stack([weight, weight, weight * weight])


def _is_transposed_linear(module: nn.Module) -> bool:
    """Whether it is the linear map of transformers' GPT-2, whose weight is (inputs, outputs)."""
    weight = getattr(module, "weight", None)
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and isinstance(weight, Tensor)
