"""Bad input gets a clear error that names the argument, before the long work; the model is left as it came."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance import ConductanceError, ConvergenceWarning, total_conductance
from tests.helpers import ConvNet, normal, seeded


class Net(nn.Module):
    """Four features to three logits, with a module that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 5)
        self.act = nn.Tanh()
        self.head = nn.Linear(5, 3)
        self.idle = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.act(self.hidden(x)))
        return logits


X = normal(2, 4, seed=1)
NAN = X.clone().index_fill_(0, torch.tensor([1]), float("nan"))


def net() -> Net:
    built = seeded(Net).double()
    assert isinstance(built, Net)
    return built.requires_grad_()


CASES: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("unknown layer", {"layers": "hiden"}, ValueError, r"layers.*hiden.*hidden"),
    ("layer never run", {"layers": "idle"}, ValueError, r"layers names 'idle', which never ran"),
    ("no layers", {"layers": []}, ValueError, "layers"),
    ("foreign module", {"layers": nn.Linear(2, 2)}, ValueError, "layers"),
    ("layer of a wrong type", {"layers": 3}, TypeError, "layers"),
    ("target missing", {"target": None}, ValueError, r"target is missing.*\(batch, 3\)"),
    ("target too large", {"target": 3}, ValueError, r"target 3 is out of range.*0 … 2"),
    ("target too small", {"target": -4}, ValueError, r"target -4 is out of range"),
    ("target of wrong length", {"target": [0, 1, 2]}, ValueError, "target has 3 entries for 2 examples"),
    ("target with too many axes", {"target": (0, 1)}, ValueError, "target gives 2 indices"),
    ("target a bool", {"target": True}, TypeError, "target is True"),
    ("target a float", {"target": 1.0}, TypeError, "target is 1.0"),
    ("target a float tensor", {"target": torch.ones(2)}, TypeError, "target holds torch.float32"),
    ("target not scalar", {"target": lambda out: out}, ValueError, r"target returned shape \(2, 3\) for 2 rows"),
    ("target a mean", {"target": lambda out: out.mean()}, ValueError, r"target returned shape \(\)"),
    ("target an int tensor", {"target": lambda out: out.argmax(1)}, TypeError, "target returned torch.int64"),
    ("baseline of wrong shape", {"baselines": torch.zeros(2, 5)}, ValueError, r"baseline of inputs\[0\] has shape"),
    ("baseline NaN", {"baselines": float("nan")}, ValueError, r"baseline of inputs\[0\] holds NaN"),
    ("baseline of no name", {"baselines": "zero"}, ValueError, "baselines is 'zero'; expected one of 'zeros'"),
    ("no baselines", {"baselines": []}, ValueError, "baselines is an empty list"),
    ("too many baselines in a tuple", {"baselines": (0, 0)}, ValueError, "baselines is a tuple of 2"),
    ("integer inputs", {"inputs": torch.ones(2, 4, dtype=torch.long)}, ValueError, "inputs holds no floating-point"),
    ("array inputs", {"inputs": [[1.0] * 4]}, ValueError, "inputs holds no floating-point"),
    ("string inputs", {"inputs": "x"}, TypeError, "inputs is a str"),
    ("empty batch", {"inputs": torch.zeros(0, 4).double()}, ValueError, "inputs is an empty batch"),
    ("number as input", {"inputs": torch.tensor(1.0)}, ValueError, "has no batch axis"),
    ("NaN inputs", {"inputs": NAN}, ValueError, r"inputs\[0\] holds NaN"),
    ("infinite inputs", {"inputs": X / 0}, ValueError, r"inputs\[0\] holds NaN or infinity"),
    ("rtol zero", {"rtol": 0.0}, ValueError, "rtol is 0.0"),
    ("rtol negative", {"rtol": -1e-3}, ValueError, "rtol is -0.001"),
    ("rtol NaN", {"rtol": float("nan")}, ValueError, "rtol is nan"),
    ("rtol a string", {"rtol": "small"}, TypeError, "rtol is a str"),
    ("atol negative", {"atol": -1.0}, ValueError, "atol is -1.0"),
    ("rtol and n_steps", {"rtol": 1e-2, "n_steps": 8}, ValueError, "rtol=0.01 and n_steps=8"),
    ("one step", {"n_steps": 1}, ValueError, "n_steps is 1"),
    ("half a step", {"n_steps": 2.5}, TypeError, "n_steps is 2.5"),
    ("no rows", {"internal_batch_size": 0}, ValueError, "internal_batch_size is 0"),
    ("no evaluations", {"max_evaluations": 0}, ValueError, "max_evaluations is 0"),
    ("on_train unknown", {"on_train": "eval"}, ValueError, "on_train"),
]


