"""One self-contained HTML file about a result: layers, top units, their responses, flows, and how sure it is.

Pictures and style are part of the file; it needs no network and no JavaScript. Whatever comes from the model
or the caller is escaped.
"""

from collections.abc import Hashable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conductance._dataset_groups import checked_groups
from conductance._progress import progress_bar
from conductance.analysis._report_curves import ablation_part, check_curves, groups_part, saturation_part
from conductance.analysis._report_flows import check_flows, check_neurons, flow_part, pixels_part
from conductance.analysis._report_parts import classes_part, facts_of, layers_part, units_part
from conductance.analysis._values import check_top, statistics, unit_values
from conductance.analysis.ranking import chosen_layers
from conductance.dataset_results import DatasetConductance
from conductance.flow_results import ConductanceFlow
from conductance.neuron_results import NeuronConductance
from conductance.results import TotalConductance

if TYPE_CHECKING:
    import pandas as pd


def write_report(
    path: str | Path,
    result: TotalConductance | DatasetConductance,
    *,
    title: str = "Conductance report",
    facts: Mapping[str, str] | None = None,
    layers: Sequence[str] | str | None = None,
    top: int = 8,
    images: Any = None,
    captions: Sequence[str] | None = None,
    groups: Sequence[Hashable] | bool | None = None,
    flows: Mapping[str, ConductanceFlow] | None = None,
    neurons: Mapping[int, NeuronConductance] | None = None,
    ablations: "Mapping[str, pd.DataFrame] | None" = None,
    saturations: "Mapping[str, pd.DataFrame] | None" = None,
    code: str | None = None,
    progress: bool = False,
) -> Path:
    """Write a report on a result as one HTML file.

    Parameters
    ----------
    path
        The file; its folder has to exist. A file that is there is replaced.
    result
        What `conductance.total_conductance` or `conductance.dataset_conductance` returned. Statistics of a data set
        hold no single examples, so that there are no maps of these.
    title
        Heading of the report.
    facts
        What the result does not know, such as the model's name and accuracy: term and text, shown first.
    layers
        Hook points whose units are ranked, each by itself; None is all.
    top
        Units of each layer in its table, at least 1.
    images
        ``(batch, height, width)`` or ``(batch, 1 or 3, height, width)``: pictures of the examples. With them,
        the first units of a layer with height and width are shown with the examples that drive them most.
    captions
        Text for each example; None is its number.
    groups
        The class of each example, a text, a number or a tuple of them, or True for the groups of a data set's
        statistics: adds the layers class by class, and the top unit of each class, in the last of ``layers``.
    flows
        Of the same model: a title and what `conductance.conductance_flow` returned, each drawn as the mean over its
        examples, with its strongest paths.
    neurons
        Numbers of examples and what `conductance.neuron_conductance` returned for each of them alone, without
        feature groups: which elements of the image feed these units. Needs ``images``.
    ablations
        Names of rankings and what `ablation_curve` returned for each: what is left as units are held, compared in one
        picture.
    saturations
        A title and what `saturation_curve` returned: what happens along the path.
    code
        The call that made the result, to be shown.
    progress
        Show a progress bar.

    Returns
    -------
    Path
        The absolute path of the file.

    Raises
    ------
    TypeError
        If ``result`` is not a result, ``top`` not a whole number, a group neither text nor number, ``images``,
        ``captions`` or ``groups`` of single examples are given for statistics of a data set, or ``flows``,
        ``neurons``, ``ablations`` or ``saturations`` hold something else.
    ValueError
        If ``layers`` is empty, ``top`` below 1, no example is finished, ``images``, ``captions`` or ``groups`` do
        not have one entry for each example, or ``neurons`` do not fit an image, or a table of curves lacks a column.
    KeyError
        If there is no such layer.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import torch
    >>> from tempfile import TemporaryDirectory
    >>> from torch import nn
    >>> import conductance as cd
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    >>> total = cd.total_conductance(model, torch.ones(5, 3), target=0)
    >>> with TemporaryDirectory() as folder:
    ...     text = write_report(Path(folder) / "report.html", total).read_text(encoding="utf-8")
    >>> "<h1>Conductance report</h1>" in text
    True
    """
    left_out = _checked(result, groups)
    check_top(top)
    path = _checked_path(path)
    names = chosen_layers(result, layers)
    captions = _captions(result, images, captions, groups)
    if groups is not None and isinstance(result, TotalConductance):
        groups = checked_groups(groups, len(result.status))
    flows, neurons = flows or {}, neurons or {}
    check_flows(flows)
    check_neurons(neurons, images)
    ablations, saturations = ({} if curves is None else curves for curves in (ablations, saturations))
    check_curves(ablations, saturations)
    page: dict[str, Any] = {"title": title, "code": code, "ranked": names[-1], "classes": [], "grouped": None}
    page["facts"] = {**(facts or {}), **facts_of(result, left_out)}
    with progress_bar(progress, "report", "part", total=len(names) + len(flows) + 4) as bar:
        page["layers"] = layers_part(result)
        bar.update()
        page["units"] = []
        for name in names:
            page["units"].append(units_part(result, name, top, images, captions))
            bar.update()
        if groups is not None and groups is not False:
            page["grouped"] = groups_part(result, names, groups)
            page["classes"] = classes_part(result, names[-1], groups, images, captions)
        bar.update()
        page["pixels"] = [pixels_part(number, found, images, captions) for number, found in neurons.items()]
        bar.update()
        page["ablation"] = ablation_part(ablations) if ablations else None
        page["saturations"] = [saturation_part(heading, curve) for heading, curve in saturations.items()]
        bar.update()
        page["flows"] = []
        for heading, flow in flows.items():
            page["flows"].append(flow_part(heading, flow))
            bar.update()
    return _written(path, _rendered(page))


