"""Rankings, graphs, ablations, pruning, pictures and reports made from conductance results."""

from conductance.analysis.plots import plot_layer_bars, plot_top_units, plot_unit_map
from conductance.analysis.ranking import layer_importance, rank_units
from conductance.analysis.report import write_report
from conductance.analysis.responses import strongest_examples, top_unit_by_group, unit_map

__all__ = [
    "layer_importance",
    "plot_layer_bars",
    "plot_top_units",
    "plot_unit_map",
    "rank_units",
    "strongest_examples",
    "top_unit_by_group",
    "unit_map",
    "write_report",
]
