"""How fast single units are ablated: many units and examples in a call, against a hook and a loop over units."""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from conductance.analysis import unit_effects
from tests.benchmarks.edges import held_at_baseline
from tests.benchmarks.nets import digits, trained
from tests.benchmarks.tables import Row, Table, at_least
from tests.benchmarks.timing import described, interleaved

#: Network, its layer.
CASES = (("mlp3x128", "act1"), ("mlp3x128", "act2"), ("mlp3x128", "act3"), ("conv", "act1"), ("conv", "act2"))
BATCHES = (64, 500)
UNITS = 128
GOAL = 3.0


def run(quick: bool = False) -> Iterable[Table]:
    """One table: seconds of ours and of the loop, and their ratio."""
    images, repetitions = (100, 3) if quick else (500, 7)
    text = (
        f"{images} images, {UNITS} units (or all of a narrower layer) each held at its activation on a black image, "
        "the change of the label's logit; the loop sets a hook and runs the same loader for each unit. "
        f"{described(repetitions)}."
    )
    yield Table("Ablation of single units", text, list(_rows(images, repetitions)))


def _rows(images: int, repetitions: int) -> Iterator[Row]:
    for name, layer in CASES:
        for batch in BATCHES:
            yield measure(name, layer, images, batch, repetitions)


def measure(name: str, layer: str, images: int, batch: int, repetitions: int) -> Row:
    """Time both on one layer; they agree before they are compared."""
    model = deepcopy(trained(name, "relu")).float()
    data = digits()
    inputs, labels = data.train[:images].float(), data.train_labels[:images]
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=batch)
    ours = partial(unit_effects, model, loader, layer, target="label")
    units = min(UNITS, ours()[layer].shape[1])
    loop = partial(one_by_one, model, loader, layer, units)
    apart = float((ours()[layer][:, :units] - loop()).abs().max())
    times = interleaved({"ours": ours, "loop": loop}, repetitions)
    ratio = times["loop"].per(times["ours"])
    return {
        "network": name,
        "layer": layer,
        "units": units,
        "batch": batch,
        "loop (s)": times["loop"].seconds,
        "ours (s)": times["ours"].seconds,
        "times as fast": ratio,
        "range": times["loop"].span(times["ours"]),
        "on the clock": times["loop"].wall_per(times["ours"]),
        "largest difference": apart,
        **at_least(ratio, GOAL),
    }


def one_by_one(model: nn.Module, loader: DataLoader[tuple[Tensor, ...]], layer: str, units: int) -> Tensor:
    """What each unit does, ``(images, units)``, one unit after the other."""
    with torch.no_grad():
        whole = _logits(model, loader)
        effects = []
        for unit in range(units):
            with held_at_baseline(model, layer, unit):
                effects.append(whole - _logits(model, loader))
    return torch.stack(effects, 1)


def _logits(model: nn.Module, loader: DataLoader[tuple[Tensor, ...]]) -> Tensor:
    return torch.cat([model(inputs).gather(1, labels[:, None])[:, 0] for inputs, labels in loader])
