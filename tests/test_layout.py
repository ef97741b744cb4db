"""The three folders at the top make one package, and imports between them run one way."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = ROOT / "pyproject.toml"
ROOMS = ("conductance.hooks", "conductance.analysis", "conductance")
HEAVY = {"pandas", "networkx", "matplotlib", "captum", "jinja2", "typer", "sklearn"}
ONLY_IN_TESTS = {"accelerate", "hypothesis", "jaxtyping", "pytest", "transformers"}  # jaxtyping: under TYPE_CHECKING

in_checkout = pytest.mark.skipif(not PYPROJECT.exists(), reason="the tests were copied out of the repository")


def folder_of(package: str) -> Path:
    file = import_module(package).__file__
    assert file is not None, f"{package} has no __init__.py"
    return Path(file).resolve().parent


def modules_of(room: str) -> list[Path]:
    """List the files of one room; installed from a wheel, the other two lie inside ``conductance``."""
    inner = [folder_of(other) for other in ROOMS if other.startswith(f"{room}.")]
    files = [path.resolve() for path in sorted(folder_of(room).rglob("*.py"))]
    return [path for path in files if not any(path.is_relative_to(folder) for folder in inner)]


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted name of everything imported anywhere in a module; relative ones begin with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def without_type_checking(tree: ast.Module) -> ast.Module:
    """Drop the top-level blocks that only a type checker reads."""
    body = [n for n in tree.body if not (isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test))]
    return ast.Module(body, type_ignores=[])


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def is_allowed(name: str, room: str) -> bool:
    """Say whether a module of ``room`` may import ``name``."""
    if name.startswith(".") or is_within(name, "hooks") or is_within(name, "analysis"):
        return False  # makes a second copy of the module, or will when it is moved
    if not is_within(name, "conductance"):
        return True
    if room == "conductance.hooks":
        return is_within(name, room)
    return room == "conductance.analysis" or not is_within(name, "conductance.analysis")


@pytest.mark.parametrize("name", ["hooks", "analysis"])
def test_folder_at_the_top_is_imported_under_its_long_name(name: str) -> None:
    folder = folder_of(f"conductance.{name}")
    assert folder == ROOT / name or "site-packages" in folder.parts
    assert name not in sys.modules


@in_checkout
def test_pyproject_lists_every_package() -> None:
    listed = tomllib.loads(PYPROJECT.read_text())["tool"]["setuptools"]["packages"]
    found = set()
    for top, prefix in (("conductance", ""), ("hooks", "conductance."), ("analysis", "conductance.")):
        for init in (ROOT / top).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT).parts
            if parts[:2] not in {("conductance", "hooks"), ("conductance", "analysis")}:  # reached by a link
                found.add(prefix + ".".join(parts))
    assert sorted(listed) == sorted(found)


def test_every_folder_of_tests_is_a_package() -> None:
    # Without it pytest puts the folder above on the path, where tests/conductance hides the real one.
    tests = Path(__file__).parent
    missing = {path.parent for path in tests.rglob("*.py") if not (path.parent / "__init__.py").exists()}
    assert not missing


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room: str) -> None:
    files = modules_of(room)
    assert files
    wrong = [
        f"{path.parent.name}/{path.name} imports {name}"
        for path in files
        for name in imported_names(ast.parse(path.read_text(encoding="utf-8")))
        if not is_allowed(name, room)
    ]
    assert not wrong


def test_hooks_need_torch_only() -> None:
    names = {
        name.partition(".")[0]
        for path in modules_of("conductance.hooks")
        for name in imported_names(without_type_checking(ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert names - sys.stdlib_module_names <= {"conductance", "torch"}


@pytest.mark.parametrize(
    ("line", "room"),
    [
        ("import conductance", "conductance.hooks"),
        ("from conductance.results import load", "conductance.hooks"),
        ("def f():\n    import conductance.engine", "conductance.hooks"),
        ("from conductance import analysis", "conductance"),
        ("import conductance.analysis.plots", "conductance"),
        ("from . import points", "conductance"),
        ("from .points import HookPoint", "conductance.analysis"),
        ("from hooks.points import HookPoint", "conductance.analysis"),
    ],
)
def test_an_import_against_the_direction_is_seen(line: str, room: str) -> None:
    assert [name for name in imported_names(ast.parse(line)) if not is_allowed(name, room)]


@pytest.mark.parametrize("package", ROOMS)
def test_import_stays_light(package: str) -> None:
    code = f"import sys, {package}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    loaded = run.stdout.split()
    assert package in loaded
    assert not (HEAVY | ONLY_IN_TESTS) & set(loaded)
