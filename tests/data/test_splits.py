"""Splits and windows contain each document once, in order, whatever the shape of the files."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.summarize import DocumentsInput
from pipeline.data import split_reader, splits
from pipeline.data.documents import open_documents
from pipeline.data.row_address import ROW_ADDRESS, unpack_address
from pipeline.data.split_reader import read_split, rebatch
from pipeline.data.splits import Split, cut_splits, split_from_dict
from pipeline.errors import UserError
from pipeline.io import retry
from pipeline.io.location import open_location

FILESYSTEM = open_location("/", "--x").filesystem


def write_documents(folder: Path, file_rows: list[int], row_group_rows: int) -> Path:
    """Write files of consecutive ids, with text columns of alternating types."""
    folder.mkdir()
    start = 0
    for number, rows in enumerate(file_rows):
        ids = list(range(start, start + rows))
        text = pa.array([f"text {n}" for n in ids], pa.large_string() if number % 2 else pa.string())
        table = pa.table({"unused": [["x"]] * rows, "text": text, "id": pa.array(ids, pa.int64())})
        pq.write_table(table, folder / f"{number:04}.parquet", row_group_size=row_group_rows)
        start += rows
    return folder


def cut(folder: Path, window_rows: int) -> list[Split]:
    return list(cut_splits(open_documents(DocumentsInput(path=str(folder))).files, window_rows))


def read_windows(split: Split, columns: list[str], rows: int) -> Iterator[pa.Table]:
    return rebatch(read_split(split, FILESYSTEM, columns, rows), rows)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 90), min_size=1, max_size=6), st.integers(1, 100), st.integers(1, 40), st.data())
def test_windows_are_full_and_contain_each_document_once_in_order(
    tmp_path_factory: pytest.TempPathFactory, file_rows: list[int], row_group_rows: int, window_rows: int, data: st.DataObject
) -> None:
    folder = write_documents(tmp_path_factory.mktemp("store") / "in", file_rows, row_group_rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "SMALL_FILE_BYTES", data.draw(st.sampled_from([-1, 2**20])))
        patch.setattr(splits, "MAX_BYTES", data.draw(st.sampled_from([1, 2000, 2**30])))
        for name in ("MAX_SPLITS_PER_ROW_GROUP", "MAX_WINDOWS", "MAX_FILES"):
            patch.setattr(splits, name, data.draw(st.integers(1, 4)))
        cut_files = cut(folder, window_rows)
    assert [split.number for split in cut_files] == list(range(len(cut_files)))
    assert [split_from_dict(asdict(split)) for split in cut_files] == cut_files
    ids = list[int]()
    for split in cut_files:
        windows = list(read_windows(split, ["id", "text"], window_rows))
        assert split.rows == sum(map(len, windows))
        assert all(len(window) == window_rows for window in windows[:-1])
        for window in windows:
            ids += window["id"].to_pylist()
            addresses = map(unpack_address, window[ROW_ADDRESS].to_pylist())
            assert [sum(file_rows[:file]) + row for file, row in addresses] == window["id"].to_pylist()
    assert ids == list(range(sum(file_rows)))


def test_small_files_share_a_split_and_large_files_are_cut(tmp_path: Path) -> None:
    cut_files = cut(write_documents(tmp_path / "small", [3] * 300, 10), 10)
    assert [len(split.row_ranges) for split in cut_files] == [107, 108, 87]  # 320 rows each: two files are cut
    cut_files = cut(write_documents(tmp_path / "large", [2000], 2000), 10)
    assert [split.rows for split in cut_files] == [320] * 6 + [80]


def test_large_row_group_is_cut_into_few_splits(tmp_path: Path) -> None:
    assert [split.rows for split in cut(write_documents(tmp_path / "one", [20_000], 20_000), 10)] == [2500] * 8
    assert [split.rows for split in cut(write_documents(tmp_path / "many", [20_000], 1_000), 10)] == [320] * 62 + [160]


def nested_schema(text: pa.DataType, binary: pa.DataType) -> pa.Schema:
    nested = pa.struct([("list", pa.list_(text)), ("large", pa.large_list(text)), ("three", pa.list_(text, 3))])
    columns = {"id": text, "text": text, "bytes": binary, "nested": nested, "map": pa.map_(pa.string(), text)}
    return pa.schema(columns.items())


def test_views_are_read_as_plain_types(tmp_path: Path) -> None:
    nested = {"list": ["y" * 40, None], "large": [], "three": [None, "z" * 40, ""]}
    row = {"text": "x" * 40, "bytes": b"z" * 40, "nested": nested, "map": [("a", "b" * 40)]}
    rows = [{"id": name, **row} for name in "xy"] + [{"id": "z", **dict.fromkeys(row)}]
    plain = nested_schema(pa.string(), pa.binary())
    for number, schema in enumerate([plain, nested_schema(pa.string_view(), pa.binary_view())]):
        pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / f"{number}.parquet")
    documents = open_documents(DocumentsInput(path=str(tmp_path), keep_columns=["bytes", "nested", "map"]))
    windows = [window for split in cut_splits(documents.files, 9) for window in read_windows(split, plain.names, 3)]
    assert [window.drop([ROW_ADDRESS]).take([2, 1, 0]).to_pylist() for window in windows] == [rows[::-1]] * 2


def test_changed_file_is_an_error(tmp_path: Path) -> None:
    folder = write_documents(tmp_path / "in", [30], 10)
    [split] = cut(folder, 10)
    with pytest.raises(UserError, match=r"0000\.parquet: .*body"):
        list(read_windows(split, ["body"], 10))
    pq.write_table(pq.read_table(folder / "0000.parquet").slice(0, 25), folder / "0000.parquet")
    with pytest.raises(UserError, match=r"0000\.parquet has 25 rows.* 30"):
        list(read_windows(split, ["id"], 10))
    (folder / "0000.parquet").unlink()
    with pytest.raises(UserError, match=r"0000\.parquet: No such file"):
        list(read_windows(split, ["id"], 10))


def test_failed_reads_are_retried_from_the_first_unread_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_documents(tmp_path / "in", [35, 20], 10)
    monkeypatch.setattr(retry.time, "sleep", lambda _: None)
    read_range, tables_read = split_reader.read_range, 0

    def failing_read_range(*args: Any) -> Iterator[pa.Table]:
        nonlocal tables_read
        for table in read_range(*args):
            yield table
            tables_read += 1
            if tables_read in failures:
                raise OSError(errno.EIO, "the storage does not answer")

    monkeypatch.setattr(split_reader, "read_range", failing_read_range)
    for small_file_bytes in (2**20, -1):
        failures, tables_read = {1, 2, 5}, 0
        monkeypatch.setattr(splits, "SMALL_FILE_BYTES", small_file_bytes)
        [split] = cut(folder, 10)
        assert [n for window in read_windows(split, ["id"], 10) for n in window["id"].to_pylist()] == list(range(55))
    failures, tables_read = set(range(99)), 0
    with pytest.raises(UserError, match=r"0000\.parquet: Input/output error; .*--input\.on_bad_file skip"):
        list(read_windows(split, ["id"], 10))
