"""The fixed networks of tests and benchmarks: digit classifiers, trained in seconds, a BERT and a conv net.

The digits are the 1,797 real ones of scikit-learn, 8 × 8, scaled to [0, 1], always split the same way.
Training is deterministic on one machine: fixed seeds, its own random state, one thread. BERT and the conv net
have random weights.
"""

from collections import OrderedDict
from functools import cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple, cast

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

Activation = Literal["relu", "gelu", "tanh"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
MLPS: dict[str, tuple[int, ...]] = {
    "mlp": (128, 128, 64),
    "mlp3x128": (128,) * 3,
    "mlp6x128": (128,) * 6,
    **{f"narrow{width}": (32, width, 32) for width in (1, 2, 4)},
    **{f"thin{width}": (width,) for width in (1, 2, 4)},
}
NAMES = (*MLPS, "conv")
TEST_IMAGES = 100
_SEEDS = {"narrow2": 0}  # Where the ReLU network of the common seed dies.


class Digits(NamedTuple):
    """Images in float64, ``(images, 64)``, and labels ``(images,)``."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@cache
def digits() -> Digits:
    """Split the digits into 1,697 training and 100 test images, in an order fixed by a seed."""
    data = cast("Any", load_digits())
    images = torch.tensor(data.data, dtype=torch.float64) / 16
    labels = torch.tensor(data.target, dtype=torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return Digits(images[train], labels[train], images[test], labels[test])


def mlp(widths: tuple[int, ...], activation: Activation) -> nn.Sequential:
    """Layers ``fc1, act1, fc2, act2, ..., head`` from 64 pixels to 10 logits."""
    sizes = (64, *widths)
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (inputs, outputs) in enumerate(pairwise(sizes), 1):
        modules[f"fc{number}"] = nn.Linear(inputs, outputs)
        modules[f"act{number}"] = ACTIVATIONS[activation]()
    modules["head"] = nn.Linear(sizes[-1], 10)
    return nn.Sequential(modules)


def digit_conv(activation: Activation) -> nn.Sequential:
    """Two convolutions with a max-pool behind each, on flat digits ``(batch, 64)``, and two linear layers."""
    return nn.Sequential(
        OrderedDict(
            image=nn.Unflatten(1, (1, 8, 8)),
            conv1=nn.Conv2d(1, 8, 3, padding=1),
            act1=ACTIVATIONS[activation](),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(8, 12, 3, padding=1),
            act2=ACTIVATIONS[activation](),
            pool2=nn.MaxPool2d(2),
            flat=nn.Flatten(),
            fc=nn.Linear(48, 32),
            act3=ACTIVATIONS[activation](),
            head=nn.Linear(32, 10),
        )
    )


def _train(model: nn.Module, epochs: int, batch: int = 64) -> None:
    data = digits()
    images, labels = data.train.float(), data.train_labels
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(images)), batch):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            torch.autograd.backward(loss)
            optimizer.step()


@cache
def trained(name: str, activation: Activation = "relu", seed: int | None = None) -> nn.Sequential:
    """Train one of `NAMES` on the digits, once a process; a frozen float64 copy in evaluation mode.

    Do not change it: every caller gets the same one. Without a seed it is that of the common network.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEEDS.get(name, 4) if seed is None else seed)
            model = digit_conv(activation) if name == "conv" else mlp(MLPS[name], activation)
            _train(model, epochs=40 if name.startswith(("narrow", "thin")) else 15)
    finally:
        torch.set_num_threads(threads)
    return model.double().eval().requires_grad_(requires_grad=False)


def accuracy(model: nn.Module) -> float:
    """Share of the test images that a network gets right."""
    data = digits()
    return float((model(data.test).argmax(1) == data.test_labels).double().mean())


def hidden_layers(model: nn.Sequential) -> list[str]:
    """Every layer of a digit network, in forward order, but reshapes and the head."""
    return [
        name
        for name, module in model.named_children()
        if not isinstance(module, nn.Flatten | nn.Unflatten) and name != "head"
    ]


class BertClassifier(nn.Module):
    """A BERT of random weights with a head on the pooled first token, fed with embeddings."""

    def __init__(self, labels: int = 10) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=100,
            hidden_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=1024,
            max_position_embeddings=64,
        )
        config._attn_implementation = "eager"
        self.bert: nn.Module = BertModel(config)
        self.head = nn.Linear(256, labels)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits ``(batch, labels)`` of embeddings ``(batch, tokens, 256)``."""
        logits: Tensor = self.head(self.bert(inputs_embeds=embeddings).pooler_output)
        return logits


@cache
def bert() -> nn.Module:
    """BERT of 4 layers, 256 wide, eager attention, weights of seed 0; float32, frozen, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertClassifier()
    return model.eval().requires_grad_(requires_grad=False)


def bert_points() -> list[str]:
    """Its 28 hook points, 7 a layer: query, key, value, attention before and after its norm, MLP twice."""
    names = (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "attention.output",
        "intermediate",
        "output",
    )
    return [f"bert.encoder.layer.{layer}.{name}" for layer in range(4) for name in names]


def bert_inputs(batch: int = 2, tokens: int = 32) -> Tensor:
    """Embeddings ``(batch, tokens, 256)`` from a seed; the baseline to use is zero."""
    return torch.randn(batch, tokens, 256, generator=torch.Generator().manual_seed(1))


@cache
def conv() -> nn.Module:
    """Conv net 64-128-128-256-256-256 on 3 × 32 × 32, weights of seed 0; float32, frozen, evaluation mode."""
    widths = (3, 64, 128, 128, 256, 256, 256)
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for number, (inputs, outputs) in enumerate(pairwise(widths), 1):
            modules[f"conv{number}"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            norm = modules[f"norm{number}"] = nn.BatchNorm2d(outputs)
            modules[f"act{number}"] = nn.ReLU()
            if number % 2 == 0:
                modules[f"pool{number}"] = nn.MaxPool2d(2)
            nn.init.uniform_(cast("Tensor", norm.weight), 0.5, 1.5)
            nn.init.normal_(cast("Tensor", norm.bias), std=0.2)
            nn.init.normal_(norm.get_buffer("running_mean"), std=0.1)
            nn.init.uniform_(norm.get_buffer("running_var"), 0.1, 0.4)
        modules["pool"] = nn.AdaptiveAvgPool2d(1)
        modules["flat"] = nn.Flatten()
        modules["fc"] = nn.Linear(256, 64)
        modules["act"] = nn.ReLU()
        modules["head"] = nn.Linear(64, 10)
    return nn.Sequential(modules).eval().requires_grad_(requires_grad=False)


def conv_points() -> list[str]:
    """Its 25 hook points: every module but the reshape."""
    return [name for name, module in conv().named_children() if not isinstance(module, nn.Flatten)]


def conv_inputs(batch: int = 2) -> Tensor:
    """Images ``(batch, 3, 32, 32)`` from a seed; the baseline to use is zero."""
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))
