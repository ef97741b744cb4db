"""All zeros: each of the known causes is told from the others, and nothing is said where all is well."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import conductance as cd
from conductance import ZeroConductanceWarning, total_conductance
from tests.helpers import normal, seeded

X = normal(3, 4)


def net() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))


def raised(by: float, after: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A target of the logits with the first of them raised."""
    return lambda logits: after(logits + by * torch.eye(3, dtype=logits.dtype)[0])


SATURATED: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("saturated softmax", raised(200, lambda logits: logits.softmax(1)[:, 0])),
    ("saturated softmax", raised(40, lambda logits: logits.softmax(-1)[:, 1])),
    ("saturated log-softmax", raised(90, lambda logits: -logits.log_softmax(1)[:, 0])),
    ("saturated sigmoid", raised(-50, lambda logits: torch.sigmoid(logits[:, 0]))),
    ("saturated sigmoid", raised(30, lambda logits: 2 * torch.sigmoid(logits)[:, 0] - 1)),
    ("saturated tanh", raised(30, lambda logits: torch.tanh(logits)[:, 0])),
]


@pytest.mark.filterwarnings("ignore:.*see .diagnosis:conductance.ConvergenceWarning")  # F rounds to 0, its gradient not
@pytest.mark.parametrize(("cause", "target"), SATURATED)
@pytest.mark.parametrize("n_steps", [None, 5])
def test_all_zeros_of_a_saturated_target_suggest_the_logits(
    cause: str, target: Callable[[Tensor], Tensor], n_steps: int | None
) -> None:
    with pytest.warns(ZeroConductanceWarning, match=rf"3 of 3 examples\. {cause}.*explain.*\(the logits\)"):
        total = total_conductance(net(), X, target=target, n_steps=n_steps)
    assert float(total["1"].abs().max()) < 1e-6
    assert len(total.diagnosis) == 1
    assert total.diagnosis[0].startswith(cause)
    assert repr(total).endswith(f", {cause})")
    assert cause in total._repr_html_()
    logits = total_conductance(net(), X, target=0)
    assert float(logits["1"].abs().max()) > 0.1
    assert logits.diagnosis == ()


