"""Tables that the tests read and write with each type's own library, and the runs that they deliver."""

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

TABLE_TYPES = ("iceberg", "delta", "jsonl", "postgres")
PASSWORD = "shibboleth-4711"
PASSWORD_ENV = "NIGHTSHIFT_TEST_PASSWORD"
FIRST_RUN = {f"d{n}": f"first {n}" for n in range(20)}
SECOND_RUN = {f"d{n}": f"second {n}" for n in range(15, 25)}
_POSTGRES_TYPES = {"string": "text", "int64": "bigint", "timestamp[us, tz=UTC]": "timestamptz", "double": "float8"}


class NativeTables:
    """Tables of one type in a folder.

    Args:
        connection: of the PostgreSQL server; empty for other types.
    """

    def __init__(self, table_type: str, folder: Path, connection: str = "") -> None:
        self.type, self.folder, self.connection = table_type, folder, connection
        folder.mkdir(exist_ok=True)
        self.schema = f"s{zlib.crc32(str(folder).encode())}"
        if table_type == "postgres":
            self.sql(f"CREATE SCHEMA IF NOT EXISTS {self.schema}")

    def options(self, table: str) -> dict[str, Any]:
        """Return the options of a job that select a table."""
        if self.type == "iceberg":
            properties = {"type": "sql", "uri": f"sqlite:///{self.folder}/catalog.db", "warehouse": f"file://{self.folder}"}
            return {"kind": "iceberg", "table": f"night.{table}", "catalog_properties": properties}
        if self.type == "postgres":
            login = {"connection": self.connection, "password_env": PASSWORD_ENV}
            return {"kind": "postgres", "table": f"{self.schema}.{table}", **login}
        return {"kind": self.type, "table": str(self.folder / table)}

    @property
    def catalog(self) -> Catalog:
        return load_catalog("default", **self.options("x")["catalog_properties"])

    def sql(self, query: str) -> Any:
        with psycopg.connect(self.connection, password=PASSWORD) as connection:
            cursor = connection.execute(query)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else None

    def write(self, table: str, rows: pa.Table) -> None:
        """Replace all rows of a table, creating it if necessary."""
        name = self.options(table)["table"]
        if self.type == "iceberg":
            self.catalog.create_namespace_if_not_exists("night")
            self.catalog.create_table_if_not_exists(name, rows.schema).overwrite(rows)
        elif self.type == "delta":
            write_deltalake(name, rows, mode="overwrite")
        elif self.type == "jsonl":
            Path(name).mkdir(exist_ok=True)
            lines = [json.dumps(row, default=str) + "\n" for row in rows.to_pylist()]
            half = len(lines) // 2
            Path(name, "a.jsonl").write_text("".join(lines[:half]))
            Path(name, "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[half:]).encode()))
        else:
            columns = ", ".join(f'"{field.name}" {_POSTGRES_TYPES[str(field.type)]}' for field in rows.schema)
            self.sql(f"DROP TABLE IF EXISTS {name}; CREATE TABLE {name} ({columns})")
            with (
                psycopg.connect(self.connection, password=PASSWORD) as connection,
                connection.cursor() as cursor,
                cursor.copy(f"COPY {name} FROM STDIN") as copy,  # type: ignore[arg-type]
            ):
                for row in rows.to_pylist():
                    copy.write_row(list(row.values()))

    def read(self, table: str) -> list[dict[str, Any]]:
        """Return all rows of a table, by id."""
        name = self.options(table)["table"]
        if self.type == "iceberg":
            rows = self.catalog.load_table(name).scan().to_arrow().to_pylist()
        elif self.type == "delta":
            rows = DeltaTable(name).to_pyarrow_table().to_pylist()
        elif self.type == "jsonl":
            markers = [(json.loads(marker.read_text())["sequence"], marker.parent) for marker in Path(name).glob("*/_SUCCESS")]
            files = [gzip.decompress(path.read_bytes()) for path in max(markers)[1].glob("*.gz")]
            rows = [json.loads(line) for content in files for line in content.splitlines()]
        else:
            with psycopg.connect(self.connection, password=PASSWORD) as connection:
                cursor = connection.execute(f"SELECT * FROM {name}")  # type: ignore[arg-type]
                names = [column.name for column in cursor.description or []]
                rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        return sorted(rows, key=lambda row: str(row["id"]))

    def summaries(self, table: str = "summaries") -> dict[Any, str]:
        """Return the summaries in a table by id. No id may occur twice."""
        rows = self.read(table)
        summaries = {row["id"]: row["summary"] for row in rows}
        assert len(summaries) == len(rows), "an id occurs twice"
        return summaries

    def deliver_config(self, output: Path, table: str = "summaries", **options: Any) -> DeliverConfig:
        """Return a configuration of jobs.deliver. Options are those of its input, or of its output with prefix output_."""
        of_output = {name.removeprefix("output_"): options.pop(name) for name in list(options) if name.startswith("output_")}
        return DeliverConfig.model_validate(
            {"input": {"path": str(output), **options}, "output": {**self.options(table), **of_output}}
        )

    def fetch_config(self, folder: Path, table: str = "documents", **options: Any) -> FetchConfig:
        """Return a configuration of jobs.fetch with options of its input."""
        return FetchConfig.model_validate({"input": {**self.options(table), **options}, "output": {"path": str(folder)}})


def documents(first: int, end: int) -> pa.Table:
    """Return documents with ids from ``first`` to ``end`` - 1, some without a text."""
    numbers = range(first, end)
    return pa.table(
        {
            "id": [f"{n:03}" for n in numbers],
            "text": [None if n % 10 == 3 else f"Document {n}, née «Zoë»\n\tof trees." for n in numbers],
            "n": pa.array([None if n % 7 == 0 else 2**53 + n for n in numbers], pa.int64()),
            "other": [float(n) for n in numbers],
        }
    )


def fetched(rows: pa.Table) -> list[dict[str, Any]]:
    """Return documents as fetched with column "n", by id."""
    return rows.select(["id", "text", "n"]).sort_by("id").to_pylist()


def read_documents(folder: Path, keep_columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the documents that jobs.summarize finds in a folder, by id."""
    documents = open_documents(DocumentsInput(path=str(folder), keep_columns=list(keep_columns)))
    tables = [pq.read_table(file.file.path) for file in documents.files]
    return pa.concat_tables(tables).sort_by("id").to_pylist()


def finish_run(output: Path, run_id: str, summaries: Mapping[Any, str], **columns: Any) -> None:
    """Write a finished run with these summaries by id, and more columns, as jobs.summarize does."""
    rows = {
        "id": list(summaries),
        "summary": list(summaries.values()),
        "score": pa.array([-0.5] * len(summaries), pa.float32()),
    }
    folder = output / f"summaries/run={run_id}"
    if summaries:
        folder.mkdir(parents=True)
        pq.write_table(pa.table(rows | columns), folder / "part-000000-0000.parquet")
    location = open_location(str(output), "--output.path")
    sequence = last_sequence(finished_runs(location)) + 1
    publish(location, run_id, sequence, f"manifest of {run_id} in {output}".encode())
