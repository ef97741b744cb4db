"""Token ids cannot be interpolated: the path starts at what an embedding makes of them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from conductance import conductance_flow, hooks, total_conductance
from conductance.errors import ConductanceError
from tests.conductance.neuron_nets import one, tensor

IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8], [9, 7, 9, 3, 2, 0]])
PAD = 10


class Reader(nn.Module):
    """Mean over the tokens that a mask leaves, of a smooth layer over embeddings and places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 4, padding_idx=PAD)
        nn.init.normal_(self.embed.weight)  # the padding token too: it is not zero
        self.place = nn.Parameter(torch.randn(6, 4))
        self.hidden = nn.Linear(4, 5)
        self.head = nn.Linear(5, 2)

    def from_embedding(self, embedding: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden = torch.tanh(self.hidden(embedding + self.place))
        weight = torch.ones_like(hidden[..., 0]) if mask is None else mask.to(hidden)
        return self.head((hidden * weight[..., None]).sum(1) / weight.sum(1, keepdim=True))  # type: ignore[no-any-return]

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        assert not ids.is_floating_point()
        return self.from_embedding(self.embed(ids), mask)


class FromEmbedding(nn.Module):
    """The same model from its embedding on: what a user would write by hand."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader

    def forward(self, embedding: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.reader.from_embedding(embedding, mask)


def by_hand(model: Reader, baseline: Tensor | float, **options: Any) -> Any:
    inputs = model.embed(IDS).detach()
    return total_conductance(
        FromEmbedding(model), inputs, "reader.hidden", target=1, baselines=baseline, rtol=1e-8, **options
    )


@pytest.fixture
def model() -> Reader:
    return Reader().double().eval()


CORRUPTED = torch.tensor([[3, 1, 4, 2, 5, 9], [2, 6, 5, 0, 5, 8], [9, 7, 9, 4, 2, 0]])


@pytest.mark.parametrize(
    "case", ["zero", "number", "pad", "ids of one", "ids of each", "vectors", "one vector", "callable", "permuted"]
)
def test_ids_give_what_the_embedding_gives_as_input(model: Reader, case: str) -> None:
    vectors = torch.randn(3, 6, 4, dtype=torch.float64)
    embedded = model.embed(CORRUPTED).detach()
    pads = model.embed(torch.full((3, 6), PAD)).detach()
    given, meant = {
        "zero": (None, 0.0),
        "number": (0.25, 0.25),
        "pad": ("pad", pads),
        "ids of one": (CORRUPTED[1], embedded[1]),
        "ids of each": (CORRUPTED, embedded),
        "vectors": (vectors, vectors),
        "one vector": (vectors[0], vectors[0]),
        "callable": (lambda end: end.flip(1), model.embed(IDS).detach().flip(1)),
        "permuted": ("permuted", "permuted"),
    }[case]
    found = total_conductance(model, IDS, ["embed", "hidden"], target=1, baselines=given, rtol=1e-8)
    expected = by_hand(model, meant)
    assert float(expected["reader.hidden"].abs().sum()) > 0.01
    torch.testing.assert_close(found["hidden"], expected["reader.hidden"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.output_change, expected.output_change)
    assert found.is_cut["embed"]
    torch.testing.assert_close(found["embed"].flatten(1).sum(1), found.output_change, rtol=1e-6, atol=1e-9)
    assert found.settings["moving"] == ["path_from 'embed'"]


def test_the_point_may_be_given_in_every_way(model: Reader) -> None:
    expected = total_conductance(model, IDS, "hidden", target=1, rtol=1e-6)["hidden"]
    for point in ("embed", model.embed, hooks.HookPoint("embed"), "hidden:in", nn.Embedding):
        found = total_conductance(model, IDS, "hidden", target=1, rtol=1e-6, path_from=point)["hidden"]
        if point != "hidden:in":
            assert torch.equal(found, expected)
        else:  # the place is part of what moves there
            assert not torch.allclose(found, expected)
            assert float(found.abs().sum()) > 0.01


def test_masks_and_ids_stay_as_they_are(model: Reader) -> None:
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[0, 4:] = mask[2, 1:3] = False
    expected = by_hand(model, 0.0, additional_forward_args=mask)["reader.hidden"]
    for inputs, extra in (
        ((IDS, mask), None),
        ({"ids": IDS, "mask": mask}, None),
        (IDS, mask),
        (IDS, {"mask": mask}),
        ({"mask": mask, "ids": IDS}, None),
        ({"ids": IDS, "mask": mask.long()}, None),
    ):
        found = total_conductance(
            model, inputs, "hidden", target=1, additional_forward_args=extra, path_from="embed", rtol=1e-8
        )
        torch.testing.assert_close(found["hidden"], expected, rtol=1e-9, atol=1e-12)
    assert bool((expected[0, 4:] == 0).all())
    assert float(expected[0, :4].abs().sum()) > 0.01


def test_ids_are_found_among_several_integers(model: Reader) -> None:
    inputs = {"mask": torch.ones(3, 6, dtype=torch.long), "ids": IDS}
    expected = by_hand(model, model.embed(CORRUPTED).detach())["reader.hidden"]
    for baselines in (CORRUPTED, {"ids": CORRUPTED}):
        found = total_conductance(model, inputs, "hidden", target=1, baselines=baselines, rtol=1e-8)
        torch.testing.assert_close(found["hidden"], expected, rtol=1e-9, atol=1e-12)


def test_several_baselines_are_averaged(model: Reader) -> None:
    found = total_conductance(model, IDS, "hidden", target=1, baselines=["pad", CORRUPTED, None], rtol=1e-8)
    pads = model.embed(torch.full((3, 6), PAD)).detach()
    single = [by_hand(model, one)["reader.hidden"] for one in (pads, model.embed(CORRUPTED).detach(), 0.0)]
    torch.testing.assert_close(found["hidden"], torch.stack(single).mean(0), rtol=1e-8, atol=1e-11)
    assert found.spread is not None
    assert float(found.spread["hidden"].sum()) > 0.01


def test_neurons_and_flows_start_there_too(model: Reader) -> None:
    total = total_conductance(model, IDS, ["embed", "hidden"], target=1, baselines="pad", rtol=1e-8)
    for mode in ("reverse", "forward"):
        found = one(
            model, "hidden", inputs=IDS, target=1, baselines="pad", feature_groups="token", mode=mode, rtol=1e-6
        )
        assert tensor(found).shape == (3, 5, 6)
        torch.testing.assert_close(tensor(found).sum(1), total["embed"].sum(2), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(tensor(found).sum(2), total["hidden"].sum(1), rtol=1e-5, atol=1e-7)
    flow = conductance_flow(model, IDS, "hidden", target=1, baselines="pad", feature_groups="token", rtol=1e-6)
    torch.testing.assert_close(flow.edges["(input)", "hidden"].sum(2), total["embed"].sum(2), rtol=1e-5, atol=1e-7)


def test_the_size_of_a_call_bounds_the_run_that_finds_the_embedding(model: Reader) -> None:
    rows: list[int] = []
    with model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0]))):
        few = total_conductance(model, IDS, "hidden", target=1, internal_batch_size=2, rtol=1e-6)
    assert max(rows) == 2
    torch.testing.assert_close(
        few["hidden"], total_conductance(model, IDS, "hidden", target=1, rtol=1e-6)["hidden"], rtol=1e-12, atol=1e-14
    )


class Shared(nn.Module):
    """An encoder and a decoder that read with the same embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.shared = nn.Embedding(11, 4)
        self.encoder, self.decoder = nn.Linear(4, 5), nn.Linear(4, 5)
        self.head = nn.Linear(5, 3)
        self.config = type("Config", (), {"is_encoder_decoder": True, "pad_token_id": 0})()

    def get_input_embeddings(self) -> nn.Module:
        return self.shared

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> dict[str, Tensor]:
        read = torch.tanh(self.encoder(self.shared(input_ids))).mean(1, keepdim=True)
        return {"logits": self.head(torch.tanh(self.decoder(self.shared(decoder_input_ids))) * read)}


def test_an_encoder_moves_and_its_decoder_does_not() -> None:
    model = Shared().double().eval()
    prefix = torch.tensor([[0, 4], [0, 7], [0, 2]])
    inputs = {"input_ids": IDS, "decoder_input_ids": prefix}
    options: dict[str, Any] = {"target": (1, 2), "baselines": "pad", "rtol": 1e-8}
    found = total_conductance(model, inputs, ["encoder", "decoder"], **options)
    assert found.settings["moving"] == ["path_from 'shared#0'"]
    assert float(found["encoder"].abs().sum()) > 0.01
    assert bool((found["decoder"] == 0).all())
    torch.testing.assert_close(found["encoder"].flatten(1).sum(1), found.output_change, rtol=1e-6, atol=1e-9)
    other = total_conductance(model, inputs, ["encoder", "decoder"], path_from="shared#1", **options)
    assert bool((other["encoder"] == 0).all())
    assert float(other["decoder"].abs().sum()) > 0.01
    both = total_conductance(model, inputs, ["encoder", "decoder"], path_from="shared", **(options | {"baselines": 0}))
    assert float(both["encoder"].abs().sum()) > 0.01
    assert float(both["decoder"].abs().sum()) > 0.01
    assert both.settings["moving"] == ["path_from 'shared'", "path_from 'shared#1'"]
    with pytest.raises(ValueError, match=r"which input they stand for is not clear.*'input_ids', 'decoder_input_ids'"):
        total_conductance(model, inputs, "encoder", path_from="shared", **(options | {"baselines": IDS}))


def test_each_generated_token_has_its_conductance() -> None:
    model = Shared().double().eval()
    inputs = {"input_ids": IDS, "decoder_input_ids": torch.tensor([[0, 4], [0, 7], [0, 2]])}
    first, second = (
        total_conductance(model, inputs, "encoder", target=(place, 1), rtol=1e-8)["encoder"] for place in (0, 1)
    )
    together = total_conductance(
        model, inputs, "encoder", target=lambda output: output["logits"][:, :, 1].sum(1), rtol=1e-8
    )["encoder"]
    assert not torch.allclose(first, second)
    torch.testing.assert_close(first + second, together, rtol=1e-6, atol=1e-9)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds, self.head = nn.Embedding(11, 4), nn.Embedding(3, 4), nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head((self.words(ids) * self.kinds(ids % 3)).tanh().mean(1))  # type: ignore[no-any-return]


class Flat(nn.Module):
    """Embeds all tokens of a batch in one row after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 4), nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids.reshape(-1)).reshape(*ids.shape, 4).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"path_from": "embedding"}, ValueError, "path_from: no module named 'embedding'. Nearest: 'embed'"),
        ({"path_from": ["embed", "hidden"]}, ValueError, "path_from: expected one hook point"),
        ({"path_from": 3}, TypeError, "path_from: expected a name"),
        ({"path_from": "embed#4"}, ValueError, "path_from: 'embed#4' never ran"),
        ({"path_from": "embed:in"}, ValueError, "gives no tensor of floating-point numbers"),
        (
            {"baselines": torch.full((6,), 99)},
            ConductanceError,
            r"out of range.*baselines gave token ids for inputs\[0\]",
        ),
        ({"inputs": IDS + 9}, ConductanceError, r"out of range.*inputs are inputs\[0\]"),
        ({"baselines": torch.ones(5, dtype=torch.long)}, ValueError, r"token ids given as baselines have shape \(5,\)"),
        ({"baselines": {0: 3}}, TypeError, r"baselines\[0\] is a int; expected token ids"),
        ({"baselines": {"idx": CORRUPTED}}, ValueError, r"baselines names \['idx'\]"),
        ({"baselines": torch.ones(6, 3)}, ValueError, "the baseline of path_from 'embed' has shape"),
        ({"inputs": IDS[:0]}, ValueError, "inputs is an empty batch"),
        ({"inputs": {}}, ValueError, "inputs holds no"),
        ({"fixed": "idx"}, ValueError, r"fixed names \['idx'\], but the model's arguments are \[0\]"),
    ],
    ids=lambda one: "" if isinstance(one, type | str) else "-".join(one),
)
def test_bad_arguments_are_named(model: Reader, changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        total_conductance(model, **{"inputs": IDS, "layers": "hidden", "target": 1, **changed})
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_choice_between_embeddings_is_left_to_the_user() -> None:
    with pytest.raises(ValueError, match="path_from='words' or 'kinds'"):
        total_conductance(Two(), IDS, "head", target=1)


def test_no_padding_token_is_told() -> None:
    model = Flat()
    with pytest.raises(ValueError, match="padding_idx tells it"):
        total_conductance(model, IDS, "head", target=1, baselines="pad")


def test_a_point_whose_rows_are_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="gave a tensor of 18 rows for 3 examples"):
        total_conductance(Flat(), IDS, "head", target=1)


class Ragged(nn.Module):
    """Cuts a batch to its longest example, so that what an example is depends on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 4), nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        longest = int((ids != PAD).sum(1).max())
        return self.head(self.embed(ids[:, :longest]).tanh().mean(1))  # type: ignore[no-any-return]


