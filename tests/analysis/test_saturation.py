"""Curves along the path against closed forms, a loop over single places, and the conductances they sum to."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from conductance import ConductanceError, hooks, total_conductance
from conductance.analysis import saturation_curve, saturation_point
from tests.helpers import Clipped, Function


class Net(nn.Module):
    """Convolution, ReLU, pooling, tanh: axes of different sizes, a branch, two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 2)
        self.act = nn.ReLU()
        self.fc = nn.Linear(3, 5)
        self.beside = nn.Linear(4, 5)
        self.out = nn.Linear(5, 6)

    def forward(self, image: Tensor, more: Tensor) -> Tensor:
        hidden = self.act(self.conv(image)).mean((2, 3))
        output: Tensor = self.out(torch.tanh(self.fc(hidden) + self.beside(more)))
        return output


def net() -> tuple[Net, tuple[Tensor, Tensor]]:
    model = Net().double().requires_grad_(False)
    return model, (torch.randn(7, 2, 4, 5).double(), torch.randn(7, 4).double())


def values(curve: pd.DataFrame, quantity: str, layer: str = "") -> np.ndarray[Any, Any]:
    """Give ``(examples, steps)`` of one quantity."""
    own = curve[(curve["quantity"] == quantity) & (curve["layer"] == layer)]
    found: np.ndarray[Any, Any] = np.asarray(own.pivot(index="example", columns="alpha", values="value"))
    return found


def integral(curve: pd.DataFrame, layer: str) -> np.ndarray[Any, Any]:
    alphas = curve["alpha"].unique()
    return np.asarray(np.trapezoid(values(curve, "integrand", layer), alphas, axis=1))


def test_square() -> None:
    curve = saturation_curve(
        Function(lambda x: (x**2).sum(1)), torch.tensor([[3.0, 0.0]]).double(), target=0, baselines=1.0, steps=9
    )
    a = np.linspace(0, 1, 9)
    one, two = 1 + 2 * a, 1 - a
    np.testing.assert_allclose(values(curve, "output")[0], one**2 + two**2, atol=1e-12)
    np.testing.assert_allclose(values(curve, "gradient_norm")[0], 2 * np.hypot(one, two), atol=1e-12)
    np.testing.assert_allclose(values(curve, "integrand", "tap")[0], 4 * one - 2 * two, atol=1e-12)
    np.testing.assert_allclose(integral(curve, "tap"), 9.0 + 0.0 - 2.0, atol=1e-12)


def test_tanh_saturates_and_its_layer_integrates_exactly() -> None:
    out = nn.Linear(1, 1, bias=False).requires_grad_(False)
    out.weight.fill_(3.0)
    model = nn.Sequential(nn.Tanh(), out).double()
    curve = saturation_curve(model, torch.full((1, 1), 8.0).double(), "0", target=0, steps=65)
    a = np.linspace(0, 1, 65)
    np.testing.assert_allclose(values(curve, "gradient_norm")[0], 3 / np.cosh(8 * a) ** 2, rtol=1e-9, atol=1e-12)
    middle = 3 * (np.tanh(8 * a[2:]) - np.tanh(8 * a[:-2])) * 32
    found = values(curve, "integrand", "0")[0]
    np.testing.assert_allclose(found[1:-1], middle, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found[[0, -1]], [3 * np.tanh(1 / 8) * 64, 3 * (np.tanh(8) - np.tanh(7.875)) * 64])
    np.testing.assert_allclose(integral(curve, "0"), 3 * np.tanh(8), rtol=1e-12)
    (alpha,) = saturation_point(curve)["alpha"]
    assert alpha == pytest.approx(np.arctanh(0.9 * np.tanh(8)) / 8, abs=1e-3)


