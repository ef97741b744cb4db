"""Time of ``import conductance`` against ``import torch``, in fresh processes."""

import statistics
import subprocess
import sys

from tests.benchmarks.tables import Table, at_most

GOAL = 1.15
SCRIPT = """
import time
wall, cpu = time.perf_counter(), time.process_time()
import {name}
print(time.perf_counter() - wall, time.process_time() - cpu)
"""


def seconds(name: str) -> tuple[float, float]:
    """Seconds on the clock and of the processor that one import takes."""
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(name=name)], capture_output=True, text=True, check=True)
    wall, cpu = map(float, done.stdout.split())
    return wall, cpu


def run(*, quick: bool = False) -> Table:
    """Import both in turn."""
    repetitions = 3 if quick else 7
    names = ("torch", "conductance")
    for name in names:
        seconds(name)
    turns = [{name: seconds(name) for name in names} for _ in range(repetitions)]
    wall, cpu = ({name: statistics.median(turn[name][kind] for turn in turns) for name in names} for kind in (0, 1))
    ratio = cpu["conductance"] / cpu["torch"]
    text = (
        f"Medians of {repetitions} fresh processes each, in turn, after one to warm the disk; judged by processor time."
    )
    row = {
        "what": "import conductance / import torch",
        "torch s": cpu["torch"],
        "conductance s": cpu["conductance"],
        "ratio": ratio,
        "on the clock": wall["conductance"] / wall["torch"],
        **at_most(ratio, GOAL),
    }
    return Table("Import", text, [row])
