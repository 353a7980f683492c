"""Fetches and deliveries that are killed, at each of their steps and at random moments, then repeated; and two at once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import kill_at_call
import pytest
from native_tables import FIRST_RUN, SECOND_RUN, NativeTables, documents, fetched, read_documents

from pipeline.config.loader import JobConfig

COMMIT = "pyiceberg.table:Transaction.commit_transaction"
MERGE = "deltalake.table:TableMerger.execute"
WRITE_FILE = "pipeline.io.location:Location.write"
DELIVERY_STEPS = [  # type of table, call, moment, its number, whether the delivery is complete then
    ("iceberg", "pyiceberg.catalog.sql:SqlCatalog.create_table", "after", 1, False),
    ("iceberg", "pyiceberg.table:Table.append", "after", 1, False),
    ("iceberg", COMMIT, "after", 2, False),
    ("iceberg", COMMIT, "after", 3, False),
    ("iceberg", COMMIT, "before", 4, False),
    ("iceberg", COMMIT, "after", 4, True),
    ("delta", "deltalake:DeltaTable.create", "after", 1, False),
    ("delta", MERGE, "before", 1, False),
    ("delta", MERGE, "after", 1, True),
    ("jsonl", WRITE_FILE, "after", 1, False),
    ("jsonl", WRITE_FILE, "after", 2, True),
    ("postgres", "psycopg:Copy.write_row", "after", 10, False),
    ("postgres", "psycopg:Connection.commit", "before", 1, False),
    ("postgres", "psycopg:Connection.commit", "after", 1, True),
]
DEFAULT_TIER = ("postgres", "psycopg:Connection.commit", "before", 1, False)


def command_line(config: JobConfig) -> list[str]:
    """Return a configuration as options of a job."""
    values = config.model_dump(mode="json", exclude_unset=True)
    return [
        f"--{section}.{name}={json.dumps(value) if isinstance(value, dict | list) else value}"
        for section, options in values.items()
        for name, value in options.items()
    ]


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "RAY_ADDRESS": ""},
    )


def finish(job: str, config: JobConfig) -> str:
    """Run a job, which must succeed, and return what it printed."""
    process = start("-m", f"jobs.{job}", *command_line(config))
    log, _ = process.communicate(timeout=200)
    assert process.returncode == 0, log
    return log


def kill_at(job: str, config: JobConfig, call: str, moment: str, number: int = 1) -> None:
    """Run a job and kill it at a call."""
    process = start(kill_at_call.__file__, job, call, moment, str(number), *command_line(config))
    log, _ = process.communicate(timeout=200)
    assert process.returncode == -signal.SIGKILL, log


@pytest.mark.parametrize(
    ("tables", "call", "moment", "number", "is_complete"),
    [pytest.param(*step, marks=[] if step == DEFAULT_TIER else pytest.mark.faults) for step in DELIVERY_STEPS],
    indirect=["tables"],
)
def test_delivery_killed_at_a_step(
    tables: NativeTables, output: Path, call: str, moment: str, number: int, is_complete: bool
) -> None:
    config = tables.deliver_config(output)
    kill_at("deliver", config, call, moment, number)
    try:
        summaries = tables.summaries()
    except Exception:  # there is no table yet
        summaries = {}
    assert summaries == (FIRST_RUN | SECOND_RUN if is_complete else {}), "a reader sees all of a delivery or nothing"
    assert ("nothing is new" in finish("deliver", config)) == is_complete
    assert tables.summaries() == FIRST_RUN | SECOND_RUN


@pytest.mark.faults
@pytest.mark.timeout(1500)
def test_deliveries_killed_at_random_moments(tables: NativeTables, output: Path) -> None:
    rng, started = random.Random(tables.type), time.monotonic()
    finish("deliver", tables.deliver_config(output, "first"))
    duration_s = time.monotonic() - started

    def kill_at_random(config: JobConfig) -> None:
        process = start("-m", "jobs.deliver", *command_line(config))
        time.sleep(rng.uniform(0.2, 1) * duration_s)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)

    for number in range(8):
        table = f"t{number}"
        first_run, all_runs = tables.deliver_config(output, table, run_id="a"), tables.deliver_config(output, table)
        kill_at_random(first_run)
        kill_at_random(all_runs)
        finish("deliver", all_runs)
        finish("deliver", first_run)
        assert tables.summaries(table) == FIRST_RUN | SECOND_RUN


@pytest.mark.faults
@pytest.mark.parametrize("run_ids", [("a", "b"), ("b", "a"), ("b", "b")])
def test_two_deliveries_at_once(tables: NativeTables, output: Path, run_ids: tuple[str, str]) -> None:
    configs = [tables.deliver_config(output, run_id=run_id) for run_id in run_ids]
    processes = [start("-m", "jobs.deliver", *command_line(config)) for config in configs]
    logs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], logs
    assert tables.summaries() == FIRST_RUN | SECOND_RUN


@pytest.mark.faults
@pytest.mark.parametrize(
    ("call", "moment"),
    [
        ("pipeline.tables.fetch:complete_snapshot", "before"),
        ("pipeline.tables.fetch:write_pointer", "before"),
        ("pipeline.tables.fetch:write_pointer", "after"),
    ],
)
def test_fetch_killed_at_a_step(tables: NativeTables, tmp_path: Path, call: str, moment: str) -> None:
    tables.write("documents", documents(0, 50))
    config = tables.fetch_config(tmp_path / "in", keep_columns=["n"])
    kill_at("fetch", config, call, moment)
    assert (tmp_path / "in/_fetched.json").exists() == (moment == "after")
    assert ("already had" in finish("fetch", config)) == (moment == "after")
    assert read_documents(tmp_path / "in", ["n"]) == fetched(documents(0, 50))
