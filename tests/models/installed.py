"""Where packages from the registry keep trained weights and data: folders and files, found without importing anything.

`make test-all` installs what `packages.txt` and `sources.txt` list. Where an index lacks one, the tests of that model
are skipped.
"""

import importlib.util
import sys
from pathlib import Path

import pytest

#: Where source distributions lie.
SOURCES = Path(sys.prefix) / "share" / "datasets"
_HOW = "`make test-all` installs it where the package index has it"


def inside(package: str, *parts: str) -> Path:
    """A file or folder in an installed package; skips the test if there is none."""
    found = importlib.util.find_spec(package)  # of a package at the top this imports nothing
    for folder in (found.submodule_search_locations or []) if found else []:
        path = Path(folder, *parts)
        if path.exists():
            return path
    return pytest.skip(f"no {'/'.join((package, *parts))}: {_HOW}")


def source(name: str) -> Path:
    """A source distribution, ``name-version.tar.gz``; skips the test if there is none."""
    for path in SOURCES.glob("*.tar.gz"):
        if path.name.lower().startswith(f"{name.lower()}-"):
            return path
    return pytest.skip(f"no source distribution of {name} in {SOURCES}: {_HOW}")
