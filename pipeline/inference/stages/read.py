"""Read stage: turn splits of an input into windows of token ids."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from pyarrow import fs

from pipeline.config.summarize import DocumentsInput
from pipeline.data.arrow import to_texts
from pipeline.data.partition import KeyedRows
from pipeline.data.rejects import NO_TOKEN
from pipeline.data.row_address import ROW_ADDRESS
from pipeline.data.split_reader import read_split, rebatch
from pipeline.data.splits import Split, split_from_dict
from pipeline.data.token_columns import encode_column, flatten_column
from pipeline.data.tokenizer import cached_tokenizer
from pipeline.errors import UserError
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
from pipeline.runs.samples import OPENING_CHARS, RUN_SKETCH, smallest_keys
from pipeline.runs.timings import StageTimings
from pipeline.runs.unreadable_files import UnreadableFiles

_MAX_ATTEMPTS = 8
"""Attempts to read a split whose readers die. Nodes die too, but not so often with the same split."""


@dataclass(frozen=True)
class ReadWindows:
    """Reads splits, drops documents that are already processed, and tokenizes the others.

    Attributes:
        window_rows: Maximum documents of a window.
        window_tokens: Maximum source tokens of a window; None for no limit.
        tokenizer_file: Content of a SentencePiece model.
        max_source_tokens: Tokens that the model reads of a document, the style token included.
        salt: Salt of content keys (see RowFilter).
        ledger: Documents that earlier runs processed, if any.
        duplicates: Rows that repeat an id (``IdCheck.duplicates``), if they are known.
        sample: Maximum openings that a window keeps for examples.
        attempts: Counts attempts; None to count none.
        style_token: Id of the token that comes before each text; -1 for none.
    """

    filesystem: fs.FileSystem
    window_rows: int
    window_tokens: int | None
    tokenizer_file: bytes
    input: DocumentsInput
    max_source_tokens: int
    salt: bytes
    unreadable: UnreadableFiles
    ledger: Ledger | None = None
    duplicates: ray.ObjectRef[KeyedRows] | None = None
    sample: int = RUN_SKETCH.sample
    attempts: AttemptCounter | None = None
    style_token: int = -1

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys([self.input.id_column, self.input.text_column, *self.input.keep_columns]))

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Yield the windows of splits, except those that are already written; both travel as rows."""
        for split in map(split_from_dict, rows.to_pylist()):
            with self.attempt(split) as stage:
                started = time.monotonic()
                for window, metadata in stage.read(split):
                    if metadata.number not in split.done:
                        timings = StageTimings(read_s=time.monotonic() - started)
                        yield window_to_row(window, replace(metadata, timings=timings))
                        started = time.monotonic()

    @contextmanager
    def attempt(self, split: Split) -> Iterator[ReadWindows]:
        """Count an attempt to read a split, and limit the memory of its block.

        Yields:
            The stage to read it with: if the split may have been read before in this run, one that skips no further rows.

        Raises:
            UserError: Processes keep dying with the split, or it takes too much memory.
        """
        if self.attempts is None:
            with memory_limit(str(split)):
                yield self
            return
        name = f"split {split.number}"
        if not self.attempts.begin(name, "read", _MAX_ATTEMPTS):
            raise UserError(f"{_MAX_ATTEMPTS} processes died reading {split}; repair the file, or remove it from the input")
        with memory_limit(str(split)):
            is_first = self.attempts.is_first(name) and not split.done
            yield self if is_first else replace(self, unreadable=self.unreadable.seal())
        self.attempts.end(name, "read")

    def read(self, split: Split) -> Iterator[tuple[pa.Table, WindowMetadata]]:
        """Yield the windows of a split: documents with token ids and reject reasons, without texts. The last may be empty."""
        row_filter = RowFilter(self.input, self.salt, self.ledger, self.duplicates)
        unreadable = self.unreadable.of(split)
        tables = read_split(unreadable.readable, self.filesystem, self.columns, self.window_rows, unreadable.note)
        # Tokenize before rows are collected to a window, so that it never holds whole texts, however long they are.
        tokenized = map(self._tokenize, map(row_filter.apply, tables))
        number, previous = 0, None
        for table in rebatch(tokenized, self.window_rows):
            for window in self._windows(table):
                if previous is not None:
                    yield previous, WindowMetadata(split.number, number, False)
                    number += 1
                previous = window
        if previous is None:
            no_rows = pa.table({column: pa.nulls(0) for column in [*self.columns, ROW_ADDRESS]})
            [previous] = self._windows(self._tokenize(row_filter.apply(no_rows)))
        yield previous, WindowMetadata(split.number, number, True, dict(row_filter.skipped), unreadable.unread)

    def _windows(self, table: pa.Table) -> Iterator[pa.Table]:
        parts = cut_by_tokens(table, self.window_tokens) if self.window_tokens and len(table) else [table]
        yield from (keep_sampled_openings(part, self.sample) for part in parts)

    def _tokenize(self, documents: pa.Table) -> pa.Table:
        reasons, details = documents[REASON].to_pylist(), documents[DETAIL].to_pylist()
        texts = [
            "" if reason else str(text)
            for text, reason in zip(to_texts(documents[self.input.text_column]), reasons, strict=True)
        ]
        tokenizer = cached_tokenizer(self.tokenizer_file)
        prefixes = np.full(len(texts), self.style_token)
        ids, source_tokens = encode_column(tokenizer, texts, self.max_source_tokens, prefixes)
        values, offsets = flatten_column(ids)
        byte_tokens = np.diff(np.concatenate(([0], np.cumsum(tokenizer.is_byte_token[values])))[offsets])
        # Some texts, such as a zero-width space, have characters but no tokens.
        for row, tokens in enumerate(source_tokens.tolist()):
            if not tokens and not reasons[row]:
                reasons[row], details[row] = NO_TOKEN
        # One character more shows that the opening is not the whole text.
        openings = [None if reason else text[: OPENING_CHARS + 1] for text, reason in zip(texts, reasons, strict=True)]
        return (
            documents.select([self.input.id_column, *self.input.keep_columns, ID_KEY, CONTENT_KEY])
            .append_column(IDS, ids)
            .append_column(SOURCE_TOKENS, pa.array(source_tokens, pa.int32()))
            .append_column(BYTE_TOKENS, pa.array(byte_tokens, pa.int32()))
            .append_column(REASON, pa.array(reasons, pa.string()))
            .append_column(DETAIL, pa.array(details, pa.string()))
            .append_column(OPENING, pa.array(openings, pa.string()))
        )


def cut_by_tokens(window: pa.Table, max_tokens: int) -> Iterator[pa.Table]:
    """Cut a window, in order, into parts of at most ``max_tokens`` source tokens; a longer document is a part of its own."""
    offsets, start = flatten_column(window[IDS])[1], 0
    while start < len(window):
        end = max(start + 1, int(np.searchsorted(offsets, offsets[start] + max_tokens, side="right")) - 1)
        yield window.slice(start, end - start)
        start = end


def keep_sampled_openings(window: pa.Table, count: int) -> pa.Table:
    """Return the window with the openings of at most ``count`` documents: those whose ids have the smallest keys."""
    [summarized] = np.nonzero(window[REASON].is_null().to_numpy())
    is_sampled = np.zeros(len(window), np.bool_)
    is_sampled[summarized[smallest_keys(window[ID_KEY].to_numpy()[summarized], count)]] = True
    openings = pc.if_else(pa.array(is_sampled), window[OPENING], pa.scalar(None, pa.string()))
    return window.set_column(window.schema.get_field_index(OPENING), OPENING, openings)
