"""Benchmark ``train``: training steps with one or more workers.

For each number of workers, as many processes train on real batches in memory, each with its own threads or GPU:

``together``  as DDP workers, which exchange gradients while they compute them
``apart``     at the same time, without an exchange; the difference is the cost of the exchange
``exchange``  only the sum of gradients, of as many bytes as the model has

Neither Ray nor files are timed; the ``workers`` benchmark runs whole trainings.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
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
    gnmt_pairs,
    matmul_rate,
    timed,
    wait,
)
from jobs.benchmark.common.memory import child_environment
from jobs.console import new_console
from pipeline.config.base import Section
from pipeline.config.loader import load_config
from pipeline.config.model import ModelConfig
from pipeline.config.train import TrainConfig
from pipeline.config.types import Positive
from pipeline.data.pairs import open_pairs, pair_texts
from pipeline.data.tokenizer import Tokenizer
from pipeline.model.batching import PairBatch, PairLimits, Rows, pair_batches
from pipeline.model.malloc import KEEP_FREED_MEMORY, NO_PRIMITIVE_CACHE
from pipeline.model.seq2seq import Seq2Seq
from pipeline.training.learner import Learner
from pipeline.training.plan import plan_training

console = new_console()

_BATCHES = 24
"""Different batches, which the steps repeat."""

_NODES = (2, 4, 8, 16, 32, 64)
_LINKS_GBIT_S = (10, 25, 100, 400)
_EXCHANGES = 8


class SpeedSection(Section):
    """Workers and steps to time."""

    workers: Annotated[list[Positive], Field(min_length=1)] = Field([1, 2], description="numbers of workers to compare")
    steps: Positive = Field(40, description="timed steps, after some warm-up steps")
    repeats: Positive = Field(3, description="timings, of which the median counts")
    device: str = Field("cuda" if torch.cuda.is_available() else "cpu", description="device")
    gnmt: bool = Field(False, description="train a network of GNMT's shape on random sentences instead of the configured pairs")


class TrainBenchmark(TrainConfig):
    """Time training steps. Data, network, optimizer and threads are options of jobs.train."""

    speed: SpeedSection = SpeedSection()


def train(options: Sequence[str]) -> dict[str, Any]:
    config = load_config(TrainBenchmark, "benchmark train", options)
    rows = [_measure(config, workers) for workers in config.speed.workers]
    _show(rows)
    single = next((row for row in rows if row["workers"] == 1), None)
    return {
        "device": device_name(torch.device(config.speed.device), _threads(config, 1)),
        "config": config.model_dump(mode="json", by_alias=True),
        "rows": rows,
        "projected_efficiency": _project_efficiency(single) if single else None,
    }


def _measure(config: TrainBenchmark, workers: int) -> dict[str, Any]:
    """Return the figures of a number of workers, summed over them."""
    is_cpu = config.speed.device == "cpu"
    environment = child_environment(KEEP_FREED_MEMORY | NO_PRIMITIVE_CACHE) if is_cpu else nullcontext()
    with tempfile.TemporaryDirectory() as folder, environment:
        spawn(_work, args=(workers, config.model_dump_json(by_alias=True), folder), nprocs=workers)  # type: ignore[no-untyped-call]
        figures = [json.loads((Path(folder) / str(rank)).read_text()) for rank in range(workers)]
    sums = {name: sum(worker[name] for worker in figures) for name in ("together", "apart", "flops_per_s", "matmul_flops")}
    first = figures[0]
    return {
        "workers": workers,
        "tokens_per_s": sums["together"],
        "tokens_per_s_apart": sums["apart"],
        "flops_per_s": sums["flops_per_s"],
        "matmul_flops": sums["matmul_flops"],
        "share_of_rate": sums["flops_per_s"] / sums["matmul_flops"],
        "exchange_share": 1 - sums["together"] / sums["apart"] if workers > 1 else None,
        **{name: first[name] for name in ("precision", "parameters", "step_s", "gradient_bytes", "exchange_s", "peak_bytes")},
    }


def _work(rank: int, workers: int, settings: str, folder: str) -> None:
    """Run one worker process, which writes its figures to a file named after its rank."""
    config = TrainBenchmark.model_validate_json(settings)
    torch.set_num_threads(_threads(config, workers))
    device = torch.device(config.speed.device, rank) if config.speed.device == "cuda" else torch.device(config.speed.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
    shape, vocabulary_size, batches = _gnmt_batches(config, rank) if config.speed.gnmt else _real_batches(config, rank, workers)
    torch.manual_seed(config.training.seed)
    compress = config.scaling.compress_gradients
    learners: dict[str, Learner] = {}
    peak_bytes = None
    for name, distributed in (("together", workers > 1), ("apart", False)):
        model = Seq2Seq(shape, vocabulary_size).to(device)
        learners[name] = Learner(model, config.training, device, distributed=distributed, compress=compress)
        _train_steps(learners[name], batches, _BATCHES)  # every batch once, so that memory reaches its peak
        if device.type == "cuda" and name == "together":
            peak_bytes = torch.cuda.max_memory_allocated()
    seconds: dict[str, list[float]] = {name: [] for name in learners}
    for _ in range(config.speed.repeats):  # alternate, so that other work on the machine slows down both
        for name, learner in learners.items():
            dist.barrier()
            (tokens, flops), took_s = timed(partial(_train_steps, learner, batches, config.speed.steps), device)
            seconds[name].append(took_s)
    medians = {name: float(np.median(times)) for name, times in seconds.items()}
    precision = str(learners["together"].dtype).removeprefix("torch.")
    dist.barrier()
    figures = {
        "together": tokens / medians["together"],
        "apart": tokens / medians["apart"],
        "step_s": medians["together"] / config.speed.steps,
        "flops_per_s": flops / medians["together"],
        "matmul_flops": matmul_rate(precision, device),
        "precision": precision,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **_time_exchange(model, device, torch.bfloat16 if compress else torch.float32),
        "peak_bytes": peak_bytes,
    }
    (Path(folder) / str(rank)).write_text(json.dumps(figures))
    dist.destroy_process_group()


def _threads(config: TrainBenchmark, workers: int) -> int:
    """Return the threads of each worker, as in a training."""
    return config.scaling.threads or max(1, (os.cpu_count() or 1) // workers)


def _train_steps(learner: Learner, batches: Sequence[PairBatch], steps: int) -> tuple[int, float]:
    """Train; return the real tokens, and the FLOPs of their matrix products, one forward and two backward."""
    tokens, flops = 0, 0.0
    shape, vocabulary_size = learner.model.config, learner.model.vocabulary_size
    for step in range(steps):
        batch = batches[step % len(batches)]
        learner.step([batch], learner.totals([batch], 0.0), 0.5)
        sources, targets = batch.source_lengths.numpy(), batch.target_lengths.numpy() + 1
        tokens += int(sources.sum() + targets.sum())
        flops += 3 * forward_flops(shape, vocabulary_size, sources, targets)
    return tokens, flops


def _time_exchange(model: Seq2Seq, device: torch.device, dtype: torch.dtype) -> dict[str, float | None]:
    """Return the bytes of a worker's gradients, and the seconds to sum them over the workers (None for one worker)."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    gradients = torch.zeros(parameters, device=device, dtype=dtype)
    times = []
    for _ in range(_EXCHANGES if dist.get_world_size() > 1 else 0):
        wait(device)
        times.append(timed(partial(dist.all_reduce, gradients), device)[1])
    return {"gradient_bytes": parameters * gradients.element_size(), "exchange_s": float(np.median(times)) if times else None}


