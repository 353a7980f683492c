"""Benchmark ``tables``: time and memory of deliveries to tables, and of fetches from them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field
from rich.table import Table

from jobs.benchmark.common.memory import format_mib, peak_memory
from jobs.console import new_console
from pipeline.config.base import JobConfig, Section
from pipeline.config.loader import load_config
from pipeline.config.types import Positive
from pipeline.data.snapshots import read_pointer
from pipeline.errors import UserError
from pipeline.io.location import open_location
from pipeline.runs.layout import SUMMARIES, parts_path
from pipeline.runs.publish import publish

console = new_console()
_ROWS_PER_FILE = 10_000
_SCHEMA = pa.schema([("id", pa.int64()), ("summary", pa.string()), ("score", pa.float32())])
_SUMMARY = "A title about as long as the title of an article is, and this one is number {}"


class TablesSection(Section):
    """The tables to use."""

    kinds: Annotated[list[Literal["iceberg", "delta", "jsonl", "postgres"]], Field(min_length=1)] = Field(
        ["iceberg", "delta", "jsonl"], description="kinds of tables; all but postgres are in a folder of this machine"
    )
    rows: Annotated[list[Positive], Field(min_length=1)] = Field(
        [100_000, 1_000_000], description="summaries of the first delivery; the second one changes 1 % of them"
    )
    connection: str = Field(
        "", description="PostgreSQL server, as for jobs.deliver; the tables nightshift_benchmark_… remain there"
    )


class TablesBenchmark(JobConfig):
    """Deliver made-up summaries to tables twice, and fetch them as documents."""

    tables: TablesSection = TablesSection()


def tables(options: Sequence[str]) -> dict[str, Any]:
    config = load_config(TablesBenchmark, "benchmark tables", options)
    rows = [_measure(kind, rows, config.tables.connection) for kind in config.tables.kinds for rows in config.tables.rows]
    table = Table("table", "rows", "job", "seconds", "rows/s", "driver (MiB)", "a task (MiB)", title="Deliveries and fetches")
    for row in rows:
        for job, figures in row["took"].items():
            rate = f"{figures['rows'] / figures['seconds']:,.0f}"
            memory = format_mib(figures["peak_bytes"], ("driver", "task"))
            table.add_row(row["kind"], f"{row['rows']:,}", job, f"{figures['seconds']:.1f}", rate, *memory)
    console.print(table)
    return {"config": config.model_dump(mode="json"), "rows": rows}


def _measure(kind: str, rows: int, connection: str) -> dict[str, Any]:
    console.print(f"{kind}, {rows:,} rows")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = _table_options(kind, folder, connection)
        deliver = ["--input.path", str(folder / "out"), *(f"--output.{option}" for option in options)]
        fetch = [*(f"--input.{option}" for option in options), "--input.text_column=summary"]
        if kind == "jsonl":  # each delivery has its own folder
            fetch.append(f"--input.table={folder / 'table/run=b'}")
        took = {}
        runs = [("first delivery", "a", range(rows)), ("second delivery", "b", range(0, rows, 100))]
        for sequence, (job, run_id, ids) in enumerate(runs, 1):
            _write_run(folder / "out", run_id, sequence, ids)
            took[job] = {"rows": len(ids), **_run_job("deliver", deliver)}
        took["fetch"] = {"rows": rows, **_run_job("fetch", [*fetch, f"--output.path={folder / 'documents'}"])}
        pointer = read_pointer(open_location(str(folder / "documents"), "--output.path"))
        assert pointer is not None
        assert pointer["rows"] == rows, "fetched other rows than were delivered"
        return {"kind": kind, "rows": rows, "took": took}


def _table_options(kind: str, folder: Path, connection: str) -> list[str]:
    """Return the options that name the table, without the prefix --input. or --output."""
    if kind == "iceberg":
        catalog = f'{{"type": "sql", "uri": "sqlite:///{folder}/catalog.db", "warehouse": "file://{folder}"}}'
        return ["kind=iceberg", "table=night.summaries", f"catalog_properties={catalog}"]
    if kind == "postgres":
        return ["kind=postgres", f"table=nightshift_benchmark_{uuid.uuid4().hex[:8]}", f"connection={connection}"]
    return [f"kind={kind}", f"table={folder / 'table'}"]


def _write_run(output: Path, run_id: str, sequence: int, ids: range) -> None:
    """Write a finished run with summaries of these ids; one file at a time is in memory."""
    folder = output / parts_path(SUMMARIES, run_id)
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, len(ids), _ROWS_PER_FILE)):
        file_ids = ids[start : start + _ROWS_PER_FILE]
        summaries = [_SUMMARY.format(f"{id_} of {run_id}") for id_ in file_ids]
        columns = [pa.array(file_ids), summaries, pa.nulls(len(file_ids), pa.float32())]
        pq.write_table(pa.table(columns, schema=_SCHEMA), folder / f"part-{number:06}-0000.parquet", compression="zstd")
    publish(open_location(str(output), "--output.path"), run_id, sequence, f"made up: {run_id}".encode())


def _run_job(name: str, options: Sequence[str]) -> dict[str, Any]:
    """Run a job as a command; return its seconds and peak memory."""
    started = time.monotonic()
    with (
        subprocess.Popen(
            [sys.executable, "-m", f"jobs.{name}", *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
        peak_memory(psutil.Process(process.pid)) as peaks,
    ):
        printed = process.communicate()[0]
    if process.returncode:
        raise UserError(f"jobs.{name} failed with exit status {process.returncode}: {printed.strip()[-500:]}")
    return {"seconds": time.monotonic() - started, "peak_bytes": peaks}
