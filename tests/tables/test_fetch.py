"""What jobs.fetch leaves: the documents of one moment, whole or not at all, and with the types that they had."""

from __future__ import annotations

import gzip
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from table_kinds import Store, documents, expected, fetching, read

from pipeline.config.summarize import SummarizeConfig
from pipeline.errors import UserError
from pipeline.inference.plan import plan_run
from pipeline.tables.fetch import fetch

LIGHT = pytest.mark.parametrize("store", ["jsonl", "postgres"], indirect=True)
DAY = datetime(2026, 1, 31, 23, 0, tzinfo=UTC)


@LIGHT
def test_the_documents_of_now_and_nothing_where_they_are_the_same(store: Store, tmp_path: Path) -> None:

    store.write("documents", documents(0, 50))
    config = fetching(store, tmp_path / "in", keep_columns=["n"])
    assert (fetch(config).rows, fetch(config).is_new) == (50, False)
    assert read(tmp_path / "in", ["n"]) == expected(documents(0, 50))
    store.write("documents", documents(20, 60))
    assert (fetch(config).rows, fetch(config).is_new) == (40, False)
    assert read(tmp_path / "in", ["n"]) == expected(documents(20, 60))
    assert fetch(fetching(store, tmp_path / "in")).is_new, "other columns are another fetch"


@LIGHT
def test_what_was_cut_off_is_not_seen_and_done_anew(store: Store, tmp_path: Path) -> None:
    store.write("documents", documents(0, 50))
    config = fetching(store, tmp_path / "in", keep_columns=["n"])
    fetch(config)
    (tmp_path / "in/_fetched.json").unlink()  # it is written last
    [whole] = (tmp_path / "in/_snapshots").iterdir()
    shutil.copy(next(whole.iterdir()), whole / "twice.parquet")
    with pytest.raises(UserError, match=r"holds no \.parquet file"):
        read(tmp_path / "in", ["n"])
    assert fetch(config).is_new
    assert read(tmp_path / "in", ["n"]) == expected(documents(0, 50))


@pytest.mark.parametrize("store", ["postgres"], indirect=True)
def test_the_snapshot_before_stays_for_a_run_that_reads_it(store: Store, tmp_path: Path) -> None:
    for last in (10, 20, 30):
        store.write("documents", documents(0, last))
        fetch(fetching(store, tmp_path / "in"))
    assert sorted(pq.read_table(folder).num_rows for folder in (tmp_path / "in/_snapshots").iterdir()) == [20, 30]


@pytest.mark.parametrize("store", ["postgres", "iceberg", "delta", "jsonl"], indirect=True)
def test_a_column_that_is_not_there_or_of_no_use_is_named(store: Store, tmp_path: Path) -> None:
    store.write("documents", documents(0, 5))

    def fails(**options: Any) -> str:
        with pytest.raises(UserError) as error:
            fetch(fetching(store, tmp_path / "in", **options))
        return str(error.value)

    error = fails(id_column="key")
    assert "column 'key' is not in" in error
    assert "(it has: id, text, n, other); set --input.id_column" in error
    assert "set --input.keep_columns" in fails(keep_columns=["title"])
    assert "column 'n' of" in fails(text_column="n")
    assert "not a string; cast it, or set --input.text_column" in fails(text_column="n")
    assert "is double, not a string or an integer; cast it, or set --input.id_column" in fails(id_column="other")
    assert "--input.table" in fails(table=f"{store.options('none')['table']}")
    assert not (tmp_path / "in/_snapshots").exists()


@LIGHT
def test_a_condition_takes_some_rows(store: Store, tmp_path: Path) -> None:
    store.write("documents", documents(0, 50))
    condition = "n > 9007199254741000 AND id <> '030'" if store.kind == "postgres" else "n > 9007199254741000 and id != '030'"
    fetch(fetching(store, tmp_path / "in", filter=condition, keep_columns=["n"]))
    rows = [row for row in expected(documents(0, 50)) if row["n"] and row["n"] > 2**53 + 8 and row["id"] != "030"]
    assert read(tmp_path / "in", ["n"]) == rows
    with pytest.raises(UserError, match=r"--input.filter|cannot read .* syntax error"):
        fetch(fetching(store, tmp_path / "in", filter="n >"))


@LIGHT
def test_a_table_without_rows(store: Store, tmp_path: Path) -> None:
    store.write("documents", documents(0, 2))
    condition = "n > 0 AND n < 0" if store.kind == "postgres" else "n > 0 and n < 0"
    assert fetch(fetching(store, tmp_path / "in", filter=condition, keep_columns=["n"])).rows == 0
    assert read(tmp_path / "in", []) == []


# PostgreSQL


@pytest.mark.parametrize("store", ["postgres"], indirect=True)
def test_types_of_postgresql(store: Store, tmp_path: Path) -> None:
    table = f"{store.schema}.documents"
    store.sql(
        f"CREATE TABLE {table} (id uuid, body varchar(9), at timestamptz, day date, local timestamp, price numeric(9, 2), "
        "raw bytea, small smallint, meta jsonb, amount numeric, span interval);"
        f"INSERT INTO {table} VALUES (gen_random_uuid());"
        f"INSERT INTO {table} VALUES ('6b1b36cb-0000-4000-8000-00000000000a', 'text', '2026-01-31 23:00+00', '2026-01-31', "
        "'2026-01-31 23:00', 1.5, '\\x00ff', 7, '{\"a\": 1}', 1, '1 day')"
    )
    keep = ["at", "day", "local", "price", "raw", "small", "meta"]
    fetch(fetching(store, tmp_path / "in", text_column="body", keep_columns=keep))
    [row] = [row for row in read_all(tmp_path / "in") if row["body"]]
    assert row["id"] == "6b1b36cb-0000-4000-8000-00000000000a"
    assert (row["at"], row["local"], row["day"]) == (DAY, DAY.replace(tzinfo=None), DAY.date())
    assert (str(row["price"]), row["raw"], row["small"], json.loads(row["meta"])) == ("1.50", b"\0\xff", 7, {"a": 1})
    for column in ("amount", "span"):
        with pytest.raises(UserError, match=f"column '{column}' of .* of which Parquet has no equal; make a view"):
            fetch(fetching(store, tmp_path / "in", text_column="body", keep_columns=[column]))
    with pytest.raises(UserError, match="no earlier snapshots"):
        fetch(fetching(store, tmp_path / "in", snapshot=3))


