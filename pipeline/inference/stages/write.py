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

from pipeline.config.summarize import DocumentsInput
from pipeline.data.arrow import to_texts
from pipeline.data.rejects import RETRYABLE
from pipeline.data.token_columns import flatten_column
from pipeline.data.tokenizer import cached_tokenizer
from pipeline.inference.stages.window import (
    BYTE_TOKENS,
    CONTENT_KEY,
    DECODED_AT,
    DETAIL,
    FINISHED,
    ID_KEY,
    OPENING,
    REASON,
    SCORE,
    SOURCE_TOKENS,
    SUMMARY_IDS,
    row_to_window,
)
from pipeline.io.location import Location
from pipeline.io.parquet import to_parquet
from pipeline.runs.layout import LEDGER, REJECT_COLUMNS, REJECTS, SUMMARIES, part_path
from pipeline.runs.ledger import ENTRY, REJECTED, Entries, encode_segment
from pipeline.runs.manifest import OutputFile, WindowRecord
from pipeline.runs.stats import (
    RUN_SKETCH,
    DocumentSample,
    DuplicateSketch,
    Histogram,
    RejectExamples,
    RunStats,
    SketchSize,
    Throughput,
    to_micronats,
)
from pipeline.runs.timings import StageTimings

RECORD = "record"


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
    output: Location
    run_id: str
    metadata: Mapping[str, str]
    room: SketchSize = RUN_SKETCH

    def __call__(self, row: pa.Table) -> pa.Table:
        """Write the window; returns one row, its WindowRecord as JSON."""
        started, unwritten_s = time.monotonic(), max(0.0, time.time() - row[DECODED_AT][0].as_py())
        window, passport = row_to_window(row)
        sound = pc.is_null(window[REASON])
        summarized, rejected = window.filter(sound), window.filter(pc.invert(sound))
        summaries = self._summaries(summarized)
        files = [
            self._write(REJECTS, passport.name, self._rejects(rejected)),
            self._write(SUMMARIES, passport.name, summaries),
        ]
        record = WindowRecord(
            split=passport.split,
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
            timings=passport.timings + StageTimings(unwritten_s=unwritten_s, write_s=time.monotonic() - started),
            files=[file for file in files if file is not None],
            stats=self._digest(summarized, summaries, rejected),
        )
        if len(window):
            content = encode_segment(self._entries(window), record)
            self.output.child(part_path(LEDGER, self.run_id, passport.name)).write_with_retry(content)
        return pa.table({RECORD: [record.model_dump_json()]})

    def _summaries(self, window: pa.Table) -> pa.Table:
        values, offsets = flatten_column(window[SUMMARY_IDS])
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
        path = part_path(kind, self.run_id, name)
        content = to_parquet(table.replace_schema_metadata(dict(self.metadata)))
        self.output.child(path).write_with_retry(content)
        return OutputFile(path=path, rows=len(table), bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    def _entries(self, window: pa.Table) -> Entries:
        """Of the documents that the next run need not do if they are as they are now."""
        kept = window.filter(pc.invert(pc.is_in(window[REASON], pa.array(RETRYABLE))))
        entries = np.empty(len(kept), ENTRY)
        entries["id"], contents = kept[ID_KEY].to_numpy(), kept[CONTENT_KEY].to_numpy()
        entries["content"] = np.where(kept[REASON].is_valid().to_numpy(), contents | REJECTED, contents & ~REJECTED)
        return entries

    def _digest(self, summarized: pa.Table, summaries: pa.Table, rejected: pa.Table) -> RunStats:
        texts = summaries["summary"].to_pylist()
        source_tokens = summarized[SOURCE_TOKENS].to_numpy()
        score_micronats, unscored = to_micronats(summarized[SCORE].to_numpy())
        return RunStats(
            throughput=Throughput.of(time.time(), len(summarized) + len(rejected)),
            sources=Histogram.of(source_tokens),
            summaries=Histogram.of(summaries["summary_tokens"].to_numpy()),
            read_tokens=int(np.minimum(source_tokens, self.max_source_tokens).sum()),
            byte_tokens=_total(summarized[BYTE_TOKENS]),
            score_micronats=score_micronats,
            unscored=unscored,
            empty=sum(not text.strip() for text in texts),
            duplicates=DuplicateSketch.of(texts, self.room.hashes),
            sample=DocumentSample.of(
                summarized[ID_KEY].to_numpy(), self._ids(summarized), summarized[OPENING].to_pylist(), texts
            ),
            rejects=RejectExamples.of(
                rejected[ID_KEY].to_numpy(), self._ids(rejected), rejected[REASON].to_pylist(), rejected[DETAIL].to_pylist()
            ),
        )

    def _ids(self, table: pa.Table) -> list[str | None]:
        return [None if name is None else str(name) for name in to_texts(table[self.input.id_column])]


def _total(column: pa.ChunkedArray) -> int | float:
    return pc.sum(column).as_py() or 0
