"""Interleaved timing: all candidates in turn, over and over, so that a busy machine is busy for all of them."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Times:
    """Seconds of each repetition, in the same order for every candidate.

    With one thread the processor time is what a quiet machine would take: other processes do not enter. With
    more it counts threads that wait for each other, and the time on the clock is the one to judge by.
    """

    wall: list[float]
    cpu: list[float]

    @property
    def judged(self) -> list[float]:
        """The repetitions that goals are judged by."""
        return self.cpu if torch.get_num_threads() == 1 else self.wall

    @property
    def seconds(self) -> float:
        """Median of the repetitions that goals are judged by."""
        return statistics.median(self.judged)

    def per(self, other: "Times") -> float:
        """Median over the repetitions of this time over another's of the same turn."""
        return _median_ratio(self.judged, other.judged)

    def wall_per(self, other: "Times") -> float:
        """The same on the clock."""
        return _median_ratio(self.wall, other.wall)

    def span(self, other: "Times") -> str:
        """Least and greatest of these ratios."""
        ratios = [mine / theirs for mine, theirs in zip(self.judged, other.judged, strict=True)]
        return f"{min(ratios):.3g}–{max(ratios):.3g}"


def interleaved(candidates: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, Times]:
    """Time every candidate once a turn, after a turn that does not count; the order rotates."""
    names = list(candidates)
    times = {name: Times([], []) for name in names}
    for turn in range(repetitions + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            result = candidates[name]()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            del result
            if turn:
                times[name].wall.append(wall)
                times[name].cpu.append(cpu)
    return times


def described(repetitions: int) -> str:
    """How a timing was made, as part of a sentence."""
    threads = torch.get_num_threads()
    kind = "processor time" if threads == 1 else "time on the clock"
    return (
        f"medians over {repetitions} interleaved repetitions in one process after one to warm up, "
        f"{threads} thread{'s' * (threads > 1)}, float32; goals are judged by {kind}: the median of each turn's ratio"
    )


def _median_ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(above, below, strict=True))
