"""Rated snippets of film reviews, and a small convolutional network in the manner of Kim (1408.5882).

10,605 snippets of Pang and Lee, rated by twenty people each for Hutto and Gilbert, VADER (ICWSM 2014).
"""

import io
import re
import tarfile
from collections import Counter
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.models.installed import source
from tests.models.training import trained

LENGTH, WORDS = 40, 6000
PAD, UNKNOWN = 0, 1


class Reviews(NamedTuple):
    """Word numbers ``(batch, 40)``, 0 behind the end, and whether the rating is positive; vocabulary by number."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    words: list[str]


class Sentiment(nn.Module):
    """Logits ``(batch, 2)``: learned embeddings, three widths of 50 filters each, maximum over places."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 50, padding_idx=PAD)
        self.convs = nn.ModuleList(nn.Conv1d(50, 50, width) for width in (3, 4, 5))
        self.act = nn.ReLU()
        self.drop = nn.Dropout(0.5)
        self.joined = nn.Identity()
        self.head = nn.Linear(150, 2)

    def forward(self, ids: Tensor) -> Tensor:
        embedded = self.embed(ids).transpose(1, 2)
        pooled = torch.cat([self.act(conv(embedded)).amax(2) for conv in self.convs], 1)
        logits: Tensor = self.head(self.drop(self.joined(pooled)))
        return logits


def _snippets() -> list[tuple[float, list[str]]]:
    """Rating from -4 to 4 and lower-case words of each snippet."""
    with tarfile.open(source("vaderSentiment")) as outer:
        name = next(one for one in outer.getnames() if one.endswith("hutto_ICWSM_2014.tar.gz"))
        packed = outer.extractfile(name)
        assert packed is not None
        with tarfile.open(fileobj=io.BytesIO(packed.read())) as inner:
            text = inner.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
            assert text is not None
            lines = text.read().decode("utf-8", errors="replace").splitlines()
    fields = [line.split("\t") for line in lines]
    return [(float(one[1]), re.findall(r"[a-z]+|[!?]", one[2].lower())) for one in fields if len(one) > 2]


@cache
def reviews() -> Reviews:
    """Nine tenths to learn from and a tenth to test, drawn from a seed; only words of the first part are known."""
    snippets = _snippets()
    order = torch.randperm(len(snippets), generator=torch.Generator().manual_seed(0)).tolist()
    cut = len(order) // 10
    counted = Counter(word for n in order[cut:] for word in snippets[n][1])
    words = ["", "?unknown", *(word for word, _ in counted.most_common(WORDS - 2))]
    number = {word: n for n, word in enumerate(words)}

    def encoded(chosen: list[int]) -> tuple[Tensor, Tensor]:
        ids = torch.full((len(chosen), LENGTH), PAD)
        for row, n in enumerate(chosen):
            known = [number.get(word, UNKNOWN) for word in snippets[n][1][:LENGTH]]
            ids[row, : len(known)] = torch.tensor(known, dtype=torch.long)
        return ids, torch.tensor([int(snippets[n][0] > 0) for n in chosen])

    return Reviews(*encoded(order[cut:]), *encoded(order[:cut]), words)


@cache
def sentiment() -> nn.Module:
    """The trained network, in float64."""
    data = reviews()
    return trained(Sentiment, data.train, data.train_labels, epochs=4, batch=64, rate=2e-3)
