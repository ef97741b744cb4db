"""Conductance over a loader: what each option does, what is left after an interrupt, and what is refused."""

import copy
import warnings
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import conductance as cd
from conductance._fingerprint import fingerprint
from conductance.errors import ConvergenceWarning

X = torch.randn(11, 1, 3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
Y = torch.tensor([2, 0, 1, 1, 2, 0, 0, 2, 1, 2, 0])
#: The same points of every path, in whatever batch it is.
SAME: dict[str, Any] = {"n_steps": 9}


@pytest.fixture
def model() -> nn.Sequential:
    last = nn.Linear(18, 4)
    with torch.no_grad():
        last.weight.mul_(3.0)
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), last).double().eval()


def loader(batch_size: int = 4, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=batch_size, **options)


def assert_means(stats: cd.DatasetConductance, total: cd.TotalConductance, examples: Any, group: Any = None) -> None:
    """Other batches give the same up to rounding."""
    found = stats.compute(group)
    assert list(found) == total.layers
    for layer, one in found.items():
        values = total.per_unit(layer)[examples]
        assert values.abs().max() > 0
        torch.testing.assert_close(one.mean, values.mean(0), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(one.mean_abs, values.abs().mean(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batch_size", [2, 11])
def test_labels_are_explained_and_group(model: nn.Sequential, batch_size: int) -> None:
    stats = cd.dataset_conductance(model, loader(batch_size), target="label", group_by="label", **SAME)
    total = cd.total_conductance(model, X, target=Y, **SAME)
    assert_means(stats, total, slice(None))
    assert stats.groups == [0, 1, 2]
    for group in stats.groups:
        assert_means(stats, total, group == Y, group)
    assert (stats.count, stats.left_out, stats.interrupted) == (11, 0, False)
    kept = {"target": "label", "group_by": "label", "model": "Sequential", "rtol": None, "n_steps": 9}
    assert kept.items() <= stats.settings.items()


def test_predictions_are_explained_and_group(model: nn.Sequential) -> None:
    with torch.no_grad():
        classes = model(X).argmax(1)
    assert len(classes.unique()) > 1
    stats = cd.dataset_conductance(model, loader(), target="predicted", group_by="predicted", **SAME)
    total = cd.total_conductance(model, X, target=classes, **SAME)
    assert_means(stats, total, slice(None))
    assert stats.groups == classes.unique().tolist()
    assert_means(stats, total, classes == classes[0], int(classes[0]))


def test_a_callable_groups_by_inputs_and_labels(model: nn.Sequential) -> None:
    def by(inputs: Any, labels: Tensor | None) -> list[Any]:
        assert labels is not None
        return [
            ("bright" if one.flatten()[7] > 0 else "dark", int(y) > 1) for one, y in zip(inputs, labels, strict=True)
        ]

    stats = cd.dataset_conductance(model, loader(), target=1, group_by=by, **SAME)
    total = cd.total_conductance(model, X, target=1, **SAME)
    expected = by(X, Y)
    assert stats.groups == sorted(set(expected))
    assert len(stats.groups) == 4
    for group in stats.groups:
        assert_means(stats, total, torch.tensor([one == group for one in expected]), group)


def test_every_option_reaches_total_conductance(model: nn.Sequential, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    real = cd.total_conductance

    def watched(given: Any, inputs: Any, **options: Any) -> cd.TotalConductance:
        seen.append({"model": given, **options})
        return real(given, inputs, ["1", "3"], target=options["target"], n_steps=9)

    monkeypatch.setattr("conductance.dataset.total_conductance", watched)
    options: dict[str, Any] = {
        "layers": ["1", "3"],
        "baselines": 0.5,
        "additional_forward_args": (),
        "fixed": ("mask",),
        "path_from": "0",
        "rtol": None,
        "atol": 0.125,
        "n_steps": 9,
        "max_evaluations": 77,
        "internal_batch_size": 5,
        "on_train": "warn",
    }
    cd.dataset_conductance(model, loader(6), target=2, **options)
    assert seen == [{"model": model, "target": 2, **options}] * 2


def test_options_matter(model: nn.Sequential) -> None:
    def weighted(a: Tensor, b: Tensor) -> Any:
        return model(a * b)

    stats = cd.dataset_conductance(
        weighted,
        [((X[:6], X[6:].repeat(2, 1, 1, 1)[:6]),)],
        [model[1]],
        target=lambda output: output[:, 3],
        baselines=0.5,
        n_steps=33,
    )
    pair = (X[:6], X[6:].repeat(2, 1, 1, 1)[:6])
    total = cd.total_conductance(weighted, pair, [model[1]], target=3, baselines=0.5, n_steps=33)
    assert_means(stats, total, slice(None))
    assert stats.settings["baselines"] == 0.5
    assert stats.settings["n_steps"] == 33
    assert str(stats.settings["model"]).endswith("weighted")


def test_predictions_take_additional_arguments_in_calls_of_bounded_size() -> None:
    rows: list[int] = []

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(12, 3, dtype=torch.float64)

        def forward(self, x: Tensor, scale: Tensor, power: int = 1) -> Any:
            rows.append(len(x))
            return self.inner(x.flatten(1)) * scale**power

    model, extra = Scaled(), {"scale": torch.tensor([1.0, -2.0, 0.5]).double(), "power": 2}
    stats = cd.dataset_conductance(
        model, [X], target="predicted", additional_forward_args=extra, internal_batch_size=4, fixed=("scale",), **SAME
    )
    assert max(rows) <= 4
    total = cd.total_conductance(
        model, X, target=model(X, **extra).argmax(1), additional_forward_args=extra, fixed=("scale",), **SAME
    )
    assert_means(stats, total, slice(None))


def test_dict_batches_and_one_pass_iterators(model: nn.Sequential) -> None:
    expected = cd.dataset_conductance(model, loader(), target="label", **SAME)
    dicts = [{"input": X[:7], "labels": Y[:7]}, {"input": X[7:], "labels": Y[7:]}]
    for given in (dicts, iter(dicts)):
        stats = cd.dataset_conductance(model, given, target="label", **SAME)
        assert stats.count == 11
        torch.testing.assert_close(stats.compute()["1"].mean, expected.compute()["1"].mean, rtol=1e-9, atol=1e-12)


def test_the_model_stays_as_it_came(model: nn.Sequential) -> None:
    model.append(nn.Dropout(0.5))
    model.train()
    weights = {name: one.clone() for name, one in model.state_dict().items()}
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        cd.dataset_conductance(model, [X, X], ["1"], target="predicted", on_train="warn", n_steps=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(one, weights[name]) for name, one in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# ---- interrupts and warnings


def test_an_interrupted_loader_leaves_what_was_finished(model: nn.Sequential) -> None:
    def batches() -> Iterator[Any]:
        yield X[:3], Y[:3]
        yield X[3:5], Y[3:5]
        raise KeyboardInterrupt

    with pytest.warns(ConvergenceWarning, match="interrupted: the statistics are of 5 examples"):
        stats = cd.dataset_conductance(model, batches(), target="label", group_by="label", **SAME)
    assert stats.interrupted
    assert stats.count == 5
    assert_means(stats, cd.total_conductance(model, X[:5], target=Y[:5], **SAME), slice(None))


def test_an_interrupted_batch_leaves_its_finished_examples(model: nn.Sequential) -> None:
    calls = []

    def target(output: Tensor) -> Tensor:
        calls.append(len(output))
        if len(calls) > after:
            raise KeyboardInterrupt
        return output[:, 2]

    after = 10**9
    cd.dataset_conductance(model, [X[:4]], target=target, internal_batch_size=40, rtol=1e-7)
    first, after = len(calls), len(calls) + 12
    calls.clear()
    with pytest.warns(ConvergenceWarning, match="interrupted"):
        stats = cd.dataset_conductance(model, [X[:4], X[4:], X], target=target, internal_batch_size=40, rtol=1e-7)
    assert first < len(calls) == after + 1
    assert stats.interrupted
    assert stats.left_out > 0
    assert stats.count + stats.left_out == 11
    assert repr(stats).endswith("left out, interrupted)")


def test_missed_tolerances_are_told_once() -> None:
    model = nn.Sequential(nn.Linear(12, 50), nn.ReLU(), nn.Linear(50, 2)).double()
    flat = X.flatten(1)
    with pytest.warns(ConvergenceWarning, match="11 of 11 examples did not converge to rtol=1e-09") as caught:
        stats = cd.dataset_conductance(model, [flat[:4], flat[4:]], target=0, rtol=1e-9, max_evaluations=5)
    assert len(caught) == 1
    assert stats.unconverged == {"budget": 11}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cd.dataset_conductance(model, [flat], target=0, n_steps=5)


def test_other_warnings_are_given_for_the_first_batch(model: nn.Sequential) -> None:
    with torch.no_grad():
        model.get_parameter("3.bias")[1] = 50.0
    with pytest.warns(UserWarning, match="batch 0 of the loader: the baseline is itself confident") as caught:
        cd.dataset_conductance(model, loader(3), ["1"], target=1)
    assert len(caught) == 1


def test_errors_name_the_batch(model: nn.Sequential) -> None:
    with pytest.raises(ValueError, match="target") as caught:
        cd.dataset_conductance(model, [(X, Y), (X, Y + 2)], target="label")
    assert caught.value.__notes__[-1] == "in batch 1 of the loader"


@pytest.mark.parametrize(
    ("given", "total"),
    [
        (loader(4), 11),
        (loader(4, drop_last=True), 8),
        ([X[:5], X[5:]], 11),
        (iter([X]), None),
        (DataLoader(TensorDataset(X, Y), batch_sampler=[[0, 1], [4, 5, 6]]), None),
    ],
)
def test_progress_counts_examples(
    model: nn.Sequential, given: Any, total: int | None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import tqdm.auto

    bars = []
    real = tqdm.auto.tqdm

    def watched(*args: Any, **options: Any) -> Any:
        bars.append(real(*args, **options))
        return bars[-1]

    monkeypatch.setattr(tqdm.auto, "tqdm", watched)
    stats = cd.dataset_conductance(model, given, ["1"], target=0, progress=True)
    assert (bars[0].total, bars[0].n) == (total, stats.count)
    assert "example" in capsys.readouterr().err
    cd.dataset_conductance(model, [X], ["1"], target=0)
    assert capsys.readouterr().err == ""


# ---- what is refused


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        ([], {}, ValueError, "gives no batches"),
        (iter([]), {}, ValueError, "only once"),
        (X, {}, TypeError, "loader must give batches"),
        (5, {}, TypeError, "loader must give batches, .* got int"),
        ([X, "x"], {}, TypeError, "batch 1 is a str"),
        ([X], {"target": "label"}, ValueError, "target='label' needs labels"),
        ([X], {"target": "best"}, ValueError, "target must be 'label', 'predicted'"),
        ([X], {"target": Y}, TypeError, "one entry for each example"),
        ([X], {"group_by": "label"}, ValueError, "group_by='label' needs labels"),
        ([X], {"group_by": "class"}, ValueError, "group_by must be 'label' or 'predicted', got 'class'"),
        ([X], {"group_by": [1, 2]}, TypeError, "group_by is a list; expected 'label'"),
        (
            [(X, Y[:, None])],
            {"group_by": "label"},
            ValueError,
            r"one label for each example, the loader gives \(11, 1\)",
        ),
        ([X], {"group_by": lambda x, y: None}, TypeError, "group_by returned None"),
        ([X], {"group_by": lambda x, y: [1, 2]}, ValueError, "groups has 2 entries, expected one for each of 11"),
        ([X], {"group_by": lambda x, y: [{}] * len(x)}, TypeError, "a dict; expected a text"),
        ([X], {"rtol": 1e-3, "n_steps": 9}, ValueError, "both given"),
        ([X], {"layers": "nowhere"}, ValueError, "nowhere"),
    ],
)
def test_unusable_arguments_are_refused(
    model: nn.Sequential, given: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        cd.dataset_conductance(model, given, **{"layers": ["1"], "target": 0, "rtol": 0.1, **options})


def test_statistics_of_another_model_do_not_merge(model: nn.Sequential) -> None:
    def stats_of(net: nn.Module, **options: Any) -> cd.DatasetConductance:
        return cd.dataset_conductance(net, [(X, Y)], ["1"], **{"target": "label", **options})

    first, again = stats_of(model), stats_of(model)
    first.merge_state(again)
    assert first.count == 22
    with pytest.raises(ValueError, match="target is 'predicted', not 'label'"):
        first.merge_state(stats_of(model, target="predicted"))
    with pytest.raises(ValueError, match=r"rtol is 0\.1, not 0\.01"):
        first.merge_state(stats_of(model, rtol=0.1))
    with pytest.raises(ValueError, match=r"baselines is 1\.0, not None"):
        first.merge_state(stats_of(model, baselines=1.0))
    large = torch.zeros(1, 1, 3, 40)  # too many numbers to be written out
    wide = nn.Sequential(nn.Flatten(), nn.Linear(120, 2)).double()
    zeros, ones = (
        cd.dataset_conductance(wide, [large.double() + 1], ["1"], target=0, baselines=one, n_steps=3)
        for one in (large.double(), large.double() + 2)
    )
    with pytest.raises(ValueError, match="baselines is 'tensor of shape"):
        zeros.merge_state(ones)
    with torch.no_grad():
        model.get_parameter("3.weight").mul_(1.001)
    with pytest.raises(ValueError, match=r"weights_fingerprint is '[0-9a-f]{16}', not '[0-9a-f]{16}'"):
        first.merge_state(stats_of(model))


def test_statistics_with_other_arguments_do_not_merge(model: nn.Sequential) -> None:
    def scaled(x: Tensor, scale: Any) -> Any:
        return model(x) * scale

    def stats_of(scale: Any) -> cd.DatasetConductance:
        return cd.dataset_conductance(scaled, [X], [model[1]], target=0, additional_forward_args=scale, n_steps=3)

    first = stats_of(2.0)
    first.merge_state(stats_of(2.0))
    with pytest.raises(ValueError, match=r"additional_forward_args is 3\.0, not 2\.0"):
        first.merge_state(stats_of(3.0))
    with pytest.raises(ValueError, match=r"additional_forward_args is \{'scale': 2\.0\}, not 2\.0"):
        first.merge_state(stats_of({"scale": 2.0}))


def test_warnings_point_at_the_call(model: nn.Sequential) -> None:
    with torch.no_grad():
        model.get_parameter("3.bias")[1] = 50.0
    for run in (
        lambda: cd.dataset_conductance(model, [X], ["1"], target=1),
        lambda: cd.total_conductance(model, X, target=1),
    ):
        with pytest.warns(UserWarning, match="confident") as caught:
            run()
        assert [one.filename for one in caught] == [__file__]


def test_the_fingerprint_is_of_the_weights() -> None:
    model = nn.Sequential(nn.Linear(300, 2), nn.BatchNorm1d(2), nn.LazyLinear(3))
    first = fingerprint(model)
    assert fingerprint(copy.deepcopy(model)) == first
    compiled = nn.Module()
    compiled.add_module("_orig_mod", model)  # as torch.compile wraps a model
    assert fingerprint(compiled) == first
    for changed in ("0.weight", "1.running_mean", "1.num_batches_tracked"):
        other = copy.deepcopy(model)
        tensor = dict(chain(other.named_parameters(), other.named_buffers()))[changed]
        with torch.no_grad():
            tensor.add_(1)
        assert fingerprint(other) != first
    assert fingerprint(copy.deepcopy(model).to(torch.bfloat16)) != first
    assert fingerprint(nn.Linear(3, 2, device="meta"))["model"] == "Linear"
    assert fingerprint(len) == {"model": "len"}
