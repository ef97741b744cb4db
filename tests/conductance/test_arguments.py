"""What a model is called with: what is repeated with the rows, what is handed on as it is."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conductance import total_conductance
from conductance.arguments import Arguments
from tests.helpers import normal

X = normal(3, 4)


class Graph(nn.Module):
    """Mixes features with a square matrix of as many rows as an example has nodes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor, mixing: Tensor, *, scale: float = 1.0) -> Tensor:
        assert mixing.shape[0] == 3, mixing.shape
        return self.last(self.first(x).tanh()[:, :3] @ mixing @ x.new_ones(3, 5)) * scale  # type: ignore[no-any-return]


def by_hand(mixing: Tensor, scale: float = 1.0) -> Tensor:
    model = Graph().double()
    return total_conductance(lambda x: model(x, mixing, scale=scale), X, model.first, target=1, rtol=1e-8)["Linear_0"]


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        (X, {"additional_forward_args": "mixing", "fixed": 1}),
        (X, {"additional_forward_args": ("mixing",), "fixed": (1,)}),
        (X, {"additional_forward_args": {"mixing": "mixing"}, "fixed": ["mixing"]}),
        ((X, "mixing"), {"fixed": (1,)}),
        ({"x": X, "mixing": "mixing"}, {"fixed": "mixing"}),
        ({"x": X, "mixing": "mixing"}, {"fixed": {"mixing"}}),
    ],
    ids=["position", "tuple", "keyword", "inputs", "dict", "set"],
)
def test_a_matrix_with_as_many_rows_as_the_batch_is_handed_on_as_it_is(inputs: Any, options: dict[str, Any]) -> None:
    mixing = normal(3, 3, seed=5)

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return mixing
        if isinstance(value, tuple):
            return tuple(map(filled, value))
        return {key: filled(one) for key, one in value.items()} if isinstance(value, dict) else value

    extra = filled(options.get("additional_forward_args")) if "additional_forward_args" in options else None
    found = total_conductance(
        Graph().double(),
        filled(inputs),
        "first",
        target=1,
        rtol=1e-8,
        fixed=options["fixed"],
        additional_forward_args=extra,
    )
    assert float(found["first"].abs().sum()) > 0.01
    torch.testing.assert_close(found["first"], by_hand(mixing), rtol=1e-8, atol=1e-12)


def test_keyword_arguments_go_with_a_tensor() -> None:
    mixing = normal(3, 3, seed=5)
    found = total_conductance(
        Graph().double(),
        X,
        "first",
        target=1,
        rtol=1e-8,
        fixed="mixing",
        additional_forward_args={"mixing": mixing, "scale": 2.5},
    )
    torch.testing.assert_close(found["first"], by_hand(mixing, 2.5), rtol=1e-8, atol=1e-12)


def test_what_has_the_batch_first_is_repeated_within_structures_too() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 5)

        def forward(self, x: Tensor, more: dict[str, Any], state: tuple[Tensor, Any]) -> Tensor:
            return self.layer(x) @ more["weight"] * more["deep"][0] * state[0]  # type: ignore[no-any-return]

    model, weight, factor, state = Nested().double(), normal(5), normal(3, seed=2), normal(3, seed=4)
    found = total_conductance(
        model, X, "layer", additional_forward_args=({"weight": weight, "deep": [factor]}, (state, 7))
    )
    expected = model.layer(X).detach() - model.layer(torch.zeros_like(X)).detach()
    torch.testing.assert_close(found["layer"], expected * weight * (factor * state)[:, None])


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"fixed": 3}, ValueError, r"fixed names \[3\], but the model's arguments are \[0, 1\]"),
        ({"fixed": 1.5}, TypeError, "fixed is 1.5; expected names or positions"),
        ({"fixed": (True,)}, TypeError, "fixed is"),
        ({"fixed": 0}, ValueError, "inputs holds no floating-point tensor"),
        ({"inputs": {"x": X}, "additional_forward_args": {"x": X}}, ValueError, r"names \['x'\], which inputs holds"),
        ({"additional_forward_args": {0: X}}, TypeError, r"additional_forward_args has the keys \[0\]"),
        ({"inputs": {0: X}}, TypeError, r"inputs has the keys \[0\]; expected names"),
        (
            {"inputs": nn.utils.rnn.pack_sequence([X[0], X[1]])},
            TypeError,
            "inputs is a PackedSequence, whose rows are tokens of all examples",
        ),
    ],
)
def test_bad_arguments_are_named(changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"inputs": X, "additional_forward_args": normal(3, 3), "target": 1, **changed}
    with pytest.raises(kind, match=message):
        total_conductance(Graph().double(), layers="first", **arguments)


def test_positions_count_inputs_first() -> None:
    arguments = Arguments((X, X), (1, 2), fixed=(1, 3))
    assert arguments.candidates == [0]
    args, kwargs = arguments.call(torch.tensor([2, 0]), 3, {})
    assert torch.equal(args[0], X[[2, 0]])
    assert args[1] is X
    assert args[2:] == (1, 2)
    assert kwargs == {}
