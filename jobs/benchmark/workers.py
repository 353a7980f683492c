"""Benchmark ``workers``: whether two DDP workers learn like one worker with twice the batch."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from jobs.benchmark.common.documents import even_ranges
from jobs.console import new_console
from pipeline.config.loader import load_config
from pipeline.config.train import TrainConfig
from pipeline.errors import UserError
from pipeline.training.distributed import train
from pipeline.training.plan import plan_training

_STEPS = 300
_POINTS = 10
"""Points of a loss curve, each the mean over as many steps."""

console = new_console()


def workers(options: Sequence[str]) -> dict[str, Any]:
    """Train with one worker and twice the token budget, from two seeds, and with two workers; compare their losses.

    Args:
        options: Options of a training. Only ``--training.max_steps`` bounds it; output and number of workers are ignored.
    """
    config = load_config(TrainConfig, "benchmark workers", options)
    seed, budget, steps = config.training.seed, config.training.token_budget, config.training.max_steps or _STEPS
    if steps < 2:
        raise UserError("--training.max_steps is too small to measure speed; set it to 2 or more")
    variants = {
        f"1 worker, seed {seed}": {"num_workers": 1, "seed": seed, "token_budget": 2 * budget},
        f"1 worker, seed {seed + 1}": {"num_workers": 1, "seed": seed + 1, "token_budget": 2 * budget},
        f"2 workers, seed {seed}": {"num_workers": 2, "seed": seed, "token_budget": budget},
    }
    curves, rates = {}, {}
    for name, variant in variants.items():
        console.print(f"{name}: {steps} steps")
        curves[name], rates[name] = _train(config, steps, **variant)
    first_seed, second_seed, two_workers = (np.array(curve) for curve in curves.values())
    difference, noise = two_workers - (first_seed + second_seed) / 2, np.abs(first_seed - second_seed)
    table = Table("steps", *variants, "difference", "between seeds", title="Mean training loss (nats per token)")
    for point, (start, end) in enumerate(_points(steps)):
        losses = [f"{curve[point]:.3f}" for curve in (first_seed, second_seed, two_workers)]
        table.add_row(f"{start + 1} to {end}", *losses, f"{difference[point]:+.3f}", f"{noise[point]:.3f}")
    table.add_row("tokens/s", *(f"{rate:,.0f}" for rate in rates.values()), "", "", style="bold")
    console.print(table)
    return {
        "config": config.model_dump(mode="json", by_alias=True),
        "steps": [end for _, end in _points(steps)],
        "loss": curves,
        "difference": difference.tolist(),
        "between_seeds": noise.tolist(),
        "tokens_per_s": rates,
    }


def _train(config: TrainConfig, steps: int, num_workers: int, seed: int, token_budget: int) -> tuple[list[float], float]:
    """Train from scratch; return the loss curve, and the tokens/s after the first point."""
    values = config.model_dump(by_alias=True)
    bounds = {"epochs": None, "max_minutes": None, "max_steps": steps, "validate_minutes": 1e6, "report_seconds": 0}
    values["training"] |= {**bounds, "seed": seed, "token_budget": token_budget}
    values["scaling"] |= {"num_workers": num_workers}
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        values["output"]["path"] = folder
        train(plan_training(TrainConfig.model_validate(values)), records.append)
    step_records = [record for record in records if record["kind"] == "step"]
    curve = [float(np.mean([step["loss"] for step in step_records[start:end]])) for start, end in _points(steps)]
    warm = step_records[steps // _POINTS :]
    minutes = [step["minutes"] - previous["minutes"] for previous, step in itertools.pairwise(warm)]
    return curve, float(np.average([step["tokens_per_s"] for step in warm[1:]], weights=minutes))


def _points(steps: int) -> list[tuple[int, int]]:
    """Return the steps of each point, as (first, one after the last)."""
    return list(even_ranges(steps, min(_POINTS, steps)))
