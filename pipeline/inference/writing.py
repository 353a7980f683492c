"""The stage that writes: summary ids to text, and a window to its files."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import DocumentsInput
from pipeline.inference.digest import RUN, Course, Digest, Histogram, Rejects, Repeats, Room, Sample, micronats
from pipeline.inference.effort import Effort
from pipeline.inference.ledger import ENTRY, REJECTED, Entries, as_file, segment, segment_path
from pipeline.inference.manifest import OutputFile, WindowRecord
from pipeline.inference.passport import (
    BYTE_TOKENS,
    CONTENT_KEY,
    DETAIL,
    DONE_AT,
    FINISHED,
    ID_KEY,
    OPENING,
    REASON,
    SCORE,
    SOURCE_TOKENS,
    SUMMARY_IDS,
    of_windows_row,
)
from pipeline.storage import Place
from pipeline.text.columns import flat_rows
from pipeline.text.documents import texts_of
from pipeline.text.tokenizer import cached_tokenizer

RECORD = "record"
SUMMARY_COLUMNS = ("summary", "source_tokens", "summary_tokens", "source_truncated", "finish_reason", "score")
REJECT_COLUMNS = ("reason", "detail")
DONE_AGAIN = ["null_id", "duplicate_id", "decode_error"]
"""Reasons of rejects that the next run looks at again, even if the row is as it was."""


@dataclass(frozen=True)
class WriteWindow:
    """Decodes summary ids to text and writes a window's summaries and rejects, then its segment of the ledger.

    A file is named after its window and appears whole: one that is computed twice, after a crash, is written over. A window
    is done once its segment is there.

    tokenizer_file: a SentencePiece model's bytes. output: the output folder. metadata: of each Parquet file. room: what
    the window's digest keeps.
    """

    tokenizer_file: bytes
    input: DocumentsInput
    max_source_tokens: int
    output: Place
    run_id: str
    metadata: Mapping[str, str]
    room: Room = RUN

    def __call__(self, row: pa.Table) -> pa.Table:
        """Write the window; returns one row, its WindowRecord as JSON."""
        started, unwritten_s = time.monotonic(), max(0.0, time.time() - row[DONE_AT][0].as_py())
        window, passport = of_windows_row(row)
        sound = pc.is_null(window[REASON])
        summarized, rejected = window.filter(sound), window.filter(pc.invert(sound))
        summaries = self._summaries(summarized)
        files = [
            self._write("rejects", passport.name, self._rejects(rejected)),
            self._write("summaries", passport.name, summaries),
        ]
        record = WindowRecord(
            unit=passport.unit,
            number=passport.number,
            last=passport.last,
            actor=passport.actor,
            documents=len(window),
            skipped=dict(passport.skipped),
            unread=dict(passport.unread),
            rejected=Counter(rejected[REASON].to_pylist()),
            truncated=_total(summaries["source_truncated"]),
            reached_length_limit=_total(pc.equal(summaries["finish_reason"], "length")),
            source_tokens=_total(summaries["source_tokens"]),
            summary_tokens=_total(summaries["summary_tokens"]),
            effort=passport.effort + Effort(unwritten_s=unwritten_s, write_s=time.monotonic() - started),
            files=[file for file in files if file is not None],
            digest=self._digest(summarized, summaries, rejected),
        )
        if len(window):
            content = segment(self._entries(window), record)
            self.output.child(segment_path(self.run_id, passport.name)).write_patiently(content)
        return pa.table({RECORD: [record.model_dump_json()]})

    def _summaries(self, window: pa.Table) -> pa.Table:
        values, offsets = flat_rows(window[SUMMARY_IDS])
        columns = {
            "summary": pa.array(cached_tokenizer(self.tokenizer_file).decode(values, offsets), pa.string()),
            "source_tokens": window[SOURCE_TOKENS],
            "summary_tokens": pa.array(np.diff(offsets), pa.int32()),
            "source_truncated": pc.greater(window[SOURCE_TOKENS], self.max_source_tokens),
            "finish_reason": pc.if_else(window[FINISHED], "eos", "length"),
            "score": window[SCORE],
        }
        table = window.select([self.input.id_column])
        for name, column in columns.items():
            table = table.append_column(name, column)
        for name in self.input.keep_columns:
            table = table.append_column(window.schema.field(name), window[name])
        return table

    def _rejects(self, window: pa.Table) -> pa.Table:
        return window.select([self.input.id_column, REASON, DETAIL]).rename_columns([self.input.id_column, *REJECT_COLUMNS])

    def _write(self, kind: str, name: str, table: pa.Table) -> OutputFile | None:
        if not len(table):
            return None
        path = f"{kind}/run={self.run_id}/part-{name}.parquet"
        content = as_file(table.replace_schema_metadata(dict(self.metadata)))
        self.output.child(path).write_patiently(content)
        return OutputFile(path=path, rows=len(table), bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    def _entries(self, window: pa.Table) -> Entries:
        """Of the documents that the next run need not do if they are as they are now."""
        kept = window.filter(pc.invert(pc.is_in(window[REASON], pa.array(DONE_AGAIN))))
        entries = np.empty(len(kept), ENTRY)
        entries["id"], contents = kept[ID_KEY].to_numpy(), kept[CONTENT_KEY].to_numpy()
        entries["content"] = np.where(kept[REASON].is_valid().to_numpy(), contents | REJECTED, contents & ~REJECTED)
        return entries

    def _digest(self, summarized: pa.Table, summaries: pa.Table, rejected: pa.Table) -> Digest:
        texts = summaries["summary"].to_pylist()
        source_tokens = summarized[SOURCE_TOKENS].to_numpy()
        score_micronats, unscored = micronats(summarized[SCORE].to_numpy())
        return Digest(
            course=Course.of(time.time(), len(summarized) + len(rejected)),
            sources=Histogram.of(source_tokens),
            summaries=Histogram.of(summaries["summary_tokens"].to_numpy()),
            read_tokens=int(np.minimum(source_tokens, self.max_source_tokens).sum()),
            byte_tokens=_total(summarized[BYTE_TOKENS]),
            score_micronats=score_micronats,
            unscored=unscored,
            empty=sum(not text.strip() for text in texts),
            repeats=Repeats.of(texts, self.room.hashes),
            sample=Sample.of(summarized[ID_KEY].to_numpy(), self._ids(summarized), summarized[OPENING].to_pylist(), texts),
            rejects=Rejects.of(
                rejected[ID_KEY].to_numpy(), self._ids(rejected), rejected[REASON].to_pylist(), rejected[DETAIL].to_pylist()
            ),
        )

    def _ids(self, table: pa.Table) -> list[str | None]:
        return [None if name is None else str(name) for name in texts_of(table[self.input.id_column])]


def _total(column: pa.ChunkedArray) -> int | float:
    return pc.sum(column).as_py() or 0
