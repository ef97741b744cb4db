"""Results of weights: sums over batches, files, tables, what an interrupt leaves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conductance as cd
from conductance import ConvergenceWarning, WeightConductance, weight_conductance
from conductance.errors import UnknownLayerError
from conductance.weight_results import WeightInfo
from tests.conductance.test_total_errors import assert_untouched
from tests.helpers import ConvNet, normal, seeded

X = normal(3, 3, 8, 10)


@pytest.fixture(scope="module")
def found() -> WeightConductance:
    return weight_conductance(seeded(ConvNet), X, target=1, n_steps=5)


def test_files_give_back_every_bit(found: WeightConductance, tmp_path: Path) -> None:
    found.save(tmp_path / "weights.safetensors")
    for read in (cd.load(tmp_path / "weights.safetensors"), WeightConductance.load(tmp_path / "weights.safetensors")):
        assert isinstance(read, WeightConductance)
        assert list(read) == list(found) == ["conv", "fc", "head"]
        for layer in found:
            assert torch.equal(read[layer], found[layer])
            assert torch.equal(read.error_parts[layer], found.error_parts[layer])
            assert torch.equal(read.error(layer), found.error(layer))
            assert read[layer].dtype == torch.float64
        assert read.info == found.info
        for name in ("count", "converged", "evaluations", "output_change", "unattributed", "settings"):
            assert getattr(read, name) == getattr(found, name)
    assert found.count == 3
    assert found.settings["quantity"] == "weight_conductance"


def test_a_damaged_file_is_told(found: WeightConductance, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    found.save(tmp_path / "whole")
    with safe_open(tmp_path / "whole", framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is not iterable
    missing = {key: one for key, one in tensors.items() if key != "conductance/fc"}
    turned = {**tensors, "conductance/fc": tensors["conductance/fc"].T.contiguous()}
    for bad in (missing, turned):
        save_file(bad, tmp_path / "bad", metadata=metadata)
        with pytest.raises(ValueError, match="damaged"):
            cd.load(tmp_path / "bad")
    total = cd.total_conductance(seeded(ConvNet), X, "fc", target=1, n_steps=3)
    total.save(tmp_path / "total")
    with pytest.raises(ValueError, match="another kind of file"):
        WeightConductance.load(tmp_path / "total")


def test_tables(found: WeightConductance) -> None:
    table = found.to_dataframe()
    assert list(table.columns) == ["layer", "index", "conductance", "error"]
    assert len(table) == sum(found[layer].numel() for layer in found)
    for row in table.iloc[::97].itertuples():
        assert row.conductance == float(found[str(row.layer)][row.index])  # type: ignore[index]
        assert row.error == float(found.error(str(row.layer))[row.index])  # type: ignore[index]
    top = found.to_dataframe("conv", top=4)
    assert set(top["layer"]) == {"conv"}
    expected = found["conv"].flatten()[found["conv"].abs().flatten().argsort(descending=True)[:4]]
    assert top["conductance"].tolist() == expected.tolist()
    assert [float(found["conv"][index]) for index in top["index"]] == expected.tolist()
    assert len(found.to_dataframe(top=4)) == 12
    assert len(found.to_dataframe("head", top=10**6)) == found["head"].numel()
    with pytest.raises(ValueError, match="top is 0"):
        found.to_dataframe(top=0)
    with pytest.raises(TypeError, match=r"top is 2\.5"):
        found.to_dataframe(top=2.5)  # type: ignore[arg-type]


def test_it_prints_its_sizes_and_names_what_is_unknown(found: WeightConductance) -> None:
    assert repr(found) == f"WeightConductance(3 layers, 3 examples, {found.converged} converged)"
    ways: list[Any] = [
        found.__getitem__,
        found.mean,
        found.error,
        found.per_output,
        found.per_input,
        found.to_dataframe,
    ]
    for way in ways:
        with pytest.raises(UnknownLayerError, match=r"No layer 'cnov' here\. Did you mean 'conv'"):
            way("cnov")


def test_only_like_results_add_up(found: WeightConductance) -> None:
    both = found + found
    for layer in found:
        assert torch.equal(both[layer], 2 * found[layer])
        assert torch.equal(both.mean(layer), found.mean(layer))
        assert torch.equal(both.error_parts[layer], 2 * found.error_parts[layer])
    assert (both.count, both.evaluations) == (6, 2 * found.evaluations)
    assert both.output_change == 2 * found.output_change
    assert sum([found]) is found
    model = seeded(ConvNet)
    fewer = weight_conductance(model, X, ["conv", "fc"], target=1, n_steps=2)
    with pytest.raises(ValueError, match=r"different layers.*'head' is Linear \(4, 7\) and missing"):
        found + fewer
    with pytest.raises(ValueError, match=r"'head' is missing and Linear \(4, 7\)"):
        fewer + found
    other = weight_conductance(seeded(lambda: nn.Sequential(nn.Linear(4, 3))), normal(2, 4), target=1, n_steps=2)
    with pytest.raises(ValueError, match=r"'conv' is Conv2d \(5, 3, 2, 5\) and missing"):
        found + other
    with pytest.raises(TypeError):
        found + 1  # type: ignore[operator]


def test_a_result_without_examples_adds_nothing(found: WeightConductance) -> None:
    nothing = WeightConductance(
        conductance={name: torch.zeros_like(one) for name, one in found.conductance.items()},
        error_parts={name: torch.zeros_like(one) for name, one in found.error_parts.items()},
        info=found.info, count=0, converged=0, evaluations=0, output_change=0.0, unattributed=0.0, settings={},
    )  # fmt: skip
    assert float(nothing.mean("fc").abs().max()) == 0.0
    both = nothing + found
    assert (both.count, both.converged) == (found.count, found.converged)
    assert all(torch.equal(both.mean(layer), found.mean(layer)) for layer in found)


def test_shapes_have_to_fit() -> None:
    info = WeightInfo("fc", "Linear", (2, 3), input_first=False, groups=1)
    with pytest.raises(ValueError, match="'fc' has tensors of shapes"):
        WeightConductance(
            conductance={"fc": torch.zeros(3, 2)}, error_parts={"fc": torch.zeros(2, 2, 3)}, info={"fc": info},
            count=1, converged=1, evaluations=1, output_change=0.0, unattributed=0.0, settings={},
        )  # fmt: skip


def _interrupted(
    after: int, batch: int, activation: type[nn.Module], rows: int
) -> tuple[WeightConductance, nn.Module, Tensor]:
    """A run that the user interrupts at a call of the target."""
    calls = 0

    def target(output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > after:
            raise KeyboardInterrupt
        return output[:, 0]

    model = seeded(lambda: nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 3))).requires_grad_()
    inputs = normal(batch, 4, seed=2)
    found = weight_conductance(model, inputs, target=target, internal_batch_size=rows, n_steps=5, atol=1e3)
    assert_untouched(model)
    return found, model, inputs


@pytest.mark.parametrize(("activation", "rows", "counts"), [(nn.Tanh, 10, 7), (nn.ReLU, 8, 3)])
def test_an_interrupt_in_the_second_run_keeps_what_is_finished(
    activation: type[nn.Module], rows: int, counts: int
) -> None:
    """Two examples a call, five nodes each; in the second case one and a half, so that some are half done."""
    seen = set()
    for after in range(8, 40):
        found, model, inputs = _interrupted(after, 12, activation, rows)
        seen.add(found.count)
        if found.count == 12:
            break
        assert found.settings["interrupted"] is True
        if found.count == 0:
            assert found.converged == 0
            assert float(found["0"].abs().max()) == 0.0
            continue
        alone = [weight_conductance(model, x[None], target=0, n_steps=5, atol=1e3) for x in inputs]
        alone.sort(key=lambda one: -one.converged)  # those that total conductance settled come first
        first = sum(alone[: found.count])
        assert isinstance(first, WeightConductance)
        assert found.converged == first.converged
        assert found.output_change == pytest.approx(first.output_change, rel=1e-12)
        for layer in first:
            assert float(first[layer].abs().sum()) > 1e-3
            torch.testing.assert_close(found[layer], first[layer], rtol=1e-10, atol=1e-12)
    assert {0, 12} <= seen
    assert len(seen) >= counts


def test_an_interrupt_in_the_first_run_keeps_what_is_finished() -> None:
    calls: list[int] = []
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))
    inputs = normal(40, 4, seed=2)
    interrupted = False

    def target(output: Tensor) -> Tensor:
        nonlocal interrupted
        calls.append(len(output))
        if len(calls) == 30:
            interrupted = True
            raise KeyboardInterrupt
        return output[:, 0]

    with pytest.warns(ConvergenceWarning, match="interrupted"):
        found = weight_conductance(model, inputs, target=target, internal_batch_size=16, rtol=1e-4)
    assert interrupted
    assert 0 < found.count < 40
    assert len(calls) < 90  # nothing new was begun
    first = weight_conductance(model, inputs[: found.count], target=0, rtol=1e-4)
    assert found.output_change == pytest.approx(first.output_change, rel=1e-9)
    for layer in first:
        torch.testing.assert_close(found[layer], first[layer], rtol=1e-3, atol=1e-4)
