"""Units in another basis: the codes of a dictionary (a sparse autoencoder, a PCA basis) in place of a layer's own.

With codes ``f(y)`` and decoder ``D`` a layer is ``y = f D + rest``. Then ``C_f = ∫ (D_f · v) df`` is the conductance of
a code, and ``∫ v · d(y - f D)`` that of what the dictionary leaves unexplained: the layer's sum is kept, and the model
is not touched.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from conductance._reporting import settings_of, warn
from conductance._requests import checked_rules
from conductance.arguments import Inputs
from conductance.baselines import Baseline
from conductance.errors import ConductanceError
from conductance.hooks import GraphView, LayerSpec
from conductance.results import TotalConductance
from conductance.running import Prepared, Run, prepared
from conductance.sums import work_dtype
from conductance.targeting import Target


def dictionary_conductance(
    model: Callable[..., Any],
    inputs: Inputs,
    layer: LayerSpec,
    *,
    encode: Callable[[Tensor], Tensor],
    decoder: Tensor,
    target: Target = None,
    baselines: Baseline | list[Any] = None,
    additional_forward_args: Any = None,
    fixed: Any = (),
    path_from: LayerSpec = None,
    rtol: float | None = None,
    atol: float = 0.0,
    n_steps: int | None = None,
    max_evaluations: int = 10_000,
    internal_batch_size: int | None = None,
    on_train: Literal["error", "warn"] = "error",
    progress: bool = False,
) -> TotalConductance:
    """Total conductance of the codes of a dictionary over one layer, and of what it leaves unexplained.

    Parameters
    ----------
    model, inputs, target, baselines, additional_forward_args, fixed, path_from
        As for :func:`~conductance.total.total_conductance`.
    layer
        One layer.
    encode
        Takes activations ``(rows, …, size)``, the layer's units last, to codes ``(rows, …, codes)``, each row by
        itself. Of PCA: ``lambda y: (y - mean) @ components.T``.
    decoder
        ``(codes, size)``: the direction of each code; a bias of the decoder does not matter.
    rtol, atol, n_steps, max_evaluations, internal_batch_size, on_train, progress
        As for total conductance; the tolerance holds for ``Σ|error|`` over codes and the elements of the rest, against
        their ``Σ|C|``. (``error`` of the result is against the ``Σ|C|`` that it has, with the rest as one unit: where
        the elements of the rest cancel, it is larger.)

    Returns
    -------
    TotalConductance
        With one layer, whose units are last: the codes ``0 … codes - 1``, and then one unit for the rest. They sum to
        the layer's own conductance.

    Raises
    ------
    ValueError, TypeError
        For an argument that cannot be used; the message names it.
    ConductanceError
        As for total conductance.

    Notes
    -----
    Where codes jump along the path (a top-k gate), half of each side's gradient counts; the rest jumps the other way,
    so the sum is right all the same.

    Examples
    --------
    Two codes for three units, which leave the third unexplained:

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False)).double()
    >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    >>> _ = model[1].weight.data.copy_(torch.tensor([[2.0, -1.0, 1.0]]))
    >>> decoder = torch.eye(3, dtype=torch.float64)[:2]
    >>> x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    >>> found = dictionary_conductance(model, x, "0", encode=lambda y: y @ decoder.T, decoder=decoder)
    >>> found["0"].round(decimals=6)
    tensor([[ 2., -2.,  3.]], dtype=torch.float64)
    """
    started = time.perf_counter()
    rules = checked_rules(rtol, atol, n_steps, max_evaluations, internal_batch_size)
    if not callable(encode):
        raise TypeError(f"encode is a {type(encode).__name__}; expected a callable of activations that returns codes")
    if not isinstance(decoder, Tensor) or decoder.dim() != 2 or not decoder.is_floating_point() or not len(decoder):
        kind = type(decoder).__name__
        given = f"{decoder.dtype} {tuple(decoder.shape)}" if isinstance(decoder, Tensor) else f"a {kind}"
        raise TypeError(f"decoder is {given}; expected a floating-point tensor of shape (codes, size of the layer)")
    if not bool(torch.isfinite(decoder).all()):
        raise ValueError("decoder holds NaN or infinity")
    with prepared(
        model,
        inputs,
        layer,
        target=target,
        baselines=baselines,
        additional_forward_args=additional_forward_args,
        fixed=fixed,
        path_from=path_from,
        on_train=on_train,
        most=rules.rows,
    ) as asked:
        dictionary = _Dictionary(encode, decoder, asked)
        run = Run(dictionary.ready, rules, n_steps)
        interrupted = run.execute(progress)
    result = dictionary.folded(
        run.result(
            {
                "quantity": "dictionary_conductance",
                **settings_of(dictionary.ready, rules, n_steps, target, baselines),
                "codes": len(decoder),
                "internal_batch_size": run.rows,
                "interrupted": interrupted,
                "seconds": round(time.perf_counter() - started, 3),
            }
        ),
        run.spread,
    )
    warn(result, rules, n_steps)
    return result


@dataclass
class _Basis:
    """What a layer delivers, in the other basis: codes and, element by element, the rest."""

    encode: Callable[[Tensor], Tensor]
    decoder: Tensor
    axis: int
    name: str

    def __call__(self, _point: int, activation: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Codes beside the rest, and their gradients, units last."""
        with torch.no_grad():
            y, v = activation.movedim(self.axis, -1), gradient.movedim(self.axis, -1)
            codes = self.encode(y.clone())  # it may write on what it gets
            if not bool(torch.isfinite(codes).all()) and bool(torch.isfinite(y).all()):
                raise ConductanceError(f"encode gave NaN or infinity for finite activations of layer {self.name!r}")
            dtype = work_dtype(y.dtype)
            codes, decoder = codes.to(dtype), self.decoder.to(device=y.device, dtype=dtype)
            values = torch.cat([codes, y.to(dtype) - codes @ decoder], -1)
            slopes = torch.cat([v.to(dtype) @ decoder.T, v.to(dtype)], -1)
            return values.to(y.dtype), slopes.to(v.dtype)


