"""Real stores: an Iceberg catalog in SQLite, Delta tables and JSON lines in a folder, and a PostgreSQL server."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog import Catalog, load_catalog

from pipeline.config import DeliverConfig, FetchConfig
from pipeline.inference.publication import publish
from pipeline.storage import place

KINDS = ("iceberg", "delta", "jsonl", "postgres")
PASSWORD = "shibboleth-4711"
PASSWORD_ENV = "NIGHTSHIFT_TEST_PASSWORD"


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """What to connect to a server with; the password is in the environment."""
    places = [Path(found).resolve().parent for found in [shutil.which("initdb"), shutil.which("postgres")] if found]
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    programs = next((folder for folder in places if (folder / "initdb").exists() and (folder / "postgres").exists()), None)
    if programs is None:
        pytest.skip("no PostgreSQL server here: apt-get install postgresql")
    # The server does not run as root; a socket's path may have 107 bytes.
    user = "postgres" if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="nightshift-pg-", dir="/tmp") as folder:
        if user:
            shutil.chown(folder, user)
        Path(folder, "password").write_text(PASSWORD)
        Path(folder, "password").chmod(0o644)
        os.environ[PASSWORD_ENV] = PASSWORD
        data, options = f"{folder}/data", ["-U", "night", "-A", "scram-sha-256", "--pwfile", f"{folder}/password", "--no-sync"]
        subprocess.run([programs / "initdb", "-D", data, "-E", "UTF8", *options], user=user, check=True, capture_output=True)
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"],
            user=user,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            connection = f"host={folder} user=night dbname=postgres"
            for _ in range(100):
                try:
                    psycopg.connect(connection, password=PASSWORD).close()
                    break
                except psycopg.OperationalError:
                    time.sleep(0.1)
            yield connection
        finally:
            server.terminate()
            server.wait(30)


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


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store of each kind."""
    return Store(request.param, tmp_path / "store", request.getfixturevalue("postgres") if request.param == "postgres" else "")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output folder, yet to be written."""
    return tmp_path / "out"


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
    publish(place(str(output), "--output.path"), run_id, f"manifest of {run_id} in {output}".encode())


def delivery(store: Store, output: Path, table: str = "summaries", **options: Any) -> DeliverConfig:
    """The configuration of jobs.deliver; options are of its input, or of its output where they begin so."""
    own = {name.removeprefix("output_"): options.pop(name) for name in list(options) if name.startswith("output_")}
    return DeliverConfig.model_validate({"input": {"path": str(output), **options}, "output": {**store.options(table), **own}})


def fetching(store: Store, folder: Path, table: str = "documents", **options: Any) -> FetchConfig:
    """The configuration of jobs.fetch; options are of its input."""
    return FetchConfig.model_validate({"input": {**store.options(table), **options}, "output": {"path": str(folder)}})
