"""Runs the notebooks and keeps their outputs, but no times and versions: ``python -m tests.notebooks.run [NAME …]``."""

import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
#: All that a notebook's metadata may hold, so that running it again changes its outputs only.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def run(path: Path) -> None:
    """Run one notebook from a fresh kernel and write it back."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
    place = {"metadata": {"path": path.parent}}
    NotebookClient(notebook, timeout=300, record_timing=False, coalesce_streams=True, resources=place).execute()
    notebook.metadata = nbformat.from_dict(METADATA)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    names = sys.argv[1:]
    for each in [FOLDER / f"{name}.ipynb" for name in names] or sorted(FOLDER.glob("*.ipynb")):
        started = time.perf_counter()
        run(each)
        print(f"{each.name}: {time.perf_counter() - started:.0f} s")  # noqa: T201
