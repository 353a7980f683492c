"""Documents of earlier runs that the input no longer has."""

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
from pipeline.inference.dedup import IdCheck
from pipeline.io.location import Location
from pipeline.io.memory_limit import memory_limit
from pipeline.io.parquet import to_parquet
from pipeline.runs.id_rows import BATCH_ROWS
from pipeline.runs.layout import DATA_FOLDERS, REMOVED, parts_path, run_folder
from pipeline.runs.manifest import RemovedDocuments
from pipeline.runs.publish import FinishedRun

_TASK_BYTES = 2**28


_MAX_LISTED, _MAX_IN_MANIFEST = 100_000, 1000


def find_removed(output: Location, folder: Location, runs: Sequence[FinishedRun], census: IdCheck) -> RemovedDocuments:
    """Name the documents that are missing from the store, by the summaries and rejects of earlier runs.

    100,000 of them at most are named, in ``gone.parquet`` in the run's folder.

    Raises:
        UserError: these cannot be read, or that cannot be written.
    """
    counts = ray.get([_count.remote(missing) for missing in census.missing])
    if not sum(counts):
        return RemovedDocuments()
    wanted = np.concatenate(ray.get([_first.remote(missing) for missing in census.missing]))[:_MAX_LISTED]
    names = _ids_listed_before(output, [run.run_id for run in runs], wanted)
    if len(names) < len(wanted):
        unnamed = ray.put(np.setdiff1d(wanted, np.fromiter(names, np.uint64, len(names))))
        for place in (output.child(parts_path(kind, run.run_id)) for run in runs for kind in DATA_FOLDERS):
            files = place.files() if place.exists() else []
            some = cluster.chunk_by_weight(files, lambda file: file.size, _TASK_BYTES)
            for found in ray.get(
                [_find_ids_task.remote(output.filesystem, [file.path for file in part], unnamed) for part in some]
            ):
                names |= found
    ids = sorted(names.values())
    folder.child(REMOVED).write(to_parquet(pa.table({"id": ids})))
    return RemovedDocuments(documents=sum(counts), ids=ids[:_MAX_IN_MANIFEST])


def _ids_listed_before(output: Location, runs: Sequence[str], wanted: Keys) -> dict[int, str]:
    """Those that the last run named that named any, by key: most of what is gone was gone then."""
    for run in reversed(runs):
        if (file := run_folder(output, run).child(REMOVED)).exists():
            return _find_ids([file.path], output.filesystem, wanted)
    return {}


@ray.remote(num_cpus=LIGHT_CPUS)
def _count(missing: Keys) -> int:
    return len(missing)


@ray.remote(num_cpus=LIGHT_CPUS)
def _first(missing: Keys) -> Keys:
    return missing[:_MAX_LISTED]


@ray.remote(num_cpus=LIGHT_CPUS)
def _find_ids_task(filesystem: Any, paths: Sequence[str], wanted: Keys) -> dict[int, str]:
    return _find_ids(paths, filesystem, wanted)


def _find_ids(paths: Sequence[str], filesystem: Any, wanted: Keys) -> dict[int, str]:
    """The ids, the first column of each file, whose keys are wanted, by key."""
    found: dict[int, str] = {}
    for path in paths:
        try:
            with memory_limit(path), pq.ParquetFile(path, filesystem=filesystem) as file:
                for batch in file.iter_batches(BATCH_ROWS, columns=file.schema_arrow.names[:1], use_threads=False):
                    ids = [str(value) for value in to_texts(pa.chunked_array([batch.column(0)])) if value is not None]
                    keys = id_keys(ids)[:, 0]
                    for row in np.flatnonzero(np.isin(keys, wanted)):
                        found[int(keys[row])] = ids[row]
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"cannot read {path}, of an earlier run: {describe_error(error)}") from None
    return found
