"""Sets of units to hold: one unit at a time, or more and more of them in the orders of a curve."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from conductance.analysis._rankings import checked_ranking, ranked_units
from conductance.errors import UnknownLayerError
from conductance.results import LayerInfo

if TYPE_CHECKING:
    import pandas as pd

#: Points of a curve where there are more units.
POINTS = 21
#: Orders of a curve.
FIRST, LAST, RANDOM = "most important first", "least important first", "random"


@dataclass(frozen=True)
class SingleUnits:
    """Sets of one unit each, of one layer; the first set is empty."""

    layer: str
    numbers: Tensor
    units: int

    def __call__(self, sets: range) -> dict[str, Tensor]:
        """Masks of some sets."""
        mask = torch.zeros(len(sets), self.units, dtype=torch.bool)
        first = int(sets.start == 0)
        held = self.numbers[sets.start + first - 1 : sets.stop - 1]
        mask[torch.arange(first, len(sets)), held] = True
        return {self.layer: mask}


@dataclass(frozen=True)
class CurveSets:
    """The sets of units of a curve: of each order the first few, and at last all."""

    orders: list[tuple[str, int]]
    positions: list[dict[str, Tensor]]
    counts: list[int]
    total: int

    @classmethod
    def of(
        cls, ranking: "pd.DataFrame", layers: Mapping[str, LayerInfo], steps: Any, random: int, seed: int
    ) -> "CurveSets":
        """The sets for a ranking that fits the layers."""
        units = {name: info.units for name, info in layers.items()}
        checked_ranking(ranking, units, whole=True)
        rows = ranked_units(ranking, units)
        total = len(rows)
        check_count("seed", seed, 0)
        orders = [(FIRST, -1), (LAST, -1), *((RANDOM, int(seed) + number) for number in range(random))]
        positions = [_by_layer(rows, units, each) for each in (torch.arange(total), torch.arange(total).flip(0))]
        # drawn over the units in layer order, so that all rankings of one seed share their random orders
        plain = [(layer, unit) for layer in units if layer in positions[0] for unit in range(units[layer])]
        for _, one in orders[2:]:
            drawn = torch.randperm(total, generator=torch.Generator().manual_seed(one))
            positions.append(_by_layer(plain, units, drawn))
        return cls(orders, positions, _counts(steps, total), total)

    @property
    def sets(self) -> list[tuple[int, int]]:
        """Order and number of units of each set but none and all."""
        return [(order, count) for order in range(len(self.orders)) for count in self.counts[1:-1]]

    def __call__(self, sets: range) -> dict[str, Tensor]:
        """Masks of some sets."""
        chosen_sets = [*self.sets, (0, self.total)][sets.start : sets.stop]
        return {
            layer: torch.stack([self.positions[order][layer] < count for order, count in chosen_sets])
            for layer in self.positions[0]
        }

    def table(self, means: Any) -> "pd.DataFrame":
        """The points of all orders; ``means`` are score and accuracy of none, of each set, and of all."""
        import pandas as pd

        inner = len(self.counts) - 2
        rows = []
        for number, (order, seed) in enumerate(self.orders):
            first = 1 + number * inner
            places = [0, *range(first, first + inner), len(means) - 1]
            for count, place in zip(self.counts, places, strict=True):
                score, accuracy = means[place]
                rows.append((order, seed, count, count / self.total, score, accuracy))
        return pd.DataFrame(rows, columns=["order", "seed", "ablated", "share", "score", "accuracy"])


def _by_layer(rows: list[tuple[str, int]], units: Mapping[str, int], places: Tensor) -> dict[str, Tensor]:
    """The place of each unit in an order, by layer; all units of a layer have one."""
    found = {layer: torch.empty(units[layer], dtype=torch.int64) for layer in dict.fromkeys(name for name, _ in rows)}
    for (layer, unit), place in zip(rows, places.tolist(), strict=True):
        found[layer][unit] = place
    return found


def _counts(steps: Any, total: int) -> list[int]:
    """Units held at each point."""
    if steps is None:
        steps = min(total + 1, POINTS)
    if isinstance(steps, int | np.integer) and not isinstance(steps, bool):
        check_count("steps", steps, 2)
        shares = np.linspace(0.0, 1.0, int(steps))
    else:
        try:
            shares = np.array([0.0, *(float(share) for share in steps), 1.0])
        except (TypeError, ValueError):
            raise TypeError(f"steps is {steps!r}; expected a number of points, or shares such as [0.1, 0.5]") from None
        if not ((shares >= 0) & (shares <= 1)).all():
            raise ValueError(f"steps holds shares outside 0 to 1: {steps!r}")
    return sorted({round(float(share) * total) for share in shares})


def wanted_units(units: Any, layers: Mapping[str, LayerInfo]) -> dict[str, Tensor]:
    """Numbers of the units to hold, by layer."""
    if units is None:
        return {name: torch.arange(info.units) for name, info in layers.items()}
    if not isinstance(units, Mapping):
        if len(layers) > 1:
            names = ", ".join(map(repr, layers))
            raise ValueError(f"units is a list, but there are several layers ({names}); give a dict by layer")
        units = dict.fromkeys(layers, units)
    if not units:
        raise ValueError("units is an empty dict; give numbers of units by layer, or None for all units of all layers")
    for name in units:
        if name not in layers:
            raise UnknownLayerError(name, layers)
    return {name: _numbers(name, units[name], info.units) for name, info in layers.items() if name in units}


def _numbers(name: str, units: Any, count: int) -> Tensor:
    numbers = np.asarray(units)
    if numbers.ndim != 1 or not len(numbers) or numbers.dtype.kind not in "iu":
        raise ValueError(f"units of {name!r} is {units!r:.200}; expected a list of whole numbers, at least one")
    wrong = numbers[(numbers < 0) | (numbers >= count)]
    if len(wrong):
        raise ValueError(f"units of {name!r} holds {wrong[0]}, but it has {count} (0 to {count - 1})")
    return torch.as_tensor(numbers.astype(np.int64))


def check_count(name: str, given: Any, least: int) -> None:
    """Refuse what is no whole number of at least so many."""
    if isinstance(given, bool) or not isinstance(given, int | np.integer):
        raise TypeError(f"{name} is {given!r}; expected a whole number of at least {least}")
    if given < least:
        raise ValueError(f"{name} is {given}; expected at least {least}")
