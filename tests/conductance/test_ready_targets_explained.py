"""Ready-made targets through the whole machinery: what every layer gets adds up to what the target changes by."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conductance import TotalConductance, conductance_flow, load, targets, total_conductance
from conductance.targets import OutputTarget
from tests.conductance.neuron_nets import one, tensor
from tests.helpers import AttentionNet, ConvNet, ResidualNet, normal, seeded

LABELS = torch.tensor([2, 0, 3])


class Segments(nn.Module):
    """Two channels of 5 × 6 to three classes of 4 × 5."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 2)
        self.act = nn.Tanh()
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"masks": self.head(self.act(self.conv(x))), "mean": x.mean((1, 2, 3))}


class Autoencoder(nn.Module):
    """Six features through two units."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(6, 2)
        self.act = nn.Tanh()
        self.decode = nn.Linear(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.decode(self.act(self.encode(x)))
        return output


class Reader(nn.Module):
    """A causal language model: eleven tokens, the mean of what came before, logits ``(batch, tokens, 11)``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.mix = nn.Linear(4, 7)
        self.act = nn.GELU()
        self.head = nn.Linear(7, 11)

    def forward(self, ids: Tensor) -> Tensor:
        embedded = self.embed(ids)
        before = embedded.cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None]
        output: Tensor = self.head(self.act(self.mix(before)))
        return output


@pytest.mark.parametrize(
    "target",
    [
        targets.logit_difference(LABELS, [0, 1, 2]),
        targets.probability(LABELS),
        targets.log_probability(LABELS, activation="sigmoid"),
        targets.loss(None, LABELS),
        targets.loss(F.mse_loss, normal(3, 4, seed=4)),
        targets.output_sum(normal(3, 4, seed=5)),
        targets.cosine_similarity(normal(4, seed=6)),
    ],
    ids=lambda target: repr(target).partition("(")[0],
)
def test_layers_add_up_to_the_change_of_the_target(target: OutputTarget) -> None:
    model, x = seeded(ResidualNet), normal(3, 7, seed=2)
    change = target(model(x)) - target(model(torch.zeros_like(x)))
    total = total_conductance(model, x, ["stem", "sum1", "head"], target=target, rtol=1e-5, internal_batch_size=16)
    assert total.settings["target"] == repr(target)
    assert total.converged.all()
    assert change.abs().min() > 1e-3
    for layer in total:
        torch.testing.assert_close(total[layer].sum(1), change, rtol=1e-5, atol=1e-7)


