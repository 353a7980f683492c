"""Benchmark ``outlier``: one long document in a window of short ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from pydantic import Field

from jobs.benchmark.common.documents import BenchmarkTexts, config_as_json
from jobs.benchmark.common.hardware import timed
from jobs.console import new_console
from pipeline.config.base import JobConfig, Section
from pipeline.config.loader import load_config
from pipeline.config.model import ModelPath
from pipeline.config.types import Positive
from pipeline.data.tokenizer import Tokenizer
from pipeline.decoding.backends import backend_for
from pipeline.decoding.batch_budget import BatchBudget
from pipeline.decoding.decode import decode_window
from pipeline.decoding.engine import Engine
from pipeline.model.batching import Rows
from pipeline.model.bundle import load_bundle

console = new_console()


class OutlierInput(BenchmarkTexts):
    """The short documents. Their words, in order, also make the long one."""

    rows: Positive = Field(511, description="number of short documents")


class Outlier(Section):
    """The long document, and compute resources."""

    words: Positive = Field(20_000, description="words of the long document, all of which the model reads")
    threads: Positive = Field(2, description="CPU threads")
    repeats: Positive = Field(3, description="timings of each window, of which the best counts")


class OutlierBenchmark(JobConfig):
    """Time a window of short documents, a window of one long document, and a window of all, in batches sized by memory."""

    input: OutlierInput = OutlierInput()
    outlier: Outlier = Outlier()
    model: ModelPath = ModelPath()


def outlier(arguments: Sequence[str]) -> dict[str, Any]:
    config = load_config(OutlierBenchmark, "benchmark outlier", arguments)
    torch.set_num_threads(config.outlier.threads)
    device = torch.device("cpu")
    bundle = load_bundle(config.model.path, device)
    tokenizer = Tokenizer(bundle.tokenizer_file)
    engine = Engine(bundle.model, backend_for("float32", device))
    short = config.input.read()
    words = " ".join(short).split()
    long = " ".join((words * (config.outlier.words // len(words) + 1))[: config.outlier.words])
    tokens = len(tokenizer.encode([long])[0])
    options = bundle.decoding.model_copy(update={"max_source_tokens": tokens})
    budget = BatchBudget.by_memory(engine, options, 1.0, config.outlier.threads)
    texts = {"short": short, "long": [long], "both": [*short, long]}
    windows = {name: Rows(*tokenizer.encode(window_texts)) for name, window_texts in texts.items()}
    seconds = dict.fromkeys(windows, float("inf"))
    for _ in range(config.outlier.repeats + 1):  # the first time, kernels are compiled
        for name, window in windows.items():
            took_s = timed(partial(decode_window, engine, window, options, budget), device)[1]
            seconds[name] = min(seconds[name], took_s)
    ratio = seconds["both"] / (seconds["short"] + seconds["long"])
    console.print(
        f"{len(short):,} short documents: {seconds['short']:.2f} s; one of {config.outlier.words:,} words ({tokens:,} tokens): "
        f"{seconds['long']:.2f} s; all in one window: {seconds['both']:.2f} s, {ratio:.2f} of the sum"
    )
    return {"tokens": tokens, "seconds": seconds, "ratio_to_sum": ratio, "config": config_as_json(config)}
