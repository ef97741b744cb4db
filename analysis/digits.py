"""The digits of the demonstration, and the small convolutional network that it trains on them."""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from conductance._progress import progress_bar

#: Digits kept for testing; the others train the network.
TEST_IMAGES = 500


@dataclass(frozen=True, eq=False)
class Digits:
    """The digits, shuffled and split: images ``(n, 1, 8, 8)`` from 0 to 1, labels ``(n,)``."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits(seed: int = 0) -> Digits:
    """Shuffle and split scikit-learn's digits.

    Parameters
    ----------
    seed
        Of the shuffle.

    Returns
    -------
    Digits
        `TEST_IMAGES` for testing, the others for training.

    Raises
    ------
    ImportError
        If scikit-learn is missing.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        msg = "The demo takes its digits from scikit-learn, which is missing: pip install 'conductance[demo]'"
        raise ImportError(msg) from error
    data = datasets.load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))
    images = torch.tensor(data.images, dtype=torch.float32)[order, None] / 16
    labels = torch.tensor(data.target)[order]
    return Digits(images[TEST_IMAGES:], labels[TEST_IMAGES:], images[:TEST_IMAGES], labels[:TEST_IMAGES])


def digit_net() -> nn.Sequential:
    """Make the network: two convolutions with ReLU and max-pooling, and a linear layer of ten logits."""
    layers = OrderedDict[str, nn.Module](
        conv1=nn.Conv2d(1, 12, 3, padding=1),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(12, 24, 3, padding=1),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc=nn.Linear(96, 10),
    )
    return nn.Sequential(layers)


def train(digits: Digits, *, epochs: int = 15, seed: int = 0, progress: bool = False) -> nn.Sequential:
    """Train `digit_net` with Adam; the random state outside stays as it is.

    Parameters
    ----------
    digits
        What `load_digits` returned.
    epochs
        Passes over the training digits, at least 1.
    seed
        Of the weights and of the order of the digits.
    progress
        Show a progress bar.

    Returns
    -------
    nn.Sequential
        The network, in eval mode.

    Raises
    ------
    ValueError
        If ``epochs`` is below 1.
    """
    if epochs < 1:
        msg = f"epochs is {epochs}, expected at least 1."
        raise ValueError(msg)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = digit_net()
        optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
        for _ in progress_bar(progress, "training", "epoch", given=range(epochs)):
            for batch in torch.randperm(len(digits.train_labels)).split(64):
                optimizer.zero_grad()
                logits = model(digits.train_images[batch])
                nn.functional.cross_entropy(logits, digits.train_labels[batch]).backward()
                optimizer.step()
    return model.eval()
