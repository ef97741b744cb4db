"""A convolutional network that reads film reviews: words from the padding token, filters, and three ways at once."""

from functools import cache

import pytest
import torch
from torch import Tensor

from conductance import TotalConductance, total_conductance
from tests.models.reviews import Sentiment, reviews, sentiment
from tests.models.training import accuracy

pytestmark = pytest.mark.slow
RTOL = 1e-2
COUNT = 60


def margin(logits: Tensor) -> Tensor:
    """How much more positive than negative."""
    return logits[:, 1] - logits[:, 0]


@cache
def explained() -> TotalConductance:
    return total_conductance(
        sentiment(), reviews().test[:COUNT], ["embed", "act", "joined"], target=margin, baselines="pad", rtol=RTOL
    )


def test_the_net_has_learned() -> None:
    assert accuracy(sentiment(), reviews().test, reviews().test_labels) > 0.68


def test_filters_in_front_of_a_linear_head_are_known_in_closed_form() -> None:
    model = sentiment()
    assert isinstance(model, Sentiment)
    caught: list[Tensor] = []
    handle = model.joined.register_forward_hook(lambda _module, _args, output: caught.append(output))
    model(reviews().test[:COUNT])
    model(torch.zeros_like(reviews().test[:COUNT]))
    handle.remove()
    expected = (caught[0] - caught[1]) * (model.head.weight[1] - model.head.weight[0])
    size = expected.abs().sum(1)
    assert (size > 0.1).all()
    assert ((explained()["joined"] - expected).abs().sum(1) <= RTOL * size).all()


def test_three_widths_together_carry_the_change() -> None:
    total = explained()
    assert total.converged.all()
    widths = ["act#0", "act#1", "act#2"]
    assert [tuple(total[layer].shape) for layer in widths] == [(COUNT, 50, length) for length in (38, 37, 36)]
    assert not any(total.is_cut[layer] for layer in widths)
    sums = torch.stack([total[layer].flatten(1).sum(1) for layer in widths])
    size = sum(total[layer].flatten(1).abs().sum(1) for layer in widths)
    assert ((sums.sum(0) - total.output_change).abs() <= RTOL * size).all()
    assert (sums.abs().mean(1) > 0.1 * total.output_change.abs().mean()).all()


def test_words_have_the_sign_that_a_reader_gives_them() -> None:
    """Conductance of a word is what its embedding brings, summed over its 50 numbers."""
    words = {
        1: ["best", "moving", "beautiful", "fun", "entertaining", "powerful"],
        -1: ["bad", "dull", "worst", "boring", "fails", "tedious"],
    }
    data = reviews()
    number = {word: n for n, word in enumerate(data.words)}
    for sign, chosen in words.items():
        known = torch.tensor([number[word] for word in chosen])
        having = torch.isin(data.test, known).any(1).nonzero()[:40, 0]
        assert len(having) > 20
        ids = data.test[having]
        total = total_conductance(sentiment(), ids, "embed", target=margin, baselines="pad", rtol=RTOL)
        brought = total["embed"].sum(2)[torch.isin(ids, known)]
        assert float((sign * brought > 0).double().mean()) > 0.8
        assert float((total["embed"].sum(2)[ids == 0]).abs().max()) == 0.0  # padding starts where it ends


def test_silencing_the_filters_that_conduct_most_turns_the_answer() -> None:
    """Of the filters that speak for the answer, ten of 150 set to what they are on nothing; against random ones."""
    model, data, total = sentiment(), reviews(), explained()
    sign = total.output_change.sign()
    conducted = total["joined"] * sign[:, None]
    drops = {}
    random = torch.rand(conducted.shape, generator=torch.Generator().manual_seed(0))
    for name, order in {"conductance": conducted, "random": random}.items():
        chosen = order.topk(10, dim=1).indices
        silenced = _silenced(model, data.test[:COUNT], chosen)
        drops[name] = float(((margin(model(data.test[:COUNT])) - silenced) * sign).mean())
    assert drops["conductance"] > 5 * abs(drops["random"])
    told = conducted.gather(1, conducted.topk(10, dim=1).indices).sum(1).mean()
    assert drops["conductance"] == pytest.approx(float(told), rel=0.02)  # a linear head: what was told is what is lost


def _silenced(model: torch.nn.Module, ids: Tensor, chosen: Tensor) -> Tensor:
    """The margin with some filters of each example as on padding alone."""
    caught: list[Tensor] = []

    def silence(_module: torch.nn.Module, _args: object, output: Tensor) -> Tensor:
        caught.append(output)
        return output if len(caught) == 1 else output.scatter(1, chosen, caught[0].gather(1, chosen))

    handle = model.get_submodule("joined").register_forward_hook(silence)
    try:
        model(torch.zeros_like(ids))
        return margin(model(ids))
    finally:
        handle.remove()
