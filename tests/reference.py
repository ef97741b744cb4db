"""Total and neuron conductance in slow ways, and flow by its definition, in plain torch: the package's oracles.

``C = ∫ v · dy`` along the straight path from a baseline to an input, ``y`` a layer's activation and
``v = ∂F/∂y``. One example at a time, given as a batch of one; layers are names of modules that run once and
give one tensor. ``input`` stands for the input itself (of several inputs: all of them, flattened and joined).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.functional import jacobian, jvp

Inputs = Tensor | tuple[Tensor, ...]
LEAF = "input"
TARGET = "target"


def _tuple(inputs: Inputs) -> tuple[Tensor, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


def _point(x: Inputs, baseline: Inputs, alpha: float) -> tuple[Tensor, ...]:
    return tuple(start + alpha * (end - start) for end, start in zip(_tuple(x), _tuple(baseline), strict=True))


def lagrange_matrix(alphas: Sequence[float]) -> list[list[float]]:
    """``A_kl = ∫ ℓ_k ℓ_l' da`` from the first to the last node; ℓ_l' as the sum of products that it is."""
    nodes = np.asarray(alphas, dtype=np.float64)
    places, weights = np.polynomial.legendre.leggauss(len(nodes))
    span = (nodes[-1] - nodes[0]) / 2
    places, weights = nodes[0] + span * (places + 1), span * weights

    def product(k: int, *left_out: int) -> NDArray[np.float64]:
        others = [node for j, node in enumerate(nodes) if j != k and j not in left_out]
        factors = [np.ones_like(places), *((places - node) / (nodes[k] - node) for node in others)]
        return np.asarray(np.prod(factors, axis=0))

    def slope(k: int) -> NDArray[np.float64]:
        terms = [product(k, m) / (nodes[k] - nodes[m]) for m in range(len(nodes)) if m != k]
        return np.asarray(np.sum(terms, axis=0))

    slopes = [slope(k) for k in range(len(nodes))]
    return [[float(weights @ (product(k) * other)) for other in slopes] for k in range(len(nodes))]


def literal_pass(
    model: nn.Module, x: Inputs, baseline: Inputs, target: int, layer: str, alpha: float
) -> tuple[Tensor, Tensor]:
    """Gradient and activation ``(*layer shape)`` at one node of one example: one hook, one gradient."""
    point = tuple(part.detach().clone().requires_grad_() for part in _point(x, baseline, alpha))
    caught: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _module, _args, output: caught.append(output))
    try:
        score = model(*point)[0, target]
    finally:
        handle.remove()
    (activation,) = caught
    (gradient,) = torch.autograd.grad(score, activation)
    return gradient[0].detach(), activation[0].detach()


def literal_total(
    model: nn.Module,
    x: Inputs,
    baseline: Inputs,
    target: int,
    layer: str,
    alphas: Sequence[float],
    matrix: Sequence[Sequence[float]],
) -> Tensor:
    """Conductance ``Σ_kl A_kl v_k y_l`` of a layer by explicit loops over nodes, ``(*layer shape)``.

    Parameters
    ----------
    model, x, baseline, target
        Network, one example and its baseline as batches of one, and the index of the output.
    layer
        Name of a module.
    alphas
        Nodes of the path.
    matrix
        ``A_kl = ∫ ℓ_k ℓ_l' da`` of these nodes; block by block if the nodes make up several panels.
    """
    passes = [literal_pass(model, x, baseline, target, layer, float(alpha)) for alpha in alphas]
    total = torch.zeros_like(passes[0][0])
    for k, (gradient, _) in enumerate(passes):
        for j, (_, activation) in enumerate(passes):
            total = total + float(matrix[k][j]) * gradient * activation
    return total


def _flat_pass(model: nn.Module, point: tuple[Tensor, ...], held: dict[str, Tensor], layer: str, target: int) -> Tensor:
    """Activation of a layer, or F, flattened, with the outputs of other layers replaced by given ones."""
    caught: list[Tensor] = []
    handles = [] if layer == TARGET else [_catch_into(caught, model.get_submodule(layer))]
    for name, tensor in held.items():
        hook = model.get_submodule(name).register_forward_hook(lambda _module, _args, _output, tensor=tensor: tensor)
        handles.append(hook)
    try:
        score = model(*point)[0, target]
    finally:
        for handle in handles:
            handle.remove()
    return score.reshape(1) if layer == TARGET else caught[0].reshape(-1)


def _catch_into(caught: list[Tensor], module: nn.Module) -> torch.utils.hooks.RemovableHandle:
    return module.register_forward_hook(lambda _module, _args, output: caught.append(output))


def literal_flow(
    model: nn.Module,
    x: Inputs,
    baseline: Inputs,
    target: int,
    layers: Sequence[str],
    alphas: Sequence[float],
    matrix: Sequence[Sequence[float]],
) -> dict[tuple[str, str], Tensor]:
    """Flow ``E_jk = Σ_ml A_ml v_k (∂z_k/∂y_j) y_j`` by Jacobians: every other layer is held while ``y`` is moved.

    Returns
    -------
    dict
        For every pair of layers, connected or not, with `LEAF` as a source and `TARGET` as an end,
        ``(source elements, elements)``.
    """
    pairs = [(source, layer) for layer in (*layers, TARGET) for source in (LEAF, *layers) if source != layer]
    products: dict[tuple[str, str], list[Tensor]] = {pair: [] for pair in pairs}
    places: dict[str, list[Tensor]] = {source: [] for source in (LEAF, *layers)}
    for alpha in alphas:
        point = tuple(part.detach() for part in _point(x, baseline, float(alpha)))
        v = {TARGET: torch.ones(1, dtype=torch.float64)}
        held: dict[str, Tensor] = {}
        for layer in layers:
            gradient, activation = literal_pass(model, x, baseline, target, layer, float(alpha))
            v[layer], held[layer] = gradient.reshape(-1), activation[None]
        for source, several in places.items():
            several.append(torch.cat([part.reshape(-1) for part in (point if source == LEAF else (held[source],))]))
        for source, layer in pairs:
            others = {name: tensor for name, tensor in held.items() if name not in (source, layer)}

            def end(*moved: Tensor, source: str = source, layer: str = layer, here: Any = (point, others)) -> Tensor:
                if source == LEAF:
                    return _flat_pass(model, moved, here[1], layer, target)
                return _flat_pass(model, here[0], {**here[1], source: moved[0]}, layer, target)

            found = jacobian(end, point if source == LEAF else (held[source],))
            slopes = torch.cat([part.flatten(1) for part in found], 1)
            products[source, layer].append((v[layer][:, None] * slopes).T)
    weights = torch.tensor(matrix, dtype=torch.float64)
    return {
        (source, layer): torch.einsum("ml,mjk,lj->jk", weights, torch.stack(several), torch.stack(places[source]))
        for (source, layer), several in products.items()
    }


def jacobian_total(model: nn.Module, x: Inputs, baseline: Inputs, target: int, layer: str, points: int = 40) -> Tensor:
    """Conductance ``∫ v (dy/da) da``, y differentiated along the path, on Gauss-Legendre points."""
    places, weights = np.polynomial.legendre.leggauss(points)

    def activation(alpha: Tensor) -> Tensor:
        caught: list[Tensor] = []
        handle = model.get_submodule(layer).register_forward_hook(lambda _module, _args, output: caught.append(output))
        try:
            model(*(start + alpha * (end - start) for end, start in zip(_tuple(x), _tuple(baseline), strict=True)))
        finally:
            handle.remove()
        return caught[0][0]

    total: Tensor | None = None
    for place, weight in zip((places + 1) / 2, weights / 2, strict=True):
        gradient, _ = literal_pass(model, x, baseline, target, layer, float(place))
        alpha = torch.tensor(float(place), dtype=gradient.dtype)
        _, slope = jvp(activation, alpha, torch.ones_like(alpha))
        term = float(weight) * gradient * slope
        total = term if total is None else total + term
    if total is None:
        msg = "at least one point is needed"
        raise ValueError(msg)
    return total


def literal_jacobian(model: nn.Module, x: Inputs, baseline: Inputs, target: int, layer: str, alpha: float) -> Tensor:
    """``(x_i - x'_i) v_j ∂y_j/∂x_i`` at one node of one example, ``(layer elements, input elements)``.

    Of a layer that gives a tuple the first tensor is meant; several inputs are flattened and joined.
    """
    point = _point(x, baseline, alpha)

    def pair(*at: Tensor) -> tuple[Tensor, Tensor]:
        caught: list[Tensor] = []
        handle = model.get_submodule(layer).register_forward_hook(
            lambda _module, _args, output: caught.append(output[0] if isinstance(output, tuple) else output)
        )
        try:
            return model(*at)[0, target], caught[0]
        finally:
            handle.remove()

    leaves = tuple(part.detach().clone().requires_grad_() for part in point)
    score, activation = pair(*leaves)
    (v,) = torch.autograd.grad(score, activation)
    jacobians = jacobian(lambda *at: pair(*at)[1], point)
    steps = [end - start for end, start in zip(_tuple(x), _tuple(baseline), strict=True)]
    parts = [
        whole.reshape(v.numel(), step.numel()) * step.reshape(1, -1)
        for whole, step in zip(jacobians, steps, strict=True)
    ]
    return v.reshape(-1, 1) * torch.cat(parts, 1)


def literal_neuron(
    model: nn.Module,
    x: Inputs,
    baseline: Inputs,
    target: int,
    layer: str,
    alphas: Sequence[float],
    weights: Sequence[float],
) -> Tensor:
    """Neuron conductance ``Σ_k w_k (x_i - x'_i) v_j ∂y_j/∂x_i``, a Jacobian a node, ``(layer elements, inputs)``."""
    terms = [
        weight * literal_jacobian(model, x, baseline, target, layer, float(alpha))
        for alpha, weight in zip(alphas, weights, strict=True)
    ]
    return torch.stack(terms).sum(0)


def interpolatory_weights(alphas: Sequence[float]) -> list[float]:
    """Weights that integrate every polynomial through the nodes: those for which all moments are right."""
    nodes = np.asarray(alphas, dtype=np.float64)
    span = nodes[-1] - nodes[0]
    table = np.polynomial.legendre.legvander(2 * (nodes - nodes[0]) / span - 1, len(nodes) - 1)
    moments = np.zeros(len(nodes))
    moments[0] = span
    return [float(weight) for weight in np.linalg.solve(table.T, moments)]


@dataclass
class Rows:
    """Several nodes of a path: F, and per layer gradients and activations, flattened behind the node."""

    output: Tensor
    gradients: dict[str, Tensor]
    activations: dict[str, Tensor]

    def pick(self, index: Tensor | slice) -> "Rows":
        """Some of the nodes."""
        return Rows(
            self.output[index],
            {name: tensor[index] for name, tensor in self.gradients.items()},
            {name: tensor[index] for name, tensor in self.activations.items()},
        )


def _stack(first: Rows, second: Rows) -> Rows:
    return Rows(
        torch.cat([first.output, second.output]),
        {name: torch.cat([first.gradients[name], second.gradients[name]]) for name in first.gradients},
        {name: torch.cat([first.activations[name], second.activations[name]]) for name in first.activations},
    )


class Path:
    """One example's path through a network: evaluates many nodes at once, knows the layers' shapes."""

    def __init__(
        self,
        model: nn.Module,
        x: Inputs,
        baseline: Inputs,
        target: int,
        layers: Iterable[str],
        most: int = 4096,
    ) -> None:
        self.model = model
        self.ends = [(end.detach(), start.detach()) for end, start in zip(_tuple(x), _tuple(baseline), strict=True)]
        self.target = target
        self.layers = [name for name in layers if name != LEAF]
        self.most = most
        self.shapes: dict[str, tuple[int, ...]] = {}

    def rows(self, alphas: Tensor) -> Rows:
        """Evaluate the nodes ``alphas`` ``(n,)``, at most ``most`` in one call."""
        parts = [self._call(part) for part in torch.split(alphas, self.most)]
        rows = parts[0]
        for part in parts[1:]:
            rows = _stack(rows, part)
        return rows

    def _call(self, alphas: Tensor) -> Rows:
        points = []
        for end, start in self.ends:
            alpha = alphas.to(end).view(-1, *[1] * (end.ndim - 1))
            points.append((start + alpha * (end - start)).requires_grad_())
        caught: dict[str, Tensor] = {}
        handles = [self._catch(name, caught) for name in self.layers]
        try:
            output = self.model(*points)[:, self.target]
        finally:
            for handle in handles:
                handle.remove()
        tensors = [*points, *(caught[name] for name in self.layers)]
        found = torch.autograd.grad(output.sum(), tensors, allow_unused=True)
        gradients = [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, found, strict=True)]
        inputs = len(points)
        self.shapes = {LEAF: tuple(points[0].shape[1:])} if inputs == 1 else {LEAF: (-1,)}
        flat_gradients = {LEAF: torch.cat([part.flatten(1) for part in gradients[:inputs]], 1)}
        flat_activations = {LEAF: torch.cat([part.detach().flatten(1) for part in points], 1)}
        for name, gradient in zip(self.layers, gradients[inputs:], strict=True):
            self.shapes[name] = tuple(gradient.shape[1:])
            flat_gradients[name] = gradient.flatten(1)
            flat_activations[name] = caught[name].detach().flatten(1)
        return Rows(output.detach(), flat_gradients, flat_activations)

    def _catch(self, name: str, caught: dict[str, Tensor]) -> torch.utils.hooks.RemovableHandle:
        def hook(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> None:
            if name in caught:
                msg = f"{name} runs more than once"
                raise ValueError(msg)
            caught[name] = output

        return self.model.get_submodule(name).register_forward_hook(hook)

    def shaped(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring flat sums into the shapes of the layers."""
        return {name: total.reshape(self.shapes[name]) for name, total in sums.items()}


def trapezoid_total(
    model: nn.Module,
    x: Inputs,
    baseline: Inputs,
    target: int,
    layers: Iterable[str],
    nodes: int = 100_000,
    chunk: int = 4096,
) -> dict[str, Tensor]:
    """Conductance by the trapezoid in activation space, ``Σ ½ (v_k + v_k+1)(y_k+1 - y_k)``, on equal steps.

    Returns
    -------
    dict
        Per layer, and for `LEAF`, ``(*layer shape)`` in float64; only one chunk of nodes is held at a time.
    """
    path = Path(model, x, baseline, target, layers, most=chunk + 1)
    alphas = torch.linspace(0, 1, nodes, dtype=torch.float64)
    sums: dict[str, Tensor] = {}
    for start in range(0, nodes - 1, chunk):
        rows = path.rows(alphas[start : start + chunk + 1])
        for name, gradient in rows.gradients.items():
            v, y = gradient.double(), rows.activations[name].double()
            part = (0.5 * (v[1:] + v[:-1]) * (y[1:] - y[:-1])).sum(0)
            sums[name] = sums[name] + part if name in sums else part
    return path.shaped(sums)


def unexplained_share(model: nn.Module, x: Inputs, baseline: Inputs, target: int, nodes: int = 100_000) -> float:
    """``F(x) - F(x') - ∫ s da``: what jumps, and gradients not the derivative, leave over; to 1/nodes."""
    path = Path(model, x, baseline, target, [])
    ends = path.rows(torch.tensor([0.0, 1.0], dtype=torch.float64))
    explained = trapezoid_total(model, x, baseline, target, [], nodes)[LEAF].sum()
    return float(ends.output[1].double() - ends.output[0].double() - explained)


def _is_linear(left: Rows, middle: Rows, right: Rows, scales: dict[str, Tensor], tolerance: float) -> Tensor:
    """Per panel, whether gradients agree at its ends and middle, and F goes as they say, in both halves."""
    linear = torch.ones(len(left.output), dtype=torch.bool)
    for name, scale in scales.items():
        for other in (left, right):
            difference = (other.gradients[name] - middle.gradients[name]).abs().amax(1)
            linear &= difference <= tolerance * scale
    for first, second in ((left, middle), (middle, right)):
        step = (middle.gradients[LEAF] * (second.activations[LEAF] - first.activations[LEAF])).sum(1)
        size = first.output.abs() + second.output.abs() + step.abs() + 1e-3
        linear &= (second.output - first.output - step).abs() <= 1e-12 * size
    return linear


def exact_piecewise_linear(
    model: nn.Module,
    x: Inputs,
    baseline: Inputs,
    target: int,
    layers: Iterable[str],
    panels: int = 512,
    width: float = 1e-13,
    tolerance: float = 1e-10,
) -> dict[str, Tensor]:
    """Conductance of a network of ReLUs, max-pools and the like, exact but for rounding.

    Halves every panel whose gradients are not the same at both ends and in the middle, down to ``width``:
    where they are, ``∫ v dy = v Δy``. What is left at the kinks has a share of about ``width`` of the whole.

    Returns
    -------
    dict
        Per layer, and for `LEAF`, ``(*layer shape)``.
    """
    path = Path(model, x, baseline, target, layers)
    alphas = torch.linspace(0, 1, panels + 1, dtype=torch.float64)
    rows = path.rows(alphas)
    scales = {name: gradient.abs().max() for name, gradient in rows.gradients.items()}
    sums = {name: torch.zeros_like(gradient[0]) for name, gradient in rows.gradients.items()}
    lower, upper = alphas[:-1], alphas[1:]
    left, right = rows.pick(slice(None, -1)), rows.pick(slice(1, None))
    while len(lower):
        centre = (lower + upper) / 2
        middle = path.rows(centre)
        linear = _is_linear(left, middle, right, scales, tolerance)
        done = linear | (upper - lower < width)
        for name in sums:
            v = torch.where(linear[:, None], middle.gradients[name], (left.gradients[name] + right.gradients[name]) / 2)
            step = right.activations[name] - left.activations[name]
            sums[name] = sums[name] + (v * step)[done].sum(0)
        rest = (~done).nonzero().flatten()
        lower, upper = torch.cat([lower[rest], centre[rest]]), torch.cat([centre[rest], upper[rest]])
        left, middle, right = left.pick(rest), middle.pick(rest), right.pick(rest)
        left, right = _stack(left, middle), _stack(middle, right)
    return path.shaped(sums)


def relative_error(found: Tensor, reference: Tensor) -> float:
    """``Σ|found - reference| / Σ|reference|``, the yardstick of a tolerance."""
    return float((found - reference).abs().sum() / reference.abs().sum())
