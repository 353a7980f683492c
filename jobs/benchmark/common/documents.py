"""Documents that benchmarks read: real texts, repeated in as many rows and files as a benchmark needs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from pydantic import Field

from pipeline.config.base import JobConfig, Section
from pipeline.config.types import SAMPLE, Positive
from pipeline.errors import UserError, describe_error
from pipeline.io.location import relative_to_cwd

ROWS_PER_GROUP = 10_000


class BenchmarkTexts(Section):
    """Documents to use."""

    path: str = Field(str(SAMPLE / "documents"), description="Parquet file or folder on this machine")
    text_column: str = Field("text", description="column of texts")
    rows: Positive = Field(1024, description="number of documents, from the first one on")

    def read(self) -> list[str]:
        """Read up to ``rows`` texts. Raises UserError if the file or the column cannot be read, or there is no text."""
        try:
            column = pads.dataset(self.path).head(self.rows, columns=[self.text_column])[self.text_column]
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"cannot read {self.text_column!r} of {self.path}: {describe_error(error)}; set --input.path"
            ) from None
        if not len(column):
            raise UserError(f"{self.path} has no documents; set --input.path")
        return [text or "-" for text in column.to_pylist()]


class RepeatedTexts(BenchmarkTexts):
    """Documents to summarize. A run repeats the documents, each time with a new id."""

    rows: Positive = Field(2000, description="number of different documents")


def config_as_json(config: JobConfig) -> dict[str, Any]:
    """Return the options of a benchmark, with paths relative to the working directory."""
    options = config.model_dump(mode="json")
    for section in ("input", "model"):
        options[section]["path"] = relative_to_cwd(options[section]["path"])
    return options


def write_rows(
    folder: Path, columns: Mapping[str, Sequence[str]], rows: int, files: int, rows_per_group: int = ROWS_PER_GROUP
) -> Path:
    """Write files of equal size whose rows have unique ids and repeat the columns; one row group at a time is in memory."""
    folder.mkdir(parents=True)
    schema = pa.schema([("id", pa.int64()), *((name, pa.string()) for name in columns)])
    repeated = [itertools.cycle(texts) for texts in columns.values()]
    for number, (start, end) in enumerate(even_ranges(rows, files)):
        with pq.ParquetWriter(folder / f"{number:05}.parquet", schema, compression="zstd") as writer:
            for group_start, group_end in even_ranges(end - start, max(1, math.ceil((end - start) / rows_per_group))):
                ids = range(start + group_start, start + group_end)
                texts = (list(itertools.islice(column, len(ids))) for column in repeated)
                writer.write_table(pa.table([pa.array(ids), *texts], schema=schema), row_group_size=rows_per_group)
    return folder


def even_ranges(total: int, parts: int) -> Iterator[tuple[int, int]]:
    """Divide ``range(total)`` into parts of nearly equal size; yield the start and end of each."""
    return itertools.pairwise(total * part // parts for part in range(parts + 1))
