"""The experiment that compares criteria for pruning: which ranking loses least when its last units are masked.

For every seed, criterion, kind of value and amount, a copy of the model is pruned by `prune_units` and evaluated, and
if asked trained for a little while and evaluated again. Pruning as a judge of importance: Molchanov et al., 2017,
arXiv:1611.06440; small differences between criteria want several seeds (Blalock et al., 2020, arXiv:2003.03033).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from conductance._progress import progress_bar
from conductance.analysis._training import Score, score, seeded, trained
from conductance.analysis.measures import MEASURES, unit_scores
from conductance.analysis.pruning import PrunedUnits, prune_units
from conductance.baselines import Baseline
from conductance.errors import check_choice
from conductance.hooks import LayerSpec
from conductance.loaders import batches, device_of, repeatable
from conductance.targeting import Target

if TYPE_CHECKING:
    import pandas as pd

#: A ranking, or what makes one of a model, the training data and the layers.
Criterion: TypeAlias = "str | pd.DataFrame | Callable[[nn.Module, Iterable[Any], LayerSpec], pd.DataFrame]"
FineTune: TypeAlias = int | Callable[[nn.Module, Iterable[Any]], Any] | None
VALUES = ("zero", "baseline")
#: Measures that take many passes.
_LONG = ("conductance", "internal_influence")


def pruning_experiment(
    model: nn.Module | Callable[[int], nn.Module],
    train: Iterable[Any],
    test: Iterable[Any],
    layers: LayerSpec,
    *,
    criteria: Sequence[str] | Mapping[str, Criterion] = ("conductance", "weight_magnitude", "random"),
    amounts: Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8),
    seeds: Sequence[int] = (0,),
    value: Literal["zero", "baseline"] | Sequence[str] = "zero",
    target: Target | str = "label",
    baselines: Baseline | list[Any] = None,
    path_from: LayerSpec = None,
    rtol: float | None = None,
    fine_tune: FineTune = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Prune by several criteria and amounts, and see how well the model still does.

    Parameters
    ----------
    model
        A trained classifier, which is copied and never changed; or a function that gives one for each seed.
    train, test
        Loaders with labels, read several times. Units are ranked, and models trained, on ``train``; accuracy and loss
        are those on ``test``.
    layers
        Whose units are pruned, as for `conductance.total_conductance`: outputs of modules.
    criteria
        Measures by name (`MEASURES`), or by a name of your own a measure, a ranking with columns ``layer`` and ``unit``
        (most important first), or a function of ``(model, train, layers)`` that gives one.
    amounts
        Shares of each layer's units, 0 to 1; 0 is the model as it is, which the others are compared with.
    seeds
        One run each: of the model, if it is a function; of ``"random"``; of the order of batches in training.
    value
        ``"zero"``, ``"baseline"`` (as for `prune_units`), or both.
    target, baselines, path_from
        What criteria explain, and from where, as for `unit_scores`; the last two also for the baseline constants.
    rtol
        Tolerance of conductance as a criterion, as for `unit_scores`: a loose one may rank as well in less time.
    fine_tune
        Train each pruned copy: a number of passes over ``train`` (Adam, cross entropy), or a function of
        ``(model, train)`` that trains it in place. Masks stay in force.
    progress
        Show a progress bar over pruned copies.

    Returns
    -------
    pandas.DataFrame
        ``criterion``, ``amount``, ``seed``, ``fine_tuned``, ``value``, ``accuracy``, ``loss`` (mean cross entropy) and
        ``units``, the number of units that were pruned. Equal calls give equal tables.

    Raises
    ------
    ValueError, TypeError
        If an argument cannot be used, a loader is empty or without labels.
    ValueError, TypeError, KeyError, ConductanceError
        As for `unit_scores` and `prune_units`. What a model cannot do is looked for in one batch, before the long work.

    Examples
    --------
    >>> import torch
    >>> torch.manual_seed(0) and None
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    >>> data = [(torch.randn(6, 2), torch.tensor([0, 1, 2, 0, 1, 2]))]
    >>> table = pruning_experiment(model, data, data, "1", criteria=["random"], amounts=[0.0, 0.5])
    >>> table[["criterion", "amount", "seed", "fine_tuned", "value", "units"]]
      criterion  amount  seed  fine_tuned value  units
    0    random     0.0     0       False  zero      0
    1    random     0.5     0       False  zero      2
    """
    import pandas as pd

    rankings = _criteria(criteria)
    study = _Study(model, train, test, layers, target, baselines, path_from, rtol, fine_tune)
    study.check()
    amounts, seeds, values = _amounts(amounts), _seeds(seeds), _values(value)
    rows: list[dict[str, Any]] = []
    with progress_bar(
        progress, "pruning", "model", total=len(seeds) * len(rankings) * len(values) * len(amounts)
    ) as bar:
        for number, seed in enumerate(seeds):
            whole = study.model_of(seed)
            if not number:
                study.try_out(whole, rankings, max(amounts), values)
            for name, criterion in rankings.items():
                ranking = study.ranking(whole, criterion, seed)
                for each, amount in product(values, amounts):
                    for tuned, units, found in study.pruned(whole, ranking, amount, each, seed):
                        rows.append({"criterion": name, "amount": amount, "seed": seed, "fine_tuned": tuned,
                                     "value": each, **found._asdict(), "units": units})  # fmt: skip
                    bar.update()
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Study:
    """What all runs of an experiment share."""

    model: Any
    train: Iterable[Any]
    test: Iterable[Any]
    layers: LayerSpec
    target: Target | str
    baselines: Baseline | list[Any]
    path_from: LayerSpec
    rtol: float | None
    fine_tune: FineTune

    def check(self) -> None:
        """Refuse what cannot be used, before the long work."""
        if not callable(self.model):
            kind = type(self.model).__name__
            raise TypeError(f"model must be a torch.nn.Module, or a function that gives one for a seed, got {kind}")
        tune = self.fine_tune
        if isinstance(tune, bool) or not (tune is None or callable(tune) or isinstance(tune, int)):
            raise TypeError(f"fine_tune must be None, a number of epochs or a function (model, train), got {tune!r}")
        if isinstance(tune, int) and tune < 1:
            raise ValueError(f"fine_tune must be at least 1 epoch, or None for no training, got {tune}")
        for name, loader in (("train", self.train), ("test", self.test)):
            self._first(name, loader)

    def model_of(self, seed: int) -> nn.Module:
        """The model of a seed, in evaluation mode."""
        if isinstance(self.model, nn.Module):
            return _copied(self.model).eval()
        with seeded(seed):
            model = self.model(seed)
        if not isinstance(model, nn.Module):
            raise TypeError(f"model({seed}) must give a torch.nn.Module, got {type(model).__name__}")
        return model.eval()

    def try_out(
        self, model: nn.Module, criteria: Mapping[str, Criterion], amount: float, values: Sequence[str]
    ) -> None:
        """Meet on one batch what the model cannot do: its scores, masks on the layers, measures that take one pass."""
        with seeded(0):
            score(model, [next(iter(self.test))])
            once = replace(self, train=[next(iter(self.train))])
            measures = [each for each in criteria.values() if isinstance(each, str)]
            for measure in dict.fromkeys(measures):
                if measure not in _LONG:
                    once.ranking(model, measure, 0)
            tables = [each for each in criteria.values() if not isinstance(each, str) and not callable(each)]
            if measures:
                tables.append(once.ranking(model, "random", 0))
            for table, value in product(tables, values):
                once.masked(_copied(model), table, amount, value)

    def ranking(self, model: nn.Module, criterion: Criterion, seed: int) -> pd.DataFrame:
        """Units by a criterion; a function gets a copy of the model."""
        with seeded(seed):
            if isinstance(criterion, str):
                return unit_scores(model, self.train, self.layers, criterion, target=self.target, rtol=self.rtol,
                                   baselines=self.baselines, path_from=self.path_from, seed=seed)  # fmt: skip
            return criterion(_copied(model), self.train, self.layers) if callable(criterion) else criterion

    def pruned(
        self, whole: nn.Module, ranking: pd.DataFrame, amount: float, value: Any, seed: int
    ) -> list[tuple[bool, int, Score]]:
        """Whether it was trained, how many units were pruned, and how well the copy does."""
        with torch.inference_mode(False), seeded(seed):
            model = _copied(whole)
            units = sum(map(len, self.masked(model, ranking, amount, value).units.values()))
            rows = [(False, units, score(model, self.test))]
            if self.fine_tune is None:
                return rows
            model.train()
            if callable(self.fine_tune):
                self.fine_tune(model, self.train)
            else:
                trained(model, self.train, self.fine_tune)
            return [*rows, (True, units, score(model.eval(), self.test))]

    def masked(self, model: nn.Module, ranking: pd.DataFrame, amount: float, value: Any) -> PrunedUnits:
        """Mask the last units of each layer."""
        inputs = self._first("train", self.train, device_of(model))
        return prune_units(model, ranking, amount=amount, value=value, inputs=inputs,
                           baselines=self.baselines, path_from=self.path_from)  # fmt: skip

    @staticmethod
    def _first(name: str, loader: Any, device: Any = None) -> Any:
        """The inputs of the first batch; errors name the loader."""
        try:
            with seeded(0):
                return next(batches(repeatable(loader), device)).inputs
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None