def _checked_path(path: str | Path) -> Path:
    """Refuse a file that cannot be written, before the work and not after it."""
    path = Path(path)
    if path.is_dir():
        msg = f"Cannot write {path}: it is a folder. Give a file in it, such as {path / 'report.html'}."
        raise IsADirectoryError(msg)
    if not path.parent.is_dir():
        msg = f"Cannot write {path}: there is no folder {path.parent}. Create it first."
        raise FileNotFoundError(msg)
    return path


def _checked(result: Any, groups: Any) -> int:
    """Refuse what is no result, or has no finished example; the number of those left out."""
    if isinstance(result, DatasetConductance):
        return statistics(result, groups).left_out
    return unit_values(result).left_out


def _captions(result: Any, images: Any, captions: Any, groups: Any) -> Sequence[str]:
    """A text for each example, of which everything that is given has to have one entry; none for a data set."""
    if isinstance(result, DatasetConductance):
        for argument, value in (("images", images), ("captions", captions)):
            if value is not None:
                msg = (
                    f"{argument} are of single examples, which a DatasetConductance does not hold: give the "
                    "TotalConductance of some of them."
                )
                raise TypeError(msg)
        return []
    texts = [f"example {number}" for number in range(len(result.status))] if captions is None else captions
    if isinstance(groups, bool):
        msg = f"groups is {groups}, which is for a DatasetConductance; give the group of each example."
        raise TypeError(msg)
    for argument, value in (("images", images), ("captions", texts), ("groups", groups)):
        _check_length(argument, value, len(result.status))
    return texts


def _check_length(name: str, values: Any, examples: int) -> None:
    if values is not None and not hasattr(values, "__len__"):
        msg = f"{name} must hold one entry for each example, got {type(values).__name__}."
        raise TypeError(msg)
    if values is not None and len(values) != examples:
        msg = f"{name} has {len(values)} entries, expected one for each of {examples} examples."
        raise ValueError(msg)


def _rendered(page: Mapping[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined

    source = resources.files("conductance.analysis").joinpath("templates", "report.html").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(page)


def _written(path: Path, text: str) -> Path:
    """Replace the file as a whole, or leave it as it is."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path.resolve()
