"""``python -m jobs.benchmark scale``: what more actors give, what larger inputs cost, and what their shape does.

Rates are of whole runs, from Parquet to Parquet, start-up apart. Memory is what a process holds for itself, by role, the
most that was seen of any one: Ray's store of objects, which all processes map, is bounded by Ray.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.table import Table

from jobs.benchmark.common.documents import ROWS_OF_A_GROUP, BenchmarkTexts, config_as_json, whole_run, write_store
from jobs.benchmark.common.memory import peak_memory
from jobs.console import new_console
from pipeline.config.base import JobConfig, Section
from pipeline.config.loader import load_config
from pipeline.config.model import DecodingOverrides, ModelPath
from pipeline.config.summarize import Resources
from pipeline.config.types import Positive
from pipeline.runs.manifest import Manifest

console = new_console()
_FILES = 8


class ScaleInput(BenchmarkTexts):
    """What to summarize; its rows come over and over where a run has more."""

    rows: Positive = Field(2000, description="different documents")


class Scales(Section):
    """What to compare. An empty list leaves a comparison out."""

    actors: list[Positive] = Field([1, 2, 4], description="actors of one thread each, each number over the same documents")
    actors_rows: Positive = Field(4000, description="documents of each of these runs")
    rows: list[Positive] = Field([1000, 10_000, 100_000], description="documents of runs whose memory is compared, by size")
    tiny_files: int = Field(10_000, ge=0, description="files of ten documents, beside one of one row group, and eight; 0: none")
    large_rows: int = Field(0, ge=0, description="documents of one more file of one row group, a large one; 0: none")


class ScaleBenchmark(JobConfig):
    """Time runs with more actors, over larger inputs, and over files of other shapes.

    The options of decoding hold for the two latter: with short sources and summaries it is the graph around the decoder
    whose limits show.
    """

    input: ScaleInput = ScaleInput()
    scale: Scales = Scales()
    model: ModelPath = ModelPath()
    decoding: DecodingOverrides = DecodingOverrides()
    resources: Resources = Resources()


def scale(options: Sequence[str]) -> dict[str, Any]:
    """Run all that is asked for; see ScaleBenchmark for the options."""
    config = load_config(ScaleBenchmark, "benchmark scale", options)
    texts = config.input.read()
    return {
        "actors": _more_actors(config, texts),
        "rows": _more_rows(config, texts),
        "shapes": _shapes(config, texts),
        "config": config_as_json(config),
    }


def _more_actors(config: ScaleBenchmark, texts: Sequence[str]) -> list[dict[str, Any]]:
    table = Table("actors", "documents/s", "of the first's", title=f"{config.scale.actors_rows:,} documents")
    found: list[dict[str, Any]] = []
    for actors in config.scale.actors:
        resources = config.resources.model_copy(update={"actors": actors, "min_actors": None, "threads": 1})
        with _store(texts, config.scale.actors_rows, _FILES) as (store, output):
            rate = _rate(whole_run(store, output, config.model, resources))
        ratio = rate / found[0]["documents_per_s"] if found else 1.0
        found.append({"actors": actors, "documents_per_s": rate, "ratio_to_first": ratio})
        table.add_row(f"{actors}", f"{rate:,.0f}", f"{ratio:.2f}")
    if found:
        console.print(table)
    return found


def _more_rows(config: ScaleBenchmark, texts: Sequence[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for rows in sorted(config.scale.rows):
        with _store(texts, rows, _FILES) as (store, output), ProcessPoolExecutor(1, get_context("spawn")) as process:
            run, peaks = process.submit(_watched_run, config, store, output).result()
        found.append({"rows": rows, "documents_per_s": _rate(run), "startup_s": run.startup_s, "peak_bytes": peaks})
    if found:
        roles = sorted({role for row in found for role in row["peak_bytes"]})
        table = Table("documents", "documents/s", "start-up (s)", *(f"{role} (MiB)" for role in roles), title="Most memory")
        for row in found:
            memory = [f"{row['peak_bytes'].get(role, 0) / 2**20:,.0f}" for role in roles]
            table.add_row(f"{row['rows']:,}", f"{row['documents_per_s']:,.0f}", f"{row['startup_s']:.1f}", *memory)
        console.print(table)
    return found


def _shapes(config: ScaleBenchmark, texts: Sequence[str]) -> list[dict[str, Any]]:
    rows, found = 10 * config.scale.tiny_files, list[dict[str, Any]]()
    large = config.scale.large_rows
    shapes = {
        f"{_FILES} files": (rows, _FILES, ROWS_OF_A_GROUP),
        "files of ten": (rows, config.scale.tiny_files, ROWS_OF_A_GROUP),
        "one file, one row group": (rows, 1, rows),
        **({f"one file of {large:,}, one row group": (large, 1, large)} if large else {}),
    }
    table = Table("", "documents/s", "of the first's", "start-up (s)", title=f"{rows:,} documents")
    for name, (number, files, group) in shapes.items() if rows else ():
        with _store(texts, number, files, group) as (store, output):
            run = whole_run(store, output, config.model, config.resources, config.decoding)
        ratio = _rate(run) / found[0]["documents_per_s"] if found else 1.0
        found.append({"shape": name, "documents_per_s": _rate(run), "ratio_to_first": ratio, "startup_s": run.startup_s})
        table.add_row(name, f"{_rate(run):,.0f}", f"{ratio:.2f}", f"{run.startup_s:.1f}")
    if found:
        console.print(table)
    return found


def _rate(run: Manifest) -> float:
    return run.counts.read / run.seconds


@contextmanager
def _store(texts: Sequence[str], rows: int, files: int, rows_of_a_group: int = ROWS_OF_A_GROUP) -> Iterator[tuple[Path, Path]]:
    """A store of the texts, and where a run over it may write."""
    console.print(f"a run of {rows:,} documents in {files:,} files")
    with tempfile.TemporaryDirectory() as folder:
        yield write_store(Path(folder) / "in", texts, rows, files, rows_of_a_group), Path(folder) / "out"


def _watched_run(config: ScaleBenchmark, store: Path, output: Path) -> tuple[Manifest, dict[str, int]]:
    """A run whose driver, and whose Ray, is this process's own: nothing of another run, or of making the store, is in it."""
    with peak_memory() as peaks:
        run = whole_run(store, output, config.model, config.resources, config.decoding)
    return run, peaks
