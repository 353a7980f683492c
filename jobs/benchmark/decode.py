"""The decode benchmark: the engine beside the two loops that decoders of its kind are usually written as.

``textbook``  sources in the order they come, 32 at a time; every batch to the maximum length; a softmax over the vocabulary
              and a look at the result at every step
``sorted``    by length, within a token budget; rows that are done leave the batch; a look at every step. What NVIDIA's GNMT
              and fairseq do
``engine``    pipeline/model/engine.py, in each precision of the device

All decode the same sources with the same weights. A row's share of the matrix-product rate counts the products that were
computed for real tokens alone: padding, steps after the end, and what a table saves do not count.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from rich.table import Table

from jobs.benchmark.common.baseline_decoders import BaselineResult, Task, real_steps, sorted_loop, target_steps, textbook_loop
from jobs.benchmark.common.documents import BenchmarkTexts
from jobs.benchmark.common.hardware import (
    GNMT,
    GNMT_VOCABULARY,
    device_name,
    forward_flops,
    matmul_rate,
    newstest_lengths,
    wait,
)
from jobs.console import new_console
from pipeline.config.base import JobConfig, Section
from pipeline.config.loader import load_config
from pipeline.config.model import DecodingConfig, ModelConfig, ModelPath
from pipeline.config.types import Positive
from pipeline.data.special_tokens import EOS
from pipeline.data.tokenizer import Tokenizer
from pipeline.decoding.backends import backend_for, supported_precisions
from pipeline.decoding.batch_budget import BatchBudget
from pipeline.decoding.decode import Hypotheses, decode_window
from pipeline.decoding.engine import Engine
from pipeline.io.location import relative_to_cwd
from pipeline.model.batching import Rows
from pipeline.model.bundle import load_bundle
from pipeline.model.seq2seq import Seq2Seq

console = new_console()
_NEVER = -1e4
_BEAM = 5
_UNTIMED = {"cpu": 0, "cuda": 2}
"""Runs before those that are timed: on a GPU the first loads kernels, and the second captures graphs."""


class BenchmarkInput(BenchmarkTexts):
    """What to decode."""

    gnmt_rows: Annotated[int, Field(ge=0)] = Field(
        128, description="sentences to decode with a network of GNMT's shape; 0: none"
    )


class BenchmarkCompute(Section):
    """How to compute."""

    device: str = Field("cuda" if torch.cuda.is_available() else "cpu", description="where to compute")
    threads: Positive = Field(2, description="CPU threads")
    token_budget: Positive = Field(32768, description="padded source tokens of a batch, but for the textbook's")
    repeats: Positive = Field(2, description="timings of each decoder, of which the best counts; the textbook's is timed once")


class DecodeBenchmark(JobConfig):
    """Time decoders on real documents, and on sentences of newstest2014's lengths."""

    input: BenchmarkInput = BenchmarkInput()
    model: ModelPath = ModelPath()
    compute: BenchmarkCompute = BenchmarkCompute()


def decode(options: Sequence[str]) -> dict[str, Any]:
    """Time the decoders on each task; see DecodeBenchmark for the options."""
    config = load_config(DecodeBenchmark, "benchmark decode", options)
    device = torch.device(config.compute.device)
    torch.set_num_threads(config.compute.threads)
    precisions = supported_precisions(device)
    rows: list[dict[str, Any]] = []
    beam: dict[str, float] = {}
    for task in _tasks(config, device):
        rows += _measure(task, config, precisions)
        beam = beam or _beam(task, config)  # of the first, which ends by itself
    rates = {precision: max(row["matmul_flops"] for row in rows if row["precision"] == precision) for precision in precisions}
    _show(rows, rates, beam)
    return {
        "device": device_name(device, config.compute.threads),
        "matmul_flops": rates,
        "rows": rows,
        "beam": beam,
        "compute": config.compute.model_dump(),
        "input": {"path": relative_to_cwd(config.input.path), "rows": config.input.rows, "gnmt_rows": config.input.gnmt_rows},
    }


