"""A census before a run: which rows repeat an id, and which documents of earlier runs are gone.

    units ── the ids of some, hashed ──┬── part 0: sorted, beside the ledger's ──┬── repeated rows, missing ids
                                       ├── part 1 …                              │
                                       └── …                                     ┘

24 bytes a document pass through Ray's object store, and none through the driver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from pyarrow import fs

from pipeline import cluster
from pipeline.errors import UserError
from pipeline.inference.bad_files import BadFiles
from pipeline.inference.containment import contained
from pipeline.inference.ledger import Entries, Ledger, as_file, part_numbers, parts_for
from pipeline.inference.manifest import Gone
from pipeline.inference.pool import LIGHT_CPUS
from pipeline.inference.publication import KINDS, published, run_folder
from pipeline.inference.windows import POSITION, Unit, rows_of
from pipeline.storage import Place, in_words
from pipeline.text.documents import texts_of
from pipeline.text.keys import Keys, id_keys

SEEN = np.dtype([("id", "<u8"), ("more", "<u8"), ("at", "<u8")])
_REPEAT = np.dtype([("at", "<u8"), ("first", "<u8")])
ROWS_OF_A_TASK = 500_000
ROWS_AT_A_TIME = 16_384
_BYTES_OF_A_TASK = 2**28
_MOST_NAMED, _SHOWN = 100_000, 1000
GONE = "gone.parquet"
Repeats = npt.NDArray[np.void]


@dataclass(frozen=True)
class Repeated:
    """Rows whose id another row has before them: their positions (windows.py), sorted, and its; in Ray's object store."""

    ref: ray.ObjectRef[Repeats]

    def opened(self) -> Repeats:
        """To look into, in a task."""
        return ray.get(self.ref)


@dataclass(frozen=True)
class Census:
    """Of a store. missing: keys of ids that the ledger has and the store has not."""

    repeated: Repeated
    missing: Sequence[ray.ObjectRef[Keys]]


