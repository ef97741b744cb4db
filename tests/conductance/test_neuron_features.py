"""What counts as one input, and which units are asked."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conductance.features import Features
from conductance.path import StraightPath
from tests.conductance.neuron_nets import TARGETS, assert_same, case, flat, one, tensor
from tests.helpers import normal
from tests.reference import interpolatory_weights, literal_neuron

IMAGE = (3, 8, 10)
MODES = ("reverse", "forward")


def _conv(groups: Any = None, **arguments: Any) -> Tensor:
    net = case("conv")
    arguments = {"n_steps": 4, "neurons": [0, 3], **arguments}
    return tensor(one(net.model, "pool", **net.whole, feature_groups=groups, **arguments))


def _superpixels() -> Tensor:
    """Blocks of 4 × 5 pixels, numbered 7, 8, 11 and 40, all channels together."""
    rows, columns = torch.arange(8) // 4, torch.arange(10) // 5
    return torch.tensor([7, 8, 11, 40])[2 * rows[:, None] + columns].expand(IMAGE).clone()


def _summed(elements: Tensor, mask: Tensor, labels: list[int]) -> Tensor:
    """Sums of ``(batch, neurons, …)`` over the groups of a mask ``(…)`` or ``(batch, …)``."""
    full = (mask if mask.dim() == elements.dim() - 1 else mask[None].expand(len(elements), *mask.shape))[:, None]
    rows = [(elements * (full == label)).flatten(2).sum(2) for label in labels]
    return torch.stack(rows, 2)


@pytest.mark.parametrize("mode", MODES)
def test_groups_of_a_mask_sum_their_elements(mode: Any) -> None:
    elements, mask = _conv(), _superpixels()
    labels = [7, 8, 11, 40]
    expected = _summed(elements, mask, labels)
    assert expected.abs().sum(1).min() > 1e-3
    for given in (mask, mask[None], mask.expand(3, *IMAGE), mask.int()):
        net = case("conv")
        found = one(net.model, "pool", **net.whole, feature_groups=given, neurons=[0, 3], n_steps=4, mode=mode)
        assert found.features == labels
        assert_same(tensor(found), expected, 1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_every_example_may_have_a_mask_of_its_own(mode: Any) -> None:
    """The second example has a group that the others lack, and lacks one that they have."""
    mask = _superpixels().expand(3, *IMAGE).clone()
    mask[1] = mask[1].flip(-1)
    mask[1][mask[1] == 7] = 9
    mask[2, 0] = 7
    expected = _summed(_conv(), mask, [7, 8, 9, 11, 40])
    found = _conv(mask, mode=mode)
    assert_same(found, expected, 1e-12)
    assert float(found[1, :, 0].abs().max()) == 0.0
    assert float(found[[0, 2], :, 2].abs().max()) == 0.0
    assert float(found[1, :, 2].abs().min()) > 1e-6
    chunked = _conv(mask, mode=mode, internal_batch_size=5)
    assert_same(chunked, expected, 1e-12)


def test_names_and_numbers_of_axes() -> None:
    elements = _conv()
    assert_same(_conv("channel"), elements.sum((3, 4)), 1e-12)
    assert_same(_conv(1), elements.sum((3, 4)), 1e-12)
    assert_same(_conv(2), elements.sum((2, 4)), 1e-12)
    assert_same(_conv(-1), elements.sum((2, 3)), 1e-12)
    net = case("attention")
    tokens = one(net.model, "out", **net.whole, feature_groups="token", n_steps=4)
    assert tokens.features == [0, 1, 2, 3, 4]
    assert_same(tensor(tokens), tensor(one(net.model, "out", **net.whole, n_steps=4)).sum(3), 1e-12)


def test_every_element_has_the_shape_of_the_input() -> None:
    net = case("conv")
    found = one(net.model, "pool", **net.whole, neurons=[0, 3], n_steps=4)
    assert found.features is None
    assert tensor(found).shape == (3, 2, *IMAGE)
    numbered = torch.arange(240).reshape(IMAGE)
    assert_same(_conv(numbered), tensor(found).flatten(2), 1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_one_group_is_the_attribution_of_a_patch(mode: Any) -> None:
    """2202.11912: what a patch contributes through a neuron; here the patch alone moves in the derivative."""
    net = case("conv")
    patch = torch.zeros(IMAGE, dtype=torch.bool)
    patch[:, 2:5, 3:7] = True
    found = one(net.model, "fc", **net.whole, feature_groups=patch, n_steps=3, mode=mode)
    assert found.features == [0, 1]
    weights = interpolatory_weights([0.0, 1.0])
    alphas, halves = [0.0, 0.5, 1.0], [weights[0] / 2, weights[0], weights[1] / 2]
    literal = literal_neuron(net.model, net.inputs[0][:1], net.baselines[0][:1], 2, "fc", alphas, halves)
    inside = literal[:, patch.flatten()].sum(1)
    assert_same(tensor(found)[0, :, 1], inside, 1e-9)
    assert_same(tensor(found)[0, :, 0], literal.sum(1) - inside, 1e-9)


def test_one_group_of_everything_is_the_units_alone() -> None:
    net = case("tanh")
    whole = one(net.model, "act2", **net.whole, feature_groups=torch.full((5,), 3), rtol=1e-8)
    assert whole.features == [3]
    assert tensor(whole).shape == (3, 6, 1)
    assert_same(tensor(whole)[:, :, 0], whole.total, 1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_groups_of_several_inputs(mode: Any) -> None:
    net = case("two-inputs")
    elements = one(net.model, "joint", **net.whole, n_steps=5)
    assert isinstance(elements.values, tuple)
    first, second = elements.values
    masks = (torch.tensor([4, 4, 1]), torch.tensor([1, 0, 0, 4, 4]))
    shared = one(net.model, "joint", **net.whole, n_steps=5, feature_groups=masks, mode=mode)
    assert shared.features == [0, 1, 4]
    expected = torch.stack(
        [
            second[:, :, 1:3].sum(2),
            first[:, :, 2] + second[:, :, 0],
            first[:, :, :2].sum(2) + second[:, :, 3:].sum(2),
        ],
        2,
    )
    assert_same(tensor(shared), expected, 1e-12)
    columns = one(net.model, "joint", **net.whole, n_steps=5, feature_groups=1, mode=mode)
    assert columns.features == list(range(8))
    assert_same(tensor(columns), flat(elements), 1e-12)
    mixed = one(net.model, "joint", **net.whole, n_steps=5, feature_groups=(masks[0], 1), mode=mode)
    assert mixed.features == [0, 1, 2, 3, 4]
    by_place = one(net.model, "joint", **net.whole, n_steps=5, feature_groups={0: masks[0], 1: masks[1]}, mode=mode)
    assert_same(tensor(by_place), expected, 1e-12)
    named = {"first": net.inputs[0], "second": net.inputs[1]}
    baselines = {"first": net.baselines[0], "second": net.baselines[1]}
    by_name = one(
        net.model, "joint", inputs=named, baselines=baselines, target=TARGETS, n_steps=5,
        feature_groups={"second": masks[1], "first": masks[0]},
    )  # fmt: skip
    assert_same(tensor(by_name), expected, 1e-12)


def test_parts_of_all_features_are_the_whole() -> None:
    path = StraightPath((normal(4, 3), normal(4, 2, 5)), None)
    examples = torch.tensor([0, 0, 3])
    tensors = [normal(3, 3, seed=5), normal(3, 2, 5, seed=6)]
    mask = torch.randint(0, 4, (4, 2, 5), generator=torch.Generator().manual_seed(0))
    for groups in (None, 1, (torch.tensor([0, 5, 5]), mask)):
        features = Features(groups, path)
        parts = [features.part(feature, tensors, examples) for feature in range(features.count)]
        for number, whole in enumerate(tensors):
            torch.testing.assert_close(sum(part[number] for part in parts), whole)
        sums = torch.stack([features.sums(part, examples).sum(1) for part in parts], 1)
        torch.testing.assert_close(sums, features.sums(tensors, examples))
        assert float(sums.abs().min(0).values.max()) > 0


WRONG: list[tuple[str, Any, type[Exception], str]] = [
    ("float mask", torch.zeros(IMAGE), TypeError, r"feature_groups is a mask of torch.float32; expected integers"),
    ("shape", torch.zeros(8, 10).long(), ValueError, r"feature_groups has shape \(8, 10\).*\(3, 3, 8, 10\), or \(3, 8"),
    ("batch", torch.zeros(2, 3, 8, 10).long(), ValueError, r"feature_groups has shape \(2, 3, 8, 10\)"),
    ("name", "pixel", ValueError, r"feature_groups is 'pixel'; expected 'token' or 'channel', or an axis number"),
    ("batch axis", 0, ValueError, r"feature_groups is axis 0; inputs\[0\] has axes 1 to 3 besides the batch"),
    ("negative batch axis", -4, ValueError, r"feature_groups is axis -4"),
    ("axis", 4, ValueError, r"feature_groups is axis 4; inputs\[0\] has axes 1 to 3"),
    ("bool", True, TypeError, "feature_groups is a bool"),
    ("array", np.zeros(IMAGE, dtype=int), TypeError, "feature_groups is a ndarray; expected None, a tensor"),
    ("nested list", [[0, 1], [1, 0]], ValueError, "feature_groups has 2 entries, expected one for each of 1 inputs"),
    ("None in a tuple", (None,), TypeError, "feature_groups holds a NoneType"),
    ("unknown input", {"image": 1}, ValueError, r"feature_groups names the inputs \['image'\].*are \[0\]"),
    ("place as a name", {"0": 1}, ValueError, r"feature_groups names the inputs \['0'\].*are \[0\]"),
]


@pytest.mark.parametrize(("groups", "kind", "message"), [case_[1:] for case_ in WRONG], ids=[c[0] for c in WRONG])
def test_wrong_feature_groups_are_named(groups: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        _conv(groups)


def test_one_mask_for_several_inputs_is_refused() -> None:
    net = case("two-inputs")
    with pytest.raises(ValueError, match="feature_groups is one mask, but 2 inputs move"):
        one(net.model, "joint", **net.whole, feature_groups=torch.zeros(3).long())
    with pytest.raises(ValueError, match=r"feature_groups is 'token', but inputs\[0\] has shape \(3, 3\)"):
        one(net.model, "joint", **net.whole, feature_groups="token")
    with pytest.raises(ValueError, match=r"feature_groups names the inputs \[1\], but those that move are \[0, 1\]"):
        one(net.model, "joint", **net.whole, feature_groups={1: 1})


# ---- neurons

UNITS: list[tuple[str, Any, list[Any]]] = [
    ("all", "all", [0, 1, 2, 3, 4]),
    ("number", 3, [3]),
    ("negative number", -1, [4]),
    ("list", [4, 0, 2], [4, 0, 2]),
    ("duplicates", [1, 1, -4, 0], [1, 1, 1, 0]),
    ("range", range(4, 0, -2), [4, 2]),
    ("slice", slice(1, 4), [1, 2, 3]),
    ("slice with a step", slice(None, None, 2), [0, 2, 4]),
    ("tensor", torch.tensor([2, 0]), [2, 0]),
    ("number in a tensor", torch.tensor(2), [2]),
    ("array", np.array([3, 1]), [3, 1]),
    ("numpy number", np.int64(3), [3]),
    ("list of all kinds", [3, slice(0, 2), np.int64(-1)], [3, 0, 1, 4]),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("neurons", "labels"), [unit[1:] for unit in UNITS], ids=[unit[0] for unit in UNITS])
def test_neurons_in_the_order_given(neurons: Any, labels: list[Any], mode: Any) -> None:
    net = case("conv")
    everything = one(net.model, "pool", **net.whole, feature_groups="channel", n_steps=3)
    found = one(net.model, "pool", **net.whole, feature_groups="channel", n_steps=3, neurons=neurons, mode=mode)
    assert found.neurons == labels
    assert_same(tensor(found), tensor(everything)[:, labels], 1e-12)
    assert_same(found.total, everything.total[:, labels], 1e-12)
    assert len(found.to_dataframe()) == 3 * len(labels) * 3
    assert len(found.summary()) == len(labels)


@pytest.mark.parametrize("mode", MODES)
def test_places_of_a_layer(mode: Any) -> None:
    """Pooled maps are 5 × 2 × 3."""
    net = case("conv")
    every = [(c, y, x) for c in range(5) for y in range(2) for x in range(3)]
    apart = tensor(one(net.model, "pool", **net.whole, feature_groups="channel", n_steps=3, neurons=every))
    apart = apart.reshape(3, 5, 2, 3, 3)
    asked = [(2, 1, 0), (-1, slice(None), 2), 1, (0, -1, slice(0, 3, 2)), (slice(None), 0, 0), (2, 1, 0)]
    found = one(net.model, "pool", **net.whole, feature_groups="channel", n_steps=3, neurons=asked, mode=mode)
    assert found.neurons == ["(2, 1, 0)", "(4, :, 2)", 1, "(0, 1, 0:3:2)", "(:, 0, 0)", "(2, 1, 0)"]
    expected = torch.stack(
        [
            apart[:, 2, 1, 0],
            apart[:, 4, :, 2].sum(1),
            apart[:, 1].sum((1, 2)),
            apart[:, 0, 1, 0] + apart[:, 0, 1, 2],
            apart[:, :, 0, 0].sum(1),
            apart[:, 2, 1, 0],
        ],
        1,
    )
    assert_same(tensor(found), expected, 1e-12)
    single = one(net.model, "pool", **net.whole, feature_groups="channel", n_steps=3, neurons=(2, 1, 0), mode=mode)
    assert_same(tensor(single), expected[:, :1], 1e-12)


NOT_UNITS: list[tuple[str, Any, type[Exception], str]] = [
    ("too large", 5, ValueError, "neurons: layer 'pool' has units 0 to 4, got 5"),
    ("too small", [0, -6], ValueError, "neurons: layer 'pool' has units 0 to 4, got -6"),
    ("short index", (1, 2), ValueError, r"neurons: \(1, 2\) has 2 entries, but a row of layer 'pool' has shape \(5, 2"),
    ("long index", (1, 0, 0, 0), ValueError, r"has 4 entries.*expected 3"),
    ("index out of range", (4, 2, 0), ValueError, r"\(4, 2, 0\) is out of range; axis 1 of layer 'pool' .* 0 to 1"),
    ("empty list", [], ValueError, "neurons is empty; layer 'pool' has units 0 to 4"),
    ("empty slice", slice(3, 3), ValueError, "neurons is empty"),
    ("empty slice in an index", (0, slice(2, 1), 0), ValueError, r"neurons: \(0, 2:1, 0\) is empty; axis 1 of layer"),
    ("word", "first", ValueError, "neurons is 'first'; expected 'all', unit numbers"),
    ("word in a list", ["all"], TypeError, "neurons holds a str"),
    ("None", None, TypeError, "neurons holds a NoneType"),
    ("float", 1.0, TypeError, "neurons holds a float"),
    ("bool", True, TypeError, "neurons holds a bool"),
    ("bools", torch.tensor([True, False]), TypeError, "neurons holds a bool"),
    ("floats", torch.tensor([1.0]), TypeError, "neurons holds a float"),
    ("nested", [[0, 1]], TypeError, "neurons holds a list"),
    ("float in an index", (0, 0.5, 0), TypeError, r"neurons: \(0, 0.5, 0\) holds a float"),
    ("bool in an index", (0, True, 0), TypeError, "holds a bool"),
]


@pytest.mark.parametrize(("neurons", "kind", "message"), [c[1:] for c in NOT_UNITS], ids=[c[0] for c in NOT_UNITS])
def test_wrong_neurons_are_named(neurons: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        _conv(neurons=neurons)
