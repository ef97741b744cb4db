"""Where on the path from baseline to input the output changes, and where the layers' conductance comes from.

A network that has made up its mind early has no gradient left at the input; what matters happened before, at small
``a``. Interior gradients: Sundararajan, Taly and Yan, Gradients of Counterfactuals, 2016, arXiv:1611.02639.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from conductance.analysis._values import Floats, check_single, check_table
from conductance.arguments import Inputs
from conductance.baselines import Baseline
from conductance.hooks import LayerSpec
from conductance.integrand import path_curves
from conductance.targeting import Target

if TYPE_CHECKING:
    import pandas as pd

#: Columns of a saturation curve, and what ``quantity`` tells apart.
COLUMNS = ("example", "alpha", "quantity", "layer", "value")
OUTPUT, GRADIENT_NORM, INTEGRAND = "output", "gradient_norm", "integrand"


def saturation_curve(
    model: Callable[..., Any],
    inputs: Inputs,
    layers: LayerSpec = None,
    *,
    target: Target = None,
    baselines: Baseline | list[Any] = None,
    additional_forward_args: Any = None,
    fixed: Any = (),
    path_from: LayerSpec = None,
    steps: int = 65,
    internal_batch_size: int | None = None,
    on_train: Literal["error", "warn"] = "error",
    progress: bool = False,
) -> "pd.DataFrame":
    """Follow the output, its gradient and each layer's conductance along the straight path.

    Parameters
    ----------
    model, inputs, layers, target, baselines, additional_forward_args, fixed, path_from, internal_batch_size, on_train
        As in `conductance.total_conductance`. Of several baselines the curves are the means over their paths.
    steps
        Equidistant places on each path, ends included, at least 2: forward and backward passes for each example.
    progress
        Show a progress bar.

    Returns
    -------
    pandas.DataFrame
        One row a number: ``example``; ``alpha``, 0 at the baseline and 1 at the input; ``quantity``; ``layer``, empty
        but for the integrand; ``value``. The quantities are

        - ``output``: ``F`` at this place,
        - ``gradient_norm``: the Euclidean norm of its gradient by all that moves, the inputs or the tensor at
          ``path_from``,
        - ``integrand``: ``Σ_j v_j dy_j/da`` of a layer, where ``dy_j/da`` is the difference between the two
          neighbouring places over their distance, one-sided at the ends. The trapezoids of this curve sum to
          the layer's ``Σ C`` (``total_conductance`` with ``n_steps=steps`` on a network with kinks); at a cut that is
          ``F(x) - F(x')`` up to the error of the ``steps``.

        ``attrs`` has ``examples`` and, if the run was interrupted, the number ``left_out``; ``steps``, ``target`` and
        ``baselines``.

    Raises
    ------
    TypeError, ValueError, ConductanceError
        As `conductance.total_conductance`; also for ``steps``.

    See Also
    --------
    saturation_point : How soon the output has made most of its change.
    plot_saturation_curve : The picture.

    References
    ----------
    Sundararajan, Taly and Yan (1611.02639), sections 2.2 and 3; Dhamdhere, Sundararajan and Yan (1805.12233),
    equation 2: the integrand of conductance.

    Examples
    --------
    ``F = min(2x, 1)``: all of the change is made in the first half, and the gradient at the input is 0. At the kink
    the integrand is the mean of both sides.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Hardtanh(0.0, 0.5))
    >>> x = torch.ones(1, 1, dtype=torch.float64)
    >>> curve = saturation_curve(model, x, target=lambda y: 2 * y[:, 0], steps=5)
    >>> curve.pivot(index="alpha", columns="quantity", values="value").round(6)
    quantity  gradient_norm  integrand  output
    alpha
    0.00                2.0        2.0     0.0
    0.25                2.0        2.0     0.5
    0.50                0.0        1.0     1.0
    0.75                0.0        0.0     1.0
    1.00                0.0        0.0     1.0
    """
    import pandas as pd

    curves = path_curves(
        model,
        inputs,
        layers,
        target=target,
        baselines=baselines,
        additional_forward_args=additional_forward_args,
        fixed=fixed,
        path_from=path_from,
        steps=steps,
        internal_batch_size=internal_batch_size,
        on_train=on_train,
        progress=progress,
    )
    found: list[tuple[str, str, Floats]] = [
        (OUTPUT, "", curves.output),
        (GRADIENT_NORM, "", curves.gradient_norm),
        *((INTEGRAND, layer, values) for layer, values in curves.integrand.items()),
    ]
    examples = np.flatnonzero(~np.isnan(curves.output).any(1))
    each = np.repeat(examples, len(curves.alphas))
    places = np.tile(curves.alphas, len(examples))
    parts = [
        pd.DataFrame({"example": each, "alpha": places, "quantity": quantity, "layer": layer, "value": values.ravel()})
        for quantity, layer, values in ((name, layer, values[examples]) for name, layer, values in found)
    ]
    table = pd.concat(parts, ignore_index=True).astype({"quantity": str, "layer": str})
    table.attrs.update(examples=len(examples), left_out=len(curves.output) - len(examples), steps=steps)
    table.attrs.update({name: curves.settings[name] for name in ("target", "baselines")})
    return table


def saturation_point(curve: "pd.DataFrame", *, share: float = 0.9) -> "pd.DataFrame":
    """Find how soon the output has made most of its change, and keeps it.

    Parameters
    ----------
    curve
        What `saturation_curve` returned.
    share
        The share of ``F(x) - F(x')``, above 0 and at most 1.

    Returns
    -------
    pandas.DataFrame
        One row an example: ``example``; ``change``, ``F(x) - F(x')``; ``alpha``, the place from which on the output
        has made at least this share of the change up to the input, linear between two places; NaN where it does not
        change. On a straight line it is ``share`` itself; below, the network saturates.

    Raises
    ------
    TypeError
        If ``curve`` is no table.
    ValueError
        If it lacks a column or has no output, holds a place twice, or if ``share`` is out of range.

    Examples
    --------
    >>> import pandas as pd
    >>> columns = {"example": 0, "alpha": [0.0, 0.5, 1.0], "quantity": "output", "layer": "", "value": [1.0, 5.0, 5.0]}
    >>> saturation_point(pd.DataFrame(columns))
       example  change  alpha
    0        0     4.0   0.45
    """
    import pandas as pd

    check_curve(curve)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        msg = f"share is {share!r}, expected a number above 0 and at most 1, such as 0.9."
        raise ValueError(msg)
    output = curve[curve["quantity"] == OUTPUT]
    if not len(output):
        msg = "curve holds no rows of the quantity 'output'; pass what saturation_curve returns."
        raise ValueError(msg)
    rows = []
    for example, own in output.groupby("example", sort=False):
        own = own.sort_values("alpha")
        values = own["value"].to_numpy(np.float64)
        rows.append((example, values[-1] - values[0], _point(own["alpha"].to_numpy(np.float64), values, share)))
    return pd.DataFrame(rows, columns=["example", "change", "alpha"])


def check_curve(curve: Any) -> None:
    """Refuse what is not the table of one saturation curve."""
    check_table(curve, COLUMNS, "curve", "saturation_curve")
    hint = "is it of several runs? Take each by itself, or number their examples on"
    check_single(curve, COLUMNS[:-1], "curve", hint)


def _point(alphas: Floats, output: Floats, share: float) -> float:
    """First place from which on a share of the change is made."""
    change = output[-1] - output[0]
    if not np.isfinite(change) or change == 0:
        return float("nan")
    made = (output - output[0]) / change
    below = np.flatnonzero(made < share * (1 - 1e-12))
    if not len(below):
        return float(alphas[0])
    last = below[-1]
    part = (share - made[last]) / (made[last + 1] - made[last])
    return float(alphas[last] + min(part, 1.0) * (alphas[last + 1] - alphas[last]))
