"""Layers that are linear in their input: their weights, and sums of products of what is at both ends of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from conductance.weight_results import WeightInfo


def has_weights(module: nn.Module) -> bool:
    """Whether the weights of a module can be explained: linear maps and convolutions."""
    return isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) or _is_transposed_linear(module)


def weight_info(name: str, module: nn.Module) -> WeightInfo:
    """What a result says of a weight."""
    weight = module.weight
    assert isinstance(weight, Tensor)
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
    if isinstance(module, nn.modules.conv._ConvNd):
        return _convolved(module, inputs, outputs)
    ends = inputs.reshape(-1, inputs.shape[-1]), outputs.reshape(-1, outputs.shape[-1])
    first, second = ends if _is_transposed_linear(module) else ends[::-1]
    return first.T @ second


def _convolved(module: Any, inputs: Tensor, outputs: Tensor) -> Tensor:
    padding = module.padding
    if isinstance(padding, str) or module.padding_mode != "zeros":
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        inputs = nn.functional.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * len(module.stride)
    found = torch.ops.aten.convolution_backward(
        outputs.contiguous(),
        inputs.contiguous(),
        module.weight.detach().to(inputs.dtype),
        None,
        module.stride,
        padding,
        module.dilation,
        module.transposed,
        module.output_padding,
        module.groups,
        [False, True, False],
    )
    result: Tensor = found[1]
    return result


def _is_transposed_linear(module: nn.Module) -> bool:
    """Whether it is the linear map of transformers' GPT-2, whose weight is (inputs, outputs)."""
    weight = getattr(module, "weight", None)
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and isinstance(weight, Tensor)
