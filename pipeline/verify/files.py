"""The files of a run, read again: whether each is what the manifest says, and the ids in it.

A file passes through memory a piece at a time, whatever its size.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from pipeline.cluster import LIGHT_CPUS
from pipeline.data.arrow import to_texts
from pipeline.data.hashing import id_keys
from pipeline.data.partition import partition_rows
from pipeline.data.rejects import RejectReason
from pipeline.data.row_address import ROW_BITS
from pipeline.errors import describe_error
from pipeline.io.location import Location
from pipeline.io.memory_limit import memory_limit
from pipeline.runs.id_rows import BATCH_ROWS, ID_ROW
from pipeline.runs.layout import REJECTS
from pipeline.runs.manifest import OutputFile
from pipeline.verify.findings import Finding
from pipeline.verify.match import DUPLICATE_BIT

_BYTES_AT_A_TIME = 4 * 2**20


@dataclass
class FileTotals:
    """What came of reading files. sound: files that are what the manifest says; rows, bytes: of these.

    reasons: of all rejects. unnamed: rejects without an id.
    """

    findings: list[Finding] = field(default_factory=list)
    sound: int = 0
    rows: int = 0
    bytes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    unnamed: int = 0

    def __iadd__(self, other: FileTotals) -> FileTotals:
        for name in FileTotals.__annotations__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


@dataclass(frozen=True)
class ExpectedFiles:
    """Of every file of a run: the name of its first column, and what its metadata says."""

    id_column: str
    metadata: dict[str, str]


@ray.remote(num_cpus=LIGHT_CPUS)
def read_outputs(
    output: Location, files: Sequence[tuple[int, OutputFile]], expected: ExpectedFiles, parts: int
) -> tuple[Any, ...]:
    """What came of reading them, and then the rows that have an id (census.SEEN), by part."""
    read = FileTotals()
    divided: list[list[Any]] = [[np.empty(0, ID_ROW)] for _ in range(parts)]
    for number, file in files:
        with memory_limit(file.path):
            seen = np.concatenate([np.empty(0, ID_ROW), *_check_file(output, number, file, expected, read)])
        for pieces, rows in zip(divided, partition_rows(seen, parts), strict=True):
            pieces.append(rows)
    return read, *(np.concatenate(pieces) for pieces in divided)


def _check_file(output: Location, number: int, file: OutputFile, expected: ExpectedFiles, read: FileTotals) -> Iterator[Any]:
    """Check one file; its rows that have an id. Those of one that is spoilt too, as far as it can be read."""
    faults: list[str] = []
    try:
        with output.filesystem.open_input_file(output.child(file.path).path) as opened:
            size = opened.size()
            sha256 = hashlib.sha256()
            while piece := opened.read(_BYTES_AT_A_TIME):
                sha256.update(piece)
            if size != file.bytes:
                faults.append(f"has {size:,} bytes where the manifest says {file.bytes:,}")
            if sha256.hexdigest() != file.sha256:
                faults.append("has another sha256 than the manifest says: its content was changed")
            opened.seek(0)
            with pq.ParquetFile(opened) as parquet:
                rows, schema = parquet.metadata.num_rows, parquet.schema_arrow
                if rows != file.rows:
                    faults.append(f"has {rows:,} rows where the manifest says {file.rows:,}")
                told = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
                if any(told.get(key) != value for key, value in expected.metadata.items()):
                    faults.append("does not say that it is of this run and this model")
                is_rejects = file.path.startswith(f"{REJECTS}/")
                wanted = [expected.id_column, *(["reason"] if is_rejects else [])]
                if missing := [name for name in wanted if name not in schema.names]:
                    faults.append(f"has no column {missing[0]!r}")
                else:
                    yield from _id_rows(parquet, number, wanted, is_rejects, faults, read)
    except (OSError, pa.ArrowException) as error:
        faults.append(f"cannot be read as Parquet: {describe_error(error)}")
    if not faults:
        read.sound, read.rows, read.bytes = read.sound + 1, read.rows + file.rows, read.bytes + file.bytes
    read.findings += [Finding(file.path, fault) for fault in faults]


def _id_rows(
    parquet: pq.ParquetFile, number: int, columns: list[str], is_rejects: bool, faults: list[str], read: FileTotals
) -> Iterator[Any]:
    start, without = np.uint64(number) << np.uint64(ROW_BITS), 0
    for batch in parquet.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
        table = pa.Table.from_batches([batch])
        ids = table[columns[0]]
        named = ids.is_valid().to_numpy()
        positions = start + np.arange(len(table), dtype=np.uint64)
        start += np.uint64(len(table))
        if is_rejects:
            reasons = table["reason"].to_pylist()
            read.reasons.update(str(reason) for reason in reasons)
            read.unnamed += int((~named).sum())
            without += sum(not has and why != RejectReason.NULL_ID for has, why in zip(named, reasons, strict=True))
            positions |= np.array([DUPLICATE_BIT if why == RejectReason.DUPLICATE_ID else 0 for why in reasons], np.uint64)
        else:
            without += int((~named).sum())
        seen = np.empty(int(named.sum()), ID_ROW)
        keys = id_keys(str(value) for value in to_texts(ids.filter(pa.array(named))))
        seen["id"], seen["more"], seen["at"] = keys[:, 0], keys[:, 1], positions[named]
        yield seen
    if without:
        faults.append(f"has {without:,} rows without an id")
