"""jobs.summarize as a command that tests start and kill, and comparisons of its output with that of an uninterrupted run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

KILL_AT_WRITE = Path(__file__).parent / "kill_at_write"


def write_documents(folder: Path, texts: Sequence[str | None], files: int) -> Path:
    """Write texts to files of equal size, with ids from 0."""
    folder.mkdir()
    size = -(-len(texts) // files)
    for number, start in enumerate(range(0, len(texts), size)):
        part = texts[start : start + size]
        table = pa.table({"id": range(start, start + len(part)), "text": pa.array(part, pa.string())})
        pq.write_table(table, folder / f"{number:03}.parquet", row_group_size=100)
    return folder


@dataclass(frozen=True)
class SummarizeCommand:
    """``python -m jobs.summarize``.

    Attributes:
        documents: folder or URI of the input.
        output: folder or URI.
        environment: variables besides those of this process.
    """

    documents: Path | str
    output: Path | str
    options: Sequence[str] = ()
    environment: Sequence[tuple[str, str]] = ()

    def start(self, **environment: str) -> subprocess.Popen[str]:
        """Start it in a session of its own. Its stdout has all that it prints."""
        options = ["--input.path", str(self.documents), "--output.path", str(self.output), *self.options]
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.summarize", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, **dict(self.environment), **environment},
        )

    def finish(self) -> str:
        """Run it to the end and return what it printed. It must succeed."""
        process = self.start()
        log, _ = process.communicate(timeout=300)
        assert process.returncode == 0, log
        return log

    def kill_at_write(self, path_part: str, moment: str, victim: str, marker: Path) -> str:
        """Run it, kill a process when it writes a certain file, and return what the command printed.

        Args:
            path_part: part of the file's path.
            moment: "before" the write, "during" it, or "after" it.
            victim: "worker" for the process that writes, "driver" for that process and the driver.
            marker: file that records the kill.
        """
        driver = marker.with_suffix(".pid")
        kill = {"KILL_AT": f"{path_part}:{moment}:{marker}", **({"KILL_ALSO": str(driver)} if victim == "driver" else {})}
        paths = [str(KILL_AT_WRITE), *filter(None, [os.environ.get("PYTHONPATH")])]
        process = self.start(PYTHONPATH=os.pathsep.join(paths), **kill)
        driver.write_text(str(process.pid))
        log, _ = process.communicate(timeout=300)
        assert marker.exists(), f"nothing was killed: {log}"
        assert process.returncode in (0, -signal.SIGKILL), log
        return log


def run_ids(output: Path, file: str = "_SUCCESS") -> set[str]:
    """Return the ids of an output's runs that have this file, by default of those that are finished."""
    return {path.parent.name for path in output.glob(f"runs/*/{file}")}


def read_rows(output: Path, folder: str) -> pa.Table:
    """Return all summaries or all rejects of an output's finished runs, by id."""
    folders = [output / folder / f"run={run_id}" for run_id in run_ids(output)]
    tables = [pads.dataset(folder, format="parquet").to_table() for folder in folders if folder.exists()]
    return pa.concat_tables(tables).sort_by("id") if tables else pa.table({"id": pa.array([], pa.int64())})


@dataclass(frozen=True)
class Difference:
    """Numbers of rows by which an output differs from that of an uninterrupted run, and an example of a changed row."""

    missing: int
    duplicate: int
    changed: int
    example: str = ""

    @property
    def is_none(self) -> bool:
        return not (self.missing or self.duplicate or self.changed)


def compare_outputs(output: Path, uninterrupted: Path) -> Difference:
    """Compare all values of summaries and rejects."""
    missing = duplicate = changed = 0
    example = ""
    for folder in ("summaries", "rejects"):
        actual, expected = (_rows_by_id(read_rows(root, folder)) for root in (output, uninterrupted))
        missing += len(expected.keys() - actual.keys())
        duplicate += sum(len(rows) - 1 for rows in actual.values())
        different = [key for key, rows in actual.items() if rows[0] != expected.get(key, [None])[0]]
        changed += len(different)
        example = example or "".join(f"{actual[key][0]} instead of {expected.get(key)}" for key in different[:1])
    return Difference(missing, duplicate, changed, example)


def _rows_by_id(table: pa.Table) -> dict[Any, list[dict[str, Any]]]:
    rows: dict[Any, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        rows.setdefault(row["id"], []).append(row)
    return rows


def ledger_segments(output: Path) -> dict[Path, int]:
    """Return the paths of the ledger's segments, one for each committed window, with their modification times in ns."""
    return {path: path.stat().st_mtime_ns for path in (output / "ledger").glob("run=*/part-*.parquet")}


def rewritten(segments: dict[Path, int]) -> int:
    """Return how many of these segments have been written again since."""
    return sum(path.stat().st_mtime_ns != modified for path, modified in segments.items() if path.exists())
