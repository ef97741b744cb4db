"""The demonstration: a small convolutional network on real handwritten digits, explained layer by layer.

It trains on scikit-learn's 1,797 digits (8 × 8 pixels), explains test images in one call of
`conductance.total_conductance`, follows the flow from channel to channel, and writes a report.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conductance._result_layers import counted
from conductance.analysis._demo_curves import Curves, explain_curves
from conductance.analysis.digits import TEST_IMAGES, Digits, load_digits, train
from conductance.flow import conductance_flow
from conductance.flow_results import REST, ConductanceFlow
from conductance.neuron import neuron_conductance
from conductance.neuron_results import NeuronConductance
from conductance.results import TotalConductance
from conductance.total import total_conductance

#: The layers whose channels are ranked: after each ReLU, before pooling.
RANKED = ("relu1", "relu2")
#: The layers of the flow graphs, units of each that get a node, and images of the class that is averaged.
FLOWING, NODES, OF_CLASS = ("relu1", "relu2", "fc"), 8, 16
#: Units of the last ranked layer whose pixels are shown.
FED = 5
REPORT, PICTURE, RESULT = "report.html", "picture.png", "result.safetensors"
FLOW_PICTURE, FLOW = "flow.png", "flow.safetensors"
#: What the report shows of how it was made.
CALL = """\
import conductance as cd
from conductance import analysis

images = test_images[:{count}]
predicted = model(images).argmax(1)
total = cd.total_conductance(model, images, target=predicted, baselines=0.0, rtol={rtol:g})

analysis.layer_importance(total)
units = analysis.rank_units(total, by="mean_abs", layers="relu2")
analysis.unit_map(total, "relu2", int(units["unit"][0]), example=0)

digit = int(predicted.bincount().argmax())  # the digit that is found most often
of_digit = images[predicted == digit][:{of_class}]
options = {{"target": digit, "baselines": 0.0, "rtol": {rtol:g}}}
flow = cd.conductance_flow(model, of_digit, {flowing}, top={nodes}, units={{"fc": [digit]}}, **options)
graph = analysis.flow_graph(flow)  # of one image: flow_graph(flow, 0), or a flow of that image alone
analysis.plot_flow_graph(graph)
analysis.strongest_paths(graph, k=6)

channels = flow.units["relu2"][:{fed}]
pixels = cd.neuron_conductance(model, of_digit[:1], "relu2", neurons=channels, **options)

ranking = analysis.rank_units(total, top=None, layers="relu2")
batches = [(test_images, test_labels)]
curve = analysis.ablation_curve(model, batches, ranking, target="predicted", baselines=0.0)
analysis.plot_ablation_curve(curve)
path = analysis.saturation_curve(model, of_digit[:1], {flowing}, target=digit, baselines=0.0)
analysis.plot_saturation_curve(path)"""
ASKED = {"of_class": OF_CLASS, "flowing": list(FLOWING), "nodes": NODES, "fed": FED}


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
        flows = explain_flows(model, digits.test_images[:images], rtol=rtol, progress=progress)
        curves = explain_curves(
            model, result, digits,
            example=flows.example, digit=flows.digit, layers=FLOWING, ranked=RANKED[-1], progress=progress,
        )  # fmt: skip
    result.save(folder / RESULT)
    flows.whole.save(folder / FLOW)
    facts = {
        "Model": "conv-relu-pool-conv-relu-pool-fc, float32",
        "Test accuracy": f"{accuracy:.1%} of {TEST_IMAGES} digits",
        "Target": "logit of the predicted digit",
        "Baseline": "black image (zeros)",
        "Time to train": f"{trained:.1f} s",
    }
    report = _write(folder, result, flows, curves, digits, model, facts, progress)
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


@dataclass(frozen=True, eq=False)
class Flows:
    """The flow in one image, ``example``, and in the mean of a class, and what feeds the units of the one image."""

    example: int
    digit: int
    one: ConductanceFlow
    whole: ConductanceFlow
    pixels: NeuronConductance


def explain_flows(model: nn.Module, images: Tensor, *, rtol: float = 1e-2, progress: bool = False) -> Flows:
    """Follow the conductance through the units of three layers, for the digit that is predicted most often.

    Parameters
    ----------
    model
        A trained `digit_net`.
    images
        ``(n, 1, 8, 8)``.
    rtol
        Tolerance.
    progress
        Show progress bars.

    Returns
    -------
    Flows
        Of the first of its images, and of the first `OF_CLASS` of them.

    Raises
    ------
    KeyboardInterrupt
        If the user interrupts.
    """
    predicted = _predict(model, images)
    digit = int(predicted.bincount().argmax())
    members = (predicted == digit).nonzero()[:OF_CLASS, 0]
    options: dict[str, Any] = {"target": digit, "baselines": 0.0, "rtol": rtol, "progress": progress}

    def flow_of(chosen: Tensor) -> ConductanceFlow:
        return conductance_flow(
            model, images[chosen], list(FLOWING), top=NODES, units={FLOWING[-1]: [digit]}, **options
        )

    one, whole = flow_of(members[:1]), flow_of(members)
    units: Any = [unit for unit in one.units[RANKED[-1]] if unit != REST][:FED]
    pixels: Any = neuron_conductance(model, images[members[:1]], RANKED[-1], neurons=units, **options)
    if "interrupted" in (*one.status, *whole.status, *pixels.status):
        raise KeyboardInterrupt
    return Flows(int(members[0]), digit, one, whole, pixels)


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
    flows: Flows,
    curves: Curves,
    digits: Digits,
    model: nn.Module,
    facts: dict[str, str],
    progress: bool,
) -> Path:
    """Write the report and the picture."""
    from conductance.analysis._pictures import graph_figure, overview
    from conductance.analysis.graph import flow_graph
    from conductance.analysis.report import write_report

    count = len(result.status)
    images, labels = digits.test_images[:count], digits.test_labels[:count].tolist()
    predicted = _predict(model, images).tolist()
    captions = [
        f"{guess}" if guess == label else f"{guess} (is {label})"
        for guess, label in zip(predicted, labels, strict=True)
    ]
    overview(result, RANKED[-1], images=images, captions=captions).savefig(folder / PICTURE, dpi=100)
    graph_figure(flow_graph(flows.whole)).savefig(folder / FLOW_PICTURE, dpi=120)
    return write_report(
        folder / REPORT,
        result,
        title="Which channels read a digit?",
        facts=facts,
        layers=RANKED,
        images=images,
        captions=captions,
        groups=predicted,
        flows={
            f"one image, recognised as {captions[flows.example]}": flows.one,
            f"mean of {counted(flows.whole.batch, 'image')} recognised as {flows.digit}": flows.whole,
        },
        neurons={flows.example: flows.pixels},
        ablations=curves.ablations,
        saturations=curves.saturations,
        code=CALL.format(count=count, rtol=result.settings["rtol"], **ASKED),
        progress=progress,
    )
