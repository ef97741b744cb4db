"""What the report tells of classes, ablation and saturation."""

import base64
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import conductance as cd
from conductance.analysis import layer_importance, plot_ablation_curve, top_unit_by_group, write_report
from conductance.analysis._drawing import SERIES
from conductance.analysis._pictures import _tinted, chart
from conductance.analysis._report_curves import ablation_part, groups_part, saturation_part
from tests.analysis.curves import ablation, saturation
from tests.analysis.pages import Page
from tests.analysis.results import CONV, DENSE, HEADS, random_result

GROUPS = [0, 1, 0, 1, 0]


def written(path: Path, **options: Any) -> Page:
    file = write_report(path / "report.html", random_result(), layers=DENSE, **options)
    page = Page(file.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def pictures(page: Page) -> list[str]:
    return [each for each in page.addresses if each.startswith("data:")]


def test_all_parts_are_there_in_light_and_dark(tmp_path: Path) -> None:
    plain = written(tmp_path)
    curves = {"ablations": {"by mean |C|": ablation()}, "saturations": {"one": saturation({}), "two": saturation({})}}
    page = written(tmp_path, groups=GROUPS, **curves)
    assert len(pictures(page)) == len(pictures(plain)) + 2 * 4
    assert len(set(pictures(page)[4:6])) == 2
    for heading in ("Layers, class by class", "Does the ranking tell what the network needs?", "one", "two"):
        assert heading in page.texts
        assert heading not in plain.texts


def test_words_and_areas_are_those_of_the_curves(tmp_path: Path) -> None:
    curve = ablation()
    curve.attrs.update(value="baseline", units=7, examples=50)
    page = written(tmp_path, ablations={"by mean |C|": curve}, saturations={"path": saturation({})})
    text = " ".join(page.texts)
    assert "7 units, held at their baseline value; 50 examples." in text
    assert "With no unit held the mean target is 5.00." in text
    assert "by mean |C|: random, mean of 3" in page.texts
    assert "Nine tenths of the change are made at 0.85 of the path (median)." in page.texts


def test_areas_are_means_over_orders() -> None:
    columns = {"share": [0.0, 1.0] * 3, "order": "random", "seed": [4, 4, 5, 5, 6, 6], "accuracy": float("nan")}
    part = ablation_part({"a": pd.DataFrame({**columns, "score": [4.0, 0.0, 4.0, 2.0, 4.0, 4.0]})})
    (row,) = part["rows"]
    assert row == {"order": "a: random, mean of 3", "score": "3.00", "accuracy": "–"}


def test_classes_are_those_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    result = random_result()
    table = layer_importance(result, groups=GROUPS)
    last = table[table["layer"] == DENSE].set_index("group")["units_for_90"]
    words = groups_part(result, [CONV, DENSE], GROUPS)["words"]
    assert words.startswith(f"{CONV} and {DENSE}, 2 classes.")
    if last[0] != last[1]:
        assert f"held by {last.min()} of 11 units for class {last.idxmin()}" in words
    monkeypatch.setattr("conductance.analysis._report_curves._ROWS", 4)
    assert groups_part(result, [CONV, HEADS, DENSE], GROUPS)["words"].startswith(f"{HEADS} and {DENSE},")
    monkeypatch.setattr("conductance.analysis._report_curves._ROWS", 1)
    assert groups_part(result, [CONV, DENSE], GROUPS)["words"].startswith(f"{DENSE}, 2 classes.")


@pytest.mark.parametrize(
    ("groups", "names"), [([(1, "a"), (2, "b")], ["(1, 'a')", "(2, 'b')"]), ([1, "1"], ["1", "1"])]
)
def test_classes_may_be_tuples_or_of_several_kinds(tmp_path: Path, groups: list[Any], names: list[str]) -> None:
    page = written(tmp_path, groups=[groups[0], groups[1], groups[0], groups[1], groups[0]])
    classes = top_unit_by_group(random_result(), DENSE, [groups[n] for n in (0, 1, 0, 1, 0)])
    assert classes["group"].tolist() == groups
    assert classes["examples"].tolist() == [3, 2]
    assert [text for text in page.texts if text in names][:2] == names


def test_of_thousands_of_classes_the_first_are_drawn() -> None:
    result = cd.concatenate([random_result(seed) for seed in range(25)])
    part = groups_part(result, [CONV, DENSE], list(range(125)))
    assert part["words"].startswith(f"{DENSE}, 125 classes. The first 100 classes are drawn.")
    image = base64.b64decode(part["chart"].light.partition(",")[2])
    assert int.from_bytes(image[20:24], "big") < 100 * 50  # pixels high


def test_the_picture_grows_with_the_names_of_its_curves() -> None:
    curves = {f"a long name of a ranking, number {n}": ablation(n / 10) for n in range(20)}
    images = [
        base64.b64decode(ablation_part(some)["chart"].light.partition(",")[2]) for some in (curves, {"a": ablation()})
    ]
    many, one = (int.from_bytes(image[20:24], "big") for image in images)
    assert many > one + 16 * 20
    layers = {f"layer number {n}": [1.0, 2.0 + n, 0.0] for n in range(7)}
    images = [
        base64.b64decode(saturation_part("path", saturation(some))["chart"].light.partition(",")[2])
        for some in (layers, {})
    ]
    many, one = (int.from_bytes(image[20:24], "big") for image in images)
    assert many > one + 3 * 20


def test_an_output_that_does_not_change_is_said() -> None:
    part = saturation_part("still", saturation({}).assign(value=1.0))
    assert part["words"] == "The output does not change along the path."


def test_an_ablation_without_numbers_has_no_picture(tmp_path: Path) -> None:
    page = written(tmp_path, ablations={"a": ablation(score=float("nan"))})
    assert "Does the ranking tell what the network needs?" in page.texts
    assert len(pictures(page)) == 2 * 2


def test_curves_keep_their_colours_on_dark_pages() -> None:
    figure = Figure()
    ax = figure.add_subplot()
    plot_ablation_curve(ablation(), ax)
    _tinted(figure, "#ffffff", "#000000")
    assert [to_hex(line.get_color()) for line in ax.get_lines()[:2]] == list(SERIES[:2])
    assert to_hex(ax.xaxis.label.get_color()) == "#ffffff"
    drawn = chart(lambda ax: plot_ablation_curve(ablation(), ax), 3.0)
    assert drawn.light != drawn.dark


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", '"><img src=x onerror=y>', "cost $a$ & b"])
def test_names_are_escaped(tmp_path: Path, evil: str) -> None:
    curves = {"ablations": {evil: ablation(), "b": ablation(0.5)}, "saturations": {evil: saturation({evil: [1, 2, 3]})}}
    page = written(tmp_path, groups=[evil] * 5, **curves)
    assert evil in page.texts
    assert f"{evil}: most important first" in page.texts
    assert "script" not in page.tags


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"ablations": ablation()},
            TypeError,
            "ablations must be tables of ablation_curve by name, a dict, got DataFr",
        ),
        ({"ablations": {"a": 3}}, TypeError, r"ablations\['a'\] must be the table that ablation_curve returns"),
        ({"ablations": {"a": saturation({})}}, ValueError, r"ablations\['a'\] lacks the columns"),
        ({"groups": 5}, TypeError, "groups must hold one entry for each example, got int"),
        ({"captions": 5}, TypeError, "captions must hold one entry for each example, got int"),
        ({"saturations": [1]}, TypeError, "saturations must be tables of saturation_curve by name, a dict, got list"),
        ({"saturations": {"a": saturation({}).head(0)}}, ValueError, r"saturations\['a'\] is an empty table"),
    ],
)
def test_bad_arguments_say_what_is_wrong(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        written(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []
