"""Rows of every form of input, on real data where it is there, and what becomes of bad ones."""

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
from pipeline.prepare.files import without_query
from pipeline.prepare.readers import Row, RowError, read_rows, value_of

SHARED = Path(__file__).parents[2].parent / "shared" / "data"

needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")


def read(path: Path | str, **options: Any) -> list[tuple[str, Row | RowError]]:
    inputs = PairsInput(train=str(path), **options)
    return list(read_rows(inputs.train, "train", inputs))


def rows(path: Path | str, **options: Any) -> list[Row | RowError]:
    return [row for _, row in read(path, **options)]


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(*objects: Any) -> str:
    return "".join(json.dumps(each) + "\n" for each in objects)


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


A, B = {"source": "a", "target": "x"}, {"source": "b", "target": "y"}


# Real data


@needs_data
def test_arxiv_is_read_by_its_columns_and_quotation_marks_stay() -> None:
    found = rows(SHARED / "arxiv_cs/dev.tsv.xz", columns=["id", "created", "category", "target", "source"])
    assert len(found) == 3000
    assert all(isinstance(row, dict) and row["source"] and row["target"] for row in found)
    assert any('"' in row["source"] for row in found if isinstance(row, dict))


@needs_data
def test_scan_is_read_by_a_pattern_from_inside_a_tar_xz() -> None:
    path = f"tar://simple_split/tasks_test_simple.txt::{SHARED}/scan/simple_split.tar.xz"
    found = read(path, pattern="IN: (?P<source>.+) OUT: (?P<target>.+)")
    assert len(found) == 4182
    assert found[1] == (
        f"{path}:2",
        {
            "source": "run right twice after walk right twice",
            "target": "I_TURN_RIGHT I_WALK I_TURN_RIGHT I_WALK I_TURN_RIGHT I_RUN I_TURN_RIGHT I_RUN",
        },
    )


@needs_data
def test_tatoeba_is_read_from_inside_a_zip() -> None:
    found = rows(f"zip://fra.txt::{SHARED}/tatoeba/fra-eng.zip", columns=["source", "target"], max_rows=1000)
    assert len(found) == 1000
    assert found[0] == {"source": "Go.", "target": "Va !"}


@needs_data
def test_scitldr_has_lists_of_strings() -> None:
    found = rows(SHARED / "scitldr/dev.jsonl.xz", id_column="paper_id")
    assert len(found) == 619
    assert all(isinstance(row, dict) and isinstance(row["source"], list) and isinstance(row["target"], list) for row in found)


# Forms of input


@pytest.mark.parametrize(
    ("ending", "compress"),
    [("", bytes), (".xz", lzma.compress), (".gz", gzip.compress), (".bz2", bz2.compress), (".zst", zstd)],
)
def test_json_lines_are_decompressed_on_the_way(tmp_path: Path, ending: str, compress: Callable[[bytes], bytes]) -> None:
    path = written(tmp_path / f"pairs.jsonl{ending}", compress(jsonl(A, B).encode()))
    assert read(path) == [(f"{path}:1", A), (f"{path}:2", B)]


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    assert rows(written(tmp_path / "a.jsonl", f"\n{jsonl(A)}  \n\n{jsonl(B)}\n")) == [A, B]
    assert rows(written(tmp_path / "a.tsv", "source\ttarget\n\na\tx\n\n")) == [A]
    assert rows(written(tmp_path / "a.csv", "source,target\n\na,x\n\n")) == [A]


def test_tsv_names_its_columns_in_each_file(tmp_path: Path) -> None:
    written(tmp_path / "1.tsv", "source\ttarget\r\na\tx\r\n")
    written(tmp_path / "2.tsv", "target\tsource\ny\tb\n")
    assert rows(tmp_path / "*.tsv") == [A, B]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    assert rows(written(tmp_path / "a.tsv", b"\xef\xbb\xbfsource\ttarget\na\tx\n")) == [A]


