"""Total conductance over a data loader, summed up batch by batch.

What the units of a network do over a data set, or over each of its classes, as means that need no more memory for more
examples: the class-wise conductance of 1805.12233, sections 4 and 5.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence, Sized
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from conductance._fingerprint import fingerprint, told_apart
from conductance._progress import progress_bar
from conductance._requests import checked_rules
from conductance._telling import in_batch
from conductance.arguments import Arguments, Inputs
from conductance.baselines import Baseline
from conductance.dataset_results import DatasetConductance
from conductance.errors import ConvergenceWarning, check_choice
from conductance.hooks import LayerSpec, undisturbed
from conductance.loaders import Batch, batches, device_of, predicted
from conductance.targeting import Target
from conductance.total import total_conductance


def dataset_conductance(
    model: Callable[..., Any],
    loader: Iterable[Any],
    layers: LayerSpec = None,
    *,
    target: Target | str = None,
    group_by: Literal["label", "predicted"] | Callable[[Inputs, Tensor | None], Any] | None = None,
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
) -> DatasetConductance:
    """Statistics of the conductance of every unit over a data set.

    Parameters
    ----------
    model
        As for :func:`~conductance.total.total_conductance`. Batches go to the device of its first parameter.
    loader
        A ``DataLoader``, or another iterable of batches: the inputs, or pairs of inputs and labels; see
        :func:`~conductance.loaders.batches`. It is read once.
    layers
        As for total conductance. All batches have to have the same layers.
    target
        ``"label"`` (the class that the loader gives each example), ``"predicted"`` (the one that the model gives it),
        or a target of total conductance that means the same for every batch.
    group_by
        What examples are grouped by, for statistics of each group: ``"label"``, ``"predicted"``, or a callable of a
        batch's inputs and labels that returns a text, number or tuple of them for each example.
    baselines
        As for total conductance; it has to fit every batch. One that is made from a batch (``"mean"``, ``"permuted"``)
        makes the statistics depend on the batches.
    additional_forward_args, fixed, path_from
        As for total conductance, the same for every batch: what belongs to examples comes from the loader.
    rtol, atol, n_steps, max_evaluations, internal_batch_size, on_train
        As for total conductance, for each example.
    progress
        Show a progress bar of the examples that are done.

    Returns
    -------
    DatasetConductance
        Can be merged, saved, given more results, and ranked by ``analysis.rank_units`` and
        ``analysis.layer_importance``. ``settings["weights_fingerprint"]`` tells models apart, so that
        statistics of another model are not merged; baselines and additional arguments are told apart by their numbers,
        callables by their names only.

    Raises
    ------
    ValueError, TypeError
        For a loader without batches or of other things, a target or ``group_by`` that needs labels where there are
        none, and as for total conductance. A note names the batch.
    ConductanceError
        As for total conductance.

    Warns
    -----
    ConvergenceWarning
        Once, at the end, if examples missed the tolerance or the loop was interrupted. Other warnings of total
        conductance are given for the first batch that has them.

    Notes
    -----
    A keyboard interrupt ends the loop early: statistics of the examples that were finished are returned, and
    ``interrupted`` is True.

    References
    ----------
    Dhamdhere, Sundararajan and Yan, How Important Is a Neuron? (1805.12233).

    Examples
    --------
    >>> from torch import nn
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    >>> data = TensorDataset(torch.randn(10, 2, dtype=torch.float64), torch.arange(10) % 2)
    >>> stats = dataset_conductance(model, DataLoader(data, batch_size=4), target="label", group_by="label")
    >>> stats
    DatasetConductance(3 layers, 10 examples, 10 converged, 2 groups)
    >>> stats.compute(group=1)["1"].mean.shape
    torch.Size([3])
    """
    started = time.perf_counter()
    rules = checked_rules(rtol, atol, n_steps, max_evaluations, internal_batch_size)
    _check_group_by(group_by)
    asked = {
        "target": target,
        "group_by": group_by,
        "baselines": baselines,
        "additional_forward_args": additional_forward_args,
    }
    about = {"quantity": "dataset_conductance", **fingerprint(model)}
    stats = DatasetConductance(about | {name: told_apart(value) for name, value in asked.items()})
    explained = partial(
        total_conductance,
        model,
        layers=layers,
        baselines=baselines,
        additional_forward_args=additional_forward_args,
        fixed=fixed,
        path_from=path_from,
        rtol=rtol,
        atol=atol,
        n_steps=n_steps,
        max_evaluations=max_evaluations,
        internal_batch_size=internal_batch_size,
        on_train=on_train,
    )
    classes = partial(_predicted, model, extra=additional_forward_args, fixed=fixed, rows=rules.rows)
    interrupted, told = False, set[tuple[type, str]]()
    with _bar(loader, progress) as bar:
        try:
            for number, batch in enumerate(batches(loader, device_of(model))):
                with in_batch(number, told):
                    found = classes(batch) if "predicted" in _texts(target, group_by) else None
                    wanted = found if target == "predicted" else batch.target(target, model)
                    result = explained(batch.inputs, target=wanted)
                    stats.update(result, _groups(group_by, batch, found))
                if interrupted := bool(result.settings["interrupted"]):
                    break
                bar.update(len(batch))
        except KeyboardInterrupt:
            interrupted = True
    stats.settings |= {"interrupted": interrupted, "seconds": round(time.perf_counter() - started, 3)}
    _warn(stats)
    return stats


def _check_group_by(group_by: object) -> None:
    if isinstance(group_by, str):
        check_choice("group_by", group_by, ("label", "predicted"))
    elif group_by is not None and not callable(group_by):
        kind = type(group_by).__name__
        raise TypeError(
            f"group_by is a {kind}; expected 'label', 'predicted', a callable of inputs and labels, or None"
        )


def _texts(*options: object) -> list[str]:
    """Options that are texts; a tensor cannot be compared with one."""
    return [option for option in options if isinstance(option, str)]


def _predicted(model: Callable[..., Any], batch: Batch, *, extra: Any, fixed: Any, rows: int) -> Tensor:
    """The class that the model gives each example, with ``rows`` of them at once at most (0: all)."""
    arguments = Arguments(batch.inputs, extra, fixed)
    found = []
    with undisturbed(model, {}):
        for some in torch.arange(len(batch)).split(rows or len(batch)):
            positional, named = arguments.call(some, len(batch), {})
            found.append(predicted(partial(model, *positional, **named), ()))
    return torch.cat(found)


def _groups(group_by: Any, batch: Batch, classes: Tensor | None) -> Any:
    """The group of each example of a batch, as `DatasetConductance.update` takes them."""
    if group_by is None or group_by == "predicted":
        return classes if group_by else None
    if callable(group_by):
        groups = group_by(batch.inputs, batch.labels)
        if groups is None:
            raise TypeError("group_by returned None; expected one text, number or tuple of them for each example")
        return groups
    if batch.labels is None:
        raise ValueError("group_by='label' needs labels: let the loader give pairs (inputs, labels)")
    if batch.labels.dim() != 1:
        shape = tuple(batch.labels.shape)
        raise ValueError(
            f"group_by='label' needs one label for each example, the loader gives {shape}; give a callable"
        )
    return batch.labels


def _bar(loader: Iterable[Any], progress: bool) -> Any:
    """A progress bar of examples, with an end where the loader tells how many there are."""
    total = _size(loader) if progress else None
    return progress_bar(progress, "conductance", "example", total=total)


def _size(loader: Any) -> int | None:
    """Number of examples that a loader will give, None if it does not tell."""
    if isinstance(loader, Sequence):
        return sum(len(batch) for batch in batches(loader))
    sampler, size = getattr(loader, "sampler", None), getattr(loader, "batch_size", None)
    if not isinstance(sampler, Sized) or size is None:
        return None
    return len(sampler) - len(sampler) % size if loader.drop_last else len(sampler)


def _warn(stats: DatasetConductance) -> None:
    """Say which tolerance was missed how often, or that the loop was interrupted."""
    if stats.interrupted:
        text = f"the loop was interrupted: the statistics are of {stats.count} examples, not of the whole loader"
        warnings.warn(text, ConvergenceWarning, stacklevel=3)
    missed = stats.unconverged
    if missed and stats.settings.get("n_steps") is None:
        worst = max(one.relative_error for one in stats.compute().values())
        kinds = ", ".join(f"{count} {status}" for status, count in missed.items())
        warnings.warn(
            f"{sum(missed.values())} of {stats.count} examples did not converge to rtol={stats.settings['rtol']:g} "
            f"({kinds}); largest estimated error of a layer {worst:.1e}; they are part of the statistics. "
            "total_conductance of such a batch says more",
            ConvergenceWarning,
            stacklevel=3,
        )
