"""Windows hold each document of a store once, in order, whatever the files' shape."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.summarize import DocumentsInput
from pipeline.data import split_reader, splits
from pipeline.data.arrow import row_to_table, table_to_row
from pipeline.data.documents import open_documents
from pipeline.data.split_reader import read_split, rebatch
from pipeline.data.splits import Split, cut_splits, split_from_dict
from pipeline.errors import UserError
from pipeline.inference.stages.read import cut_by_tokens
from pipeline.inference.stages.window import IDS
from pipeline.io import retry
from pipeline.io.location import open_location

FILESYSTEM = open_location("/", "--x").filesystem


def store_of(folder: Path, sizes: list[int], row_group: int) -> Path:
    folder.mkdir()
    start = 0
    for number, size in enumerate(sizes):
        ids = list(range(start, start + size))
        text = pa.array([f"text {n}" for n in ids], pa.large_string() if number % 2 else pa.string())
        table = pa.table({"more": [["x"]] * size, "text": text, "id": pa.array(ids, pa.int64())})
        pq.write_table(table, folder / f"{number:04}.parquet", row_group_size=row_group)
        start += size
    return folder


def windows_of(unit: Split, columns: list[str], rows: int) -> Iterator[pa.Table]:
    return rebatch(read_split(unit, FILESYSTEM, columns, rows), rows)


def read(folder: Path, window_rows: int) -> tuple[list[Split], list[list[int]]]:
    units = list(cut_splits(open_documents(DocumentsInput(path=str(folder))).files, window_rows))
    assert [unit.number for unit in units] == list(range(len(units)))
    assert [split_from_dict(asdict(unit)) for unit in units] == units
    return units, [[window["id"].to_pylist() for window in windows_of(unit, ["id", "text"], window_rows)] for unit in units]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 90), min_size=1, max_size=6), st.integers(1, 100), st.integers(1, 40), st.booleans(), st.data())
def test_each_document_once_in_order_and_windows_full(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    row_group: int,
    window_rows: int,
    small: bool,
    data: st.DataObject,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split_reader, "_SMALL_BYTES", 2**20 if small else -1)
        patch.setattr(split_reader, "_BYTES_OF_A_UNIT", data.draw(st.sampled_from([1, 2000, 2**30])))
        patch.setattr(split_reader, "_UNITS_OF_A_ROW_GROUP", data.draw(st.integers(1, 4)))
        patch.setattr(split_reader, "_WINDOWS_OF_A_UNIT", data.draw(st.integers(1, 4)))
        patch.setattr(split_reader, "_FILES_OF_A_UNIT", data.draw(st.integers(1, 4)))
        folder = store_of(tmp_path_factory.mktemp("store") / "in", sizes, row_group)
        units, found = read(folder, window_rows)
    assert [n for unit in found for window in unit for n in window] == list(range(sum(sizes)))
    for unit, of_unit in zip(units, found, strict=True):
        assert unit.rows == sum(map(len, of_unit))
        assert all(len(window) == window_rows for window in of_unit[:-1])


def test_many_small_files_share_units_and_a_large_one_has_many(tmp_path: Path) -> None:
    units, _ = read(store_of(tmp_path / "small", [3] * 300, 10), 10)
    assert [len(unit.spans) for unit in units] == [107, 108, 87]  # 320 rows each: the last files of two are cut
    units, found = read(store_of(tmp_path / "large", [2000], 2000), 10)
    assert [unit.rows for unit in units] == [320] * 6 + [80]
    assert {len(window) for of_unit in found for window in of_unit} == {10}


def viewed(text: pa.DataType, of_bytes: pa.DataType) -> pa.Schema:
    inside = pa.struct([("list", pa.list_(text)), ("large", pa.large_list(text)), ("three", pa.list_(text, 3))])
    columns = {"id": text, "text": text, "bytes": of_bytes, "inside": inside, "map": pa.map_(pa.string(), text)}
    return pa.schema(columns.items())


def test_views_are_read_as_what_they_view(tmp_path: Path) -> None:
    inside = {"list": ["y" * 40, None], "large": [], "three": [None, "z" * 40, ""]}
    row = {"text": "x" * 40, "bytes": b"z" * 40, "inside": inside, "map": [("a", "b" * 40)]}
    rows = [{"id": name, **row} for name in "xy"] + [{"id": "z", **dict.fromkeys(row)}]
    plain = viewed(pa.string(), pa.binary())
    for number, schema in enumerate([plain, viewed(pa.string_view(), pa.binary_view())]):
        pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / f"{number}.parquet")
    store = open_documents(DocumentsInput(path=str(tmp_path), keep_columns=["bytes", "inside", "map"]))
    found = [table for unit in cut_splits(store.files, 9) for table in windows_of(unit, plain.names, 3)]
    assert [table.drop(["nightshift.position"]).take([2, 1, 0]).to_pylist() for table in found] == [rows[::-1]] * 2


def test_a_table_is_the_same_after_it_has_been_a_row() -> None:
    fields = [
        pa.field("a", pa.int64(), metadata={"unit": "m"}),
        pa.field("b", pa.list_(pa.string())),
        pa.field("c", pa.null()),
        pa.field("d", pa.int8(), nullable=False),
        pa.field("e", pa.dictionary(pa.int32(), pa.string())),
    ]
    columns = [pa.chunked_array([[1, 2], [None]]), [["x"], None, []], pa.nulls(3), [1, 2, 3], ["y", "z", "y"]]
    table = pa.table(
        [
            pa.array(column, field.type) if isinstance(column, list) else column
            for column, field in zip(columns, fields, strict=True)
        ],
        schema=pa.schema(fields),
    )
    for part in (table, table.slice(1), table.slice(3)):
        row = table_to_row(part)
        assert len(row) == 1
        assert row_to_table(row).equals(part.combine_chunks(), check_metadata=True)
        twice = pa.concat_tables([table_to_row(table), row])
        assert row_to_table(twice.slice(1)).equals(part.combine_chunks())


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(1, 60))
def test_windows_end_before_they_have_too_many_tokens(lengths: list[int], most: int) -> None:
    ids = pa.array([[7] * length for length in lengths], pa.list_(pa.int32()))
    parts = list(cut_by_tokens(pa.table({"row": range(len(lengths)), IDS: ids}), most))
    assert [row for part in parts for row in part["row"].to_pylist()] == list(range(len(lengths)))
    tokens = [[len(row) for row in part[IDS].to_pylist()] for part in parts]
    assert all(part and (sum(part) <= most or len(part) == 1) for part in tokens)
    assert all(sum(part) + after[0] > most for part, after in pairwise(tokens))


def test_a_large_row_group_is_few_units(tmp_path: Path) -> None:
    units, _ = read(store_of(tmp_path / "in", [20_000], 20_000), 10)
    assert [unit.rows for unit in units] == [2500] * 8
    units, _ = read(store_of(tmp_path / "groups", [20_000], 1_000), 10)
    assert [unit.rows for unit in units] == [320] * 62 + [160]


def test_a_file_that_has_changed_or_is_gone(tmp_path: Path) -> None:
    folder = store_of(tmp_path / "in", [30], 10)
    [unit] = cut_splits(open_documents(DocumentsInput(path=str(folder))).files, 10)
    with pytest.raises(UserError, match=r"cannot read .*0000\.parquet: .*body"):
        list(windows_of(unit, ["body"], 10))
    pq.write_table(pq.read_table(folder / "0000.parquet").slice(0, 25), folder / "0000.parquet")
    with pytest.raises(UserError, match=r"0000\.parquet has 25 rows where it had 30 when the run began"):
        list(windows_of(unit, ["id"], 10))
    (folder / "0000.parquet").unlink()
    with pytest.raises(UserError, match=r"cannot read .*0000\.parquet: No such file"):
        list(windows_of(unit, ["id"], 10))


def test_a_storage_that_fails_for_a_moment_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store_of(tmp_path / "in", [35, 20], 10)
    monkeypatch.setattr(retry.time, "sleep", lambda _: None)
    real, failures = split_reader._read_range, 0

    def failing(*given: Any) -> Iterator[pa.Table]:
        nonlocal failures
        for table in real(*given):
            yield table
            failures += 1
            if failures in broken:
                raise OSError(errno.EIO, "the storage does not answer")

    monkeypatch.setattr(split_reader, "_tables_of", failing)
    for small in (2**20, -1):
        broken, failures = {1, 2, 5}, 0
        monkeypatch.setattr(splits, "_SMALL_BYTES", small)
        [unit] = cut_splits(open_documents(DocumentsInput(path=str(folder))).files, 10)
        found = [window["id"].to_pylist() for window in windows_of(unit, ["id"], 10)]
        assert [n for window in found for n in window] == list(range(55))
    broken, failures = set(range(99)), 0
    with pytest.raises(UserError, match=r"cannot read .*0000\.parquet: Input/output error; mend it, or go on without"):
        list(windows_of(unit, ["id"], 10))
