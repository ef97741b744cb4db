"""What goes on around a call: autocast, other threads, encoders of another precision."""

from threading import Thread

import pytest
import torch
from torch import Tensor, nn

import conductance as cd
from conductance.hooks import capture
from tests.helpers import normal, seeded


def net() -> nn.Sequential:
    """Two layers on ``(batch, 4)``."""
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def test_autocast_is_for_the_model_and_not_for_the_sums() -> None:
    model, x = seeded(net).float(), normal(2, 4).float()
    exact = cd.neuron_conductance(model, x, "1", target=0, rtol=1e-3)
    assert isinstance(exact, cd.NeuronConductance)
    weights = cd.weight_conductance(model, x, target=0, rtol=1e-3)
    flow = cd.conductance_flow(model, x, "1", target=0, top=None, units={"1": "all"}, rtol=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cd.neuron_conductance(model, x, "1", target=0, n_steps=17)
        found_weights = cd.weight_conductance(model, x, target=0, n_steps=17)
        found_flow = cd.conductance_flow(model, x, "1", target=0, units={"1": "all"}, n_steps=17)
    assert isinstance(found, cd.NeuronConductance)
    assert isinstance(found.values, Tensor)
    assert isinstance(exact.values, Tensor)
    pairs = [(found.values, exact.values), (found.total, exact.total)]
    pairs += [(found_weights[name], weights[name]) for name in weights]
    pairs += [(found_flow.edges[pair], flow.edges[pair]) for pair in flow.edges]
    for one, other in pairs:
        assert float((one - other).abs().sum()) < 0.05 * float(other.abs().sum())


def test_what_another_thread_runs_the_model_on_is_not_tapped() -> None:
    model, seen = seeded(net), []
    with capture(model, ["1"], lambda _point, activation, _gradient: seen.append(activation.shape)):
        output = model(normal(2, 4).requires_grad_())
        other = Thread(target=lambda: model(normal(7, 4).requires_grad_()).sum().backward())
        other.start()
        other.join()
        output.sum().backward()
    assert seen == [(2, 5)]


def test_threads_that_explain_one_model_do_not_get_each_others_rows() -> None:
    model, inputs = seeded(net).requires_grad_(), [normal(size, 4, seed=size) for size in (1, 2, 3)]
    expected = [cd.total_conductance(model, x, "1", target=0, rtol=1e-6)["1"] for x in inputs]
    found: dict[int, Tensor] = {}

    def run(number: int) -> None:
        for _ in range(3):
            found[number] = cd.total_conductance(model, inputs[number], "1", target=0, rtol=1e-6)["1"]

    threads = [Thread(target=run, args=(number,)) for number in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[number], one) for number, one in enumerate(expected))
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_encoder_may_compute_in_a_precision_of_its_own(dtype: torch.dtype) -> None:
    model, x = seeded(net).to(dtype), normal(2, 4).to(dtype)
    decoder = normal(3, 5).float()
    found = cd.dictionary_conductance(
        model, x, "1", encode=lambda y: torch.tanh(y.float() @ decoder.T), decoder=decoder, target=0, n_steps=9
    )
    whole = cd.total_conductance(model, x, "1", target=0, n_steps=9)["1"]
    torch.testing.assert_close(found["1"].sum(1), whole.sum(1), rtol=0.05, atol=0.02)
    assert found["1"].shape == (2, 4)


def test_attention_of_something_that_is_no_module_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="model is a function; expected a module"):
        cd.attention_conductance(lambda x: x, normal(2, 4))  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [slice(None, None, 0), slice("a", "b"), (slice(None, None, 0),)])
def test_a_slice_that_is_none_is_named(given: object) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^neurons holds slice"):
        cd.neuron_conductance(seeded(net), normal(2, 4), "1", neurons=given, target=0)  # type: ignore[arg-type]


class Words(nn.Module):
    """Embedded ids, by one that is looked up and one that makes bags, both of limited norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Embedding(11, 4, max_norm=0.5), nn.Linear(4, 3)
        self.bag, self.head = nn.EmbeddingBag(11, 3, max_norm=0.5), nn.Linear(3, 2)

    def forward(self, ids: Tensor) -> Tensor:
        output: Tensor = self.head(torch.tanh(self.fc(self.embed(ids)).mean(1)) + self.bag(ids))
        return output


@pytest.mark.parametrize("inference", [False, True])
def test_weights_that_a_lookup_shrinks_are_put_back(inference: bool) -> None:
    with torch.inference_mode(inference):
        model = seeded(Words)
    before = {name: (id(weight), weight.clone()) for name, weight in model.named_parameters()}
    ids = torch.arange(10).view(2, 5)
    total = cd.total_conductance(model, ids, "fc", target=0, path_from="embed", rtol=1e-6)
    cd.hooks.list_points(model, ids)
    assert total.converged.all()
    assert total["fc"].abs().max() > 1e-3
    for name, weight in model.named_parameters():
        assert id(weight) == before[name][0]
        assert torch.equal(weight, before[name][1])
    model(ids)
    assert not torch.equal(model.get_parameter("embed.weight"), before["embed.weight"][1])  # as it does by itself
