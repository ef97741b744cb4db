"""The values of every measure, one batch after the other."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import length_hint
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from conductance._progress import progress_bar
from conductance._requests import checked_rules
from conductance.analysis._measure_captum import deeplift_values, influence_values
from conductance.analysis._measure_values import PRODUCTS, Values, end_values, infos_of
from conductance.analysis._measure_weights import weight_values
from conductance.baselines import Baseline
from conductance.errors import check_choice
from conductance.hooks import LayerSpec
from conductance.loaders import Batch, batches, device_of
from conductance.running import Prepared, prepared
from conductance.targeting import Target
from conductance.total import total_conductance

#: The measures that units can be scored by.
MEASURES = (
    "conductance",
    *PRODUCTS,
    "internal_influence",
    "deeplift",
    "weight_magnitude",
    "random",
)


@dataclass(frozen=True)
class Options:
    """How units are scored; see `conductance.analysis.measure_values`.

    Raises
    ------
    ValueError, TypeError
        If a measure, a number or the norm cannot be used.
    """

    measures: tuple[str, ...]
    baselines: Baseline | list[Any]
    path_from: LayerSpec
    rtol: float | None
    n_steps: int
    norm: Literal["l1", "l2"]
    seed: int
    internal_batch_size: int | None

    def __post_init__(self) -> None:
        """Check them before the long work."""
        if not self.measures:
            msg = f"measures is empty; give some of {', '.join(MEASURES)}, or None for all."
            raise ValueError(msg)
        for measure in self.measures:
            check_choice("measure", measure, MEASURES)
        check_choice("norm", self.norm, ("l1", "l2"))
        checked_rules(None, 0.0, self.n_steps, 10_000, self.internal_batch_size)
        checked_rules(self.rtol, 0.0, None, 10_000, None)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            msg = f"seed must be a whole number of at least 0, got {self.seed!r}."
            raise ValueError(msg)


def values_by_batch(
    model: Callable[..., Any],
    inputs: Any,
    layers: LayerSpec,
    target: Target | str,
    options: Options,
    *,
    progress: bool = False,
) -> Iterator[dict[str, Values]]:
    """For each batch, measure and layer, the signed values ``(examples, units)`` in float64."""
    single = isinstance(inputs, Tensor | Mapping | tuple)
    given: Iterable[Batch] = [Batch(inputs, None)] if single else batches(inputs, device_of(model))
    total = None if single else length_hint(inputs) or None
    for batch in progress_bar(progress, "measures", "batch", total=total, given=given):
        known = single and not isinstance(target, str)
        explained: Any = target if known else batch.target(target, model)
        yield _of_batch(model, batch, layers, explained, options)


def _of_batch(
    model: Callable[..., Any], batch: Batch, layers: LayerSpec, target: Target, options: Options
) -> dict[str, Values]:
    found: dict[str, Values] = {}
    if "conductance" in options.measures:
        found["conductance"] = _conductance(model, batch, layers, target, options)
    if set(options.measures) - {"conductance"}:
        rows = options.internal_batch_size or 0
        with prepared(
            model,
            batch.inputs,
            layers,
            target=target,
            baselines=options.baselines,
            additional_forward_args=None,
            fixed=(),
            path_from=options.path_from,
            on_train="error",
            most=rows,
        ) as ready:
            found |= _of_prepared(ready, options, rows)
    return {measure: found[measure] for measure in options.measures}


def _of_prepared(ready: Prepared, options: Options, rows: int) -> dict[str, Values]:
    found = end_values(ready, options.measures, rows)
    if "internal_influence" in options.measures:
        found["internal_influence"] = influence_values(ready, options.n_steps, rows)
    if "deeplift" in options.measures:
        found["deeplift"] = deeplift_values(ready, rows)
    if "weight_magnitude" in options.measures:
        found["weight_magnitude"] = _for_all(ready, weight_values(ready, options.norm))
    if "random" in options.measures:
        found["random"] = _for_all(ready, _random(ready, options.seed))
    return found


def _conductance(
    model: Callable[..., Any], batch: Batch, layers: LayerSpec, target: Target, options: Options
) -> Values:
    total = total_conductance(
        model,
        batch.inputs,
        layers,
        target=target,
        baselines=options.baselines,
        path_from=options.path_from,
        rtol=options.rtol,
        internal_batch_size=options.internal_batch_size,
    )
    if total.settings["interrupted"]:
        raise KeyboardInterrupt
    return {layer: total.info[layer].sum_positions(total[layer].cpu().double()) for layer in total}


def _random(ready: Prepared, seed: int) -> dict[str, Tensor]:
    """Normal numbers for the units of each layer, which depend on its name and the seed alone."""
    return {
        name: torch.from_numpy(np.random.default_rng([seed, zlib.crc32(name.encode())]).normal(size=info.units))
        for name, info in infos_of(ready).items()
    }


def _for_all(ready: Prepared, values: dict[str, Tensor]) -> Values:
    """The same values for all examples."""
    return {layer: of.expand(ready.path.batch, -1) for layer, of in values.items()}
