"""The report: one file, all names escaped, the numbers of the result in it."""

import base64
from pathlib import Path
from typing import Any

import pytest
import torch

import conductance as cd
from conductance.analysis import layer_importance, rank_units, report, write_report
from tests.analysis.pages import Page
from tests.analysis.results import CONV, DENSE, EXAMPLES, HEADS, interrupted_result, random_result, renamed

IMAGES = torch.rand(EXAMPLES, 1, 8, 6)


def written(path: Path, **options: Any) -> Page:
    result = options.pop("result", None) or random_result()
    page = Page(write_report(path / "report.html", result, **options).read_text(encoding="utf-8"))
    assert page.open == []
    return page


FULL: dict[str, Any] = {
    "images": IMAGES,
    "captions": ["one", "two", "three", "four", "five"],
    "groups": [0, 1, 0, 1, 0],
    "layers": [DENSE, CONV],
    "facts": {"Model": "a net"},
    "code": "total = f(x)",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a report with every part, written once."""
    path = tmp_path_factory.mktemp("full")
    write_report(path / "report.html", random_result(), **FULL)
    return path


@pytest.fixture
def full(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_report_is_one_file(folder: Path, full: Page) -> None:
    outside = [each for each in full.addresses if not each.startswith(("data:image/png;base64,", "#"))]
    assert outside == []
    assert not {"script", "link", "iframe", "object"} & set(full.tags)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "@import" not in text
    assert "url(" not in text
    assert [path.name for path in folder.iterdir()] == ["report.html"]


def test_pictures_are_png(full: Page) -> None:
    pictures = [each for each in full.addresses if each.startswith("data:")]
    # Four charts, each light and dark; five examples of three channels; three and two examples of the classes.
    assert len(pictures) == 4 * 2 + 3 * 5 + 3 + 2
    for picture in pictures:
        assert base64.b64decode(picture.partition(",")[2]).startswith(b"\x89PNG")


def test_light_and_dark_charts_differ(full: Page) -> None:
    dark, light = full.addresses[1:3]
    assert dark.startswith("data:")
    assert dark != light


def test_tables_have_the_numbers(tmp_path: Path) -> None:
    texts = written(tmp_path, layers=DENSE, top=4).texts
    first = rank_units(random_result(), top=1, layers=DENSE).iloc[0]
    assert f"{first['mean_abs']:#.3g}" in texts
    assert f"{first['mean']:+#.3g}".replace("-", "−") in texts
    row = layer_importance(random_result()).iloc[1]
    assert f"{row['coverage']:.3f}".replace("-", "−") + f" ± {row['coverage_error']:.1g}" in texts
    assert "4 of 11 units (Linear), by the mean of |C| over examples." in texts


def test_facts_come_from_the_caller_and_the_result(full: Page) -> None:
    texts = full.texts
    for text in ("Model", "a net", "5 of 5", "0.01", "median 12, at most 33", "1.5 s", "total = f(x)"):
        assert text in texts


def test_unfinished_examples_are_counted(tmp_path: Path) -> None:
    texts = written(tmp_path, **{**FULL, "result": interrupted_result()}).texts
    assert "2 unfinished" in texts
    assert "3 of 5, 2 interrupted" in texts


def test_a_fixed_number_of_steps_has_no_tolerance(tmp_path: Path) -> None:
    result = random_result(settings={"rtol": None, "n_steps": 20})
    assert "none, 20 evaluations" in written(tmp_path, result=result, layers=DENSE).texts


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", '"><img src=x onerror=y>', "a & b"])
def test_names_are_escaped(tmp_path: Path, evil: str) -> None:
    options = {**FULL, "result": renamed(random_result(), CONV, evil), "layers": [DENSE, evil], "title": evil}
    options |= {"facts": {evil: evil}, "code": evil, "captions": [evil] * 5, "groups": [evil] * 5}
    page = written(tmp_path, **options)
    assert page.texts.count(evil) >= 7
    assert "script" not in page.tags
    assert "x" not in page.addresses


def test_without_images_or_groups_their_parts_are_missing(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert "figure" not in page.tags
    assert not any(text.startswith("Top unit of each class") for text in page.texts)
    assert sum(text.startswith("Top units of") for text in page.texts) == 3


def test_layers_without_height_and_width_have_no_maps(tmp_path: Path) -> None:
    page = written(tmp_path, images=IMAGES, layers=[HEADS, DENSE], groups=[0] * EXAMPLES)
    assert "figure" not in page.tags


def test_a_report_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, title="first", layers=DENSE)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path / "report.html", random_result(), title="second", layers=DENSE)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert "first" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"images": IMAGES[:2]}, ValueError, "images has 2 entries, expected one for each of 5"),
        ({"captions": ["one"]}, ValueError, "captions has 1 entries"),
        ({"groups": [0]}, ValueError, "groups has 1 entries"),
        ({"top": 0}, ValueError, "top must be at least 1"),
        ({"layers": "fcc"}, KeyError, "Did you mean 'fc'"),
    ],
)
def test_bad_arguments_say_what_is_wrong(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        write_report(tmp_path / "report.html", random_result(), **options)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "layers_part", lambda _: pytest.fail("the work has begun"))
    with pytest.raises(FileNotFoundError, match=r"Cannot write .*: there is no folder .*nowhere\. Create it"):
        write_report(tmp_path / "nowhere" / "report.html", random_result())


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="got str"):
        write_report(tmp_path / "report.html", "result")  # type: ignore[arg-type]


GROUPS = ["b", "a", "b", "a", "b"]


def of_data_set(**options: Any) -> cd.DatasetConductance:
    stats = cd.DatasetConductance({"seconds": 4.0})
    stats.update(random_result(**options), GROUPS)
    return stats


def test_statistics_of_a_data_set_are_reported_as_their_results_are(tmp_path: Path) -> None:
    page = written(tmp_path, result=of_data_set(), groups=True, layers=[CONV, DENSE])
    same = written(tmp_path, groups=GROUPS, layers=[CONV, DENSE])
    ours, theirs = page.texts, same.texts
    assert ours[ours.index("Layers") :] == theirs[theirs.index("Layers") :]
    assert ours.count("Top unit of each class in fc") == 1
    for text in ("5 of 5", "0.01", "mean 15", "4.0 s"):
        assert text in ours[: ours.index("Layers")]
    assert "figure" not in page.tags


def test_a_class_that_no_unit_pushes_up_has_none(tmp_path: Path) -> None:
    result = random_result()
    for layer in (CONV, DENSE):
        result[layer][[1, 3]] = -result[layer][[1, 3]].abs()
    texts = written(tmp_path, result=result, groups=GROUPS, layers=[DENSE, CONV], images=IMAGES).texts
    start = texts.index("none")
    assert texts[start - 2 : start + 3] == ["a", "2", "none", "–", "–"]
    assert "where" in texts


def test_a_data_set_without_groups_has_no_classes(tmp_path: Path) -> None:
    for groups in (None, False):
        page = written(tmp_path, result=of_data_set(), groups=groups)
        assert not any("class" in text for text in page.texts if text.startswith(("Top unit of", "Layers")))


def test_examples_left_out_of_a_data_set_are_counted(tmp_path: Path) -> None:
    stats = cd.DatasetConductance()
    stats.update(interrupted_result())
    texts = written(tmp_path, result=stats).texts
    assert "2 unfinished" in texts
    assert "3 of 5, 2 left out" in texts


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"images": IMAGES}, TypeError, "images are of single examples, which a DatasetConductance does not hold"),
        ({"captions": ["one"] * 5}, TypeError, "captions are of single examples"),
        ({"groups": GROUPS}, TypeError, "groups=True takes those that it has"),
        ({"layers": "fcc"}, KeyError, "Did you mean 'fc'"),
        ({"result": cd.DatasetConductance()}, ValueError, "of no examples"),
        ({"result": random_result(), "groups": True}, TypeError, "groups is True, which is for a DatasetConductance"),
    ],
)
def test_what_a_data_set_cannot_show(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        write_report(tmp_path / "report.html", **{"result": of_data_set(), **options})