def _tasks(config: DecodeBenchmark, device: torch.device) -> Iterator[Task]:
    bundle = load_bundle(config.model.path, device)
    tokenizer = Tokenizer(bundle.tokenizer_file)
    sources = Rows(*tokenizer.encode(config.input.read()))
    yield Task("arxiv, shipped bundle", bundle.model, sources, bundle.decoding, None)

    rng = np.random.default_rng(1)
    shape = ModelConfig.model_validate({"hidden_size": 512, "embedding_size": 512, "layers": 2})
    # Titles of random weights have no end of their own: theirs are those of titles, 3 to 32 subwords, 13 at the median.
    titles = np.clip(rng.lognormal(math.log(13), 0.45, len(sources)), 3, 32).astype(np.int64)
    yield Task("arxiv, 512 x 2", _random(shape, tokenizer.vocabulary_size, device), sources, bundle.decoding, titles)

    if config.input.gnmt_rows:
        lengths, targets = newstest_lengths(rng, config.input.gnmt_rows)
        ids = rng.integers(EOS + 1, GNMT_VOCABULARY, lengths.sum()).astype(np.int32)
        sentences = Rows(ids, np.concatenate(([0], np.cumsum(lengths))))
        decoding = DecodingConfig(max_source_tokens=128, max_target_tokens=128, min_target_tokens=0, no_repeat_ngram=0)
        yield Task("newstest2014's lengths, GNMT's shape", _random(GNMT, GNMT_VOCABULARY, device), sentences, decoding, targets)


def _random(shape: ModelConfig, vocabulary_size: int, device: torch.device) -> Seq2Seq:
    torch.manual_seed(1)
    model = Seq2Seq(shape, vocabulary_size)
    with torch.no_grad():
        model.decoder.output.bias[EOS] = _NEVER
    return model.to(device).eval()


def _engine(task: Task, engine: Engine, config: DecodeBenchmark) -> BaselineResult:
    found = _found(task, engine, config, task.options)
    tokens = [found.values[start:end].tolist() for start, end in zip(found.offsets, found.offsets[1:], strict=False)]
    sources = int(task.sources.lengths(task.options.max_source_tokens).sum()) + found.padding
    return BaselineResult(tokens, real_steps(task, tokens), sources + found.row_steps)


def _found(task: Task, engine: Engine, config: DecodeBenchmark, options: DecodingConfig) -> Hypotheses:
    sources, compute = task.sources, config.compute
    budget = BatchBudget(compute.token_budget)
    return decode_window(engine, sources.values, sources.offsets, options, budget, compute.threads, task.limits)


def _beam(task: Task, config: DecodeBenchmark) -> dict[str, float]:
    """Beam search beside greedy, in float32: its speed, and how often what it finds is worth less under the same penalty."""
    engine = Engine(task.model, backend_for("float32", next(task.model.parameters()).device))
    seconds, worth = [], []
    for beam_size in (1, _BEAM):
        console.print(f"{task.name}: {beam_size} hypotheses at a time")
        options = task.options.model_copy(update={"beam_size": beam_size})
        for _ in range(_UNTIMED[engine.device.type]):
            _found(task, engine, config, options)
        taken = math.inf
        for _ in range(config.compute.repeats):
            started = time.perf_counter()
            found = _found(task, engine, config, options)
            wait(engine.device)
            taken = min(taken, time.perf_counter() - started)
        lengths = np.diff(found.offsets) + found.finished
        seconds.append(taken)
        worth.append(found.scores * lengths / ((5 + lengths) / 6) ** options.length_penalty)
    return {
        "beam_size": _BEAM,
        "sentences_per_s": len(task.sources) / seconds[1],
        "ratio_greedy": seconds[0] / seconds[1],
        "worth_less_than_greedy": float(np.mean(worth[1] < worth[0] - 1e-4)),
        "worth_more_than_greedy": float(np.mean(worth[1] > worth[0] + 1e-4)),
    }


# What they cost


