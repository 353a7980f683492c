"""Benchmark ``driver``: the driver's own work for a run of any size, without the run.

The driver lists and plans all input files, has the ledger loaded, and adds up a record for each written window. This benchmark
makes up all three: files, ledger entries, and the records that a thousand actors would send. What Ray Data costs per window is
not included; the ``scale`` benchmark measures that.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field
from rich.table import Table

from jobs.benchmark.common.documents import write_rows
from jobs.console import new_console
from pipeline import cluster
from pipeline.config.base import JobConfig, Section
from pipeline.config.loader import load_config
from pipeline.config.summarize import DocumentsInput
from pipeline.config.types import Positive
from pipeline.data.documents import DocumentFile, DocumentSet, open_documents
from pipeline.data.splits import cut_splits
from pipeline.inference.totals import RunTotals
from pipeline.io.location import StoredFile, open_location
from pipeline.runs.layout import COMPACTED, SUCCESS, SUMMARIES, part_path
from pipeline.runs.ledger import Ledger, load
from pipeline.runs.manifest import OutputFile, WindowRecord
from pipeline.runs.publish import finished_runs, publish
from pipeline.runs.samples import DocumentSample, DuplicateSketch, sketch_size, smallest_keys
from pipeline.runs.stats import Histogram, RunStats, Throughput
from pipeline.runs.timings import StageTimings

console = new_console()
_ACTORS = 1000
_ENTRIES_PER_FILE = 4 * 2**20
_WINDOW_ROWS = 512

_DIFFERENT_STATS = 1000
"""Stats of windows that are made, and then used again: making them takes longer than adding them up."""


class Sizes(Section):
    """The size of the run."""

    files: Positive = Field(1_000_000, description="input files of 512 documents each")
    windows: Positive = Field(1_000_000, description="windows of 512 documents each")
    entries: Positive = Field(10_000_000, description="entries of a compacted ledger, which Ray tasks load")
    opened: Positive = Field(20_000, description="real files of 10 documents each to open, in a temporary folder")


class DriverBenchmark(JobConfig):
    """Measure the time and memory of the driver's own work."""

    run: Sizes = Sizes()


def driver(options: Sequence[str]) -> dict[str, Any]:
    config = load_config(DriverBenchmark, "benchmark driver", options)
    table = Table("", "number", "per second", "bytes each", title="What one driver does")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        opened = config.run.opened
        folder = write_rows(Path(name) / "in", {"text": ["text"]}, 10 * opened, opened)
        output = _write_ledger(Path(name) / "out", config.run.entries)
        works: list[tuple[str, int, Callable[[int], Any], Callable[[], None] | None]] = [
            ("files_opened", opened, partial(_open_files, folder), None),
            ("files_planned", config.run.files, _plan_files, None),
            ("entries_loaded", config.run.entries, partial(_load_ledger, output), cluster.connect),
            ("windows_tallied", config.run.windows, _add_windows, None),
        ]
        for key, number, work, prepare in works:
            # Each in its own process, to measure its memory only.
            with ProcessPoolExecutor(1, get_context("spawn"), prepare) as process:
                rate, bytes_each = process.submit(_measure, work, number).result()
            table.add_row(key.replace("_", " "), f"{number:,}", f"{rate:,.0f}", f"{bytes_each:,.0f}")
            figures[key] = {"number": number, "per_s": rate, "bytes_each": bytes_each}
    console.print(table)
    return figures


def _measure(work: Callable[[int], Any], number: int) -> tuple[float, float]:
    """Return the items per second, and the bytes that each leaves in memory."""
    bytes_at_start, started = psutil.Process().memory_info().rss, time.perf_counter()
    result = work(number)
    rate = number / (time.perf_counter() - started)
    bytes_each = (psutil.Process().memory_info().rss - bytes_at_start) / number
    del result
    return rate, bytes_each


def _open_files(folder: Path, number: int) -> DocumentSet:
    documents = open_documents(DocumentsInput(path=str(folder)))
    assert len(documents.files) == number
    return documents


def _plan_files(number: int) -> Any:
    """Make up files and cut them into splits."""
    paths = (f"bucket/documents/part-{index:09}.parquet" for index in range(number))
    files = [DocumentFile(StoredFile(path, 250_000, None), (_WINDOW_ROWS,)) for path in paths]
    return files, list(cut_splits(files, _WINDOW_ROWS))


def _write_ledger(output: Path, entries: int) -> Path:
    """Write the compacted ledger of one run, with random keys."""
    random, folder = np.random.default_rng(1), output / COMPACTED / "000001"
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, entries, _ENTRIES_PER_FILE)):
        rows = min(_ENTRIES_PER_FILE, entries - start)
        columns = {name: random.integers(1 << 64, size=rows, dtype=np.uint64) for name in ("id", "content")}
        pq.write_table(pa.table(columns), folder / f"part-{number:05}.parquet", compression="zstd")
    (folder / SUCCESS).touch()
    publish(open_location(str(output), "--output.path"), "r", 1, b"")
    return output


def _load_ledger(output: Path, number: int) -> Ledger:
    location = open_location(str(output), "--output.path")
    ledger = load(location, finished_runs(location), 1)
    assert ledger.entries == number
    return ledger


def _add_windows(number: int) -> RunTotals:
    """Add up the records of windows, parsed from JSON as they are when a task sends them."""
    totals = RunTotals()
    for index in range(number):
        path = part_path(SUMMARIES, "20260131T230000Z", f"{index:06}-0000")
        record = WindowRecord(
            split=index,
            number=0,
            last=True,
            skipped={},
            unread={},
            actor=f"{index % _ACTORS:032x}",
            documents=_WINDOW_ROWS,
            rejected={},
            truncated=400,
            reached_length_limit=1,
            source_tokens=100_000,
            summary_tokens=5_000,
            timings=StageTimings(read_s=0.1, waited_s=0.01, decode_s=3.0, write_s=0.02, actor_bytes=2**30),
            files=[OutputFile(path=path, rows=_WINDOW_ROWS, bytes=21_000, sha256=f"{index:064x}")],
            stats=_stats(index % _DIFFERENT_STATS),
        )
        totals.add(WindowRecord.model_validate_json(record.model_dump_json()))
    return totals


@cache
def _stats(index: int) -> RunStats:
    """Make the stats of a window whose documents and summaries are all different."""
    random, size = np.random.default_rng(index), sketch_size(1_000_000)
    keys = random.integers(1 << 63, size=_WINDOW_ROWS)
    openings: list[str | None] = [None] * _WINDOW_ROWS
    for row in smallest_keys(keys, size.sample):
        openings[row] = "an opening " * 54
    summaries = [f"a summary, which is the number {row} of window {index}" for row in range(_WINDOW_ROWS)]
    return RunStats(
        throughput=Throughput.of(1_750_000_000 + index, _WINDOW_ROWS),
        sources=Histogram.of(random.integers(50, 500, _WINDOW_ROWS)),
        summaries=Histogram.of(random.integers(5, 25, _WINDOW_ROWS)),
        read_tokens=100_000,
        byte_tokens=100,
        score_micronats=-600_000_000,
        duplicates=DuplicateSketch.of(summaries, size.hashes),
        sample=DocumentSample.of(keys, [f"document-{row}" for row in range(_WINDOW_ROWS)], openings, summaries),
    )
