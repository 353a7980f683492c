"""Fetches and deliveries that are killed, at each of their steps and at any moment, and begun again; and two at once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from table_kinds import FIRST, SECOND, Store, delivery, documents, expected, fetching, read, summaries

from pipeline.config.loader import JobConfig

DYING = Path(__file__).with_name("dying.py")
UPSERT, TABLES = "ray.data:Dataset.write_iceberg", "pyiceberg.table:Table"
STEPS = [
    ("iceberg", "pyiceberg.catalog.sql:SqlCatalog.create_table", "after", 1),
    ("iceberg", f"{TABLES}.append", "after", 1),
    ("iceberg", UPSERT, "before", 1),
    ("iceberg", "pyiceberg.table:Transaction.commit_transaction", "before", 4),
    ("iceberg", UPSERT, "after", 1),
    ("iceberg", "pipeline.tables.iceberg:IcebergSink._publish", "after", 1),
    ("delta", "deltalake:DeltaTable.create", "after", 1),
    ("delta", "deltalake.table:TableMerger.execute", "before", 1),
    ("delta", "deltalake.table:TableMerger.execute", "after", 1),
    ("jsonl", "pipeline.io.location:Location.write", "after", 1),
    ("jsonl", "pipeline.io.location:Location.write", "after", 2),
    ("postgres", "psycopg:Copy.write_row", "after", 10),
    ("postgres", "psycopg:Connection.commit", "before", 1),
    ("postgres", "psycopg:Connection.commit", "after", 1),
]
DAILY = {("postgres", "psycopg:Connection.commit", "before", 1)}
COMMITS = ("_publish", "TableMerger.execute", "Connection.commit")


def options_of(config: JobConfig) -> list[str]:
    """As words of the command line."""
    given = config.model_dump(mode="json", exclude_unset=True)
    return [
        f"--{section}.{name}={json.dumps(value) if isinstance(value, dict | list) else value}"
        for section, values in given.items()
        for name, value in values.items()
    ]


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "RAY_ADDRESS": ""},
    )


def finish(*words: str) -> str:
    """Run a job to its end, which must be a good one; what it printed."""
    process = start("-m", *words)
    told, _ = process.communicate(timeout=200)
    assert process.returncode == 0, told
    return told


@pytest.mark.parametrize(
    ("store", "step", "when", "number"),
    [pytest.param(*point, marks=[] if point in DAILY else pytest.mark.faults) for point in STEPS],
    indirect=["store"],
)
def test_a_delivery_killed_at_a_step(store: Store, output: Path, step: str, when: str, number: int) -> None:
    words = options_of(delivery(store, output))
    process = start(str(DYING), "deliver", step, when, str(number), *words)
    told, _ = process.communicate(timeout=200)
    assert process.returncode == -signal.SIGKILL, told
    try:
        seen = summaries(store.read("summaries"))
    except Exception:  # there is no table yet
        seen = {}
    assert seen in ({}, FIRST | SECOND), "a reader sees all of it or nothing"
    is_done = when == "after" and (step.endswith(COMMITS) or (store.kind, number) == ("jsonl", 2))
    assert bool(seen) == is_done
    assert ("nothing is new" in finish("jobs.deliver", *words)) == is_done
    assert summaries(store.read("summaries")) == FIRST | SECOND


def moments(process: subprocess.Popen[str], longest_s: float, rng: random.Random) -> None:
    """Kill it at a random moment, unless it ends before."""
    time.sleep(rng.uniform(0.2, 1) * longest_s)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)


@pytest.mark.faults
@pytest.mark.timeout(1500)
def test_deliveries_killed_at_random_moments(store: Store, output: Path) -> None:
    rng, began = random.Random(store.kind), time.monotonic()
    finish("jobs.deliver", *options_of(delivery(store, output, "first")))
    longest_s = time.monotonic() - began
    for number in range(8):
        words = options_of(delivery(store, output, f"t{number}", run_id="a"))
        moments(start("-m", "jobs.deliver", *words), longest_s, rng)
        later = options_of(delivery(store, output, f"t{number}"))
        moments(start("-m", "jobs.deliver", *later), longest_s, rng)
        finish("jobs.deliver", *later)
        finish("jobs.deliver", *words)
        assert summaries(store.read(f"t{number}")) == FIRST | SECOND


@pytest.mark.faults
def test_two_deliveries_at_once(store: Store, output: Path) -> None:
    for number in range(4):
        both = [
            start("-m", "jobs.deliver", *options_of(delivery(store, output, f"t{number}", run_id=run_id)))
            for run_id in (["a", "b"], ["b", "a"], ["b", "b"], ["a", "b"])[number]
        ]
        told = [process.communicate(timeout=200)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0], told
        assert summaries(store.read(f"t{number}")) == FIRST | SECOND


@pytest.mark.faults
@pytest.mark.parametrize(
    ("step", "when"),
    [
        ("pipeline.tables.fetch:_written", "before"),
        ("pipeline.tables.fetch:_point_to", "before"),
        ("pipeline.tables.fetch:_point_to", "after"),
    ],
)
def test_a_fetch_killed_at_a_step(store: Store, tmp_path: Path, step: str, when: str) -> None:
    store.write("documents", documents(0, 50))
    words = options_of(fetching(store, tmp_path / "in", keep_columns=["n"]))
    process = start(str(DYING), "fetch", step, when, "1", *words)
    told, _ = process.communicate(timeout=200)
    assert process.returncode == -signal.SIGKILL, told
    assert (tmp_path / "in/_fetched.json").exists() == (when == "after")
    assert ("had already" in finish("jobs.fetch", *words)) == (when == "after")
    assert read(tmp_path / "in", ["n"]) == expected(documents(0, 50))
