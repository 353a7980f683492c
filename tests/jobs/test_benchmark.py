"""``jobs.benchmark``: what is wrong with the options is said before anything is measured."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.benchmark import main
from pipeline.errors import UserError


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(*options: str) -> int:
        monkeypatch.setattr(sys, "argv", ["benchmark", "workers", *options])
        return main()

    return run


def test_a_file_that_cannot_be_written(benchmark: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^cannot write .*; set --json$"):
        benchmark("--json", str(tmp_path / "file" / "figures.json"))


def test_one_step_has_no_speed(benchmark: Callable[..., int], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--training\.max_steps to 2 or more"):
        benchmark("--json", str(tmp_path / "figures.json"), "--training.max_steps", "1")
    assert not list(tmp_path.iterdir())