def _measure(task: Task, config: DecodeBenchmark, precisions: Sequence[str]) -> list[dict[str, Any]]:
    device = next(task.model.parameters()).device
    rates = dict.fromkeys(precisions, 0.0)  # as they are now: a machine's rate changes within minutes
    decoders: dict[tuple[str, str], Callable[[], BaselineResult]] = {
        ("textbook", "float32"): lambda: textbook_loop(task),
        ("sorted", "float32"): lambda: sorted_loop(task, config.compute.token_budget),
    }
    for precision in precisions:
        engine = Engine(task.model, backend_for(precision, device))
        decoders["engine", precision] = lambda engine=engine: _engine(task, engine, config)  # type: ignore[misc]
    seconds = dict.fromkeys(decoders, math.inf)
    outputs: dict[tuple[str, str], BaselineResult] = {}
    for turn in range(config.compute.repeats + 1):  # in turns, since other work on the machine comes and goes
        for decoder, run in decoders.items():
            name, precision = decoder
            is_timed = turn == config.compute.repeats if name == "textbook" else turn > 0
            if is_timed:
                console.print(f"{task.name}: {name}, {precision}")
                rates[precision] = max(rates[precision], matmul_rate(precision, device))
                started = time.perf_counter()
                outputs[decoder] = run()
                wait(device)
                seconds[decoder] = min(seconds[decoder], time.perf_counter() - started)
            elif name != "textbook":
                run()  # compiles, fills caches
    rows: list[dict[str, Any]] = []
    for (name, precision), taken in seconds.items():
        found = outputs[name, precision]
        source = int(task.sources.lengths(task.options.max_source_tokens).sum())
        target = sum(map(len, found.tokens))
        useful = _flops(task, found.tokens, tables=name == "engine")
        rows.append(
            {
                "data": task.name,
                "engine": name,
                "precision": precision,
                "sentences_per_s": len(found.tokens) / taken,
                "output_tokens_per_s": target / taken,
                "total_tokens_per_s": (source + target) / taken,
                "padding_share": 1 - found.steps / found.padded_steps,
                "flops": useful,
                "flops_per_s": useful / taken,
                "matmul_flops": rates[precision],
                "matmul_share": useful / taken / rates[precision],
                "network_flops_share": _flops(task, found.tokens, tables=False) / taken / rates[precision],
                "differ_from_textbook": float(
                    np.mean([a != b for a, b in zip(found.tokens, outputs["textbook", "float32"].tokens, strict=True)])
                ),
            }
        )
    speed = {row["engine"]: row["output_tokens_per_s"] for row in rows[:2]}
    for row in rows:
        row["ratio_textbook"] = row["output_tokens_per_s"] / speed["textbook"]
        row["ratio_sorted"] = row["output_tokens_per_s"] / speed["sorted"]
    return rows


def _flops(task: Task, tokens: list[list[int]], tables: bool) -> float:
    """Of the matrix products for real tokens. tables: as the engine arranges them."""
    lengths, steps = task.sources.lengths(task.options.max_source_tokens), target_steps(task, tokens)
    return forward_flops(task.model.config, task.model.vocabulary_size, lengths, steps, tables)


def _show(rows: list[dict[str, Any]], rates: dict[str, float], beam: dict[str, float]) -> None:
    for data in dict.fromkeys(row["data"] for row in rows):
        table = Table(title=data)
        table.add_column("decoder", no_wrap=True)
        for name in ("documents/s", "tokens out/s", "padding", "x textbook", "x sorted", "of rate", "differ"):
            table.add_column(name, justify="right")
        for row in (row for row in rows if row["data"] == data):
            table.add_row(
                f"{row['engine']} {row['precision']}",
                f"{row['sentences_per_s']:,.0f}",
                f"{row['output_tokens_per_s']:,.0f}",
                f"{row['padding_share']:.0%}",
                f"{row['ratio_textbook']:.1f}",
                f"{row['ratio_sorted']:.1f}",
                f"{row['matmul_share']:.0%}",
                f"{row['differ_from_textbook']:.1%}",
            )
        console.print(table)
    console.print("matrix products: " + ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in rates.items()))
    console.print(
        f"{beam['beam_size']} hypotheses at a time: {beam['ratio_greedy']:.2f} of greedy search's documents/s; worth more for "
        f"{beam['worth_more_than_greedy']:.1%} of documents, less for {beam['worth_less_than_greedy']:.1%}"
    )
