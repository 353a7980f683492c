"""The texts that a benchmark is run on."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
from pydantic import Field

from pipeline.config import SAMPLE, Positive
from pipeline.errors import UserError
from pipeline.sections import JobConfig, Section
from pipeline.storage import from_here, in_words


def told(config: JobConfig) -> dict[str, Any]:
    """A benchmark's options, for its figures; paths from where the repository is."""
    options = config.model_dump(mode="json")
    for section in ("input", "model"):
        options[section]["path"] = from_here(options[section]["path"])
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
            raise UserError(f"cannot read {self.text_column!r} of {self.path}: {in_words(error)}; set --input.path") from None
        if not len(column):
            raise UserError(f"{self.path} holds no document; set --input.path")
        return [text or "-" for text in column.to_pylist()]