@pytest.mark.parametrize(("changed", "kind", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_bad_arguments_are_named(changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    model = net()
    arguments: dict[str, Any] = {"inputs": X, "target": 0, **changed}
    with pytest.raises(kind, match=message):
        total_conductance(model, arguments.pop("inputs"), **{"layers": ["hidden", "act"], **arguments})
    assert_untouched(model)


def assert_untouched(model: nn.Module) -> None:
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    for parameter in model.parameters():
        assert parameter.requires_grad
        assert parameter.grad is None


class Sick(nn.Module):
    """A network that goes wrong at one layer, in the way of a function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.middle, self.after = nn.Identity(), nn.Softmax(1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.last(self.after(self.middle(self.function(self.first(x)))))
        return logits


def test_nan_in_an_activation_names_the_layer() -> None:
    model = seeded(lambda: Sick(lambda h: h / (h - h))).double().requires_grad_()
    with pytest.raises(ConductanceError, match=r"activation of layer 'middle' holds NaN.*example 0"):
        total_conductance(model, X, ["first", "middle", "last"], target=0)
    assert_untouched(model)


def test_nan_in_a_gradient_names_the_layer() -> None:
    model = seeded(lambda: Sick(lambda h: (h * 0).sqrt() + h)).double()
    with pytest.raises(ConductanceError, match="gradient at layer 'first' holds NaN"):
        total_conductance(model, X, ["first", "middle", "last"], target=0)


def test_an_infinite_slope_at_the_baseline_is_taken_inside() -> None:
    model = nn.Sequential(nn.Identity())
    total = total_conductance(model, X.abs(), target=lambda out: out.sqrt().sum(1), rtol=1e-3)
    assert total.converged.all()
    torch.testing.assert_close(total["0"], X.abs().sqrt(), rtol=2e-3, atol=1e-3)


def test_a_model_that_detaches_is_refused() -> None:
    model = seeded(lambda: Sick(lambda h: h.detach())).double()
    with pytest.raises(ConductanceError, match="detaches its output"):
        total_conductance(model, X, target=0)


def test_train_mode_is_refused_or_warned_about() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 3))).double()
    model.train()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    with pytest.raises(ValueError, match=r"train mode: 1 \(BatchNorm1d\), 2 \(Dropout\).*eval\(\)"):
        total_conductance(model, X, target=0)
    with pytest.warns(UserWarning, match="depend on chance"):
        total_conductance(model, X, target=0, n_steps=3, on_train="warn")
    assert model.training
    for name, value in model.named_buffers():
        assert torch.equal(value, buffers[name])


def test_hidden_dropout_is_found_too() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            attended: Tensor = self.attention(x, x, x)[0]
            return attended.mean(1)

    with pytest.raises(ValueError, match=r"train mode: attention \(MultiheadAttention\)"):
        total_conductance(Attends().double().train(), normal(2, 3, 4), target=0)


def test_an_infinity_that_the_target_does_not_show_names_the_layer() -> None:
    mask = torch.tensor([False, True, False, False, False])
    model = Sick(lambda h: h.masked_fill(mask, -torch.inf)).double()
    target = lambda out: out[:, 0]  # noqa: E731
    with pytest.raises(ConductanceError, match="layer 'middle' holds NaN or infinity that the target does not show"):
        total_conductance(model, X, ["first", "middle"], target=target)


def test_a_model_that_mixes_rows_is_refused() -> None:
    model = Sick(torch.tanh).double()
    with pytest.raises(ValueError, match=r"target gave shape \(3,\) for 2 rows"):
        total_conductance(lambda x: model(x).mean(0), X, [model.first], target=None)


def test_a_spent_budget_warns_and_names_layers_and_error() -> None:
    model = seeded(ConvNet).double()
    x = normal(2, 3, 8, 10, seed=3)
    with pytest.warns(ConvergenceWarning, match=r"2 of 2 examples.*rtol=1e-08.*2 budget.*layer: '\w+' \d.*raise max"):
        total = total_conductance(model, x, target=0, rtol=1e-8, max_evaluations=12)
    assert total.status == ("budget", "budget")
    assert not total.converged.any()
    assert (total.evaluations <= 12).all()


def test_an_interrupted_run_returns_what_is_finished() -> None:
    calls = 0

    def target(output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise KeyboardInterrupt
        return output[:, 0]

    model, x = net(), normal(40, 4, seed=2)
    with pytest.warns(ConvergenceWarning, match="interrupted"):
        total = total_conductance(model, x, ["hidden", "act"], target=target, internal_batch_size=16, rtol=1e-4)
    finished = [status == "ok" for status in total.status]
    assert 0 < sum(finished) < 40
    whole = total_conductance(model, x, ["hidden", "act"], target=0, internal_batch_size=16, rtol=1e-4)
    for example, done in enumerate(finished):
        if done:
            torch.testing.assert_close(total["act"][example], whole["act"][example], rtol=1e-10, atol=1e-12)
        else:
            assert total.status[example] == "interrupted"
            assert total["act"][example].isnan().all()
    assert total.settings["interrupted"] is True
    assert_untouched(model)


@pytest.mark.parametrize("stage", ["forward", "target"])
def test_errors_of_the_user_pass_through_and_leave_nothing_behind(stage: str) -> None:
    calls = 0

    def fails(value: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise RuntimeError("mine")
        return value

    model = seeded(lambda: Sick(fails if stage == "forward" else torch.sin)).double().requires_grad_()
    target = 0 if stage == "forward" else lambda out: fails(out).sin()[:, 0]
    with pytest.raises(RuntimeError, match="mine"):
        total_conductance(model, 3 * X, target=target, rtol=1e-6, internal_batch_size=4)
    assert_untouched(model)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(mode: Any) -> None:
    model = net()
    with mode():
        inside = total_conductance(model, X.clone(), "act", target=1, rtol=1e-6)
    outside = total_conductance(model, X, "act", target=1, rtol=1e-6)
    assert torch.equal(inside["act"], outside["act"])
    assert not outside["act"].requires_grad
    assert float(outside["act"].abs().sum()) > 0.1


def test_no_warning_where_all_is_well() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert total_conductance(net(), X, target=0, rtol=1e-6).converged.all()


class WithPositions(nn.Module):
    """A network with a table that has no batch axis, as position embeddings have."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(4, 5)
        self.hidden, self.head, self.idle = nn.Linear(4, 5), nn.Linear(5, 3), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        table = self.positions(torch.arange(4)[None])
        logits: Tensor = self.head(torch.tanh(self.hidden(x) + table.sum(1)))
        return logits


@pytest.mark.parametrize("layers", [None, "*", [nn.Linear, nn.Embedding, nn.Dropout]])
def test_what_has_no_batch_or_never_runs_is_left_out_unless_named(layers: Any) -> None:
    model = seeded(WithPositions).double()
    total = total_conductance(model, X, layers, target=0, rtol=1e-6)
    assert total.layers == ["hidden", "head"]
    assert set(total.settings["left_out"]) == {"idle", "positions"}  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'positions', which gave shape \(1, 4, 5\) for 2 rows"):
        total_conductance(model, X, ["positions", "hidden"], target=0)


def test_converged_means_that_the_error_shown_is_within_the_tolerance() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))).float()
    for rtol in (1e-5, 1e-2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            total = total_conductance(model, normal(20, 4, seed=5).float(), target=0, rtol=rtol)
        assert total.converged.any() or rtol < 1e-4
        for layer in total:
            assert (total.error[layer][total.converged] <= rtol).all()
