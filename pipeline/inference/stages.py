"""The stages of a run, as Ray Data calls them, a window of documents at a time.

    units ── ReadWindows ──> ids ── SummarizeWindow ──> summary ids ── WriteWindow ──> a record of the window

Text stays out of the tables between them but for the openings of a few examples. Rejected rows travel along without
ids, so that a window is written as a whole: it is one row of Ray Data's (columns.as_row), which cuts and joins blocks of rows
as it sees fit. Which stage runs where, and how often at a time, is run.py's business.

The stage in the middle is in summarizer.py: nothing here needs torch, whose import would take longer than many a task does.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from pipeline.config import DocumentsInput
from pipeline.inference.effort import Effort
from pipeline.inference.manifest import Example, OutputFile, WindowRecord
from pipeline.inference.windows import Unit, unit_of_row, windows_of
from pipeline.storage import Place
from pipeline.text.columns import as_row, encode_column, flat_rows, from_row
from pipeline.text.documents import NO_TOKEN, rejection, texts_of
from pipeline.text.tokenizer import cached_tokenizer

# Columns between the stages; a user's own have no such prefix, which run.py checks.
PRIVATE = "nightshift."
IDS, _SOURCE_TOKENS, _OPENING = PRIVATE + "ids", PRIVATE + "source_tokens", PRIVATE + "opening"
_REASON, _DETAIL = PRIVATE + "reason", PRIVATE + "detail"
SUMMARY_IDS, SCORE, FINISHED = (PRIVATE + name for name in ("summary_ids", "score", "finished"))
# Columns of a window's row that are not of its documents.
NAME, EFFORT, ACTOR, DONE_AT = (PRIVATE + name for name in ("name", "effort", "actor", "done_at"))
RECORD = "record"

SUMMARY_COLUMNS = ("summary", "source_tokens", "summary_tokens", "source_truncated", "finish_reason", "score")
REJECT_COLUMNS = ("reason", "detail")
EXAMPLES, _OPENING_CHARS = 5, 300


@dataclass(frozen=True)
class Passport:
    """What travels with a window: its name, what it has taken so far, and the actor that decoded it, by Ray's id."""

    name: str
    effort: Effort = field(default_factory=Effort)
    actor: str = ""


def windows_row(window: pa.Table, passport: Passport) -> pa.Table:
    """A window as it travels."""
    columns = {
        NAME: passport.name,
        EFFORT: passport.effort.model_dump_json(),
        ACTOR: passport.actor,
        DONE_AT: time.time(),
    }
    row = as_row(window)
    for column, value in columns.items():
        row = row.append_column(column, pa.array([value]))
    return row


def of_windows_row(row: pa.Table) -> tuple[pa.Table, Passport]:
    """The window, and what travels with it."""
    name, effort, actor = (row[column][0].as_py() for column in (NAME, EFFORT, ACTOR))
    window = from_row(row.drop_columns([NAME, EFFORT, ACTOR, DONE_AT]))
    return window, Passport(name, Effort.model_validate_json(effort), actor)


@dataclass(frozen=True)
class ReadWindows:
    """Reads units of a store and encodes their documents, those that are sound.

    window_rows, window_tokens: most documents of a window, and most subwords of their sources together, if that is bounded.
    tokenizer_file: a SentencePiece model's bytes. max_source_tokens: subwords that the model reads of a document.
    """

    filesystem: fs.FileSystem
    window_rows: int
    window_tokens: int | None
    tokenizer_file: bytes
    input: DocumentsInput
    max_source_tokens: int

    def __call__(self, units: pa.Table) -> Iterator[pa.Table]:
        """Of units as rows, their windows as rows, each with its name."""
        for unit in map(unit_of_row, units.to_pylist()):
            started = time.monotonic()
            for number, window in enumerate(self.read(unit)):
                effort = Effort(read_s=time.monotonic() - started)
                yield windows_row(window, Passport(f"{unit.number:06}-{number:04}", effort))
                started = time.monotonic()

    def read(self, unit: Unit) -> Iterator[pa.Table]:
        """A unit's windows: documents without text, with ids and the reason of a reject."""
        columns = list(dict.fromkeys([self.input.id_column, self.input.text_column, *self.input.keep_columns]))
        for documents in windows_of(unit, self.filesystem, columns, self.window_rows):
            window = self._encode(documents)
            yield from [window] if self.window_tokens is None else cut_by_tokens(window, self.window_tokens)

    def _encode(self, documents: pa.Table) -> pa.Table:
        texts = texts_of(documents[self.input.text_column])
        has_id = documents[self.input.id_column].is_valid().to_pylist()
        rejections = [rejection(valid, text, self.input.max_chars) for valid, text in zip(has_id, texts, strict=True)]
        sound = ["" if reason else str(text) for text, (reason, _) in zip(texts, rejections, strict=True)]
        ids, source_tokens = encode_column(cached_tokenizer(self.tokenizer_file), sound, self.max_source_tokens)
        # Some texts, of a lone zero-width space say, have characters but nothing that the tokenizer keeps.
        reasons, details = zip(
            *(
                NO_TOKEN if not reason and not tokens else (reason, detail)
                for (reason, detail), tokens in zip(rejections, source_tokens.tolist(), strict=True)
            ),
            strict=True,
        )
        shown = set([row for row, reason in enumerate(reasons) if reason is None][:EXAMPLES])
        openings = [text[:_OPENING_CHARS] if row in shown else None for row, text in enumerate(sound)]
        return (
            documents.select([self.input.id_column, *self.input.keep_columns])
            .append_column(IDS, ids)
            .append_column(_SOURCE_TOKENS, pa.array(source_tokens, pa.int32()))
            .append_column(_REASON, pa.array(reasons, pa.string()))
            .append_column(_DETAIL, pa.array(details, pa.string()))
            .append_column(_OPENING, pa.array(openings, pa.string()))
        )


