"""One table for the README: what, ours, Captum, ratio; gathered from the tables of the same run."""

from collections.abc import Iterable

from tests.benchmarks.tables import Row, Table

#: The budget that is shown of several.
EVALUATIONS = 32
SOURCES = {
    "Speed against Captum": ("time in ms, all layers: {what}", "ours ms", "Captum ms"),
    "Error at a fixed budget": ("error per unit, {network}, {evaluations} evaluations", "ours", "Captum"),
    "Memory against Captum": ("peak tensor memory in MB: {what}", "ours MB", "Captum MB"),
}


def collect(tables: Iterable[Table]) -> Table:
    """Rows that name both, from the tables of a run."""
    rows: list[Row] = []
    for table in tables:
        if table.title not in SOURCES:
            continue
        text, ours, captum = SOURCES[table.title]
        rows += [
            {
                "what": text.format(**row),
                "ours": row[ours],
                "Captum": row[captum],
                "Captum / ours": row["Captum / ours"],
            }
            for row in table.rows
            if row.get("evaluations", EVALUATIONS) == EVALUATIONS
        ]
    return Table(
        "Against Captum", "`captum.attr.LayerConductance`, looped over the layers; from the tables above.", rows
    )
