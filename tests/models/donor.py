"""A trained scorer of splice donor sites, out of MMSplice (Cheng et al., Genome Biology 2019, 20:48).

It sees 18 bases, one-hot in the order A, C, G, T: the last five of an exon and the first thirteen of the intron behind
it. Almost every intron begins with GT, in the consensus CAG|GT(A/G)AGT.
"""

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from tests.models.installed import inside

BASES = "ACGT"
EXON, WINDOW = 5, 18


class Windows(nn.Sequential):
    """Logits ``(batch, 1)`` of windows ``(batch, 18, 4)``: 72-128-64-1 with batch norm and ReLU."""

    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(72, 128),
            nn.BatchNorm1d(128, eps=1e-3),
            nn.ReLU(),
            nn.Linear(128, 64),
            nn.BatchNorm1d(64, eps=1e-3),
            nn.ReLU(),
            nn.Linear(64, 1),
        )


@cache
def donor() -> nn.Module:
    """The trained network in float64, frozen; the sigmoid at its end is left out."""
    h5py = pytest.importorskip("h5py")
    model = Windows()
    layers = {1: "dense1", 2: "batch_normalization_1", 4: "dense2", 5: "batch_normalization_2", 7: "dense_1"}
    parts = {
        "kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias",
        "moving_mean": "running_mean", "moving_variance": "running_var",
    }  # fmt: skip
    state = {}
    with h5py.File(inside("mmsplice", "models", "Donor.h5")) as file:
        for number, name in layers.items():
            for key, values in file["model_weights"][name][f"{name}_4"].items():
                part = key.removesuffix(":0")
                state[f"{number}.{parts[part]}"] = torch.tensor(values[()].T if part == "kernel" else values[()])
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert all(key.endswith("num_batches_tracked") for key in missing), missing
    return model.double().eval().requires_grad_(requires_grad=False)


def windows(*sequences: str) -> Tensor:
    """One-hot ``(batch, 18, 4)`` of sequences of 18 bases."""
    numbers = torch.tensor([[BASES.index(base) for base in sequence] for sequence in sequences])
    return torch.eye(4, dtype=torch.float64)[numbers]
