"""What a report says of documents beside their counts, in a few KB however many they are.

    windows ── a digest each ── merged, in any order ── the digest of the run

Pure data. Digests merge by ``+``: in any order and grouping they come to the same. A window's keeps less than a run's may, so
that thousands of them stay small; what a window cuts off is known (``below``), and what is left is exact as far as it goes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from pipeline.runs.stored import Stored

OPENING_CHARS = 600
_ID_CHARS, _DETAIL_CHARS = 120, 200
_EXAMPLES_OF_A_REASON = 3
_MOST_SLOTS = 256
_KEY_BITS, _HASH_BITS = 64, 48
_MICRO = 1_000_000

EDGES = np.unique(np.concatenate([np.arange(32), np.ceil(2 ** (np.arange(5 * 4, 31 * 4 + 1) / 4)).astype(np.int64)]))
"""Where the bins of lengths start (subwords): each length below 32 has one of its own, and then an octave has four."""

Ints = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class SketchSize:
    """How much of a window, or a run, is kept: documents of the sample, and hashes of summaries."""

    sample: int
    hashes: int


RUN_SKETCH = SketchSize(sample=30, hashes=1024)
_WINDOW_SKETCH, _FEW_WINDOWS = SketchSize(sample=8, hashes=64), 16


def sketch_size(windows: int) -> SketchSize:
    """What each window of a run keeps that has so many at most: of few windows, each as much as the run."""
    return RUN_SKETCH if windows <= _FEW_WINDOWS else _WINDOW_SKETCH


class Histogram(BaseModel):
    """Lengths of documents. counts: documents by where their bin starts (EDGES). total: subwords of all, exactly."""

    counts: dict[int, int] = {}
    total: int = 0

    @classmethod
    def of(cls, lengths: Ints) -> Histogram:
        """Of N lengths [N], each 0 or more."""
        bins, documents = np.unique(np.searchsorted(EDGES, lengths, side="right") - 1, return_counts=True)
        counts = dict(zip(EDGES[bins].tolist(), documents.tolist(), strict=True))
        return cls(counts=counts, total=int(lengths.sum()))

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram.model_construct(counts=_add_counts(self.counts, other.counts), total=self.total + other.total)

    @property
    def documents(self) -> int:
        """How many lengths there are."""
        return sum(self.counts.values())

    def quantile(self, share: float) -> int:
        """The start of the bin that holds this share's length: exact below 32, else too small by a fifth at most; 0 of none."""
        left = share * self.documents
        for start in sorted(self.counts):
            left -= self.counts[start]
            if left <= 0:
                return start
        return 0


