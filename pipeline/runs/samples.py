"""Bounded samples of a run's documents: duplicate summaries, example documents and example rejects.

Pure data. A sample holds all hash keys below a threshold (``below``). Samples can be added in any order and grouping, and the
sum is exact below its threshold. A window keeps smaller samples than a run, so that thousands of windows stay small.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

OPENING_CHARS = 600
_ID_CHARS, _DETAIL_CHARS = 120, 200
_EXAMPLES_PER_REASON = 3
_KEY_BITS, _HASH_BITS = 64, 48

Ints = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class SketchSize:
    """Size limits of a window's or a run's samples.

    Attributes:
        sample: Example documents.
        hashes: Distinct hashes of summaries.
    """

    sample: int
    hashes: int


RUN_SKETCH = SketchSize(sample=30, hashes=1024)
_WINDOW_SKETCH, _FEW_WINDOWS = SketchSize(sample=8, hashes=64), 16


def sketch_size(windows: int) -> SketchSize:
    """Return the size limits for each window of a run of at most this many windows."""
    return RUN_SKETCH if windows <= _FEW_WINDOWS else _WINDOW_SKETCH


class DuplicateSketch(BaseModel):
    """A sketch of the share of summaries that repeat another: the smallest hashes of their texts, with counts.

    Attributes:
        below: All hashes smaller than this are in ``counts``.
        counts: Summaries by hash.
    """

    below: int = 1 << _HASH_BITS
    counts: dict[int, int] = {}
    summaries: int = 0

    @classmethod
    def of(cls, summaries: Sequence[str], max_hashes: int) -> DuplicateSketch:
        """Hash N texts and keep the ``max_hashes`` smallest hashes."""
        digests = (hashlib.blake2b(text.encode(), digest_size=_HASH_BITS // 8).digest() for text in summaries)
        counts = Counter(int.from_bytes(digest, "little") for digest in digests)
        return cls(counts=counts, summaries=len(summaries))._limit(max_hashes)

    def __add__(self, other: DuplicateSketch) -> DuplicateSketch:
        if other.below < self.below:
            return other + self
        counts = self.counts
        # Late in a long run, few hashes of a window are small enough, and often none.
        if small := {value: number for value, number in other.counts.items() if value < self.below}:
            counts = add_counts(counts, small)
        total = DuplicateSketch.model_construct(below=self.below, counts=counts, summaries=self.summaries + other.summaries)
        return total._limit(RUN_SKETCH.hashes)

    def _limit(self, max_hashes: int) -> DuplicateSketch:
        if len(self.counts) <= max_hashes:
            return self
        values = sorted(self.counts)
        counts = {value: self.counts[value] for value in values[:max_hashes]}
        return DuplicateSketch.model_construct(below=values[max_hashes], counts=counts, summaries=self.summaries)

    @property
    def share(self) -> float:
        """Share of summaries whose text another summary already has, 1 - distinct / all; 0 if there are none.

        Exact while all hashes are kept. With m hashes (1024 when full) there are two estimates. The counts of the hashes
        have a standard error of about sqrt(share / m) if repeats are spread, but miss one text that is a large part of all
        summaries, since it is only one hash. The density of the hashes does not, but has an error of 1 / sqrt(m); it is used
        where it is larger by three of its errors (10 % at 1024).
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
    """The opening of a document and its summary; ``key`` is the hash key of its id."""

    key: int
    id: str
    opening: str
    summary: str


class DocumentSample(BaseModel):
    """A uniform random sample: the documents whose ids have the smallest hash keys.

    Attributes:
        below: All keys smaller than this are in ``documents``.
        documents: Sorted by key.
    """

    below: int = 1 << _KEY_BITS
    documents: list[ExampleDocument] = []

    @classmethod
    def of(
        cls, keys: Ints, ids: Sequence[str | None], openings: Sequence[str | None], summaries: Sequence[str]
    ) -> DocumentSample:
        """Sample N documents; only those with an opening are kept, which must be the ones with the smallest keys."""
        below, documents = 1 << _KEY_BITS, list[ExampleDocument]()
        for key, name, opening, summary in zip(keys.tolist(), ids, openings, summaries, strict=True):
            if opening is None:
                below = min(below, key)
            else:
                name, opening = _shorten(name or "", _ID_CHARS), _shorten(opening, OPENING_CHARS)
                summary = _shorten(summary, OPENING_CHARS)
                documents.append(ExampleDocument(key=key, id=name, opening=opening, summary=summary))
        return cls(below=below, documents=documents)._limit(RUN_SKETCH.sample)

    def __add__(self, other: DocumentSample) -> DocumentSample:
        below = min(self.below, other.below)
        documents = [document for document in (*self.documents, *other.documents) if document.key < below]
        return DocumentSample.model_construct(below=below, documents=documents)._limit(RUN_SKETCH.sample)

    def _limit(self, max_documents: int) -> DocumentSample:
        documents = sorted(self.documents, key=lambda d: (d.key, d.id, d.opening, d.summary))
        below = min(self.below, documents[max_documents].key) if len(documents) > max_documents else self.below
        kept = [document for document in documents if document.key < below]
        return DocumentSample.model_construct(below=below, documents=kept)


class ExampleReject(BaseModel):
    """A rejected document; ``id`` is None if it has none."""

    key: int
    id: str | None
    detail: str


class RejectExamples(BaseModel):
    """A few random rejects of each reason: those whose ids have the smallest hash keys."""

    examples: dict[str, list[ExampleReject]] = {}

    @classmethod
    def of(cls, keys: Ints, ids: Sequence[str | None], reasons: Sequence[str], details: Sequence[str | None]) -> RejectExamples:
        examples = dict[str, list[ExampleReject]]()
        for key, name, reason, detail in zip(keys.tolist(), ids, reasons, details, strict=True):
            name, detail = None if name is None else _shorten(name, _ID_CHARS), _shorten(detail or "", _DETAIL_CHARS)
            examples.setdefault(reason, []).append(ExampleReject(key=key, id=name, detail=detail))
        return cls(examples={reason: _first_rejects(rejects) for reason, rejects in examples.items()})

    def __add__(self, other: RejectExamples) -> RejectExamples:
        reasons = sorted(self.examples.keys() | other.examples.keys())
        joined = {reason: [*self.examples.get(reason, ()), *other.examples.get(reason, ())] for reason in reasons}
        return RejectExamples.model_construct(examples={reason: _first_rejects(rejects) for reason, rejects in joined.items()})


def smallest_keys(keys: Ints, count: int) -> Ints:
    """Return the indices of the ``count`` smallest of N keys [N], in any order."""
    return np.arange(len(keys)) if len(keys) <= count else np.argpartition(keys, count)[:count]


def _first_rejects(rejects: Iterable[ExampleReject]) -> list[ExampleReject]:
    return sorted(rejects, key=lambda r: (r.key, r.id or "", r.detail))[:_EXAMPLES_PER_REASON]


def _shorten(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 2] + " …"


def add_counts(counts: Mapping[int, int], others: Mapping[int, int]) -> dict[int, int]:
    sums = dict(counts)
    for value, number in others.items():
        sums[value] = sums.get(value, 0) + number
    return sums
