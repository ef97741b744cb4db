"""Taps on a model: name the tensors inside it, list them, and receive their activations and gradients."""

from conductance.hooks.ablating import ablate, hold_units
from conductance.hooks.capturing import Consumer, capture, in_backward
from conductance.hooks.handed_on import keeps_units
from conductance.hooks.heads import AttentionPoints, attention_points
from conductance.hooks.holding import hold
from conductance.hooks.listing import PointTable, list_points
from conductance.hooks.naming import probe_layers
from conductance.hooks.points import HookPoint
from conductance.hooks.probing import PointInfo, Probe, probe
from conductance.hooks.reached import names_run, takes_hooks
from conductance.hooks.replacing import path_point, substitute
from conductance.hooks.selecting import LayerSpec, Selection, select
from conductance.hooks.structure import Edge, GraphView, edge_of
from conductance.hooks.surroundings import undisturbed, usable_by_autograd
from conductance.hooks.tapping import tap
from conductance.hooks.units import producer_unit_axis

__all__ = [
    "AttentionPoints",
    "Consumer",
    "Edge",
    "GraphView",
    "HookPoint",
    "LayerSpec",
    "PointInfo",
    "PointTable",
    "Probe",
    "Selection",
    "ablate",
    "attention_points",
    "capture",
    "edge_of",
    "hold",
    "hold_units",
    "in_backward",
    "keeps_units",
    "list_points",
    "names_run",
    "path_point",
    "probe",
    "probe_layers",
    "producer_unit_axis",
    "select",
    "substitute",
    "takes_hooks",
    "tap",
    "undisturbed",
    "usable_by_autograd",
]
