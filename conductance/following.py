"""The second run: finer quantities along the nodes that total conductance found, and finer nodes where they need them.

The first run's tolerance holds for units; what goes through pairs of them may need more. Examples that miss the
tolerance are run again on the nodes of a smaller one, a few times at most, within their budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from conductance._progress import progress_bar
from conductance.flights import Rules
from conductance.quadrature import PathRule
from conductance.replay import Replayed, Rows, replay
from conductance.results import TotalConductance
from conductance.running import Prepared, Run

#: Rounds at most, the first one included.
ROUNDS = 6
#: Evaluations that a first run is allowed at least.
LEAST = 5
#: Rows that a round may take on top of those of the last, in multiples of them; beyond the budget none is begun.
GROWTH = 4


class TwoRuns:
    """A first run for total conductance, and a second one for something finer.

    Parameters
    ----------
    ready
        What to run.
    rules
        What the user asked; both runs share the budget.
    n_steps
        Nodes of each path, if their number is given: then there is one round.

    Attributes
    ----------
    run, pilot
        The first run and its result.
    status, spent
        Verdict on each example, and evaluations of both runs.
    interrupted
        Whether the user interrupted.
    """

    def __init__(self, ready: Prepared, rules: Rules, n_steps: int | None, *, progress: bool) -> None:
        self.ready = ready
        self.rules = rules
        self.adaptive = n_steps is None
        self.progress = progress
        half = replace(rules, max_evaluations=max(LEAST, rules.max_evaluations // 2))  # its nodes are run again
        self.run = Run(ready, half, n_steps, judge_leaves=True)
        self._nodes = self.run.keep_rules()
        self.interrupted = self.run.execute(progress)
        self.pilot: TotalConductance = self.run.result({})
        self.status = ["interrupted"] * ready.path.batch
        self.spent = self.pilot.evaluations.cpu().numpy().copy()
        self._asked = np.full(ready.path.batch, rules.rtol)

    def follow(
        self, rows: int, evaluate: Callable[[Rows], list[Tensor]], take: Callable[[Replayed], float], name: str
    ) -> None:
        """Run all examples along their nodes, again and again while that helps.

        Parameters
        ----------
        rows
            Rows of a call at most.
        evaluate
            Runs rows, as for :func:`~conductance.replay.replay`.
        take
            Keeps what an example gave; says what is allowed over what is estimated, of its errors.
        name
            What the progress bar says.
        """
        if self.interrupted:
            return
        nodes, first, found = self._nodes, self._accepted(), list(self.pilot.status)
        path = self.ready.path
        still = path.still.tolist()
        with progress_bar(self.progress, name, "example", total=path.batch) as bar:
            try:
                for left in reversed(range(ROUNDS)):
                    ratios: dict[int, float] = {}
                    for done in replay(nodes, rows, path.per_example, evaluate):
                        n = done.example
                        self.spent[n] += done.rows
                        ratio = take(done)
                        missed = first[n] == "ok" and ratio < 1.0 and not still[n]
                        room = self.rules.max_evaluations - self.spent[n]
                        if missed and left and self.adaptive and found[n] == "ok" and room > GROWTH * done.rows:
                            ratios[n] = ratio
                            continue
                        self.status[n] = first[n] if not missed else "budget" if found[n] == "ok" else found[n]
                        bar.update()
                    if not ratios:
                        break
                    nodes = self._tightened(ratios, found)
            except KeyboardInterrupt:
                self.interrupted = True

    @property
    def converged(self) -> Tensor:
        """``(batch,)`` bool: whether the tolerance was reached."""
        return torch.tensor([one == "ok" for one in self.status], device=self.ready.path.device)

    @property
    def evaluations(self) -> Tensor:
        """``(batch,)``: rows of both runs."""
        return torch.as_tensor(self.spent).to(self.ready.path.device)

    def _accepted(self) -> list[str]:
        """Status of the first run; ok too where only integrated gradients, which guide it, stayed too coarse.

        They may be nothing but rounding where the units are not: F comes back to where it began. And where nothing
        moves at all, nothing is missed.
        """
        pilot, points = self.pilot, self.run.points
        worst = torch.stack([pilot.error[info.name] for info in points]).amax(0)
        sizes = [pilot[info.name].reshape(len(worst), -1).abs().sum(1) for info in points]
        scale = torch.stack([pilot.output_change.abs(), *(size.to(worst) for size in sizes)]).amax(0)
        good = ((worst <= self.rules.rtol) | (scale == 0)) & (pilot.unattributed.abs() <= self.rules.rtol * scale)
        return [
            "ok" if fine and one in ("precision", "budget") and self.adaptive else one
            for one, fine in zip(pilot.status, good.tolist(), strict=True)
        ]

    def _tightened(self, ratios: dict[int, float], found: list[str]) -> dict[int, PathRule]:
        """Nodes of total conductance to smaller tolerances, for examples by what is allowed over what was found."""
        alike: dict[float, list[int]] = {}
        for n, ratio in ratios.items():
            self._asked[n] *= 2.0 ** np.floor(np.log2(np.clip(0.5 * ratio, 1 / 64, 0.5)))
            alike.setdefault(float(self._asked[n]), []).append(n)
        nodes: dict[int, PathRule] = {}
        for rtol, examples in alike.items():
            room = self.rules.max_evaluations - int(self.spent[examples].max())
            rules = replace(self.rules, rtol=rtol, max_evaluations=max(LEAST, room // 2))
            run = Run(self.ready, rules, None, judge_leaves=True)
            kept = run.keep_rules()
            if run.execute(progress=False, examples=examples):
                raise KeyboardInterrupt
            nodes |= kept
            self.spent += run.collector.evaluations
            for n in examples:
                found[n] = run.collector.status[n]
        return nodes