def take_census(
    units: Sequence[Unit], filesystem: fs.FileSystem, id_column: str, ledger: Ledger, bad_files: BadFiles, is_first: bool
) -> Census:
    """Read the ids of a store, which make these units.

    Args:
        bad_files: of the run: a file whose ids cannot be read is left out of all of it. is_first: the run has not read yet.
    """
    rows = sum(unit.rows for unit in units)
    parts = max(len(ledger.parts), parts_for(rows))
    by_task = read_ids(units, filesystem, id_column, parts, bad_files, is_first)
    sifted = []
    for part in range(parts):
        # The ledger has no more parts than the store, each for several of the store's if it has fewer.
        entries = ledger.parts[part * len(ledger.parts) // parts] if ledger.parts else None
        sifted.append(_sift.options(num_returns=2).remote(part, parts, entries, *(pieces[part] for pieces in by_task)))
    return Census(Repeated(_sorted.remote(*(repeats for repeats, _ in sifted))), [missing for _, missing in sifted])


def read_ids(
    units: Sequence[Unit], filesystem: fs.FileSystem, id_column: str, parts: int, bad_files: BadFiles, is_first: bool = True
) -> list[list[ray.ObjectRef[npt.NDArray[np.void]]]]:
    """Of each task, the rows that have an id (SEEN), by part."""
    read = _ids_of.options(num_returns=parts)
    some = cluster.shared_out(units, lambda unit: unit.rows, ROWS_OF_A_TASK)
    return [cluster.returned(read.remote(units, filesystem, id_column, parts, bad_files, is_first)) for units in some]


@ray.remote(num_cpus=LIGHT_CPUS)
def _ids_of(units: Sequence[Unit], filesystem: Any, id_column: str, parts: int, bad_files: BadFiles, is_first: bool) -> Any:
    """Keys and positions of the rows that have an id, by part."""
    divided: list[list[Any]] = [[] for _ in range(parts)]
    for unit in units:
        bad = bad_files.of(unit, is_first)
        with contained(str(unit)):
            for table in rows_of(bad.readable, filesystem, [id_column], ROWS_AT_A_TIME, bad.note):
                seen = seen_in(table, id_column)
                part_of = part_numbers(seen["id"], parts)
                for part in range(parts):
                    divided[part].append(seen[part_of == part])
    whole = [np.concatenate(pieces) if pieces else np.empty(0, SEEN) for pieces in divided]
    return whole if parts > 1 else whole[0]


def seen_in(rows: pa.Table, id_column: str) -> npt.NDArray[np.void]:
    """Of rows with a ``POSITION`` those that have an id (SEEN)."""
    named = rows.filter(rows[id_column].is_valid())
    seen = np.empty(len(named), SEEN)
    keys = id_keys(str(value) for value in texts_of(named[id_column]))
    seen["id"], seen["more"], seen["at"] = keys[:, 0], keys[:, 1], named[POSITION].to_numpy()
    return seen


def find_gone(output: Place, folder: Place, until: int, census: Census) -> Gone:
    """Name the documents that are missing from the store, by the summaries and rejects of the runs up to that sequence number.

    100,000 of them at most are named, in ``gone.parquet`` in the run's folder.

    Raises:
        UserError: these cannot be read, or that cannot be written.
    """
    counts = ray.get([_count.remote(missing) for missing in census.missing])
    if not sum(counts):
        return Gone()
    wanted = np.concatenate(ray.get([_first.remote(missing) for missing in census.missing]))[:_MOST_NAMED]
    runs = [run.run_id for run in published(output) if run.sequence <= until]
    names = _named_before(output, runs, wanted)
    if len(names) < len(wanted):
        unnamed = ray.put(np.setdiff1d(wanted, np.fromiter(names, np.uint64, len(names))))
        for place in (output.child(f"{kind}/run={run}") for run in runs for kind in KINDS):
            files = place.files() if place.exists() else []
            some = cluster.shared_out(files, lambda file: file.size, _BYTES_OF_A_TASK)
            for found in ray.get([_names.remote(output.filesystem, [file.path for file in part], unnamed) for part in some]):
                names |= found
    ids = sorted(names.values())
    folder.child(GONE).write(as_file(pa.table({"id": ids})))
    return Gone(documents=sum(counts), ids=ids[:_SHOWN])


def _named_before(output: Place, runs: Sequence[str], wanted: Keys) -> dict[int, str]:
    """Those that the last run named that named any, by key: most of what is gone was gone then."""
    for run in reversed(runs):
        if (file := run_folder(output, run).child(GONE)).exists():
            return _among([file.path], output.filesystem, wanted)
    return {}


@ray.remote(num_cpus=LIGHT_CPUS)
def _count(missing: Keys) -> int:
    return len(missing)


@ray.remote(num_cpus=LIGHT_CPUS)
def _first(missing: Keys) -> Keys:
    return missing[:_MOST_NAMED]


@ray.remote(num_cpus=LIGHT_CPUS)
def _names(filesystem: Any, paths: Sequence[str], wanted: Keys) -> dict[int, str]:
    return _among(paths, filesystem, wanted)


def _among(paths: Sequence[str], filesystem: Any, wanted: Keys) -> dict[int, str]:
    """The ids, the first column of each file, whose keys are wanted, by key."""
    found: dict[int, str] = {}
    for path in paths:
        try:
            with contained(path), pq.ParquetFile(path, filesystem=filesystem) as file:
                for batch in file.iter_batches(ROWS_AT_A_TIME, columns=file.schema_arrow.names[:1], use_threads=False):
                    ids = [str(value) for value in texts_of(pa.chunked_array([batch.column(0)])) if value is not None]
                    keys = id_keys(ids)[:, 0]
                    for row in np.flatnonzero(np.isin(keys, wanted)):
                        found[int(keys[row])] = ids[row]
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"cannot read {path}, of an earlier run: {in_words(error)}") from None
    return found


@ray.remote(num_cpus=LIGHT_CPUS)
def _sift(part: int, parts: int, entries: Entries | None, *pieces: Any) -> tuple[Any, Any]:
    """Repeats, and keys of the ledger's ids that are not there."""
    seen = np.concatenate(pieces) if pieces else np.empty(0, SEEN)
    seen = seen[np.lexsort((seen["at"], seen["more"], seen["id"]))]
    again = np.zeros(len(seen), np.bool_)
    again[1:] = (seen["id"][1:] == seen["id"][:-1]) & (seen["more"][1:] == seen["more"][:-1])
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(seen))))
    repeats = np.empty(int(again.sum()), _REPEAT)
    repeats["at"], repeats["first"] = seen["at"][again], seen["at"][first[again]]
    if entries is None:
        return repeats, np.empty(0, np.uint64)
    known = entries["id"][part_numbers(entries["id"], parts) == part]
    return repeats, known[~np.isin(known, seen["id"])]


@ray.remote(num_cpus=LIGHT_CPUS)
def _sorted(*pieces: Any) -> Any:
    repeats = np.concatenate(pieces)
    return repeats[np.argsort(repeats["at"])]
