"""The demonstration: a small convolutional network on real handwritten digits, explained layer by layer.

It trains on scikit-learn's 1,797 digits (8 × 8 pixels), explains test images in one call of
`conductance.total_conductance`, and writes a report.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from conductance.analysis.digits import TEST_IMAGES, Digits, load_digits, train
from conductance.results import TotalConductance
from conductance.total import total_conductance

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
