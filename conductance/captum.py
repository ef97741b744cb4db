"""Captum's ``LayerConductance`` and ``NeuronConductance`` on our rules: ``from conductance.captum import …``.

Constructors, arguments, their order and defaults, and what is returned are those of Captum 0.9; Captum itself is not
needed. What differs is the number at the same cost, and what is accepted: see the notes of each class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from conductance._captum_arguments import STEP, Given, beside, budget, check_options, given, quietly, with_steps
from conductance._captum_layers import Asked, answering, asked
from conductance._captum_neurons import Indices, selected, tensors_of
from conductance._captum_results import gap, settle, single
from conductance.arguments import Arguments
from conductance.hooks import PointInfo
from conductance.neuron import neuron_conductance
from conductance.neuron_results import NeuronConductance as NeuronResult
from conductance.path import StraightPath
from conductance.total import total_conductance

__all__ = ["LayerConductance", "NeuronConductance"]


class _Attribution:
    """What both have: a model, a layer, and the gap to completeness."""

    def __init__(self, forward_func: Callable[..., Any], layer: Any, device_ids: Sequence[int] | None = None) -> None:
        self.forward_func = forward_func
        self.layer = layer
        self.device_ids = device_ids

    @classmethod
    def get_name(cls) -> str:
        """Name of the class in words."""
        return "".join(f" {letter}" if letter.isupper() else letter for letter in cls.__name__).strip()

    def compute_convergence_delta(
        self,
        attributions: Tensor | tuple[Tensor, ...],
        start_point: Any,
        end_point: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
    ) -> Tensor:
        """Sum of attributions less the change of the output from one point to another.

        Parameters
        ----------
        attributions
            A tensor ``(batch, …)`` or a tuple of such.
        start_point, end_point
            As `baselines` and `inputs` of ``attribute``.
        target, additional_forward_args
            As for ``attribute``.

        Returns
        -------
        Tensor
            ``(batch,)``.

        Raises
        ------
        TypeError, ValueError
            For an argument that cannot be used; the message names it.
        """
        those = given(end_point, start_point, target, additional_forward_args)
        path = StraightPath(Arguments(those.inputs, those.extra), those.baselines)
        every = torch.arange(path.batch, device=path.device)
        with torch.no_grad():
            start, end = (
                those.function(path.rows(every, torch.full(every.shape, place)).through(self.forward_func), every)
                for place in (0.0, 1.0)
            )
        return gap(attributions, end - start)


class LayerConductance(_Attribution):
    """Total conductance of every unit of a layer, as a tensor of the layer's shape.

    Parameters
    ----------
    forward_func
        The model, or any callable that runs the layer.
    layer
        The module. Also its name (``"features.3"``, ``"act#1"``, ``"lstm[0]"``, ``"fc:in"``), a glob, a type or a
        ``HookPoint``, as for :func:`~conductance.total.total_conductance`; or a list of these, explained in one pass.
    device_ids
        More than one device is refused.

    Notes
    -----
    Unlike Captum: results are detached. A layer that is called several times gives a tuple with a tensor for each call
    instead of the last; nested outputs give the tuple of their floating-point tensors, flat, without None; tensors that
    the target does not depend on are zeros. Tensors whose examples are not on axis 0 (hidden states of recurrent
    layers) are given with the examples first. The layer's input is found where it is given by keyword.

    References
    ----------
    Dhamdhere, Sundararajan and Yan, How Important Is a Neuron? (1805.12233), section 2.

    Examples
    --------
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    >>> _ = model[0].weight.data.copy_(torch.eye(2))
    >>> _ = model[1].weight.data.fill_(1.0)
    >>> x = torch.tensor([[10.0, 20.0]], dtype=torch.float64)
    >>> LayerConductance(model, model[0]).attribute(x, target=0)
    tensor([[10., 20.]], dtype=torch.float64)
    """

    def has_convergence_delta(self) -> bool:
        """True: ``attribute`` takes ``return_convergence_delta``."""
        return True

    @property
    def multiplies_by_inputs(self) -> bool:
        """True: conductances add up to a change of the output."""
        return True

    @staticmethod
    def interpolate(
        layer_attribution: Tensor, interpolate_dims: int | tuple[int, ...], interpolate_mode: str = "nearest"
    ) -> Tensor:
        """Stretch the positions of ``(batch, channels, …)`` to other sizes, such as those of an image."""
        return F.interpolate(layer_attribution, interpolate_dims, mode=interpolate_mode)

    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: str = "gausslegendre",
        internal_batch_size: int | None = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Conductance of the layer's units.

        Parameters
        ----------
        inputs
            A tensor ``(batch, …)`` or a tuple of such; integers move as floating-point numbers.
        baselines
            Where the path starts: a number, a tensor of the input's shape or with a batch of one, a tuple with one of
            these for each input. None is zero.
        target
            An index into the output, a tuple of indices, a tensor or list of one for each example; a tensor of one
            number is for all examples. None if the output is one number an example. Also a callable of the output.
        additional_forward_args
            Further arguments of the model, one or a tuple; tensors whose first axis is the batch go along with the
            examples.
        n_steps
            Points of the path for each example at most, at least 2. From 5 on they are put where the integrand needs
            them, and fewer are run where fewer do (a relative error of 1e-9, or the precision of the numbers).
        method
            One of Captum's names. It is checked, and does not choose the rule: there is only ours, whose error is
            smaller than that of all five.
        internal_batch_size
            Most rows of one model call: steps and examples are both spread over calls, so that any number will do.
            None chooses from the bytes that the layer takes.
        return_convergence_delta
            Whether to return the gap to completeness as well.
        attribute_to_layer_input
            Explain the layer's inputs instead of its outputs.
        grad_kwargs
            ``allow_unused``, ``materialize_grads`` and ``retain_graph`` are accepted and not needed.

        Returns
        -------
        Tensor, tuple or list
            Conductances ``(batch, *layer shape)``, a tuple of such if the layer has several tensors. If ``layer`` is a
            list, a list with one of these for each layer, in that order. With `return_convergence_delta` a pair of
            this and the delta ``(batch,)``, sum of conductances less change of the output (a list of such).

        Raises
        ------
        TypeError, ValueError, ConductanceError
            As :func:`~conductance.total.total_conductance`; the message says what would do.

        Warns
        -----
        ConvergenceWarning
            If the estimated error of an example is above a tenth of its conductance.
        """
        check_options(method, grad_kwargs)
        those = given(inputs, baselines, target, additional_forward_args)
        layers = asked(self.forward_func, self.layer, self.device_ids, layer_input=attribute_to_layer_input)
        with quietly(those.converted):
            total = total_conductance(
                layers.model,
                those.inputs,
                layers.points,
                internal_batch_size=internal_batch_size,
                **those.arguments,
                **budget(n_steps),
            )
        settle(total, torch.stack([total.error[name] for name in total]).amax(0), frames=2)
        found = [single([total[name] for name in answering(request, total)]) for request in layers.requests]
        deltas = [gap(one, total.output_change) for one in found]
        if not layers.several:
            return (found[0], deltas[0]) if return_convergence_delta else found[0]
        return (found, deltas) if return_convergence_delta else found


