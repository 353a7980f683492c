"""``python -m jobs.benchmark driver``: planning and keeping account of a run of any size, without the run.

The driver plans over all files of a store, has the ledger loaded, and keeps a record of every window that is written. Here all
come from nowhere: a store of so many files, a ledger of so many entries, and the records of as many windows as a thousand
actors would send. What Ray Data itself does for each is not in it; ``scale`` has that.
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

from jobs.benchmark.common.documents import write_store
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
from pipeline.runs.stats import DocumentSample, DuplicateSketch, Histogram, RunStats, Throughput, sketch_size, smallest_keys
from pipeline.runs.timings import StageTimings

console = new_console()
_ACTORS = 1000
_ENTRIES_OF_A_FILE = 4 * 2**20
_ROWS = 512
_DIGESTS = 1000
"""Different ones, which take longer to make than to add up."""


class Sizes(Section):
    """Of the run that is pretended."""

    files: Positive = Field(1_000_000, description="input files, of 512 documents each")
    windows: Positive = Field(1_000_000, description="windows, of 512 documents each")
    entries: Positive = Field(10_000_000, description="entries of a compacted ledger, that Ray's tasks load")
    opened: Positive = Field(20_000, description="real files of ten documents, in a temporary folder, that a plan opens")


class DriverBenchmark(JobConfig):
    """Time the driver's own work, and weigh what it keeps."""

    run: Sizes = Sizes()


def driver(options: Sequence[str]) -> dict[str, Any]:
    """Do all; see DriverBenchmark for the options."""
    config = load_config(DriverBenchmark, "benchmark driver", options)
    table = Table("", "number", "a second", "bytes of each", title="What one driver does")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder) / "in", ["text"], 10 * config.run.opened, config.run.opened)
        output = _write_ledger(Path(folder) / "out", config.run.entries)
        works: list[tuple[str, int, Callable[[int], Any], Callable[[], None] | None]] = [
            ("files opened", config.run.opened, partial(_open, store), None),
            ("files planned", config.run.files, _plan, None),
            ("entries loaded", config.run.entries, partial(_load, output), cluster.connect),
            ("windows tallied", config.run.windows, _tally, None),
        ]
        for name, number, work, before in works:
            with ProcessPoolExecutor(1, get_context("spawn"), before) as process:  # what it holds is its own
                rate, held = process.submit(_weighed, work, number).result()
            table.add_row(name, f"{number:,}", f"{rate:,.0f}", f"{held:,.0f}")
            figures[name.replace(" ", "_")] = {"number": number, "per_s": rate, "bytes_each": held}
    console.print(table)
    return figures


def _weighed(work: Callable[[int], Any], number: int) -> tuple[float, float]:
    """How many a second, and the bytes that each leaves."""
    before, started = psutil.Process().memory_info().rss, time.perf_counter()
    kept = work(number)
    rate = number / (time.perf_counter() - started)
    held = (psutil.Process().memory_info().rss - before) / number
    del kept
    return rate, held


def _open(folder: Path, number: int) -> DocumentSet:
    """The files of a folder, which are so many: their columns, and how many rows they have."""
    store = open_documents(DocumentsInput(path=str(folder)))
    assert len(store.files) == number
    return store


def _plan(number: int) -> Any:
    """The files of a store, and the units that they are read in."""
    files = [
        DocumentFile(StoredFile(f"bucket/documents/part-{at:09}.parquet", 250_000, None), (_ROWS,)) for at in range(number)
    ]
    return files, list(cut_splits(files, _ROWS))


def _write_ledger(output: Path, entries: int) -> Path:
    """Of one run, compacted; ids as they are spread by hashing."""
    random, folder = np.random.default_rng(1), output / COMPACTED / "000001"
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, entries, _ENTRIES_OF_A_FILE)):
        rows = min(_ENTRIES_OF_A_FILE, entries - start)
        columns = {name: random.integers(1 << 64, size=rows, dtype=np.uint64) for name in ("id", "content")}
        pq.write_table(pa.table(columns), folder / f"part-{number:05}.parquet", compression="zstd")
    (folder / SUCCESS).touch()
    publish(open_location(str(output), "--output.path"), "r", 1, b"")
    return output


def _load(output: Path, number: int) -> Ledger:
    """By Ray's tasks, into its object store."""
    opened = open_location(str(output), "--output.path")
    loaded = load(opened, finished_runs(opened), 1)
    assert loaded.entries == number
    return loaded


def _tally(number: int) -> RunTotals:
    """Records as they come from the writing stage, as JSON."""
    tally = RunTotals()
    for at in range(number):
        file = OutputFile(
            path=part_path(SUMMARIES, "20260131T230000Z", f"{at:06}-0000"), rows=_ROWS, bytes=21_000, sha256=f"{at:064x}"
        )
        record = WindowRecord(
            split=at,
            number=0,
            last=True,
            skipped={},
            unread={},
            actor=f"{at % _ACTORS:032x}",
            documents=_ROWS,
            rejected={},
            truncated=400,
            reached_length_limit=1,
            source_tokens=100_000,
            summary_tokens=5_000,
            timings=StageTimings(read_s=0.1, waited_s=0.01, decode_s=3.0, write_s=0.02, actor_bytes=2**30),
            files=[file],
            stats=_digest(at % _DIGESTS),
        )
        tally.add(WindowRecord.model_validate_json(record.model_dump_json()), at=float(at))
    return tally


@cache
def _digest(at: int) -> RunStats:
    """Of a window whose documents and summaries are all different."""
    random, room = np.random.default_rng(at), sketch_size(1_000_000)
    keys = random.integers(1 << 63, size=_ROWS)
    openings: list[str | None] = [None] * _ROWS
    for row in smallest_keys(keys, room.sample):
        openings[row] = "an opening " * 54
    summaries = [f"a summary, which is the number {row} of window {at}" for row in range(_ROWS)]
    return RunStats(
        throughput=Throughput.of(1_750_000_000 + at, _ROWS),
        sources=Histogram.of(random.integers(50, 500, _ROWS)),
        summaries=Histogram.of(random.integers(5, 25, _ROWS)),
        read_tokens=100_000,
        byte_tokens=100,
        score_micronats=-600_000_000,
        duplicates=DuplicateSketch.of(summaries, room.hashes),
        sample=DocumentSample.of(keys, [f"document-{row}" for row in range(_ROWS)], openings, summaries),
    )
