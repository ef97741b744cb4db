"""The curves of the demonstration: what is left as channels are held, and what happens along one path."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from conductance import targets
from conductance.analysis.ablation import ablation_curve
from conductance.analysis.digits import Digits
from conductance.analysis.ranking import rank_units
from conductance.analysis.saturation import saturation_curve
from conductance.results import TotalConductance
from conductance.targeting import Target

if TYPE_CHECKING:
    import pandas as pd

#: Points of the ablation curve, random orders beside it, and places on the path.
POINTS, ORDERS, PLACES = 13, 5, 65


@dataclass(frozen=True, eq=False)
class Curves:
    """Tables of `ablation_curve` by ranking and of `saturation_curve` by title, as the report shows them."""

    ablations: "dict[str, pd.DataFrame]"
    saturations: "dict[str, pd.DataFrame]"


def explain_curves(
    model: nn.Module,
    result: TotalConductance,
    digits: Digits,
    *,
    example: int,
    digit: int,
    layers: Sequence[str],
    ranked: str,
    progress: bool = False,
) -> Curves:
    """Judge a ranking of channels by all test images, and follow the path of one image from black.

    Parameters
    ----------
    model, result, digits
        The network, its conductances, and the digits.
    example, digit
        The image that is followed, and the digit that it is taken for: its logit, which is explained, and its
        probability, which saturates.
    layers
        Whose integrands are drawn.
    ranked
        The layer whose channels are held at their value for a black image, in two orders.
    progress
        Show progress bars.
    """
    batches = [(digits.test_images, digits.test_labels)]
    rankings: dict[Literal["mean_abs", "mean"], str] = {
        "mean_abs": f"{ranked} by mean |C|",
        "mean": f"{ranked} by mean C",
    }
    ablations = {
        name: ablation_curve(
            model, batches, rank_units(result, by, top=None, layers=ranked),
            target="predicted", baselines=0.0, steps=POINTS, random=ORDERS * (by == "mean_abs"), progress=progress,
        )
        for by, name in rankings.items()
    }  # fmt: skip
    followed: dict[str, Target] = {
        f"Logit of {digit} in one image: what this report explains": digit,
        f"Probability of {digit} in the same image": targets.probability(digit),
    }
    image = digits.test_images[example : example + 1]
    options: dict[str, Any] = {"baselines": 0.0, "steps": PLACES, "progress": progress}
    return Curves(
        ablations=ablations,
        saturations={
            name: saturation_curve(model, image, list(layers), target=target, **options)
            for name, target in followed.items()
        },
    )
