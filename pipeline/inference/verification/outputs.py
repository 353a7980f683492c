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

from pipeline.inference.census import ROWS_AT_A_TIME, SEEN
from pipeline.inference.containment import contained
from pipeline.inference.ledger import part_numbers
from pipeline.inference.manifest import OutputFile
from pipeline.inference.pool import LIGHT_CPUS
from pipeline.inference.verification.matching import REPEAT
from pipeline.inference.verification.verdict import Finding
from pipeline.storage import Place, in_words
from pipeline.text.documents import ROW_BITS, texts_of
from pipeline.text.keys import id_keys

_BYTES_AT_A_TIME = 4 * 2**20


@dataclass
class Read:
    """What came of reading files. sound: files that are what the manifest says; rows, bytes: of these.

    reasons: of all rejects. unnamed: rejects without an id.
    """

    findings: list[Finding] = field(default_factory=list)
    sound: int = 0
    rows: int = 0
    bytes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    unnamed: int = 0

    def __iadd__(self, other: Read) -> Read:
        for name in Read.__annotations__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


@dataclass(frozen=True)
class Expected:
    """Of every file of a run: the name of its first column, and what its metadata says."""

    id_column: str
    metadata: dict[str, str]


@ray.remote(num_cpus=LIGHT_CPUS)
def read_outputs(output: Place, files: Sequence[tuple[int, OutputFile]], expected: Expected, parts: int) -> tuple[Any, ...]:
    """What came of reading them, and then the rows that have an id (census.SEEN), by part."""
    read = Read()
    divided: list[list[Any]] = [[np.empty(0, SEEN)] for _ in range(parts)]
    for number, file in files:
        with contained(file.path):
            seen = np.concatenate([np.empty(0, SEEN), *_look(output, number, file, expected, read)])
        part_of = part_numbers(seen["id"], parts)
        for part in range(parts):
            divided[part].append(seen[part_of == part])
    return read, *(np.concatenate(pieces) for pieces in divided)


def _look(output: Place, number: int, file: OutputFile, expected: Expected, read: Read) -> Iterator[Any]:
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
                is_rejects = file.path.startswith("rejects/")
                wanted = [expected.id_column, *(["reason"] if is_rejects else [])]
                if missing := [name for name in wanted if name not in schema.names]:
                    faults.append(f"has no column {missing[0]!r}")
                else:
                    yield from _rows(parquet, number, wanted, is_rejects, faults, read)
    except (OSError, pa.ArrowException) as error:
        faults.append(f"cannot be read as Parquet: {in_words(error)}")
    if not faults:
        read.sound, read.rows, read.bytes = read.sound + 1, read.rows + file.rows, read.bytes + file.bytes
    read.findings += [Finding(file.path, fault) for fault in faults]


def _rows(
    parquet: pq.ParquetFile, number: int, columns: list[str], is_rejects: bool, faults: list[str], read: Read
) -> Iterator[Any]:
    start, without = np.uint64(number) << np.uint64(ROW_BITS), 0
    for batch in parquet.iter_batches(ROWS_AT_A_TIME, columns=columns, use_threads=False):
        table = pa.Table.from_batches([batch])
        ids = table[columns[0]]
        named = ids.is_valid().to_numpy()
        positions = start + np.arange(len(table), dtype=np.uint64)
        start += np.uint64(len(table))
        if is_rejects:
            reasons = table["reason"].to_pylist()
            read.reasons.update(str(reason) for reason in reasons)
            read.unnamed += int((~named).sum())
            without += sum(not has and why != "null_id" for has, why in zip(named, reasons, strict=True))
            positions |= np.array([REPEAT if why == "duplicate_id" else 0 for why in reasons], np.uint64)
        else:
            without += int((~named).sum())
        seen = np.empty(int(named.sum()), SEEN)
        keys = id_keys(str(value) for value in texts_of(ids.filter(pa.array(named))))
        seen["id"], seen["more"], seen["at"] = keys[:, 0], keys[:, 1], positions[named]
        yield seen
    if without:
        faults.append(f"has {without:,} rows without an id")
