"""Whoever reads a unit again leaves out the rows that were left out before, and no others."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from pipeline.config.summarize import DocumentsInput
from pipeline.data.split_reader import ReadFailure
from pipeline.data.splits import RowRange, Split
from pipeline.errors import UserError
from pipeline.inference.stages.read import ReadWindows
from pipeline.io.location import open_location
from pipeline.runs.unreadable_files import UnreadableFiles

# The second of three files is the larger, of several row groups: its beginning may be read where its end cannot.
ROWS = (5, 40, 10)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    start, paths = 0, []
    for number, rows in enumerate(ROWS):
        ids = list(range(start, start + rows))
        paths.append(tmp_path / f"{number}.parquet")
        pq.write_table(pa.table({"id": ids, "text": [f"text {n}" for n in ids]}), paths[-1], row_group_size=20)
        start += rows
    return paths


@pytest.fixture
def unit(files: list[Path]) -> Split:
    return Split(
        7, tuple(RowRange(str(path), n, 0, rows, rows) for n, (path, rows) in enumerate(zip(files, ROWS, strict=True)))
    )


@pytest.fixture
def stage(files: list[Path], tmp_path: Path, tokenizer_file: bytes) -> ReadWindows:
    bad_files = UnreadableFiles("skip", open_location(str(tmp_path / "unread"), "--output.path"))
    return ReadWindows(
        fs.LocalFileSystem(), 10, None, tokenizer_file, DocumentsInput(path=str(files[0].parent)), 8, b"", bad_files
    )


def ids(stage: ReadWindows, unit: Split, is_first: bool) -> list[list[int]]:
    return [window["id"].to_pylist() for window, _ in stage.read(unit, is_first)]


def break_second_row_group(path: Path) -> bytes:
    content = path.read_bytes()
    at = pq.ParquetFile(path).metadata.row_group(1).column(0).file_offset or 0
    offset = pq.ParquetFile(path).metadata.row_group(1).column(0).dictionary_page_offset or at
    path.write_bytes(content[:offset] + bytes(60) + content[offset + 60 :])
    return content


def test_what_was_left_out_stays_so(files: list[Path], unit: Split, stage: ReadWindows) -> None:
    sound = break_second_row_group(files[1])
    left = [*range(25), *range(45, 55)]
    windows = [left[start : start + 10] for start in range(0, 35, 10)]
    assert ids(stage, unit, is_first=True) == windows
    *_, (_, passport) = stage.read(unit, is_first=False)
    assert {path: unread.rows for path, unread in passport.unread.items()} == {str(files[1]): 20}
    files[1].write_bytes(sound)
    assert ids(stage, unit, is_first=False) == windows


def test_what_was_read_may_not_fail(files: list[Path], unit: Split, stage: ReadWindows) -> None:
    assert [len(window) for window in ids(stage, unit, is_first=True)] == [10, 10, 10, 10, 10, 5]
    break_second_row_group(files[1])
    with pytest.raises(UserError, match=r"cannot read .*1\.parquet, which this run could before: .*--output\.run_id"):
        ids(stage, unit, is_first=False)
    files[2].unlink()
    with pytest.raises(UserError, match=r"1\.parquet"):
        ids(stage, unit, is_first=False)


def test_of_a_file_that_is_left_out_whole_nothing_is_read(files: list[Path], unit: Split, stage: ReadWindows) -> None:
    sound = files[0].read_bytes()
    files[0].unlink()
    assert ids(stage, unit, is_first=True)[0] == [*range(5, 15)]
    files[0].write_bytes(sound)
    assert ids(stage, unit, is_first=False)[0] == [*range(5, 15)]


def test_what_the_census_left_out_of_a_file_stays_out_when_more_of_it_does(unit: Split, stage: ReadWindows) -> None:
    path = unit.row_ranges[1].path
    for rows in (8, 12):
        stage.bad_files.of(unit, is_first=True).note(ReadFailure(path, rows, f"{rows} rows"))
    left_out = stage.bad_files.of(unit, is_first=False)
    assert left_out.unread[path].rows == 20
    assert left_out.readable.rows == sum(ROWS) - 20
