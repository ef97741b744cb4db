"""A trained bidirectional LSTM: its output, closed form behind a linear head, and its unused states."""

from functools import cache

import pytest
from torch import Tensor

from conductance import TotalConductance, total_conductance
from tests.models.training import accuracy
from tests.models.vowels import Speaker, speaker, vowels

pytestmark = pytest.mark.slow
EVERY = 37  # of the test set: ten examples, all speakers but one
RTOL = 1e-2


def chosen() -> tuple[Tensor, Tensor, Tensor]:
    """Utterances, speakers, and the mean utterance of the training set."""
    data = vowels()
    return data.test[::EVERY], data.test_labels[::EVERY], data.train.double().mean(0)


def above_average(logits: Tensor, examples: Tensor) -> Tensor:
    """The speaker's logit less the mean of all."""
    labels = chosen()[1][examples]
    return logits.gather(1, labels[:, None])[:, 0] - logits.mean(1)


@cache
def explained() -> TotalConductance:
    x, _, baseline = chosen()
    return total_conductance(speaker(), x, target=above_average, baselines=baseline, rtol=RTOL)


def test_the_net_has_learned() -> None:
    assert accuracy(speaker(), vowels().test, vowels().test_labels) > 0.9


def test_a_mean_over_time_behind_the_lstm_is_known_in_closed_form() -> None:
    x, labels, baseline = chosen()
    model, total = speaker(), explained()
    assert isinstance(model, Speaker)
    moved = model.lstm(x)[0] - model.lstm(baseline[None])[0]
    weight = model.head.weight[labels] - model.head.weight.mean(0)
    expected = moved * weight[:, None] / x.shape[1]
    size = expected.abs().sum((1, 2))
    assert (size > 0.1).all()
    assert ((total["lstm[0]"] - expected).abs().sum((1, 2)) <= RTOL * size).all()


def test_cuts_are_complete_and_states_that_nothing_reads_get_nothing() -> None:
    total = explained()
    assert list(total) == ["lstm[0]", "lstm[1][0]", "lstm[1][1]", "head"]
    assert total.converged.all()
    for layer in ("lstm[0]", "head"):
        assert total.is_cut[layer]
        size = total[layer].flatten(1).abs().sum(1)
        assert ((total[layer].flatten(1).sum(1) - total.output_change).abs() <= RTOL * size).all()
    for layer in ("lstm[1][0]", "lstm[1][1]"):
        assert not total.is_cut[layer]
        assert not total.info[layer].used
        assert total[layer].shape == (len(total.status), 2, 32)
        assert float(total[layer].abs().max()) == 0.0
