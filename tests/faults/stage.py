"""A run as a command, what is killed of it, and what it leaves."""

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

KILLPOINTS = Path(__file__).parent / "killpoints"


def write_store(folder: Path, texts: Sequence[str | None], files: int) -> Path:
    """Texts in files of equal size, with ids from 0."""
    folder.mkdir()
    size = -(-len(texts) // files)
    for number, start in enumerate(range(0, len(texts), size)):
        some = texts[start : start + size]
        table = pa.table({"id": range(start, start + len(some)), "text": pa.array(some, pa.string())})
        pq.write_table(table, folder / f"{number:03}.parquet", row_group_size=100)
    return folder


@dataclass(frozen=True)
class Command:
    """``python -m jobs.summarize`` over a store. environment: of the process, beside this one's.

    store, output: folders, or URIs.
    """

    store: Path | str
    output: Path | str
    options: Sequence[str] = ()
    environment: Sequence[tuple[str, str]] = ()

    def start(self, **environment: str) -> subprocess.Popen[str]:
        """In a session of its own; what it prints is read from its stdout."""
        options = ["--input.path", str(self.store), "--output.path", str(self.output), *self.options]
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.summarize", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, **dict(self.environment), **environment},
        )

    def finish(self) -> str:
        """Run it to its end, which must be a good one; what it printed."""
        process = self.start()
        told, _ = process.communicate(timeout=300)
        assert process.returncode == 0, told
        return told

    def die_at(self, part: str, when: str, whom: str, marker: Path) -> str:
        """Run it until a process is killed at a step of writing a file whose path has this part, and the driver if whom says.

        Returns what it printed.
        """
        driver = marker.with_suffix(".pid")
        kill = {"KILL_AT": f"{part}:{when}:{marker}", **({"KILL_TOO": str(driver)} if whom == "driver" else {})}
        paths = [str(KILLPOINTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        process = self.start(PYTHONPATH=os.pathsep.join(paths), **kill)
        driver.write_text(str(process.pid))
        told, _ = process.communicate(timeout=300)
        assert marker.exists(), f"nothing was killed: {told}"
        assert process.returncode in (0, -signal.SIGKILL), told
        return told


def rows_of(output: Path, kind: str) -> pa.Table:
    """All summaries, or rejects, of an output's published runs."""
    runs = [path.parent.name for path in (output / "runs").glob("*/_SUCCESS")]
    folders = [output / kind / f"run={run}" for run in runs]
    tables = [pads.dataset(folder, format="parquet").to_table() for folder in folders if folder.exists()]
    return pa.concat_tables(tables).sort_by("id") if tables else pa.table({"id": pa.array([], pa.int64())})


@dataclass(frozen=True)
class Difference:
    """Rows that are lost, that come twice, and that are otherwise than in an undisturbed output, of which one is shown."""

    lost: int
    doubled: int
    other: int
    shown: str = ""

    @property
    def is_none(self) -> bool:
        """Whether there is none."""
        return not (self.lost or self.doubled or self.other)


def difference(output: Path, undisturbed: Path) -> Difference:
    """Of summaries and rejects, value for value."""
    lost = doubled = other = 0
    shown = ""
    for kind in ("summaries", "rejects"):
        found, expected = (_by_id(rows_of(folder, kind)) for folder in (output, undisturbed))
        lost += len(expected.keys() - found.keys())
        doubled += sum(len(rows) - 1 for rows in found.values())
        others = [key for key, rows in found.items() if rows[0] != expected.get(key, [None])[0]]
        other += len(others)
        shown = shown or "".join(f"{found[key][0]} instead of {expected.get(key)}" for key in others[:1])
    return Difference(lost, doubled, other, shown)


def _by_id(table: pa.Table) -> dict[Any, list[dict[str, Any]]]:
    rows: dict[Any, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        rows.setdefault(row["id"], []).append(row)
    return rows


def written_again(before: dict[Path, int]) -> int:
    """Windows whose commit was there before, and was made anew."""
    return sum(path.stat().st_mtime_ns != at for path, at in before.items() if path.exists())


def commits(output: Path) -> dict[Path, int]:
    """The segments of the ledger, and when they were written."""
    return {path: path.stat().st_mtime_ns for path in (output / "ledger").glob("run=*/part-*.parquet")}
