"""Rows of every input format, bad rows and bad inputs; on real data where it is available."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.prepare import PairsInput
from pipeline.errors import UserError
from pipeline.prepare.files import strip_query
from pipeline.prepare.readers import read_rows
from pipeline.prepare.rows import COLUMN_CHECK_ROWS, Row, RowError, get_value

SHARED = Path(__file__).parents[2].parent / "shared" / "data"

needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is missing")


def read(path: Path | str, **options: Any) -> list[tuple[str, Row | RowError]]:
    inputs = PairsInput(train=str(path), **options)
    return list(read_rows(inputs.train, "train", inputs))


def rows(path: Path | str, **options: Any) -> list[Row | RowError]:
    return [row for _, row in read(path, **options)]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(*objects: Any) -> str:
    return "".join(json.dumps(item) + "\n" for item in objects)


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


A, B = {"source": "a", "target": "x"}, {"source": "b", "target": "y"}


# Real data


@needs_data
def test_arxiv_tsv_keeps_quotation_marks() -> None:
    table = rows(SHARED / "arxiv_cs/dev.tsv.xz", columns=["id", "created", "category", "target", "source"])
    assert len(table) == 3000
    assert all(isinstance(row, dict) and row["source"] and row["target"] for row in table)
    assert any('"' in row["source"] for row in table if isinstance(row, dict))


@needs_data
def test_scan_is_read_by_a_pattern_from_a_tar_xz() -> None:
    path = f"tar://simple_split/tasks_test_simple.txt::{SHARED}/scan/simple_split.tar.xz"
    table = read(path, pattern="IN: (?P<source>.+) OUT: (?P<target>.+)")
    assert len(table) == 4182
    assert table[1] == (
        f"{path}:2",
        {
            "source": "run right twice after walk right twice",
            "target": "I_TURN_RIGHT I_WALK I_TURN_RIGHT I_WALK I_TURN_RIGHT I_RUN I_TURN_RIGHT I_RUN",
        },
    )


@needs_data
def test_tatoeba_is_read_from_a_zip() -> None:
    table = rows(f"zip://fra.txt::{SHARED}/tatoeba/fra-eng.zip", columns=["source", "target"], max_rows=1000)
    assert len(table) == 1000
    assert table[0] == {"source": "Go.", "target": "Va !"}


@needs_data
def test_scitldr_has_lists_of_strings() -> None:
    table = rows(SHARED / "scitldr/dev.jsonl.xz", id_column="paper_id")
    assert len(table) == 619
    assert all(isinstance(row, dict) and isinstance(row["source"], list) and isinstance(row["target"], list) for row in table)


# Formats


@pytest.mark.parametrize(
    ("ending", "compress"),
    [("", bytes), (".xz", lzma.compress), (".gz", gzip.compress), (".bz2", bz2.compress), (".zst", zstd)],
)
def test_json_lines_are_decompressed(tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]) -> None:
    path = write(tmp_path / f"pairs.jsonl{ending}", compress(jsonl(A, B).encode()))
    assert read(path) == [(f"{path}:1", A), (f"{path}:2", B)]


def test_blank_lines_are_skipped(tmp_path: Path) -> None:
    assert rows(write(tmp_path / "a.jsonl", f"\n{jsonl(A)}  \n\n{jsonl(B)}\n")) == [A, B]
    assert rows(write(tmp_path / "a.tsv", "source\ttarget\n\na\tx\n\n")) == [A]
    assert rows(write(tmp_path / "a.csv", "source,target\n\na,x\n\n")) == [A]


def test_each_tsv_file_has_its_own_header(tmp_path: Path) -> None:
    write(tmp_path / "1.tsv", "source\ttarget\r\na\tx\r\n")
    write(tmp_path / "2.tsv", "target\tsource\ny\tb\n")
    assert rows(tmp_path / "*.tsv") == [A, B]


def test_byte_order_mark_is_removed(tmp_path: Path) -> None:
    assert rows(write(tmp_path / "a.tsv", b"\xef\xbb\xbfsource\ttarget\na\tx\n")) == [A]


def test_quoted_csv_fields_have_commas_quotes_and_line_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'source,target\n"a, ""b""\n\nc",x\nd,e\n')
    assert read(path) == [
        (f"{path}:2", {"source": 'a, "b"\n\nc', "target": "x"}),
        (f"{path}:5", {"source": "d", "target": "e"}),
    ]


def test_parquet_files_and_folders_are_read_without_other_columns(tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    for number, row in enumerate([A, B]):
        pq.write_table(pa.Table.from_pylist([{**row, "n": number}]), folder / f"{number}.parquet")
    assert read(folder / "1.parquet") == [(f"{folder}/1.parquet row 0", B)]
    assert rows(folder) == rows(f"file://{folder}/*.parquet") == [A, B]


def test_folder_is_searched_for_visible_files_of_the_format(tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    (folder / "deep").mkdir(parents=True)
    (folder / "_temporary").mkdir()
    write(folder / "1.jsonl", jsonl(A))
    write(folder / "deep/2.jsonl.gz", gzip.compress(jsonl(B).encode()))
    for other in ("_temporary/3.jsonl", ".4.jsonl", "README.md", "5.tsv"):
        write(folder / other, "no row\n")
    assert rows(folder, format="jsonl") == [A, B]


def test_nested_field_is_named_with_a_dot(tmp_path: Path) -> None:
    translation = {"translation": {"en": "a", "fr": "b", "de": None}}
    pq.write_table(pa.Table.from_pylist([translation]), tmp_path / "a.parquet")
    write(tmp_path / "a.jsonl", jsonl(translation))
    for path in (tmp_path / "a.parquet", tmp_path / "a.jsonl"):
        (row,) = rows(path, source_column="translation.en", target_column="translation.fr")
        assert isinstance(row, dict)
        assert (get_value(row, "translation.en"), get_value(row, "translation.fr")) == ("a", "b")
        assert get_value(row, "translation.de") is get_value(row, "translation.xx") is get_value(row, "no.such") is None


def test_compressed_file_in_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("deep/pairs.jsonl.gz", gzip.compress(jsonl(A).encode()))
    assert rows(f"zip://deep/pairs.jsonl.gz::{tmp_path}/a.zip") == [A]


def test_max_rows_includes_bad_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", f"{jsonl(A)}oops\n{jsonl(B)}")
    assert [type(row) for row in rows(path, max_rows=2)] == [dict, RowError]


# The datasets package


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Any:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return datasets


def test_saved_data_sets_are_read_by_split(tmp_path: Path, offline: Any) -> None:
    one, two = offline.Dataset.from_list([A]), offline.Dataset.from_list([B])
    one.save_to_disk(tmp_path / "one")
    offline.DatasetDict({"train": one, "test": two}).save_to_disk(tmp_path / "both")
    assert read(tmp_path / "one") == [(f"{tmp_path}/one row 0", A)]
    assert rows(tmp_path / "both") == [A]
    assert rows(f"{tmp_path}/both@test") == [B]
    with pytest.raises(UserError, match=r"split dev \(it has: train, test\)"):
        rows(f"{tmp_path}/both@dev")


@pytest.mark.usefixtures("offline")
def test_folder_of_data_files_has_a_split_per_role(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train.jsonl", jsonl(A))
    write(folder / "validation.jsonl", jsonl(B))
    inputs = PairsInput(train=str(folder), dev=str(folder))
    assert [row for _, row in read_rows(str(folder), "train", inputs)] == [A]
    assert [row for _, row in read_rows(str(folder), "dev", inputs)] == [B]


@pytest.mark.usefixtures("offline")
def test_builders_read_local_files(tmp_path: Path) -> None:
    write(tmp_path / "array.json", json.dumps([A, B]))
    write(tmp_path / "a.csv", "source,target\na,x\n")
    write(tmp_path / "a.txt", "one line\n")
    assert rows(f"json:{tmp_path}/array.json") == [A, B]
    assert rows(f"csv:{tmp_path}/a.csv") == [A]
    assert rows(f"text:{tmp_path}/a.txt", source_column="text", target_column="text") == [{"text": "one line"}]


@pytest.mark.usefixtures("offline")
def test_missing_data_set_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("no-such-thing", "nobody/no-such-thing:config@train", f"json:{tmp_path}/nosuch.json"):
        with pytest.raises(UserError, match=f"cannot read {path}: .*--input.train"):
            rows(path)


# Bad rows


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("a.jsonl", b"{oops", "not_json"),
        ("a.jsonl", b"[" * 100_000, "not_json"),
        ("a.jsonl", b'["a", "b"]', "not_an_object"),
        ("a.tsv", b"just one", "wrong_field_count"),
        ("a.tsv", b"one\ttwo\tthree", "wrong_field_count"),
        ("a.csv", b'a,"b" c', "not_csv"),
        ("a.csv", b"a", "wrong_field_count"),
        ("a.txt", b"IN: walk", "no_match"),
    ],
)
def test_bad_row_is_an_error_with_its_line(tmp_path: Path, name: str, line: bytes, reason: str) -> None:
    good = {"a.jsonl": jsonl(A).encode(), "a.tsv": b"a\tx\n", "a.csv": b"a,x\n", "a.txt": b"IN: a OUT: x\n"}[name]
    header = {"a.tsv": b"source\ttarget\n", "a.csv": b"source,target\n"}.get(name, b"")
    path = write(tmp_path / name, header + good + line + b"\n" + good)
    first, (origin, error), last = read(path, pattern="IN: (?P<source>.+) OUT: (?P<target>.+)" if name == "a.txt" else None)
    assert isinstance(error, RowError)
    assert error.reason == reason
    assert origin == f"{path}:{3 if header else 2}"
    assert [first[1], last[1]] == [A, A]


def test_unclosed_quotation_mark_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'source,target\na,x\nb,"y\nc,z\n')
    [_, (origin, error)] = read(path)
    assert origin == f"{path}:3"
    assert isinstance(error, RowError)
    assert error.reason == "not_csv"


def test_invalid_utf8_becomes_replacement_characters(tmp_path: Path) -> None:
    assert rows(write(tmp_path / "a.tsv", b"source\ttarget\na\xff\tx\n")) == [{"source": "a\ufffd", "target": "x"}]
    raw = pa.array([b"a\xff", b"b", None])
    texts = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    lists = pa.ListArray.from_arrays([0, 1, 2, 2], texts.slice(0, 2))
    pq.write_table(pa.table({"source": texts, "target": lists}), tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet") == [
        {"source": "a\ufffd", "target": ["a\ufffd"]},
        {"source": "b", "target": ["b"]},
        {"source": None, "target": []},
    ]


def test_long_line_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.prepare.text_formats.MAX_LINE_BYTES", 100)
    path = write(tmp_path / "a.jsonl", jsonl(A) + "x" * 1000 + "\n" + jsonl(B))
    assert read(path) == [(f"{path}:1", A), (f"{path}:2", RowError("line_too_long", "over 100 bytes")), (f"{path}:3", B)]


def test_column_may_be_missing_from_some_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", jsonl({}, {"source": "a"}, A))
    assert rows(path) == [{}, {"source": "a"}, A]


# Bad inputs


@pytest.mark.parametrize(
    ("name", "content", "options", "match"),
    [
        (
            "a.tsv",
            "quelle\tziel\na\tb\n",
            {},
            r"'source' .*\(it has: quelle, ziel\).*--input.source_column.*--input.columns",
        ),
        (
            "a.jsonl",
            jsonl({"source": "a", "ziel": "b"}),
            {},
            r"'target' .*\(it has: source, ziel\).*--input.target_column$",
        ),
        ("a.jsonl", jsonl(A) * 9, {"id_column": "key", "max_rows": 5}, "'key' .*--input.id_column"),
        ("a.csv", "a,x\n", {"columns": ["source", "other"]}, "'target'"),
        ("a.parquet", "no parquet at all", {}, "a.parquet: .*--input.train"),
        ("a.jsonl.gz", "not compressed", {}, "a.jsonl.gz: "),
        ("a.jsonl.xz", lzma.compress(jsonl(A, B).encode() * 999)[:-40], {}, "a.jsonl.xz: "),
        ("a.jsonl.bz2", b"BZh9" + b"?" * 99, {}, "a.jsonl.bz2: "),
        ("a.jsonl.zst", zstd(jsonl(A, B).encode() * 999)[:-40], {}, "a.jsonl.zst: Truncated"),
        ("a.txt", "a line\n", {}, "a.txt .*--input.format"),
        ("a.txt", "a line\n", {"format": "lines"}, "--input.pattern"),
        ("a.txt", "a line\n", {"pattern": "(?P<source>.+"}, "--input.pattern .*regular expression"),
        ("a.txt", "a line\n", {"pattern": "(?P<source>.+) (.+)"}, r"--input.pattern .*\(\?P<target>"),
        ("a.zip", "no archive", {}, "a.zip: "),
    ],
)
def test_unreadable_input_is_one_line_that_names_it(
    tmp_path: Path, name: str, content: str | bytes, options: dict[str, Any], match: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=match) as caught:
        rows(path, **options)
    assert "\n" not in str(caught.value)


def test_missing_parquet_column_lists_the_others(tmp_path: Path) -> None:
    pq.write_table(pa.table({"quelle": ["a"], "target": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"'source' .*\(it has: quelle, target\).*--input.source_column$"):
        rows(tmp_path / "a.parquet")


def test_missing_column_is_found_long_before_the_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", jsonl({"source": "a"}) * 2 * COLUMN_CHECK_ROWS)
    iterator = read_rows(str(path), "train", PairsInput(train=str(path)))
    assert len(list(itertools.islice(iterator, COLUMN_CHECK_ROWS - 1))) == COLUMN_CHECK_ROWS - 1
    with pytest.raises(UserError, match="'target'"):
        next(iterator)


@pytest.mark.parametrize("role", ["train", "dev", "test"])
def test_missing_file_and_its_option_are_named(tmp_path: Path, role: Any) -> None:
    for path in (
        f"{tmp_path}/a.tsv",
        f"{tmp_path}/*.jsonl",
        f"zip://a.tsv::{tmp_path}/a.zip",
        f"{tmp_path}/a.zip",
        f"{tmp_path}/a.parquet",
    ):
        with pytest.raises(UserError) as caught:
            list(read_rows(path, role, PairsInput(train=path)))
        assert path in str(caught.value)
        assert f"--input.{role}" in str(caught.value)


def test_files_in_an_archive(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(write(tmp_path / "a.tsv", "source\ttarget\na\tx\n"), "in/a.tsv")
    assert rows(f"tar://in/a.tsv::{tmp_path}/a.tar") == [A]
    with pytest.raises(UserError, match=r"tar://in/b\.tsv"):
        rows(f"tar://in/b.tsv::{tmp_path}/a.tar")
    with pytest.raises(UserError, match=f"archive.*--input.train .*tar://in/a.tsv::{tmp_path}/a.tar"):
        rows(tmp_path / "a.tar", format="tsv")


def test_unknown_scheme_is_named() -> None:
    with pytest.raises(UserError, match=r"foo://a\.tsv"):
        rows("foo://a.tsv")


def test_quotation_mark_in_unquoted_csv_field_is_literal(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('source,target\n5" disk,x\n"two\nlines",y\nb,z\n')
    assert [row for _, row in read(path)] == [
        {"source": '5" disk', "target": "x"},
        {"source": "two\nlines", "target": "y"},
        {"source": "b", "target": "z"},
    ]


def test_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pairs/locked").mkdir(parents=True)
    write(tmp_path / "pairs/a.jsonl", jsonl(A))
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may list any folder
    with pytest.raises(UserError, match="Permission denied"):
        read(tmp_path / "pairs", format="jsonl")


def test_cyclic_links_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    write(tmp_path / "pairs/a.jsonl", jsonl(A))
    (tmp_path / "pairs/loop").symlink_to(tmp_path / "pairs")
    assert rows(tmp_path / "pairs", format="jsonl") == [A]


def test_split_of_a_data_set_without_splits_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_list([A]).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="no splits"):
        read(f"{tmp_path}/saved@train", format="datasets")


def test_query_of_a_uri_is_removed() -> None:
    assert strip_query("https://host/a.tsv.gz?download=1") == "https://host/a.tsv.gz"
    assert strip_query("s3://bucket/part-?.jsonl") == "s3://bucket/part-?.jsonl"
    assert strip_query("a?b=c.tsv") == "a?b=c.tsv"
