"""Every measure against a literal computation; loaders, targets, options and rankings."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conductance as cd
from conductance import targets
from conductance.analysis import MEASURES, measure_values, rank_units, unit_scores
from tests.helpers import normal, seeded


class Small(nn.Module):
    """Convolution, ReLU, max-pool, linear, tanh, linear on ``(batch, 2, 6, 8)``; every nonlinearity a module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 5, (3, 4))
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d((2, 1))
        self.fc = nn.Linear(50, 7)
        self.tanh = nn.Tanh()
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(self.relu(self.conv(x)))
        output: Tensor = self.head(self.tanh(self.fc(pooled.flatten(1))))
        return output

    def parts(self, layer: str, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The activation of a layer, and the logits as a function of it."""
        if layer == "conv":
            return self.conv(x), lambda h: self.head(torch.tanh(self.fc(self.pool(torch.relu(h)).flatten(1))))
        first = self.relu(self.conv(x))
        if layer == "relu":
            return first, lambda h: self.head(torch.tanh(self.fc(self.pool(h).flatten(1))))
        second = self.fc(self.pool(first).flatten(1))
        return second, lambda h: self.head(torch.tanh(h))


LAYERS = ["relu", "fc"]
X, BASELINE, LABELS = normal(4, 2, 6, 8, seed=1), 0.3, torch.tensor([2, 0, 1, 1])


@pytest.fixture
def small() -> Small:
    model = seeded(Small)
    assert isinstance(model, Small)
    return model


def positions_summed(values: Tensor) -> Tensor:
    return values.flatten(2).sum(2) if values.dim() > 2 else values


def literal(model: Small, layer: str, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Products of the gradient and the activation, one example and one autograd call at a time."""
    found: dict[str, list[Tensor]] = {}
    for example, label in zip(x.split(1), labels.tolist(), strict=True):
        start, _ = model.parts(layer, torch.full_like(example, BASELINE))
        h, rest = model.parts(layer, example)
        h = h.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(rest(h)[0, label], h)
        h = h.detach()
        for name, value in (
            ("gradient_x_difference", gradient * (h - start)),
            ("gradient_x_activation", gradient * h),
            ("activation", h),
        ):
            found.setdefault(name, []).append(positions_summed(value))
    return {name: torch.cat(parts) for name, parts in found.items()}


@pytest.mark.parametrize("layer", LAYERS)
def test_products_of_gradient_and_activation(small: Small, layer: str) -> None:
    expected = literal(small, layer, X, LABELS)
    found = measure_values(small, X, layer, target=LABELS, measures=list(expected), baselines=BASELINE)
    for name, values in expected.items():
        assert found[name][layer].dtype == torch.float64
        assert values.abs().min() > 0 or name == "activation"
        assert (found[name][layer] - values).abs().max() < 1e-12


def test_conductance_is_total_conductance_to_the_tolerance_asked(small: Small) -> None:
    total = cd.total_conductance(small, X, LAYERS, target=LABELS, baselines=BASELINE, rtol=1e-4)
    found = measure_values(small, X, LAYERS, target=LABELS, measures="conductance", baselines=BASELINE, rtol=1e-4)
    coarse = measure_values(small, X, LAYERS, target=LABELS, measures="conductance", baselines=BASELINE, rtol=0.3)
    for layer in LAYERS:
        assert (found["conductance"][layer] - total.per_unit(layer)).abs().max() < 1e-12
        assert (coarse["conductance"][layer] - total.per_unit(layer)).abs().max() > 1e-6


@pytest.mark.parametrize("layer", LAYERS)
def test_internal_influence_is_the_mean_gradient_on_the_path(small: Small, layer: str) -> None:
    steps = 4001
    expected = torch.zeros(4, 5 if layer == "relu" else 7, dtype=torch.float64)
    for number in range(steps):
        h, rest = small.parts(layer, BASELINE + (X - BASELINE) * (number + 0.5) / steps)
        h = h.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(rest(h).gather(1, LABELS[:, None]).sum(), h)
        expected += positions_summed(gradient) / steps

    def error(n_steps: int) -> float:
        found = measure_values(
            small, X, layer, target=LABELS, measures="internal_influence", baselines=BASELINE, n_steps=n_steps
        )["internal_influence"][layer]
        return float((found - expected).abs().max() / expected.abs().max())

    assert error(128) < 5e-3
    assert error(2) > error(128)


def rescale_to_the_linear_layer(model: Small, x: Tensor, start: Tensor, label: int) -> Tensor:
    """DeepLIFT by hand: the weight of a unit's tanh in the logit, times the change of that tanh."""
    (h, _), (h0, _) = model.parts("fc", x), model.parts("fc", start)
    return model.head.weight[label] * (torch.tanh(h) - torch.tanh(h0))


def rescale_to_the_convolution(model: Small, x: Tensor, start: Tensor, label: int) -> Tensor:
    """The same before max-pooling of pairs of rows: a pair's change is shared by the places of the two maxima."""
    (h, _), (h0, _) = model.parts("fc", x), model.parts("fc", start)
    through_tanh = model.head.weight[label] * (torch.tanh(h) - torch.tanh(h0)) / (h - h0)
    pooled = (through_tanh @ model.fc.weight).reshape(1, 5, 2, 5)
    (a, _), (b, _) = model.parts("relu", x), model.parts("relu", start)
    share = torch.zeros_like(a)
    for place in torch.cartesian_prod(torch.arange(5), torch.arange(2), torch.arange(5)).tolist():
        channel, row, column = place
        pair, before = a[0, channel, 2 * row : 2 * row + 2, column], b[0, channel, 2 * row : 2 * row + 2, column]
        top = torch.maximum(pair.max(), before.max())
        share[0, channel, 2 * row + int(pair.argmax()), column] += top - before.max()
        share[0, channel, 2 * row + int(before.argmax()), column] += pair.max() - top
    return (share.reshape(1, 5, 2, 2, 5) * pooled[:, :, :, None]).flatten(2).sum(2)


@pytest.mark.parametrize(
    ("layer", "by_hand"),
    [
        ("fc", rescale_to_the_linear_layer),
        ("relu", rescale_to_the_convolution),
        ("conv", rescale_to_the_convolution),
    ],
)
def test_deeplift_follows_the_rescale_rule(small: Small, layer: str, by_hand: Callable[..., Tensor]) -> None:
    start = normal(1, 2, 6, 8, seed=5)  # one whose maxima lie elsewhere than the inputs'
    given: dict[str, Any] = {"target": LABELS, "measures": "deeplift", "baselines": start.expand_as(X)}
    found = measure_values(small, X, layer, **given)["deeplift"][layer]
    expected = torch.cat([by_hand(small, X[n : n + 1], start, int(LABELS[n])) for n in range(4)])
    assert expected.abs().max() > 0.01
    assert (found - expected).abs().max() < 1e-12
    change = small(X).gather(1, LABELS[:, None])[:, 0] - small(start)[0, LABELS]
    assert (found.sum(1) - change).abs().max() < 1e-12


@pytest.mark.parametrize("measure", MEASURES)
def test_activations_in_place_change_nothing(measure: str) -> None:
    def values(*, inplace: bool) -> Tensor:
        model = seeded(
            lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(inplace), nn.Linear(5, 4), nn.ReLU(inplace), nn.Linear(4, 2))
        )
        return measure_values(model, normal(4, 3), "2", target=1, measures=measure)[measure]["2"]

    assert values(inplace=True).abs().max() > 0
    assert (values(inplace=True) - values(inplace=False)).abs().max() < 1e-12


