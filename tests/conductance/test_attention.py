"""Heads in pattern and value part, against the literal split ``∫ v · dP V`` and ``∫ v · P dV`` on dense nodes."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from conductance import AttentionConductance, attention_conductance, conductance_flow, total_conductance
from conductance.errors import ConvergenceWarning
from conductance.hooks import AttentionPoints, HookPoint
from tests.conductance.flows import assert_near, untouched
from tests.helpers import normal, seeded
from tests.reference import lagrange_matrix

transformers: Any = pytest.importorskip("transformers")

HEADS, GROUPS = 4, 2
BLOCK = "bert.encoder.layer.{}.attention"


class Tiny(nn.Module):
    """A model of transformers on embeddings ``(batch, tokens, width)`` and a mask, with strong weights."""

    def __init__(self, name: str, attention: str, **config: Any) -> None:
        super().__init__()
        built = getattr(transformers, f"{name}Config")(**config)
        built._attn_implementation = attention
        setattr(self, name.lower(), getattr(transformers, f"{name}Model")(built))
        for parameter_name, parameter in self.named_parameters():
            if parameter_name.endswith("weight") and "norm" not in parameter_name.lower():
                nn.init.normal_(parameter, std=0.35)
        self.body = [getattr(self, name.lower())]  # in a list: it has one name only
        child: Any
        for module in [*self.modules()]:
            for child_name, child in module.named_children():
                if type(child).__name__.endswith("RMSNorm"):  # it rounds to float32
                    setattr(module, child_name, nn.RMSNorm(child.weight.shape, child.variance_epsilon))
        self.head = nn.Linear(built.hidden_size, 3)

    def forward(self, embeddings: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden = self.body[0](inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
        logits: Tensor = self.head(hidden[:, -1] if mask is None else hidden[:, 0])
        return logits


def bert(attention: str = "sdpa", layers: int = 2) -> nn.Module:
    sizes = {"hidden_size": 12, "num_attention_heads": HEADS, "intermediate_size": 10, "vocab_size": 5}
    return seeded(lambda: Tiny("Bert", attention, num_hidden_layers=layers, **sizes))


def llama(attention: str = "sdpa") -> nn.Module:
    sizes = {"hidden_size": 16, "num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "intermediate_size": 10}
    return seeded(lambda: Tiny("Llama", attention, num_hidden_layers=2, vocab_size=5, **sizes))


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch, kind: str) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """Replace the eager attention of a family by one in plain torch, which records patterns, values and mixtures."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any
    ) -> tuple[Tensor, Tensor]:
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
        scores = query @ key.transpose(2, 3) * scaling
        pattern = torch.softmax(scores if mask is None else scores + mask, -1)
        mixed = pattern @ value
        found.append((pattern, value, mixed))
        return mixed.transpose(1, 2).contiguous(), pattern

    module = getattr(transformers.models, kind)
    with monkeypatch.context() as patch:
        patch.setattr(getattr(module, f"modeling_{kind}"), "eager_attention_forward", attend)
        yield found


def dense_nodes(panels: int = 24, nodes: int = 17) -> tuple[Tensor, Tensor]:
    """Chebyshev nodes of some panels on the path, and ``A_kl = ∫ ℓ_k ℓ_l' da`` of them all."""
    inner = (1 - np.cos(np.pi * np.arange(nodes) / (nodes - 1))) / 2
    matrix = torch.block_diag(*[torch.tensor(lagrange_matrix(inner.tolist()), dtype=torch.float64)] * panels)
    return torch.tensor(np.concatenate([(inner + n) / panels for n in range(panels)])), matrix