class Parts(nn.Module):
    """Layers of which each is zero for another cause, beside one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.good, self.head, self.aux = nn.Linear(4, 5), nn.Linear(5, 2), nn.Linear(5, 3)
        self.constant, self.before, self.behind = nn.Linear(2, 5), nn.Linear(4, 5), nn.Linear(4, 5)
        self.dead, self.relu = nn.Linear(4, 5), nn.ReLU()
        self.register_buffer("fixed", torch.tensor([[1.0, 2.0]]))
        nn.init.constant_(self.dead.bias, -100.0)

    def forward(self, x: Tensor) -> Tensor:
        good = torch.tanh(self.good(x))
        self.aux(good)
        constant = self.constant(self.get_buffer("fixed").expand(len(x), -1).to(x))
        before = self.before(x.detach())
        behind = self.behind(x).detach()
        output: Tensor = self.head(good * constant + 1e-3 * before + 1e-3 * behind + self.relu(self.dead(x)))
        return output


EXPECTED = {
    "aux": "unused layer: .*does not use it",
    "constant": "still layer: .*the same at all points",
    "before": "gradient cut: .*cut before it",
    "behind": "gradient cut: .*cut behind it",
    "relu": "still layer: ",
}


@pytest.mark.parametrize(("layer", "told"), EXPECTED.items())
def test_all_zeros_of_one_layer_alone_name_the_cause(layer: str, told: str) -> None:
    with pytest.warns(ZeroConductanceWarning, match=told):
        total = total_conductance(seeded(Parts), X, layer, target=0, n_steps=5)
    assert not total[layer].any()
    assert total.diagnosis[0].startswith(told.partition(":")[0])
    assert f"layer {layer!r}" in total.diagnosis[0]


def test_zeros_beside_other_layers_are_told_without_a_warning(tmp_path: object) -> None:
    total = total_conductance(seeded(Parts), X, target=0, n_steps=5)
    assert total["good"].any()
    assert sum("'aux'" in text for text in total.diagnosis) == 1
    assert all(any(f"'{layer}'" in text for text in total.diagnosis) for layer in EXPECTED)
    assert not any("'good'" in text or "'head'" in text for text in total.diagnosis)
    again = cd.concatenate([total, total.select([0])])
    assert again.diagnosis == (*total.diagnosis, *total.diagnosis) or again.diagnosis == total.diagnosis


class Through(nn.Module):
    """A function between two layers, and a skip connection so that the gradient flows somewhere."""

    def __init__(self, function: Callable[[Tensor], Tensor], skip: float = 0.0) -> None:
        super().__init__()
        self.first, self.last, self.function, self.skip = nn.Linear(4, 5), nn.Linear(5, 3), function, skip

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        output: Tensor = self.last(self.function(hidden) + self.skip * hidden)
        return output


@pytest.mark.filterwarnings("ignore::conductance.ConvergenceWarning")
def test_all_zeros_of_a_step_function_are_no_constant_target() -> None:
    model = seeded(lambda: Through(lambda h: (4 * h).round()))
    with pytest.warns(ZeroConductanceWarning, match=r"no gradient: the target changes along the path"):
        total_conductance(model, X, "first", target=0, n_steps=5)


def test_all_zeros_of_a_constant_target_say_so() -> None:
    with pytest.warns(ZeroConductanceWarning, match=r"constant target: the target is the same at all points"):
        total_conductance(seeded(lambda: Through(lambda h: 0.0 * h)), X, target=0)


def test_all_zeros_where_every_input_is_its_baseline_say_so_and_single_ones_do_not_warn() -> None:
    with pytest.warns(ZeroConductanceWarning, match="3 of 3 examples. input is its baseline.*another baseline"):
        total_conductance(net(), X, target=0, baselines=X)
    baseline = X.clone()
    baseline[0] += 1
    total = total_conductance(net(), X, target=0, baselines=baseline)
    assert float(total["1"][0].abs().max()) > 0.01
    assert total.diagnosis[0].startswith("input is its baseline")


def test_convergence_problems_of_a_steep_output_are_solved_or_told() -> None:
    for steepness in (5.0, 50.0, 500.0, 5000.0):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            total = total_conductance(
                seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False))), X, "1",
                baselines=-X, target=lambda logits, k=steepness: (k * logits).softmax(1)[:, 0],
            )  # fmt: skip
        changes = total.output_change.abs() > 0.5
        assert changes.any()
        for n in range(3):
            gap = abs(float(total["1"][n].sum() - total.output_change[n]))
            assert gap <= 0.011 * max(float(total["1"][n].abs().sum()), 1e-9) or not total.converged[n]
        assert total.converged.all() or caught


def test_other_quantities_name_the_cause_too() -> None:
    _, target = SATURATED[1]
    with pytest.warns(ZeroConductanceWarning, match="saturated softmax"):
        cd.neuron_conductance(net(), X, "1", target=target)
    with pytest.warns(ZeroConductanceWarning, match="saturated softmax"):
        cd.conductance_flow(net(), X, ["0", "1"], target=target)


@pytest.mark.parametrize("rows", [1, 2, 3, None])
def test_the_look_after_the_run_keeps_to_the_rows_of_a_call(rows: int | None) -> None:
    model, calls = net(), []
    model.register_forward_hook(lambda _module, args, _output: calls.append(len(args[0])))
    with pytest.warns(ZeroConductanceWarning, match="saturated softmax"):
        total_conductance(model, X, "1", target=SATURATED[0][1], internal_batch_size=rows)
    assert max(calls) <= (max(rows, 2) if rows else 1024)
    assert not any(module._forward_hooks for module in model.children())


def test_nothing_is_said_or_run_again_where_all_is_well() -> None:
    model, calls = net(), []
    model.register_forward_hook(lambda _module, args, _output: calls.append(len(args[0])))
    total = total_conductance(model, X, target=0)
    assert total.diagnosis == ()
    assert "diagnosis" not in total.settings
    assert sum(calls) <= int(total.evaluations.sum()) + 9  # the trial