def test_random_numbers_depend_on_seed_and_layer_alone(small: Small) -> None:
    def values(layers: Any, seed: int, x: Tensor = X) -> dict[str, Tensor]:
        return measure_values(small, x, layers, target=0, measures="random", seed=seed)["random"]

    before = torch.random.get_rng_state()
    both = values(LAYERS, 3)
    assert (both["fc"] == values("fc", 3, X[:1])["fc"][0]).all()
    assert (both["fc"] != values("fc", 4)["fc"]).all()
    assert (both["fc"][:, :5] != both["relu"]).all()
    assert (torch.random.get_rng_state() == before).all()


# Loaders, targets, options.


@pytest.mark.parametrize("measure", MEASURES)
def test_a_loader_gives_what_its_examples_give_at_once(small: Small, measure: str) -> None:
    loader = [(X[:3], LABELS[:3]), (X[3:], LABELS[3:])]
    given: dict[str, Any] = {"measures": measure, "rtol": 1e-3, "baselines": BASELINE}
    batched = measure_values(small, loader, LAYERS, target="label", **given)[measure]
    together = measure_values(small, X, LAYERS, target=LABELS, **given)[measure]
    chunked = measure_values(small, X, LAYERS, target=LABELS, internal_batch_size=3, **given)[measure]
    for layer in LAYERS:
        allowed = together[layer].abs().max() * (1e-3 if measure == "conductance" else 1e-12)
        assert batched[layer].shape == (4, 5 if layer == "relu" else 7)
        assert (batched[layer] - together[layer]).abs().max() < allowed
        assert (chunked[layer] - together[layer]).abs().max() < allowed


