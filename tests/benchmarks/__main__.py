"""Measure speed, accuracy and the like: ``python -m tests.benchmarks [NAME ...] [--quick] [--output FILE]``."""

import platform
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import captum
import torch
import typer

from tests.benchmarks import (
    ablation,
    accuracy,
    captum_table,
    edges,
    finer,
    imports,
    measures,
    memory,
    pruning,
    speed,
    weights,
)
from tests.benchmarks.tables import Table

BENCHMARKS: dict[str, Callable[[bool], Iterable[Table]]] = {
    "speed": lambda quick: (measure(quick=quick) for measure in (speed.run, speed.run_captum)),
    "weights": lambda quick: [weights.run(quick=quick)],
    "accuracy": lambda quick: accuracy.run(quick=quick),
    "memory": lambda quick: memory.run(quick=quick),
    "finer": lambda quick: finer.run(quick=quick),
    "imports": lambda quick: [imports.run(quick=quick)],
    "measures": lambda quick: measures.run(quick=quick),
    "edges": lambda quick: edges.run(quick=quick),
    "ablation": lambda quick: ablation.run(quick=quick),
    "pruning": lambda quick: pruning.run(quick=quick),
}
Names = Annotated[list[str] | None, typer.Argument(help=f"Any of {', '.join(BENCHMARKS)}; all if none is named.")]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer images, smaller inputs.")]
Threads = Annotated[int, typer.Option(help="Threads of torch; with one, goals are judged by processor time.")]
Output = Annotated[Path | None, typer.Option(help="Append the tables to this file.")]


def main(names: Names = None, quick: Quick = False, threads: Threads = 1, output: Output = None) -> None:
    """Run benchmarks and print their tables; a goal that is missed is reported as it is."""
    unknown = sorted(set(names or ()) - set(BENCHMARKS))
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}; choose from {', '.join(BENCHMARKS)}")
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    tell(f"# Benchmarks\n\n{_machine()}{', quick' if quick else ''}.\n", output)
    done: list[Table] = []
    for name in names or BENCHMARKS:
        started = time.perf_counter()
        for table in BENCHMARKS[name](quick):
            done.append(table)
            tell(table.markdown(), output)
        tell(f"({name}: {time.perf_counter() - started:.0f} s)\n", output)
    together = captum_table.collect(done)
    if together.rows:
        tell(together.markdown(), output)
    goals = [bool(row["met"]) for table in done for row in table.rows if row.get("met") is not None]
    tell(f"{sum(goals)} of {len(goals)} goals met.", output)


def tell(text: str, output: Path | None) -> None:
    """Print, and append to the file if there is one."""
    print(text, flush=True)
    if output is not None:
        with output.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")


def _machine() -> str:
    return (
        f"torch {torch.__version__}, captum {captum.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, {torch.get_num_threads()} thread(s), CPU"
    )


if __name__ == "__main__":
    typer.run(main)
