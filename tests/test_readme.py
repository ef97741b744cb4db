"""The example of the README runs and prints what the README shows."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_the_examples_print_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    text = README.read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    shown = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    assert len(code) == len(shown) == 6
    names: dict[str, object] = {}
    exec(compile(code[0], "README.md", "exec"), names)
    printed, expected = capsys.readouterr().out.splitlines(), shown[0].splitlines()
    assert printed[0].startswith("TotalConductance(3 layers, 5 examples, 5 converged")
    assert [line.split()[:4] for line in printed[1:5]] == [line.split()[:4] for line in expected[1:5]]
    assert len(printed) == len(expected)
    exec(compile(code[1], "README.md", "exec"), names)
    printed, expected = capsys.readouterr().out.splitlines(), shown[1].splitlines()
    assert len(printed) == len(expected)
    for number in (0, 2, 5):
        assert printed[number].split(", worst")[0] == expected[number].split(", worst")[0]
    assert [line.split(")) ")[0] for line in printed[3:5]] == [line.split(")) ")[0] for line in expected[3:5]]
    assert [line.split()[:3] for line in printed[6:]] == [line.split()[:3] for line in expected[6:]]
    exec(compile(code[2], "README.md", "exec"), names)
    assert capsys.readouterr().out == shown[2]
    exec(compile(code[3], "README.md", "exec"), names)
    printed, expected = capsys.readouterr().out.splitlines(), shown[3].splitlines()
    assert [line.split(" ['")[0] for line in printed] == [line.split(" ['")[0] for line in expected]
    changes = [
        [float(number) for line in lines for number in re.findall(r"'(.*?)'", line)] for lines in (printed, expected)
    ]
    assert changes[0] == pytest.approx(changes[1], abs=0.3)
    exec(compile(code[4], "README.md", "exec"), names)
    assert capsys.readouterr().out == shown[4]
    exec(compile(code[5], "README.md", "exec"), names)
    assert capsys.readouterr().out == shown[5]
