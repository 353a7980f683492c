"""Train an encoder-decoder on text pairs, and summarize large sets of documents with it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pipeline.version import __version__

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["__version__", "read_summaries"]


def read_summaries(output: str) -> pa.RecordBatchReader:
    """Stream the latest summary of each document from all finished runs of an output folder.

    Rows come newest run first. A document that was later rejected or removed from the input keeps its last summary. The
    columns are those of all runs, with null where a run lacks one, plus ``run``, the run id. Memory grows by 16 bytes for each
    document of every run except the oldest.

    Args:
        output: the ``--output.path`` of the runs: a path or any URI that pyarrow opens.

    Raises:
        UserError: no run has finished, the types of a column have no common type, or a file cannot be read. Reading the
            batches may also raise the last one.
    """
    # Imported here, so that importing other parts of this package does not load Arrow.
    reader: pa.RecordBatchReader = importlib.import_module("pipeline.runs.summaries").read_summaries(output)
    return reader