def test_clipped() -> None:
    curve = saturation_curve(Clipped().double(), torch.ones(1, 1).double(), "clip", target=0, steps=5)
    np.testing.assert_allclose(values(curve, "output")[0], [0, 0.5, 1, 1, 1], atol=1e-11)
    np.testing.assert_allclose(values(curve, "gradient_norm")[0], [2, 2, 0, 0, 0], atol=1e-11)
    np.testing.assert_allclose(values(curve, "integrand", "clip")[0], [2, 2, 1, 0, 0], atol=1e-11)
    assert curve["alpha"].unique().tolist() == [0, 0.25, 0.5, 0.75, 1]


def literal(model: Net, inputs: tuple[Tensor, Tensor], starts: tuple[Tensor, Tensor], target: int, steps: int) -> Any:
    """Run one place of one example at a time."""
    output, norm, integrand = (np.zeros((len(inputs[0]), steps)) for _ in range(3))
    alphas = np.linspace(0, 1, steps)
    for example in range(len(inputs[0])):
        rows = []
        for k, a in enumerate(alphas):
            leaves = [(b + a * (x - b))[example : example + 1] for x, b in zip(inputs, starts, strict=True)]
            leaves = [leaf.detach().requires_grad_() for leaf in leaves]
            kept: list[Tensor] = []
            handle = model.act.register_forward_hook(lambda _m, _i, y, kept=kept: kept.append(y))
            f = model(*leaves)[0, target]
            handle.remove()
            *gradients, v = torch.autograd.grad(f, [*leaves, kept[0]])
            output[example, k] = float(f.detach())
            norm[example, k] = float(torch.cat([g.flatten() for g in gradients]).norm())
            rows.append((kept[0].detach(), v))
        for k in range(steps):
            low, high = max(k - 1, 0), min(k + 1, steps - 1)
            slope = (rows[high][0] - rows[low][0]) / (alphas[high] - alphas[low])
            integrand[example, k] = float((rows[k][1] * slope).sum())
    return output, norm, integrand


@pytest.mark.parametrize("rows", [None, 1, 3, 11, 26])
def test_equals_a_loop_over_places_in_calls_of_any_size(rows: int | None) -> None:
    model, inputs = net()
    starts = (torch.full_like(inputs[0], 0.25), torch.randn(7, 4).double())
    curve = saturation_curve(model, inputs, "act", target=4, baselines=starts, steps=11, internal_batch_size=rows)
    expected = literal(model, inputs, starts, 4, 11)
    for quantity, wanted in zip(("output", "gradient_norm", "integrand"), expected, strict=True):
        found = values(curve, quantity, "act" if quantity == "integrand" else "")
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-10)
        assert np.abs(wanted).min(1).max() > 1e-3


def test_sums_to_the_conductance_on_the_same_nodes() -> None:
    model, inputs = net()
    curve = saturation_curve(model, inputs, target=2, steps=21)
    total = total_conductance(model, inputs, target=2, n_steps=21)
    assert curve.loc[curve["quantity"] == "integrand", "layer"].unique().tolist() == list(total)
    for layer in total:
        wanted = total[layer].reshape(7, -1).sum(1).numpy()
        assert np.abs(wanted).min() > 1e-6
        np.testing.assert_allclose(integral(curve, layer), wanted, atol=1e-12)


def test_sums_to_the_change_of_the_output_at_a_cut() -> None:
    model, inputs = net()
    curve = saturation_curve(model, inputs, ["fc", "out"], target=2, steps=1001)
    output = values(curve, "output")
    np.testing.assert_allclose(integral(curve, "out"), output[:, -1] - output[:, 0], atol=1e-5)
    beside = saturation_curve(model, inputs, "beside", target=2, steps=1001)
    together = integral(curve, "fc") + integral(beside, "beside")
    np.testing.assert_allclose(together, output[:, -1] - output[:, 0], atol=1e-5)


def test_several_baselines_are_averaged() -> None:
    model, inputs = net()
    options: dict[str, Any] = {"layers": ["act", "out"], "target": 1, "steps": 6}
    both = saturation_curve(model, inputs, baselines=[0.0, 1.0], internal_batch_size=9, **options)
    one, two = (saturation_curve(model, inputs, baselines=b, **options) for b in (0.0, 1.0))
    np.testing.assert_allclose(both["value"], (one["value"] + two["value"]) / 2, rtol=1e-9)
    assert not np.allclose(one["value"], two["value"])
    assert both.attrs["baselines"] == [0.0, 1.0]