def test_the_margin_has_kinks_and_adds_up() -> None:
    model, x = seeded(ConvNet), normal(3, 3, 8, 10, seed=1)
    target = targets.margin(LABELS)
    change = target(model(x)) - target(model(torch.zeros_like(x)))
    total = total_conductance(model, x, ["conv", "head"], target=target, rtol=1e-4)
    assert "Amax" in str(total.settings["kinked_operators"])
    assert change.abs().min() > 1e-3
    torch.testing.assert_close(total["head"].sum(1), change, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(total["conv"].sum((1, 2, 3)), change, rtol=1e-4, atol=1e-7)


def test_the_target_of_an_index_is_the_index() -> None:
    model, x = seeded(AttentionNet), normal(3, 5, 6, seed=2)
    for index in (2, LABELS):
        ready = total_conductance(model, x, "up", target=targets.logit(index), n_steps=9)
        plain = total_conductance(model, x, "up", target=index, n_steps=9)
        assert ready["up"].abs().sum() > 0
        assert torch.equal(ready["up"], plain["up"])


@pytest.mark.filterwarnings("ignore::conductance.ZeroConductanceWarning")
def test_the_pixels_of_a_segmentation_in_a_dict() -> None:
    model, x = seeded(Segments), normal(2, 2, 5, 6, seed=3)
    mask = model(x)["masks"].argmax(1) == torch.tensor([1, 2])[:, None, None]
    assert mask.any((1, 2)).all()
    assert not mask.all()
    total = total_conductance(
        model, x, ["conv", "act"], target=targets.class_pixels([1, 2], mask, key="masks"), rtol=1e-6
    )
    moved = model(x)["masks"] - model(torch.zeros_like(x))["masks"]
    change = torch.stack([moved[0, 1][mask[0]].sum(), moved[1, 2][mask[1]].sum()])
    torch.testing.assert_close(total["conv"].sum((1, 2, 3)), change, rtol=1e-6, atol=1e-8)
    assert total["conv"].abs().sum((1, 2, 3)).min() > 1e-2
    plain = total_conductance(model, x, "conv", target=targets.output_sum(key="mean"), rtol=1e-6)
    assert plain["conv"].abs().max() == 0.0  # the mean does not pass through it


def test_an_example_whose_mask_is_empty_has_no_conductance() -> None:
    model, x = seeded(Segments), normal(2, 2, 5, 6, seed=3)
    mask = torch.tensor([True, False])[:, None, None].expand(2, 4, 5)
    total = total_conductance(model, x, "conv", target=targets.class_pixels(1, mask, key="masks"), rtol=1e-6)
    assert total["conv"][0].abs().sum() > 1e-2
    assert total["conv"][1].abs().sum() == 0.0


def test_the_loss_of_an_autoencoder_from_input_to_latent_and_on() -> None:
    model, x = seeded(Autoencoder), normal(3, 6, seed=5)
    target = targets.loss(F.mse_loss, x)
    change = ((model(x) - x) ** 2).mean(1) - ((model(torch.zeros_like(x)) - x) ** 2).mean(1)
    total = total_conductance(model, x, ["encode", "act", "decode"], target=target, rtol=1e-7)
    for layer in total:
        torch.testing.assert_close(total[layer].sum(1), change, rtol=1e-7, atol=1e-9)
    latent = tensor(one(model, "act", inputs=x, neurons=[0, 1], target=target, rtol=1e-7))
    torch.testing.assert_close(latent.sum(2), total["act"], rtol=1e-6, atol=1e-8)
    flow = conductance_flow(model, x, ["act"], target=target, rtol=1e-6)
    assert flow.settings["target"] == repr(target)


def test_every_generated_token_is_explained_by_a_run_of_its_own() -> None:
    model = seeded(Reader)
    ids = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 10]])
    found = targets.tokens(ids, start=2, quantity="log_probability")
    assert len(found) == 3
    before = model.get_submodule("head")(F.gelu(model.get_submodule("mix")(torch.zeros(1, 4).double()))).log_softmax(1)[
        0
    ]
    for place, target in enumerate(found, 2):
        total = total_conductance(model, ids, ["embed", "mix"], target=target, rtol=1e-6)
        after = model(ids)[:, place - 1].log_softmax(1)[torch.arange(2), ids[:, place]]
        torch.testing.assert_close(total["embed"].sum((1, 2)), after - before[ids[:, place]], rtol=1e-6, atol=1e-8)
        assert total["embed"][:, :place].abs().sum(2).min() > 0
        assert total["embed"][:, place:].abs().max() == 0  # a causal model does not look ahead
    whole: Any = lambda out, n: sum(each(out, n) for each in found)  # noqa: E731
    sequence = total_conductance(model, ids, "embed", target=whole, rtol=1e-6)
    parts = [total_conductance(model, ids, "embed", target=each, rtol=1e-6)["embed"] for each in found]
    torch.testing.assert_close(sequence["embed"], torch.stack(parts).sum(0), rtol=1e-4, atol=1e-6)


def test_batches_and_shuffled_examples_give_the_same() -> None:
    model, x = seeded(AttentionNet), normal(3, 5, 6, seed=2)
    order = torch.tensor([2, 0, 1])
    whole = total_conductance(model, x, "up", target=targets.log_probability(LABELS), n_steps=9)
    shuffled = total_conductance(
        model, x[order], "up", target=targets.log_probability(LABELS[order]), n_steps=9, internal_batch_size=4
    )
    assert whole["up"].abs().sum() > 0
    torch.testing.assert_close(shuffled["up"], whole["up"][order], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "target",
    [
        targets.margin(LABELS),
        targets.loss(None, LABELS),
        targets.loss(nn.HuberLoss(reduction="none"), normal(3, 4, seed=4)),
        targets.cosine_similarity(normal(3, 4, seed=6)),
    ],
    ids=lambda target: repr(target)[:30],
)
def test_neurons_are_the_same_forward_and_in_reverse(target: OutputTarget) -> None:
    model, x = seeded(ResidualNet), normal(3, 7, seed=2)
    forward, reverse = (
        tensor(one(model, "act1", inputs=x, neurons=[5], target=target, n_steps=5, mode=mode))
        for mode in ("forward", "reverse")
    )
    assert forward.abs().sum((1, 2)).min() > 0
    torch.testing.assert_close(forward, reverse, rtol=1e-10, atol=1e-12)


def test_a_saved_result_tells_its_target(tmp_path: Any) -> None:
    model, x = seeded(AttentionNet), normal(3, 5, 6, seed=2)
    target = targets.logit_difference(LABELS, 1)
    total_conductance(model, x, "up", target=target, n_steps=3).save(tmp_path / "result")
    result = load(tmp_path / "result")
    assert isinstance(result, TotalConductance)
    text = result.settings["target"]
    assert text == "targets.logit_difference([2, 0, 3], 1)"
    assert torch.equal(eval(str(text), {"targets": targets})(model(x)), target(model(x)))
