"""Batches as loaders give them, and what is explained in each."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from conductance.loaders import Batch, batches, device_of, predicted, repeatable

X, Y = torch.arange(10.0).reshape(5, 2), torch.tensor([1, 0, 1, 1, 0])


def test_a_data_loader_of_pairs() -> None:
    found = list(batches(DataLoader(TensorDataset(X, Y), batch_size=3)))
    assert [len(batch) for batch in found] == [3, 2]
    assert torch.equal(torch.cat([torch.as_tensor(batch.inputs) for batch in found]), X)
    assert [label for batch in found if batch.labels is not None for label in batch.labels.tolist()] == Y.tolist()


@pytest.mark.parametrize(
    ("given", "kind", "labelled"),
    [
        (X, Tensor, False),
        ((X,), Tensor, False),
        ([X, Y], Tensor, True),
        (((X, X), Y), tuple, True),
        (([X, X], Y), tuple, True),
        ({"ids": X, "labels": Y}, dict, True),
        ({"ids": X}, dict, False),
        (({"ids": X}, Y), dict, True),
    ],
)
def test_what_a_batch_may_be(given: Any, kind: type, labelled: bool) -> None:
    (batch,) = batches([given])
    assert isinstance(batch.inputs, kind)
    assert len(batch) == 5
    assert (batch.labels is not None) is labelled
    if isinstance(batch.inputs, dict):
        assert list(batch.inputs) == ["ids"]


@pytest.mark.parametrize(
    ("loader", "error", "match"),
    [
        ([], ValueError, "gives no batches"),
        (iter([]), ValueError, "only once"),
        (X, TypeError, "loader must give batches"),
        (3, TypeError, "loader must give batches, .* got int"),
        ([(X, Y, Y)], TypeError, "batch 0 is a tuple of 3"),
        ([X, "x"], TypeError, "batch 1 is a str"),
        ([(X, [1, 0, 1, 1, 0])], TypeError, "labels as a tensor"),
        ([X[:0]], ValueError, "batch 0 has no examples"),
        ([(X, Y[:4])], ValueError, r"5 examples and labels \(4,\)"),
    ],
)
def test_unusable_loaders_are_refused(loader: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        list(batches(loader))


def test_targets_of_a_batch() -> None:
    batch = Batch(X, Y)
    assert batch.target("label", nn.Identity()) is Y
    assert torch.equal(torch.as_tensor(batch.target("predicted", lambda x: -x)), torch.zeros(5, dtype=torch.long))
    assert batch.target(3, nn.Identity()) == 3
    with pytest.raises(ValueError, match="'label', 'predicted'"):
        batch.target("labels", nn.Identity())
    with pytest.raises(ValueError, match="needs labels"):
        Batch(X, None).target("label", nn.Identity())
    with pytest.raises(TypeError, match="one entry for each example"):
        batch.target(Y, nn.Identity())
    with pytest.raises(TypeError, match=r"for classes, but the loader gives torch.float32: .* such as target=0"):
        Batch(X, Y.float()).target("label", nn.Identity())


def test_predictions_need_classes() -> None:
    with pytest.raises(ValueError, match=r"gives \(5, 2, 1\)"):
        predicted(lambda x: x[..., None], X)
    with pytest.raises(ValueError, match=r"gives \(5, 1\); with one number a row there is no class to choose"):
        predicted(lambda x: x[:, :1], X)


def test_iterators_are_refused_where_a_loader_is_read_twice() -> None:
    with pytest.raises(TypeError, match="only once"):
        repeatable(iter([X]))


def test_where_a_model_is() -> None:
    assert device_of(nn.Linear(2, 3)) == torch.device("cpu")
    assert device_of(nn.ReLU()) is None
    assert device_of(lambda x: x) is None
