"""Time of all layers at once, against the plain pass of the same rows and against Captum's loop over layers."""

from collections.abc import Callable
from typing import NamedTuple

from captum.attr import LayerConductance

from tests.benchmarks import cases
from tests.benchmarks.cases import TARGET, Case
from tests.benchmarks.tables import Row, Table, at_least, at_most
from tests.benchmarks.timing import Times, described, interleaved

N_STEPS = 32


class Goals(NamedTuple):
    """Bounds for one network: ours over plain at a fixed budget, and in refinement, Captum over ours."""

    fixed: float
    refined: float
    captum: float


GOALS = {"BERT": Goals(1.25, 1.7, 40.0), "conv net": Goals(1.4, 1.7, 10.0)}


def captum_loop(case: Case, n_steps: int) -> Callable[[], None]:
    """Captum's LayerConductance, one layer after the other, its default method, all rows in one call."""

    def run() -> None:
        for name in case.points:
            method = LayerConductance(case.model, case.model.get_submodule(name))
            method.attribute(case.inputs, target=TARGET, n_steps=n_steps)

    return run


def fixed(case: Case, repetitions: int) -> Row:
    """A fixed budget against the plain pass."""
    ours = case.ours(n_steps=N_STEPS)
    sizes, _ = case.calls(ours)
    times = interleaved({"ours": ours, "plain": case.plain(sizes)}, repetitions)
    what = f"{case.name}: {len(case.points)} layers, {len(case.inputs)} examples × {N_STEPS} nodes"
    return _against_plain(what, sizes, times, sum(sizes), GOALS[case.name].fixed)


def refined(case: Case, repetitions: int) -> Row:
    """Refinement to a tolerance against the plain pass, per evaluation."""
    ours = case.ours(rtol=case.rtol)
    sizes, result = case.calls(ours)
    times = interleaved({"ours": ours, "plain": case.plain(sizes)}, repetitions)
    rows = int(result.evaluations.sum())
    what = f"{case.name}: {len(case.points)} layers, {len(case.inputs)} examples, rtol={case.rtol:g}"
    return _against_plain(what, sizes, times, rows, GOALS[case.name].refined)


def captum(case: Case, repetitions: int) -> Row:
    """Captum's loop over the layers against ours at equal nodes."""
    ours = case.ours(n_steps=N_STEPS)
    times = interleaved({"ours": ours, "captum": captum_loop(case, N_STEPS)}, repetitions)
    ratio = times["captum"].per(times["ours"])
    return {
        "what": f"{case.name}: {len(case.points)} layers, {len(case.inputs)} examples, n_steps={N_STEPS}",
        "ours ms": 1e3 * times["ours"].seconds,
        "Captum ms": 1e3 * times["captum"].seconds,
        "Captum / ours": ratio,
        "lowest–highest": times["captum"].span(times["ours"]),
        "on the clock": times["captum"].wall_per(times["ours"]),
        **at_least(ratio, GOALS[case.name].captum),
    }


def _against_plain(what: str, sizes: list[int], times: dict[str, Times], rows: int, goal: float) -> Row:
    ratio = times["ours"].per(times["plain"])
    return {
        "what": what,
        "rows": rows,
        "rows of a call": f"{min(sizes)}–{max(sizes)} in {len(sizes)}" if len(sizes) > 1 else str(sizes[0]),
        "plain ms / row": 1e3 * times["plain"].seconds / sum(sizes),
        "ours ms / row": 1e3 * times["ours"].seconds / rows,
        "ours / plain": ratio,
        "lowest–highest": times["ours"].span(times["plain"]),
        "on the clock": times["ours"].wall_per(times["plain"]),
        **at_most(ratio, goal),
    }


def run(*, quick: bool = False) -> Table:
    """Ours against the plain pass."""
    repetitions, examples = (5, 2) if quick else (7, 4)
    both = [make(examples, quick=quick) for make in (cases.bert, cases.conv)]
    rows = [fixed(case, repetitions) for case in both] + [refined(case, repetitions) for case in both]
    text = (
        "All layers with their error estimates against the plain forward and backward pass (sum of the targets, "
        "gradient of the input alone, parameters frozen) of as many rows in calls of the same sizes. Ours counts "
        f"everything, the probe too. In refinement a row is an evaluation. Measured as {described(repetitions)}."
    )
    return Table("Speed against the plain pass", text, rows)


def run_captum(*, quick: bool = False) -> Table:
    """Ours against Captum."""
    repetitions, examples = 5, 1 if quick else 2
    both = [make(examples, quick=quick) for make in (cases.bert, cases.conv)]
    text = (
        "`captum.attr.LayerConductance` (its default method, `internal_batch_size=None`) called for one layer after "
        "the other, against one call of ours for all of them; Captum evaluates n_steps + 1 points. Measured as "
        f"{described(repetitions)}."
    )
    return Table("Speed against Captum", text, [captum(case, repetitions) for case in both])
