"""Shuffle a stream of rows of any length in bounded memory.

Rows that do not fit in memory are dealt at random to files, each of which is then shuffled in the same way. All orders are
equally likely; the same seed and rows give the same order. Rows are named tuples of strings and lists of strings.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar, get_type_hints

import pyarrow as pa

R = TypeVar("R", bound=NamedTuple)

_FILES = 64
_ARROW_TYPES = {str: pa.large_string(), list[str]: pa.list_(pa.large_string())}


class ExternalShuffle(Generic[R]):
    """Take rows one by one, then return them in random order.

    Args:
        row_type: class of the rows, a named tuple of ``str`` and ``list[str]``.
        folder: folder for scratch files, created if needed and left empty.
        max_chars: characters held in memory. A single longer row is held too.
        seed: seed of the order.
    """

    def __init__(self, row_type: type[R], folder: Path, max_chars: int, seed: int | random.Random = 1) -> None:
        self._row_type, self._folder, self._max_chars = row_type, folder, max_chars
        self._rng = seed if isinstance(seed, random.Random) else random.Random(seed)
        self._schema = pa.schema([(name, _ARROW_TYPES[kind]) for name, kind in get_type_hints(row_type).items()])
        self._buffer: list[R] = []
        self._files: dict[int, Path] = {}
        self.buffered_chars = 0

    def add(self, row: R) -> None:
        """Add a row. Raises OSError if the scratch folder cannot be written."""
        self._buffer.append(row)
        self.buffered_chars += sum(len(value) if isinstance(value, str) else sum(map(len, value)) for value in row)
        if self.buffered_chars > self._max_chars and len(self._buffer) > 1:
            self._spill()

    def drain(self) -> Iterator[R]:
        """Yield all rows. Raises OSError if the scratch folder cannot be used."""
        if not self._files:
            self._rng.shuffle(self._buffer)
            yield from self._buffer
            return
        self._spill()
        for number, file in sorted(self._files.items()):
            part = ExternalShuffle(self._row_type, self._folder / f"{number}.parts", self._max_chars, self._rng)
            for row in self._read(file):
                part.add(row)
            file.unlink()
            yield from part.drain()

    def _spill(self) -> None:
        """Append each buffered row to a random file."""
        parts: dict[int, list[R]] = {}
        for row in self._buffer:
            parts.setdefault(self._rng.randrange(_FILES), []).append(row)
        self._folder.mkdir(parents=True, exist_ok=True)
        for number, rows in parts.items():
            file = self._files.setdefault(number, self._folder / str(number))
            # One Arrow stream after another: each marks its end, so no file stays open.
            with file.open("ab") as sink, pa.ipc.new_stream(sink, self._schema) as writer:
                writer.write_table(pa.table(list(zip(*rows, strict=True)), schema=self._schema))
        self._buffer, self.buffered_chars = [], 0

    def _read(self, file: Path) -> Iterator[R]:
        with file.open("rb") as source:
            while source.peek(1):
                for batch in pa.ipc.open_stream(source):
                    yield from map(self._row_type._make, zip(*(column.to_pylist() for column in batch.columns), strict=True))
