"""Benchmark ``nights``: a second run over documents of which few are new or have changed."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator
from rich.table import Table

from jobs.benchmark.common.documents import config_as_json, write_rows
from jobs.benchmark.common.runs import FILES, RunsBenchmark, summarize
from jobs.console import new_console
from pipeline.config.base import Section
from pipeline.config.loader import load_config
from pipeline.config.types import Positive
from pipeline.runs.manifest import Manifest

console = new_console()


class Nights(Section):
    """The documents of the first night, and the changes of the second, spread over all files."""

    documents: Positive = Field(100_000, description="documents of the first night")
    new: int = Field(1000, ge=0, description="new documents, in a file of their own")
    changed: int = Field(500, ge=0, description="documents whose text changes")
    gone: int = Field(200, ge=0, description="documents that are removed")

    @model_validator(mode="after")
    def _check_counts(self) -> Nights:
        if self.changed + self.gone > self.documents:
            raise ValueError("changed and gone together must not exceed documents")
        return self


class NightsBenchmark(RunsBenchmark):
    """Summarize documents, change a few of them, and summarize them again into the same output."""

    nights: Nights = Nights()


def nights(options: Sequence[str]) -> dict[str, Any]:
    config = load_config(NightsBenchmark, "benchmark nights", options)
    texts = config.input.read()
    with tempfile.TemporaryDirectory() as name:
        folder = write_rows(Path(name) / "in", {"text": texts}, config.nights.documents, FILES)
        output = Path(name) / "out"
        first = summarize(folder, output, config.run_options, "first")
        _change(folder, config.nights, texts)
        second = summarize(folder, output, config.run_options, "second")
    table = Table("night", "done", "skipped", "removed", "start-up (s)", "run (s)", "decoding (s)", "of the first night's")
    for name, run in (("first", first), ("second", second)):
        counts = (run.counts.done, sum(run.counts.skipped.values()), run.removed.documents)
        seconds = (run.startup_s, run.seconds, run.timings.decode_s)
        share = run.timings.decode_s / first.timings.decode_s
        table.add_row(name, *(f"{count:,}" for count in counts), *(f"{s:,.1f}" for s in seconds), f"{share:.1%}")
    console.print(table)
    return {"first": _figures(first), "second": _figures(second), "decoding_share": share, "config": config_as_json(config)}


def _change(folder: Path, changes: Nights, texts: Sequence[str]) -> None:
    """Change the files in place to those of the second night."""
    step = changes.documents // max(changes.changed + changes.gone, 1)
    affected = list(range(changes.documents)[::step])[: changes.changed + changes.gone]
    removed = set(affected[:: len(affected) // changes.gone][: changes.gone]) if changes.gone else set()
    changed = set(affected) - removed
    for path in sorted(folder.iterdir()):
        table = pq.read_table(path)
        rows = [
            {"id": row["id"], "text": f"Revised. {row['text']}" if row["id"] in changed else row["text"]}
            for row in table.to_pylist()
            if row["id"] not in removed
        ]
        pq.write_table(pa.Table.from_pylist(rows, table.schema), path, compression="zstd")
    new = range(changes.documents, changes.documents + changes.new)
    columns = {"id": pa.array(new, pa.int64()), "text": [texts[number % len(texts)] for number in new]}
    pq.write_table(pa.table(columns), folder / "new.parquet", compression="zstd")


def _figures(run: Manifest) -> dict[str, Any]:
    return {
        "counts": run.counts.model_dump(include={"read", "skipped", "summarized", "rejected"}),
        "gone": run.removed.documents,
        "startup_s": run.startup_s,
        "seconds": run.seconds,
        "decode_s": run.timings.decode_s,
    }