def test_token_ids_move_at_the_embedding() -> None:
    out = nn.Linear(6, 2)
    model = nn.Sequential(nn.Embedding(11, 3), nn.Flatten(), out).double()
    ids = torch.tensor([[4, 9], [1, 2], [3, 3]])
    curve = saturation_curve(model, ids, ["0", "2"], target=1, path_from="0", baselines="zeros", steps=4)
    weight = out.weight[1].detach()
    change = (model(ids)[:, 1] - out.bias[1]).detach().numpy()
    np.testing.assert_allclose(values(curve, "gradient_norm"), np.full((3, 4), float(weight.norm())))
    for layer in ("0", "2"):
        np.testing.assert_allclose(values(curve, "integrand", layer), np.repeat(change[:, None], 4, 1), atol=1e-12)
    assert np.abs(change).min() > 1e-3


def test_arguments_reach_the_model() -> None:
    model, (image, more) = net()
    one = saturation_curve(model, image, "act", target=0, additional_forward_args=(more,), steps=3)
    two = saturation_curve(model, (image, more), "act", target=0, baselines=(torch.zeros_like(image), more), steps=3)
    np.testing.assert_allclose(values(one, "output"), values(two, "output"))
    with pytest.raises(ConductanceError, match="shape"):
        saturation_curve(model, image, "act", target=0, additional_forward_args=(more[:3],), fixed=(1,), steps=3)
    assert not model.act._forward_hooks
    model.train()
    model.act = nn.Dropout()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="train mode: act"):
        saturation_curve(model, (image, more), "act", target=0)
    with pytest.warns(UserWarning, match="train mode"):
        saturation_curve(model, (image, more), "act", target=0, steps=2, on_train="warn")


def test_layers_the_target_does_not_use_are_zero() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).double()

    def run(x: Tensor) -> Tensor:
        model[1](x[:, :2])
        output: Tensor = model[0](x)
        return output

    curve = saturation_curve(run, torch.ones(2, 3).double(), [model[0], model[1]], target=0, steps=3)
    second, first = curve.loc[curve["quantity"] == "integrand", "layer"].unique()
    assert np.abs(values(curve, "integrand", first)).min() > 1e-3
    assert (values(curve, "integrand", second) == 0).all()


def test_table() -> None:
    model, inputs = net()
    curve = saturation_curve(model, inputs, ["act", "out"], target=3, steps=4)
    assert list(curve.columns) == ["example", "alpha", "quantity", "layer", "value"]
    assert len(curve) == 7 * 4 * 4
    assert curve["layer"].unique().tolist() == ["", "act", "out"]
    assert curve.attrs == {"examples": 7, "left_out": 0, "steps": 4, "target": 3, "baselines": None}


def test_an_interrupted_run_gives_the_examples_that_are_done() -> None:
    model, inputs = net()
    whole = saturation_curve(model, inputs, "act", target=0, steps=8)

    def interrupted(output: Tensor, example: Tensor) -> Tensor:
        if len(output) > 2 and bool((example == 4).any()):
            raise KeyboardInterrupt
        return output[:, 0]

    part = saturation_curve(model, inputs, "act", target=interrupted, steps=8, internal_batch_size=8)
    assert part["example"].unique().tolist() == [0, 1, 2, 3]
    assert (part.attrs["examples"], part.attrs["left_out"]) == (4, 3)
    np.testing.assert_allclose(part["value"], whole.loc[whole["example"] < 4, "value"])


