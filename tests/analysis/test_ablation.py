"""Effects of single units, against a literal loop and closed forms."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from conductance.analysis import UnitEffects, ablation_curve, baseline_values, unit_effects
from conductance.errors import UnknownLayerError
from tests.analysis.ablations import at_baseline, literal_effects
from tests.helpers import AttentionNet, ChunkNet, ConvNet, ResidualNet, TwoInputNet, normal, seeded

LABELS = torch.tensor([3, 0, 1, 1, 2])


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)


class Dictionary(nn.Module):
    """Takes and gives a dict; the mask of the tokens joins in behind the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.head = nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden = self.act(self.up(x))
        output: Tensor = self.head((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
        return output


class Gathered(nn.Module):
    """Reads one position by an index for each example, which a shared prefix would get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(6, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.up(x))
        last = torch.full((len(x), 1, 7), 2)
        output: Tensor = self.head(hidden.gather(1, last)[:, 0] + hidden.mean(1))
        return output


class Folded(nn.Module):
    """Folds rows by the number of examples that came in: shared, it would mix the sets."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(6, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.up(x)).reshape(len(x), -1, 7).mean(1)
        output: Tensor = self.head(hidden)
        return output


MASK = (torch.arange(5)[None] < torch.tensor([5, 3, 1, 4, 2])[:, None]).double()
CASES: list[tuple[Callable[[], nn.Module], Any, str, int]] = [
    (ConvNet, normal(5, 3, 8, 10), "conv", 1),
    (ConvNet, normal(5, 3, 8, 10), "pool", 1),
    (ConvNet, normal(5, 3, 8, 10), "fc", 1),
    (ResidualNet, normal(5, 7), "stem", 1),
    (ResidualNet, normal(5, 7), "act1", 1),
    (ResidualNet, normal(5, 7), "up2", 1),
    (AttentionNet, normal(5, 5, 6), "act", 2),
    (AttentionNet, normal(5, 5, 6), "value", 2),
    (ChunkNet, normal(5, 6), "gated", 1),
    (TwoInputNet, (normal(5, 3), normal(5, 5, seed=1)), "left", 1),
    (TwoInputNet, (normal(5, 3), normal(5, 5, seed=1)), "joint", 1),
    (Dictionary, {"x": normal(5, 5, 6), "mask": MASK}, "act", 2),
    (Dictionary, {"x": normal(5, 5, 6), "mask": MASK.bool()}, "act", 2),
    (Gathered, normal(5, 5, 6), "up", 2),
    (Folded, normal(5, 5, 6), "up", 2),
]


def starts(inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return {key: value.flip(1) * 0.25 if key == "x" else value for key, value in inputs.items()}
    return (
        tuple(each.flip(-1) * 0.25 - 0.5 for each in inputs)
        if isinstance(inputs, tuple)
        else inputs.flip(-1) * 0.25 - 0.5
    )


def as_baselines(inputs: Any) -> Any:
    """The baselines as they are given: of what moves."""
    if isinstance(inputs, dict):
        return {"x": inputs["x"]}
    return inputs


@pytest.mark.parametrize(("build", "inputs", "layer", "axis"), CASES)
@pytest.mark.parametrize("rows", [None, 1, 7])
def test_effects_are_those_of_a_literal_loop(
    build: Callable[[], nn.Module], inputs: Any, layer: str, axis: int, rows: int | None
) -> None:
    model, start = seeded(build), starts(inputs)
    seen: list[int] = []
    handle = model.register_forward_hook(lambda _module, _args, output: seen.append(len(output)))
    labelled = {**inputs, "labels": LABELS} if isinstance(inputs, dict) else (inputs, LABELS)
    zero = unit_effects(model, [labelled], layer, target="label", value="zero", internal_batch_size=rows)
    baseline = unit_effects(
        model, [labelled], layer, target="label", baselines=as_baselines(start), internal_batch_size=rows
    )
    handle.remove()
    assert_near(zero[layer], literal_effects(model, inputs, layer, LABELS, axis=axis))
    assert_near(baseline[layer], literal_effects(model, inputs, layer, LABELS, start=start, axis=axis))
    assert rows is None or max(seen) <= max(rows, 2)  # a model is tried with two rows


class Told(nn.Module):
    """Gives its logits in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ResidualNet()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.inner(x), "other": x}


def test_outputs_may_be_dicts() -> None:
    model, x = seeded(Told), normal(5, 7)
    inner = model.get_submodule("inner")
    found = unit_effects(model, [(x, LABELS)], "inner.stem", target="label", value="zero")
    assert_near(found["inner.stem"], literal_effects(inner, x, "stem", LABELS))
    ranking = pd.DataFrame({"layer": "inner.stem", "unit": range(6)})
    guess = inner(x).argmax(1)
    curve = ablation_curve(model, [(x, guess)], ranking, random=0)
    assert curve["accuracy"][0] == 1.0
    assert curve["accuracy"].min() < 1.0


class Opposed(nn.Module):
    """Two units that cancel: held together they do nothing. The first row is read for all, if a prefix is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(x)
        first = hidden.gather(1, torch.tensor([[0, 1]]).expand(len(x), 2))
        output: Tensor = first[:, :1] - first[:, 1:] + 0 * hidden[:, :1]
        return output


def test_units_that_cancel_do_not_hide_that_nothing_can_be_shared() -> None:
    x = torch.full((1, 2), 3.0, dtype=torch.float64)
    found = unit_effects(Opposed(), [x], "hidden", target=0, value="zero")
    assert found["hidden"].tolist() == [[3.0, -3.0]]


def test_what_lies_before_the_layer_runs_once_for_all_units() -> None:
    model, x = seeded(ConvNet), normal(5, 3, 8, 10)
    rows = {"conv": 0, "head": 0}
    for name in rows:

        def count(_module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            rows[name] += len(args[0])

        model.get_submodule(name).register_forward_pre_hook(count)
    for layer in ("fc", "conv", "pool"):
        rows.update(conv=0, head=0)
        unit_effects(model, [x] * 3, layer, target=1, value="zero", units=[0, 1, 2, 3])
        assert rows["head"] >= 15 * 5
        assert rows["conv"] < 15 * 5
        assert rows["conv"] >= 15


def test_linear_model_has_the_closed_form() -> None:
    first, second = nn.Linear(3, 5).double(), nn.Linear(5, 4).double()
    model = nn.Sequential(first, second).requires_grad_(requires_grad=False)
    x, start = normal(6, 3), normal(1, 3, seed=1)
    found = unit_effects(model, [x[:4], x[4:]], "0", target=2, baselines=start)
    assert_near(found["0"], second.weight[2] * (first(x) - first(start)))
    assert_near(found.output, model(x)[:, 2])
    zero = unit_effects(model, [x], "0", target=2, value="zero")
    assert_near(zero["0"], second.weight[2] * first(x))


def test_baseline_of_each_example_is_its_own_in_any_split() -> None:
    model, x = seeded(ConvNet), normal(5, 3, 8, 10)
    whole = unit_effects(model, [x], "act", target=0, baselines=lambda one: one * 0.5)
    split = unit_effects(model, [x[:1], x[1:3], x[3:]], "act", target=0, baselines=lambda one: one * 0.5)
    assert_near(split["act"], whole["act"])
    assert_near(whole["act"], literal_effects(model, x, "act", [0] * 5, start=x * 0.5))


def test_several_baselines_are_averaged() -> None:
    model, x = seeded(ResidualNet), normal(4, 7)
    value = (at_baseline(model, "stem", x * 0) + at_baseline(model, "stem", x * 0 + 2)) / 2
    found = unit_effects(model, [x], "stem", target=1, baselines=[0.0, 2.0])
    for unit in range(6):
        changed = at_baseline(model, "stem", x).clone()
        changed[:, unit] = value[:, unit]
        handle = model.get_submodule("stem").register_forward_hook(lambda _m, _a, _o, changed=changed: changed)
        held = model(x)[:, 1]
        handle.remove()
        assert_near(found["stem"][:, unit], model(x)[:, 1] - held)


def test_chosen_units_several_layers_and_their_table() -> None:
    model, x = seeded(ConvNet), normal(3, 3, 8, 10)
    every = unit_effects(model, [x], ["fc", "act"], target=1)
    assert list(every) == ["act", "fc"]
    assert len(every) == 2
    some = unit_effects(model, [x], ["fc", "act"], target=1, units={"fc": [6, 2]})
    assert list(some) == ["fc"]
    assert some.units["fc"].tolist() == [6, 2]
    assert_near(some["fc"], every["fc"][:, [6, 2]])
    only = unit_effects(model, [x], "fc", target=1, units=[6])
    assert_near(only["fc"], every["fc"][:, [6]])
    table = some.to_dataframe()
    assert list(table) == ["layer", "unit", "example", "effect"]
    row = table[(table["unit"] == 2) & (table["example"] == 1)]
    assert row["effect"].item() == some["fc"][1, 1].item()
    assert len(table) == 6
    assert repr(every) == "UnitEffects(3 examples, held at baseline, act: 5 units, fc: 7 units)"
    one = unit_effects(model, [x[:1]], "fc", target=1, units=[2])
    assert repr(one) == "UnitEffects(1 example, held at baseline, fc: 1 unit)"
    with pytest.raises(UnknownLayerError, match="Did you mean 'fc'"):
        every["fc1"]


def test_targets_are_read_for_each_batch() -> None:
    model, x = seeded(ConvNet), normal(5, 3, 8, 10)
    batches = [(x[:2], LABELS[:2]), (x[2:], LABELS[2:])]
    model.get_parameter("head.bias")[:] -= model(x).mean(0)
    guess = model(x).argmax(1)
    assert guess.unique().numel() > 1
    predicted = unit_effects(model, batches, "fc", target="predicted")
    assert_near(predicted["fc"], literal_effects(model, x, "fc", guess, start=x * 0))
    called = unit_effects(model, batches, "fc", target=lambda output: output[:, 1] - output[:, 2])
    expected = [literal_effects(model, x, "fc", [k] * 5, start=x * 0) for k in (1, 2)]
    assert_near(called["fc"], expected[0] - expected[1])


def test_calls_of_one_module_are_layers_of_their_own() -> None:
    act = nn.Tanh()
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 5), act, nn.Linear(5, 4), act))
    found = unit_effects(model, [normal(2, 3)], "1", target=3, value="zero")
    assert list(found) == ["1#0", "1#1"]
    assert_near(found["1#1"][:, 3], found.output)
    assert not found["1#1"][:, :3].any()


def test_heads_and_one_number_a_row() -> None:
    from conductance.hooks import HookPoint

    model, x = seeded(AttentionNet), normal(3, 5, 6)
    found = unit_effects(model, [x], HookPoint("out", side="in", unit_groups=2), target=0, value="zero")
    single = unit_effects(model, [x], HookPoint("out", side="in"), target=0, value="zero")
    assert found["out:in"].shape == (3, 2)
    assert single["out:in"].shape == (3, 6)
    weight = model.get_parameter("out.weight")
    kept = weight.clone()
    weight[:, 3:] = 0.0
    without = model(x)[:, 0]
    weight.copy_(kept)
    assert_near(found["out:in"][:, 1], model(x)[:, 0] - without)


def test_token_ids_begin_at_their_embedding() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.fc, self.head = nn.Embedding(9, 6), nn.Linear(6, 7), nn.Linear(7, 4)

        def forward(self, ids: Tensor) -> Tensor:
            output: Tensor = self.head(torch.tanh(self.fc(self.words(ids))).mean(1))
            return output

    model = seeded(Tokens)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6], [0, 0, 8]])
    found = unit_effects(model, [ids[:2], ids[2:, :2]], "fc", target=1, baselines=torch.tensor(0.0))
    bias, weight = model.get_parameter("fc.bias"), model.get_parameter("head.weight")
    for part, rows in ((ids[:2], slice(0, 2)), (ids[2:, :2], slice(2, 3))):
        hidden = model.get_submodule("fc")(model.get_submodule("words")(part))
        change = (torch.tanh(hidden) - torch.tanh(bias)).mean(1)
        assert_near(found["fc"][rows], change * weight[1])
    values = baseline_values(model, ids, "fc", baselines=torch.tensor(0.0))
    torch.testing.assert_close(values["fc"], bias.expand(3, 7))
    # from another point on
    last = model.get_parameter("head.bias")
    values = baseline_values(model, ids, "head", baselines=torch.tensor(0.0), path_from="fc")
    assert_near(values["head"], last)
    found = unit_effects(model, [ids], "head", target=1, baselines=torch.tensor(0.0), path_from="fc")
    assert_near(found["head"][:, 1], model(ids)[:, 1] - last[1])
    ranking = pd.DataFrame({"layer": "head", "unit": [1, 0, 2, 3]})
    curve = ablation_curve(model, [ids], ranking, target=1, baselines=torch.tensor(0.0), path_from="fc")
    assert curve["score"][1] == pytest.approx(float(last[1]), abs=1e-12)


