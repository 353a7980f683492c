"""``python -m jobs.benchmark tables``: what deliveries to stores, and fetches from them, take and hold in memory."""

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

from jobs.benchmark.common.memory import peak_memory
from jobs.console import new_console
from pipeline.config.base import JobConfig, Section
from pipeline.config.loader import load_config
from pipeline.config.types import Positive
from pipeline.data.snapshots import read_pointer
from pipeline.errors import UserError
from pipeline.io.location import open_location
from pipeline.runs.layout import SUMMARIES, parts_path
from pipeline.runs.publish import finished_runs, last_sequence, publish

console = new_console()
_ROWS_OF_A_FILE = 10_000
_SCHEMA = pa.schema([("id", pa.int64()), ("summary", pa.string()), ("score", pa.float32())])
_SUMMARY = "A title of the length that those of articles have, which is number {} of them"


class TablesSection(Section):
    """The tables."""

    kinds: Annotated[list[Literal["iceberg", "delta", "jsonl", "postgres"]], Field(min_length=1)] = Field(
        ["iceberg", "delta", "jsonl"], description="stores, each in a folder of this machine's; postgres where connection says"
    )
    rows: Annotated[list[Positive], Field(min_length=1)] = Field(
        [100_000, 1_000_000], description="summaries of a first delivery; a second one has a hundredth of them, all changed"
    )
    connection: str = Field("", description="PostgreSQL server, as in jobs.deliver; tables nightshift_benchmark_… stay there")


class TablesBenchmark(JobConfig):
    """Deliver made-up summaries to tables, twice, and fetch them again as documents."""

    tables: TablesSection = TablesSection()


def tables(options: Sequence[str]) -> dict[str, Any]:
    """Go through stores and sizes; see TablesBenchmark for the options."""
    config = load_config(TablesBenchmark, "benchmark tables", options)
    found = [_measure(kind, rows, config.tables.connection) for kind in config.tables.kinds for rows in config.tables.rows]
    shown = Table("store", "rows", "what", "seconds", "rows/s", "driver (MiB)", "a task (MiB)", title="Deliveries and fetches")
    for each in found:
        for what, took in each["took"].items():
            held = [f"{took['peak_bytes'].get(role, 0) / 2**20:,.0f}" for role in ("driver", "task")]
            rate = f"{took['rows'] / took['seconds']:,.0f}"
            shown.add_row(each["kind"], f"{each['rows']:,}", what, f"{took['seconds']:.1f}", rate, *held)
    console.print(shown)
    return {"config": config.model_dump(mode="json"), "rows": found}


def _measure(kind: str, rows: int, connection: str) -> dict[str, Any]:
    console.print(f"{kind}, {rows:,} rows")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = _table(kind, folder, connection)
        deliver = ["deliver", "--input.path", str(folder / "out"), *(f"--output.{words}" for words in table)]
        fetch = ["fetch", *(f"--input.{words}" for words in table), "--input.text_column=summary"]
        if kind == "jsonl":  # of which each delivery has a folder
            fetch.append(f"--input.table={folder / 'table/run=b'}")
        took = {}
        for what, run_id, ids in (("first delivery", "a", range(rows)), ("second delivery", "b", range(0, rows, 100))):
            _publish(folder / "out", run_id, ids)
            took[what] = {"rows": len(ids), **_run(deliver)}
        took["fetch"] = {"rows": rows, **_run([*fetch, f"--output.path={folder / 'documents'}"])}
        found = read_pointer(open_location(str(folder / "documents"), "--output.path"))
        assert found is not None
        assert found["rows"] == rows, "the store has other rows than were delivered"
        return {"kind": kind, "rows": rows, "took": took}


def _table(kind: str, folder: Path, connection: str) -> list[str]:
    """What says which table it is, behind --input. or --output."""
    if kind == "iceberg":
        catalog = f'{{"type": "sql", "uri": "sqlite:///{folder}/catalog.db", "warehouse": "file://{folder}"}}'
        return ["kind=iceberg", "table=night.summaries", f"catalog_properties={catalog}"]
    if kind == "postgres":
        return ["kind=postgres", f"table=nightshift_benchmark_{uuid.uuid4().hex[:8]}", f"connection={connection}"]
    return [f"kind={kind}", f"table={folder / 'table'}"]


def _publish(output: Path, run_id: str, ids: range) -> None:
    """A finished run with summaries of these ids; holds a file."""
    folder = output / parts_path(SUMMARIES, run_id)
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, len(ids), _ROWS_OF_A_FILE)):
        some = ids[start : start + _ROWS_OF_A_FILE]
        columns = [pa.array(some), [_SUMMARY.format(f"{id_} of {run_id}") for id_ in some], pa.nulls(len(some), pa.float32())]
        pq.write_table(pa.table(columns, schema=_SCHEMA), folder / f"part-{number:06}-0000.parquet", compression="zstd")
    opened = open_location(str(output), "--output.path")
    publish(opened, run_id, last_sequence(finished_runs(opened)) + 1, f"made up: {run_id}".encode())


def _run(words: Sequence[str]) -> dict[str, Any]:
    """Seconds and memory of a job, as whoever types its command has them."""
    name, *options = words
    started = time.monotonic()
    with (
        subprocess.Popen(
            [sys.executable, "-m", f"jobs.{name}", *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
        peak_memory(psutil.Process(process.pid)) as peaks,
    ):
        told = process.communicate()[0]
    if process.returncode:
        raise UserError(f"jobs.{name} ended with {process.returncode}: {told.strip()[-500:]}")
    return {"seconds": time.monotonic() - started, "peak_bytes": peaks}