def cut_by_tokens(window: pa.Table, most: int) -> Iterator[pa.Table]:
    """Parts of a window, in order, whose sources have so many subwords together at most, or which are one document."""
    ends, start = flat_rows(window[IDS])[1], 0
    while start < len(window):
        end = max(start + 1, int(np.searchsorted(ends, ends[start] + most, side="right")) - 1)
        yield window.slice(start, end - start)
        start = end


@dataclass(frozen=True)
class WriteWindow:
    """Decodes summary ids to text and writes a window's summaries and rejects.

    A file is named after its window and appears whole: one that Ray computes twice, after a crash, is written over.

    tokenizer_file: a SentencePiece model's bytes. output: the output folder. metadata: of each Parquet file.
    """

    tokenizer_file: bytes
    input: DocumentsInput
    max_source_tokens: int
    output: Place
    run_id: str
    metadata: Mapping[str, str]

    def __call__(self, row: pa.Table) -> pa.Table:
        """Write the window; returns one row, its WindowRecord as JSON."""
        started, unwritten_s = time.monotonic(), max(0.0, time.time() - row[DONE_AT][0].as_py())
        window, passport = of_windows_row(row)
        sound = pc.is_null(window[_REASON])
        summarized, rejected = window.filter(sound), window.filter(pc.invert(sound))
        summaries = self._summaries(summarized)
        files = [
            self._write("summaries", passport.name, summaries),
            self._write("rejects", passport.name, self._rejects(rejected)),
        ]
        record = WindowRecord(
            actor=passport.actor,
            documents=len(window),
            rejected=Counter(rejected[_REASON].to_pylist()),
            truncated=_total(summaries["source_truncated"]),
            reached_length_limit=_total(pc.equal(summaries["finish_reason"], "length")),
            source_tokens=_total(summaries["source_tokens"]),
            summary_tokens=_total(summaries["summary_tokens"]),
            effort=passport.effort + Effort(unwritten_s=unwritten_s, write_s=time.monotonic() - started),
            files=[file for file in files if file is not None],
            examples=self._examples(summarized, summaries),
        )
        return pa.table({RECORD: [record.model_dump_json()]})

    def _summaries(self, window: pa.Table) -> pa.Table:
        values, offsets = flat_rows(window[SUMMARY_IDS])
        columns = {
            "summary": pa.array(cached_tokenizer(self.tokenizer_file).decode(values, offsets), pa.string()),
            "source_tokens": window[_SOURCE_TOKENS],
            "summary_tokens": pa.array(np.diff(offsets), pa.int32()),
            "source_truncated": pc.greater(window[_SOURCE_TOKENS], self.max_source_tokens),
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
        return window.select([self.input.id_column, _REASON, _DETAIL]).rename_columns([self.input.id_column, *REJECT_COLUMNS])

    def _write(self, kind: str, name: str, table: pa.Table) -> OutputFile | None:
        if not len(table):
            return None
        path = f"{kind}/run={self.run_id}/part-{name}.parquet"
        table = table.replace_schema_metadata(dict(self.metadata))
        file = pa.BufferOutputStream()
        pq.write_table(table, file, compression="zstd")
        content = file.getvalue()
        self.output.child(path).write_patiently(content)
        return OutputFile(path=path, rows=len(table), bytes=len(content))

    def _examples(self, window: pa.Table, summaries: pa.Table) -> list[Example]:
        shown = pc.is_valid(window[_OPENING])
        return [
            Example(id=str(identity), opening=opening, summary=summary)
            for identity, opening, summary in zip(
                texts_of(window[self.input.id_column].filter(shown)),
                window[_OPENING].filter(shown).to_pylist(),
                summaries["summary"].filter(shown).to_pylist(),
                strict=True,
            )
        ]


def _total(column: pa.ChunkedArray) -> int | float:
    return pc.sum(column).as_py() or 0
