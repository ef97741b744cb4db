"""Files of data set statistics that were damaged or tampered with are refused, not read as other numbers."""

from pathlib import Path
from typing import Any

import pytest

import conductance as cd
from conductance import _files
from conductance.dataset_results import DatasetConductance
from tests.conductance.made_results import make


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    stats = DatasetConductance()
    stats.update(make())
    stats.save(tmp_path / "stats")
    tensors, content = _files.read(tmp_path / "stats", "conductance.dataset_conductance", 1)
    _files.write(
        tmp_path / "stats", "conductance.dataset_conductance", 1, {"worst/conv": tensors["worst/conv"]}, content
    )
    with pytest.raises(ValueError, match="but damaged"):
        cd.load(tmp_path / "stats")
    tensors["total/conv"] = tensors["total/conv"][..., :2]
    _files.write(tmp_path / "stats", "conductance.dataset_conductance", 1, tensors, content)
    with pytest.raises(ValueError, match=r"damaged.*total has shape \(4, 2\), expected \(4, 5\)"):
        cd.load(tmp_path / "stats")
    make().save(tmp_path / "total")
    with pytest.raises(ValueError, match="another kind of file"):
        DatasetConductance.load(tmp_path / "total")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("count", 4, "do not add up to the 4"),
        ("count", "3", "count is '3', expected a whole number"),
        ("left_out", -1, "left_out is -1"),
        ("evaluations", 1.5, "evaluations is 1.5"),
        ("unconverged", {"budget": None}, "budget is None"),
        ("unconverged", [], "unsupported operand"),
        ("groups", ["a"], "is torch.int64 of 2 groups, expected torch.int64 of 1"),
        ("groups", ["a", "a"], "twice"),
        ("groups", [None, "a"], "only some examples have groups"),
        ("layers", [], "groups but no layers"),
        ("settings", {}, "given"),
        ("settings", {"given": {}, "settings": [1]}, "settings hold a list"),
    ],
)
def test_content_that_does_not_fit_together_is_refused(name: str, value: Any, message: str, tmp_path: Path) -> None:
    stats, path = DatasetConductance(), tmp_path / "stats"
    stats.update(make(), ["a", "b", "a"])
    stats.save(path)
    tensors, content = _files.read(path, "conductance.dataset_conductance", 1)
    _files.write(path, "conductance.dataset_conductance", 1, tensors, {**content, name: value})
    with pytest.raises(ValueError, match=f"but damaged: .*{message}"):
        cd.load(path)


def test_tensors_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    stats, path = DatasetConductance(), tmp_path / "stats"
    stats.update(make(), ["a", "b", "a"])
    stats.save(path)
    tensors, content = _files.read(path, "conductance.dataset_conductance", 1)
    for name, message in (("total/conv", "expected torch.float64 of 2"), ("count/conv", "do not add up to the 3")):
        changed = tensors[name].float() if name == "total/conv" else 2 * tensors[name]
        _files.write(path, "conductance.dataset_conductance", 1, {**tensors, name: changed}, content)
        with pytest.raises(ValueError, match=message):
            cd.load(path)
