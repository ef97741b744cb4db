"""The unit axis by the class of a module or by what made a tensor."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conductance.hooks import edge_of, producer_unit_axis
from conductance.hooks.units import beside, module_unit_axis


@pytest.mark.parametrize(
    ("module", "ndim", "axis"),
    [
        (nn.Conv1d(2, 3, 1), 3, 1),
        (nn.Conv2d(2, 3, 1), 4, 1),
        (nn.Conv3d(2, 3, 1), 5, 1),
        (nn.ConvTranspose2d(2, 3, 1), 4, 1),
        (nn.BatchNorm1d(2), 2, 1),
        (nn.BatchNorm1d(2), 3, 1),
        (nn.BatchNorm2d(2), 4, 1),
        (nn.InstanceNorm2d(2), 4, 1),
        (nn.SyncBatchNorm(2), 4, 1),
        (nn.GroupNorm(1, 2), 3, 1),
        (nn.Linear(2, 3), 2, 1),
        (nn.Linear(2, 3), 4, 3),
        (nn.Bilinear(2, 3, 4), 3, 2),
        (nn.LayerNorm(3), 3, 2),
        (nn.RMSNorm(3), 4, 3),
        (nn.Embedding(2, 3), 3, 2),
        (nn.EmbeddingBag(2, 3), 2, 1),
        (nn.MultiheadAttention(4, 2), 3, 2),
        (nn.LSTM(2, 3), 3, 2),
        (nn.GRUCell(2, 3), 2, 1),
        (nn.ReLU(), 4, None),
        (nn.MaxPool2d(2), 4, None),
        (nn.Sequential(nn.Linear(2, 3)), 3, None),
    ],
)
def test_rules_by_class(module: nn.Module, ndim: int, axis: int | None) -> None:
    assert module_unit_axis(module, ndim) == axis


def made(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True) * 2


CONV, LINEAR = nn.Conv2d(3, 5, 2), nn.Linear(6, 7)

INHERITED: dict[str, tuple[Callable[[], Tensor], int]] = {
    "activation of a convolution": (lambda: CONV(made(2, 3, 8, 6)).relu(), 1),
    "in place": (lambda: torch.relu_(CONV(made(2, 3, 8, 6))), 1),
    "pooled convolution": (lambda: F.max_pool2d(CONV(made(2, 3, 8, 6)).relu(), 2), 1),
    "pooled to a point": (lambda: F.adaptive_avg_pool2d(CONV(made(2, 3, 8, 6)), 1), 1),
    "pooled and flattened": (lambda: F.adaptive_avg_pool2d(CONV(made(2, 3, 8, 6)), 1).flatten(1), 1),
    "sequence of a convolution": (lambda: nn.Conv1d(3, 5, 2)(made(2, 3, 8)).tanh(), 1),
    "positions of a convolution": (lambda: CONV(made(2, 3, 8, 6)).flatten(2), 1),
    "patches as tokens": (lambda: CONV(made(2, 3, 8, 6)).flatten(2).transpose(1, 2), 2),
    "patches of one example": (lambda: CONV(made(1, 3, 8, 6)).flatten(2).transpose(1, 2), 2),
    "convolution with channels last": (lambda: CONV(made(2, 3, 8, 6)).permute(0, 2, 3, 1).exp(), 3),
    "and back": (lambda: CONV(made(2, 3, 8, 6)).permute(0, 2, 3, 1).permute(0, -1, 1, 2), 1),
    "activation of a linear map": (lambda: LINEAR(made(2, 6)).relu(), 1),
    "of tokens": (lambda: F.gelu(LINEAR(made(2, 5, 6))), 2),
    "of one token": (lambda: F.gelu(LINEAR(made(1, 1, 6))), 2),
    "of an image with channels last": (lambda: F.gelu(LINEAR(made(2, 3, 4, 6))), 3),
    "without bias": (lambda: nn.Linear(6, 7, bias=False)(made(2, 3, 4, 6)).sin(), 3),
    "channels last to first": (lambda: LINEAR(made(2, 3, 4, 6)).permute(0, 3, 1, 2).tanh(), 1),
    "transposed by negative axes": (lambda: LINEAR(made(2, 3, 4, 6)).transpose(-1, -3), 1),
    "three axes transposed by negative axes": (lambda: LINEAR(made(2, 5, 6)).transpose(-1, -2), 1),
    "three axes permuted by negative axes": (lambda: LINEAR(made(2, 5, 6)).permute(0, -1, -2).sin(), 1),
    "heads": (lambda: LINEAR(made(2, 5, 6)).view(2, 5, 7, 1), 2),
    "normalised": (lambda: nn.LayerNorm(6)(made(2, 3, 4, 6)).exp(), 3),
    "batch norm of a sequence": (lambda: nn.BatchNorm1d(3)(made(2, 3, 6)).exp(), 1),
    "group norm of a sequence": (lambda: nn.GroupNorm(3, 3)(made(2, 3, 6)).exp(), 1),
    "embedded": (lambda: nn.Embedding(3, 4)(torch.zeros(2, 3, 3, dtype=torch.long)).tanh(), 3),
    "residual": (lambda: made(2, 5, 3, 7) + LINEAR(made(2, 5, 3, 6)), 3),
    "scaled by a parameter": (lambda: nn.Parameter(torch.ones(2, 3, 4, 7)) * LINEAR(made(2, 3, 4, 6)), 3),
    "concatenated": (lambda: torch.cat([CONV(made(2, 3, 8, 6))] * 2, 1), 1),
    "matrix products": (lambda: torch.bmm(made(2, 3, 4), made(2, 4, 5)).exp(), 2),
    "nothing known, one axis": (lambda: made(2), 0),
    "nothing known, two axes": (lambda: made(2, 3), 1),
    "nothing known, three axes": (lambda: made(2, 3, 4), 2),
    "nothing known, four axes": (lambda: made(2, 3, 4, 5), 1),
    "axes lost": (lambda: LINEAR(made(2, 3, 4, 6)).sum((1, 2)), 1),
    "convolution of one channel": (lambda: nn.Conv2d(3, 1, 2)(made(1, 3, 8, 6)).flatten(2), 1),
}


@pytest.mark.parametrize("name", INHERITED)
def test_inherited(name: str) -> None:
    make, axis = INHERITED[name]
    tensor = make()
    assert producer_unit_axis(edge_of(tensor), tensor.ndim) == axis


@pytest.mark.parametrize(("ndim", "axis"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 1), (5, 1)])
def test_without_a_gradient_the_number_of_axes_decides(ndim: int, axis: int) -> None:
    assert producer_unit_axis(None, ndim) == axis


@pytest.mark.parametrize(
    ("batch", "ndim", "axis"), [(0, 1, 0), (0, 2, 1), (1, 2, 0), (1, 3, 2), (2, 3, 1), (1, 5, 2), (3, 4, 2)]
)
def test_units_lie_beside_the_examples(batch: int, ndim: int, axis: int) -> None:
    assert beside(batch, ndim) == axis