def read_all(folder: Path) -> list[dict[str, Any]]:
    pointed = json.loads((folder / "_fetched.json").read_text())["folder"]
    return pq.read_table(folder / "_snapshots" / pointed).to_pylist()


# JSON lines


@pytest.fixture
def lines(tmp_path: Path) -> Any:
    """Writes a file of JSON lines beside the others and gives the store."""
    store = Store("jsonl", tmp_path / "store", "")
    (tmp_path / "store/documents").mkdir()

    def write(name: str, *lines: str) -> Store:
        content = "".join(f"{line}\n" for line in lines).encode()
        path = tmp_path / "store/documents" / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return store

    return write


def test_values_of_json_lines_stay_as_they_are(lines: Any, tmp_path: Path) -> None:
    lines("a.jsonl", '{"id": "007", "text": "2026-01-31", "x": 1, "nested": {"a": [1]}}', "", '{"text": null, "id": "8"}')
    store = lines("b.jsonl.gz", '{"id": "9", "text": "t", "x": 1.5, "more": true}')
    fetch(fetching(store, tmp_path / "in", keep_columns=["x", "more"]))
    assert read(tmp_path / "in", []) == [
        {"id": "007", "text": "2026-01-31", "x": 1.0, "more": None},
        {"id": "8", "text": None, "x": None, "more": None},
        {"id": "9", "text": "t", "x": 1.5, "more": True},
    ]
    with pytest.raises(UserError, match=r"column 'nested' of .* has lists or objects"):
        fetch(fetching(store, tmp_path / "in", keep_columns=["nested"]))


@pytest.mark.parametrize("line", ['{"id": 2, "text": 3}', '{"id": "2", "text": "t"}', '{"id": 2, "text": "t"'])
def test_a_line_that_is_not_as_the_others_ends_the_fetch(lines: Any, tmp_path: Path, line: str) -> None:
    lines("a.jsonl", *['{"id": 1, "text": "t"}'] * 3)
    store = lines("z.jsonl", *['{"id": 1, "text": "t"}'] * 60_000, line)  # far from the head
    with pytest.raises(UserError, match=r"cannot read .*z\.jsonl: JSON parse error: .*; mend it"):
        fetch(fetching(store, tmp_path / "in"))
    assert not (tmp_path / "in/_fetched.json").exists()


def test_the_first_lines_are_named_by_number(lines: Any, tmp_path: Path) -> None:
    store = lines("a.jsonl", '{"id": 1, "text": "t"}', "[1]")
    with pytest.raises(UserError, match=r"line 2 of .*a\.jsonl is not JSON that can be used: a list, not an object"):
        fetch(fetching(store, tmp_path / "in"))


# Iceberg and Delta


@pytest.mark.parametrize("store", ["delta", "iceberg"], indirect=True)
def test_an_earlier_version_can_be_named(store: Store, tmp_path: Path) -> None:
    store.write("documents", documents(0, 30))
    first = 0 if store.kind == "delta" else store.catalog.load_table("night.documents").snapshots()[-1].snapshot_id
    if store.kind == "delta":
        write_deltalake(store.options("documents")["table"], documents(30, 40), mode="append")
    else:
        store.catalog.load_table("night.documents").append(documents(30, 40))
    fetched = fetch(fetching(store, tmp_path / "in", keep_columns=["n"], snapshot=first))
    assert (fetched.snapshot.split()[0], fetched.rows) == (str(first), 30)
    assert read(tmp_path / "in", ["n"]) == expected(documents(0, 30))
    assert fetch(fetching(store, tmp_path / "in", keep_columns=["n"], filter="n > 9007199254741000")).rows == 27
    with pytest.raises(UserError, match="99"):
        fetch(fetching(store, tmp_path / "in", snapshot=99))


@pytest.mark.parametrize("store", ["postgres"], indirect=True)
def test_a_run_that_was_cut_off_goes_on_over_its_snapshot(store: Store, tmp_path: Path, tiny_bundle: Path) -> None:
    values = {
        "input": {"path": str(tmp_path / "in")},
        "output": {"path": str(tmp_path / "out")},
        "model": {"path": str(tiny_bundle)},
    }
    config = SummarizeConfig.model_validate(values)
    store.write("documents", documents(0, 10))
    fetch(fetching(store, tmp_path / "in"))
    begun = plan_run(config)
    begun.write()  # and then the driver was killed
    store.write("documents", documents(0, 25))
    fetch(fetching(store, tmp_path / "in"))
    goes_on = plan_run(config)
    assert (goes_on.run_id, goes_on.begun, goes_on.anew, goes_on.waiting) == (begun.run_id, True, None, 1)
    assert goes_on.store.files == begun.store.files
    store.write("documents", documents(0, 30))
    fetch(fetching(store, tmp_path / "in"))
    anew = plan_run(config)
    assert "1 of its files have changed or are gone since" in (anew.anew or "")
    assert anew.store.rows == 30
