"""Write stage: decode summary ids to text and write the files of a window."""

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
from pipeline.runs.samples import RUN_SKETCH, DocumentSample, DuplicateSketch, RejectExamples, SketchSize
from pipeline.runs.stats import Histogram, RunStats, Throughput, to_micronats
from pipeline.runs.timings import StageTimings

RECORD = "record"
"""The column of the stage's output: a WindowRecord as JSON."""


@dataclass(frozen=True)
class WriteWindow:
    """Writes the summaries and rejects of a window, then its ledger segment, which marks the window as done.

    Files are named after their window and appear whole, so a window that is computed again after a crash replaces its files.

    Attributes:
        tokenizer_file: Content of a SentencePiece model.
        metadata: Metadata of each Parquet file.
        sketch: Size limits of the window's samples.
    """

    tokenizer_file: bytes
    input: DocumentsInput
    max_text_tokens: int
    output: Location
    run_id: str
    metadata: Mapping[str, str]
    sketch: SketchSize = RUN_SKETCH

    def __call__(self, row: pa.Table) -> pa.Table:
        started, unwritten_s = time.monotonic(), max(0.0, time.time() - row[DECODED_AT][0].as_py())
        window, metadata = row_to_window(row)
        is_summarized = pc.is_null(window[REASON])
        summarized, rejected = window.filter(is_summarized), window.filter(pc.invert(is_summarized))
        summaries = self._summaries(summarized)
        files = [
            self._write(REJECTS, metadata.name, self._rejects(rejected)),
            self._write(SUMMARIES, metadata.name, summaries),
        ]
        record = WindowRecord(
            split=metadata.split,
            number=metadata.number,
            last=metadata.last,
            actor=metadata.actor,
            documents=len(window),
            skipped=dict(metadata.skipped),
            unread=dict(metadata.unread),
            rejected=Counter(rejected[REASON].to_pylist()),
            truncated=_sum(summaries["source_truncated"]),
            reached_length_limit=_sum(pc.equal(summaries["finish_reason"], "length")),
            source_tokens=_sum(summaries["source_tokens"]),
            summary_tokens=_sum(summaries["summary_tokens"]),
            timings=metadata.timings + StageTimings(unwritten_s=unwritten_s, write_s=time.monotonic() - started),
            files=[file for file in files if file is not None],
            stats=self._stats(summarized, summaries, rejected),
        )
        if len(window):
            content = encode_segment(_entries(window), record)
            self.output.child(part_path(LEDGER, self.run_id, metadata.name)).write_with_retry(content)
        return pa.table({RECORD: [record.model_dump_json()]})

    def _summaries(self, window: pa.Table) -> pa.Table:
        values, offsets = flatten_column(window[SUMMARY_IDS])
        columns = {
            "summary": pa.array(cached_tokenizer(self.tokenizer_file).decode(values, offsets), pa.string()),
            "source_tokens": window[SOURCE_TOKENS],
            "summary_tokens": pa.array(np.diff(offsets), pa.int32()),
            "source_truncated": pc.greater(window[SOURCE_TOKENS], self.max_text_tokens),
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

    def _write(self, folder: str, name: str, table: pa.Table) -> OutputFile | None:
        if not len(table):
            return None
        path = part_path(folder, self.run_id, name)
        content = to_parquet(table.replace_schema_metadata(dict(self.metadata)))
        self.output.child(path).write_with_retry(content)
        return OutputFile(path=path, rows=len(table), bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    def _stats(self, summarized: pa.Table, summaries: pa.Table, rejected: pa.Table) -> RunStats:
        texts = summaries["summary"].to_pylist()
        source_tokens = summarized[SOURCE_TOKENS].to_numpy()
        score_micronats, unscored = to_micronats(summarized[SCORE].to_numpy())
        return RunStats(
            throughput=Throughput.of(time.time(), len(summarized) + len(rejected)),
            sources=Histogram.of(source_tokens),
            summaries=Histogram.of(summaries["summary_tokens"].to_numpy()),
            read_tokens=int(np.minimum(source_tokens, self.max_text_tokens).sum()),
            byte_tokens=_sum(summarized[BYTE_TOKENS]),
            score_micronats=score_micronats,
            unscored=unscored,
            empty=sum(not text.strip() for text in texts),
            duplicates=DuplicateSketch.of(texts, self.sketch.hashes),
            sample=DocumentSample.of(
                summarized[ID_KEY].to_numpy(), self._ids(summarized), summarized[OPENING].to_pylist(), texts
            ),
            rejects=RejectExamples.of(
                rejected[ID_KEY].to_numpy(), self._ids(rejected), rejected[REASON].to_pylist(), rejected[DETAIL].to_pylist()
            ),
        )

    def _ids(self, table: pa.Table) -> list[str | None]:
        return [None if value is None else str(value) for value in to_texts(table[self.input.id_column])]


def _entries(window: pa.Table) -> Entries:
    """Return ledger entries of the documents that the next run skips if they are unchanged."""
    kept = window.filter(pc.invert(pc.is_in(window[REASON], pa.array(RETRYABLE))))
    entries = np.empty(len(kept), ENTRY)
    entries["id"], contents = kept[ID_KEY].to_numpy(), kept[CONTENT_KEY].to_numpy()
    entries["content"] = np.where(kept[REASON].is_valid().to_numpy(), contents | REJECTED, contents & ~REJECTED)
    return entries


def _sum(column: pa.ChunkedArray) -> int | float:
    return pc.sum(column).as_py() or 0