def _real_batches(config: TrainBenchmark, rank: int, workers: int) -> tuple[ModelConfig, int, list[PairBatch]]:
    """Return the network, its vocabulary size, and batches of this worker's share of the first training pairs."""
    plan = plan_training(TrainConfig.model_validate(config.model_dump(by_alias=True, exclude_unset=True, exclude={"speed"})))
    tokenizer = Tokenizer(plan.tokenizer_file)
    table = next(iter(open_pairs(config.data.train, "--data.train").windows(config.data.window_rows)))
    sources, targets = (Rows(*tokenizer.encode(texts[rank::workers])) for texts in pair_texts(table))
    return plan.config.model.network, tokenizer.vocabulary_size, _batches(config, sources, targets)


def _gnmt_batches(config: TrainBenchmark, rank: int) -> tuple[ModelConfig, int, list[PairBatch]]:
    batches = _batches(config, *gnmt_pairs(np.random.default_rng(rank), config.data.window_rows))
    return GNMT.model_copy(update={"dropout": config.model.dropout}), GNMT_VOCABULARY, batches


def _batches(config: TrainBenchmark, sources: Rows, targets: Rows) -> list[PairBatch]:
    limits = PairLimits(config.data.max_source_tokens, config.data.max_target_tokens, config.training.token_budget)
    return list(pair_batches(sources, targets, limits, np.random.default_rng(1)))[:_BATCHES]


def _project_efficiency(single: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Project the efficiency of N nodes with one worker each, by the speed of their links.

    A ring all-reduce sends 2 (N - 1) / N of the gradient bytes each way (Patarasuk & Yuan 2009). This counts it as if it came
    after the computation of a step, not during it: the worst case.
    """
    efficiency = {}
    for gbit_s in _LINKS_GBIT_S:
        full_exchange_s = single["gradient_bytes"] / (gbit_s * 1e9 / 8)
        exchange_s = {nodes: 2 * (nodes - 1) / nodes * full_exchange_s for nodes in _NODES}
        efficiency[f"{gbit_s} Gbit/s"] = {
            str(nodes): single["step_s"] / (single["step_s"] + exchange_s[nodes]) for nodes in _NODES
        }
    return efficiency


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"{rows[0]['parameters']:,} parameters in {rows[0]['precision']}")
    for name in ("workers", "tokens/s", "x first", "apart", "exchange", "of matmul rate", "sum only"):
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
