"""Units held at constants, against the same computed by hand."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from conductance import hooks
from conductance.hooks import HookPoint, ablate, hold_units
from tests.helpers import AttentionNet, ConvNet, normal, seeded

X = normal(3, 3, 8, 10)


def net() -> nn.Module:
    return seeded(ConvNet)


def after(model: nn.Module, layer: str, changed: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The output with a layer's tensor changed, by a hook of its own."""
    handle = model.get_submodule(layer).register_forward_hook(lambda _module, _args, output: changed(output.clone()))
    try:
        output: Tensor = model(x)
    finally:
        handle.remove()
    return output


def put(value: Any, *place: Any) -> Callable[[Tensor], Tensor]:
    def changed(tensor: Tensor) -> Tensor:
        tensor[place] = value
        return tensor

    return changed


@pytest.mark.parametrize("given", [[1, 4], (1, 4), np.array([1, 4]), torch.tensor([4, 1]), {1, 4}, range(1, 5, 3),
                                   pd.Series([1, 4], index=[7, 9]), [False, True, False, False, True],
                                   np.array([0, 1, 0, 0, 1], dtype=bool)])  # fmt: skip
def test_units_are_numbers_or_a_mask(given: Any) -> None:
    model = net()
    expected = after(model, "conv", put(0.0, slice(None), [1, 4]), X)
    with ablate(model, {"conv": given}):
        held = model(X)
    assert torch.equal(held, expected)
    assert not torch.allclose(held, model(X))


def test_one_number_and_none() -> None:
    model = net()
    with ablate(model, {"conv": 2}):
        assert torch.equal(model(X), after(model, "conv", put(0.0, slice(None), 2), X))
    with ablate(model, {"conv": []}):
        assert torch.equal(model(X), model(X))
    with ablate(model, {}):
        assert torch.equal(model(X), model(X))


def test_value_is_a_number_or_one_a_unit_or_of_the_layers_shape_or_a_dict() -> None:
    model = net()
    each, whole = normal(5, seed=1), normal(5, 7, 6, seed=2)
    every = slice(None)
    cases: list[tuple[Any, Any]] = [
        (2.5, 2.5),
        (3, 3.0),
        (torch.tensor(1.5), 1.5),
        (each, each[[1, 4], None, None]),
        (whole, whole[[1, 4]]),
        ({"conv": whole.float(), "fc": 1.0}, whole.float().double()[[1, 4]]),
    ]
    for value, expected in cases:
        with ablate(model, {"conv": [1, 4]}, value=value):
            held = model(X)
        assert torch.equal(held, after(model, "conv", put(expected, every, [1, 4]), X))


def test_each_row_has_units_of_its_own() -> None:
    model = net()
    mask = torch.tensor([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 0, 1]], dtype=torch.bool)
    with ablate(model, {"conv": mask}, value=0.7):
        held = model(X)
    for row in range(3):
        with ablate(model, {"conv": mask[row]}, value=0.7):
            torch.testing.assert_close(held[row : row + 1], model(X[row : row + 1]), rtol=1e-12, atol=1e-12)
    with ablate(model, {"conv": mask}), pytest.raises(ValueError, match=r"mask of 'conv' has shape \(3, 5\); expected"):
        model(X[:2])


