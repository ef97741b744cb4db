"""Rankings, graphs, ablations, pruning, pictures and reports made from conductance results."""

from conductance.analysis.ablation import UnitEffects, ablation_curve, baseline_values, curve_area, unit_effects
from conductance.analysis.graph import compare_graphs, flow_graph
from conductance.analysis.graph_files import read_graph, write_graph
from conductance.analysis.graph_paths import FlowPath, backbone, strongest_paths
from conductance.analysis.measures import MEASURES, compare_measures, measure_values, unit_scores
from conductance.analysis.plot_curves import plot_ablation_curve, plot_pruning_curves
from conductance.analysis.plot_graph import plot_flow_graph
from conductance.analysis.plot_maps import plot_token_map, plot_unit_map
from conductance.analysis.plot_saturation import plot_saturation_curve
from conductance.analysis.plots import plot_layer_bars, plot_measures, plot_top_units
from conductance.analysis.pruning import PrunedUnits, prune_units
from conductance.analysis.pruning_study import pruning_experiment
from conductance.analysis.ranking import layer_importance, rank_units
from conductance.analysis.report import write_report
from conductance.analysis.responses import strongest_examples, top_unit_by_group, unit_map
from conductance.analysis.saturation import saturation_curve, saturation_point

__all__ = [
    "MEASURES",
    "FlowPath",
    "PrunedUnits",
    "UnitEffects",
    "ablation_curve",
    "backbone",
    "baseline_values",
    "compare_graphs",
    "compare_measures",
    "curve_area",
    "flow_graph",
    "layer_importance",
    "measure_values",
    "plot_ablation_curve",
    "plot_flow_graph",
    "plot_layer_bars",
    "plot_measures",
    "plot_pruning_curves",
    "plot_saturation_curve",
    "plot_token_map",
    "plot_top_units",
    "plot_unit_map",
    "prune_units",
    "pruning_experiment",
    "rank_units",
    "read_graph",
    "saturation_curve",
    "saturation_point",
    "strongest_examples",
    "strongest_paths",
    "top_unit_by_group",
    "unit_effects",
    "unit_map",
    "unit_scores",
    "write_graph",
    "write_report",
]
