"""A few of the wrong inputs that run.py makes, to every target; and each that ever broke something, again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    return subprocess.run(
        [sys.executable, str(HERE / "run.py"), *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_wrong_input_of_all_kinds_is_refused_in_words(tmp_path: Path) -> None:
    ran = _run("--inputs", "3000", "--seconds", "2", "--json", str(tmp_path / "fuzz.json"))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    [run] = json.loads((tmp_path / "fuzz.json").read_text())["runs"]
    assert len(run["targets"]) == 10
    assert all(figures["inputs"] > 5 for figures in run["targets"].values()), run


def test_what_once_broke_something_does_not_again() -> None:
    ran = _run("--replay")
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count(": sound") == sum(path.is_file() for path in HERE.glob("corpus/*/*")) > 0


@pytest.mark.faults
def test_a_hundred_thousand_wrong_inputs() -> None:
    ran = _run("--inputs", "100000", "--seconds", "120", "--start", "50000000")
    assert ran.returncode == 0, ran.stdout + ran.stderr
