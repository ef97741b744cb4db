"""Bad input is named, what is missed is said, and the model is left as it came."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance import ConductanceError, ConvergenceWarning, NeuronConductance, neuron_conductance
from tests.conductance.neuron_nets import Mlp, assert_same, case, one, tensor
from tests.conductance.test_total_errors import CASES, X, assert_untouched, net
from tests.helpers import normal, seeded
from tests.wrong_answers import wrong_answer

MODES = ("reverse", "forward")


@pytest.mark.parametrize(("changed", "kind", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_bad_arguments_are_named(changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    """All arguments that total conductance knows."""
    model = net()
    arguments: dict[str, Any] = {"inputs": X, "target": 0, "layers": "act", **changed}
    with pytest.raises(kind, match=message):
        neuron_conductance(model, arguments.pop("inputs"), arguments.pop("layers"), **arguments)
    assert_untouched(model)


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"mode": "fast"}, ValueError, "mode must be 'auto', 'reverse' or 'forward', got 'fast'"),
        ({"neurons": 5}, ValueError, "neurons: layer 'act' has units 0 to 4, got 5"),
        ({"feature_groups": "pixel"}, ValueError, "feature_groups is 'pixel'"),
    ],
)
def test_its_own_arguments_are_named_before_the_work(changed: Any, kind: type[Exception], message: str) -> None:
    model, calls = net(), [0]
    model.register_forward_pre_hook(lambda _module, _args: calls.__setitem__(0, calls[0] + 1))
    with pytest.raises(kind, match=message):
        neuron_conductance(model, X, "act", target=0, **changed)
    assert calls[0] <= 4  # the model and its baseline are tried, no more


def test_a_unit_is_looked_up_in_every_layer() -> None:
    with pytest.raises(ValueError, match="neurons: layer 'head' has units 0 to 2, got 4"):
        neuron_conductance(net(), X, ["hidden", "head"], target=0, neurons=4)


class Aside(nn.Module):
    """A layer that the target does not use, and one that does not depend on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.unused, self.still = nn.Linear(4, 5), nn.Linear(4, 6), nn.Linear(2, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.fc(x) * torch.sigmoid(self.still(x.new_ones(len(x), 2)))
        return self.head(torch.tanh(hidden)), self.unused(x)


@pytest.mark.filterwarnings("ignore::conductance.ZeroConductanceWarning")
@pytest.mark.parametrize("mode", MODES)
def test_layers_without_a_part_in_it_have_zero(mode: Any) -> None:
    found = neuron_conductance(
        seeded(Aside), X, ["fc", "unused", "still"], target=lambda output: output[0][:, 1], mode=mode, rtol=1e-4
    )
    assert isinstance(found, dict)
    assert float(tensor(found["fc"]).abs().sum()) > 1e-2
    for layer in ("unused", "still"):
        assert float(tensor(found[layer]).abs().max()) == 0.0
        assert float(found[layer].total.abs().max()) == 0.0
        assert found[layer].error.tolist() == [0.0, 0.0]
        assert found[layer].converged.all()
    assert not found["unused"].info.used
    assert not found["still"].info.moves
    alone = one(seeded(Aside), "unused", inputs=X, target=lambda output: output[0][:, 1], mode=mode, n_steps=3)
    assert float(tensor(alone).abs().max()) == 0.0


@pytest.mark.parametrize("mode", MODES)
def test_a_spent_budget_warns_and_is_kept(mode: Any) -> None:
    model = seeded(lambda: Mlp(nn.ReLU))
    arguments: dict[str, Any] = {"inputs": normal(3, 5), "target": 1, "rtol": 1e-9, "mode": mode}
    for budget in (14, 20):
        with pytest.warns(ConvergenceWarning, match=r"of 3.*rtol=1e-09.* budget.*'act1' \d.*raise max_evaluations"):
            found = one(model, "act1", **arguments, max_evaluations=budget)
        assert "budget" in found.status
        assert found.converged.tolist() == [status == "ok" for status in found.status]
        assert int(found.evaluations.max()) <= budget
        assert int(found.evaluations.max()) > budget // 2
        assert bool((found.error[~found.converged] > 1e-9).all())


def test_what_the_second_run_misses_is_said_too() -> None:
    """One neuron of little weight: total conductance of the layer is fine long before it is."""
    model = seeded(lambda: Mlp(nn.ReLU))
    first = model.get_submodule("fc2")
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        first.weight[:, 4] *= 1e-5
    arguments: dict[str, Any] = {"inputs": normal(9, 5, seed=4), "target": 1, "rtol": 1e-3, "neurons": 4}
    enough = one(model, "act1", **arguments, max_evaluations=20_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        exact = one(model, "act1", **{**arguments, "rtol": 1e-8}, max_evaluations=200_000)
    for example in enough.converged.nonzero().flatten().tolist():
        if float(tensor(exact)[example].abs().sum()) > 0:
            assert_same(1e6 * tensor(enough)[example], 1e6 * tensor(exact)[example], 2e-3)
    short = int(enough.evaluations.max()) // 2
    with pytest.warns(ConvergenceWarning, match="budget"):
        found = one(model, "act1", **arguments, max_evaluations=short)
    missed = [status == "budget" for status in found.status]
    assert any(missed)
    assert found.converged.tolist() == [not one for one in missed]
    for example, gone in enumerate(missed):
        assert (float(found.error[example]) > 1e-3) == gone


@pytest.mark.parametrize("name", ["round", "sign", "routed"])
def test_jumps_are_told_as_by_total_conductance(name: str) -> None:
    from conductance import total_conductance

    model, inputs = wrong_answer(name), normal(8, 6, seed=5, scale=1.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        total = total_conductance(model, inputs, "fc", target=0, max_evaluations=2000)
        found = one(model, "fc", inputs=inputs, target=0, max_evaluations=4000)
    same = [mine == other for mine, other in zip(found.status, total.status, strict=True)]
    assert sum(same) >= 7
    assert "jump" in found.status
    for example, status in enumerate(found.status):
        assert bool(found.converged[example]) == (status == "ok")
        assert bool(found.jumps[example]) == (status == "jump")
    torch.testing.assert_close(found.unattributed, total.unattributed, rtol=0.05, atol=0.02)
    with pytest.warns(ConvergenceWarning, match="F jumps along the path"):
        one(model, "fc", inputs=inputs, target=0, max_evaluations=4000)


def test_a_wrong_gradient_is_told() -> None:
    model, inputs = wrong_answer("straight-through"), normal(8, 6, seed=5, scale=1.5)
    with pytest.warns(ConvergenceWarning, match="gradient is not the derivative of F"):
        found = one(model, "fc", inputs=inputs, target=0, max_evaluations=4000)
    assert "gradient" in found.status


def test_a_fixed_number_of_nodes_is_judged_but_not_warned_of() -> None:
    coarse = one(case("relu").model, "act1", **case("relu").whole, n_steps=3)
    fine = one(case("gelu").model, "act1", **case("gelu").whole, n_steps=17)
    assert coarse.status == ("budget",) * 3
    assert not coarse.converged.any()
    assert bool((coarse.error > 1e-2).all())
    assert fine.status == ("ok",) * 3
    assert bool((fine.error < 1e-2).all())


@pytest.mark.parametrize("mode", MODES)
def test_an_interrupted_second_run_returns_what_is_finished(mode: Any) -> None:
    model, inputs = net(), normal(12, 4, seed=2)
    calls = 0

    def target(output: Tensor, limit: int = 0) -> Tensor:
        nonlocal calls
        calls += 1
        if limit and calls > limit:
            raise KeyboardInterrupt
        return output[:, 0]

    arguments: dict[str, Any] = {"inputs": inputs, "internal_batch_size": 16, "rtol": 1e-3, "mode": mode}
    whole = one(model, "act", **arguments, target=target)
    every = calls
    calls = 0
    with pytest.warns(ConvergenceWarning, match="interrupted"):
        found = one(model, "act", **arguments, target=lambda output: target(output, limit=every - 3))
    done = [status == "ok" for status in found.status]
    assert 0 < sum(done) < 12
    for example, finished in enumerate(done):
        if finished:
            assert_same(tensor(found)[example], tensor(whole)[example], 1e-9)
        else:
            assert found.status[example] == "interrupted"
            for part in (tensor(found), found.total, found.total_error, found.error, found.gap):
                assert part[example].isnan().all()
            assert not found.converged[example]
    assert found.settings["interrupted"] is True
    assert whole.settings["interrupted"] is False
    assert "interrupted" not in whole.status
    assert found.to_dataframe()["conductance"].isna().sum() == (12 - sum(done)) * 5 * 4
    assert not found.summary().isna().any(axis=None)
    assert repr(found).startswith("NeuronConductance('act', 5 neurons × 4 features, 12 examples")
    assert_untouched(model)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fail", [0, 1, 2, 5, 8, 11])
def test_nothing_is_left_behind_by_an_error(fail: int, mode: Any) -> None:
    calls = 0

    class Failing(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls > fail:
                raise RuntimeError("mine")
            return h.sin()

    model = seeded(lambda: Mlp(Failing)).requires_grad_()
    with pytest.raises(RuntimeError, match="mine"):
        one(model, "act1", inputs=normal(4, 5), target=1, rtol=1e-8, mode=mode, internal_batch_size=9)
    assert_untouched(model)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_left_behind_by_success(mode: Any) -> None:
    model, x = net(), X.clone().requires_grad_()
    state = torch.get_rng_state()
    found = one(model, "act", inputs=x, target=0, mode=mode)
    assert isinstance(found, NeuronConductance)
    assert_untouched(model)
    assert x.requires_grad
    assert x.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    assert not tensor(found).requires_grad
    assert torch.is_grad_enabled()


def test_a_derivative_that_is_not_finite_is_taken_inside_or_an_error() -> None:
    """``√x`` has no derivative at zero."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tap = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.tap(x.sqrt()).sum(1, keepdim=True)
            return output

    x = torch.tensor([[1.0, 4.0]], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = one(Root(), "tap", inputs=x, target=0, rtol=1e-3)
    expected = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]], dtype=torch.float64)
    torch.testing.assert_close(tensor(found), expected, rtol=1e-2, atol=1e-2)
    with pytest.raises(ConductanceError, match="NaN or infinity"):
        one(Root(), "tap", inputs=x, target=0, n_steps=3)
