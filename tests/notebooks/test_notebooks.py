"""The notebooks as they lie in the repository: run without error, public names only, nothing of a machine in them."""

import ast
import json
import re
from importlib import import_module
from typing import Any

import pytest

from tests.notebooks.run import FOLDER, METADATA

NAMES = ("investigation", "layer_importance_report", "pruning_experiment")
#: What a notebook may import of the package, and what it gives there as a name.
PUBLIC = ("conductance", "conductance.analysis", "conductance.hooks", "conductance.targets")
#: Folders that only one machine has, of any system.
MACHINE = re.compile(r"(?<![\w.:/])/(home|root|tmp|work|usr|opt|var|Users|private|mnt)/|[A-Z]:\\\\|site-packages")
#: Text of the outputs is at most so long: a notebook is read, and loaded, as a whole.
MOST_BYTES = 1_500_000

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the tests were copied out of the repository")


def read(name: str) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    return notebook


def code_cells(name: str) -> list[dict[str, Any]]:
    return [cell for cell in read(name)["cells"] if cell["cell_type"] == "code"]


def tree_of(name: str) -> ast.Module:
    """All code of a notebook, without magics."""
    lines = "".join("".join(cell["source"]) + "\n" for cell in code_cells(name)).splitlines()
    return ast.parse("\n".join("" if line.startswith("%") else line for line in lines))


def private_names(tree: ast.Module) -> list[str]:
    """What a notebook takes of the package that is not public."""
    found, aliases = [], {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                aliases[alias.asname or alias.name] = alias.name
                found += [alias.name] * (alias.name.startswith("conductance") and alias.name not in PUBLIC)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("conductance"):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                aliases[alias.asname or alias.name] = whole
                known = node.module in PUBLIC and alias.name in import_module(node.module).__all__
                found += [whole] * (whole not in PUBLIC and not known)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            origin = aliases.get(node.value.id) if isinstance(node.value, ast.Name) else None
            unknown = origin in PUBLIC and node.attr not in import_module(origin).__all__
            found += [node.attr] * (unknown or (node.attr.startswith("_") and not node.attr.endswith("__")))
    return found


def test_the_data_has_one_version_however_it_is_installed() -> None:
    pinned = [
        (FOLDER.parent / file).read_text().splitlines() for file in ("constraints.txt", "tests/models/packages.txt")
    ]
    versions = [{line for line in lines if line.startswith("mlxtend")} for lines in pinned]
    assert versions[0] == versions[1] != set()


def test_these_are_the_notebooks() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_ran_in_order_and_without_error(name: str) -> None:
    cells = code_cells(name)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]


@pytest.mark.parametrize("name", NAMES)
def test_only_public_names_are_used(name: str) -> None:
    tree = tree_of(name)
    assert any(isinstance(node, ast.ImportFrom) and node.module == "conductance" for node in ast.walk(tree))
    assert not private_names(tree)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_machine_is_kept(name: str) -> None:
    notebook = read(name)
    assert notebook["metadata"] == METADATA
    assert not [cell["metadata"] for cell in notebook["cells"] if cell["metadata"]]
    texts = [part for cell in code_cells(name) for part in [cell["source"], *_texts(cell["outputs"])]]
    assert not [MACHINE.findall("".join(text)) for text in texts if MACHINE.search("".join(text))]
    assert len(json.dumps(notebook)) <= MOST_BYTES


@pytest.mark.parametrize(
    "line",
    [
        "from conductance._values import wide",
        "from conductance.analysis.ranking import rank_units",
        "from conductance.analysis import _values",
        "import conductance.engine",
        "import conductance as cd\ncd.engine",
        "from conductance import analysis\nanalysis.no_such_function(1)",
        "model._modules",
    ],
)
def test_a_private_name_is_seen(line: str) -> None:
    assert private_names(ast.parse(line))


@pytest.mark.parametrize("text", ["in /tmp/abc/x.html", "File '/home/me/a.py'", "lib/python3/site-packages/torch"])
def test_a_path_of_a_machine_is_seen(text: str) -> None:
    assert MACHINE.search(text)


def _texts(outputs: list[dict[str, Any]]) -> list[Any]:
    kept = [output.get("text", "") for output in outputs]
    for output in outputs:
        kept += [value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")]
    return kept
