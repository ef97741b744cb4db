"""Encoders of another precision than the model, as arrays of a PCA often are."""

import pytest
import torch
from torch import nn

import conductance as cd
from tests.helpers import normal, seeded


def _model() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))).float()


def test_codes_of_another_precision_are_taken() -> None:
    decoder = normal(3, 6)
    x = normal(5, 4).float()
    found, plain = (
        cd.dictionary_conductance(_model(), x, "1", encode=encode, decoder=decoder, target=0, rtol=1e-3)["1"]
        for encode in (lambda y: y.double() @ decoder.T, lambda y: y @ decoder.T.float())
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
    total = cd.total_conductance(_model(), x, "1", target=0, rtol=1e-3)["1"]
    torch.testing.assert_close(found.sum(1), total.sum(1), rtol=1e-3, atol=1e-4)


def test_an_error_in_encode_tells_what_it_was_called_with() -> None:
    decoder = normal(3, 6)
    with pytest.raises(RuntimeError) as caught:
        cd.dictionary_conductance(
            _model(), normal(5, 4).float(), "1", encode=lambda y: y @ decoder.T, decoder=decoder, target=0
        )
    (note,) = caught.value.__notes__
    assert "encode received activations of shape" in note
    assert "torch.float32 on cpu" in note