def test_targets(small: Small) -> None:
    def values(inputs: Any, target: Any) -> Tensor:
        return measure_values(small, inputs, "fc", target=target, measures="deeplift")["deeplift"]["fc"]

    predicted = small(X).argmax(1)
    assert len(set(predicted.tolist())) > 1
    assert (values(X, "predicted") == values(X, predicted)).all()
    assert (values([X], "predicted") == values(X, predicted)).all()
    assert (values([X], 2) == values(X, [2] * 4)).all()
    difference = values(X, targets.logit_difference(0, 2))
    assert (difference - (values(X, 0) - values(X, 2))).abs().max() < 1e-12
    assert (values(X, lambda output: output[:, 1]) == values(X, 1)).all()
    numbered = values(X, lambda output, n: output.gather(1, LABELS[n][:, None]))
    assert (numbered - values(X, LABELS)).abs().max() < 1e-12


@pytest.mark.parametrize(
    "measure", ["conductance", "gradient_x_difference", "internal_influence", "deeplift", "gradient_x_activation"]
)
def test_several_baselines_are_averaged(small: Small, measure: str) -> None:
    def values(baselines: Any) -> Tensor:
        given: dict[str, Any] = {"target": 1, "measures": measure, "rtol": 1e-4}
        return measure_values(small, X, "relu", baselines=baselines, **given)[measure]["relu"]

    apart = torch.stack([values(0.0), values(0.7)])
    allowed = apart.abs().max() * (1e-3 if measure == "conductance" else 1e-12)
    assert (values([0.0, 0.7]) - apart.mean(0)).abs().max() < allowed
    assert bool((apart[0] != apart[1]).any()) == (measure != "gradient_x_activation")


def test_inputs_of_a_dict_and_masks_reach_captum() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.act, self.head = nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            hidden: Tensor = self.act(self.fc(x)) * mask[..., None]
            output: Tensor = self.head(hidden.sum(1))
            return output

    model = seeded(Masked)
    x, mask = normal(3, 6, 5), torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 1, 0]])
    found = measure_values(model, {"x": x, "mask": mask}, "act", target=1, rtol=1e-6)
    positional = measure_values(model, (x, mask), "act", target=1, rtol=1e-6)
    change = model.act(model.fc(x)) - model.act(model.fc(torch.zeros_like(x)))  # type: ignore[operator]
    expected = (change * mask[..., None]).sum(1) * model.get_parameter("head.weight")[1]
    for measure in ("conductance", "gradient_x_difference", "deeplift"):
        assert (found[measure]["act"] - expected).abs().max() < 1e-5
    for measure in MEASURES:
        assert (found[measure]["act"] == positional[measure]["act"]).all()


