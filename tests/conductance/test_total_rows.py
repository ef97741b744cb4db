"""Rows must depend on themselves alone: models that are random, mix their rows or fix their number are found out."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from conductance import ConductanceError, total_conductance
from conductance.hooks import list_points
from tests.helpers import normal, seeded
from tests.hooks.nets import Lambda

X = normal(3, 4, seed=1)
X[-1] = -X[-1].abs() - 1
X[0] = X[0].abs()


def net(function: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    return seeded(lambda: Lambda(function, fc=nn.Linear(4, 5), head=nn.Linear(5, 3))).double().eval()


MIXING: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a decision on the batch": lambda m, x: m.head(m.fc(x).tanh() if x.sum() > 0 else m.fc(x).sin()),
    "the largest of the batch": lambda m, x: m.head((y := m.fc(x)) / y.abs().max()),
    "the mean of the batch": lambda m, x: m.head(((y := m.fc(x)) - y.mean(0)).tanh()),
    "batch statistics": lambda m, x: m.head(functional.batch_norm(m.fc(x), None, None, training=True)),
    "a softmax over the batch": lambda m, x: m.head(m.fc(x).softmax(0)),
}


@pytest.mark.parametrize("examples", [1, 2, 3])
@pytest.mark.parametrize("name", MIXING)
def test_rows_that_influence_each_other_are_refused(name: str, examples: int) -> None:
    if examples == 1 and name == "a decision on the batch":
        pytest.skip("its only path is decided upon alike everywhere")
    inputs = X[[0, -1, 1][:examples]]
    with pytest.raises(ConductanceError, match=r"rows of the model influence each other.*internal_batch_size=1"):
        total_conductance(net(MIXING[name]), inputs, "fc", target=0)


def test_rows_that_influence_each_other_may_be_run_alone_or_warned_about() -> None:
    model = net(MIXING["the largest of the batch"])
    alone = total_conductance(model, X, "fc", target=0, internal_batch_size=1, n_steps=5)
    single = total_conductance(model, X[1:2], "fc", target=0, internal_batch_size=1, n_steps=5)
    torch.testing.assert_close(alone["fc"][1:2], single["fc"], rtol=1e-12, atol=1e-14)
    with pytest.warns(UserWarning, match="influence each other"):
        total_conductance(model, X, "fc", target=0, on_train="warn", n_steps=5)


def test_hidden_randomness_is_named() -> None:
    model = net(lambda m, x: m.head(functional.dropout(m.fc(x), 0.3, training=True)))
    state = torch.get_rng_state()
    with pytest.raises(ConductanceError, match=r"the model is random.*training=self\.training"):
        total_conductance(model, X, "fc", target=0)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.warns(UserWarning, match="the model is random"):
        total_conductance(model, X, "fc", target=0, on_train="warn", n_steps=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_not_taken_for_rows_that_mix(dtype: torch.dtype) -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(40, 300), nn.GELU(), nn.Linear(300, 3))).to(dtype)
    upcast = Lambda(lambda m, x: m.net(x).float(), net=model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = total_conductance(upcast, normal(3, 40).to(dtype), target=0, n_steps=5)
    assert float(found.output_change.abs().max()) > 0.01


@pytest.mark.parametrize(("size", "batch"), [(1, 1), (3, 3), (2, 2)])
def test_a_model_with_a_fixed_batch_size_is_told(size: int, batch: int) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        output: Tensor = m.head(m.fc(x).reshape(size, 5).tanh())
        return output

    with pytest.raises(ConductanceError, match=r"runs on \d rows but not on \d .*batches of one size only"):
        total_conductance(net(forward), X[:batch], "fc", target=0)


def test_errors_of_the_model_itself_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        total_conductance(net(lambda m, x: m.head(x)), X, "fc", target=0)


@pytest.mark.parametrize("how", [{}, {"n_steps": 9}, {"n_steps": 9, "internal_batch_size": 4}], ids=str)
def test_a_graph_that_changes_between_calls_is_refused(how: dict[str, Any]) -> None:
    runs = 0

    def forward(m: Any, x: Tensor) -> Tensor:
        nonlocal runs
        runs += 1
        hidden = m.fc(x)
        hidden = hidden.detach() + 0 * x[:, :1] if runs == 5 else hidden
        output: Tensor = m.head(hidden.tanh())
        return output

    options = {"internal_batch_size": 2, "rtol": 1e-8, **how} if "n_steps" not in how else how
    if how == {"n_steps": 9}:
        options = {"n_steps": 9, "internal_batch_size": 9}
    with pytest.raises(ConductanceError, match="graph changes between calls: layer 'fc'"):
        total_conductance(net(forward), X, ["fc", "head"], target=0, **options)


@pytest.mark.parametrize(
    ("most", "rows"), [(None, [2, 3, 2, 1]), (3, [2, 3, 2, 1]), (2, [2, 1, 2, 1]), (1, [2, 1, 2, 1])]
)
def test_three_calls_try_a_model_with_two_numbers_of_rows_and_one_its_baseline(
    most: int | None, rows: list[int]
) -> None:
    sizes: list[int] = []

    def forward(m: Any, x: Tensor) -> Tensor:
        sizes.append(len(x))
        output: Tensor = m.head(m.fc(x).tanh())
        return output

    total_conductance(net(forward), X, target=0, n_steps=5, internal_batch_size=most)
    assert sizes[:4] == rows
    assert sum(sizes[4:]) == 5 * len(X)


def test_batch_norm_without_statistics_has_its_own_message() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3))
    model.double().eval()
    with pytest.raises(ValueError, match=r"1 \(BatchNorm1d\): batch norm without running statistics") as caught:
        total_conductance(model, X, target=0)
    assert "train mode" not in str(caught.value)


@pytest.mark.parametrize("how", [{"internal_batch_size": 1, "n_steps": 3}, {"rtol": 0.5}], ids=str)
def test_batch_norm_in_train_mode_runs_on_calls_of_one_row(how: dict[str, Any]) -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        total = total_conductance(model.train(), X[:1], target=0, on_train="warn", **how)
    assert total["0"].shape == (1, 5)
    assert total["0"].isfinite().all()


class Counting(nn.Module):
    """Counts its runs in a buffer, in place, and keeps the last input in another, replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.register_buffer("runs", torch.zeros(()))
        self.register_buffer("last", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        self.get_buffer("runs").add_(1)
        self.last = x.detach().mean(0)
        logits: Tensor = self.fc(x)
        return logits


@pytest.mark.parametrize("use", [total_conductance, list_points])
def test_buffers_are_put_back_in_eval_mode_too(use: Callable[..., Any]) -> None:
    model = seeded(Counting).double().eval()
    before = dict(model.named_buffers())
    use(model, X, target=0)
    for name, buffer in model.named_buffers():
        assert buffer is before[name]
        assert not buffer.any()


def test_an_interrupt_while_the_model_is_tried_leaves_it_as_it_was() -> None:
    def interrupted(m: Any, x: Tensor) -> Tensor:
        m.runs.add_(1)
        m.fc(x)
        raise KeyboardInterrupt

    model = net(interrupted).requires_grad_()
    model.register_buffer("runs", torch.zeros(()))
    with pytest.raises(KeyboardInterrupt):
        total_conductance(model, X, "fc", target=0)
    assert int(model.get_buffer("runs")) == 0
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class WithTable(nn.Module):
    """A network with a tensor that has no batch axis, and a dict as output."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.table = nn.Linear(4, 5), nn.Embedding(7, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits in a dict."""
        return {"logits": self.head((self.fc(x) + self.table(torch.arange(1)).sum(0)).tanh()), "extra": x}


def test_the_table_of_points_is_taken_as_layers() -> None:
    model = seeded(WithTable).double()
    table = list_points(model, X, target=0)
    total = total_conductance(model, X, table, target=0)
    assert {"fc", "head"} <= set(total)
    assert "table" in total.settings["left_out"]  # type: ignore[operator]
    some = total_conductance(model, X, [info for info in table if info.name == "fc"], target=0)
    torch.testing.assert_close(some["fc"], total_conductance(model, X, "fc", target=0)["fc"], rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="'table', which gave shape"):
        total_conductance(model, X, list(table), target=0)


def test_listing_takes_logits_of_a_dict_and_refuses_a_target_out_of_range() -> None:
    model = seeded(WithTable).double()
    assert [info.is_cut for info in list_points(model, X, target=2) if info.name in ("fc", "head")] == [True, True]
    with pytest.raises(ValueError, match=r"target: 3 is out of range for an output of shape \(3, 3\).*0 to 2"):
        list_points(model, X, target=3)


@pytest.mark.parametrize("inside", [False, True])
def test_listing_works_in_inference_mode(inside: bool) -> None:
    model = seeded(WithTable).double()
    expected = repr(list_points(model, X, target=0))
    with torch.inference_mode():
        inputs = X.clone() if inside else X
        assert repr(list_points(model, inputs, target=0)) == expected
