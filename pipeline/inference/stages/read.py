"""The stage that reads: units of a store to windows of token ids."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from pipeline.config.summarize import DocumentsInput
from pipeline.data.arrow import to_texts
from pipeline.data.rejects import NO_TOKEN
from pipeline.data.row_address import ROW_ADDRESS
from pipeline.data.split_reader import read_split, rebatch
from pipeline.data.splits import Split, split_from_dict
from pipeline.data.token_columns import encode_column, flatten_column
from pipeline.data.tokenizer import cached_tokenizer
from pipeline.errors import UserError
from pipeline.inference.dedup import DuplicateRows
from pipeline.inference.failure_isolation import AttemptCounter
from pipeline.inference.stages.filter import RowFilter
from pipeline.inference.stages.window import (
    BYTE_TOKENS,
    CONTENT_KEY,
    DETAIL,
    ID_KEY,
    IDS,
    OPENING,
    REASON,
    SOURCE_TOKENS,
    WindowMetadata,
    window_to_row,
)
from pipeline.io.memory_limit import memory_limit
from pipeline.runs.ledger import Ledger
from pipeline.runs.stats import OPENING_CHARS, RUN_SKETCH, smallest_keys
from pipeline.runs.timings import StageTimings
from pipeline.runs.unreadable_files import UnreadableFiles

_MAX_ATTEMPTS = 8
"""Of a unit, whose reading took the process along: nodes die, too, but not so often with the same one."""


@dataclass(frozen=True)
class ReadWindows:
    """Reads units of a store and encodes their documents: those that are sound, and that no earlier run did as they are.

    window_rows, window_tokens: most documents of a window, and most subwords of their sources together, if that is bounded.
    tokenizer_file: a SentencePiece model's bytes. max_source_tokens: subwords that the model reads of a document. salt: of
    content keys. bad_files: of the run. ledger, repeated: what is done already, and which rows repeat an id; None: nothing, and
    none. sample: documents of a window whose openings go along, at most (digest.Sample). attempts: of the run; None: are not
    counted.
    """

    filesystem: fs.FileSystem
    window_rows: int
    window_tokens: int | None
    tokenizer_file: bytes
    input: DocumentsInput
    max_source_tokens: int
    salt: bytes
    bad_files: UnreadableFiles
    ledger: Ledger | None = None
    repeated: DuplicateRows | None = None
    sample: int = RUN_SKETCH.sample
    attempts: AttemptCounter | None = None

    @property
    def columns(self) -> list[str]:
        """That are read of the input."""
        return list(dict.fromkeys([self.input.id_column, self.input.text_column, *self.input.keep_columns]))

    def screen(self) -> RowFilter:
        """For the rows of one unit."""
        return RowFilter(self.input, self.salt, self.ledger, self.repeated)

    def nothing(self) -> pa.Table:
        """No rows of a unit."""
        return pa.table({column: pa.nulls(0) for column in [*self.columns, ROW_ADDRESS]})

    def __call__(self, units: pa.Table) -> Iterator[pa.Table]:
        """Of units as rows, their windows as rows: but for those that are written already."""
        for unit in map(split_from_dict, units.to_pylist()):
            with self.attempt(unit) as stage:
                started = time.monotonic()
                for window, passport in stage.read(unit):
                    if passport.number not in unit.done:
                        yield window_to_row(window, replace(passport, timings=StageTimings(read_s=time.monotonic() - started)))
                        started = time.monotonic()

    @contextmanager
    def attempt(self, unit: Split) -> Iterator[ReadWindows]:
        """Count an attempt to read a split; yield the stage to read it with.

        Raises:
            UserError: whoever did has died, too often for it to be chance; or it takes more memory than a unit may.
        """
        if self.attempts is None:
            with memory_limit(str(unit)):
                yield self
            return
        name = f"unit {unit.number}"
        if not self.attempts.begin(name, "read", _MAX_ATTEMPTS):
            raise UserError(f"{_MAX_ATTEMPTS} processes died reading {unit}; mend it, or take it out of the input")
        with memory_limit(str(unit)):
            is_first = self.attempts.is_first(name) and not unit.done
            yield self if is_first else replace(self, bad_files=self.bad_files.seal())
        self.attempts.end(name, "read")

    def read(self, unit: Split) -> Iterator[tuple[pa.Table, WindowMetadata]]:
        """A unit's windows: documents without text, with ids and the reason of a reject. The last one may have none."""
        screen = self.screen()
        bad = self.bad_files.of(unit)
        apply = map(screen.apply, read_split(bad.readable, self.filesystem, self.columns, self.window_rows, bad.note))
        number, held = 0, None
        # Texts go before a window is whole: it holds what the model reads of them, and no more, however long they are.
        for table in rebatch(map(self._encode, apply), self.window_rows):
            for window in self._windows(table):
                if held is not None:
                    yield held, WindowMetadata(unit.number, number, False)
                    number += 1
                held = window
        if held is None:
            [held] = self._windows(self._encode(screen.apply(self.nothing())))
        yield held, WindowMetadata(unit.number, number, True, dict(screen.skipped), bad.unread)

    def _windows(self, window: pa.Table) -> Iterator[pa.Table]:
        parts = cut_by_tokens(window, self.window_tokens) if self.window_tokens and len(window) else [window]
        yield from (keep_sampled_openings(part, self.sample) for part in parts)

    def _encode(self, documents: pa.Table) -> pa.Table:
        texts, reasons, details = (
            to_texts(documents[self.input.text_column]),
            *(documents[c].to_pylist() for c in (REASON, DETAIL)),
        )
        sound = ["" if reason else str(text) for text, reason in zip(texts, reasons, strict=True)]
        tokenizer = cached_tokenizer(self.tokenizer_file)
        ids, source_tokens = encode_column(tokenizer, sound, self.max_source_tokens)
        values, ends = flatten_column(ids)
        byte_tokens = np.diff(np.concatenate(([0], np.cumsum(tokenizer.is_byte_token[values])))[ends])
        # Some texts, of a lone zero-width space say, have characters but nothing that the tokenizer keeps.
        for row, tokens in enumerate(source_tokens.tolist()):
            if not tokens and not reasons[row]:
                reasons[row], details[row] = NO_TOKEN
        # One more shows that there is more.
        openings = [None if reason else text[: OPENING_CHARS + 1] for text, reason in zip(sound, reasons, strict=True)]
        return (
            documents.select([self.input.id_column, *self.input.keep_columns, ID_KEY, CONTENT_KEY])
            .append_column(IDS, ids)
            .append_column(SOURCE_TOKENS, pa.array(source_tokens, pa.int32()))
            .append_column(BYTE_TOKENS, pa.array(byte_tokens, pa.int32()))
            .append_column(REASON, pa.array(reasons, pa.string()))
            .append_column(DETAIL, pa.array(details, pa.string()))
            .append_column(OPENING, pa.array(openings, pa.string()))
        )


def cut_by_tokens(window: pa.Table, most: int) -> Iterator[pa.Table]:
    """Parts of a window, in order, whose sources have so many subwords together at most, or which are one document."""
    ends, start = flatten_column(window[IDS])[1], 0
    while start < len(window):
        end = max(start + 1, int(np.searchsorted(ends, ends[start] + most, side="right")) - 1)
        yield window.slice(start, end - start)
        start = end


def keep_sampled_openings(window: pa.Table, most: int) -> pa.Table:
    """The window with openings of so many documents at most: those whose ids have the least keys."""
    [sound] = np.nonzero(window[REASON].is_null().to_numpy())
    chosen = np.zeros(len(window), np.bool_)
    chosen[sound[smallest_keys(window[ID_KEY].to_numpy()[sound], most)]] = True
    openings = pc.if_else(pa.array(chosen), window[OPENING], pa.scalar(None, pa.string()))
    return window.set_column(window.schema.get_field_index(OPENING), OPENING, openings)
