"""Putting a stream of rows into random order, whatever its length, in bounded memory.

Knows tables of strings and a folder for scratch; nothing of what the strings are. Rows that do not fit in memory are dealt
at random to files, each of which is then mixed in the same way. All orders are equally likely, and the same seed and rows
give the same order.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import pyarrow as pa

R = TypeVar("R", bound=NamedTuple)

_MEMORY_CHARS = 64_000_000
_FILES = 64


class ExternalShuffle(Generic[R]):
    """Takes rows one by one, then gives them back mixed.

    Args:
        row: the class of the rows, named tuples of strings.
        folder: for scratch files; it is made when it is needed, and left empty.
        seed: of the order.
        held_chars: characters held in memory, at most, but for the last row.
    """

    def __init__(self, row: type[R], folder: Path, seed: int | random.Random = 1, held_chars: int = _MEMORY_CHARS) -> None:
        self._row, self._folder, self._limit = row, folder, held_chars
        self._rng = seed if isinstance(seed, random.Random) else random.Random(seed)
        self._schema = pa.schema([(name, pa.large_string()) for name in row._fields])
        self._held: list[R] = []
        self._chars = 0
        self._files: dict[int, Path] = {}

    def add(self, row: R) -> None:
        """Take a row. Raises OSError if the scratch folder cannot be written."""
        self._held.append(row)
        self._chars += sum(map(len, row))
        if self._chars > self._limit and len(self._held) > 1:
            self._deal()

    def drain(self) -> Iterator[R]:
        """Give all rows back. Raises OSError if the scratch folder cannot be used."""
        if not self._files:
            self._rng.shuffle(self._held)
            yield from self._held
            return
        self._deal()
        for number, file in sorted(self._files.items()):
            part = ExternalShuffle(self._row, self._folder / f"{number}.parts", self._rng, self._limit)
            for row in self._read(file):
                part.add(row)
            file.unlink()
            yield from part.drain()

    def _deal(self) -> None:
        """Append each held row to a file drawn for it."""
        dealt: dict[int, list[R]] = {}
        for row in self._held:
            dealt.setdefault(self._rng.randrange(_FILES), []).append(row)
        self._folder.mkdir(parents=True, exist_ok=True)
        for number, rows in dealt.items():
            file = self._files.setdefault(number, self._folder / str(number))
            # An Arrow stream ends where it says so, and the next one begins: no file stays open in between.
            with file.open("ab") as sink, pa.ipc.new_stream(sink, self._schema) as writer:
                writer.write_table(pa.table(_columns(rows), schema=self._schema))
        self._held, self._chars = [], 0

    def _read(self, file: Path) -> Iterator[R]:
        with file.open("rb") as source:
            while source.peek(1):
                for batch in pa.ipc.open_stream(source):
                    yield from map(self._row._make, zip(*(column.to_pylist() for column in batch.columns), strict=True))


def _columns(rows: Sequence[R]) -> list[Sequence[str]]:
    return list(zip(*rows, strict=True))
