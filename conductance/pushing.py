"""Forward mode: the step of one feature is pushed forward to all units of all layers at once.

Operators without a forward derivative are worked around one after the other: attention by its formula instead of a
fused kernel, recurrent layers without oneDNN and cuDNN; then the derivative is taken through two reverse passes; and
where even that fails, reverse mode does the work. Whatever the way, what it gives for all features and neurons together
is compared with one pull-back: forward derivatives pass through ``no_grad``, a custom function's may be anything, and
two reverse passes lose what its backward pass hides.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from conductance.engine import Engine, Held
from conductance.features import Features
from conductance.increments import Parts
from conductance.pulling import Kept, Pull, as_it_is
from conductance.replay import Rows, held_calls
from conductance.units import Neuron

#: One pass that gives the tangent of each layer from the tangents of the leaves.
PushForward = Callable[[Sequence[Tensor]], "list[Tensor | None]"]


class Push:
    """Integrals of ``v_j ∂y_j/∂x_i (x_i - x'_i)`` over rows: one forward pass for each feature.

    Takes and gives the same as :class:`~conductance.pulling.Pull`, which it falls back to.

    Attributes
    ----------
    detour
        What had to be worked around, in words.
    given_up
        Whether reverse mode had to do the work.
    """

    def __init__(
        self, engine: Engine, features: Features, selected: Sequence[list[Neuron]], rows: int, pull: Pull
    ) -> None:
        self.engine = engine
        self.features = features
        self.selected = selected
        self.rows = rows
        self.pull = pull
        self.detour: list[str] = []
        self.given_up = False
        _get_ready()
        self._ways = ["forward derivatives", "attention by its formula", "no oneDNN or cuDNN", "two reverse passes"]

    def __call__(self, batch: Rows) -> list[Tensor]:
        """Run the rows, by the first way that works."""
        while not self.given_up:
            try:
                with self._way():
                    return self._run(batch)
            except (NotImplementedError, RuntimeError) as error:
                if not _is_missing_derivative(error):
                    raise
                self._turn(error)
        return self.pull(batch)

    def _turn(self, error: Exception) -> None:
        """Go on to the next way; what differs from the gradient does so by any kernel."""
        left = self._ways[0]
        self._ways = self._ways[max(1, len(self._ways) - 1) if isinstance(error, _DiffersError) else 1 :]
        self.given_up = not self._ways
        following = "reverse mode" if self.given_up else self._ways[0]
        self.detour.append(f"{left} failed ({str(error).splitlines()[0][:160]}); taken: {following}")

    @contextmanager
    def _way(self) -> Iterator[None]:
        """Settings of torch for the way that is tried."""
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # it is taken without gradients, and has no tangents
        try:
            if len(self._ways) == 4:
                yield
                return
            with sdpa_kernel(SDPBackend.MATH):
                if len(self._ways) == 3:
                    yield
                    return
                with _without_fused_recurrence():
                    yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)

    def _run(self, batch: Rows) -> list[Tensor]:
        open_: dict[tuple[int, int], Parts] = {}
        closed: dict[tuple[int, int], Tensor] = {}
        kept = Kept(self.selected, self.engine)
        for call, held in held_calls(self.engine, batch, self.rows):
            along = batch.along(self.engine.path.device, self.engine.path.dtype)
            for key, integrand in self._integrands(batch, call, held, kept):
                parts = along.integrate(integrand, as_it_is, call.start)
                if call == slice(0, len(batch.paths)):
                    closed[key] = parts.closed()
                else:
                    open_[key] = open_[key] + parts if key in open_ else parts
        closed |= {key: parts.closed() for key, parts in open_.items()}
        values = []
        for layer in range(len(self.selected)):
            by_feature = torch.stack([closed[layer, feature] for feature in range(self.features.count)], 3)
            values.append(by_feature.flatten(2))
        return values + kept.totals(batch)

    def _integrands(self, batch: Rows, call: slice, held: Held, kept: Kept) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """``v_j`` times the tangent of one feature, summed over neurons, ``(rows, neurons)``, by layer and feature."""
        paths, alphas = batch.paths[call], batch.alphas[call]
        examples = torch.as_tensor(paths, device=self.engine.path.device) // self.engine.path.per_example
        gradients = self.pull.gradients(held)
        for layer, v in enumerate(gradients):
            kept.take(layer, self.pull.rows_first(layer, held.tensors[layer]), v)
        directions = held.directions
        check = _Check(self._pulled_at_once(held, gradients))
        push: PushForward = partial(self.engine.push, paths, alphas)
        if len(self._ways) == 1:
            push = _through_two_passes(held)
        del held  # in forward mode its graph is not needed
        for feature in range(self.features.count):
            tangents = push(self.features.part(feature, directions, examples))
            for layer, neurons in enumerate(self.selected):
                v, tangent = gradients[layer], self.pull.rows_first(layer, tangents[layer])
                if v is None or tangent is None:
                    yield (layer, feature), directions[0].new_zeros(len(examples), len(neurons))
                    continue
                product = v * tangent
                integrand = torch.stack([neuron.sum(product) for neuron in neurons], 1)
                check.add(layer, integrand)
                yield (layer, feature), integrand
        check.close()

    def _pulled_at_once(self, held: Held, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        """What the integrands of each layer have to sum up to over features and neurons, ``(rows,)``."""
        sums = []
        for layer, v in enumerate(gradients):
            sums.append(held.directions[0].new_zeros(len(held.output)))
            tensor = self.pull.rows_first(layer, held.tensors[layer])
            if v is None or tensor is None:
                continue
            cut = torch.zeros_like(v)
            for neuron in self.selected[layer]:
                cut[neuron.index] += v[neuron.index]
            pulled = torch.autograd.grad(tensor, held.leaves, cut, retain_graph=True, allow_unused=True)
            for one, direction in zip(pulled, held.directions, strict=True):
                if one is not None:
                    sums[layer] = sums[layer] + (one * direction).reshape(len(one), -1).sum(1).to(sums[layer])
        return sums


def _get_ready() -> None:
    """Have torch load its forward derivatives: on first use it compiles some with what it deprecates, and warns."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        forward_ad.make_dual(torch.zeros(1), torch.ones(1))


class _DiffersError(RuntimeError):
    """Forward derivatives are not the gradients."""


class _Check:
    """Compares the sum of all integrands of each layer with one pull-back."""

    def __init__(self, expected: Sequence[Tensor]) -> None:
        self._expected = expected
        self._found = [torch.zeros_like(one) for one in expected]
        self._size = [torch.zeros_like(one) for one in expected]
        self._precision = [torch.finfo(one.dtype).eps for one in expected]

    def add(self, layer: int, integrand: Tensor) -> None:
        """Take in ``(rows, neurons)`` of one feature."""
        self._precision[layer] = max(self._precision[layer], torch.finfo(integrand.dtype).eps)
        self._found[layer] += integrand.sum(1).to(self._found[layer])
        self._size[layer] += integrand.abs().sum(1).to(self._size[layer])

    def close(self) -> None:
        """Raise if a sum is further off than rounding explains."""
        for expected, found, size, precision in zip(
            self._expected, self._found, self._size, self._precision, strict=True
        ):
            if float((found - expected).abs().sum()) > precision**0.5 * float(
                torch.maximum(size, expected.abs()).sum()
            ):
                raise _DiffersError(
                    "they are not the gradients: no_grad in the model, or a custom function whose derivatives differ"
                )


@contextmanager
def _without_fused_recurrence() -> Iterator[None]:
    """No oneDNN and no cuDNN; the ``flags`` of torch would set more than that."""
    onednn, cudnn = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    torch._C._set_cudnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(onednn)
        torch._C._set_cudnn_enabled(cudnn)


def _through_two_passes(held: Held) -> PushForward:
    """Forward derivatives as the derivative of a pull-back by its cotangent."""
    points = len(held.tensors)
    there = [n for n, one in enumerate(held.tensors) if one is not None and one.requires_grad]
    tensors = [one for one in held.tensors if one is not None and one.requires_grad]
    cotangents = [torch.zeros_like(one, requires_grad=True) for one in tensors]
    pulled: Sequence[Tensor | None] = ()
    if tensors:
        pulled = torch.autograd.grad(tensors, held.leaves, cotangents, create_graph=True, allow_unused=True)

    def push(tangents: Sequence[Tensor]) -> list[Tensor | None]:
        pairs = [
            (one, tangent)
            for one, tangent in zip(pulled, tangents, strict=bool(pulled))
            if one is not None and one.requires_grad
        ]
        result: list[Tensor | None] = [None] * points
        if not pairs:
            return result
        outputs, inputs = zip(*pairs, strict=True)
        found = torch.autograd.grad(outputs, cotangents, inputs, retain_graph=True, allow_unused=True)
        for place, tangent in zip(there, found, strict=True):
            result[place] = tangent
        return result

    return push


def _is_missing_derivative(error: Exception) -> bool:
    """Whether an operator lacks a forward (or second) derivative; out of memory and the like are not meant."""
    if isinstance(error, (NotImplementedError, _DiffersError)):
        return True
    text = str(error)
    words = ("forward AD", "forward mode", "jvp", "derivative for", "double backward", "once_differentiable")
    return any(word in text for word in words)
