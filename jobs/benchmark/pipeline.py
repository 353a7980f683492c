"""The pipeline benchmark: a whole run beside the bare engine, on the same CPU cores.

A run is from Parquet to Parquet, start-up apart. The engine has the same documents as token ids in memory, and as many threads
as there are cores, with a window of documents for each. Documents are those of the input over and over, with ids of their own.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from rich.table import Table

from jobs.benchmark.common.documents import BenchmarkTexts, config_as_json, whole_run, write_store
from jobs.console import new_console
from pipeline.cluster import available_cpus
from pipeline.config.base import JobConfig
from pipeline.config.loader import load_config
from pipeline.config.model import ModelPath
from pipeline.config.summarize import Resources
from pipeline.config.types import Positive
from pipeline.data.tokenizer import Tokenizer
from pipeline.decoding.backends import backend_for
from pipeline.decoding.batch_budget import BatchBudget
from pipeline.decoding.decode import decode_window
from pipeline.decoding.engine import Engine
from pipeline.model.bundle import load_bundle
from pipeline.model.malloc import KEEP_FREED_MEMORY

console = new_console()


class ThroughputInput(BenchmarkTexts):
    """What to summarize."""

    rows: Positive = Field(20_000, description="documents of a run, the input's over and over")
    files: Positive = Field(8, description="files that these come in")


class PipelineBenchmark(JobConfig):
    """Time a whole run and the bare engine on the same documents."""

    input: ThroughputInput = ThroughputInput()
    model: ModelPath = ModelPath()
    resources: Resources = Resources()


def pipeline(options: Sequence[str]) -> dict[str, Any]:
    """Time both; see PipelineBenchmark for the options."""
    config = load_config(PipelineBenchmark, "benchmark pipeline", options)
    texts = config.input.read()
    engines = [_engine_in_its_process(config, texts)]
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder) / "in", texts, config.input.rows, config.input.files)
        console.print(f"a run of {config.input.rows:,} documents")
        graph = whole_run(store, Path(folder) / "out", config.model, config.resources)
    engines.append(_engine_in_its_process(config, texts))
    engine = sum(engines) / len(engines)
    rate = graph.counts.read / graph.seconds
    table = Table("", "documents/s", "of the engine's", title=f"{config.input.rows:,} documents")
    table.add_row("engine alone", f"{engine:,.0f}", "")
    table.add_row("whole run", f"{rate:,.0f}", f"{rate / engine:.1%}")
    console.print(table)
    console.print(f"start-up {graph.startup_s:.1f} s; {graph.actors} actors")
    return {
        "engine_documents_per_s": engine,
        "engine_before_and_after": engines,
        "documents_per_s": rate,
        "ratio_to_engine": rate / engine,
        "startup_s": graph.startup_s,
        "actors": graph.actors,
        "config": config_as_json(config),
    }


def _engine_in_its_process(config: PipelineBenchmark, texts: Sequence[str]) -> float:
    """With the environment of the actors. Before and after the run, since a machine's speed changes within minutes."""
    with _environment(KEEP_FREED_MEMORY), ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(_engine_alone, config, texts).result()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """These variables, for processes that start meanwhile."""
    before = dict(os.environ)
    os.environ |= values
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def _engine_alone(config: PipelineBenchmark, texts: Sequence[str]) -> float:
    """Documents/s of the engine on this machine's cores, on documents that are token ids already."""
    bundle = load_bundle(config.model.path, torch.device("cpu"))
    threads, window_rows = available_cpus(), config.resources.window_rows
    torch.set_num_threads(threads)
    engine = Engine(bundle.model, backend_for(config.resources.precision, torch.device("cpu")))
    given = config.resources.token_budget
    budget = BatchBudget.by_memory(engine, bundle.decoding, 1.0, threads) if given == "auto" else BatchBudget(given)
    tokenizer = Tokenizer(bundle.tokenizer_file)
    windows = [
        tokenizer.encode(texts[start : start + threads * window_rows]) for start in range(0, len(texts), threads * window_rows)
    ]
    decode_window(engine, *windows[0], bundle.decoding, budget, threads)  # compiles
    done, started = 0, time.perf_counter()
    for values, offsets in itertools.cycle(windows):
        decode_window(engine, values, offsets, bundle.decoding, budget, threads)
        done += len(offsets) - 1
        if done >= config.input.rows:
            break
    return done / (time.perf_counter() - started)
