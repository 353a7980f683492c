"""Benchmark ``scale``: whole runs with more actors, larger inputs, and files of other shapes.

Rates are from Parquet to Parquet; start-up does not count. Memory is the peak of the private bytes of one process of each role.
It does not include Ray's object store, which all processes share and Ray bounds.
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

from jobs.benchmark.common.documents import ROWS_PER_GROUP, config_as_json, write_rows
from jobs.benchmark.common.memory import format_mib, peak_memory
from jobs.benchmark.common.runs import FILES, RunsBenchmark, summarize
from jobs.console import new_console
from pipeline.config.base import Section
from pipeline.config.loader import load_config
from pipeline.config.summarize import SummarizeConfig
from pipeline.config.types import Positive
from pipeline.runs.manifest import Manifest

console = new_console()


class Scales(Section):
    """Comparisons to make. An empty list skips a comparison."""

    actors: list[Positive] = Field([1, 2, 4], description="numbers of actors, of one thread each, to compare")
    actors_rows: Positive = Field(4000, description="documents of each of these runs")
    rows: list[Positive] = Field([1000, 10_000, 100_000], description="numbers of documents to compare the memory of")
    tiny_files: int = Field(
        10_000,
        ge=0,
        description="compare this many files of 10 documents with 8 files, and with one file of one row group; 0 to skip",
    )
    large_rows: int = Field(0, ge=0, description="also compare one file of one row group of this many documents; 0 to skip")


class ScaleBenchmark(RunsBenchmark):
    """Time runs with more actors, over larger inputs, and over files of other shapes.

    The decoding options apply to inputs and shapes only. With short sources and summaries, they show the limits of the graph
    around the decoder.
    """

    scale: Scales = Scales()


def scale(options: Sequence[str]) -> dict[str, Any]:
    config = load_config(ScaleBenchmark, "benchmark scale", options)
    texts = config.input.read()
    return {
        "actors": _compare_actors(config, texts),
        "rows": _compare_sizes(config, texts),
        "shapes": _compare_shapes(config, texts),
        "config": config_as_json(config),
    }


def _compare_actors(config: ScaleBenchmark, texts: Sequence[str]) -> list[dict[str, Any]]:
    table = Table("actors", "documents/s", "of the first", title=f"{config.scale.actors_rows:,} documents")
    figures: list[dict[str, Any]] = []
    for actors in config.scale.actors:
        resources = config.resources.model_copy(update={"actors": actors, "min_actors": None, "threads": 1})
        with _input_and_output(texts, config.scale.actors_rows, FILES) as (folder, output):
            rate = summarize(folder, output, SummarizeConfig(model=config.model, resources=resources)).documents_per_s
        ratio = rate / figures[0]["documents_per_s"] if figures else 1.0
        figures.append({"actors": actors, "documents_per_s": rate, "ratio_to_first": ratio})
        table.add_row(f"{actors}", f"{rate:,.0f}", f"{ratio:.2f}")
    if figures:
        console.print(table)
    return figures


def _compare_sizes(config: ScaleBenchmark, texts: Sequence[str]) -> list[dict[str, Any]]:
    figures: list[dict[str, Any]] = []
    for rows in sorted(config.scale.rows):
        with (
            _input_and_output(texts, rows, FILES) as (folder, output),
            ProcessPoolExecutor(1, get_context("spawn")) as process,
        ):
            run, peaks = process.submit(_run_with_peaks, config.run_options, folder, output).result()
        figures.append({"rows": rows, "documents_per_s": run.documents_per_s, "startup_s": run.startup_s, "peak_bytes": peaks})
    if figures:
        roles = sorted({role for row in figures for role in row["peak_bytes"]})
        memory = [f"{role} (MiB)" for role in roles]
        table = Table("documents", "documents/s", "start-up (s)", *memory, title="Peak memory of a process")
        for row in figures:
            cells = [f"{row['rows']:,}", f"{row['documents_per_s']:,.0f}", f"{row['startup_s']:.1f}"]
            table.add_row(*cells, *format_mib(row["peak_bytes"], roles))
        console.print(table)
    return figures


def _compare_shapes(config: ScaleBenchmark, texts: Sequence[str]) -> list[dict[str, Any]]:
    rows, figures = 10 * config.scale.tiny_files, list[dict[str, Any]]()
    large = config.scale.large_rows
    shapes = {
        f"{FILES} files": (rows, FILES, ROWS_PER_GROUP),
        "files of ten": (rows, config.scale.tiny_files, ROWS_PER_GROUP),
        "one file, one row group": (rows, 1, rows),
        **({f"one file of {large:,}, one row group": (large, 1, large)} if large else {}),
    }
    table = Table("", "documents/s", "of the first", "start-up (s)", title=f"{rows:,} documents")
    for name, shape in shapes.items() if rows else ():
        with _input_and_output(texts, *shape) as (folder, output):
            run = summarize(folder, output, config.run_options)
        rate = run.documents_per_s
        ratio = rate / figures[0]["documents_per_s"] if figures else 1.0
        figures.append({"shape": name, "documents_per_s": rate, "ratio_to_first": ratio, "startup_s": run.startup_s})
        table.add_row(name, f"{rate:,.0f}", f"{ratio:.2f}", f"{run.startup_s:.1f}")
    if figures:
        console.print(table)
    return figures


@contextmanager
def _input_and_output(
    texts: Sequence[str], rows: int, files: int, rows_per_group: int = ROWS_PER_GROUP
) -> Iterator[tuple[Path, Path]]:
    """Write documents; yield their folder, and one for the output of a run."""
    console.print(f"a run of {rows:,} documents in {files:,} files")
    with tempfile.TemporaryDirectory() as name:
        yield write_rows(Path(name) / "in", {"text": texts}, rows, files, rows_per_group), Path(name) / "out"


def _run_with_peaks(options: SummarizeConfig, folder: Path, output: Path) -> tuple[Manifest, dict[str, int]]:
    """Run in this new process, which shares no memory or Ray with other runs; return the peak bytes by role too."""
    with peak_memory() as peaks:
        run = summarize(folder, output, options)
    return run, peaks
