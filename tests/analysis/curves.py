"""Tables of ablation, saturation and pruning made by hand, no two curves alike."""

from typing import Any

import numpy as np
import pandas as pd

SHARES = [0.0, 0.25, 0.5, 1.0]


def ablation(offset: float = 0.0, seeds: int = 3, **columns: Any) -> pd.DataFrame:
    """Make a curve with other numbers in every order and seed."""
    orders = [("most important first", -1, 2.0), ("least important first", -1, 0.5)]
    orders += [("random", seed, 1.0 + 0.1 * seed) for seed in range(seeds)]
    parts = []
    for order, seed, power in orders:
        score = 5.0 - (4.0 + offset if order != "random" else 4.0) * np.array(SHARES) ** (1 / power)
        known = {"order": order, "seed": seed, "share": SHARES, "ablated": [0, 1, 2, 4]}
        parts.append(pd.DataFrame({**known, "score": score, "accuracy": score / 10}))
    return pd.concat(parts, ignore_index=True).assign(**columns)


def saturation(layers: dict[str, list[float]], examples: int = 2) -> pd.DataFrame:
    """Make curves of three places; the second example's are twice as large."""
    parts = []
    for example in range(examples):
        known = {"example": example, "alpha": [0.0, 0.5, 1.0]}
        numbers = {("output", ""): [1.0, 3.0 + example, 5.0], ("gradient_norm", ""): [4.0, 2.0, 0.0]}
        numbers |= {("integrand", layer): values for layer, values in layers.items()}
        for (quantity, layer), values in numbers.items():
            scaled = (1 + example) * np.array(values)
            parts.append(pd.DataFrame({**known, "quantity": quantity, "layer": layer, "value": scaled}))
    return pd.concat(parts, ignore_index=True)


def pruning(criteria: tuple[str, ...] = ("conductance", "weight_magnitude"), **columns: Any) -> pd.DataFrame:
    rows = [
        (name, amount, seed, tuned, "zero", 0.9 - amount / (1 + n + tuned) + 0.01 * seed, amount + n)
        for n, name in enumerate(criteria)
        for amount in (0.0, 0.3, 0.6)
        for seed in (0, 1, 2)
        for tuned in (False, True)
    ]
    names = ["criterion", "amount", "seed", "fine_tuned", "value", "accuracy", "loss"]
    return pd.DataFrame(rows, columns=names).assign(**columns)