def test_baseline_values_are_the_activation_there() -> None:
    model, x = seeded(ConvNet), normal(5, 3, 8, 10)
    start = normal(1, 3, 8, 10, seed=2)
    found = baseline_values(model, x, ["act", "fc"], baselines=start)
    assert found["act"].shape == (5, 7, 6)
    assert_near(found["act"], at_baseline(model, "act", start)[0])
    assert_near(found["fc"], at_baseline(model, "fc", start)[0])
    each = baseline_values(model, x, "act", baselines=x * 0.5, internal_batch_size=2)
    assert_near(each["act"], at_baseline(model, "act", x * 0.5).mean(0))
    two = baseline_values(model, x, "act", baselines=[start, x * 0.5])
    assert_near(two["act"], (found["act"] + each["act"]) / 2)
    pair = seeded(TwoInputNet)
    inputs = (normal(5, 3), normal(5, 5, seed=1))
    assert_near(
        baseline_values(pair, inputs, "joint")["joint"], at_baseline(pair, "joint", tuple(0 * i for i in inputs))[0]
    )


def test_model_is_as_it_came() -> None:
    model, x = ConvNet().eval(), normal(4, 3, 8, 10).float()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()

    def broken(output: Tensor) -> Tensor:
        if len(output) > 4:
            raise KeyError("mine")
        return output[:, 0]

    unit_effects(model, [x], "fc", target=1)
    with pytest.raises(KeyError, match="mine"):
        unit_effects(model, [x], "fc", target=broken)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_bad_calls_name_the_argument() -> None:
    model, x = seeded(ConvNet), normal(4, 3, 8, 10)
    with pytest.raises(ValueError, match=r"value must be 'baseline' or 'zero', got 'mean'"):
        unit_effects(model, [x], "fc", target=1, value="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="loader gives no batches"):
        unit_effects(model, [], "fc", target=1)
    with pytest.raises(ValueError, match="target='label' needs labels"):
        unit_effects(model, [x], "fc", target="label")
    with pytest.raises(ValueError, match=r"units of 'fc' holds 7, but it has 7 \(0 to 6\)"):
        unit_effects(model, [x], "fc", target=1, units=[7])
    with pytest.raises(ValueError, match="expected a list of whole numbers, at least one"):
        unit_effects(model, [x], "fc", target=1, units=[])
    with pytest.raises(ValueError, match="units is a list, but there are several layers"):
        unit_effects(model, [x], ["fc", "act"], target=1, units=[1])
    with pytest.raises(UnknownLayerError, match="No layer 'fcc' here"):
        unit_effects(model, [x], "fc", target=1, units={"fcc": [1]})
    with pytest.raises(ValueError, match="no module named 'fcc'"):
        unit_effects(model, [x], "fcc", target=1)
    with pytest.raises(ValueError, match="internal_batch_size is 0; expected at least 1"):
        unit_effects(model, [x], "fc", target=1, internal_batch_size=0)
    with pytest.raises(TypeError, match=r"internal_batch_size is 2\.0; expected a whole number"):
        unit_effects(model, [x], "fc", target=1, internal_batch_size=2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the model is in train mode: norm"):
        unit_effects(model.train(), [x], "fc", target=1)


def test_progress_counts_examples(capsys: pytest.CaptureFixture[str]) -> None:
    model, x = seeded(ResidualNet), normal(4, 7)
    unit_effects(model, [x], "stem", target=1)
    assert capsys.readouterr().err == ""
    unit_effects(model, [x], "stem", target=1, progress=True)
    assert "4example" in capsys.readouterr().err


def test_effects_are_a_result_of_their_own() -> None:
    found = unit_effects(seeded(ResidualNet), [normal(2, 7)], "stem", target=1)
    assert isinstance(found, UnitEffects)
    assert not found["stem"].requires_grad
    assert found.value == "baseline"