class Throughput(BaseModel):
    """Documents written over time. A slot is width_s seconds; documents: by the slot's number, from 1970 on, in UTC.

    The width is the least power of 2 with which all slots, empty ones too, are 256 at most.
    """

    windows: int = 0
    width_s: int = 1
    documents: dict[int, int] = {}

    @classmethod
    def of(cls, at: float, documents: int) -> Throughput:
        """Of one window that was written at this time (s since 1970)."""
        return cls(windows=1, documents={int(at): documents}) if documents else cls()

    def __add__(self, other: Throughput) -> Throughput:
        width_s = max(self.width_s, other.width_s)
        slots = _add_counts(self.widened(width_s).documents, other.widened(width_s).documents)
        both = Throughput.model_construct(windows=self.windows + other.windows, width_s=width_s, documents=slots)
        while both.span > _MOST_SLOTS:
            both = both.widened(2 * both.width_s)
        return both

    @property
    def span(self) -> int:
        """Slots from the first to the last, empty ones included."""
        return max(self.documents) - min(self.documents) + 1 if self.documents else 0

    def widened(self, width_s: int) -> Throughput:
        """In slots of this width, a multiple of the present one."""
        if width_s == self.width_s:
            return self
        slots = Counter[int]()
        for number, documents in self.documents.items():
            slots[number * self.width_s // width_s] += documents
        return Throughput.model_construct(windows=self.windows, width_s=width_s, documents=dict(slots))


class DuplicateSketch(BaseModel):
    """A sketch of how many summaries say the same, by the least hashes of their texts, each with how often it came.

    counts: of every hash under ``below``, exactly. summaries: all, of whatever hash.
    """

    below: int = 1 << _HASH_BITS
    counts: dict[int, int] = {}
    summaries: int = 0

    @classmethod
    def of(cls, summaries: Sequence[str], most: int) -> DuplicateSketch:
        """Of N texts, with so many hashes at most."""
        hashes = (hashlib.blake2b(text.encode(), digest_size=_HASH_BITS // 8).digest() for text in summaries)
        counts = Counter(int.from_bytes(digest, "little") for digest in hashes)
        return cls(counts=counts, summaries=len(summaries))._limit(most)

    def __add__(self, other: DuplicateSketch) -> DuplicateSketch:
        if other.below < self.below:
            return other + self
        counts = self.counts
        # Few of a window's are below what a long run still keeps, and often none is.
        if new := {value: number for value, number in other.counts.items() if value < self.below}:
            counts = _add_counts(counts, new)
        both = DuplicateSketch.model_construct(below=self.below, counts=counts, summaries=self.summaries + other.summaries)
        return both._limit(RUN_SKETCH.hashes)

    def _limit(self, most: int) -> DuplicateSketch:
        if len(self.counts) <= most:
            return self
        values = sorted(self.counts)
        kept = {value: self.counts[value] for value in values[:most]}
        return DuplicateSketch.model_construct(below=values[most], counts=kept, summaries=self.summaries)

    @property
    def share(self) -> float:
        """Of summaries, those that say word for word what another one says already: 1 - distinct / all. 0 of none.

        Exact while all hashes are kept. Else, of m kept hashes, m / 1024 full, two estimates: by how often these came, which
        has a standard error of about sqrt(share / m) where repeats are spread, but misses a text that is a large part of all,
        which is only one hash; and by how dense the hashes are, with an error of 1 / sqrt(m), which does not. The second counts
        where it is the larger by three of its errors: 10 % at 1024.
        """
        if not self.summaries or not self.counts:
            return 0.0
        kept, filled = len(self.counts), self.below / (1 << _HASH_BITS)
        by_counts = 1 - kept / sum(self.counts.values())
        distinct_share = kept / filled / self.summaries
        if filled < 1 and 1 - distinct_share > by_counts + 3 * distinct_share / kept**0.5:
            return 1 - distinct_share
        return by_counts


class ExampleDocument(BaseModel):
    """A document's opening beside its summary, for people to look at. key: of its id (passport.ID_KEY)."""

    key: int
    id: str
    opening: str
    summary: str


class DocumentSample(BaseModel):
    """The documents whose ids have the least keys, which are hashes: a random sample, the same in whatever order they come.

    documents: all that have a key under ``below``, sorted; every one was as likely to be among them.
    """

    below: int = 1 << _KEY_BITS
    documents: list[ExampleDocument] = []

    @classmethod
    def of(
        cls, keys: Ints, ids: Sequence[str | None], openings: Sequence[str | None], summaries: Sequence[str]
    ) -> DocumentSample:
        """Of N documents, of which those that have an opening are kept; these must have the least keys."""
        below, documents = 1 << _KEY_BITS, list[ExampleDocument]()
        for key, name, opening, summary in zip(keys.tolist(), ids, openings, summaries, strict=True):
            if opening is None:
                below = min(below, key)
            else:
                shown = _shorten(opening, OPENING_CHARS), _shorten(summary, OPENING_CHARS)
                documents.append(
                    ExampleDocument(key=key, id=_shorten(name or "", _ID_CHARS), opening=shown[0], summary=shown[1])
                )
        return cls(below=below, documents=documents)._limit(RUN_SKETCH.sample)

    def __add__(self, other: DocumentSample) -> DocumentSample:
        below = min(self.below, other.below)
        both = [document for document in (*self.documents, *other.documents) if document.key < below]
        return DocumentSample.model_construct(below=below, documents=both)._limit(RUN_SKETCH.sample)

    def _limit(self, most: int) -> DocumentSample:
        documents = sorted(self.documents, key=lambda d: (d.key, d.id, d.opening, d.summary))
        below = min(self.below, documents[most].key) if len(documents) > most else self.below
        kept = [document for document in documents if document.key < below]
        return DocumentSample.model_construct(below=below, documents=kept)


class ExampleReject(BaseModel):
    """A rejected document, for people to look at. id: None if it has none."""

    key: int
    id: str | None
    detail: str


class RejectExamples(BaseModel):
    """A few rejected documents of each reason, at random: those whose ids have the least keys."""

    examples: dict[str, list[ExampleReject]] = {}

    @classmethod
    def of(cls, keys: Ints, ids: Sequence[str | None], reasons: Sequence[str], details: Sequence[str | None]) -> RejectExamples:
        """Of N rejected documents."""
        examples = dict[str, list[ExampleReject]]()
        for key, name, reason, detail in zip(keys.tolist(), ids, reasons, details, strict=True):
            shown = None if name is None else _shorten(name, _ID_CHARS)
            examples.setdefault(reason, []).append(
                ExampleReject(key=key, id=shown, detail=_shorten(detail or "", _DETAIL_CHARS))
            )
        return cls(examples={reason: _smallest_rejects(some) for reason, some in examples.items()})

    def __add__(self, other: RejectExamples) -> RejectExamples:
        reasons = sorted(self.examples.keys() | other.examples.keys())
        together = {reason: [*self.examples.get(reason, ()), *other.examples.get(reason, ())] for reason in reasons}
        return RejectExamples.model_construct(examples={reason: _smallest_rejects(some) for reason, some in together.items()})


class RunStats(Stored):
    """Of a window's documents, or of a run's.

    sources, summaries: subwords of the whole documents that were summarized, and of their summaries. read_tokens: of what the
    model read of them; byte_tokens: those among these that are bytes of a character that has no subword, or unknown.
    score_micronats: the sum of scores, in whole millionths, so that sums are exact; unscored: summaries whose score is not
    finite, and not in it. empty: summaries without a word.
    """

    throughput: Throughput = Field(Throughput(), alias="course")
    sources: Histogram = Histogram()
    summaries: Histogram = Histogram()
    read_tokens: int = 0
    byte_tokens: int = 0
    score_micronats: int = 0
    unscored: int = 0
    empty: int = 0
    duplicates: DuplicateSketch = Field(DuplicateSketch(), alias="repeats")
    sample: DocumentSample = DocumentSample()
    rejects: RejectExamples = RejectExamples()

    def __add__(self, other: RunStats) -> RunStats:
        # All is sound already: to look at it again would take most of the time.
        return RunStats.model_construct(
            **{name: getattr(self, name) + getattr(other, name) for name in type(self).model_fields}
        )


def to_micronats(scores: npt.NDArray[np.floating[Any]]) -> tuple[int, int]:
    """The sum of N scores [N] (nats) in millionths, and how many of them are not finite and left out."""
    finite = np.isfinite(scores)
    return int(np.rint(scores[finite].astype(np.float64) * _MICRO).sum()), int((~finite).sum())


def mean_nats(sum_of_micronats: int, documents: int) -> float | None:
    """The mean score of so many documents; None of none."""
    return sum_of_micronats / _MICRO / documents if documents else None


def smallest_keys(keys: Ints, most: int) -> Ints:
    """Which of N keys [N] are the least, so many at most: their positions, in no order."""
    return np.arange(len(keys)) if len(keys) <= most else np.argpartition(keys, most)[:most]


def _smallest_rejects(rejects: Iterable[ExampleReject]) -> list[ExampleReject]:
    return sorted(rejects, key=lambda r: (r.key, r.id or "", r.detail))[:_EXAMPLES_OF_A_REASON]


def _shorten(text: str, chars: int) -> str:
    return text if len(text) <= chars else text[: chars - 2] + " …"


def _add_counts(some: Mapping[int, int], more: Mapping[int, int]) -> dict[int, int]:
    sums = dict(some)
    for at, number in more.items():
        sums[at] = sums.get(at, 0) + number
    return sums
