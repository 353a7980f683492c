"""A split that is read again, after a crash, gives the same windows: the rows skipped before, and no others, are skipped."""

from __future__ import annotations

from dataclasses import replace
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

ROWS = (5, 40, 10)
"""Rows of three files. The second has two row groups, of which only the second will be unreadable."""


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
def split(files: list[Path]) -> Split:
    row_ranges = [RowRange(str(path), n, 0, rows, rows) for n, (path, rows) in enumerate(zip(files, ROWS, strict=True))]
    return Split(7, tuple(row_ranges))


@pytest.fixture
def stage(files: list[Path], tmp_path: Path, tokenizer_file: bytes) -> ReadWindows:
    """The stage as the first task of a run uses it."""
    return ReadWindows(
        filesystem=fs.LocalFileSystem(),
        window_rows=10,
        window_tokens=None,
        tokenizer_file=tokenizer_file,
        input=DocumentsInput(path=str(files[0].parent)),
        max_source_tokens=8,
        salt=b"",
        unreadable=UnreadableFiles("skip", open_location(str(tmp_path / "unread"), "--output.path")),
    )


@pytest.fixture
def sealed(stage: ReadWindows) -> ReadWindows:
    """The stage as a later task uses it."""
    return replace(stage, unreadable=stage.unreadable.seal())


def read_ids(stage: ReadWindows, split: Split) -> list[list[int]]:
    """Return the ids of each window."""
    return [window["id"].to_pylist() for window, _ in stage.read(split)]


def break_second_row_group(path: Path) -> bytes:
    content = path.read_bytes()
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    offset = column.dictionary_page_offset or column.data_page_offset
    path.write_bytes(content[:offset] + bytes(60) + content[offset + 60 :])
    return content


def test_skipped_rows_stay_skipped(files: list[Path], split: Split, stage: ReadWindows, sealed: ReadWindows) -> None:
    intact = break_second_row_group(files[1])
    remaining = [*range(25), *range(45, 55)]
    windows = [remaining[start : start + 10] for start in range(0, 35, 10)]
    assert read_ids(stage, split) == windows
    *_, (_, metadata) = sealed.read(split)
    assert {path: unread.rows for path, unread in metadata.unread.items()} == {str(files[1]): 20}
    files[1].write_bytes(intact)
    assert read_ids(sealed, split) == windows


def test_rows_that_were_read_before_must_be_readable(
    files: list[Path], split: Split, stage: ReadWindows, sealed: ReadWindows
) -> None:
    assert [len(window) for window in read_ids(stage, split)] == [10, 10, 10, 10, 10, 5]
    break_second_row_group(files[1])
    with pytest.raises(UserError, match=r"1\.parquet.*--output\.run_id"):
        read_ids(sealed, split)
    files[2].unlink()
    with pytest.raises(UserError, match=r"1\.parquet"):
        read_ids(sealed, split)


def test_file_that_was_skipped_as_a_whole_is_not_read(
    files: list[Path], split: Split, stage: ReadWindows, sealed: ReadWindows
) -> None:
    intact = files[0].read_bytes()
    files[0].unlink()
    assert read_ids(stage, split)[0] == [*range(5, 15)]
    files[0].write_bytes(intact)
    assert read_ids(sealed, split)[0] == [*range(5, 15)]


def test_rows_skipped_when_ids_were_read_stay_skipped_when_more_are(
    split: Split, stage: ReadWindows, sealed: ReadWindows
) -> None:
    path = split.row_ranges[1].path
    for rows in (8, 12):
        stage.unreadable.of(split).note(ReadFailure(path, rows, f"{rows} rows"))
    skipped = sealed.unreadable.of(split)
    assert skipped.unread[path].rows == 20
    assert skipped.readable.rows == sum(ROWS) - 20


def test_split_without_readable_rows_gives_one_empty_window(files: list[Path], split: Split, stage: ReadWindows) -> None:
    for file in files:
        file.unlink()
    [(window, metadata)] = replace(stage, window_tokens=100).read(split)
    assert (len(window), metadata.last, len(metadata.unread)) == (0, True, 3)
