"""Codes of a dictionary as units, against ``∫ (D_f · v) df`` and ``∫ v · d(y - f D)`` in plain torch on dense nodes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from conductance import TotalConductance, dictionary_conductance, load, total_conductance
from conductance.analysis import rank_units
from conductance.errors import ConductanceError, ConvergenceWarning
from conductance.hooks import HookPoint
from tests.conductance.flows import assert_near
from tests.conductance.neuron_nets import LstmNet, Mlp
from tests.helpers import AttentionNet, ConvNet, ResidualNet, normal, seeded
from tests.reference import lagrange_matrix


class Sae(nn.Module):
    """A sparse autoencoder whose parameters are trained: an activation of an affine map, and a decoder."""

    def __init__(self, size: int, codes: int, act: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float64):
        super().__init__()
        self.weight = nn.Parameter(normal(size, codes, seed=11).to(dtype))
        self.bias = nn.Parameter(0.3 * normal(codes, seed=12).to(dtype))
        self.decoder = nn.Parameter(normal(codes, size, seed=13, scale=1 / math.sqrt(codes)).to(dtype))
        self.act = act

    def forward(self, y: Tensor) -> Tensor:
        return self.act(y @ self.weight + self.bias)


def top_two(codes: Tensor) -> Tensor:
    """Keep the two largest codes."""
    best = codes.topk(2, -1)
    return torch.zeros_like(codes).scatter(-1, best.indices, best.values.relu())


def jump_relu(codes: Tensor) -> Tensor:
    """Codes above a threshold, which a comparison hides from autograd."""
    return codes * (codes > 0.7)


ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu, "linear": lambda codes: codes, "top-k": top_two, "jump": jump_relu, "tanh": torch.tanh,
}  # fmt: skip


def chebyshev(panels: int = 6, nodes: int = 17) -> tuple[Tensor, Tensor]:
    inner = (1 - np.cos(np.pi * np.arange(nodes) / (nodes - 1))) / 2
    matrix = torch.block_diag(*[torch.tensor(lagrange_matrix(inner.tolist()), dtype=torch.float64)] * panels)
    return torch.tensor(np.concatenate([(inner + n) / panels for n in range(panels)])), matrix


def trapezoids(count: int = 6001) -> tuple[Tensor, None]:
    return torch.linspace(0, 1, count, dtype=torch.float64), None


def literal(
    model: nn.Module, x: Tensor, baseline: Tensor, layer: str, sae: Sae, axis: int, rule: Any, target: int = 1
) -> Tensor:
    """Conductance of codes and of the rest as one unit, ``(batch, *positions, codes + 1)``; rows first in the layer."""
    nodes, matrix = rule
    found = []
    for end, start in zip(x, baseline, strict=True):
        rows = (start + nodes.view(-1, *[1] * start.dim()) * (end - start)).requires_grad_()
        kept: list[Tensor] = []
        handle = model.get_submodule(layer).register_forward_hook(lambda _m, _a, output, kept=kept: kept.append(output))
        output = model(rows)[:, target].sum()
        handle.remove()
        (gradient,) = torch.autograd.grad(output, kept[0])
        with torch.no_grad():
            v, y = (tensor.detach().movedim(axis, -1) for tensor in (gradient, kept[0]))
            codes = sae(y)
            rest = y - torch.einsum("...c,cs->...s", codes, sae.decoder)
            slopes = torch.einsum("...s,cs->...c", v, sae.decoder)
            parts = [stieltjes(slopes, codes, matrix), stieltjes(v, rest, matrix).sum(-1, keepdim=True)]
        found.append(torch.cat(parts, -1))
    return torch.stack(found)


def stieltjes(v: Tensor, y: Tensor, matrix: Tensor | None) -> Tensor:
    """``∫ v dy`` over nodes in front, element by element."""
    if matrix is None:
        return (0.5 * (v[1:] + v[:-1]) * (y[1:] - y[:-1])).sum(0)
    return torch.einsum("kl,k...,l...->...", matrix, v, y - y[:1])


def codes_of(model: nn.Module, x: Any, layer: Any, sae: Sae, **options: Any) -> TotalConductance:
    return dictionary_conductance(model, x, layer, encode=sae, decoder=sae.decoder, **{"target": 1, **options})


def untrained_sae(size: int, codes: int, act: str) -> Sae:
    return Sae(size, codes, ACTS[act])


def test_the_oracle_by_hand() -> None:
    """``F = y²`` of ``y = 2 x``, code ``relu(y - 1)`` of direction 3: ``C = ∫_1^2 3 · 2y dy = 9``, and the rest -5."""

    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice = nn.Linear(1, 1, bias=False)
            nn.init.constant_(self.twice.weight, 2.0)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.twice(x) ** 2
            return output

    sae = Sae(1, 1, torch.relu)
    with torch.no_grad():
        sae.weight.fill_(1.0)
        sae.bias.fill_(-1.0)
        sae.decoder.fill_(3.0)
    model, x = seeded(Square), torch.ones(1, 1, dtype=torch.float64)
    nn.init.constant_(model.get_submodule("twice").get_parameter("weight"), 2.0)
    by_hand = torch.tensor([[9.0, -5.0]], dtype=torch.float64)
    assert_near(literal(model, x, 0 * x, "twice", sae, -1, trapezoids(), target=0), by_hand, 1e-6)
    assert_near(codes_of(model, x, "twice", sae, target=0, rtol=1e-3)["twice"], by_hand, 1e-3)


@pytest.mark.parametrize("act", ["linear", "tanh"])
@pytest.mark.parametrize(
    ("build", "shape", "layer", "size", "positions"),
    [(ResidualNet, (7,), "sum1", 6, ()), (AttentionNet, (5, 6), "up", 11, (5,))],
    ids=["features", "tokens"],
)
def test_smooth_dictionaries_are_the_literal_ones(
    build: Callable[[], nn.Module], shape: tuple[int, ...], layer: str, size: int, positions: tuple[int, ...], act: str
) -> None:
    model, sae = seeded(build), untrained_sae(size, 8, act)
    x, baseline = normal(3, *shape), normal(3, *shape, seed=1, scale=0.2)
    found = codes_of(model, x, layer, sae, baselines=baseline, rtol=1e-8)
    assert found.converged.all()
    assert found.settings["scheme"] == "smooth"
    plain = total_conductance(model, x, layer, target=1, baselines=baseline, rtol=1e-8)
    assert int(found.evaluations.max()) <= 2 * int(plain.evaluations.max())
    assert found[layer].shape == (3, *positions, 9)
    expected = literal(model, x, baseline, layer, sae, -1, chebyshev())
    assert_near(found[layer], expected, 1e-7)
    assert_near(found[layer][..., -1:], expected[..., -1:], 1e-7, expected)
    assert float(expected[..., -1].abs().min()) > 1e-6


@pytest.mark.parametrize("act", ["relu", "top-k", "jump"])
def test_kinked_and_jumping_dictionaries_are_the_literal_ones(act: str) -> None:
    model, sae = seeded(AttentionNet), untrained_sae(11, 8, act)
    x = normal(2, 5, 6)
    found = codes_of(model, x, "up", sae, rtol=1e-3)
    assert found.converged.all()
    if act != "jump":  # a comparison leaves no trace; the estimates find it out
        assert found.settings["scheme"] == "kinked"
        assert "encode" in found.settings["kinked_operators"]  # type: ignore[operator]
    expected = literal(model, x, 0 * x, "up", sae, -1, trapezoids())
    assert_near(found["up"], expected, 3e-3)
    assert bool((expected[..., :-1] == 0).any())  # codes that never fire have nothing
    assert bool((found["up"][..., :-1][expected[..., :-1] == 0] == 0).all())


def test_channels_of_a_convolution() -> None:
    model, sae = seeded(ConvNet), untrained_sae(5, 4, "relu")
    x = normal(2, 3, 8, 10)
    found = codes_of(model, x, "conv", sae, rtol=1e-3)
    assert found.converged.all()
    assert found["conv"].shape == (2, 7, 6, 5)
    assert (found.info["conv"].unit_axis, found.info["conv"].units) == (3, 5)
    expected = literal(model, x, 0 * x, "conv", sae, 1, trapezoids(3001))
    assert_near(found["conv"], expected, 3e-3)
    assert_near(found.per_unit("conv"), expected.sum((1, 2)), 3e-3, expected)


def test_a_layer_with_time_in_front() -> None:
    model, sae = seeded(LstmNet), untrained_sae(7, 4, "linear")
    x = normal(3, 5, 6)
    point = HookPoint("lstm", index=(0,), batch_axis=1, unit_axis=2)
    found = codes_of(model, x, point, sae, rtol=1e-8)
    assert found["lstm[0]"].shape == (3, 5, 5)
    whole = total_conductance(model, x, point, target=1, rtol=1e-8)["lstm[0]"]
    assert whole.shape == (3, 5, 7)
    assert_near(found["lstm[0]"].sum(2), whole.sum(2), 1e-6, whole)
    # a square basis leaves nothing: C_f mixes the codes of the layer's own units, as at equal nodes
    basis = torch.linalg.qr(normal(7, 7, seed=5))[0]
    turned = dictionary_conductance(model, x, point, encode=lambda y: y @ basis.T, decoder=basis, target=1, rtol=1e-8)[
        "lstm[0]"
    ]
    assert_near(turned[..., :-1].sum(2), whole.sum(2), 1e-6, whole)
    assert float(turned[..., -1].abs().max()) < 1e-12 * float(turned.abs().sum())


def test_a_permuted_basis_permutes_the_units() -> None:
    model, x = seeded(AttentionNet), normal(2, 5, 6)
    order = torch.randperm(11)
    scale = torch.rand(11, dtype=torch.float64) + 0.5
    decoder = torch.eye(11, dtype=torch.float64)[order] * scale[:, None]
    found = dictionary_conductance(
        model, x, "up", encode=lambda y: y[..., order] / scale, decoder=decoder, target=1, n_steps=6
    )
    whole = total_conductance(model, x, "up", target=1, n_steps=6)
    assert_near(found["up"][..., :-1], whole["up"][..., order], 1e-12)
    assert_near(found.unit_error["up"][..., :-1], whole.unit_error["up"][..., order], 1e-6)


@pytest.mark.parametrize("act", [*ACTS])
@pytest.mark.parametrize(
    ("build", "shape", "layer", "size"),
    [(AttentionNet, (5, 6), "up", 11), (ConvNet, (3, 8, 10), "act", 5), (lambda: Mlp(nn.ReLU), (5,), "fc1", 7)],
    ids=["tokens", "channels", "features"],
)
def test_units_sum_to_the_layer_at_equal_nodes(
    build: Callable[[], nn.Module], shape: tuple[int, ...], layer: str, size: int, act: str
) -> None:
    model, sae = seeded(build), untrained_sae(size, 4, act)
    x, baseline = normal(2, *shape), normal(2, *shape, seed=1, scale=0.3)
    found = codes_of(model, x, layer, sae, baselines=baseline, n_steps=9)
    whole = total_conductance(model, x, layer, target=1, baselines=baseline, n_steps=9)
    if found.settings["scheme"] == whole.settings["scheme"]:  # the same nodes and rule
        assert_near(found[layer].flatten(1).sum(1, keepdim=True), whole[layer].flatten(1).sum(1, keepdim=True), 1e-10)
    else:
        assert found.settings["scheme"] == "kinked"
        assert build is AttentionNet
    assert torch.equal(found.output, whole.output)
    fine = codes_of(model, x, layer, sae, baselines=baseline, rtol=1e-3)
    exact = total_conductance(model, x, layer, target=1, baselines=baseline, rtol=1e-4)
    scale = fine[layer].flatten(1)
    assert_near(scale.sum(1, keepdim=True), exact[layer].flatten(1).sum(1, keepdim=True), 3e-3, scale)
    assert found.info[layer].is_cut == whole.info[layer].is_cut


def test_several_baselines_and_their_spread() -> None:
    model, sae = seeded(AttentionNet), untrained_sae(11, 8, "tanh")
    x = normal(3, 5, 6)
    several: list[Any] = [0.0, normal(3, 5, 6, seed=2), normal(3, 5, 6, seed=3, scale=0.4)]
    cases: list[dict[str, Any]] = [{"rtol": 1e-7}, {"n_steps": 9}]
    for options in cases:
        alone = torch.stack([codes_of(model, x, "up", sae, baselines=one, **options)["up"] for one in several])
        found = codes_of(model, x, "up", sae, baselines=several, **options)
        assert_near(found["up"], alone.mean(0), 1e-6)
        assert found.spread is not None
        assert found.spread["up"].shape == (3, 5, 9)
        assert_near(found.spread["up"], alone.std(0, correction=0), 1e-6)
        assert_near(found.spread["up"][..., -1], alone[..., -1].std(0, correction=0), 1e-6)
        assert "spread" in found.to_dataframe()
    assert codes_of(model, x, "up", sae, n_steps=5).spread is None


def test_the_error_holds_for_what_is_reported() -> None:
    model, sae = seeded(AttentionNet), untrained_sae(11, 8, "relu")
    x = normal(4, 5, 6)
    exact = literal(model, x, 0 * x, "up", sae, -1, trapezoids(4001))
    for options in ({"rtol": 3e-2}, {"rtol": 1e-2}, {"n_steps": 12}):
        found = codes_of(model, x, "up", sae, **options)
        missed = (found["up"] - exact).abs().flatten(1).sum(1)
        claimed = found.error["up"] * found["up"].abs().flatten(1).sum(1)
        assert bool((missed <= claimed).all())
        assert bool((missed > 1e-4 * claimed).all())
        per_unit = (found.per_unit("up") - exact.sum(1)).abs()
        assert float((per_unit <= found.unit_error["up"] + 1e-9).double().mean()) > 0.7
        assert found.unit_error["up"].shape == (4, 9)
        assert float(found.unit_error["up"][:, -1].min()) > 0
        # relative to the elements of the rest, it is within the tolerance
        if "rtol" in options:
            assert found.converged.all()


def test_an_encoder_that_is_trained_is_left_as_it_is() -> None:
    model, sae = seeded(AttentionNet), untrained_sae(11, 8, "relu").train()
    model.requires_grad_()
    before = {name: one.clone() for name, one in sae.state_dict().items()}
    state = torch.random.get_rng_state()
    found = codes_of(model, normal(2, 5, 6), "up", sae, n_steps=5)
    assert not found["up"].requires_grad
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sae.training
    for name, parameter in sae.named_parameters():
        assert parameter.requires_grad
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])
    for parameter in model.parameters():
        assert parameter.requires_grad
        assert parameter.grad is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_encoder_may_write_on_what_it_gets_and_run_anywhere() -> None:
    model, sae, x = seeded(AttentionNet), untrained_sae(11, 8, "tanh"), normal(2, 5, 6)
    plain = codes_of(model, x, "up", sae, n_steps=5)

    def writing(y: Tensor) -> Tensor:
        codes: Tensor = sae(y).detach()
        y.zero_()
        return codes

    for encode in (writing, torch.no_grad()(sae.forward), torch.inference_mode()(sae.forward)):
        found = dictionary_conductance(model, x, "up", encode=encode, decoder=sae.decoder, target=1, rtol=1e-2)
        assert found.settings["scheme"] == "kinked"  # what is hidden from autograd may have kinks
        assert_near(found["up"], codes_of(model, x, "up", sae, rtol=1e-7)["up"], 2e-2)
    with torch.no_grad():
        assert torch.equal(codes_of(model, x, "up", sae, n_steps=5)["up"], plain["up"])


def test_a_smooth_encoder_that_writes_stays_smooth() -> None:
    model, x = seeded(AttentionNet), normal(2, 5, 6)
    mean, basis = normal(11, seed=4), torch.linalg.qr(normal(11, 11, seed=5))[0][:3]

    def centred(y: Tensor) -> Tensor:
        y -= mean
        codes: Tensor = y @ basis.T
        return codes

    found = dictionary_conductance(model, x, "up", encode=centred, decoder=basis, target=1, n_steps=9)
    plain = dictionary_conductance(
        model, x, "up", encode=lambda y: (y - mean) @ basis.T, decoder=basis, target=1, n_steps=9
    )
    assert found.settings["scheme"] == "smooth"
    assert_near(found["up"], plain["up"], 1e-12)
    # the mean does not matter
    none = dictionary_conductance(model, x, "up", encode=lambda y: y @ basis.T, decoder=basis, target=1, n_steps=9)
    assert_near(found["up"], none["up"], 1e-10)


def test_float32_and_a_dictionary_in_another_precision() -> None:
    model, x = seeded(AttentionNet), normal(2, 5, 6)
    exact = codes_of(model, x, "up", untrained_sae(11, 8, "tanh"), rtol=1e-7)["up"]
    sae = Sae(11, 8, torch.tanh, torch.float32)
    found = codes_of(model.float(), x.float(), "up", sae, rtol=1e-3)
    assert found.converged.all()
    assert found["up"].dtype == torch.float32
    assert_near(found["up"].double(), exact, 3e-3)
    double = dictionary_conductance(
        model,
        x.float(),
        "up",
        encode=lambda y: sae.double()(y.double()),
        decoder=sae.double().decoder,
        target=1,
        rtol=1e-3,
    )
    assert double["up"].dtype == torch.float32
    assert_near(double["up"].double(), exact, 3e-3)


def test_bfloat16() -> None:
    model, x = seeded(AttentionNet), normal(2, 5, 6)
    exact = codes_of(model, x, "up", untrained_sae(11, 8, "relu"), rtol=1e-4)["up"]
    model, x = model.bfloat16(), x.bfloat16()
    sae = Sae(11, 8, torch.relu, torch.bfloat16)
    wide = Sae(11, 8, torch.relu, torch.float32)
    for encode, decoder in ((sae, sae.decoder), (lambda y: wide(y.float()), wide.decoder)):
        found = dictionary_conductance(model, x, "up", encode=encode, decoder=decoder, target=1, n_steps=20)
        assert found["up"].dtype == torch.float32
        assert_near(found["up"].double(), exact, 0.15)
        whole = total_conductance(model, x, "up", target=1, n_steps=20)
        sums = found["up"].flatten(1).sum(1, keepdim=True)
        assert_near(sums, whole["up"].flatten(1).sum(1, keepdim=True), 3e-2, found["up"])


def test_the_result_is_like_any_other(tmp_path: Path) -> None:
    model, sae = seeded(AttentionNet), untrained_sae(11, 8, "tanh")
    found = codes_of(model, normal(3, 5, 6), "up", sae, rtol=1e-5)
    assert found.layers == ["up"]
    assert found.per_unit("up").shape == (3, 9)
    assert_near(found.per_unit("up"), found["up"].sum(1), 1e-12)
    table = found.to_dataframe()
    assert len(table) == 27
    row = table[(table["unit"] == 8) & (table["example"] == 2)].iloc[0]
    assert row["conductance"] == pytest.approx(float(found.per_unit("up")[2, 8]), rel=1e-12)
    assert row["error"] == pytest.approx(float(found.unit_error["up"][2, 8]), rel=1e-12)
    (line,) = found.summary().to_dict("records")
    assert (line["layer"], line["units"], line["cut"], line["type"]) == ("up", 9, False, "Linear")
    ranks = rank_units(found)
    assert len(ranks) == 9
    assert ranks["unit"].iloc[0] == int(found.per_unit("up").abs().mean(0).argmax())
    found.save(tmp_path / "codes.safetensors")
    again = load(tmp_path / "codes.safetensors")
    assert isinstance(again, TotalConductance)
    assert torch.equal(again["up"], found["up"])
    assert again.settings == found.settings
    assert (again.settings["quantity"], again.settings["codes"]) == ("dictionary_conductance", 8)
    pd.testing.assert_frame_equal(again.summary(), found.summary())
    cut = codes_of(seeded(ResidualNet), normal(3, 7), "sum1", untrained_sae(6, 8, "tanh"), rtol=1e-6)
    assert bool(((cut.coverage["sum1"] - 1).abs() <= cut.coverage_error["sum1"] + 1e-9).all())


def test_chunks_do_not_matter() -> None:
    model, sae, x = seeded(AttentionNet), untrained_sae(11, 8, "relu"), normal(3, 5, 6)
    found = codes_of(model, x, "up", sae, rtol=5e-2)
    for rows in (1, 7):
        other = codes_of(model, x, "up", sae, rtol=5e-2, internal_batch_size=rows)
        assert_near(other["up"], found["up"], 1e-9)
        assert torch.equal(other.evaluations, found.evaluations)


def test_a_budget_that_runs_out_is_told() -> None:
    model, sae = seeded(AttentionNet), untrained_sae(11, 8, "relu")
    with pytest.warns(ConvergenceWarning, match="did not converge to rtol=1e-06"):
        found = codes_of(model, normal(2, 5, 6), "up", sae, rtol=1e-6, max_evaluations=20)
    assert not found.converged.any()
    assert bool((found.error["up"] > 1e-6).all())


def counted(model: nn.Module) -> list[int]:
    """The rows of each call of a model, from now on."""
    calls: list[int] = []
    model.register_forward_pre_hook(lambda _m, args: calls.append(len(args[0])))
    return calls


DECODER = normal(8, 11, seed=3)
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "encode": ({"encode": 3}, TypeError, "encode is a int; expected a callable"),
    "no tensor": ({"decoder": [[1.0]]}, TypeError, "decoder is a list; expected a floating-point tensor"),
    "integers": ({"decoder": DECODER.long()}, TypeError, r"decoder is torch\.int64 \(8, 11\)"),
    "one axis": ({"decoder": DECODER[0]}, TypeError, r"decoder is torch\.float64 \(11,\)"),
    "no codes": ({"decoder": DECODER[:0]}, TypeError, r"decoder is torch\.float64 \(0, 11\)"),
    "nan decoder": ({"decoder": DECODER / 0 * 0}, ValueError, "decoder holds NaN or infinity"),
    "transposed": (
        {"decoder": DECODER.T}, ValueError, r"decoder has shape \(11, 8\); expected \(codes, 11\).*decoder\.T"
    ),
    "another size": ({"decoder": DECODER[:, :5]}, ValueError, r"decoder has shape \(8, 5\).*the units of 'up'$"),
    "codes": ({"decoder": DECODER[:3]}, ValueError, r"encode gave \(2, 5, 8\).*expected a tensor \(2, 5, 3\)"),
    "tuple": ({"encode": lambda y: (y, y)}, ValueError, "encode gave a tuple for activations"),
    "no grid": ({"encode": lambda y: y.sum()}, ValueError, r"encode gave \(\) for activations \(2, 5, 11\)"),
    "kind": ({"encode": lambda y: (y @ DECODER.T > 0).long()}, ValueError, r"encode gave a tensor of torch\.int64"),
    "nan": ({"encode": lambda y: (y @ DECODER.T) * torch.nan}, ConductanceError, "encode gave NaN or infinity.*'up'"),
    "mixing": (
        {"encode": lambda y: (y - y.mean(0)) @ DECODER.T}, ValueError, "random, or mixes its rows"
    ),
    "random": (
        {"encode": lambda y: nn.functional.dropout(y @ DECODER.T)}, ValueError, "random, or mixes its rows"
    ),
    "several layers": ({"layer": ["up", "down"]}, ValueError, r"layer means 2 hook points \(up, down\); a dictionary"),
    "all layers": ({"layer": None}, ValueError, r"layer means 11 hook points \(.*, …\); a dictionary belongs to one"),
    "heads": (
        {"layer": HookPoint("up", unit_groups=11)}, ValueError, "layer 'up' has no plain unit axis"
    ),
    "no layer": ({"layer": "upp"}, ValueError, "no module named 'upp'"),
    "tolerances": ({"rtol": 1e-3, "n_steps": 5}, ValueError, "both given"),
    "rtol": ({"rtol": 0.0}, ValueError, "rtol is 0"),
    "target": ({"target": 9}, ValueError, "target"),
}  # fmt: skip


@pytest.mark.parametrize(("changed", "kind", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_named_before_the_long_work(
    changed: dict[str, Any], kind: type[Exception], message: str
) -> None:
    model = seeded(AttentionNet)
    calls = counted(model)
    arguments: dict[str, Any] = {"layer": "up", "encode": lambda y: y @ DECODER.T, "decoder": DECODER, "target": 1}
    arguments |= changed
    with pytest.raises(kind, match=message):
        dictionary_conductance(model, normal(2, 5, 6), arguments.pop("layer"), **arguments)
    assert max(calls, default=0) <= 16
    assert not any(module._forward_hooks for module in model.modules())


def test_an_error_of_the_encoder_is_its_own() -> None:
    def broken(y: Tensor) -> Tensor:
        msg = "no such expert"
        raise LookupError(msg)

    with pytest.raises(LookupError, match="no such expert"):
        dictionary_conductance(seeded(AttentionNet), normal(2, 5, 6), "up", encode=broken, decoder=DECODER, target=1)
