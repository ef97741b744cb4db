"""Time of the finer quantities: neurons against Captum's call for each unit, flow against the plain pass."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from captum.attr import NeuronConductance

import conductance as cd
from tests.benchmarks import cases
from tests.benchmarks.cases import TARGET, Case
from tests.benchmarks.tables import Row, Table, at_least
from tests.benchmarks.timing import described, interleaved

N_STEPS = 32
CHANNELS = 32
TOKENS = 20


def captum_neurons(case: Case, layer: str, neurons: Sequence[tuple[int, ...]]) -> Callable[[], None]:
    """Captum's NeuronConductance, one neuron after the other, its default method."""

    def run() -> None:
        method = NeuronConductance(case.model, case.model.get_submodule(layer))
        for neuron in neurons:
            method.attribute(case.inputs, neuron, target=TARGET, n_steps=N_STEPS)

    return run


def channels(layer: str, *, quick: bool) -> list[Row]:
    """32 whole channels of the conv net, which Captum takes a call for each position of; and one element of each."""
    case = cases.conv(1, quick=quick)
    few = 4 if quick else CHANNELS
    single = [(channel, 1, 1) for channel in range(few)]

    def ours(neurons: list[Any]) -> Callable[[], Any]:
        return lambda: cd.neuron_conductance(
            case.model, case.inputs, layer, neurons=neurons, mode="reverse", n_steps=N_STEPS, target=TARGET
        )

    positions = math.prod(ours([0])().info.shape[1:])
    candidates = {
        "whole": ours(list(range(few))),
        "elements": ours(single),
        "captum": captum_neurons(case, layer, single),
    }
    times = interleaved(candidates, 3)
    rows: list[Row] = []
    for kind, calls in (("whole", positions), ("elements", 1)):
        ratio = calls * times["captum"].per(times[kind])
        what = f"{few} channels of {positions} positions" if kind == "whole" else f"one element of {few} channels"
        rows.append(
            {
                "what": f"{case.name}, {layer}: {what} × all pixels, {N_STEPS} nodes, reverse mode",
                "ours s": times[kind].seconds,
                "Captum s": calls * times["captum"].seconds,
                "Captum / ours": ratio,
                **(at_least(ratio, 20.0) if kind == "whole" else {}),
            }
        )
    return rows


def tokens(*, quick: bool) -> Row:
    """All units of all 28 points of the BERT by forward mode, for every token; Captum from 20 units, extrapolated."""
    case = cases.bert(1)
    case = Case(case.name, case.model, case.points, case.inputs[:, : 6 if quick else TOKENS], case.rtol)
    few = 2 if quick else 20
    started = time.process_time()
    found = cd.neuron_conductance(
        case.model, case.inputs, case.points, feature_groups="token", mode="forward", n_steps=N_STEPS, target=TARGET
    )
    ours = time.process_time() - started
    assert isinstance(found, dict)
    units = sum(len(one.neurons) for one in found.values())
    assert all(one.settings["mode"] == "forward" for one in found.values())
    names = [case.points[n * len(case.points) // few] for n in range(few)]
    started = time.process_time()
    for name in names:
        captum_neurons(case, name, [(0, 7)])()
    elements = units * case.inputs.shape[1]
    theirs = (time.process_time() - started) / few * elements
    return {
        "what": f"{case.name}: {case.inputs.shape[1]} tokens × all {units} units of {len(case.points)} points "
        f"({elements} elements), forward mode; Captum from {few} elements",
        "ours s": ours,
        "Captum s": theirs,
        "Captum / ours": theirs / ours,
        **at_least(theirs / ours, 1000.0),
    }


def flow(*, quick: bool) -> Table:
    """Flow between two layers of 32 channels, as multiples of the plain pass."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.GELU(), torch.nn.Conv2d(32, 32, 3, padding=1), torch.nn.GELU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(32, 10),
    )  # fmt: skip
    model = model.eval().requires_grad_(requires_grad=False)
    size = 16 if quick else 32
    case = Case("small conv net", model, ["1", "3"], torch.randn(1, 3, size, size), rtol=1e-2)
    rows: list[Row] = []
    for count in (4, 8, 16, 32):

        def ours(count: int = count) -> object:
            return cd.conductance_flow(model, case.inputs, case.points, top=count, n_steps=N_STEPS, target=TARGET)

        times = interleaved({"ours": ours, "plain": case.plain([N_STEPS])}, 3)
        rows.append({"units with nodes, of 32": count, "ours / plain": times["ours"].per(times["plain"])})
    text = (
        "Flow from the input through two layers of 32 channels (GELU, 32 nodes, one example) against one plain forward "
        f"and backward pass of the rows; both runs and the probe count. Measured as {described(3)}."
    )
    return Table("Flow against the plain pass", text, rows)


def run(*, quick: bool = False) -> Iterable[Table]:
    """Neurons against Captum, then flow."""
    text = (
        "`captum.attr.NeuronConductance` against one call of ours. It takes one element of a layer a call: a unit with "
        "several positions is the sum of as many calls, whose time is taken as the measured one's times their number. "
        f"Measured as {described(3)}; the BERT row is one run each."
    )
    yield Table(
        "Neurons against Captum",
        text,
        [*channels("act1", quick=quick), *channels("act6", quick=quick), tokens(quick=quick)],
    )
    yield flow(quick=quick)
