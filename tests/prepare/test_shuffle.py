"""Shuffling: each row once, in a random but reproducible order, whether or not the rows fit in memory."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from pipeline.prepare.shuffle import ExternalShuffle


class Line(NamedTuple):
    key: str
    text: str


LINES = [Line(str(number), f"text {number} \n é \u3042") for number in range(1000)]


def shuffle(folder: Path, lines: list[Line], max_chars: int, seed: int = 1) -> list[Line]:
    external = ExternalShuffle(Line, folder, max_chars, seed)
    for line in lines:
        external.add(line)
    return list(external.drain())


# 1,000,000: all rows fit in memory; 6,000: rows go to files; 150: the rows of a file go to files again.
@pytest.mark.parametrize("max_chars", [1_000_000, 6_000, 150])
def test_shuffle_keeps_rows_and_order_depends_on_seed(tmp_path: Path, max_chars: int) -> None:
    shuffled = shuffle(tmp_path / "a", LINES, max_chars)
    assert sorted(shuffled) == sorted(LINES)
    assert shuffled == shuffle(tmp_path / "b", LINES, max_chars)
    assert shuffled != shuffle(tmp_path / "c", LINES, max_chars, seed=2)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    rows = np.array([int(line.key) for line in shuffled])
    # In a random order the correlation is normal with deviation 1/√1000 = 0.03, and the first tenth has a mean of 500 ± 27.
    assert abs(np.corrcoef(rows, np.arange(len(rows)))[0, 1]) < 0.12
    assert abs(rows[:100].mean() - 500) < 110


def test_memory_is_bounded(tmp_path: Path) -> None:
    external = ExternalShuffle(Line, tmp_path, max_chars=1000)
    for line in LINES:
        external.add(line)
        assert external.buffered_chars <= 1000


def test_rows_longer_than_the_limit(tmp_path: Path) -> None:
    lines = [Line(str(number), "x" * 500) for number in range(20)]
    assert sorted(shuffle(tmp_path, lines, max_chars=100)) == sorted(lines)


def test_no_rows(tmp_path: Path) -> None:
    assert shuffle(tmp_path, [], 1000) == []
