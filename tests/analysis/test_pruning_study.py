"""The pruning experiment: each option does what it says, runs repeat, models are left alone."""

import copy
from collections.abc import Iterable
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

from conductance.analysis import prune_units, pruning_experiment, pruning_study, unit_scores
from conductance.analysis._training import seeded, trained
from conductance.errors import ConductanceError
from tests.analysis.pruned_nets import ranked
from tests.analysis.test_pruning_undo import assert_same_state, state

COLUMNS = ["criterion", "amount", "seed", "fine_tuned", "value", "accuracy", "loss", "units"]


def data(seed: int) -> list[tuple[Tensor, Tensor]]:
    """Three batches of four classes of points around corners of a cube."""
    numbers = torch.Generator().manual_seed(seed)
    labels = torch.arange(24) % 4
    corners = torch.randn(4, 3, generator=torch.Generator().manual_seed(9)).double() * 2
    inputs = corners[labels] + torch.randn(24, 3, generator=numbers).double()
    return list(zip(inputs.split(11), labels.split(11), strict=True))


def classifier(seed: int = 0) -> nn.Sequential:
    """A net with dropout, trained for a little while."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(3, 10), nn.Tanh(), nn.Dropout(0.2), nn.Linear(10, 7), nn.Sigmoid(), nn.Linear(7, 4)
        )
        model.double()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(40):
            for inputs, labels in data(0):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), labels).backward()
                optimizer.step()
    return model


TRAIN, TEST, LAYERS = data(0), data(1), ["1", "3"]
MODEL = classifier()


class Inner(nn.Module):
    """A layer whose weights are those of a module inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 5).double()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.inner(x))


def experiment(model: Any = MODEL, layers: Any = LAYERS, **options: Any) -> pd.DataFrame:
    return pruning_experiment(
        model, TRAIN, TEST, layers, **{"amounts": [0.6], "criteria": ["weight_magnitude"], **options}
    )


def test_a_row_for_each_criterion_amount_seed_and_value() -> None:
    model, amounts, values = copy.deepcopy(MODEL).train(), [0.0, 0.3, 0.8], ["baseline", "zero"]
    before = state(model)
    table = pruning_experiment(model, TRAIN, TEST, LAYERS, amounts=amounts, seeds=[3, 5], value=values, fine_tune=1)
    assert_same_state(state(model), before)
    assert list(table.columns) == COLUMNS
    keys = ["seed", "criterion", "value", "amount", "fine_tuned"]
    wanted = pd.MultiIndex.from_product(
        [[3, 5], ["conductance", "weight_magnitude", "random"], values, amounts, [False, True]]
    )
    assert list(table[keys].itertuples(index=False, name=None)) == list(wanted)
    assert set(table.units[table.amount == 0.3]) == {3 + 2}
    whole = table[(table.amount == 0) & ~table.fine_tuned]
    assert whole.accuracy.nunique() == whole.loss.nunique() == 1
    assert table.loss[table.amount == 0.8].nunique() > 6
    assert table.accuracy.between(0.05, 1).all()


def test_rows_are_what_pruning_by_hand_gives() -> None:
    row = experiment(criteria=["conductance"], value="baseline", baselines=-1.0, amounts=[0.4], target=2).iloc[0]
    model = copy.deepcopy(MODEL).eval()
    ranking = unit_scores(model, TRAIN, LAYERS, "conductance", target=2, baselines=-1.0)
    prune_units(model, ranking, amount=0.4, value="baseline", inputs=TRAIN[0][0], baselines=-1.0)
    inputs, labels = (torch.cat(each) for each in zip(*TEST, strict=True))
    with torch.no_grad():
        logits = model(inputs)
    assert row.accuracy == float((logits.argmax(1) == labels).double().mean())
    assert row.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-12)
    assert row.units == 4 + 3


@pytest.mark.parametrize(
    "option", [{"baselines": 1.5}, {"target": 1}, {"path_from": "0"}, {"value": "baseline"}, {"layers": ["1"]}]
)
def test_options_reach_the_work(option: dict[str, Any]) -> None:
    common: dict[str, Any] = {"criteria": ["gradient_x_difference"], "amounts": [0.1, 0.3, 0.5, 0.7]}
    assert experiment(**common, **option).loss.tolist() != experiment(**common).loss.tolist()


def test_equal_calls_give_equal_tables_whatever_the_random_state() -> None:
    train = DataLoader(TensorDataset(*(torch.cat(each) for each in zip(*TRAIN, strict=True))), 16, shuffle=True)

    def run(numbers: int) -> pd.DataFrame:
        torch.manual_seed(numbers)
        found = pruning_experiment(
            MODEL, train, TEST, LAYERS, amounts=[0.5], criteria=["random"], seeds=[1, 2], value="baseline", fine_tune=2
        )
        assert float(torch.rand(())) == float(torch.rand((), generator=torch.Generator().manual_seed(numbers)))
        return found

    pd.testing.assert_frame_equal(run(1), run(2), check_exact=True)


