"""The demonstration: a small convolutional network on real handwritten digits, explained layer by layer.

It trains on scikit-learn's 1,797 digits (8 × 8 pixels), explains test images in one call of
`conductance.total_conductance`, and writes a report.
"""

import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from conductance.results import TotalConductance
from conductance.total import total_conductance

#: Digits kept for testing; the others train the network.
TEST_IMAGES = 500
#: The layers whose channels are ranked: after each ReLU, before pooling.
RANKED = ("relu1", "relu2")
REPORT, PICTURE, RESULT = "report.html", "picture.png", "result.safetensors"
#: What the report shows of how it was made.
CALL = """\
import conductance as cd
from conductance import analysis

images = test_images[:{count}]
predicted = model(images).argmax(1)
total = cd.total_conductance(model, images, target=predicted, baselines=0.0, rtol={rtol:g})

analysis.layer_importance(total)
units = analysis.rank_units(total, by="mean_abs", layers="relu2")
analysis.unit_map(total, "relu2", int(units["unit"][0]), example=0)"""


@dataclass(frozen=True, eq=False)
class Digits:
    """The digits, shuffled and split: images ``(n, 1, 8, 8)`` from 0 to 1, labels ``(n,)``."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass(frozen=True, eq=False)
class DemoRun:
    """What the demonstration made: the report's path, and the result behind it."""

    report: Path
    result: TotalConductance
    accuracy: float
    seconds: float


def run_demo(
    output: str | Path,
    *,
    images: int = 100,
    rtol: float = 1e-2,
    seed: int = 0,
    epochs: int = 15,
    progress: bool = False,
) -> DemoRun:
    """Train, explain, rank and report.

    Parameters
    ----------
    output
        Folder for the report, its pictures and the result; made if absent, and files of an earlier run in it
        are replaced.
    images
        Number of test images explained, 1 to `TEST_IMAGES`.
    rtol
        Tolerance of the conductances, as in `conductance.total_conductance`.
    seed
        Of the split and of the training.
    epochs
        Passes over the training digits.
    progress
        Show progress bars.

    Returns
    -------
    DemoRun
        Paths and numbers.

    Raises
    ------
    ImportError
        If scikit-learn is missing.
    ValueError
        If ``images`` or ``epochs`` is out of range.
    KeyboardInterrupt
        If the user interrupts; no report is written then.
    """
    if not 1 <= images <= TEST_IMAGES:
        msg = f"images is {images}, expected 1 to {TEST_IMAGES}: there are {TEST_IMAGES} test digits."
        raise ValueError(msg)
    started = time.perf_counter()
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits(seed)
    with _one_thread():
        loaded = time.perf_counter()
        model = train(digits, epochs=epochs, seed=seed, progress=progress)
        trained = time.perf_counter() - loaded
        correct = _predict(model, digits.test_images) == digits.test_labels
        accuracy = float(correct.double().mean())
        result = explain(model, digits.test_images[:images], rtol=rtol, progress=progress)
    result.save(folder / RESULT)
    facts = {
        "Model": "conv-relu-pool-conv-relu-pool-fc, float32",
        "Test accuracy": f"{accuracy:.1%} of {TEST_IMAGES} digits",
        "Target": "logit of the predicted digit",
        "Baseline": "black image (zeros)",
        "Time to train": f"{trained:.1f} s",
    }
    report = _write(folder, result, digits, model, facts, progress)
    return DemoRun(report, result, accuracy, time.perf_counter() - started)


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
    from tqdm.auto import tqdm

    if epochs < 1:
        msg = f"epochs is {epochs}, expected at least 1."
        raise ValueError(msg)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = digit_net()
        optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
        for _ in tqdm(range(epochs), desc="training", unit="epoch", disable=not progress):
            for batch in torch.randperm(len(digits.train_labels)).split(64):
                optimizer.zero_grad()
                logits = model(digits.train_images[batch])
                nn.functional.cross_entropy(logits, digits.train_labels[batch]).backward()
                optimizer.step()
    return model.eval()


def explain(model: nn.Module, images: Tensor, *, rtol: float = 1e-2, progress: bool = False) -> TotalConductance:
    """Attribute the logit of the predicted digit to every unit of every layer.

    Parameters
    ----------
    model
        A trained `digit_net`.
    images
        ``(n, 1, 8, 8)``.
    rtol
        Tolerance.
    progress
        Show a progress bar.

    Returns
    -------
    TotalConductance
        Against a black image as the baseline.

    Raises
    ------
    KeyboardInterrupt
        If the user interrupts: the report needs all images.
    """
    predicted = _predict(model, images)
    result = total_conductance(model, images, target=predicted, baselines=0.0, rtol=rtol, progress=progress)
    if "interrupted" in result.status:
        raise KeyboardInterrupt
    return result


def _predict(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        digits: Tensor = model(images).argmax(1)
    return digits


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run on one thread: these tensors are too small to share, and sums come out alike on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _write(
    folder: Path,
    result: TotalConductance,
    digits: Digits,
    model: nn.Module,
    facts: dict[str, str],
    progress: bool,
) -> Path:
    """Write the report and the picture."""
    from conductance.analysis._pictures import overview
    from conductance.analysis.report import write_report

    count = len(result.status)
    images, labels = digits.test_images[:count], digits.test_labels[:count].tolist()
    predicted = _predict(model, images).tolist()
    captions = [
        f"{guess}" if guess == label else f"{guess} (is {label})"
        for guess, label in zip(predicted, labels, strict=True)
    ]
    overview(result, RANKED[-1], images=images, captions=captions).savefig(folder / PICTURE, dpi=100)
    return write_report(
        folder / REPORT,
        result,
        title="Which channels read a digit?",
        facts=facts,
        layers=RANKED,
        images=images,
        captions=captions,
        groups=predicted,
        code=CALL.format(count=count, rtol=result.settings["rtol"]),
        progress=progress,
    )
