"""Stores of documents that benchmarks make, and whole runs over them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import DecodingOverrides, ModelPath, Resources, SummarizeConfig
from pipeline.inference.manifest import Manifest
from pipeline.inference.plan import plan_run
from pipeline.inference.run import execute

ROWS_OF_A_GROUP = 10_000
_SCHEMA = pa.schema([("id", pa.int64()), ("text", pa.string())])


def write_store(folder: Path, texts: Sequence[str], rows: int, files: int, rows_of_a_group: int = ROWS_OF_A_GROUP) -> Path:
    """Write so many rows, the texts over and over, with ids of their own, to files of equal size; holds a row group."""
    folder.mkdir(parents=True)
    endless = itertools.cycle(texts)
    for number, (start, end) in enumerate(_spans(rows, files)):
        with pq.ParquetWriter(folder / f"{number:05}.parquet", _SCHEMA, compression="zstd") as writer:
            for part, last in _spans(end - start, max(1, math.ceil((end - start) / rows_of_a_group))):
                ids = range(start + part, start + last)
                table = pa.table([pa.array(ids, pa.int64()), [next(endless) for _ in ids]], schema=_SCHEMA)
                writer.write_table(table, row_group_size=rows_of_a_group)
    return folder


def whole_run(
    store: Path,
    output: Path,
    model: ModelPath,
    resources: Resources,
    decoding: DecodingOverrides | None = None,
    run_id: str = "benchmark",
) -> Manifest:
    """Summarize a store on this machine's CPUs."""
    values: dict[str, Any] = {
        "input": {"path": str(store)},
        "output": {"path": str(output), "run_id": run_id},
        "model": model.model_dump(),
        "decoding": {} if decoding is None else decoding.model_dump(),
        "resources": {**resources.model_dump(), "use_gpu": False},
    }
    return execute(plan_run(SummarizeConfig.model_validate(values)), lambda _: None).manifest


def _spans(total: int, parts: int) -> Iterator[tuple[int, int]]:
    ends = [total * part // parts for part in range(parts + 1)]
    return itertools.pairwise(ends)
