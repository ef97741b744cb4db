"""A trained splice-site scorer finds what biology knows: introns begin with GT."""

from functools import cache

import pytest
import torch
from torch import Tensor

from conductance import NeuronConductance, TotalConductance, neuron_conductance, total_conductance
from tests.models.donor import EXON, WINDOW, donor, windows

pytestmark = pytest.mark.slow
MOTIF = {EXON, EXON + 1}
CUTS = ["1", "2", "3", "4", "5", "6", "7"]


def drawn(count: int) -> Tensor:
    """Windows of random bases: no motif is planted."""
    numbers = torch.randint(0, 4, (count, WINDOW), generator=torch.Generator().manual_seed(0))
    return torch.eye(4, dtype=torch.float64)[numbers]


@cache
def explained() -> TotalConductance:
    """From a quarter of each base at every place."""
    return total_conductance(donor(), drawn(48), ["0", *CUTS], target=0, baselines=0.25, rtol=1e-3)


def test_the_net_is_a_trained_one() -> None:
    consensus, no_g, no_t = donor()(windows("AACAGGTAAGTATTTTTT", "AACAGATAAGTATTTTTT", "AACAGGAAAGTATTTTTT"))[:, 0]
    assert consensus > 7
    assert max(no_g, no_t) < consensus - 5
    assert donor()(drawn(1000)).mean() < -3


def test_cuts_are_complete() -> None:
    total = explained()
    change = (donor()(drawn(48)) - donor()(torch.full((1, WINDOW, 4), 0.25, dtype=torch.float64)))[:, 0]
    torch.testing.assert_close(total.output_change, change, rtol=1e-9, atol=1e-9)
    assert total.converged.all()
    for layer in CUTS:
        assert total.is_cut[layer]
        size = total[layer].abs().sum(1)
        assert ((total[layer].sum(1) - change).abs() <= 1e-3 * size).all()


def test_the_places_that_matter_most_are_the_motif() -> None:
    """By mean ``|Σ_base C|`` of the flattened input, which is integrated gradients, over random windows."""
    by_place = explained()["0"].reshape(-1, WINDOW, 4).sum(2).abs().mean(0)
    order = by_place.argsort(descending=True).tolist()
    assert set(order[:2]) == MOTIF
    assert by_place[EXON] > 2 * by_place[order[2]]


def test_the_places_that_feed_the_hidden_units_are_the_motif() -> None:
    """By mean ``Σ_j |C_ij|`` over the 64 units of the last hidden layer, places as features."""
    x = drawn(8)
    x[:, EXON : EXON + 2] = windows("GT" * 9)[:, :2]
    found = neuron_conductance(donor(), x, "6", feature_groups=1, target=0, baselines=0.25, rtol=1e-2)
    assert isinstance(found, NeuronConductance)
    assert isinstance(found.values, Tensor)
    assert found.values.shape == (8, 64, WINDOW)
    fed = found.values.abs().sum(1).mean(0)
    assert set(fed.argsort(descending=True)[:2].tolist()) == MOTIF
    gradients = total_conductance(donor(), x, "0", target=0, baselines=0.25, rtol=1e-3)["0"]
    size = found.values.abs().sum((1, 2))
    through = found.values.sum(1) - gradients.reshape(8, WINDOW, 4).sum(2)
    assert (through.abs().sum(1) <= 1e-2 * size).all()
