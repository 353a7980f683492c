"""Train an encoder-decoder on your own text pairs, and summarize document stores with it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

__version__ = "0.1.0"


def read_summaries(output: str) -> pa.RecordBatchReader:
    """The latest summary of each document, over all published runs of a folder that ``jobs.summarize`` wrote.

    Rows stream, of the newest run first; a document that has since gone from the input, or was rejected, keeps its last
    summary. Columns are those of all runs, by name, null where a run had no such column, and ``run``, its id. Memory grows by
    16 bytes for each document of all runs but the oldest, no matter how long texts are.

    Args:
        output: the ``--output.path`` of the runs, a path or any URI that pyarrow opens.

    Raises:
        UserError: no run is finished there; a column's types have no type in common that holds all of their values; or,
            also while rows stream, a file cannot be read.
    """
    # Not at the top: who imports this package for another part of it need not load Arrow.
    reader: pa.RecordBatchReader = importlib.import_module("pipeline.inference.summaries").read_summaries(output)
    return reader
