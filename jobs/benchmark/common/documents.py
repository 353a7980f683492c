"""The texts that a benchmark is run on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from pydantic import Field

from pipeline.config.base import JobConfig, Section
from pipeline.config.model import DecodingOverrides, ModelPath
from pipeline.config.summarize import Resources, SummarizeConfig
from pipeline.config.types import SAMPLE, Positive
from pipeline.errors import UserError, describe_error
from pipeline.inference.plan import plan_run
from pipeline.inference.run import execute
from pipeline.io.location import relative_to_cwd
from pipeline.runs.manifest import Manifest


def config_as_json(config: JobConfig) -> dict[str, Any]:
    """A benchmark's options, for its figures; paths from where the repository is."""
    options = config.model_dump(mode="json")
    for section in ("input", "model"):
        options[section]["path"] = relative_to_cwd(options[section]["path"])
    return options


class BenchmarkTexts(Section):
    """Documents to take, the first ones."""

    path: str = Field(str(SAMPLE / "documents"), description="Parquet files of documents, on this machine")
    text_column: str = Field("text", description="column of their texts")
    rows: Positive = Field(1024, description="documents")

    def read(self) -> list[str]:
        """As many texts as there are, up to ``rows``. Raises UserError if there is none, or the column is not there."""
        try:
            column = pads.dataset(self.path).head(self.rows, columns=[self.text_column])[self.text_column]
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"cannot read {self.text_column!r} of {self.path}: {describe_error(error)}; set --input.path"
            ) from None
        if not len(column):
            raise UserError(f"{self.path} holds no document; set --input.path")
        return [text or "-" for text in column.to_pylist()]


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
