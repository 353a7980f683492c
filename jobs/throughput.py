"""The pipeline benchmark: a whole run beside the bare engine, on the same CPU cores.

A run is from Parquet to Parquet, start-up apart. The engine has the same documents as token ids in memory, and as many threads
as there are cores, with a window of documents for each. Documents are those of the input over and over, with ids of their own.
"""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field
from rich.table import Table

from jobs.screen import new_console
from jobs.texts import BenchmarkTexts
from pipeline.cluster import cpus_here
from pipeline.config import ModelPath, Positive, Resources, SummarizeConfig
from pipeline.inference.manifest import Manifest
from pipeline.inference.run import execute, plan_run
from pipeline.model.bundle import load_bundle
from pipeline.model.decoding import decode_window
from pipeline.model.engine import Engine
from pipeline.model.memory import Budget
from pipeline.model.precision import arithmetic_for
from pipeline.options import JobConfig, load_config
from pipeline.text.tokenizer import Tokenizer

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
    engine = _engine_alone(config, texts)
    with tempfile.TemporaryDirectory() as folder:
        store = _write_store(Path(folder) / "in", texts, config.input.rows, config.input.files)
        graph = _run(config, store, Path(folder) / "out")
    rate = graph.counts.read / graph.seconds
    table = Table("", "documents/s", "of the engine's", title=f"{config.input.rows:,} documents")
    table.add_row("engine alone", f"{engine:,.0f}", "")
    table.add_row("whole run", f"{rate:,.0f}", f"{rate / engine:.1%}")
    console.print(table)
    console.print(f"start-up {graph.startup_s:.1f} s; {graph.actors} actors")
    return {
        "engine_documents_per_s": engine,
        "documents_per_s": rate,
        "ratio_to_engine": rate / engine,
        "startup_s": graph.startup_s,
        "actors": graph.actors,
        "config": config.model_dump(mode="json"),
    }


def _engine_alone(config: PipelineBenchmark, texts: Sequence[str]) -> float:
    """Documents/s of the engine on this machine's cores, on documents that are token ids already."""
    bundle = load_bundle(config.model.path, torch.device("cpu"))
    threads, window_rows = cpus_here(), config.resources.window_rows
    torch.set_num_threads(threads)
    engine = Engine(bundle.model, arithmetic_for(config.resources.precision, torch.device("cpu")))
    given = config.resources.token_budget
    budget = Budget.by_memory(engine, bundle.decoding, 1.0, threads) if given == "auto" else Budget(given)
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


def _run(config: PipelineBenchmark, store: Path, output: Path) -> Manifest:
    values = {
        "input": {"path": str(store)},
        "output": {"path": str(output), "run_id": "benchmark"},
        "model": config.model.model_dump(),
        "resources": {**config.resources.model_dump(), "use_gpu": False},
    }
    console.print(f"a run of {config.input.rows:,} documents")
    return execute(plan_run(SummarizeConfig.model_validate(values)), lambda _: None).manifest


def _write_store(folder: Path, texts: Sequence[str], rows: int, files: int) -> Path:
    """Documents in files of equal size, a part at a time."""
    folder.mkdir(parents=True)
    endless = itertools.cycle(texts)
    for number, (start, end) in enumerate(_spans(rows, files)):
        schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
        with pq.ParquetWriter(folder / f"{number:05}.parquet", schema) as writer:
            for part, last in _spans(end - start, max(1, math.ceil((end - start) / 10_000))):
                ids = range(start + part, start + last)
                writer.write_table(pa.table([pa.array(ids, pa.int64()), [next(endless) for _ in ids]], schema=schema))
    return folder


def _spans(total: int, parts: int) -> Iterator[tuple[int, int]]:
    ends = [total * part // parts for part in range(parts + 1)]
    return itertools.pairwise(ends)