def test_csv_fields_may_hold_commas_quotes_and_line_ends(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", 'source,target\n"a, ""b""\n\nc",x\nd,e\n')
    assert read(path) == [
        (f"{path}:2", {"source": 'a, "b"\n\nc', "target": "x"}),
        (f"{path}:5", {"source": "d", "target": "e"}),
    ]


def test_parquet_files_and_folders_are_read_without_their_other_columns(tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    for number, row in enumerate([A, B]):
        pq.write_table(pa.Table.from_pylist([{**row, "n": number}]), folder / f"{number}.parquet")
    assert read(folder / "1.parquet") == [(f"{folder}/1.parquet row 0", B)]
    assert rows(folder) == rows(f"file://{folder}/*.parquet") == [A, B]


def test_a_folder_is_searched_for_files_of_the_format_that_are_not_hidden(tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    (folder / "deep").mkdir(parents=True)
    (folder / "_temporary").mkdir()
    written(folder / "1.jsonl", jsonl(A))
    written(folder / "deep/2.jsonl.gz", gzip.compress(jsonl(B).encode()))
    for other in ("_temporary/3.jsonl", ".4.jsonl", "README.md", "5.tsv"):
        written(folder / other, "no row\n")
    assert rows(folder, format="jsonl") == [A, B]


def test_fields_within_a_column_are_named_by_a_dot(tmp_path: Path) -> None:
    row = {"translation": {"en": "a", "fr": "b", "de": None}}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    written(tmp_path / "a.jsonl", jsonl(row))
    for path in (tmp_path / "a.parquet", tmp_path / "a.jsonl"):
        (found,) = rows(path, source_column="translation.en", target_column="translation.fr")
        assert isinstance(found, dict)
        assert (value_of(found, "translation.en"), value_of(found, "translation.fr")) == ("a", "b")
        assert value_of(found, "translation.de") is value_of(found, "translation.xx") is value_of(found, "no.such") is None


def test_a_file_in_an_archive_may_be_compressed_as_well(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("deep/pairs.jsonl.gz", gzip.compress(jsonl(A).encode()))
    assert rows(f"zip://deep/pairs.jsonl.gz::{tmp_path}/a.zip") == [A]


def test_max_rows_counts_bad_rows_too(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", f"{jsonl(A)}oops\n{jsonl(B)}")
    assert [type(row) for row in rows(path, max_rows=2)] == [dict, RowError]


# The datasets package


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Any:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return datasets


def test_folders_that_save_to_disk_wrote_are_read_by_split(tmp_path: Path, offline: Any) -> None:
    one, two = offline.Dataset.from_list([A]), offline.Dataset.from_list([B])
    one.save_to_disk(tmp_path / "one")
    offline.DatasetDict({"train": one, "test": two}).save_to_disk(tmp_path / "both")
    assert read(tmp_path / "one") == [(f"{tmp_path}/one row 0", A)]
    assert rows(tmp_path / "both") == [A]
    assert rows(f"{tmp_path}/both@test") == [B]
    with pytest.raises(UserError, match=r"has no split dev \(it has: train, test\)"):
        rows(f"{tmp_path}/both@dev")


@pytest.mark.usefixtures("offline")
def test_a_folder_of_data_files_gives_each_input_its_split(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    written(folder / "train.jsonl", jsonl(A))
    written(folder / "validation.jsonl", jsonl(B))
    inputs = PairsInput(train=str(folder), dev=str(folder))
    assert [row for _, row in read_rows(str(folder), "train", inputs)] == [A]
    assert [row for _, row in read_rows(str(folder), "dev", inputs)] == [B]


@pytest.mark.usefixtures("offline")
def test_the_builders_of_the_package_read_local_files(tmp_path: Path) -> None:
    written(tmp_path / "array.json", json.dumps([A, B]))
    written(tmp_path / "a.csv", "source,target\na,x\n")
    written(tmp_path / "a.txt", "one line\n")
    assert rows(f"json:{tmp_path}/array.json") == [A, B]
    assert rows(f"csv:{tmp_path}/a.csv") == [A]
    assert rows(f"text:{tmp_path}/a.txt", source_column="text", target_column="text") == [{"text": "one line"}]


@pytest.mark.usefixtures("offline")
def test_a_data_set_that_is_not_there_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("no-such-thing", "nobody/no-such-thing:config@train", f"json:{tmp_path}/nosuch.json"):
        with pytest.raises(UserError, match=f"the datasets package cannot read {path}: .*; set --input.train"):
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
def test_a_bad_row_is_a_fault_where_it_stands_and_stops_nothing(tmp_path: Path, name: str, line: bytes, reason: str) -> None:
    good = {"a.jsonl": jsonl(A).encode(), "a.tsv": b"a\tx\n", "a.csv": b"a,x\n", "a.txt": b"IN: a OUT: x\n"}[name]
    header = {"a.tsv": b"source\ttarget\n", "a.csv": b"source,target\n"}.get(name, b"")
    path = written(tmp_path / name, header + good + line + b"\n" + good)
    found = read(path, pattern="IN: (?P<source>.+) OUT: (?P<target>.+)" if name == "a.txt" else None)
    where, fault = found[1]
    assert isinstance(fault, RowError)
    assert fault.reason == reason
    assert where == f"{path}:{3 if header else 2}"
    assert [found[0][1], found[2][1]] == [A, A]


def test_a_quotation_mark_that_is_not_closed_is_a_fault_at_its_line(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", 'source,target\na,x\nb,"y\nc,z\n')
    assert read(path)[1:] == [(f"{path}:3", RowError("not_csv", "a quotation mark is not closed"))]


def test_bytes_that_are_no_utf8_become_replacement_characters(tmp_path: Path) -> None:
    assert rows(written(tmp_path / "a.tsv", b"source\ttarget\na\xff\tx\n")) == [{"source": "a\ufffd", "target": "x"}]
    raw = pa.array([b"a\xff", b"b", None])
    texts = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    lists = pa.ListArray.from_arrays([0, 1, 2, 2], texts.slice(0, 2))
    pq.write_table(pa.table({"source": texts, "target": lists}), tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet") == [
        {"source": "a\ufffd", "target": ["a\ufffd"]},
        {"source": "b", "target": ["b"]},
        {"source": None, "target": []},
    ]


def test_a_line_without_end_is_a_fault_and_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.prepare.readers._LONGEST_LINE_BYTES", 100)
    path = written(tmp_path / "a.jsonl", jsonl(A) + "x" * 1000 + "\n" + jsonl(B))
    assert read(path) == [(f"{path}:1", A), (f"{path}:2", RowError("line_too_long", "over 100 bytes")), (f"{path}:3", B)]


def test_a_column_that_some_rows_lack_is_no_error(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", jsonl({}, {"source": "a"}, A))
    assert rows(path) == [{}, {"source": "a"}, A]


# Bad inputs


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        (
            "a.tsv",
            "quelle\tziel\na\tb\n",
            {},
            r"'source' \(it has: quelle, ziel\); set --input.source_column, or",
        ),
        (
            "a.jsonl",
            jsonl({"source": "a", "ziel": "b"}),
            {},
            r"'target' \(it has: source, ziel\); set --input.target_column$",
        ),
        ("a.jsonl", jsonl(A) * 9, {"id_column": "key", "max_rows": 5}, "no column 'key' .*; set --input.id_column"),
        ("a.csv", "a,x\n", {"columns": ["source", "other"]}, "has no column 'target'"),
        ("a.parquet", "no parquet at all", {}, "cannot read .*a.parquet: .*; mend it or set --input.train"),
        ("a.jsonl.gz", "not compressed", {}, "cannot read .*a.jsonl.gz: Not a gzipped file"),
        ("a.jsonl.xz", lzma.compress(jsonl(A, B).encode() * 999)[:-40], {}, "cannot read .*a.jsonl.xz: Compressed file ended"),
        ("a.jsonl.bz2", b"BZh9" + b"?" * 99, {}, "cannot read .*a.jsonl.bz2: Invalid data stream"),
        ("a.jsonl.zst", zstd(jsonl(A, B).encode() * 999)[:-40], {}, "cannot read .*a.jsonl.zst: Truncated"),
        ("a.txt", "a line\n", {}, "cannot tell the format of .*a.txt; set --input.format"),
        ("a.txt", "a line\n", {"format": "lines"}, "is plain lines: set --input.pattern"),
        ("a.txt", "a line\n", {"pattern": "(?P<source>.+"}, "--input.pattern is not a regular expression"),
        ("a.txt", "a line\n", {"pattern": "(?P<source>.+) (.+)"}, r"--input.pattern has no group \(\?P<target>"),
        ("a.zip", "no archive", {}, "cannot read .*a.zip: File is not a zip file"),
    ],
)
def test_an_input_that_cannot_be_read_is_one_clear_line(
    tmp_path: Path, name: str, content: str | bytes, options: dict[str, Any], message: str
) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(UserError, match=message) as caught:
        rows(path, **options)
    assert "\n" not in str(caught.value)


def test_a_parquet_file_without_the_column_names_those_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"quelle": ["a"], "target": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"has no column 'source' \(it has: quelle, target\); set --input.source_column$"):
        rows(tmp_path / "a.parquet")


def test_a_missing_column_is_found_long_before_the_end_of_a_big_file(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", jsonl({"source": "a"}) * 5000)
    found = read_rows(str(path), "train", PairsInput(train=str(path)))
    assert len(list(itertools.islice(found, 999))) == 999
    with pytest.raises(UserError, match="has no column 'target'"):
        next(found)


@pytest.mark.parametrize("role", ["train", "dev", "test"])
def test_a_missing_file_names_itself_and_its_option(tmp_path: Path, role: Any) -> None:
    for path in (
        f"{tmp_path}/a.tsv",
        f"{tmp_path}/*.jsonl",
        f"zip://a.tsv::{tmp_path}/a.zip",
        f"{tmp_path}/a.zip",
        f"{tmp_path}/a.parquet",
    ):
        with pytest.raises(UserError) as caught:
            list(read_rows(path, role, PairsInput(train=path)))
        assert str(caught.value) == f"no file at {path}; set --input.{role}"


def test_a_missing_file_in_an_archive_is_a_missing_file(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(written(tmp_path / "a.tsv", "source\ttarget\na\tx\n"), "in/a.tsv")
    assert rows(f"tar://in/a.tsv::{tmp_path}/a.tar") == [A]
    with pytest.raises(UserError, match=r"no file at tar://in/b\.tsv"):
        rows(f"tar://in/b.tsv::{tmp_path}/a.tar")
    with pytest.raises(
        UserError, match=f"is an archive; set --input.train to a file in it, such as tar://in/a.tsv::{tmp_path}/a.tar"
    ):
        rows(tmp_path / "a.tar", format="tsv")


def test_an_unknown_scheme_is_one_clear_line() -> None:
    with pytest.raises(UserError, match=r"cannot read foo://a\.tsv: Protocol not known: foo"):
        rows("foo://a.tsv")


def test_a_quotation_mark_within_a_csv_field_is_a_letter(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('source,target\n5" disk,x\n"two\nlines",y\nb,z\n')
    assert [row for _, row in read(path)] == [
        {"source": '5" disk', "target": "x"},
        {"source": "two\nlines", "target": "y"},
        {"source": "b", "target": "z"},
    ]


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pairs/shut").mkdir(parents=True)
    written(tmp_path / "pairs/a.jsonl", jsonl(A))
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # as no folder is refused to root
    with pytest.raises(UserError, match=r"cannot read .*: Permission denied"):
        read(tmp_path / "pairs", format="jsonl")


def test_links_that_go_round_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    written(tmp_path / "pairs/a.jsonl", jsonl(A))
    (tmp_path / "pairs/loop").symlink_to(tmp_path / "pairs")
    assert rows(tmp_path / "pairs", format="jsonl") == [A]


def test_a_split_of_a_data_set_without_splits(tmp_path: Path) -> None:
    datasets.Dataset.from_list([A]).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="is a data set without splits"):
        read(f"{tmp_path}/saved@train", format="datasets")


def test_what_is_asked_of_a_server_is_no_part_of_a_name() -> None:
    assert without_query("https://host/a.tsv.gz?download=1") == "https://host/a.tsv.gz"
    assert without_query("s3://bucket/part-?.jsonl") == "s3://bucket/part-?.jsonl"
    assert without_query("a?b=c.tsv") == "a?b=c.tsv"