class NeuronConductance(_Attribution):
    """Conductance of every input feature through one unit of a layer, or a group of units.

    Parameters
    ----------
    forward_func, layer, device_ids
        As for `LayerConductance`.
    multiply_by_inputs
        Whether the integral of ``dF/dy · dy/dx`` is multiplied by ``x - x'``. If not, it is the integral itself, also
        where an input is its own baseline.

    References
    ----------
    Dhamdhere, Sundararajan and Yan, How Important Is a Neuron? (1805.12233), equation 1.

    Examples
    --------
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, 1.0], [0.0, 3.0]]))
    >>> _ = model[1].weight.data.copy_(torch.tensor([[2.0, -1.0]]))
    >>> x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    >>> through = NeuronConductance(model, model[0])
    >>> through.attribute(x, 0, target=0).round(decimals=6)
    tensor([[2., 4.]], dtype=torch.float64)
    >>> through.attribute(x, (slice(0, 2),), target=0).round(decimals=6)  # both units together
    tensor([[ 2., -2.]], dtype=torch.float64)
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Any,
        device_ids: Sequence[int] | None = None,
        multiply_by_inputs: bool = True,
    ) -> None:
        super().__init__(forward_func, layer, device_ids)
        self._multiply_by_inputs = multiply_by_inputs

    def has_convergence_delta(self) -> bool:
        """False: the conductances of one unit do not add up to the change of the output."""
        return False

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether attributions are multiplied by ``x - x'``."""
        return self._multiply_by_inputs

    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        neuron_selector: Any,
        baselines: Any = None,
        target: Any = None,
        additional_forward_args: Any = None,
        n_steps: int = 50,
        method: str = "riemann_trapezoid",
        internal_batch_size: int | None = None,
        attribute_to_neuron_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Conductance of the inputs through the selected units.

        Parameters
        ----------
        inputs, baselines, target, additional_forward_args, method, internal_batch_size, grad_kwargs
            As for `LayerConductance.attribute`.
        neuron_selector
            A column, a tuple that indexes the layer's shape without the batch, with slices if wanted (axes left out
            count whole), or a slice: what it takes counts as one, with the sum of its units' conductances. Or a
            callable of the layer's tensor (of the tuple of its tensors, if it has several, in the order in which
            `LayerConductance` gives them) that selects the same units in each row, or sums some: ``(batch,)``.
        n_steps
            Points of the path for each example at most; each is run twice, first to find where points are needed.
        attribute_to_neuron_input
            Explain a unit of the layer's input instead of its output.

        Returns
        -------
        Tensor, tuple or list
            Conductances of the inputs' shapes: a tensor, or a tuple if `inputs` is one; if ``layer`` is a list, a list
            with one of these for each layer.

        Raises
        ------
        TypeError, ValueError, ConductanceError
            As :func:`~conductance.neuron.neuron_conductance`; also if a callable does anything but select and sum.

        Warns
        -----
        ConvergenceWarning
            If the estimated error of an example is above a tenth of the conductance through the units.
        """
        check_options(method, grad_kwargs)
        those = given(inputs, baselines, target, additional_forward_args)
        layers = asked(self.forward_func, self.layer, self.device_ids, layer_input=attribute_to_neuron_input)
        count = len(those.inputs)
        if not self.multiplies_by_inputs:
            layers, those = layers.wrapped(lambda model: beside(model, count)), with_steps(those)
        options = {"internal_batch_size": internal_batch_size, **budget(n_steps, runs=2)}
        found = []
        with quietly(those.converted):
            for tensors in tensors_of(layers, those):
                parts = _through(layers, selected(neuron_selector, tensors), those, options)
                local = parts[:count] if self.multiplies_by_inputs else [part / STEP for part in parts[count:]]
                found.append(local[0] if those.single else tuple(local))
        return found if layers.several else found[0]


def _through(
    layers: Asked, units: Sequence[tuple[PointInfo, Indices]], those: Given, options: dict[str, Any]
) -> list[Tensor]:
    """Conductance of each input through some units together."""
    sums: list[Tensor] = []
    for info, indices in units:
        result = neuron_conductance(
            layers.model, those.inputs, info.point, neurons=indices, **those.arguments, **options
        )
        assert isinstance(result, NeuronResult)  # of one point
        settle(result, result.error, frames=3)
        values = result.values if isinstance(result.values, tuple) else (result.values,)
        parts = [one.sum(1) for one in values]
        sums = [one + other for one, other in zip(sums, parts, strict=True)] if sums else parts
    return sums