def test_points_where_most_of_the_change_is_made() -> None:
    def made(*outputs: float) -> float:
        columns = {"example": 3, "alpha": np.linspace(0, 1, len(outputs)), "quantity": "output", "layer": ""}
        table = saturation_point(pd.DataFrame({**columns, "value": outputs}), share=0.5)
        assert table["example"].tolist() == [3]
        return float(table["alpha"].iloc[0])

    assert made(0, 1, 2, 3, 4) == pytest.approx(0.5)
    assert made(0, -1, -2, -3, -4) == pytest.approx(0.5)
    assert made(0, 4, 0, 4, 4) == pytest.approx(0.625)  # reached before, but lost again
    assert made(1, 9, 5, 5, 5) == pytest.approx(0.0625)
    assert np.isnan(made(2, 3, 2))


def test_curves_of_two_runs_are_not_taken_for_one() -> None:
    columns = {"example": 0, "alpha": [0.0, 0.5, 1.0], "quantity": "output", "layer": "", "value": [1.0, 5.0, 5.0]}
    curve = pd.DataFrame(columns)
    with pytest.raises(ValueError, match=r"curve has several rows for example 0, alpha 0.0.*number their examples on"):
        saturation_point(pd.concat([curve, curve.assign(value=[0.0, 0.0, 1.0])]))


def test_rows_in_any_order_give_the_same_points() -> None:
    model, inputs = net()
    curve = saturation_curve(model, inputs, "act", target=3, steps=9)
    mixed = saturation_point(curve.sample(frac=1.0, random_state=0)).sort_values("example", ignore_index=True)
    pd.testing.assert_frame_equal(mixed, saturation_point(curve))
    assert saturation_point(curve, share=0.5)["alpha"].lt(saturation_point(curve)["alpha"]).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 1}, ValueError, "steps is 1; expected at least 2"),
        ({"steps": 2.0}, TypeError, "steps is 2.0; expected a whole number"),
        ({"steps": True}, TypeError, "steps is True"),
        ({"internal_batch_size": 0}, ValueError, "internal_batch_size is 0"),
        ({"layers": "akt"}, ValueError, "akt"),
        ({"target": 17}, (ValueError, IndexError), "17"),
        ({"on_train": "never"}, ValueError, "on_train must be 'error' or 'warn'"),
        ({"path_from": "nothing"}, ValueError, "nothing"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: Any, message: str) -> None:
    model, inputs = net()
    with pytest.raises(error, match=message):
        saturation_curve(model, inputs, **{"layers": "act", "target": 0, **options})


def test_infinity_on_the_way_is_named() -> None:
    model = nn.Sequential(nn.Identity())
    x = torch.tensor([[2.0]]).double()
    with pytest.raises(ConductanceError, match=r"of the path from baseline to input"):
        saturation_curve(model, x, target=lambda y: 1 / y[:, 0], steps=5)


@pytest.mark.parametrize(
    ("curve", "share", "error", "message"),
    [
        ([1, 2], 0.9, TypeError, "curve must be the table that saturation_curve returns.*got list"),
        (pd.DataFrame({"alpha": [0.0]}), 0.9, ValueError, r"curve lacks the columns \['example', 'quantity'"),
        (None, 0, ValueError, "share is 0, expected a number above 0"),
        (None, 1.5, ValueError, "share is 1.5"),
        ("empty", 0.9, ValueError, "curve is an empty table"),
        ("integrand", 0.9, ValueError, "no rows of the quantity 'output'"),
    ],
)
def test_bad_curves(curve: Any, share: Any, error: type[Exception], message: str) -> None:
    whole = saturation_curve(nn.Identity(), torch.ones(1, 2), target=0, steps=2)
    if curve is None or isinstance(curve, str):
        curve = {None: whole, "empty": whole.head(0), "integrand": whole[whole["quantity"] == "integrand"]}[curve]
    with pytest.raises(error, match=message):
        saturation_point(curve, share=share)


def test_the_model_is_left_as_it_came() -> None:
    model, inputs = net()
    model.requires_grad_(True)
    saturation_curve(model, inputs, target=0, steps=3)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert [name for name, module in model.named_modules() if module._forward_hooks] == []
    assert hooks.list_points(model, inputs, target=0)