def test_seed_draws_ranking_and_order_of_training() -> None:
    random = experiment(criteria=["random"], seeds=[1, 2])
    assert random.loss[0] != random.loss[1]
    tuned = experiment(seeds=[1, 2], fine_tune=1)
    assert tuned[~tuned.fine_tuned].loss.nunique() == 1
    assert tuned[tuned.fine_tuned].loss.nunique() == 2


def test_list_of_batches_comes_in_the_order_of_the_seed() -> None:
    def weights(seed: int) -> Tensor:
        model = nn.Sequential(nn.Linear(3, 4, bias=False)).double()
        nn.init.ones_(model.get_parameter("0.weight"))
        with seeded(seed):
            trained(model, TRAIN, 1)
        return model.get_parameter("0.weight").detach()

    found = [weights(seed) for seed in range(6)]
    assert 1 < len({tuple(each.flatten().tolist()) for each in found}) <= 6
    assert torch.equal(found[3], weights(3))


def test_training_helps_and_keeps_masks() -> None:
    seen: list[nn.Module] = []

    def tune(model: nn.Module, train: Iterable[Any]) -> None:
        assert train is TRAIN
        assert model.training
        assert prune.is_pruned(model)
        assert model is not MODEL
        seen.append(model)
        model.get_submodule("5").get_parameter("bias").data[2] += 9

    table = experiment(fine_tune=tune)
    assert [each.training for each in seen] == [False]
    assert table.fine_tuned.tolist() == [False, True]
    assert table.loss[0] != table.loss[1]
    longer = [experiment(fine_tune=epochs).loss[1] for epochs in (1, 20)]
    assert table.loss[0] > longer[0] > longer[1]
    assert table.units.nunique() == 1


def test_function_gives_a_model_for_each_seed() -> None:
    made: list[int] = []

    def factory(seed: int) -> nn.Module:
        made.append(seed)
        return classifier(seed)

    table = experiment(factory, seeds=[0, 4], amounts=[0.0])
    assert made == [0, 4]
    assert table.loss[0] == experiment(amounts=[0.0]).loss[0]
    assert table.loss[1] == experiment(classifier(4), amounts=[0.0]).loss[0]


def test_criteria_of_your_own() -> None:
    order = ranked({"1": [*range(10)]})

    def backwards(model: nn.Module, train: Iterable[Any], layers: Any) -> pd.DataFrame:
        assert isinstance(model, nn.Sequential)
        assert (train, layers) == (TRAIN, LAYERS)
        return order[::-1]

    table = experiment(criteria={"mine": order, "back": backwards, "size": "weight_magnitude"})
    assert table.criterion.tolist() == ["mine", "back", "size"]
    assert table.units.tolist() == [6, 6, 6 + 4]
    assert table.loss.nunique() == 3


def test_model_with_masks_is_copied_with_them() -> None:
    model = copy.deepcopy(MODEL)
    prune_units(model, ranked({"3": [*range(7)]}), amount=0.6)
    before = state(model)
    table = experiment(model, layers=["1"], amounts=[0.0], fine_tune=1)
    assert_same_state(state(model), before)
    assert table.loss[0] != experiment(amounts=[0.0]).loss[0]
    with torch.no_grad():
        logits = model.eval()(torch.cat([inputs for inputs, _ in TEST]))
    labels = torch.cat([labels for _, labels in TEST])
    assert table.loss[0] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-12)


