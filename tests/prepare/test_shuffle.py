"""Mixing: every row once, another order, the same each time, whether or not the rows fit in memory."""

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


def mixed(folder: Path, lines: list[Line], held_chars: int, seed: int = 1) -> list[Line]:
    mixer = ExternalShuffle(Line, folder, seed, held_chars)
    for line in lines:
        mixer.add(line)
    return list(mixer.drain())


# A million: all in memory; 6,000: dealt to files; 150: the files are dealt again.
@pytest.mark.parametrize("held_chars", [1_000_000, 6_000, 150])
def test_each_row_comes_back_once_in_an_order_that_only_the_seed_decides(tmp_path: Path, held_chars: int) -> None:
    found = mixed(tmp_path / "a", LINES, held_chars)
    assert sorted(found) == sorted(LINES)
    assert found == mixed(tmp_path / "b", LINES, held_chars)
    assert found != mixed(tmp_path / "c", LINES, held_chars, seed=2)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("held_chars", [1_000_000, 6_000, 150])
def test_where_a_row_comes_says_nothing_of_where_it_was(tmp_path: Path, held_chars: int) -> None:
    was = np.array([int(line.key) for line in mixed(tmp_path, LINES, held_chars)])
    # Of a random order the correlation is normal with deviation 1/√1000 = 0.03, and the first tenth has a mean of 500 ± 27.
    assert abs(np.corrcoef(was, np.arange(len(was)))[0, 1]) < 0.12
    assert abs(was[:100].mean() - 500) < 110


def test_no_more_is_held_than_is_allowed(tmp_path: Path) -> None:
    mixer = ExternalShuffle(Line, tmp_path, held_chars=1000)
    for line in LINES:
        mixer.add(line)
        assert sum(len(text) for held in mixer._held for text in held) <= 1000


def test_rows_longer_than_what_may_be_held_come_through(tmp_path: Path) -> None:
    lines = [Line(str(number), "x" * 500) for number in range(20)]
    assert sorted(mixed(tmp_path, lines, held_chars=100)) == sorted(lines)


def test_no_rows_give_none(tmp_path: Path) -> None:
    assert mixed(tmp_path, [], 1000) == []
