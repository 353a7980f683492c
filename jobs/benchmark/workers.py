"""``python -m jobs.benchmark workers``: whether two DDP workers learn like one with twice the batch."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from jobs.console import new_console
from pipeline.config.loader import load_config
from pipeline.config.train import TrainConfig
from pipeline.errors import UserError
from pipeline.training.distributed import train

_STEPS = 300
_POINTS = 10
"""Of a smoothed curve: each the mean over a tenth of the steps."""

console = new_console()


def workers(options: Sequence[str]) -> dict[str, Any]:
    """Train alike with 1 worker and twice the token budget, from two seeds, and with 2 workers; compare their losses.

    options: a training's, whose number of steps (``--training.max_steps``) is the only bound, and whose output and number
    of workers do not count.
    """
    config = load_config(TrainConfig, "benchmark workers", options)
    seed, budget, steps = config.training.seed, config.training.token_budget, config.training.max_steps or _STEPS
    if steps < 2:
        raise UserError("a speed is measured from one step to the next; set --training.max_steps to 2 or more")
    runs = {
        f"1 worker, seed {seed}": {"num_workers": 1, "seed": seed, "token_budget": 2 * budget},
        f"1 worker, seed {seed + 1}": {"num_workers": 1, "seed": seed + 1, "token_budget": 2 * budget},
        f"2 workers, seed {seed}": {"num_workers": 2, "seed": seed, "token_budget": budget},
    }
    curves, rates = {}, {}
    for name, run in runs.items():
        console.print(f"{name}: {steps} steps")
        curves[name], rates[name] = _learn(config, steps, **run)
    one, other, two = (np.array(curve) for curve in curves.values())
    difference, noise = two - (one + other) / 2, np.abs(one - other)
    table = Table("steps", *runs, "difference", "between seeds", title="Training loss (nat a token), mean over the steps")
    for row, (start, end) in enumerate(_spans(steps)):
        losses = [f"{curve[row]:.3f}" for curve in (one, other, two)]
        table.add_row(f"{start + 1} to {end}", *losses, f"{difference[row]:+.3f}", f"{noise[row]:.3f}")
    table.add_row("tokens/s", *(f"{rate:,.0f}" for rate in rates.values()), "", "", style="bold")
    console.print(table)
    return {
        "config": config.model_dump(mode="json", by_alias=True),
        "steps": [end for _, end in _spans(steps)],
        "loss": curves,
        "difference": difference.tolist(),
        "between_seeds": noise.tolist(),
        "tokens_per_s": rates,
    }


def _learn(config: TrainConfig, steps: int, num_workers: int, seed: int, token_budget: int) -> tuple[list[float], float]:
    """Train anew: the smoothed curve of the training loss, and tokens a second but for the first tenth of the steps."""
    values = config.model_dump(by_alias=True)
    bounds = {"epochs": None, "max_minutes": None, "max_steps": steps, "validate_minutes": 1e6, "report_seconds": 0}
    values["training"] |= {**bounds, "seed": seed, "token_budget": token_budget}
    values["scaling"] |= {"num_workers": num_workers}
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        values["output"]["path"] = folder
        train(TrainConfig.model_validate(values), records.append)
    taken = [record for record in records if record["kind"] == "step"]
    curve = [float(np.mean([step["loss"] for step in taken[start:end]])) for start, end in _spans(steps)]
    warm = taken[steps // _POINTS :]
    minutes = [after["minutes"] - before["minutes"] for before, after in itertools.pairwise(warm)]
    return curve, float(np.average([step["tokens_per_s"] for step in warm[1:]], weights=minutes))


def _spans(steps: int) -> list[tuple[int, int]]:
    """Steps in tenths, as (first, one after the last)."""
    ends = np.linspace(0, steps, min(_POINTS, steps) + 1).round().astype(int).tolist()
    return list(itertools.pairwise(ends))
