"""What the tests of stores read and write: tables, by each store's own reader and writer, and the runs that are delivered."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog import Catalog, load_catalog

from pipeline.config.summarize import DocumentsInput
from pipeline.config.tables import DeliverConfig, FetchConfig
from pipeline.data.documents import open_documents
from pipeline.io.location import open_location
from pipeline.runs.publish import finished_runs, last_sequence, publish

KINDS = ("iceberg", "delta", "jsonl", "postgres")
PASSWORD = "shibboleth-4711"
PASSWORD_ENV = "NIGHTSHIFT_TEST_PASSWORD"
FIRST = {f"d{n}": f"first {n}" for n in range(20)}
SECOND = {f"d{n}": f"second {n}" for n in range(15, 25)}


class Store:
    """A store of some kind, what of it is in its folder, and its own reader and writer."""

    def __init__(self, kind: str, folder: Path, connection: str) -> None:
        self.kind, self.folder, self.connection = kind, folder, connection
        folder.mkdir(exist_ok=True)
        self.schema = f"s{zlib.crc32(str(folder).encode())}"
        if kind == "postgres":
            self.sql(f"CREATE SCHEMA IF NOT EXISTS {self.schema}")

    def options(self, table: str) -> dict[str, Any]:
        """Of the job, by which it finds a table."""
        if self.kind == "iceberg":
            properties = {"type": "sql", "uri": f"sqlite:///{self.folder}/catalog.db", "warehouse": f"file://{self.folder}"}
            return {"kind": "iceberg", "table": f"night.{table}", "catalog_properties": properties}
        if self.kind == "postgres":
            own = {"connection": self.connection, "password_env": PASSWORD_ENV}
            return {"kind": "postgres", "table": f"{self.schema}.{table}", **own}
        return {"kind": self.kind, "table": str(self.folder / table)}

    @property
    def catalog(self) -> Catalog:
        return load_catalog("default", **self.options("x")["catalog_properties"])

    def sql(self, query: str) -> Any:
        with psycopg.connect(self.connection, password=PASSWORD) as connection:
            cursor = connection.execute(query)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else None

    def write(self, table: str, rows: pa.Table) -> None:
        """Have a table hold these rows and no others."""
        options = self.options(table)
        if self.kind == "iceberg":
            self.catalog.create_namespace_if_not_exists("night")
            self.catalog.create_table_if_not_exists(options["table"], rows.schema).overwrite(rows)
        elif self.kind == "delta":
            write_deltalake(options["table"], rows, mode="overwrite")
        elif self.kind == "jsonl":
            Path(options["table"]).mkdir(exist_ok=True)
            lines = [json.dumps(row, default=str) + "\n" for row in rows.to_pylist()]
            half = len(lines) // 2
            Path(options["table"], "a.jsonl").write_text("".join(lines[:half]))
            Path(options["table"], "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[half:]).encode()))
        else:
            kinds = {"string": "text", "int64": "bigint", "timestamp[us, tz=UTC]": "timestamptz", "double": "float8"}
            columns = ", ".join(f'"{field.name}" {kinds[str(field.type)]}' for field in rows.schema)
            self.sql(f"DROP TABLE IF EXISTS {options['table']}; CREATE TABLE {options['table']} ({columns})")
            with (
                psycopg.connect(self.connection, password=PASSWORD) as connection,
                connection.cursor() as cursor,
                cursor.copy(f"COPY {options['table']} FROM STDIN") as copy,  # type: ignore[arg-type]
            ):
                for row in rows.to_pylist():
                    copy.write_row(list(row.values()))

    def read(self, table: str) -> list[dict[str, Any]]:
        """All rows that a reader of the store finds, by id."""
        options = self.options(table)
        if self.kind == "iceberg":
            rows = self.catalog.load_table(options["table"]).scan().to_arrow().to_pylist()
        elif self.kind == "delta":
            rows = DeltaTable(options["table"]).to_pyarrow_table().to_pylist()
        elif self.kind == "jsonl":
            ends = [(json.loads(end.read_text())["sequence"], end.parent) for end in Path(options["table"]).glob("*/_SUCCESS")]
            lines = [line for path in max(ends)[1].glob("*.gz") for line in gzip.decompress(path.read_bytes()).splitlines()]
            rows = [json.loads(line) for line in lines]
        else:
            with psycopg.connect(self.connection, password=PASSWORD) as connection:
                cursor = connection.execute(f"SELECT * FROM {options['table']}")  # type: ignore[arg-type]
                names = [column.name for column in cursor.description or []]
                rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        return sorted(rows, key=lambda row: str(row["id"]))


def summaries(rows: Sequence[dict[str, Any]]) -> dict[Any, str]:
    found = {row["id"]: row["summary"] for row in rows}
    assert len(found) == len(rows), "an id comes twice"
    return found


def documents(first: int, last: int) -> pa.Table:
    ids = range(first, last)
    return pa.table(
        {
            "id": [f"{n:03}" for n in ids],
            "text": [None if n % 10 == 3 else f"Document {n}, née «Zoë»\n\tof trees." for n in ids],
            "n": pa.array([None if n % 7 == 0 else 2**53 + n for n in ids], pa.int64()),
            "other": [float(n) for n in ids],
        }
    )


def read(folder: Path, keep: list[str]) -> list[dict[str, Any]]:
    """What summarize finds, by id."""
    store = open_documents(DocumentsInput(path=str(folder), keep_columns=keep))
    tables = [pq.read_table(file.file.path) for file in store.files]
    return pa.concat_tables(tables).sort_by("id").to_pylist()


def expected(rows: pa.Table) -> list[dict[str, Any]]:
    return rows.select(["id", "text", "n"]).sort_by("id").to_pylist()


def finish_run(output: Path, run_id: str, summaries: Mapping[Any, str], **columns: Any) -> None:
    """Publish a run with these summaries, by id, and further columns, as jobs.summarize leaves one."""
    rows = {
        "id": list(summaries),
        "summary": list(summaries.values()),
        "score": pa.array([-0.5] * len(summaries), pa.float32()),
    }
    folder = output / f"summaries/run={run_id}"
    if summaries:
        folder.mkdir(parents=True)
        pq.write_table(pa.table(rows | columns), folder / "part-000000-0000.parquet")
    opened = open_location(str(output), "--output.path")
    publish(opened, run_id, last_sequence(finished_runs(opened)) + 1, f"manifest of {run_id} in {output}".encode())


def delivery(store: Store, output: Path, table: str = "summaries", **options: Any) -> DeliverConfig:
    """The configuration of jobs.deliver; options are of its input, or of its output where they begin so."""
    own = {name.removeprefix("output_"): options.pop(name) for name in list(options) if name.startswith("output_")}
    return DeliverConfig.model_validate({"input": {"path": str(output), **options}, "output": {**store.options(table), **own}})


def fetching(store: Store, folder: Path, table: str = "documents", **options: Any) -> FetchConfig:
    """The configuration of jobs.fetch; options are of its input."""
    return FetchConfig.model_validate({"input": {**store.options(table), **options}, "output": {"path": str(folder)}})