def test_progress_is_shown_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    experiment(seeds=[0, 1], amounts=[0.0, 0.1])
    assert capsys.readouterr().err == ""
    experiment(seeds=[0, 1], amounts=[0.0, 0.1], progress=True)
    assert "4/4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"amounts": [0.2, 1.5]}, ValueError, r"amounts must be shares from 0 to 1, got \[0.2, 1.5\]"),
        ({"amounts": []}, ValueError, r"amounts must be at least one share"),
        ({"amounts": [True]}, ValueError, r"at least one share from 0 to 1, got \[True\]"),
        ({"amounts": 0.5}, TypeError, r"amounts must be a list of shares"),
        ({"criteria": ["size"]}, ValueError, r"criteria: 'size' must be 'conductance', .* got 'size'"),
        ({"criteria": {"mine": 3}}, ValueError, r"criteria: 'mine' must be .* got 3"),
        ({"criteria": []}, ValueError, r"criteria is empty; give some of conductance"),
        ({"criteria": "random"}, TypeError, r"criteria must be names of measures.*got 'random'"),
        ({"seeds": []}, ValueError, r"seeds must be at least one whole number"),
        ({"seeds": [-1]}, ValueError, r"seeds must be at least one whole number"),
        ({"seeds": 3}, ValueError, r"such as range\(5\), got 3"),
        ({"value": "mean"}, ValueError, r"value must be 'zero' or 'baseline', got 'mean'"),
        ({"value": 3}, ValueError, r"value must be 'zero' or 'baseline', got 3"),
        ({"value": []}, ValueError, r"value is empty"),
        ({"fine_tune": 0}, ValueError, r"fine_tune must be at least 1 epoch"),
        ({"fine_tune": True}, TypeError, r"fine_tune must be None, a number of epochs or a function.*got True"),
        ({"fine_tune": "yes"}, TypeError, r"fine_tune must be None.*got 'yes'"),
        ({"model": 3}, TypeError, r"model must be a torch.nn.Module, or a function.*got int"),
        ({"model": lambda seed: seed}, TypeError, r"model\(0\) must give a torch.nn.Module, got int"),
        (
            {"criteria": {"mine": ranked({"0": [*range(12)]})}},
            ValueError,
            r"unit 10 of '0', which has 10.*another model",
        ),
        ({"criteria": {"mine": ranked({"2": [*range(10)]})}}, None, ""),
        ({"layers": ["2"], "criteria": ["weight_magnitude"]}, None, ""),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception] | None, message: str) -> None:
    if error is None:
        assert experiment(**options).units.tolist() == [6]
        return
    with pytest.raises(error, match=message):
        experiment(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": "4:in", "criteria": ["random"]}, ValueError, r"'4:in', one tensor or call of a module"),
        ({"layers": "6", "criteria": ["weight_magnitude"]}, ConductanceError, r"weights that lead into .* layer '6'"),
        ({"test": [(x, y.double()) for x, y in TEST], "criteria": ["random"]}, ValueError, r"one class for each"),
        ({"layers": "1", "criteria": [ranked({"2": [*range(9)]})]}, ValueError, r"'2'"),
    ],
)
def test_what_cannot_be_done_fails_before_the_long_work(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    def long_work(*_: Any) -> pd.DataFrame:
        raise AssertionError("a criterion was asked first")

    model = copy.deepcopy(MODEL).append(Inner()).append(nn.Linear(5, 4).double())
    criteria = {"long": long_work, **{f"{number}": each for number, each in enumerate(options.pop("criteria"))}}
    with pytest.raises(error, match=message):
        pruning_experiment(model, **{"train": TRAIN, "test": TEST, "layers": "1", "criteria": criteria, **options})


def test_rtol_is_that_of_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def scores(*given: Any, **options: Any) -> pd.DataFrame:
        seen.append(options["rtol"])
        return unit_scores(*given, **options)

    monkeypatch.setattr(pruning_study, "unit_scores", scores)
    experiment(criteria=["conductance"], rtol=0.2)
    assert set(seen) == {0.2}
    with pytest.raises(ValueError, match="rtol"):
        experiment(criteria=["conductance"], rtol=-1.0)


def test_the_whole_model_is_there_to_compare_with() -> None:
    table = pruning_experiment(MODEL, TRAIN, TEST, ["1"], criteria=["random"])
    assert table.amount.tolist() == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert table.units.tolist()[:2] == [0, 2]


@pytest.mark.parametrize("name", ["train", "test"])
@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        ([], ValueError, r"loader gives no batches"),
        (iter(TRAIN), TypeError, r"read several times, but an iterator only once"),
        ([TRAIN[0][0]], ValueError, r"needs labels"),
        ([(TRAIN[0][0], TRAIN[0][1].double())], ValueError, r"one class for each example.*float64"),
        ([(TRAIN[0][0], TRAIN[0][1] + 1)], ValueError, r"label 4 is none of the 4 classes of the output, 0 … 3"),
        ([(TRAIN[0][0], TRAIN[0][1] - 1)], ValueError, r"label -1 is none of the 4 classes"),
    ],
)
def test_loaders_that_cannot_be_used(name: str, loader: Any, error: type[Exception], message: str) -> None:
    loaders = {"train": TRAIN, "test": TEST, name: loader}
    with pytest.raises(error, match=rf"{name}\b.*{message}"):
        pruning_experiment(MODEL, **loaders, layers=LAYERS, criteria=["random"], amounts=[0.5], target=0, fine_tune=1)


def test_one_logit_has_no_classes() -> None:
    data = [(inputs, labels % 2) for inputs, labels in TRAIN]
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1)).double()
    with pytest.raises(ValueError, match=r"a logit for each class, got one: give a model whose output is torch.cat"):
        pruning_experiment(model, data, data, "1", criteria=["random"], target=0)


def test_frozen_model_cannot_be_trained() -> None:
    model = copy.deepcopy(MODEL).requires_grad_(False)
    with pytest.raises(ValueError, match=r"fine_tune: no parameter of the model takes a gradient"):
        experiment(model, fine_tune=1)