class _Dictionary:
    """A prepared run with the layer in another basis, and the way back for its result."""

    def __init__(self, encode: Callable[[Tensor], Tensor], decoder: Tensor, asked: Prepared) -> None:
        if len(asked.points) != 1:
            names = ", ".join([info.name for info in asked.points[:5]] + ["…"] * (len(asked.points) > 5))
            raise ValueError(f"layer means {len(asked.points)} hook points ({names}); a dictionary belongs to one")
        (info,) = asked.points
        axis = info.point.unit_axis
        if axis is None or axis == info.point.batch_axis or info.point.unit_groups is not None:
            raise ValueError(f"layer {info.name!r} has no plain unit axis that a dictionary could replace")
        size = info.shape[axis]
        if decoder.shape[1] != size:
            hint = "; give its transpose, decoder.T" if decoder.shape[0] == size else ""
            raise ValueError(
                f"decoder has shape {tuple(decoder.shape)}; expected (codes, {size}), the units of {info.name!r}{hint}"
            )
        shape = [length for place, length in enumerate(info.shape) if place not in (axis, info.point.batch_axis)]
        rows = info.shape[info.point.batch_axis]
        smooth = _check(encode, torch.zeros(rows, *shape, size, dtype=info.dtype, device=info.device), len(decoder))
        self._info = info
        self._codes = len(decoder)
        point = replace(info.point, batch_axis=0, unit_axis=len(shape) + 1)
        there = replace(info, point=point, shape=(rows, *shape, len(decoder) + size))
        moved = axis - (axis > info.point.batch_axis)  # rows come first when the basis is changed
        found = asked.found if smooth else replace(asked.found, kinked=(*asked.found.kinked, "encode"))
        self.ready = replace(
            asked,
            points=[there],
            found=found,
            change=_Basis(encode, decoder.detach(), moved + 1, info.name),
            tapped=[info],
            fold=self._fold,
        )

    def _fold(self, values: Tensor) -> Tensor:
        """Codes and the sum of the elements of the rest."""
        return torch.cat([values[..., : self._codes], values[..., self._codes :].sum(-1, keepdim=True)], -1)

    def folded(self, result: TotalConductance, spread: dict[str, Tensor] | None) -> TotalConductance:
        """The rest as one unit; of the spread it is already one."""
        name = self._info.name
        before, info = result[name], result.info[name]
        after = self._fold(before)
        # the same Σ|error|, against what Σ|C| is now
        size, other = (one.to(result.error[name]).abs().flatten(1).sum(1) for one in (before, after))
        return replace(
            result,
            conductance={name: after},
            unit_error={name: self._fold(result.unit_error[name])},
            error={name: torch.where(size > 0, result.error[name] * (size / other), result.error[name])},
            info={name: replace(info, shape=(*info.shape[:-1], self._codes + 1))},
            spread=spread,
        )


def _check(encode: Callable[[Tensor], Tensor], rows: Tensor, codes: int) -> bool:
    """Refuse an encoder that does not give codes of each row by itself; whether it is smooth."""
    leaf = torch.randn_like(rows).requires_grad_()
    try:
        found = encode(leaf.clone())
    except Exception as error:
        error.add_note(f"encode received activations of shape {tuple(rows.shape)}, {rows.dtype} on {rows.device}")
        raise
    expected = (*rows.shape[:-1], codes)
    if not isinstance(found, Tensor) or tuple(found.shape) != expected:
        given = tuple(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ValueError(f"encode gave {given} for activations {tuple(rows.shape)}; expected a tensor {expected}")
    if not found.is_floating_point():
        raise ValueError(f"encode gave a tensor of {found.dtype}; expected floating-point codes")
    alone = torch.stack([encode(torch.stack([row] * len(rows))).detach()[0] for row in leaf.detach()])
    allowed = found.detach().abs().nan_to_num(0.0, 0.0).max() * torch.finfo(rows.dtype).eps ** 0.5
    if not bool(torch.isclose(found.detach(), alone, rtol=0.0, atol=float(allowed), equal_nan=True).all()):
        raise ValueError(
            "encode gave other codes for a row beside another one than beside its copy: it is random, or mixes its "
            "rows (dropout in train mode, a top-k over the batch); expected the codes of each row by itself"
        )
    view = GraphView(found.sum(), [leaf]) if found.requires_grad else None
    if view is None or not view.gradient_flows:
        return False  # what is hidden from autograd may have kinks
    return not view.kinked_operators()
