"""Benchmark ``decode``: the engine, compared with two common decoding loops.

``textbook``  sources in their order, 32 at a time; every batch runs to the maximum length
``sorted``    sources by length, within a token budget; finished rows leave the batch. NVIDIA's GNMT and fairseq do this
``engine``    pipeline/decoding, in each precision of the device

Both loops apply a softmax over the vocabulary and check for finished rows at every step. All decode the same sources with the
same weights. The share of the matrix-product rate counts only products for real tokens: no padding, no steps after the end,
and none that the engine replaces by a lookup table.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from rich.table import Table

from jobs.benchmark.common.baseline_decoders import DecodingResult, Task, sorted_loop, textbook_loop
from jobs.benchmark.common.documents import BenchmarkTexts
from jobs.benchmark.common.hardware import (
    GNMT,
    GNMT_VOCABULARY,
    device_name,
    forward_flops,
    gnmt_pairs,
    matmul_rate,
    timed,
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
_BEAM_SIZE = 5

_WARMUPS = {"cpu": 0, "cuda": 2}
"""Untimed runs of beam search: on a GPU the first loads kernels, and the second captures graphs."""


class BenchmarkInput(BenchmarkTexts):
    """Documents and sentences to decode."""

    gnmt_rows: Annotated[int, Field(ge=0)] = Field(
        128, description="sentences to decode with a network of GNMT's shape; 0 to skip it"
    )


class BenchmarkCompute(Section):
    """Compute resources."""

    device: str = Field("cuda" if torch.cuda.is_available() else "cpu", description="device")
    threads: Positive = Field(2, description="CPU threads")
    token_budget: Positive = Field(32768, description="padded source tokens per batch; does not apply to the textbook loop")
    repeats: Positive = Field(2, description="timings per decoder, of which the best counts; the textbook loop is timed once")


class DecodeBenchmark(JobConfig):
    """Time decoders on real documents, and on random sentences as long as those of newstest2014."""

    input: BenchmarkInput = BenchmarkInput()
    model: ModelPath = ModelPath()
    compute: BenchmarkCompute = BenchmarkCompute()


def decode(options: Sequence[str]) -> dict[str, Any]:
    config = load_config(DecodeBenchmark, "benchmark decode", options)
    device = torch.device(config.compute.device)
    torch.set_num_threads(config.compute.threads)
    precisions = supported_precisions(device)
    rows: list[dict[str, Any]] = []
    beam: dict[str, float] = {}
    for task in _tasks(config, device):
        rows += _measure(task, config, precisions)
        beam = beam or _measure_beam(task, config)  # the first task only: its model ends hypotheses by itself
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
    # A model with random weights never ends a title: limit them to the lengths of real ones, 3 to 32 tokens, median 13.
    titles = np.clip(rng.lognormal(math.log(13), 0.45, len(sources)), 3, 32).astype(np.int64)
    model = _random_model(shape, tokenizer.vocabulary_size, device)
    yield Task("arxiv, 512 x 2", model, sources, bundle.decoding, titles)

    if config.input.gnmt_rows:
        sentences, targets = gnmt_pairs(rng, config.input.gnmt_rows)
        decoding = DecodingConfig(max_source_tokens=128, max_target_tokens=128, min_target_tokens=0, no_repeat_ngram=0)
        model = _random_model(GNMT, GNMT_VOCABULARY, device)
        yield Task("newstest2014's lengths, GNMT's shape", model, sentences, decoding, targets.lengths())


def _random_model(shape: ModelConfig, vocabulary_size: int, device: torch.device) -> Seq2Seq:
    """Make a model with random weights that never ends a hypothesis."""
    torch.manual_seed(1)
    model = Seq2Seq(shape, vocabulary_size)
    with torch.no_grad():
        model.decoder.output.bias[EOS] = _NEVER
    return model.to(device).eval()


def _decode(task: Task, engine: Engine, config: DecodeBenchmark, options: DecodingConfig) -> Hypotheses:
    budget = BatchBudget(config.compute.token_budget, threads=config.compute.threads)
    return decode_window(engine, task.sources, options, budget, task.limits)


def _engine(task: Task, engine: Engine, config: DecodeBenchmark) -> DecodingResult:
    hypotheses = _decode(task, engine, config, task.options)
    offsets = hypotheses.offsets
    tokens = [hypotheses.values[start:end].tolist() for start, end in itertools.pairwise(offsets)]
    return DecodingResult(tokens, int(task.source_lengths.sum()) + hypotheses.padding + hypotheses.row_steps)


def _measure_beam(task: Task, config: DecodeBenchmark) -> dict[str, float]:
    """Compare beam search with greedy search in float32: speed, and the scores with the same length penalty."""
    engine = Engine(task.model, backend_for("float32", next(task.model.parameters()).device))
    seconds, scores = [], []
    for beam_size in (1, _BEAM_SIZE):
        console.print(f"{task.name}: beam size {beam_size}")
        options = task.options.model_copy(update={"beam_size": beam_size})
        for _ in range(_WARMUPS[engine.device.type]):
            _decode(task, engine, config, options)
        best_s = math.inf
        for _ in range(config.compute.repeats):
            hypotheses, took_s = timed(partial(_decode, task, engine, config, options), engine.device)
            best_s = min(best_s, took_s)
        lengths = np.diff(hypotheses.offsets) + hypotheses.finished
        seconds.append(best_s)
        scores.append(hypotheses.scores * lengths / ((5 + lengths) / 6) ** options.length_penalty)
    return {
        "beam_size": _BEAM_SIZE,
        "sentences_per_s": len(task.sources) / seconds[1],
        "ratio_greedy": seconds[0] / seconds[1],
        "worth_less_than_greedy": float(np.mean(scores[1] < scores[0] - 1e-4)),
        "worth_more_than_greedy": float(np.mean(scores[1] > scores[0] + 1e-4)),
    }


def _measure(task: Task, config: DecodeBenchmark, precisions: Sequence[str]) -> list[dict[str, Any]]:
    """Time each decoder on a task; return a row of figures for each."""
    device = next(task.model.parameters()).device
    rates = dict.fromkeys(precisions, 0.0)
    decoders: dict[tuple[str, str], Callable[[], DecodingResult]] = {
        ("textbook", "float32"): lambda: textbook_loop(task),
        ("sorted", "float32"): lambda: sorted_loop(task, config.compute.token_budget),
    }
    for precision in precisions:
        engine = Engine(task.model, backend_for(precision, device))
        decoders["engine", precision] = lambda engine=engine: _engine(task, engine, config)  # type: ignore[misc]
    seconds = dict.fromkeys(decoders, math.inf)
    results: dict[tuple[str, str], DecodingResult] = {}
    # Alternate between decoders, because other work on the machine comes and goes. Measure rates next to each timing.
    for turn in range(config.compute.repeats + 1):
        for decoder, run in decoders.items():
            name, precision = decoder
            is_timed = turn == config.compute.repeats if name == "textbook" else turn > 0
            if is_timed:
                console.print(f"{task.name}: {name}, {precision}")
                rates[precision] = max(rates[precision], matmul_rate(precision, device))
                results[decoder], took_s = timed(run, device)
                seconds[decoder] = min(seconds[decoder], took_s)
            elif name != "textbook":
                run()  # compiles, fills caches
    rows: list[dict[str, Any]] = []
    textbook = results["textbook", "float32"]
    for (name, precision), result in results.items():
        figures = _figures(task, name, result, seconds[name, precision], rates[precision])
        different = [a != b for a, b in zip(result.tokens, textbook.tokens, strict=True)]
        row = {"data": task.name, "engine": name, "precision": precision, **figures}
        rows.append(row | {"differ_from_textbook": float(np.mean(different))})
    speed = {row["engine"]: row["output_tokens_per_s"] for row in rows if row["engine"] != "engine"}
    for row in rows:
        row["ratio_textbook"] = row["output_tokens_per_s"] / speed["textbook"]
        row["ratio_sorted"] = row["output_tokens_per_s"] / speed["sorted"]
    return rows


def _figures(task: Task, name: str, result: DecodingResult, seconds: float, rate: float) -> dict[str, Any]:
    """Return the figures of a decoder; ``rate`` is that of matrix products (FLOP/s)."""
    tokens = result.tokens
    source, target = int(task.source_lengths.sum()), sum(map(len, tokens))
    flops = _flops(task, tokens, tables=name == "engine")
    return {
        "sentences_per_s": len(tokens) / seconds,
        "output_tokens_per_s": target / seconds,
        "total_tokens_per_s": (source + target) / seconds,
        "padding_share": 1 - int(source + task.target_steps(tokens).sum()) / result.padded_steps,
        "flops": flops,
        "flops_per_s": flops / seconds,
        "matmul_flops": rate,
        "matmul_share": flops / seconds / rate,
        "network_flops_share": _flops(task, tokens, tables=False) / seconds / rate,
    }


def _flops(task: Task, tokens: list[list[int]], *, tables: bool) -> float:
    """Return the FLOPs of the matrix products for real tokens; with ``tables``, without those that the engine looks up."""
    model, steps = task.model, task.target_steps(tokens)
    return forward_flops(model.config, model.vocabulary_size, task.source_lengths, steps, tables=tables)


def _show(rows: list[dict[str, Any]], rates: dict[str, float], beam: dict[str, float]) -> None:
    for data in dict.fromkeys(row["data"] for row in rows):
        table = Table(title=data)
        table.add_column("decoder", no_wrap=True)
        for name in ("documents/s", "output tokens/s", "padding", "x textbook", "x sorted", "of matmul rate", "different"):
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
        f"beam size {beam['beam_size']}: {beam['ratio_greedy']:.2f} x the documents/s of greedy search; better scores for "
        f"{beam['worth_more_than_greedy']:.1%} of documents, worse for {beam['worth_less_than_greedy']:.1%}"
    )
