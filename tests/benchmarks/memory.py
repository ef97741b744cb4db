"""Peak bytes of live tensors against the plain pass, and that they grow with neither nodes nor examples.

Counted from the allocator: ``torch.profiler`` records every allocation and release with its bytes, and the greatest
running sum is the peak. A ``TorchDispatchMode`` would miss what operators allocate inside, and the resident set of
the process never falls.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias, TypeVar
from unittest.mock import patch

from torch.profiler import ProfilerActivity, profile

from conductance.store import NodeStore
from conductance.sums import RunningSums
from tests.benchmarks import cases, speed
from tests.benchmarks.cases import Case
from tests.benchmarks.tables import Row, Table, at_most

Returned = TypeVar("Returned")
Options: TypeAlias = dict[str, float | int]

MAKERS = (cases.bert, cases.conv)

ROWS = 32


class Measured(NamedTuple):
    """Peak of one run, and what of it the user asked for."""

    peak: int
    result: int
    sums: int
    store: int
    call_rows: int

    @property
    def rest(self) -> int:
        """Peak less result, running sums of the examples in flight and stored nodes."""
        return self.peak - self.result - self.sums - self.store


def peak(run: Callable[[], Returned]) -> tuple[int, Returned]:
    """Peak of live tensor bytes above what is live at the start, and what the run returns."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    kineto = profiler.profiler.kineto_results
    events = [(event.start_ns(), event.nbytes()) for event in kineto.events() if event.name() == "[memory]"]
    live = highest = 0
    for _, change in sorted(events, key=lambda event: event[0]):
        live += change
        highest = max(highest, live)
    return highest, result


def measure(case: Case, **options: float | int) -> Measured:
    """Peak of total conductance."""
    run = case.ours(internal_batch_size=ROWS, **options)
    made: list[Any] = []

    def kept(kind: type[Any]) -> Any:
        def make(*args: Any, **kwargs: Any) -> Any:
            made.append(kind(*args, **kwargs))
            return made[-1]

        return patch(f"conductance.running.{kind.__name__}", make)

    with kept(RunningSums), kept(NodeStore):
        highest, (sizes, result) = peak(lambda: case.calls(run))
    tensors = [*result.conductance.values(), *result.unit_error.values()]
    sums = sum(tensor.nbytes for tensor in made[0]._sums)
    store = made[1].nbytes if len(made) > 1 else 0
    return Measured(highest, sum(tensor.nbytes for tensor in tensors), sums, store, max(sizes))


def per_row(case: Case) -> int:
    """Elements of one row of all points."""
    return sum(tensor[0].numel() for tensor in case.first.ours(n_steps=2)().values())


def bound(case: Case, **options: float | int) -> Row:
    """Hold one run against the plain pass, the tapped outputs of one call and the node store."""
    found = measure(case, **options)
    plain, _ = peak(case.plain([found.call_rows]))
    tapped = 4 * per_row(case) * found.call_rows
    refined = "rtol" in options
    kind = ", ".join(f"{name}={value:g}" for name, value in options.items())
    factor = 2.3 if refined else 1.15
    return {
        "what": f"{case.name}, {len(case.inputs)} examples, {kind}",
        "rows of a call": found.call_rows,
        "peak MB": _mb(found.peak),
        "result MB": _mb(found.result),
        "sums MB": _mb(found.sums),
        "node store MB": _mb(found.store),
        "plain pass MB": _mb(plain),
        "tapped MB": _mb(tapped),
        "extra / tapped": (found.rest - plain) / tapped,
        **at_most((found.rest - plain) / tapped, factor),
    }


def flatness(make: Callable[..., Case], *, quick: bool) -> list[Row]:
    """Growth with nodes, with examples, and with examples in refinement."""
    few, some, many, nodes = (4, 8, 16, 64) if quick else (4, 16, 64, 256)
    case = make(few, quick=True)
    steps = [measure(case, n_steps=count) for count in (16, 32, nodes)]
    fixed = [measure(make(count, quick=True), n_steps=16) for count in (few, many)]
    refined = [measure(make(count, quick=True), rtol=case.rtol) for count in (few, some)]
    return [
        _growth(f"{case.name}, {few} examples, 16, 32 and {nodes} nodes", steps),
        _growth(f"{case.name}, {few} and {many} examples, 16 nodes", fixed),
        _growth(f"{case.name}, {few} and {some} examples, rtol={case.rtol:g}", refined),
    ]


def _growth(what: str, runs: list[Measured]) -> Row:
    rests = [run.rest for run in runs]
    growth = max(rests) / min(rests) - 1
    return {
        "what": what,
        "MB": ", ".join(f"{_mb(rest):.1f}" for rest in rests),
        "growth": growth,
        **at_most(growth, 0.05),
    }


def against_captum(case: Case) -> Row:
    """Peak of Captum's loop over the layers against ours, with each one's own way to split rows into calls."""
    ours, _ = peak(case.ours(n_steps=speed.N_STEPS))
    captum, _ = peak(speed.captum_loop(case, speed.N_STEPS))
    return {
        "what": f"{case.name}, {len(case.inputs)} examples, n_steps={speed.N_STEPS}",
        "ours MB": _mb(ours),
        "Captum MB": _mb(captum),
        "Captum / ours": captum / ours,
    }


def _mb(count: float) -> float:
    return count / 1e6


def run(*, quick: bool = False) -> Iterator[Table]:
    """Measure bounds, flatness and Captum on smaller inputs: 12 tokens, 16 × 16 pixels."""
    few = [make(4, quick=True) for make in MAKERS]
    text = (
        "Peak of live tensor bytes from the allocator's record (torch.profiler), "
        f"internal_batch_size={ROWS}, small inputs. Result: conductances and unit errors. Sums: three "
        "numbers an element for each example in flight."
    )
    options: list[Callable[[Case], Options]] = [lambda _: {"n_steps": 32}, lambda case: {"rtol": case.rtol}]
    yield Table(
        "Memory against the plain pass",
        f"{text} Extra: peak - result - sums - node store - plain pass.",
        [bound(case, **option(case)) for case in few for option in options],
    )
    rows = [row for make in MAKERS for row in flatness(make, quick=quick)]
    yield Table("Memory does not grow", f"{text} Growth of peak - result - sums - node store.", rows)
    yield Table(
        "Memory against Captum",
        "Peak of live tensor bytes; ours chooses the rows of a call, Captum runs all at once.",
        [against_captum(case) for case in few],
    )
