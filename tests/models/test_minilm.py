"""A trained sentence transformer: what a cosine changes by is told at every layer, at a known cost."""

from functools import cache

import pytest
import torch
from torch import Tensor

from conductance import TotalConductance, total_conductance
from tests.models.minilm import BRANCHES, CUTS, EMBEDDING, SENTENCES, reference, sentences, tokens

RTOL = 1e-3

pytestmark = pytest.mark.slow


def cosine(vectors: Tensor) -> Tensor:
    """Cosine to the reference sentence, ``(batch,)``."""
    return vectors @ reference()


@cache
def explained() -> TotalConductance:
    model, _ = sentences()
    reference()
    return total_conductance(
        model, tokens(SENTENCES), CUTS + BRANCHES, path_from=EMBEDDING, baselines="pad", target=cosine, rtol=RTOL
    )


def test_the_model_is_a_trained_one() -> None:
    model, _ = sentences()
    similar = cosine(model(**tokens(SENTENCES)))
    assert similar[0] > 0.6
    assert (similar[1:].abs() < 0.2).all()


def test_every_layer_carries_the_whole_change() -> None:
    model, _ = sentences()
    given, total = tokens(SENTENCES), explained()
    assert total.converged.all()
    padded = {**given, "input_ids": torch.zeros_like(given["input_ids"])}
    change = cosine(model(**given)) - cosine(model(**padded))
    torch.testing.assert_close(total.output_change, change, rtol=0, atol=1e-6)
    assert change.abs().min() > 0.04
    for layer in CUTS:
        assert total.is_cut[layer]
        size = total[layer].flatten(1).abs().sum(1)
        assert ((total[layer].flatten(1).sum(1) - change).abs() <= RTOL * size).all()
        torch.testing.assert_close(total.coverage[layer], torch.ones(3), rtol=0, atol=2e-3)


def test_inside_a_residual_branch_the_rest_takes_the_other_way() -> None:
    total = explained()
    for layer in BRANCHES:
        assert not total.is_cut[layer]
        assert total[layer].shape[2] == 1536
        assert (total.coverage[layer] < 0.6).all()
    assert all(total.coverage[layer].abs().max() > 0.05 for layer in BRANCHES)


def test_65_evaluations_give_a_thousandth() -> None:
    """What a fixed budget gives, against the adaptive result, whose estimates take more to be sure of it."""
    model, _ = sentences()
    fixed = total_conductance(
        model, tokens(SENTENCES), CUTS, path_from=EMBEDDING, baselines="pad", target=cosine, n_steps=65
    )
    assert (fixed.evaluations == 65).all()
    for layer in CUTS:
        size = explained()[layer].flatten(1).abs().sum(1)
        assert ((fixed[layer] - explained()[layer]).flatten(1).abs().sum(1) <= RTOL * size).all()


def test_the_cost_is_known() -> None:
    assert (explained().evaluations <= 140).all()
