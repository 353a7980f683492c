"""A sample of the invalid inputs of run.py for every target, and all inputs that ever broke something."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def fuzz(*arguments: str) -> str:
    """Run run.py, which must find no fault, and return its stderr."""
    command = [sys.executable, str(HERE / "run.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stderr


def test_every_target_rejects_invalid_input(tmp_path: Path) -> None:
    fuzz("--inputs", "3000", "--seconds", "2", "--json", str(tmp_path / "fuzz.json"))
    [run] = json.loads((tmp_path / "fuzz.json").read_text())["runs"]
    assert len(run["targets"]) == 10
    assert all(figures["inputs"] > 5 for figures in run["targets"].values()), run


def test_inputs_that_once_broke_something_no_longer_do() -> None:
    assert fuzz("--replay").count(": ok") == sum(path.is_file() for path in HERE.glob("corpus/*/*")) > 0


@pytest.mark.faults
def test_a_hundred_thousand_invalid_inputs() -> None:
    fuzz("--inputs", "100000", "--seconds", "120", "--start", "50000000")
