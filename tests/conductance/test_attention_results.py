"""Attention heads as a file and as a table; which layers their names mean."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conductance as cd
from conductance.attention import AttentionConductance, attention_conductance
from tests.helpers import normal, seeded


class _Attention(nn.Module):
    """Grouped queries: four heads share the values of two."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.num_key_value_heads = 4, 2
        self.q_proj, self.k_proj = nn.Linear(8, 8), nn.Linear(8, 4)
        self.v_proj, self.o_proj = nn.Linear(8, 4), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            f(x).unflatten(-1, (-1, 2)).transpose(1, 2).repeat_interleave(times, 1)
            for f, times in ((self.q_proj, 1), (self.k_proj, 2), (self.v_proj, 2))
        )
        mixed: Tensor = self.o_proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + mixed


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_Attention(), _Attention()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.mean(1)


def _found(layers: Any = None) -> AttentionConductance:
    return attention_conductance(seeded(_Net).double(), normal(3, 5, 8), layers, target=1, rtol=1e-4)


@pytest.mark.parametrize("load", [cd.load, AttentionConductance.load])
def test_a_file_holds_every_bit(load: Any, tmp_path: Path) -> None:
    found = _found()
    path = tmp_path / "heads.safetensors"
    found.save(path)
    loaded = load(path)
    assert isinstance(loaded, AttentionConductance)
    assert repr(loaded) == repr(found) == "AttentionConductance(2 layers, 8 heads, 3 examples, 3 converged)"
    assert loaded.points == found.points
    for name in ("total", "pattern", "value", "error", "head_error"):
        before, after = getattr(found, name), getattr(loaded, name)
        assert list(after) == list(before) == ["layers.0", "layers.1"]
        for layer, one in before.items():
            torch.testing.assert_close(after[layer], one, rtol=0, atol=0)
    assert loaded.flow.settings == found.flow.settings


def test_another_kind_of_file_and_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "heads.safetensors"
    found = _found("layers.0")
    found.flow.save(path)
    with pytest.raises(ValueError, match="conductance_flow"):
        AttentionConductance.load(path)
    object.__setattr__(found, "points", {"layers.0": ("gone", "gone")})
    found.save(path)
    with pytest.raises(ValueError, match="damaged"):
        cd.load(path)


def test_the_table_holds_every_head_with_its_error() -> None:
    found = _found()
    table = found.to_dataframe()
    assert list(table) == ["layer", "head", "example", "total", "pattern", "value", "error"]
    assert len(table) == 2 * 3 * 4
    row = table[(table.layer == "layers.1") & (table["head"] == 2) & (table.example == 1)].iloc[0]
    for column, of in (("total", found.total), ("value", found.value), ("error", found.head_error)):
        assert row[column] == float(of["layers.1"][1, 2])
    gap = (table.total - table.pattern - table.value).abs()
    assert float(gap.max()) <= 1e-4 * float(table.total.abs().sum())
    assert (table.error > 0).all()
    assert float(table.error.max()) < 1e-4 * float(table.total.abs().sum())


def test_layers_are_named_or_matched() -> None:
    assert _found("layers.1").layers == ["layers.1"]
    assert _found("layers.*").layers == ["layers.0", "layers.1"]
    assert _found(["layers.1", "*"]).layers == ["layers.1", "layers.0"]
    with pytest.raises(
        ValueError, match=r"layers names 'block\.\*', which is no attention layer; found were.*layers\.0"
    ):
        _found("block.*")


def test_a_model_whose_attention_has_no_values_to_tap_is_told_so() -> None:
    with pytest.raises(ValueError, match=r"no attention layer.*MultiheadAttention.*hooks\.AttentionPoints"):
        cd.attention_conductance(nn.TransformerEncoderLayer(4, 2, 8).eval(), normal(2, 3, 4), target=0)
