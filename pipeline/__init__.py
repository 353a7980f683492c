"""Train an encoder-decoder on your own text pairs, and summarize whole document stores with it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pipeline.version import __version__

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["__version__", "read_summaries"]


def read_summaries(output: str) -> pa.RecordBatchReader:
    """Stream the latest summary of each document over all finished runs of an output folder.

    Rows come newest run first. A document that was rejected or removed from the input since keeps its last summary. Columns
    are those of all runs, matched by name and null where a run lacks one, and ``run``, the id of the run. Memory grows by 16
    bytes for each document of every run but the oldest; the length of texts does not matter.

    Args:
        output: the ``--output.path`` of the runs, a path or any URI that pyarrow opens.

    Returns:
        A reader of record batches.

    Raises:
        UserError: no run has finished there, the types of a column have no common type that holds all of their values, or a
            file cannot be read; the last also while rows stream.
    """
    # Imported here, so that importing another part of this package does not load Arrow.
    reader: pa.RecordBatchReader = importlib.import_module("pipeline.runs.summaries").read_summaries(output)
    return reader
