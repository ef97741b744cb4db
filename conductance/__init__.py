"""Neuron-level conductance analysis for PyTorch.

Which internal units carry a prediction, from which inputs, and how sure is that number?
"""

from conductance import hooks
from conductance.errors import ConductanceError, ConvergenceWarning
from conductance.results import LayerInfo, TotalConductance, concatenate, load
from conductance.total import total_conductance

__all__ = [
    "ConductanceError",
    "ConvergenceWarning",
    "LayerInfo",
    "TotalConductance",
    "concatenate",
    "hooks",
    "load",
    "total_conductance",
]
