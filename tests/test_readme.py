"""The example of the README runs and prints what the README shows."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_the_example_prints_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    text = README.read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    shown = re.search(r"```text\n(.*?)```", text, re.DOTALL)
    assert code is not None
    assert shown is not None
    exec(compile(code[1], "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    expected = shown[1].splitlines()
    assert printed[0].startswith("TotalConductance(3 layers, 5 examples, 5 converged")
    assert [line.split()[:4] for line in printed[1:5]] == [line.split()[:4] for line in expected[1:5]]
    assert len(printed) == len(expected)
