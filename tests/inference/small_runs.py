"""Runs over the small documents in folder/in with the output folder/out, complete or interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from pipeline.config.summarize import SummarizeConfig
from pipeline.inference.plan import Plan, plan_run
from pipeline.inference.run import RunResult, execute
from pipeline.runs.progress import RunProgress


def make_plan(folder: Path, bundle: Path, run_id: str | None = "r", **sections: Any) -> Plan:
    """Plan a run with one actor and windows of 10 documents, unless the sections of the configuration say otherwise."""
    values: dict[str, Any] = {
        "input": {"path": str(folder / "in"), **sections.pop("input", {})},
        "output": {"path": str(folder / "out"), "run_id": run_id, **sections.pop("output", {})},
        "model": {"path": str(bundle)},
        "resources": {"actors": 1, "window_rows": 10, **sections.pop("resources", {})},
        **sections,
    }
    return plan_run(SummarizeConfig.model_validate(values))


def run(
    folder: Path,
    bundle: Path,
    run_id: str | None = "r",
    on_progress: Callable[[RunProgress], None] = lambda _: None,
    **sections: Any,
) -> RunResult:
    """Plan and execute a run."""
    return execute(make_plan(folder, bundle, run_id, **sections), on_progress)


def write_documents(folder: Path, name: str, documents: dict[Any, str | None] | pa.Table) -> Path:
    """Write a table, or texts by id, as a file of the input."""
    (folder / "in").mkdir(exist_ok=True)
    if isinstance(documents, dict):
        documents = pa.table({"id": list(documents), "text": pa.array(documents.values(), pa.string())})
    path = folder / f"in/{name}.parquet"
    pq.write_table(documents, path)
    return path


def make_texts(start: int, end: int, word: str = "graphs") -> dict[Any, str | None]:
    """Return texts by id, from ``start`` to before ``end``."""
    return {n: f"Document number {n} speaks of {word}." for n in range(start, end)}


def read_rows(folder: Path, run_id: str = "r", table: str = "summaries") -> list[dict[str, Any]]:
    """Return the summaries or rejects of a run."""
    path = folder / f"out/{table}/run={run_id}"
    return pads.dataset(path).to_table().to_pylist() if path.exists() else []


def read_ids(folder: Path, run_id: str = "r") -> list[Any]:
    """Return the sorted ids of a run's summaries."""
    return sorted(row["id"] for row in read_rows(folder, run_id))


class Interrupted(Exception):
    """Raised in a run by ``interrupt_after``."""


def interrupt_after(windows: int) -> Callable[[RunProgress], None]:
    """Return an ``on_progress`` that interrupts a run after some windows."""
    remaining = [windows]

    def interrupt(_: RunProgress) -> None:
        remaining[0] -= 1
        if not remaining[0]:
            raise Interrupted

    return interrupt