def _copied(model: nn.Module) -> nn.Module:
    """A deep copy; of a model with masks too, whose masked weights are products that autograd refuses to copy."""
    products = [
        each
        for module in model.modules()
        for each in vars(module).values()
        if isinstance(each, Tensor) and each.grad_fn
    ]
    return copy.deepcopy(model, {id(each): each.detach().clone() for each in products})


def _criteria(criteria: Any) -> dict[str, Criterion]:
    if isinstance(criteria, str) or not isinstance(criteria, Sequence | Mapping):
        raise TypeError(f"criteria must be names of measures, or criteria by name, got {criteria!r:.200}")
    if not criteria:
        raise ValueError(f"criteria is empty; give some of {', '.join(MEASURES)}, or rankings by name")
    found = dict(criteria) if isinstance(criteria, Mapping) else {name: name for name in criteria}
    for name, criterion in found.items():
        if isinstance(criterion, str) or not (callable(criterion) or hasattr(criterion, "columns")):
            check_choice(f"criteria: {name!r}", criterion, MEASURES)
    return found


def _amounts(amounts: Any) -> list[float]:
    if isinstance(amounts, str) or not isinstance(amounts, Iterable):
        raise TypeError(f"amounts must be a list of shares such as [0.2, 0.5], got {amounts!r}")
    found = list(amounts)
    if not found or not all(isinstance(each, Real) and not isinstance(each, bool) for each in found):
        raise ValueError(f"amounts must be at least one share from 0 to 1, got {found}")
    if not all(0 <= float(each) <= 1 for each in found):
        raise ValueError(f"amounts must be shares from 0 to 1, got {found}; 0.3 masks 30 % of each layer's units")
    return [float(each) for each in found]


def _seeds(seeds: Any) -> list[int]:
    found = list(seeds) if isinstance(seeds, Iterable) else []
    whole = (isinstance(seed, int | np.integer) and not isinstance(seed, bool) and seed >= 0 for seed in found)
    if not found or not all(whole):
        raise ValueError(f"seeds must be at least one whole number of at least 0, such as range(5), got {seeds!r}")
    return [int(seed) for seed in found]


def _values(value: Any) -> list[str]:
    found = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not found:
        raise ValueError("value is empty; give 'zero', 'baseline' or both")
    for each in found:
        check_choice("value", each, VALUES)
    return found