def literal_parts(
    model: nn.Module, x: Tensor, baseline: Tensor, target: int, kept: list[tuple[Tensor, Tensor, Tensor]], *extra: Any
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Total, pattern and value part of the heads ``(batch, heads)`` of each layer, as the definition says."""
    nodes, matrix = dense_nodes()
    parts: list[list[tuple[Tensor, Tensor, Tensor]]] = []
    for n in range(len(x)):
        kept.clear()
        rows = (baseline[n] + nodes.view(-1, 1, 1) * (x[n] - baseline[n])).requires_grad_()
        more = [one[n].expand(len(nodes), *one.shape[1:]) for one in extra]
        output = model(rows, *more)[:, target].sum()
        layers = list(kept)
        slopes = torch.autograd.grad(output, [mixed for _, _, mixed in layers])
        parts.append([])
        for v, (pattern, value, mixed) in zip(slopes, layers, strict=True):
            p, w, o = pattern.detach(), value.detach(), mixed.detach()
            parts[-1].append(
                (
                    torch.einsum("kl,khqd,lhqd->h", matrix, v, o),
                    torch.einsum("kl,khqd,lhqs,khsd->h", matrix, v, p, w),
                    torch.einsum("kl,khqd,khqs,lhsd->h", matrix, v, p, w),
                )
            )
    layers_found = [zip(*of_layer, strict=True) for of_layer in zip(*parts, strict=True)]
    return [tuple(torch.stack(one) for one in of_layer) for of_layer in layers_found]  # type: ignore[misc]


def test_the_literal_split_is_one() -> None:
    """The oracle alone: by hand, P = a and V = a² give ∫ 3 dP V = 1 and ∫ 3 P dV = 2."""
    nodes, matrix = dense_nodes(2, 4)
    v = torch.full_like(nodes, 3.0)
    assert float(torch.einsum("kl,k,l,k->", matrix, v, nodes, nodes**2)) == pytest.approx(1.0, abs=1e-12)
    assert float(torch.einsum("kl,k,k,l->", matrix, v, nodes, nodes**2)) == pytest.approx(2.0, abs=1e-12)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_parts_of_an_sdpa_model_are_the_literal_parts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build = {"bert": bert, "llama": llama}[kind]
    model, eager = build("sdpa"), build("eager")
    width = {"bert": 12, "llama": 16}[kind]
    x, baseline = normal(2, 5, width), normal(2, 5, width, seed=1, scale=0.3)
    found = attention_conductance(model, x, target=1, baselines=baseline, rtol=1e-10)
    assert found.converged.all()
    assert len(found.layers) == 2
    with recorded(monkeypatch, kind) as kept:
        literal = literal_parts(eager, x, baseline, 1, kept)
    for name, (total, pattern, value) in zip(found.layers, literal, strict=True):
        assert total.shape == (2, HEADS)
        assert_near(found.total[name], total, 1e-9)
        assert_near(found.pattern[name], pattern, 1e-9, total.abs() + pattern.abs())
        assert_near(found.value[name], value, 1e-9, total.abs() + value.abs())
        assert_near(found.pattern[name] + found.value[name], found.total[name], 1e-9)
        # neither part is next to nothing, and heads that share values differ
        assert float(pattern.abs().sum()) > 1e-2 * float(total.abs().sum())
        assert float(value.abs().sum()) > 1e-2 * float(total.abs().sum())
        assert float((value[:, 0] - value[:, 1]).abs().min()) > 1e-6
        assert bool((found.error[name] <= 1e-9).all())
    assert untouched(model)


def test_the_pattern_part_is_the_total_conductance_of_the_probabilities() -> None:
    model, x = bert("eager"), normal(3, 5, 12)
    found = attention_conductance(model, x, target=2, rtol=1e-9)
    for layer in (0, 1):
        name = BLOCK.format(layer)
        probabilities = HookPoint(f"{name}.self", index=(1,), unit_axis=1)
        total = total_conductance(model, x, probabilities, target=2, rtol=1e-9)
        assert total[probabilities.name].shape == (3, HEADS, 5, 5)
        assert_near(found.pattern[name], total.per_unit(probabilities.name), 1e-8)


def test_totals_are_those_of_the_input_of_the_output_projection() -> None:
    model, x, start = llama(), normal(2, 5, 16), normal(2, 5, 16, seed=1, scale=0.3)
    names = [f"llama.layers.{layer}.self_attn" for layer in (0, 1)]
    heads: Any = [HookPoint(f"{name}.o_proj", side="in", unit_axis=-1, unit_groups=HEADS) for name in names]
    total = total_conductance(model, x, heads, target=0, baselines=start, rtol=1e-7)
    found = attention_conductance(model, x, names, target=0, baselines=start, rtol=1e-7)
    for name, point in zip(names, heads, strict=True):
        assert_near(found.total[name], total.per_unit(point.name), 1e-6)


def test_several_layers_at_once_equal_one_by_one() -> None:
    model, x = bert(), normal(2, 4, 12)
    names = [BLOCK.format(layer) for layer in (0, 1)]
    every = attention_conductance(model, x, target=1, rtol=1e-8)
    assert every.layers == names
    turned = attention_conductance(model, x, names[::-1], target=1, rtol=1e-8)
    assert sorted(turned.layers) == names
    for name in names:
        alone = attention_conductance(model, x, name, target=1, rtol=1e-8)
        assert alone.layers == [name]
        for part in ("total", "pattern", "value"):
            assert_near(getattr(every, part)[name], getattr(alone, part)[name], 1e-7)
            assert_near(getattr(turned, part)[name], getattr(alone, part)[name], 1e-7)


def test_a_mask_goes_with_the_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(2, 6, 12)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]])
    model = bert("sdpa")
    found = attention_conductance(model, (x, mask), target=0, rtol=1e-9)
    named = attention_conductance(model, {"embeddings": x, "mask": mask}, target=0, rtol=1e-9)
    extra = attention_conductance(model, x, target=0, rtol=1e-9, additional_forward_args=mask)
    with recorded(monkeypatch, "bert") as kept:
        literal = literal_parts(bert("eager"), x, torch.zeros_like(x), 0, kept, mask)
    for name, (total, pattern, value) in zip(found.layers, literal, strict=True):
        assert_near(found.total[name], total, 1e-8)
        assert_near(found.pattern[name], pattern, 1e-8)
        assert_near(found.value[name], value, 1e-8)
        assert_near(named.value[name], value, 1e-8)
        assert_near(extra.value[name], value, 1e-8)
    # what is masked does not matter
    noise = torch.where(mask[..., None] == 0, normal(2, 6, 12, seed=3), x)
    again = attention_conductance(model, (noise, mask), target=0, rtol=1e-9)
    for name in found.layers[-1:]:
        assert_near(again.value[name], found.value[name], 1e-7)


def test_a_fixed_number_of_steps() -> None:
    model, x = bert(), normal(2, 4, 12)
    fine, coarse = (attention_conductance(model, x, target=1, n_steps=steps) for steps in (33, 4))
    tight = attention_conductance(model, x, target=1, rtol=1e-9)
    for name in tight.layers:
        assert_near(fine.value[name], tight.value[name], 1e-4)
        with pytest.raises(AssertionError, match="missed"):
            assert_near(coarse.value[name], tight.value[name], 1e-4)
    assert coarse.flow.evaluations.max() < fine.flow.evaluations.min()


def test_a_tolerance_that_is_missed_is_told() -> None:
    model, x = bert(), 3 * normal(2, 4, 12)
    with pytest.warns(ConvergenceWarning, match="2 of 2 examples did not converge"):
        found = attention_conductance(model, x, target=1, rtol=1e-10, max_evaluations=5)
    assert found.converged.tolist() == [False, False]
    assert all(bool((error > 1e-10).all()) for error in found.error.values())


def test_several_baselines_are_averaged() -> None:
    model, x = bert(layers=1), normal(2, 4, 12)
    several = [0.0, normal(2, 4, 12, seed=5, scale=0.5)]
    both = attention_conductance(model, x, target=1, baselines=several, rtol=1e-8)
    one, other = (attention_conductance(model, x, target=1, baselines=each, rtol=1e-8) for each in several)
    name = BLOCK.format(0)
    assert_near(both.value[name], (one.value[name] + other.value[name]) / 2, 1e-7)
    assert_near(both.pattern[name], (one.pattern[name] + other.pattern[name]) / 2, 1e-7)


@pytest.mark.parametrize("build", [bert, llama])
def test_float32(build: Callable[[], nn.Module]) -> None:
    model = build()
    x = normal(2, 4, 12 if build is bert else 16)
    exact = attention_conductance(model, x, target=1, baselines=0.1, rtol=1e-7)
    found = attention_conductance(model.float(), x.float(), target=1, baselines=0.1, rtol=1e-3)
    assert found.converged.all()
    for name in exact.layers:
        assert found.value[name].dtype == torch.float32
        assert_near(found.value[name].double(), exact.value[name], 3e-3)


@pytest.mark.slow
def test_float32_from_zero_where_norms_are_steep() -> None:
    """Rounding hides the total conductance there; the parts do not come from it, and are right."""
    model, x = llama(), normal(2, 4, 16)
    exact = attention_conductance(model, x, target=1, rtol=1e-6)
    with pytest.warns(ConvergenceWarning, match="rounding hides the rest"):
        found = attention_conductance(model.float(), x.float(), target=1, rtol=1e-3)
    assert found.flow.status == ("precision", "precision")
    for name in exact.layers:
        assert_near(found.value[name].double(), exact.value[name], 1e-2)
        assert_near(found.pattern[name].double(), exact.pattern[name], 1e-2)


def test_a_table() -> None:
    model, x = bert(), normal(3, 5, 12)
    found = attention_conductance(model, x, target=1, rtol=1e-4)
    table = found.to_dataframe()
    assert list(table.columns) == ["layer", "head", "example", "total", "pattern", "value", "error"]
    assert len(table) == 2 * 3 * HEADS
    for row in table.iloc[[0, 5, 13, 23]].to_dict("records"):
        for part in ("total", "pattern", "value"):
            assert row[part] == getattr(found, part)[row["layer"]][row["example"], row["head"]]
    assert table.groupby("layer").size().tolist() == [12, 12]
    pd.testing.assert_frame_equal(
        found.to_dataframe(BLOCK.format(1)), table[table["layer"] == BLOCK.format(1)].reset_index(drop=True)
    )
    with pytest.raises(KeyError, match="No layer 'bert' here"):
        found.to_dataframe("bert")
    assert repr(found) == "AttentionConductance(2 layers, 8 heads, 3 examples, 3 converged)"


class Fused(nn.Module):
    """Attention that makes queries, keys and values by one projection; values and mixture are tapped."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 18)
        self.values, self.mixed = nn.Identity(), nn.Identity()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (2, 3)).transpose(1, 2) for part in (query, key, self.values(value)))
        pattern = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(3), -1)
        output: Tensor = self.head(self.mixed((pattern @ value).transpose(1, 2).flatten(2)).mean(1))
        return output