def test_several_layers_are_held_together_by_name_module_or_point() -> None:
    model = net()
    conv = model.get_submodule("conv")
    value = {conv: 1.0, "fc": 2.0}
    with ablate(model, {conv: [0], HookPoint("fc"): [3, 6]}, value=value):
        held = model(X)
    fc = model.get_submodule("fc").register_forward_hook(lambda _m, _a, out: put(2.0, slice(None), [3, 6])(out.clone()))
    expected = after(model, "conv", put(1.0, slice(None), 0), X)
    fc.remove()
    assert torch.equal(held, expected)


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act, self.fc = nn.Tanh(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.act(self.fc(self.act(x)))
        return output


def test_calls_of_one_module() -> None:
    model = seeded(Reused)
    x = normal(3, 4)
    fc = model.get_submodule("fc")

    def direct(first: bool, second: bool) -> Tensor:
        h = torch.tanh(x)
        h = put(5.0, slice(None), 1)(h) if first else h
        h = torch.tanh(fc(h))
        return put(5.0, slice(None), 1)(h) if second else h

    for key, which in (("act", (True, True)), ("act#0", (True, False)), ("act#1", (False, True))):
        with ablate(model, {key: [1]}, value=5.0):
            for _ in range(2):
                torch.testing.assert_close(model(x), direct(*which))
    with ablate(model, {"act#0": [1], "act": [2]}, value=5.0):
        held = model(x)
    assert (held[:, 2] == 5).all()
    assert (held[:, 1] != 5).all()


def test_inputs_callables_taps_and_tuples() -> None:
    model = net()
    with ablate(model, {"head:in": [2]}, value=9.0):
        seen: list[Tensor] = []
        handle = model.get_submodule("head").register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
        model(X)
        handle.remove()
    assert (seen[0][:, 2] == 9).all()
    assert (seen[0][:, 1] != 9).all()
    one, two = nn.Linear(3, 4), nn.Linear(4, 2)
    with ablate(lambda x: two(one(x)), {one: [0], two: [1]}, value={one: 1.0, two: 8.0}):
        output = two(one(torch.ones(5, 3)))
    assert (output[:, 1] == 8).all()
    lstm = nn.LSTM(3, 4, batch_first=True)
    with ablate(lstm, {"(model)[0]": [1]}, value=2.0):
        sequence, (last, _) = lstm(torch.ones(2, 5, 3))
    assert (sequence[..., 1] == 2).all()
    assert (last[..., 1] != 2).all()
    with ablate(lstm, {"(model)": [1]}), pytest.raises(ValueError, match="several tensors; name one of them, such as"):
        lstm(torch.ones(2, 5, 3))


def test_heads_are_units() -> None:
    model, x = seeded(AttentionNet), normal(3, 5, 6)
    point = HookPoint("out", side="in", unit_groups=2)
    for value in (0.0, torch.tensor([7.0, 3.0]), normal(5, 6, seed=3)):
        with ablate(model, {point: [1]}, value=value):
            held = model(x)
        new = value[..., -3:] if isinstance(value, Tensor) and value.dim() == 2 else value
        new = new[1] if isinstance(new, Tensor) and new.dim() == 1 else new
        handle = model.get_submodule("out").register_forward_pre_hook(
            lambda _m, args, new=new: put(new, ..., slice(3, 6))(args[0].clone())
        )
        torch.testing.assert_close(held, model(x), rtol=1e-12, atol=1e-12)
        handle.remove()
    with (
        ablate(model, {HookPoint("out", side="in", unit_groups=4): [0]}),
        pytest.raises(ValueError, match="divide its 6"),
    ):
        model(x)


def test_unit_axis_is_that_of_the_producer_or_an_error() -> None:
    model = nn.Sequential(nn.Conv1d(3, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(30, 2))
    x = torch.randn(4, 3, 7)
    seen: list[Tensor] = []
    model[2].register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with ablate(model, {"1": [3]}, value=9.0):
        model(x)
        handle = model[0].register_forward_hook(lambda _module, _args, output: output * 1)
        with (
            torch.no_grad(),
            pytest.raises(ValueError, match=r"axis of '1', \(4, 5, 6\), .* HookPoint\('1', unit_axis=1\)"),
        ):
            model(x)
        handle.remove()
    assert (seen[0][:, 3] == 9).all()
    row = next(info for info in hooks.list_points(model, x) if info.name == "1")
    for key in (HookPoint("1", unit_axis=1), HookPoint("1", unit_axis=-2), row):
        with torch.no_grad(), ablate(model, {key: [3]}, value=9.0):
            model(x)
        assert (seen[-1][:, 3] == 9).all()
        assert (seen[-1][:, 2] != 9).all()
    with (
        torch.no_grad(),
        ablate(model, {HookPoint("1", unit_axis=3): [3]}),
        pytest.raises(ValueError, match="unit_axis=3"),
    ):
        model(x)


def test_batch_on_another_axis() -> None:
    mask = torch.tensor([[True, False, True], [False, False, True]])
    tensor = normal(3, 4, 2)  # units, positions, rows
    held = hold_units(tensor, mask, 1.0, batch_axis=2, unit_axis=0)
    expected = tensor.clone()
    expected[0, :, 0] = expected[2, :, 0] = expected[2, :, 1] = 1.0
    assert torch.equal(held, expected)
    rnn = nn.LSTM(3, 4)
    with ablate(rnn, {"(model)[0]": torch.eye(2, 4, dtype=torch.bool)}, value=torch.arange(20.0).reshape(5, 4) + 50):
        output, _ = rnn(torch.ones(5, 2, 3))
    assert torch.equal(output[:, 0, 0], torch.arange(5.0) * 4 + 50)
    assert torch.equal(output[:, 1, 1], torch.arange(5.0) * 4 + 51)
    assert (output[:, 0, 1:] < 1).all()


def test_gradients_pass_by_the_units_held() -> None:
    first, second, x = nn.Linear(3, 4), nn.Linear(4, 1), torch.ones(2, 3, requires_grad=True)
    model = nn.Sequential(first, second)
    with ablate(model, {"0": [1, 2]}):
        model(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0], second.weight[0, [0, 3]] @ first.weight[[0, 3]])


BAD: list[tuple[dict[Any, Any], Any, type[Exception], str]] = [
    ({"cnv": [1]}, 0.0, ValueError, "units: no module named 'cnv'. Nearest: 'conv'"),
    ({"conv": [5]}, 0.0, ValueError, "units: 'conv' has 5 units, 0 to 4; got 5"),
    ({"conv": [-1]}, 0.0, ValueError, "got -1"),
    ({"conv": [1.5]}, 0.0, TypeError, "units of 'conv': expected numbers of units"),
    ({"conv": "all"}, 0.0, TypeError, "expected numbers of units"),
    ({"conv": [True, False]}, 0.0, ValueError, "mask of 'conv' has shape (2,); expected (5,) or (3, 5)"),
    ({"conv": [1]}, torch.ones(4), ValueError, "value for 'conv' has shape (4,); expected (5,) or (5, 7, 6)"),
    ({"conv": [1]}, {"fc": 0.0}, ValueError, "value has none for 'conv', only for fc"),
    ({"conv": [1]}, "mean", TypeError, "value for 'conv' is a str"),
]


@pytest.mark.parametrize(("units", "value", "kind", "text"), BAD)
def test_errors_name_what_was_given_and_leave_nothing(
    units: dict[Any, Any], value: Any, kind: type[Exception], text: str
) -> None:
    model = net()
    before = model(X)
    with pytest.raises(kind, match=re.escape(text)), ablate(model, units, value=value):
        model(X)
    assert torch.equal(model(X), before)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_units_are_a_dict() -> None:
    with pytest.raises(TypeError, match=r"units is a list; expected units by layer"), ablate(net(), [1, 2]):  # type: ignore[arg-type]
        pass


def test_an_error_within_leaves_nothing() -> None:
    model = net()
    with pytest.raises(RuntimeError, match="mine"), ablate(model, {"conv": [1]}):
        raise RuntimeError("mine")
    assert not any(module._forward_hooks for module in model.modules())
