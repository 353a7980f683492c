"""Results of jobs.fetch: the documents of one moment, complete or not at all, with their types."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from native_tables import NativeTables, documents, fetched, read_documents

from pipeline.config.summarize import SummarizeConfig
from pipeline.errors import UserError
from pipeline.inference.plan import plan_run
from pipeline.tables.fetch import fetch

FAST_TYPES = pytest.mark.parametrize("tables", ["jsonl", "postgres"], indirect=True)
POSTGRES = pytest.mark.parametrize("tables", ["postgres"], indirect=True)
TIME = datetime(2026, 1, 31, 23, 0, tzinfo=UTC)


@FAST_TYPES
def test_fetches_the_current_documents_unless_the_folder_has_them(tables: NativeTables, tmp_path: Path) -> None:
    config = tables.fetch_config(tmp_path / "in", keep_columns=["n"])
    for rows in (documents(0, 50), documents(20, 60)):
        tables.write("documents", rows)
        assert (fetch(config).rows, fetch(config).is_new) == (len(rows), False)
        assert read_documents(tmp_path / "in", ["n"]) == fetched(rows)
    assert fetch(tables.fetch_config(tmp_path / "in")).is_new, "other columns are another request"


@FAST_TYPES
def test_an_unfinished_fetch_is_hidden_and_done_again(tables: NativeTables, tmp_path: Path) -> None:
    tables.write("documents", documents(0, 50))
    config = tables.fetch_config(tmp_path / "in", keep_columns=["n"])
    fetch(config)
    (tmp_path / "in/_fetched.json").unlink()  # it is written last
    [snapshot] = (tmp_path / "in/_snapshots").iterdir()
    shutil.copy(next(snapshot.iterdir()), snapshot / "twice.parquet")
    with pytest.raises(UserError, match=r"\.parquet"):
        read_documents(tmp_path / "in", ["n"])
    assert fetch(config).is_new
    assert read_documents(tmp_path / "in", ["n"]) == fetched(documents(0, 50))


@POSTGRES
def test_the_previous_snapshot_is_kept_for_runs_that_read_it(tables: NativeTables, tmp_path: Path) -> None:
    for end in (10, 20, 30):
        tables.write("documents", documents(0, end))
        fetch(tables.fetch_config(tmp_path / "in"))
    assert sorted(pq.read_table(folder).num_rows for folder in (tmp_path / "in/_snapshots").iterdir()) == [20, 30]


def test_missing_and_unusable_columns_are_named(tables: NativeTables, tmp_path: Path) -> None:
    tables.write("documents", documents(0, 5))
    for options, message in [
        ({"id_column": "key"}, r"'key' .*id, text, n, other.*--input\.id_column"),
        ({"keep_columns": ["title"]}, r"'title' .*--input\.keep_columns"),
        ({"text_column": "n"}, r"'n' .*--input\.text_column"),
        ({"id_column": "other"}, r"'other' .*double.*--input\.id_column"),
        ({"table": tables.options("none")["table"]}, r"--input\.table"),
    ]:
        with pytest.raises(UserError, match=message):
            fetch(tables.fetch_config(tmp_path / "in", **options))
    assert not (tmp_path / "in/_snapshots").exists()


@FAST_TYPES
def test_a_filter_selects_rows(tables: NativeTables, tmp_path: Path) -> None:
    tables.write("documents", documents(0, 50))
    condition = "n > 9007199254741000 AND id <> '030'" if tables.type == "postgres" else "n > 9007199254741000 and id != '030'"
    fetch(tables.fetch_config(tmp_path / "in", filter=condition, keep_columns=["n"]))
    rows = [row for row in fetched(documents(0, 50)) if row["n"] and row["n"] > 2**53 + 8 and row["id"] != "030"]
    assert read_documents(tmp_path / "in", ["n"]) == rows
    with pytest.raises(UserError, match=r"--input.filter|syntax error"):
        fetch(tables.fetch_config(tmp_path / "in", filter="n >"))


@FAST_TYPES
def test_a_table_without_rows(tables: NativeTables, tmp_path: Path) -> None:
    tables.write("documents", documents(0, 2))
    condition = "n > 0 AND n < 0" if tables.type == "postgres" else "n > 0 and n < 0"
    assert fetch(tables.fetch_config(tmp_path / "in", filter=condition, keep_columns=["n"])).rows == 0
    assert read_documents(tmp_path / "in") == []


@POSTGRES
def test_an_interrupted_run_resumes_over_its_snapshot(tables: NativeTables, tmp_path: Path, tiny_bundle: Path) -> None:
    values = {
        "input": {"path": str(tmp_path / "in")},
        "output": {"path": str(tmp_path / "out")},
        "model": {"path": str(tiny_bundle)},
    }
    config = SummarizeConfig.model_validate(values)

    def fetch_documents(end: int) -> None:
        tables.write("documents", documents(0, end))
        fetch(tables.fetch_config(tmp_path / "in"))

    fetch_documents(10)
    interrupted = plan_run(config)
    interrupted.write()
    fetch_documents(25)
    resumed = plan_run(config)
    assert resumed.run_id == interrupted.run_id
    assert sum(file.rows for file in resumed.input_files) == 10
    fetch_documents(30)  # removes the snapshot of the run, which starts over
    assert sum(file.rows for file in plan_run(config).input_files) == 30


# PostgreSQL


@POSTGRES
def test_types_of_postgresql(tables: NativeTables, tmp_path: Path) -> None:
    table = f"{tables.schema}.documents"
    tables.sql(
        f"CREATE TABLE {table} (id uuid, body varchar(9), time timestamptz, day date, local timestamp, price numeric(9, 2), "
        "raw bytea, small smallint, meta jsonb, amount numeric, duration interval);"
        f"INSERT INTO {table} VALUES (gen_random_uuid());"
        f"INSERT INTO {table} VALUES ('6b1b36cb-0000-4000-8000-00000000000a', 'text', '2026-01-31 23:00+00', '2026-01-31', "
        "'2026-01-31 23:00', 1.5, '\\x00ff', 7, '{\"a\": 1}', 1, '1 day')"
    )
    keep = ["time", "day", "local", "price", "raw", "small", "meta"]
    fetch(tables.fetch_config(tmp_path / "in", text_column="body", keep_columns=keep))
    pointer = json.loads((tmp_path / "in/_fetched.json").read_text())
    rows = pq.read_table(tmp_path / "in/_snapshots" / pointer["folder"]).to_pylist()
    [row] = [row for row in rows if row["body"]]
    assert row["id"] == "6b1b36cb-0000-4000-8000-00000000000a"
    assert (row["time"], row["local"], row["day"]) == (TIME, TIME.replace(tzinfo=None), TIME.date())
    assert (str(row["price"]), row["raw"], row["small"], json.loads(row["meta"])) == ("1.50", b"\0\xff", 7, {"a": 1})
    for column in ("amount", "duration"):
        with pytest.raises(UserError, match=f"'{column}' .*view"):
            fetch(tables.fetch_config(tmp_path / "in", text_column="body", keep_columns=[column]))
    with pytest.raises(UserError, match=r"--input\.snapshot"):
        fetch(tables.fetch_config(tmp_path / "in", snapshot=3))


# JSON lines

WriteLines = Callable[..., NativeTables]


@pytest.fixture
def write_lines(tmp_path: Path) -> WriteLines:
    """Function that adds a file of JSON lines to the documents and returns the tables."""
    tables = NativeTables("jsonl", tmp_path / "tables")
    folder = tmp_path / "tables/documents"
    folder.mkdir()

    def write(name: str, *lines: str) -> NativeTables:
        content = "".join(f"{line}\n" for line in lines).encode()
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return tables

    return write


def test_json_lines_keep_their_values(write_lines: WriteLines, tmp_path: Path) -> None:
    write_lines("a.jsonl", '{"id": "007", "text": "2026-01-31", "x": 1, "nested": {"a": [1]}}', "", '{"text": null, "id": "8"}')
    tables = write_lines("b.jsonl.gz", '{"id": "9", "text": "t", "x": 1.5, "more": true}')
    fetch(tables.fetch_config(tmp_path / "in", keep_columns=["x", "more"]))
    assert read_documents(tmp_path / "in") == [
        {"id": "007", "text": "2026-01-31", "x": 1.0, "more": None},
        {"id": "8", "text": None, "x": None, "more": None},
        {"id": "9", "text": "t", "x": 1.5, "more": True},
    ]
    with pytest.raises(UserError, match=r"'nested' .*lists or objects"):
        fetch(tables.fetch_config(tmp_path / "in", keep_columns=["nested"]))


@pytest.mark.parametrize("line", ['{"id": 2, "text": 3}', '{"id": "2", "text": "t"}', '{"id": 2, "text": "t"'])
def test_a_line_with_other_types_fails_the_fetch(write_lines: WriteLines, tmp_path: Path, line: str) -> None:
    write_lines("a.jsonl", *['{"id": 1, "text": "t"}'] * 3)
    tables = write_lines("z.jsonl", *['{"id": 1, "text": "t"}'] * 60_000, line)  # beyond the lines that decide the types
    with pytest.raises(UserError, match=r"z\.jsonl: JSON parse error"):
        fetch(tables.fetch_config(tmp_path / "in"))
    assert not (tmp_path / "in/_fetched.json").exists()


def test_an_unusable_line_near_the_start_is_named_by_number(write_lines: WriteLines, tmp_path: Path) -> None:
    tables = write_lines("a.jsonl", '{"id": 1, "text": "t"}', "[1]")
    with pytest.raises(UserError, match=r"line 2 of .*a\.jsonl .*a list, not an object"):
        fetch(tables.fetch_config(tmp_path / "in"))


# Iceberg and Delta


@pytest.mark.parametrize("tables", ["delta", "iceberg"], indirect=True)
def test_fetches_an_earlier_snapshot(tables: NativeTables, tmp_path: Path) -> None:
    tables.write("documents", documents(0, 30))
    table = tables.options("documents")["table"]
    if tables.type == "delta":
        first = 0
        write_deltalake(table, documents(30, 40), mode="append")
    else:
        first = tables.catalog.load_table(table).snapshots()[-1].snapshot_id
        tables.catalog.load_table(table).append(documents(30, 40))
    result = fetch(tables.fetch_config(tmp_path / "in", keep_columns=["n"], snapshot=first))
    assert (result.snapshot.split()[0], result.rows) == (str(first), 30)
    assert read_documents(tmp_path / "in", ["n"]) == fetched(documents(0, 30))
    assert fetch(tables.fetch_config(tmp_path / "in", keep_columns=["n"], filter="n > 9007199254741000")).rows == 27
    with pytest.raises(UserError, match="99"):
        fetch(tables.fetch_config(tmp_path / "in", snapshot=99))
