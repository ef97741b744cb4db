"""Progress bars are shown where they are asked for, and cost nobody else a warning."""

import sys

import pytest
import torch
from torch import nn

from conductance import analysis, dataset_conductance, total_conductance
from conductance._progress import progress_bar


def test_without_a_bar_the_widgets_of_notebooks_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)  # importing it fails, as it warns without ipywidgets
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(2, 3)
    assert total_conductance(model, x, target=1).converged.all()
    assert dataset_conductance(model, [x], target=1).count == 2
    assert len(analysis.unit_effects(model, [x], "1", target=1)["1"]) == 2
    with pytest.raises(ImportError):
        total_conductance(model, x, target=1, progress=True)


def test_a_bar_says_what_it_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar(False, "training", "epoch", given=range(3))) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    with progress_bar(True, "pruning", "model", total=4) as bar:
        bar.update(3)
    shown = capsys.readouterr().err
    assert "pruning" in shown
    assert "3/4" in shown