def test_token_embeddings_are_a_path_for_all_measures() -> None:
    model = seeded(
        lambda: nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 6), nn.Tanh(), nn.Flatten(), nn.Linear(30, 2))
    )
    ids = torch.tensor([[1, 2, 3, 4, 5], [8, 0, 2, 2, 1]])
    found = measure_values(model, ids, "2", target=0, path_from="0", rtol=1e-6)
    change = torch.tanh(model[1](model[0](ids))) - torch.tanh(model[1].bias)  # type: ignore[index]
    weight: Tensor = model.get_parameter("4.weight")[0].reshape(5, 6)
    expected = (change * weight).sum(1)
    for measure in ("conductance", "gradient_x_difference", "deeplift"):
        assert (found[measure]["2"] - expected).abs().max() < 1e-5
    assert (found["internal_influence"]["2"] - weight.sum(0)).abs().max() < 1e-6


# Rankings.


@pytest.mark.parametrize("by", ["mean_abs", "mean"])
def test_scores_are_means_of_the_values(small: Small, by: Any) -> None:
    loader = [(X[:3], LABELS[:3]), (X[3:], LABELS[3:])]
    values = measure_values(small, X, LAYERS, target=LABELS, measures="gradient_x_activation")["gradient_x_activation"]
    table = unit_scores(small, loader, LAYERS, "gradient_x_activation", target="label", by=by)
    assert list(table.columns) == ["layer", "unit", "score"]
    assert table.attrs == {"measure": "gradient_x_activation", "by": by, "examples": 4}
    assert len(table) == 12
    assert table["score"].is_monotonic_decreasing
    for layer, unit, score in table.itertuples(index=False):
        column = values[layer][:, unit]
        assert score == pytest.approx(float((column.abs() if by == "mean_abs" else column).mean()), abs=1e-12)


def test_scores_by_conductance_rank_as_rank_units_does(small: Small) -> None:
    total = cd.total_conductance(small, X, "relu", target=LABELS)
    expected = rank_units(total, top=5)
    table = unit_scores(small, X, "relu", "conductance", target=LABELS)
    assert table["unit"].tolist() == expected["unit"].tolist()
    assert table["score"].tolist() == pytest.approx(expected["mean_abs"].tolist(), abs=1e-12)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"measures": ["conductance", "shapley"]}, ValueError, "measure must be .*'random', got 'shapley'"),
        ({"measures": []}, ValueError, "measures is empty"),
        ({"norm": "l3"}, ValueError, "norm must be 'l1' or 'l2', got 'l3'"),
        ({"n_steps": 1}, ValueError, "n_steps is 1; expected at least 2"),
        ({"rtol": -1.0}, ValueError, "rtol is -1.0"),
        ({"internal_batch_size": 0}, ValueError, "internal_batch_size is 0"),
        ({"seed": -1}, ValueError, "seed must be a whole number of at least 0, got -1"),
        ({"layers": "features.9"}, ValueError, "features.9"),
        ({"inputs": []}, ValueError, "loader gives no batches"),
        ({"inputs": [X[:0]]}, ValueError, "batch 0 has no examples"),
        ({"target": "label"}, ValueError, "target='label' needs labels"),
        ({"inputs": [X], "target": LABELS}, TypeError, "target holds one entry for each example"),
    ],
)  # fmt: skip
def test_bad_input(small: Small, given: dict[str, Any], error: type[Exception], message: str) -> None:
    asked: dict[str, Any] = {"inputs": X, "layers": "fc", "target": 0, **given}
    with pytest.raises(error, match=message):
        measure_values(small, **asked)


def test_bad_scores(small: Small) -> None:
    with pytest.raises(ValueError, match=r"measure must be .* got 'conductence'"):
        unit_scores(small, X, "fc", "conductence", target=0)
    with pytest.raises(ValueError, match="by must be 'mean_abs' or 'mean', got 'max'"):
        unit_scores(small, X, "fc", "random", target=0, by="max")  # type: ignore[arg-type]
