"""Criteria for pruning compared on the digits: the accuracy that is left, by seed, value, amount and with training."""

from collections.abc import Iterator

import pandas as pd
from torch import nn

from conductance.analysis import pruning_experiment
from conductance.analysis.digits import load_digits
from tests.benchmarks.nets import MLPS, mlp
from tests.benchmarks.tables import Row, Table
from tests.models.training import trained

CRITERIA = ("conductance", "gradient_x_difference", "weight_magnitude", "random")
LAYERS = ["act1", "act2", "act3"]
AMOUNTS = (0.0, 0.2, 0.4, 0.6, 0.8)
SEEDS = range(10)
BATCH = 64


def experiment(*, quick: bool) -> pd.DataFrame:
    """Prune the hidden layers of ReLU networks 64-128-128-64-10, a network a seed, trained for 15 epochs."""
    digits = load_digits()
    images, labels = digits.train_images.flatten(1), digits.train_labels

    def network(seed: int) -> nn.Module:
        net = trained(lambda: mlp(MLPS["mlp"], "relu"), images, labels, epochs=15, batch=BATCH, rate=3e-3, seed=seed)
        return net.requires_grad_(requires_grad=True)

    count = 4 if quick else None
    train = list(zip(images.double().split(BATCH), labels.split(BATCH), strict=True))[:count]
    test = [(digits.test_images.flatten(1).double(), digits.test_labels)]
    return pruning_experiment(
        network,
        train,
        test,
        LAYERS,
        criteria=CRITERIA,
        amounts=AMOUNTS[::2] if quick else AMOUNTS,
        seeds=SEEDS[:2] if quick else SEEDS,
        value=("zero", "baseline"),
        fine_tune=1,
    )


def tables(found: pd.DataFrame) -> Iterator[Table]:
    """The mean and standard deviation over seeds, and how often conductance is ahead of the other criteria."""
    seeds = found.seed.nunique()
    table = Table(
        "Pruning of the digits, accuracy",
        f"500 test images, {', '.join(LAYERS)} pruned alike, mean ± standard deviation over {seeds} networks; "
        "constants are those of a black image; trained: one epoch of Adam behind the pruning, masks in force.",
    )
    ahead = Table(
        "Pruning of the digits, conductance against the others",
        f"Difference in accuracy, mean over {seeds} networks, and in how many of them conductance has more : less.",
    )
    for (value, tuned, amount), group in found.groupby(["value", "fine_tuned", "amount"]):
        by_seed = group.pivot_table(index="seed", columns="criterion", values="accuracy")
        key: Row = {"held at": str(value), "trained": "yes" if tuned else "no", "share": f"{amount:.0%}"}
        table.rows.append(
            {**key, **{name: f"{by_seed[name].mean():.3f} ± {by_seed[name].std():.3f}" for name in CRITERIA}}
        )
        if not amount:
            continue
        others = {name: by_seed[CRITERIA[0]] - by_seed[name] for name in CRITERIA[1:]}
        told = {name: f"{gap.mean():+.3f} ({(gap > 0).sum()} : {(gap < 0).sum()})" for name, gap in others.items()}
        ahead.rows.append({**key, **told})
    yield table
    yield ahead


def run(*, quick: bool) -> Iterator[Table]:
    """Both tables."""
    return tables(experiment(quick=quick))
