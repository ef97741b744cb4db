"""Loaders and weights that would make tables of measures silently wrong."""

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from conductance import ConductanceError
from conductance.analysis import compare_measures, pruning_experiment, unit_scores
from tests.analysis.pruned_nets import made, mlp


def test_loader_that_shuffles_is_found_out() -> None:
    model, x = made(mlp)
    data = TensorDataset(x, torch.arange(len(x)) % 4)
    for loader in (DataLoader(data, batch_size=4), DataLoader(data, batch_size=len(x))):
        table = compare_measures(model, loader, "1", target="label", measures=["conductance"])
        assert table["pearson"][0] > 0.5
    shuffled = DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"batch 0 is not what it was.*shuffle=False"):
        compare_measures(model, shuffled, "1", target="label", measures=["conductance"])


def test_nan_has_no_place_in_a_ranking() -> None:
    model, x = made(mlp)
    model.get_parameter("2.weight").data[:, 3] = float("nan")
    with pytest.raises(ConductanceError, match=r"unit 0 of '2' has score nan by 'weight_magnitude'.*6 of 6 units"):
        unit_scores(model, x, "2", "weight_magnitude", target=0)


def experiment(model: nn.Module, labels: torch.Tensor, x: torch.Tensor, **options: object) -> pd.DataFrame:
    data = [(x[:5], labels[:5]), (x[5:], labels[5:])]
    return pruning_experiment(model, data, data, "1", criteria=["random"], amounts=[0.5], **options)  # type: ignore[arg-type]


def test_seeds_of_numpy() -> None:
    import numpy as np

    model, x = made(mlp)
    labels = torch.arange(len(x)) % 4
    expected = experiment(model, labels, x, seeds=[0, 1])
    pd.testing.assert_frame_equal(experiment(model, labels, x, seeds=np.arange(2)), expected)


@pytest.mark.parametrize("wrong", [-100, 4])
def test_labels_that_are_no_classes(wrong: int) -> None:
    model, x = made(mlp)
    labels = torch.arange(len(x)) % 4
    labels[-1] = wrong
    with pytest.raises(ValueError, match=rf"test: label {wrong} is none of the 4 classes"):
        experiment(model, labels, x, target=0)


def test_training_within_inference_mode() -> None:
    model, x = made(mlp)
    labels = torch.arange(len(x)) % 4
    expected = experiment(model, labels, x, fine_tune=1)
    with torch.inference_mode():
        found = experiment(model, labels, x.clone(), fine_tune=1)
    pd.testing.assert_frame_equal(found, expected)