BY_HAND = AttentionPoints(
    "mine", HookPoint("mixed", unit_axis=-1, unit_groups=2), HookPoint("values", unit_axis=-1, unit_groups=2)
)


def test_points_by_hand() -> None:
    model, x = seeded(Fused), normal(2, 5, 6)
    found = attention_conductance(model, x, BY_HAND, target=1, rtol=1e-9)
    flow = conductance_flow(model, x, [BY_HAND.output, BY_HAND.value], top=None, target=1, rtol=1e-9)
    assert found.layers == ["mine"]
    assert_near(found.total["mine"], flow.conductance["mixed"], 1e-8)
    assert_near(found.value["mine"], flow.edges["values", "mixed"].sum(1), 1e-8)
    assert_near(found.pattern["mine"], flow.edges["(input)", "mixed"].sum(1), 1e-8)
    assert float(found.pattern["mine"].abs().min()) > 1e-6
    whole = AttentionPoints("whole", HookPoint("mixed"), HookPoint("values"))
    single = attention_conductance(model, x, [whole], target=1, rtol=1e-9)
    assert_near(single.value["whole"].unflatten(1, (2, 3)).sum(2), found.value["mine"], 1e-7)


class Reused(nn.Module):
    """One attention layer, run twice on a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Separate()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = torch.tanh(x + self.attention(x, x))
        output: Tensor = self.head(x.mean(1))
        return output


class Separate(nn.Module):
    """Attention from one text to another, in separate projections."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 2
        self.query, self.key, self.v_proj, self.o_proj = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        parts = (self.query(x), self.key(other), self.v_proj(other))
        query, key, value = (part.unflatten(-1, (2, 3)).transpose(1, 2) for part in parts)
        pattern = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(3), -1)
        output: Tensor = self.o_proj((pattern @ value).transpose(1, 2).flatten(2))
        return output


