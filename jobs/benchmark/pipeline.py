"""Benchmark ``pipeline``: a whole run, compared with the bare engine on the same CPU cores.

A run goes from Parquet to Parquet; its start-up does not count. The engine decodes the same documents from token ids in memory,
with one thread per core and a window of documents for each thread.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from rich.table import Table

from jobs.benchmark.common.documents import BenchmarkTexts, config_as_json, write_rows
from jobs.benchmark.common.memory import child_environment
from jobs.benchmark.common.runs import summarize
from jobs.console import new_console
from pipeline.cluster import available_cpus
from pipeline.config.base import JobConfig
from pipeline.config.loader import load_config
from pipeline.config.model import ModelPath
from pipeline.config.summarize import Resources, SummarizeConfig
from pipeline.config.types import Positive
from pipeline.data.tokenizer import Tokenizer
from pipeline.decoding.backends import backend_for
from pipeline.decoding.batch_budget import BatchBudget
from pipeline.decoding.decode import decode_window
from pipeline.decoding.engine import Engine
from pipeline.model.batching import Rows
from pipeline.model.bundle import load_bundle
from pipeline.model.malloc import KEEP_FREED_MEMORY

console = new_console()


class ThroughputInput(BenchmarkTexts):
    """Documents to summarize."""

    rows: Positive = Field(20_000, description="documents of the run, which repeat those of the input")
    files: Positive = Field(8, description="files to write them to")


class PipelineBenchmark(JobConfig):
    """Time a whole run and the bare engine on the same documents."""

    input: ThroughputInput = ThroughputInput()
    model: ModelPath = ModelPath()
    resources: Resources = Resources()


def pipeline(options: Sequence[str]) -> dict[str, Any]:
    config = load_config(PipelineBenchmark, "benchmark pipeline", options)
    texts = config.input.read()
    # Before and after the run, because the speed of a machine changes within minutes.
    engine_rates = [_time_engine(config, texts)]
    with tempfile.TemporaryDirectory() as name:
        folder = write_rows(Path(name) / "in", {"text": texts}, config.input.rows, config.input.files)
        console.print(f"a run of {config.input.rows:,} documents")
        run = summarize(folder, Path(name) / "out", SummarizeConfig(model=config.model, resources=config.resources))
    engine_rates.append(_time_engine(config, texts))
    engine_rate = sum(engine_rates) / len(engine_rates)
    rate = run.documents_per_s
    table = Table("", "documents/s", "of the engine's", title=f"{config.input.rows:,} documents")
    table.add_row("engine", f"{engine_rate:,.0f}", "")
    table.add_row("whole run", f"{rate:,.0f}", f"{rate / engine_rate:.1%}")
    console.print(table)
    console.print(f"start-up {run.startup_s:.1f} s; {run.actors} actors")
    return {
        "engine_documents_per_s": engine_rate,
        "engine_before_and_after": engine_rates,
        "documents_per_s": rate,
        "ratio_to_engine": rate / engine_rate,
        "startup_s": run.startup_s,
        "actors": run.actors,
        "config": config_as_json(config),
    }


def _time_engine(config: PipelineBenchmark, texts: Sequence[str]) -> float:
    """Return the documents/s of the engine, in a new process with the allocator settings of actors."""
    with child_environment(KEEP_FREED_MEMORY), ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(_decode_documents, config, texts).result()


def _decode_documents(config: PipelineBenchmark, texts: Sequence[str]) -> float:
    bundle = load_bundle(config.model.path, torch.device("cpu"))
    threads = available_cpus()
    torch.set_num_threads(threads)
    engine = Engine(bundle.model, backend_for(config.resources.precision, torch.device("cpu")))
    if config.resources.token_budget == "auto":
        budget = BatchBudget.by_memory(engine, bundle.decoding, 1.0, threads)
    else:
        budget = BatchBudget(config.resources.token_budget, threads=threads)
    tokenizer = Tokenizer(bundle.tokenizer_file)
    rows = threads * config.resources.window_rows
    windows = [Rows(*tokenizer.encode(texts[start : start + rows])) for start in range(0, len(texts), rows)]
    decode_window(engine, windows[0], bundle.decoding, budget)  # compiles
    done, started = 0, time.perf_counter()
    for window in itertools.cycle(windows):
        decode_window(engine, window, bundle.decoding, budget)
        done += len(window)
        if done >= config.input.rows:
            break
    return done / (time.perf_counter() - started)
