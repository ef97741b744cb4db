"""What every benchmark gives: a table whose rows name their goal, and its markdown."""

from dataclasses import dataclass, field
from typing import TypeAlias

import pandas as pd

Cell: TypeAlias = str | float | int | bool | None
Row: TypeAlias = dict[str, Cell]


@dataclass(frozen=True)
class Table:
    """Rows under a heading, and the sentence that says how they were measured."""

    title: str
    text: str
    rows: list[Row] = field(default_factory=list)

    @property
    def frame(self) -> pd.DataFrame:
        """The rows as a frame, missing cells empty."""
        return pd.DataFrame(self.rows)

    def markdown(self) -> str:
        """Heading, sentence and table."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
        lines += [f"| {' | '.join(_cell(row.get(name)) for name in names)} |" for row in self.rows]
        return "\n".join([f"## {self.title}", "", self.text, "", *lines, ""])


def at_most(value: float, goal: float) -> Row:
    """Cells that hold a value against an upper bound."""
    return {"goal": f"≤ {goal:g}", "met": value <= goal}


def at_least(value: float, goal: float) -> Row:
    """Cells that hold a value against a lower bound."""
    return {"goal": f"≥ {goal:g}", "met": value >= goal}


def _cell(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 0.01 or abs(value) >= 1e6 else f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else value.replace("|", "\\|")