class Unrolled(nn.Module):
    """The same as `Reused`, with a copy for each call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Separate(), Separate()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for attention in (self.first, self.second):
            x = torch.tanh(x + attention(x, x))
        output: Tensor = self.head(x.mean(1))
        return output


def test_a_layer_that_runs_twice_has_parts_for_each_call() -> None:
    model: Any = seeded(Reused)
    plain: Any = seeded(Unrolled)
    x = normal(2, 5, 6)
    for copy in (plain.first, plain.second):
        copy.load_state_dict(model.attention.state_dict())
    plain.head.load_state_dict(model.head.state_dict())
    found = attention_conductance(model, x, "attention", target=1, rtol=1e-9)
    expected = attention_conductance(plain, x, target=1, rtol=1e-9)
    assert found.layers == ["attention#0", "attention#1"]
    for name, other in zip(found.layers, ["first", "second"], strict=True):
        assert_near(found.value[name], expected.value[other], 1e-8)
        assert_near(found.pattern[name], expected.pattern[other], 1e-8)


class Reader(nn.Module):
    """Reads a text that stands still, besides its own input; one more layer is never run."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.cross, self.unused = Separate(), Separate(), Separate()
        self.head = nn.Linear(6, 3)
        self.register_buffer("text", normal(4, 6, seed=9))

    def forward(self, x: Tensor) -> Tensor:
        text = self.get_buffer("text").expand(len(x), -1, -1)
        x = x + self.own(x, x)
        output: Tensor = self.head(torch.tanh(x + self.cross(x, text)).mean(1))
        return output


