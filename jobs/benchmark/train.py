"""``python -m jobs.benchmark train``: how fast training is, what of a machine it takes, and what workers cost each other.

For each number of workers, as many processes learn from real batches that lie in memory, each on its own threads or GPU:

``together``  as DDP workers: gradients are exchanged while they are computed
``apart``     at the same time, but each for itself: what together takes longer is the exchange
``exchange``  the sum of gradients alone, as many bytes as there are

Neither Ray nor files are in what is timed: ``python -m jobs.benchmark workers`` runs whole trainings. Needs no Ray.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field
from rich.table import Table
from torch.multiprocessing.spawn import spawn

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
from pipeline.config.base import Section
from pipeline.config.loader import load_config
from pipeline.config.model import ModelConfig
from pipeline.config.train import TrainConfig
from pipeline.config.types import Positive
from pipeline.data.pairs import open_pairs, pair_texts
from pipeline.data.special_tokens import EOS
from pipeline.data.tokenizer import Tokenizer
from pipeline.io.location import open_location
from pipeline.model.batching import PairBatch, Rows, pair_batches
from pipeline.model.malloc import KEEP_FREED_MEMORY
from pipeline.model.seq2seq import Seq2Seq
from pipeline.training.learner import Learner

console = new_console()
_BATCHES = 24
"""That steps go through again and again."""
_NODES = (2, 4, 8, 16, 32, 64)
_LINKS_GBIT_S = (10, 25, 100, 400)


class SpeedSection(Section):
    """What is timed."""

    workers: Annotated[list[Positive], Field(min_length=1)] = Field([1, 2], description="numbers of workers")
    steps: Positive = Field(40, description="steps that are timed, after some that are not")
    repeats: Positive = Field(3, description="timings, of which the median counts")
    device: str = Field("cuda" if torch.cuda.is_available() else "cpu", description="where to compute")
    gnmt: bool = Field(False, description="a network of GNMT's shape, on random sentences of newstest2014's lengths, instead")


class TrainBenchmark(TrainConfig):
    """Time training steps. Data, network, optimisation and threads are those of a training (jobs.train)."""

    speed: SpeedSection = SpeedSection()


def train(options: Sequence[str]) -> dict[str, Any]:
    """Time each number of workers; see TrainBenchmark for the options."""
    config = load_config(TrainBenchmark, "benchmark train", options)
    found = [_measure(config, workers) for workers in config.speed.workers]
    _show(found)
    alone = next((each for each in found if each["workers"] == 1), None)
    return {
        "device": device_name(torch.device(config.speed.device), _threads(config, 1)),
        "config": config.model_dump(mode="json", by_alias=True),
        "rows": found,
        "projected_efficiency": _projected(alone) if alone else None,
    }


def _measure(config: TrainBenchmark, workers: int) -> dict[str, Any]:
    """What so many workers reach, over all of them."""
    kept = KEEP_FREED_MEMORY if config.speed.device == "cpu" else {}
    with tempfile.TemporaryDirectory() as folder, _environment(kept):  # as a training's workers have it
        spawn(_work, args=(workers, config.model_dump_json(by_alias=True), folder), nprocs=workers)  # type: ignore[no-untyped-call]
        each = [json.loads((Path(folder) / str(rank)).read_text()) for rank in range(workers)]
    added = {name: sum(worker[name] for worker in each) for name in ("together", "apart", "flops_per_s", "matmul_flops")}
    return {
        "workers": workers,
        "tokens_per_s": added["together"],
        "tokens_per_s_apart": added["apart"],
        "flops_per_s": added["flops_per_s"],
        "matmul_flops": added["matmul_flops"],
        "share_of_rate": added["flops_per_s"] / added["matmul_flops"],
        "exchange_share": 1 - added["together"] / added["apart"] if workers > 1 else None,
        **{name: each[0][name] for name in ("precision", "parameters", "step_s", "gradient_bytes", "exchange_s")},
        "peak_bytes": each[0]["peak_bytes"],
    }


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Of processes that start while the block runs."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(rank: int, workers: int, settings: str, folder: str) -> None:
    """One process: writes what it measured to a file of its rank's name."""
    config = TrainBenchmark.model_validate_json(settings)
    torch.set_num_threads(_threads(config, workers))
    device = torch.device(config.speed.device, rank) if config.speed.device == "cuda" else torch.device(config.speed.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
    shape, vocabulary_size, batches = _gnmt(config, rank) if config.speed.gnmt else _real(config, rank, workers)
    torch.manual_seed(config.training.seed)
    learners: dict[str, Learner] = {}
    peak_bytes = None
    for name, distributed in (("together", workers > 1), ("apart", False)):
        model = Seq2Seq(shape, vocabulary_size).to(device)
        learners[name] = Learner(model, config.training, device, distributed, config.scaling.compress_gradients)
        _learn(learners[name], batches, _BATCHES)  # each of them: all memory is taken then, and its peak reached
        if device.type == "cuda" and name == "together":
            peak_bytes = torch.cuda.max_memory_allocated()
    seconds: dict[str, list[float]] = {name: [] for name in learners}
    for _ in range(config.speed.repeats):  # in turn, so that both meet the same neighbours on the machine
        for name, learner in learners.items():
            dist.barrier()
            started = time.perf_counter()
            tokens, flops = _learn(learner, batches, config.speed.steps)
            wait(device)
            seconds[name].append(time.perf_counter() - started)
    taken = {name: float(np.median(times)) for name, times in seconds.items()}
    precision = str(learners["together"].dtype).removeprefix("torch.")
    dist.barrier()
    figures = {
        "together": tokens / taken["together"],
        "apart": tokens / taken["apart"],
        "step_s": taken["together"] / config.speed.steps,
        "flops_per_s": flops / taken["together"],
        "matmul_flops": matmul_rate(precision, device),
        "precision": precision,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **_exchange(model, device, config.scaling.compress_gradients, workers),
        "peak_bytes": peak_bytes,
    }
    (Path(folder) / str(rank)).write_text(json.dumps(figures))
    dist.destroy_process_group()


def _threads(config: TrainBenchmark, workers: int) -> int:
    """Of each, as in a training."""
    return config.scaling.threads or max(1, (os.cpu_count() or 1) // workers)


def _learn(learner: Learner, batches: Sequence[PairBatch], steps: int) -> tuple[int, float]:
    """Real tokens of this process's batches in so many steps, and FLOPs of their products: once forth and twice back."""
    tokens, flops = 0, 0.0
    shape, vocabulary_size = learner.model.config, learner.model.vocabulary_size
    for number in range(steps):
        batch = batches[number % len(batches)]
        learner.step([batch], learner.totals([batch], 0.0), 0.5)
        sources, targets = batch.source_lengths.numpy(), batch.target_lengths.numpy() + 1
        tokens += int(sources.sum() + targets.sum())
        flops += 3 * forward_flops(shape, vocabulary_size, sources, targets)
    return tokens, flops


def _exchange(model: Seq2Seq, device: torch.device, compress: bool, workers: int) -> dict[str, float | None]:
    """How many bytes of gradients a worker has, and how long their sum over the workers takes, alone; None of one worker."""
    numbers = sum(parameter.numel() for parameter in model.parameters())
    gradients = torch.zeros(numbers, device=device, dtype=torch.bfloat16 if compress else torch.float32)
    times = []
    for _ in range(8 if workers > 1 else 0):
        wait(device)
        started = time.perf_counter()
        dist.all_reduce(gradients)
        wait(device)
        times.append(time.perf_counter() - started)
    return {"gradient_bytes": numbers * gradients.element_size(), "exchange_s": float(np.median(times)) if times else None}


def _real(config: TrainBenchmark, rank: int, workers: int) -> tuple[ModelConfig, int, list[PairBatch]]:
    """Batches of a training's first pairs, this worker's own."""
    tokenizer = Tokenizer(open_location(config.data.tokenizer, "--data.tokenizer").read(), config.data.tokenizer)
    table = next(iter(open_pairs(config.data.train, "--data.train").windows(config.data.window_rows)))
    sources, targets = (Rows(*tokenizer.encode(texts[rank::workers])) for texts in pair_texts(table))
    return config.model, tokenizer.vocabulary_size, _batches(config, sources, targets)


def _gnmt(config: TrainBenchmark, rank: int) -> tuple[ModelConfig, int, list[PairBatch]]:
    rng = np.random.default_rng(rank)
    sources, targets = (
        Rows(rng.integers(EOS + 1, GNMT_VOCABULARY, lengths.sum()).astype(np.int32), np.concatenate(([0], np.cumsum(lengths))))
        for lengths in newstest_lengths(rng, config.data.window_rows)
    )
    return GNMT.model_copy(update={"dropout": config.model.dropout}), GNMT_VOCABULARY, _batches(config, sources, targets)


def _batches(config: TrainBenchmark, sources: Rows, targets: Rows) -> list[PairBatch]:
    data, rng = config.data, np.random.default_rng(1)
    budget = config.training.token_budget
    return list(pair_batches(sources, targets, data.max_source_tokens, data.max_target_tokens, budget, rng))[:_BATCHES]


def _projected(alone: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Of N nodes with a worker each, their share of N times one's rate, for links of so many Gbit/s.

    A ring sends 2 (N - 1) / N of the gradients' bytes each way (Patarasuk & Yuan 2009), here after the step's computation and
    not beside it, which is the worst case.
    """
    found = {}
    for gbit_s in _LINKS_GBIT_S:
        bytes_per_s = gbit_s * 1e9 / 8
        spent = {nodes: 2 * (nodes - 1) / nodes * alone["gradient_bytes"] / bytes_per_s for nodes in _NODES}
        found[f"{gbit_s} Gbit/s"] = {str(nodes): alone["step_s"] / (alone["step_s"] + spent[nodes]) for nodes in _NODES}
    return found


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"{rows[0]['parameters']:,} parameters in {rows[0]['precision']}")
    for name in ("workers", "tokens/s", "x one", "apart", "exchange", "of rate", "sum alone"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            str(row["workers"]),
            f"{row['tokens_per_s']:,.0f}",
            f"{row['tokens_per_s'] / rows[0]['tokens_per_s']:.2f}",
            f"{row['tokens_per_s_apart']:,.0f}",
            "" if row["exchange_share"] is None else f"{row['exchange_share']:.1%}",
            f"{row['share_of_rate']:.0%}",
            "" if row["exchange_s"] is None else f"{1e3 * row['exchange_s']:.1f} ms",
        )
    console.print(table)
