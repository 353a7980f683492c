"""Benchmark ``pairs``: memory of a training, by number of pairs."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from rich.table import Table

from jobs.benchmark.common.documents import ROWS_PER_GROUP, write_rows
from jobs.benchmark.common.memory import format_mib, peak_memory
from jobs.console import new_console
from pipeline.config.base import Section
from pipeline.config.loader import load_config
from pipeline.config.train import TrainConfig
from pipeline.config.types import Positive
from pipeline.data.pairs import open_pairs, pair_texts
from pipeline.training.distributed import train
from pipeline.training.plan import plan_training

console = new_console()
_ROWS_PER_FILE = 50_000


class SizesSection(Section):
    """The training pairs."""

    rows: Annotated[list[Positive], Field(min_length=1)] = Field(
        [500_000, 5_000_000], description="pairs of each training, which repeat the first 10,000 of data.train"
    )


class PairsBenchmark(TrainConfig):
    """Train for one epoch on different numbers of pairs. Network, optimizer and workers are options of jobs.train."""

    sizes: SizesSection = SizesSection()


def pairs(options: Sequence[str]) -> dict[str, Any]:
    config = load_config(PairsBenchmark, "benchmark pairs", options)
    sources, targets = pair_texts(next(iter(open_pairs(config.data.train, "--data.train").windows(ROWS_PER_GROUP))))
    epochs = [_train_epoch(config, {"source": sources, "target": targets}, rows) for rows in config.sizes.rows]
    roles = sorted(set().union(*(epoch["peak_bytes"] for epoch in epochs)))
    table = Table("pairs", "minutes", "pairs/s", *(f"{role} (MiB)" for role in roles), title="Peak memory of a process")
    for epoch in epochs:
        cells = [f"{epoch['pairs']:,}", f"{epoch['minutes']:.1f}", f"{epoch['pairs_per_s']:,.0f}"]
        table.add_row(*cells, *format_mib(epoch["peak_bytes"], roles))
    console.print(table)
    return {"config": config.model_dump(mode="json", by_alias=True), "rows": epochs}


def _train_epoch(config: PairsBenchmark, texts: Mapping[str, Sequence[str]], rows: int) -> dict[str, Any]:
    console.print(f"an epoch of {rows:,} pairs")
    values = config.model_dump(by_alias=True, exclude={"sizes"})
    values["training"] |= {"epochs": 1, "max_minutes": None, "max_steps": None, "validate_minutes": 1e6}
    with tempfile.TemporaryDirectory() as folder:
        values["data"]["train"], values["output"]["path"] = f"{folder}/pairs", f"{folder}/trained"
        write_rows(Path(folder) / "pairs", texts, rows, math.ceil(rows / _ROWS_PER_FILE))
        records: list[dict[str, Any]] = []
        with peak_memory() as peaks:
            train(plan_training(TrainConfig.model_validate(values)), records.append)
    last = records[-1]
    rate = last["pairs_seen"] / last["minutes"] / 60
    return {"pairs": last["pairs_seen"], "minutes": last["minutes"], "pairs_per_s": rate, "peak_bytes": peaks}
