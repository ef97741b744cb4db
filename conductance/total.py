"""Total conductance of every hidden unit: ``C_j = ∫ v_j dy_j`` along the straight path from baseline to input.

``y_j(a)`` is the unit's activation at ``x' + a (x - x')`` and ``v_j(a) = dF/dy_j`` the gradient there. It is the path
integrated gradient of the hidden layer, and the sum over inputs of the neuron conductances of 1805.12233, equation 1.
Over a layer that every way from input to target crosses (a cut) it sums to ``F(x) - F(x')``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

from conductance._reporting import settings_of, warn
from conductance._requests import checked_rules
from conductance.arguments import Inputs
from conductance.baselines import Baseline
from conductance.hooks import LayerSpec
from conductance.results import TotalConductance
from conductance.running import Run, prepared
from conductance.targeting import Target


def total_conductance(
    model: Callable[..., Any],
    inputs: Inputs,
    layers: LayerSpec = None,
    *,
    target: Target = None,
    baselines: Baseline | list[Any] = None,
    additional_forward_args: Any = None,
    fixed: Any = (),
    path_from: LayerSpec = None,
    rtol: float | None = None,
    atol: float = 0.0,
    n_steps: int | None = None,
    max_evaluations: int = 10_000,
    internal_batch_size: int | None = None,
    on_train: Literal["error", "warn"] = "error",
    progress: bool = False,
) -> TotalConductance:
    """Conductance of every unit of many layers at once, to a tolerance.

    Parameters
    ----------
    model
        An ``nn.Module``, or any callable that runs modules or taps if ``layers`` names these (modules as modules).
    inputs
        A tensor ``(batch, …)``, a tuple of positional inputs or a dict of keyword inputs (a ``BatchEncoding`` is one).
        Floating-point tensors move along the path, everything else is handed on as it is: integers and truth values
        (ids, masks, lengths) never move.
    layers
        Dotted name (``"act#2"``: the third call, ``"lstm[0]"``: the first tensor of a tuple, ``"fc:in"``: the input),
        glob (``*`` matches dots too), module, type, ``HookPoint`` or a list of these, the table of
        ``hooks.list_points`` or a part of it; None is every module without children, and every tensor that the model
        names by ``hooks.tap``. Those names are given like the names of modules. What a glob, a type or None brings in
        that never runs or has no batch axis is left out (``settings["left_out"]``). Modules of a plain callable are
        called ``Linear_0``, ``ReLU_1`` and so on.
    target
        What is explained, one number for each example: an index into the output, a tuple of indices, a tensor or
        list of one index for each example, a target of :mod:`conductance.targets` (a probability, margin, loss, token),
        or a callable of the output (or of the output and the example number of each row). It receives rows of any
        examples in any order.
    baselines
        Where the path starts: a number, a tensor, a callable of the input, or a name (``"zeros"``, ``"mean"`` of the
        batch, ``"permuted"``: another example, ``"blur"``; see :mod:`conductance.baselines`). A tuple gives one for
        each input, a dict names the only inputs that move, a list gives several to average over: ``spread`` tells how
        far they differ. None is zero. With ``path_from``, integers of the ids' shape are token ids to embed,
        ``"pad"`` is the padding token everywhere, and numbers or floating-point tensors are the embedding itself.
    additional_forward_args
        Further arguments of the model, a tuple of positional ones or a dict of keyword ones. Tensors whose first axis
        is the batch are repeated with the rows.
    fixed
        Names or positions of arguments that neither move nor are repeated, such as an adjacency matrix with as many
        rows as the batch. Positions count ``inputs`` first, then ``additional_forward_args``.
    path_from
        A hook point whose tensor moves instead of the inputs, such as a token embedding. All calls of a module that
        runs several times move, unless one is named (``"shared#0"``: the encoder's, where a decoder shares the
        embedding). Where the inputs hold integers only, it is the model's ``get_input_embeddings()`` (of an
        encoder-decoder model the encoder's), or its only ``nn.Embedding``.
    rtol, atol
        An example is done when the estimated ``Σ|error|`` of every layer is at most ``rtol · Σ|C| + atol``. None is
        1e-2 unless ``n_steps`` is given.
    n_steps
        Fixed number of evaluations for each example and baseline instead, ends included, at least 2. Networks with
        kinks (ReLU, max-pool) take equidistant nodes and a trapezoid in activation space between neighbours; smooth
        ones take one panel of Chebyshev–Lobatto nodes up to 33, and beyond that panels of equal width with up to 17
        nodes each. The nodes depend on ``n_steps`` alone, so the layers asked do not change the result;
        ``converged`` is then judged by a tolerance of 1e-2.
    max_evaluations
        Rows that one example may cost before it is given up with status "budget".
    internal_batch_size
        Most rows of one model call; examples are split over calls if need be. None chooses from the bytes that the
        tapped tensors take, never from free memory.
    on_train
        What to do where dropout or batch norm is in train mode, or rows turn out to depend on chance or on each other:
        "error", or "warn" and go on.
    progress
        Show a progress bar: the examples that are done, and the evaluations run so far.

    Returns
    -------
    TotalConductance
        A mapping of hook point name to a tensor ``(batch, *layer shape)``, with errors, coverage and status.

    Raises
    ------
    ValueError, TypeError
        For an argument that cannot be used; the message names it.
    ConductanceError
        If the model detaches its output from the input, is random, mixes its rows or takes batches of one size only;
        if its graph changes between calls; if NaN or infinity turns up (the layer is named).

    Warns
    -----
    ConvergenceWarning
        If examples do not converge to a tolerance: names status, layers and error. Not with ``n_steps``, where
        ``converged`` and ``error`` tell.

    Notes
    -----
    A layer whose ``Σ|C|`` and error are together below a thousandth of the tolerance on integrated gradients (it does
    not move, or hardly matters) does not keep an example from converging.

    An evaluation is one row, forward and backward. A keyboard interrupt ends the run early: what is finished is
    returned, the rest is NaN with status "interrupted". Estimates are calibrated for whole layers; a single unit's
    error is above its ``unit_error`` for about one unit in twenty.

    Where the model has kinks the ends of the path are taken 1e-12 of its length inside (1e-6 below float64), since a
    baseline of zeros often lies on a kink; where the gradient is infinite at an end (a root at zero), 1e-9 (1e-6). The
    outputs are those at the true ends, by rows that run forward only and do not count as evaluations; what F changes
    by on the way there is part of ``unattributed``, and a jump at that end if it is beyond the tolerance.

    References
    ----------
    Dhamdhere, Sundararajan and Yan, How Important Is a Neuron? (1805.12233), section 2; Shrikumar, Su and Kundaje
    (1807.09946), equation 2.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    >>> x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    >>> total = total_conductance(model, x, target=0, rtol=1e-6)
    >>> list(total)
    ['0', '1', '2']
    >>> bool((total["1"].sum(1) - total.output_change).abs() < 1e-6)
    True
    """
    started = time.perf_counter()
    rules = checked_rules(rtol, atol, n_steps, max_evaluations, internal_batch_size)
    with prepared(
        model,
        inputs,
        layers,
        target=target,
        baselines=baselines,
        additional_forward_args=additional_forward_args,
        fixed=fixed,
        path_from=path_from,
        on_train=on_train,
        most=rules.rows,
    ) as ready:
        run = Run(ready, rules, n_steps)
        interrupted = run.execute(progress)
    result = run.result(
        {
            "quantity": "total_conductance",
            **settings_of(ready, rules, n_steps, target, baselines),
            "internal_batch_size": run.rows,
            "interrupted": interrupted,
            "seconds": round(time.perf_counter() - started, 3),
        }
    )
    warn(result, rules, n_steps)
    return result
