"""The command, its options and the demonstration behind it."""

import builtins
import dataclasses
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import conductance as cd
from conductance.analysis import demo, digits
from conductance.analysis.cli import app

pytest.importorskip("sklearn", reason="the demonstration needs scikit-learn")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})


def plain(result: Result) -> str:
    """Give the output without frames and line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]|\x1b\[[0-9;]*m", " ", result.output).split())


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train for one epoch."""
    train = digits.train
    monkeypatch.setattr(demo, "train", lambda data, **options: train(data, **{**options, "epochs": 1}))


def test_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: f"9.9 of {name}")
    result = run("--version")
    assert result.exit_code == 0
    assert result.output == "conductance 9.9 of conductance\n"


def test_help_lists_the_demo() -> None:
    assert "demo" in plain(run("--help"))
    text = plain(run("demo", "--help"))
    for option in ("--output", "--images", "--rtol", "--seed", "--no-progress"):
        assert option in text


@pytest.mark.usefixtures("short")
def test_demo_writes_a_report_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("demo", "--images", "12", "--rtol", "0.1", "--seed", "3", "--no-progress")
    assert result.exit_code == 0, result.output
    report = tmp_path / "conductance-demo" / "report.html"
    assert result.output.splitlines()[-1] == str(report)
    assert "12 of 12 explanations converged" in result.output
    assert "browser" in result.output
    assert "it/s" not in result.output
    text = report.read_text(encoding="utf-8")
    for part in ("images = test_images[:12]", "rtol=0.1", "Top units of relu2", "Top unit of each class in relu2"):
        assert part in text
    for part in ("one image, recognised as", "Strongest paths", "Which pixels feed units of relu2"):
        assert part in text
    total = cd.load(report.with_name("result.safetensors"))
    assert isinstance(total, cd.TotalConductance)
    assert total.layers == ["conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "flatten", "fc"]
    assert len(total.status) == 12
    flow = cd.load(report.with_name("flow.safetensors"))
    assert isinstance(flow, cd.ConductanceFlow)
    assert flow.layers == ["relu1", "relu2", "fc"]
    assert f"mean of {flow.batch} images recognised as {flow.units['fc'][0]}" in text
    for picture in ("picture.png", "flow.png"):
        assert report.with_name(picture).stat().st_size < 200_000


@pytest.mark.usefixtures("short")
def test_a_tolerance_out_of_reach_is_told(tmp_path: Path) -> None:
    result = run("demo", "--images", "2", "--rtol", "1e-9", "--no-progress", "--output", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "0 of 2 explanations converged" in result.output
    assert "a larger --rtol" in result.output


@pytest.mark.usefixtures("short")
def test_demo_of_one_image_with_progress(tmp_path: Path) -> None:
    result = run("demo", "--images", "1", "--rtol", "0.1", "--output", str(tmp_path / "a" / "b"))
    assert result.exit_code == 0, result.output
    text = (tmp_path / "a" / "b" / "report.html").read_text(encoding="utf-8")
    assert "mean of 1 image recognised as" in text
    for bar in ("training", "conductance", "flow", "neurons", "report"):
        assert f"{bar}: " in result.stderr
    assert "training" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--images", "0"), "Invalid value for '--images'"),
        (("--images", "501"), "Invalid value for '--images'"),
        (("--images", "many"), "Invalid value for '--images'"),
        (("--rtol", "0"), "0.0 is not between 0 and 1; 1e-2 is one percent"),
        (("--rtol", "nan"), "nan is not between 0 and 1"),
        (("--seed", "-1"), "Invalid value for '--seed'"),
        (("--imges", "3"), "No such option"),
    ],
)
def test_bad_options_end_with_2(arguments: tuple[str, str], message: str, tmp_path: Path) -> None:
    result = run("demo", *arguments, "--output", str(tmp_path / "new"))
    assert result.exit_code == 2
    assert message in plain(result)
    assert not (tmp_path / "new").exists()


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    result = run("demo", "--output", str(path))
    assert result.exit_code == 2
    assert "is a file" in plain(result)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "Interrupted: no report was written."),
        (OSError("disk full"), 1, "Error: disk full"),
    ],
)
def test_interrupts_and_errors_are_told(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(demo, "run_demo", failing)
    result = run("demo")
    assert result.exit_code == code
    assert message in result.stderr


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    result = run("demo", "--output", str(tmp_path))
    assert result.exit_code == 1
    assert "pip install 'conductance[demo]'" in result.stderr


def test_an_interrupted_explanation_gives_no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    model = digits.digit_net().eval()
    monkeypatch.setattr(demo, "total_conductance", lambda *_, **__: type("R", (), {"status": ("interrupted",)}))
    with pytest.raises(KeyboardInterrupt):
        demo.explain(model, torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize("function", ["conductance_flow", "neuron_conductance"])
def test_an_interrupted_flow_gives_no_report(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    original = getattr(demo, function)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        found = original(*arguments, **options)
        return dataclasses.replace(found, status=("interrupted",) * len(found.status))

    monkeypatch.setattr(demo, function, interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.explain_flows(digits.digit_net().eval(), torch.rand(2, 1, 8, 8), rtol=0.3)


def test_flows_are_of_the_digit_that_is_found_most_often() -> None:
    model = digits.digit_net().eval()
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images[::3] *= 0.2
    with torch.no_grad():
        predicted = model(images).argmax(1)
    flows = demo.explain_flows(model, images, rtol=0.3)
    counts = predicted.bincount()
    assert counts[flows.digit] == counts.max()
    assert flows.example == int((predicted == flows.digit).nonzero()[0])
    assert flows.one.batch == len(flows.pixels.status) == 1
    assert flows.whole.batch == min(int(counts.max()), demo.OF_CLASS)
    assert flows.one.units["fc"] == [flows.digit, "rest"]
    assert flows.pixels.neurons == flows.one.units["relu2"][: demo.FED]
    assert torch.allclose(flows.one.output, flows.whole.output[:1])


def test_training_repeats_and_leaves_the_random_state() -> None:
    data = digits.load_digits(5)
    state = torch.get_rng_state()
    models = [digits.train(data, epochs=1, seed=seed) for seed in (5, 5, 6)]
    assert torch.equal(torch.get_rng_state(), state)
    first, second, other = (model.state_dict()["conv2.weight"] for model in models)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert not models[0].training


def test_the_code_that_the_report_shows_runs() -> None:
    data = digits.load_digits()
    names: dict[str, Any] = {"test_images": data.test_images[:60], "test_labels": data.test_labels[:60]}
    names["model"] = digits.digit_net().eval()
    exec(demo.CALL.format(count=2, rtol=0.1, **demo.ASKED), names)
    assert len(names["total"].status) == 2
    assert names["total"].settings["rtol"] == 0.1
    assert set(names["units"]["layer"]) == {"relu2"}
    assert names["flow"].batch == len(names["of_digit"]) >= 1
    assert names["flow"].settings["rtol"] == names["pixels"].settings["rtol"] == 0.1
    assert len(names["pixels"].neurons) == demo.FED
    assert names["curve"]["score"].nunique() > 2
    assert set(names["path"]["layer"]) == {"", *demo.FLOWING}


def test_digits_are_split_by_the_seed() -> None:
    first, second = digits.load_digits(1), digits.load_digits(2)
    assert first.train_images.shape == (1297, 1, 8, 8)
    assert first.test_images.shape == (digits.TEST_IMAGES, 1, 8, 8)
    assert float(first.train_images.max()) == 1.0
    assert not torch.equal(first.test_labels, second.test_labels)


@pytest.mark.parametrize(("options", "message"), [({"images": 501}, "images is 501"), ({"epochs": 0}, "epochs is 0")])
def test_run_demo_checks_its_numbers(tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        demo.run_demo(tmp_path, **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_demo_is_quick_and_its_network_good(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    made = demo.run_demo(tmp_path)
    assert made.accuracy >= 0.97
    assert bool(made.result.converged.all())
    assert made.seconds < 90
    assert torch.get_num_threads() == threads
