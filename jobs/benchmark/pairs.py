"""``python -m jobs.benchmark pairs``: what a training of more pairs holds in memory."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field
from rich.table import Table

from jobs.benchmark.common.memory import peak_memory
from jobs.console import new_console
from pipeline.config.base import Section
from pipeline.config.loader import load_config
from pipeline.config.train import TrainConfig
from pipeline.config.types import Positive
from pipeline.data.pairs import PAIR_SCHEMA, open_pairs, pair_texts
from pipeline.training.distributed import train

console = new_console()
_ROWS_OF_A_FILE, _ROWS_OF_A_GROUP = 50_000, 10_000


class SizesSection(Section):
    """The stores."""

    rows: Annotated[list[Positive], Field(min_length=1)] = Field(
        [500_000, 5_000_000], description="pairs of each training, the first ten thousand of data.train over and over"
    )


class PairsBenchmark(TrainConfig):
    """Go once through stores of pairs. Network, optimisation and workers are those of a training (jobs.train)."""

    sizes: SizesSection = SizesSection()


def pairs(options: Sequence[str]) -> dict[str, Any]:
    """Train for an epoch of each size; see PairsBenchmark for the options."""
    config = load_config(PairsBenchmark, "benchmark pairs", options)
    texts = next(iter(open_pairs(config.data.train, "--data.train").windows(_ROWS_OF_A_GROUP)))
    found = [_epoch(config, list(zip(*pair_texts(texts), strict=True)), rows) for rows in config.sizes.rows]
    roles = sorted(set().union(*(each["peak_bytes"] for each in found)))
    table = Table("pairs", "minutes", "pairs/s", *(f"{role} (MiB)" for role in roles), title="Most memory")
    for each in found:
        held = [f"{each['peak_bytes'].get(role, 0) / 2**20:,.0f}" for role in roles]
        table.add_row(f"{each['pairs']:,}", f"{each['minutes']:.1f}", f"{each['pairs_per_s']:,.0f}", *held)
    console.print(table)
    return {"config": config.model_dump(mode="json", by_alias=True), "rows": found}


def _epoch(config: PairsBenchmark, texts: Sequence[tuple[str, str]], rows: int) -> dict[str, Any]:
    console.print(f"an epoch of {rows:,} pairs")
    values = config.model_dump(by_alias=True, exclude={"sizes"})
    values["training"] |= {"epochs": 1, "max_minutes": None, "max_steps": None, "validate_minutes": 1e6}
    with tempfile.TemporaryDirectory() as folder:
        values["data"]["train"], values["output"]["path"] = f"{folder}/pairs", f"{folder}/trained"
        _write(Path(folder) / "pairs", texts, rows)
        records: list[dict[str, Any]] = []
        with peak_memory() as peaks:
            train(TrainConfig.model_validate(values), records.append)
    last = records[-1]
    rate = last["pairs_seen"] / last["minutes"] / 60
    return {"pairs": last["pairs_seen"], "minutes": last["minutes"], "pairs_per_s": rate, "peak_bytes": peaks}


def _write(folder: Path, texts: Sequence[tuple[str, str]], rows: int) -> None:
    """So many pairs, in files of equal size whatever their number; holds a row group."""
    folder.mkdir()
    endless = itertools.cycle(texts)
    for number, begin in enumerate(range(0, rows, _ROWS_OF_A_FILE)):
        left = min(_ROWS_OF_A_FILE, rows - begin)
        with pq.ParquetWriter(folder / f"{number:04}.parquet", PAIR_SCHEMA, compression="zstd") as writer:
            while left:
                part = list(itertools.islice(endless, min(left, _ROWS_OF_A_GROUP)))
                sources, targets = zip(*part, strict=True)
                writer.write_table(pa.table([pa.array(map(str, range(len(part)))), sources, targets], schema=PAIR_SCHEMA))
                left -= len(part)
