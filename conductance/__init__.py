"""Neuron-level conductance analysis for PyTorch.

Which internal units carry a prediction, from which inputs, and how sure is that number?
"""

from conductance import hooks, targets
from conductance.attention import AttentionConductance, attention_conductance
from conductance.dataset import dataset_conductance
from conductance.dataset_results import DatasetConductance
from conductance.dataset_statistics import LayerStatistics
from conductance.dictionary import dictionary_conductance
from conductance.errors import ConductanceError, ConvergenceWarning, ZeroConductanceWarning
from conductance.flow import conductance_flow
from conductance.flow_results import ConductanceFlow
from conductance.loading import load
from conductance.neuron import neuron_conductance
from conductance.neuron_results import NeuronConductance
from conductance.results import LayerInfo, TotalConductance, concatenate
from conductance.total import total_conductance
from conductance.weight_results import WeightConductance
from conductance.weights import weight_conductance

__all__ = [
    "AttentionConductance",
    "ConductanceError",
    "ConductanceFlow",
    "ConvergenceWarning",
    "DatasetConductance",
    "LayerInfo",
    "LayerStatistics",
    "NeuronConductance",
    "TotalConductance",
    "WeightConductance",
    "ZeroConductanceWarning",
    "attention_conductance",
    "concatenate",
    "conductance_flow",
    "dataset_conductance",
    "dictionary_conductance",
    "hooks",
    "load",
    "neuron_conductance",
    "targets",
    "total_conductance",
    "weight_conductance",
]
