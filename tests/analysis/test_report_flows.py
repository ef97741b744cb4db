"""What the report tells of flows between units and of the pixels that feed a unit."""

import base64
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.colors import same_color
from matplotlib.text import Text
from torch import nn

import conductance as cd
from conductance.analysis import flow_graph, strongest_paths, write_report
from conductance.analysis._pictures import graph_figure
from conductance.analysis._report_flows import carried_by, flow_part
from conductance.flow_results import ConductanceFlow
from conductance.neuron_results import NeuronConductance
from tests.analysis.flows import EXAMPLES, linear_flow, random_flow
from tests.analysis.pages import Page
from tests.analysis.results import DENSE, random_result
from tests.analysis.results import EXAMPLES as IMAGES

PICTURES = torch.rand(IMAGES, 1, 8, 6, generator=torch.Generator().manual_seed(0))


def written(path: Path, **options: Any) -> Page:
    file = write_report(path / "report.html", random_result(), layers=DENSE, **options)
    page = Page(file.read_text(encoding="utf-8"))
    assert page.open == []
    return page


def graphs_of(page: Page) -> list[str]:
    """Give the addresses of the pictures behind those of the two bar charts, light and dark."""
    return [each for each in page.addresses if each.startswith("data:")][4:]


def value(text: str) -> float:
    return float(text.replace("−", "-"))