def test_values_that_stand_still_have_no_part() -> None:
    model, x = seeded(Reader), normal(2, 5, 6)
    for layers in (None, ["own", "cross"]):
        found = attention_conductance(model, x, layers, target=1, rtol=1e-8)
        assert found.layers == ["own", "cross"]
        assert not found.value["cross"].any()
        assert_near(found.pattern["cross"], found.total["cross"], 1e-7)
        assert float(found.value["own"].abs().min()) > 1e-6
    with pytest.raises(ValueError, match=r"'unused\.o_proj:in', which never ran"):
        attention_conductance(model, x, ["own", "unused"], target=1)
    cross = AttentionPoints("c", HookPoint("cross.o_proj", side="in"), HookPoint("cross.v_proj"))
    with pytest.raises(ValueError, match=r"'cross\.v_proj', which does not depend on the inputs"):
        attention_conductance(model, x, cross, target=1)


def gpt2() -> nn.Module:
    return seeded(lambda: Tiny("GPT2", "eager", n_embd=12, n_layer=1, n_head=3, vocab_size=5))


def test_models_without_a_value_tensor_are_told_apart() -> None:
    encoder = nn.TransformerEncoderLayer(12, 3, 14, batch_first=True).double().eval()
    for model in (gpt2(), encoder):
        for layers in (None, "attention"):
            with pytest.raises(ValueError, match="no attention layer with a value and an output projection was found"):
                attention_conductance(model, normal(2, 4, 12), layers, target=1)


def test_bad_arguments_are_named() -> None:
    model, x = bert(layers=1), normal(2, 4, 12)
    name = BLOCK.format(0)
    cases: list[tuple[Any, type[Exception], str]] = [
        (name + ".self", ValueError, f"layers names '{name}.self', which is no attention layer; found were {name}"),
        ([name, "nothing"], ValueError, "layers names 'nothing'"),
        ([], ValueError, "layers is empty"),
        ((), ValueError, "layers is empty"),
        (3, TypeError, "layers is a int"),
        ([HookPoint(name)], TypeError, "layers holds a HookPoint"),
        (HookPoint(name), TypeError, "layers is a HookPoint"),
        ([BY_HAND, AttentionPoints("mine", BY_HAND.value, BY_HAND.output)], ValueError, "two AttentionPoints of the"),
        (BY_HAND, ValueError, "no module named 'mixed"),
    ]
    for layers, kind, message in cases:
        with pytest.raises(kind, match=message):
            attention_conductance(model, x, layers, target=1)
    options: list[dict[str, Any]] = [{"top": 3}, {"top": None}, {"units": {}}]
    for option in options:
        with pytest.raises(TypeError, match=f"takes no {next(iter(option))}: its units are the heads"):
            attention_conductance(model, x, target=1, **option)
    with pytest.raises(TypeError, match="model is a function"):
        attention_conductance(lambda x: model(x), x, target=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rtol is -1"):
        attention_conductance(model, x, target=1, rtol=-1)
    with pytest.raises(TypeError, match="rtoll"):
        attention_conductance(model, x, target=1, rtoll=1e-3)
    assert untouched(model)


def test_features_do_not_change_the_parts() -> None:
    model, x = bert(layers=1), normal(2, 4, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = attention_conductance(model, x, target=1, rtol=1e-8)
        tokens = attention_conductance(model, x, target=1, rtol=1e-8, feature_groups="token")
    assert isinstance(tokens, AttentionConductance)
    assert_near(tokens.value[BLOCK.format(0)], plain.value[BLOCK.format(0)], 1e-7)
    assert_near(tokens.pattern[BLOCK.format(0)], plain.pattern[BLOCK.format(0)], 1e-7)
    assert tokens.flow.conductance["(input)"].shape == (2, 4)
