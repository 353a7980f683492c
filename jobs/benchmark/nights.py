"""``python -m jobs.benchmark nights``: what a second night costs of whose documents few are new."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator
from rich.table import Table

from jobs.benchmark.common.documents import BenchmarkTexts, config_as_json, whole_run, write_store
from jobs.console import new_console
from pipeline.config.base import JobConfig, Section
from pipeline.config.loader import load_config
from pipeline.config.model import DecodingOverrides, ModelPath
from pipeline.config.summarize import Resources
from pipeline.config.types import Positive
from pipeline.runs.manifest import Manifest

console = new_console()
_FILES = 8


class NightsInput(BenchmarkTexts):
    """What to summarize; its rows come over and over, each with an id of its own."""

    rows: Positive = Field(2000, description="different documents")


class Nights(Section):
    """What there is on the first night, and what is otherwise on the second; all over the files."""

    documents: Positive = Field(100_000, description="of the first night")
    new: int = Field(1000, ge=0, description="that come, in a file of their own")
    changed: int = Field(500, ge=0, description="whose text changes")
    gone: int = Field(200, ge=0, description="that are not there any more")

    @model_validator(mode="after")
    def _enough(self) -> Nights:
        if self.changed + self.gone > self.documents:
            raise ValueError("no more documents can change or go than there are")
        return self


class NightsBenchmark(JobConfig):
    """Summarize a store, change a little of it, and summarize it again into the same output."""

    input: NightsInput = NightsInput()
    nights: Nights = Nights()
    model: ModelPath = ModelPath()
    decoding: DecodingOverrides = DecodingOverrides()
    resources: Resources = Resources()


def nights(options: Sequence[str]) -> dict[str, Any]:
    """Run two nights; see NightsBenchmark for the options."""
    config = load_config(NightsBenchmark, "benchmark nights", options)
    texts = config.input.read()
    with tempfile.TemporaryDirectory() as folder:
        store, output = write_store(Path(folder) / "in", texts, config.nights.documents, _FILES), Path(folder) / "out"
        first = whole_run(store, output, config.model, config.resources, config.decoding, "first")
        _change(store, config.nights, texts)
        second = whole_run(store, output, config.model, config.resources, config.decoding, "second")
    share = second.timings.decode_s / first.timings.decode_s
    table = Table("night", "done", "skipped", "gone", "start-up (s)", "then (s)", "decoding (s)", "of the first's")
    for name, night in (("first", first), ("second", second)):
        counted = (night.counts.done, sum(night.counts.skipped.values()), night.removed.documents)
        seconds = (night.startup_s, night.seconds, night.timings.decode_s)
        of_first = night.timings.decode_s / first.timings.decode_s
        table.add_row(name, *(f"{n:,}" for n in counted), *(f"{s:,.1f}" for s in seconds), f"{of_first:.1%}")
    console.print(table)
    return {"first": _figures(first), "second": _figures(second), "decoding_share": share, "config": config_as_json(config)}


def _change(store: Path, wanted: Nights, texts: Sequence[str]) -> None:
    """Make the second night's store of the first's, where it lies."""
    ids = range(wanted.documents)
    spread = wanted.documents // max(wanted.changed + wanted.gone, 1)
    chosen = list(ids[::spread])[: wanted.changed + wanted.gone]
    # Every so many of those that change or go is one that goes.
    gone = set(chosen[:: len(chosen) // wanted.gone][: wanted.gone]) if wanted.gone else set()
    changed = set(chosen) - gone
    for path in sorted(store.iterdir()):
        table = pq.read_table(path)
        rows = [
            {"id": row["id"], "text": f"Revised. {row['text']}" if row["id"] in changed else row["text"]}
            for row in table.to_pylist()
            if row["id"] not in gone
        ]
        pq.write_table(pa.Table.from_pylist(rows, table.schema), path, compression="zstd")
    new = range(wanted.documents, wanted.documents + wanted.new)
    columns = {"id": pa.array(new, pa.int64()), "text": [texts[number % len(texts)] for number in new]}
    pq.write_table(pa.table(columns), store / "new.parquet", compression="zstd")


def _figures(night: Manifest) -> dict[str, Any]:
    return {
        "counts": night.counts.model_dump(include={"read", "skipped", "summarized", "rejected"}),
        "gone": night.removed.documents,
        "startup_s": night.startup_s,
        "seconds": night.seconds,
        "decode_s": night.timings.decode_s,
    }