@pytest.fixture(scope="module")
def pixels() -> NeuronConductance:
    """Give neuron conductance of three channels in the first picture."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2)).eval()
    found = cd.neuron_conductance(model, PICTURES[:1], "1", neurons=[2, 0, 1], target=1)
    assert isinstance(found, NeuronConductance)
    return found


def test_every_flow_has_its_graph_in_light_and_dark(tmp_path: Path) -> None:
    page = written(tmp_path, flows={"one digit": linear_flow(), "a class": random_flow()})
    assert "Flow of conductance: one digit" in page.texts
    assert "Flow of conductance: a class" in page.texts
    pictures = graphs_of(page)
    assert len(pictures) == len(set(pictures)) == 4
    for picture in pictures:
        assert base64.b64decode(picture.partition(",")[2]).startswith(b"\x89PNG")


def test_without_flows_their_parts_are_missing(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert graphs_of(page) == []
    assert not any(text.startswith(("Flow of", "Which pixels")) for text in page.texts)


def test_the_paths_are_the_strongest_and_sum_to_the_number_below() -> None:
    flow = random_flow()
    part, graph = flow_part("any", flow), flow_graph(flow)
    paths = strongest_paths(graph, len(part["paths"]))
    assert len(paths) == 6
    for row, path in zip(part["paths"], paths, strict=True):
        assert [value(each) for each in row["flows"]] == pytest.approx(path.flows, rel=5e-3)
        assert value(row["weakest"]) == pytest.approx(min(abs(each) for each in path.flows), rel=5e-3)
        assert value(row["carried"]) == pytest.approx(carried_by(graph, path), rel=5e-3)
        assert len(row["nodes"]) == len(row["flows"]) + 1
    printed = sum(value(row["carried"]) for row in part["paths"])
    scale = sum(abs(value(row["carried"])) for row in part["paths"])
    assert value(part["carried"]) == pytest.approx(printed, abs=1e-2 * scale)


def test_the_paths_are_on_the_page(tmp_path: Path) -> None:
    part, page = flow_part("any", linear_flow()), written(tmp_path, flows={"any": linear_flow()})
    assert "(input) 1 → h 0 → (target)" in page.texts
    assert "+12.0" in page.texts
    # All there is: by the first unit 12 and 2, by the second 4 and -2.
    assert [row["carried"] for row in part["paths"]] == ["+12.0", "+2.00", "+4.00", "-2.00"]
    assert part["carried"] == "+16.0"
    assert part["share"] == "100%"
    assert page.texts[page.texts.index("these together") + 1 :][:2] == ["+16.0", "100%"]


def test_all_paths_carry_the_change_of_the_output() -> None:
    graph = flow_graph(random_flow())
    carried = [carried_by(graph, path) for path in strongest_paths(graph, 100_000)]
    assert sum(carried) == pytest.approx(graph.graph["output_change"], rel=1e-9)


def test_a_path_through_a_unit_that_has_nothing_carries_no_number(tmp_path: Path) -> None:
    flow = linear_flow([[1.0, 1.0]], [[2.0, 1.0], [-3.0, 3.0]], [1.0, 1.0])
    graph = flow_graph(flow)
    graph.add_edge(("h", 1), ("(target)", "target"), flow=1.0, share=1.0, error=0.0)
    through = [path for path in strongest_paths(graph, 9) if ("h", 1) in path.nodes]
    assert through
    assert all(carried_by(graph, path) != carried_by(graph, path) for path in through)
    assert written(tmp_path, flows={"any": flow}).open == []


def test_the_nodes_of_a_layer_sum_to_its_sum() -> None:
    flow = random_flow()
    for row in flow_part("any", flow)["layers"]:
        total = float(flow.conductance[row["layer"]].mean(0).sum())
        assert value(row["value"]) + value(row["others"]) + value(row["rest"]) == pytest.approx(total, abs=0.05)
        assert value(row["sum"]) == pytest.approx(total, rel=5e-3)
        gap = flow.gap[row["layer"]].mean(0).abs().sum()
        assert value(row["gap"]) == pytest.approx(float(gap), rel=0.5)
        assert row["error"] == "0.01"


def test_the_words_name_the_strongest_units() -> None:
    words = " ".join(flow_part("any", linear_flow(hidden=[[1.0, 3.0], [-4.0, -1.0]]))["words"])
    assert "the output changes by +8.00." in words
    assert "pushes it up most is unit 0 of h (+14.0)" in words
    assert "pushes it down most is unit 1 of h (−6.00)" in words
    assert "0\N{NO-BREAK SPACE}% of Σ|C|: the gaps" in words
    several = " ".join(flow_part("any", random_flow())["words"])
    assert f"on average over {EXAMPLES} examples" in several
    percent = re.search(r"([\d.]+)\s% of Σ\|C\|: the gaps", several)
    assert percent is not None
    assert float(percent[1]) > 0


def test_interrupted_examples_are_told_and_left_out(tmp_path: Path) -> None:
    flow = random_flow(status=("ok", "interrupted", "ok", "interrupted"))
    texts = written(tmp_path, flows={"some": flow}).texts
    assert any("2 examples interrupted" in text for text in texts)
    assert "2 unfinished" in texts
    assert any("on average over 2 examples" in text for text in texts)


def test_a_flow_of_which_nothing_is_finished_has_no_picture(tmp_path: Path) -> None:
    flow = random_flow(status=("interrupted",) * EXAMPLES)
    page = written(tmp_path, flows={"none": flow})
    assert any("is finished: each is interrupted" in text for text in page.texts)
    assert graphs_of(page) == []


def test_an_unconverged_flow_is_told(tmp_path: Path) -> None:
    flow = random_flow(status=("ok", "budget", "ok", "jump"), converged=torch.tensor([True, False, True, False]))
    texts = written(tmp_path, flows={"some": flow}).texts
    assert any("1 example budget, 1 example jump" in text for text in texts)
    assert "2 of 4, 1 budget, 1 jump" in texts


def test_where_nothing_flows_there_is_no_picture(tmp_path: Path) -> None:
    page = written(tmp_path, flows={"none": linear_flow([[0.0, 0.0]])})
    assert "Nothing flows: there is no picture to draw." in page.texts
    assert graphs_of(page) == []


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", '"><img src=x onerror=y>', "a & b $x$"])
def test_names_are_escaped(tmp_path: Path, evil: str, pixels: NeuronConductance) -> None:
    flow = random_flow(layers={evil: [0, 1, "rest"], "head": [1, 4]}, skips=())
    named = replace(pixels, info=replace(pixels.info, name=evil), status=(evil,), converged=torch.tensor([False]))
    options: dict[str, Any] = {"images": PICTURES, "captions": [evil] * IMAGES, "neurons": {0: named}}
    page = written(tmp_path, flows={evil: flow}, **options)
    assert f"Flow of conductance: {' '.join(evil.split())}" in page.texts
    assert f"Which pixels feed units of {evil}, in the image “{evil}”" in page.texts
    assert not {"script", "x"} & {*page.tags, *page.addresses}


@pytest.mark.parametrize(("ink", "paper"), [("#1f2429", "#ffffff"), ("#dfe3e8", "#1b1f24")])
def test_texts_halos_and_rings_have_the_colours_of_the_page(ink: str, paper: str) -> None:
    figure: Any = graph_figure(flow_graph(random_flow()), ink, paper)
    ax = figure.axes[0]
    assert all(same_color(text.get_color(), ink) for text in figure.findobj(Text))
    halos: list[Any] = [effect for text in ax.texts for effect in text.get_path_effects()]
    assert halos
    assert all(same_color(halo._gc["foreground"], paper) for halo in halos)
    rings = [ring for ring in ax.collections if ring.get_zorder() == 2.0]
    assert rings
    assert all(same_color(color, paper) for ring in rings for color in ring.get_edgecolor())
    assert same_color(figure.get_facecolor(), paper)


def legend_of(flow: ConductanceFlow) -> list[str]:
    legend = graph_figure(flow_graph(flow)).axes[0].get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_an_edge_that_is_alone_does_not_make_the_others_thin() -> None:
    flow = linear_flow([[1.0, 1.0]], [[3.0, 1.0], [2.0, 2.0]], [1.0, 1.0])
    assert "|flow| = 4" in legend_of(flow)
    assert "|flow| ≥ 3" in legend_of(linear_flow([[1.0, 1.0]], [[3.0, 1.0]], [1.0]))


def test_each_unit_has_its_pixels(tmp_path: Path, pixels: NeuronConductance) -> None:
    captions = [f"number {n}" for n in range(IMAGES)]
    page = written(tmp_path, images=PICTURES, captions=captions, neurons={0: pixels})
    assert "Which pixels feed units of 1, in the image “number 0”" in page.texts
    assert len(graphs_of(page)) == 3
    for unit, total in zip(pixels.neurons, pixels.total[0].tolist(), strict=True):
        assert page.texts[page.texts.index(f"unit {unit}") + 1] == f"{total:+.2f}".replace("-", "−")
    assert any(f"{int(pixels.evaluations)} evaluations" in text for text in page.texts)


def test_interrupted_and_unconverged_pixels_are_told(tmp_path: Path, pixels: NeuronConductance) -> None:
    gone = replace(pixels, status=("interrupted",), total=torch.full_like(pixels.total, torch.nan))
    short = replace(pixels, status=("budget",), converged=torch.tensor([False]))
    page = written(tmp_path, images=PICTURES, neurons={0: gone, 3: short})
    assert "The computation was interrupted: there is no picture to draw." in page.texts
    assert "Not converged: budget." in page.texts
    assert len(graphs_of(page)) == 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"flows": {"a": random_result()}}, TypeError, r"flows\['a'\] must be a ConductanceFlow, got TotalConductance"),
        ({"neurons": {0: "?"}}, ValueError, "neurons is given without images"),
        ({"neurons": {0: "?"}, "images": PICTURES}, TypeError, r"neurons\[0\] must be a NeuronConductance"),
    ],
)
def test_bad_arguments_say_what_is_wrong(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        written(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_neurons_that_fit_no_image_are_refused(tmp_path: Path, pixels: NeuronConductance) -> None:
    with pytest.raises(ValueError, match="neurons names example 5, but there are 5 images"):
        written(tmp_path, images=PICTURES, neurons={5: pixels})
    assert isinstance(pixels.values, torch.Tensor)
    grouped = replace(pixels, values=pixels.values.flatten(2))
    with pytest.raises(ValueError, match=r"values \(1, 3, 48\), expected \(1, neurons, height, width\)"):
        written(tmp_path, images=PICTURES, neurons={0: grouped})


def test_a_flow_that_was_computed_is_shown(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    flow = cd.conductance_flow(model, torch.rand(2, 3), ["0", "1"], top=3, target=0)
    assert isinstance(flow, ConductanceFlow)
    texts = written(tmp_path, flows={"computed": flow}).texts
    assert "2 of 2" in texts
    assert any(text.startswith("(input) → 0 ") for text in texts)
