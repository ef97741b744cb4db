"""Figures as PNG pictures inside an HTML file, for light and dark pages, and the picture of an overview."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from torch import Tensor

from conductance.analysis._drawing import NEUTRAL, SERIES
from conductance.analysis._graph_layout import shown_part
from conductance.analysis.plot_graph import plot_flow_graph
from conductance.analysis.plot_maps import plot_unit_map
from conductance.analysis.plots import plot_layer_bars
from conductance.analysis.ranking import layer_importance, rank_units
from conductance.analysis.responses import strongest_examples, unit_map
from conductance.neuron_results import NeuronConductance
from conductance.results import TotalConductance

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Text and background of charts, on light and on dark pages; the template has the same backgrounds.
_LIGHT, _DARK = ("#1f2429", "#ffffff"), ("#dfe3e8", "#1b1f24")

#: Inches of the height of bars without a row, for each row, and of curves.
BARS, BAR, CURVE = 1.1, 0.26, 3.6

#: Lines of a flow graph thinner than this share of the strongest into their layer are left out.
_MIN_SHARE = 0.05


@dataclass(frozen=True)
class Chart:
    """One chart drawn twice, as ``data:`` addresses of PNG pictures."""

    light: str
    dark: str


@dataclass(frozen=True)
class MapPicture:
    """An example that drives a unit: the picture, and what to write below it."""

    source: str
    caption: str
    conductance: float


def chart(draw: "Callable[[Axes], object]", height: float) -> Chart:
    """Draw bars or curves once, and encode them in both colour schemes; the height is in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, height), layout="constrained")
    draw(figure.add_subplot())
    return Chart(*(_encoded(_tinted(figure, *colours), 160) for colours in (_LIGHT, _DARK)))


def graph_chart(graph: "nx.DiGraph") -> Chart:
    """Draw a flow graph in both colour schemes: twice, since its halos and rings have the colour of the page."""
    return Chart(*(_encoded(graph_figure(graph, *colours), 130) for colours in (_LIGHT, _DARK)))


def graph_figure(graph: "nx.DiGraph", ink: str = _LIGHT[0], paper: str = _LIGHT[1]) -> "Figure":
    """Draw a flow graph in the colours of a page."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    rows = shown_part(graph, _MIN_SHARE).rows
    figure = Figure(figsize=(7.6, 1.6 + 0.42 * (rows + 0.6)), layout="constrained", facecolor=paper)
    ax = figure.add_subplot(facecolor=paper)
    plot_flow_graph(graph, ax, min_share=_MIN_SHARE, limit=_widest(graph))
    for text in figure.findobj(Text):
        text.set(color=ink)
    return figure


def _widest(graph: "nx.DiGraph") -> float | None:
    """Take the largest flow of an edge that is not alone between its layers: that one would make all others thin."""
    sizes: dict[tuple[str, str], list[float]] = {}
    for start, stop, flow in graph.edges(data="flow"):
        sizes.setdefault((start[0], stop[0]), []).append(abs(flow))
    return max((max(each) for each in sizes.values() if sum(size > 0 for size in each) > 1), default=0.0) or None


def map_pictures(
    result: TotalConductance, layer: str, unit: int, *, images: Any, captions: Sequence[str], top: int
) -> list[MapPicture]:
    """Draw the examples that drive a unit most, with its map on one scale over them."""
    found, limit = _strongest_maps(result, layer, unit, top)
    return [
        MapPicture(_map_source(images[example], values, limit), captions[example], conductance)
        for example, conductance, values in found
    ]


def input_pictures(neurons: NeuronConductance, image: Any) -> list[MapPicture]:
    """Draw what each input element gives through each unit, on one scale; of colours the sum."""
    values = neurons.values[0]
    maps = values.sum(1) if values.ndim == 4 else values
    limit = float(maps.abs().max()) or 1.0
    return [
        MapPicture(_map_source(image, one, limit), f"unit {unit}", total)
        for one, unit, total in zip(maps, neurons.neurons, neurons.total[0].tolist(), strict=True)
    ]


def overview(
    result: TotalConductance,
    layer: str,
    *,
    images: Any,
    captions: Sequence[str],
    units: int = 4,
    top: int = 5,
) -> "Figure":
    """Draw the bars of all layers, and beside them what the top channels of one layer respond to.

    Parameters
    ----------
    result
        Of a network of images.
    layer
        A layer with height and width.
    images, captions
        One for each example.
    units, top
        Number of channels, and of examples for each.

    Returns
    -------
    Figure
        For a white page; its width is 10 inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 1.05 * units + 0.9), layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.0, 1.1), wspace=0.02)
    left, right = halves
    left.suptitle("How much passes each layer", fontsize="medium")
    plot_layer_bars(layer_importance(result), left.add_subplot())
    right.suptitle(f"What the strongest channels of {layer} respond to", fontsize="medium", parse_math=False)
    grid = right.subplots(units, top, squeeze=False)
    for axes, unit in zip(grid, rank_units(result, top=units, layers=layer)["unit"], strict=True):
        _row(axes, result, layer, int(unit), images, captions)
    return figure


def _row(axes: Any, result: TotalConductance, layer: str, unit: int, images: Any, captions: Sequence[str]) -> None:
    """Draw one channel's examples from left to right."""
    found, limit = _strongest_maps(result, layer, unit, len(axes))
    axes[0].set_ylabel(f"channel {unit}", fontsize="small")
    for ax, (example, conductance, values) in zip(axes, found, strict=False):
        plot_unit_map(images[example], values, ax, limit=limit)
        ax.set_title(f"{captions[example]}:  {conductance:+.2f}", fontsize="small", pad=3, parse_math=False)
    for ax in axes[len(found) :]:
        ax.set_axis_off()


def _strongest_maps(
    result: TotalConductance, layer: str, unit: int, top: int
) -> tuple[list[tuple[int, float, Tensor]], float]:
    """Take the examples that drive a unit most: number, conductance, map; and the one limit of all maps."""
    table = strongest_examples(result, layer, unit, top=top)
    found = [
        (int(example), float(conductance), unit_map(result, layer, unit, example=int(example)))
        for example, conductance in zip(table["example"], table["conductance"], strict=True)
    ]
    return found, max(float(values.abs().max()) for _, _, values in found) or 1.0


def _map_source(image: Any, values: Any, limit: float) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2, 1.2))
    ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    plot_unit_map(image, values, ax, limit=limit).set_axis_off()
    return _encoded(figure, 120)


def _tinted(figure: "Figure", ink: str, paper: str) -> "Figure":
    """Give a figure the colours of a page; curves and bars keep theirs."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

    figure.set_facecolor(paper)
    curves = {to_rgba(colour) for colour in (*SERIES, NEUTRAL)}
    thin = [line for line in figure.findobj(Line2D) if to_rgba(line.get_color()) not in curves]
    for artist in (*figure.findobj(Text), *thin, *figure.findobj(LineCollection)):
        artist.set(color=ink)
    for ax in figure.axes:
        ax.set_facecolor(paper)
        ax.tick_params(colors=ink)
        for spine in ax.spines.values():
            spine.set_edgecolor(ink)
    return figure


def _encoded(figure: "Figure", dpi: int) -> str:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
