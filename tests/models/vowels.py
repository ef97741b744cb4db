"""Nine speakers by how they say a vowel: cepstra ``(batch, 25, 12)``, and a bidirectional LSTM that tells them apart.

Kudo, Toyama and Shimbo, Multidimensional Curve Classification Using Passing-Through Regions (1999).
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.models.installed import inside
from tests.models.training import trained


class Vowels(NamedTuple):
    """Utterances ``(batch, 25, 12)`` and speakers; the training set in float32, the test set in float64."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


class Speaker(nn.Module):
    """Logits ``(batch, 9)`` from the mean over time of a bidirectional LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 32, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 9)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(x)[0].mean(1))
        return logits


def _read(part: str) -> tuple[Tensor, Tensor]:
    """Utterances and speakers of a file: a line each, axes apart by colons, the speaker last."""
    path = inside("aeon", "datasets", "data", "JapaneseVowels", f"JapaneseVowels_eq_{part}.ts")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and line[0] not in "#@"]
    fields = [line.split(":") for line in lines]
    series = [[[float(number) for number in axis.split(",")] for axis in line[:-1]] for line in fields]
    return torch.tensor(series).transpose(1, 2).contiguous(), torch.tensor([int(line[-1]) - 1 for line in fields])


@cache
def vowels() -> Vowels:
    """270 utterances to learn from and 370 to test."""
    (train, train_labels), (test, test_labels) = _read("TRAIN"), _read("TEST")
    return Vowels(train, train_labels, test.double(), test_labels)


@cache
def speaker() -> nn.Module:
    """The trained LSTM, in float64."""
    data = vowels()
    return trained(Speaker, data.train, data.train_labels, epochs=20, batch=32, rate=3e-3)