def test_shapes_that_depend_on_the_other_examples_are_told() -> None:
    ids = IDS.clone()
    ids[0, 3:] = PAD
    with pytest.raises(ConductanceError, match="what comes before it depends on the other examples of a call"):
        total_conductance(Ragged(), ids[[0, 0, 1]], "head", target=1, internal_batch_size=1)


class Typed(nn.Module):
    """An embedding block of words, kinds and places, as in BERT, before the layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embeddings = Block()
        self.hidden, self.head = nn.Linear(4, 5), nn.Linear(5, 2, bias=False)
        nn.init.normal_(self.head.weight, std=0.1)
        self.config = type("Config", (), {"pad_token_id": PAD})()

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = torch.tanh(self.hidden(self.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)))
        return self.head((hidden * attention_mask[..., None]).sum(1))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds = nn.Embedding(11, 4), nn.Embedding(2, 4)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        return self.words(input_ids) + self.kinds(token_type_ids)  # type: ignore[no-any-return]


TYPED = {
    "input_ids": IDS,
    "token_type_ids": torch.zeros_like(IDS),
    "attention_mask": torch.ones_like(IDS),
}


@pytest.mark.parametrize("point", ["embeddings", "embeddings.words"])
def test_a_baseline_is_what_the_model_gives_for_it(point: str) -> None:
    model = Typed().double().eval()
    options: dict[str, Any] = {"layers": "hidden", "target": 1, "path_from": point}
    pads = torch.full_like(IDS, PAD)
    for given, ids in (
        ("pad", pads),
        ({"input_ids": CORRUPTED}, CORRUPTED),
        ({**TYPED, "input_ids": CORRUPTED}, CORRUPTED),  # as a tokenizer gives it
        (CORRUPTED, CORRUPTED),
    ):
        found = total_conductance(model, TYPED, baselines=given, **options)
        torch.testing.assert_close(found.baseline_output, model(**{**TYPED, "input_ids": ids})[:, 1].detach())
    kinds = {"input_ids": CORRUPTED, "token_type_ids": torch.ones_like(IDS)}
    if point == "embeddings":
        found = total_conductance(model, TYPED, baselines=kinds, **options)
        torch.testing.assert_close(found.baseline_output, model(**{**TYPED, **kinds})[:, 1].detach())
    else:
        with pytest.raises(ValueError, match="baselines names 'token_type_ids', which does not enter the hook point"):
            total_conductance(model, TYPED, baselines=kinds, **options)
    mask = torch.ones_like(IDS)
    mask[:, 3:] = 0
    for given in ({"input_ids": CORRUPTED, "attention_mask": mask}, {"attention_mask": mask}):
        with pytest.raises(ValueError, match="baselines names 'attention_mask', which does not enter the hook point"):
            total_conductance(model, TYPED, baselines=given, **options)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"input_ids": CORRUPTED, "embeddings": 0.0}, ValueError, "gives both token ids and vectors for 'embeddings'"),
        ({"embeddings": CORRUPTED}, TypeError, "'embeddings' is the hook point, where vectors are"),
        ((CORRUPTED,), TypeError, "baselines is a tuple that holds integers"),
        (CORRUPTED > 3, TypeError, r"baselines\['input_ids'\] is a torch.bool tensor; expected token ids"),
        ("blur", ValueError, "'blur', which is for images"),
    ],
)
def test_baselines_that_mean_no_ids_are_told(given: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        total_conductance(Typed().double(), TYPED, "hidden", target=1, baselines=given, path_from="embeddings")


def test_ids_beyond_the_type_of_the_inputs_are_refused() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(400, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.embed(ids.long()).tanh().mean(1))  # type: ignore[no-any-return]

    model, ids = Wide().double(), IDS.to(torch.uint8)
    with pytest.raises(ValueError, match=r"do not fit into torch\.uint8"):
        total_conductance(model, ids, "head", target=1, baselines=torch.full((3, 6), 300))
    other = torch.full((3, 6), 200)
    found = total_conductance(model, ids, "head", target=1, baselines=other)
    torch.testing.assert_close(found.baseline_output, model(other)[:, 1].detach())


def test_a_mask_of_floating_point_that_moves_is_told(model: Reader) -> None:
    mask = torch.ones(3, 6, dtype=torch.float64)
    mask[0, 4:] = 0
    with pytest.warns(
        UserWarning, match=r"inputs\['mask'\] holds zeros and ones of floating point, so it is what moves"
    ):
        total_conductance(model, {"ids": IDS, "mask": mask}, "head", target=1, baselines=0.5)
    found = total_conductance(model, {"ids": IDS, "mask": mask}, "hidden", target=1, path_from="embed", rtol=1e-8)
    expected = by_hand(model, 0.0, additional_forward_args=mask)["reader.hidden"]
    torch.testing.assert_close(found["hidden"], expected, rtol=1e-9, atol=1e-12)


def test_an_embedding_inside_a_checkpointed_block_is_refused(model: Reader) -> None:
    class Saving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reader = model

        def forward(self, ids: Tensor) -> Tensor:
            return checkpoint(self.reader, ids, use_reentrant=False)  # type: ignore[no-any-return]

    with pytest.raises(ConductanceError, match=r"path_from 'reader\.embed' runs again in the backward pass"):
        total_conductance(Saving(), IDS, "reader.hidden", target=1)
    assert not model.embed._forward_pre_hooks
