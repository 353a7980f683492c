"""Name the documents of earlier runs that are no longer in the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from pipeline import cluster
from pipeline.cluster import LIGHT_CPUS
from pipeline.data.arrow import to_texts
from pipeline.data.hashing import Keys, id_keys
from pipeline.errors import UserError, describe_error
from pipeline.io.location import Location
from pipeline.io.memory_limit import memory_limit
from pipeline.io.parquet import to_parquet
from pipeline.runs.id_rows import BATCH_ROWS
from pipeline.runs.layout import DATA_FOLDERS, REMOVED, parts_path, run_folder
from pipeline.runs.manifest import RemovedDocuments
from pipeline.runs.publish import FinishedRun

_TASK_BYTES = 2**28
_MAX_LISTED, _MAX_IN_MANIFEST = 100_000, 1000


def find_removed(
    output: Location, folder: Location, runs: Sequence[FinishedRun], missing: Sequence[ray.ObjectRef[Keys]]
) -> RemovedDocuments:
    """Name up to 100,000 removed documents by the files of earlier runs, and write them to ``gone.parquet``.

    Args:
        runs: Earlier runs, oldest first.
        missing: By partition, keys of the ids that the ledger has and the input has not.

    Raises:
        UserError: A file cannot be read or written.
    """
    counts, first_keys = zip(*ray.get([_count_keys.remote(keys) for keys in missing]), strict=True)
    if not sum(counts):
        return RemovedDocuments()
    listed = np.concatenate(first_keys)[:_MAX_LISTED]
    run_ids = [run.run_id for run in runs]
    names = _names_of_previous_run(output, run_ids, listed)
    if len(names) < len(listed):
        find_task = ray.remote(num_cpus=LIGHT_CPUS)(find_names)
        unnamed = ray.put(np.setdiff1d(listed, np.fromiter(names, np.uint64, len(names))))
        for data_folder in (output.child(parts_path(name, run_id)) for run_id in run_ids for name in DATA_FOLDERS):
            files = data_folder.files() if data_folder.exists() else []
            chunks = cluster.chunk_by_weight(files, lambda file: file.size, _TASK_BYTES)
            tasks = [find_task.remote(output.filesystem, [file.path for file in chunk], unnamed) for chunk in chunks]
            for found in ray.get(tasks):
                names |= found
    ids = sorted(names.values())
    folder.child(REMOVED).write(to_parquet(pa.table({"id": ids})))
    return RemovedDocuments(documents=sum(counts), ids=ids[:_MAX_IN_MANIFEST])


def _names_of_previous_run(output: Location, run_ids: Sequence[str], keys: Keys) -> dict[int, str]:
    """Return the ids that the latest run with removed documents has listed: most documents have been missing since then."""
    for run_id in reversed(run_ids):
        if (file := run_folder(output, run_id).child(REMOVED)).exists():
            return find_names(output.filesystem, [file.path], keys)
    return {}


@ray.remote(num_cpus=LIGHT_CPUS)
def _count_keys(keys: Keys) -> tuple[int, Keys]:
    return len(keys), keys[:_MAX_LISTED]


def find_names(filesystem: Any, paths: Sequence[str], keys: Keys) -> dict[int, str]:
    """Return the ids with these keys, by key. Ids are in the first column of each file."""
    names: dict[int, str] = {}
    for path in paths:
        try:
            with memory_limit(path), pq.ParquetFile(path, filesystem=filesystem) as file:
                for batch in file.iter_batches(BATCH_ROWS, columns=file.schema_arrow.names[:1], use_threads=False):
                    ids = [str(value) for value in to_texts(pa.chunked_array([batch.column(0)])) if value is not None]
                    batch_keys = id_keys(ids)[:, 0]
                    for row in np.flatnonzero(np.isin(batch_keys, keys)):
                        names[int(batch_keys[row])] = ids[row]
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"cannot read {path}, which an earlier run wrote: {describe_error(error)}; restore it") from None
    return names
