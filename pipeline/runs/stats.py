"""Statistics of a run's documents for reports, a few KB however many documents there are.

    windows ──> one RunStats each ──> added, in any order ──> RunStats of the run

Pure data; ``+`` is associative and commutative.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from pipeline.runs.samples import DocumentSample, DuplicateSketch, Ints, RejectExamples, add_counts
from pipeline.runs.stored import Stored

_MAX_SLOTS = 256
_MICRO = 1_000_000

EDGES = np.unique(np.concatenate([np.arange(32), np.ceil(2 ** (np.arange(5 * 4, 31 * 4 + 1) / 4)).astype(np.int64)]))
"""Lower edges of the histogram bins (tokens): one bin per length below 32, then four bins per octave."""


class Histogram(BaseModel):
    """Lengths of documents.

    Attributes:
        counts: Documents by the lower edge of their bin.
        total: Sum of all lengths.
    """

    counts: dict[int, int] = {}
    total: int = 0

    @classmethod
    def of(cls, lengths: Ints) -> Histogram:
        """Count N lengths [N], each 0 or more."""
        bins, documents = np.unique(np.searchsorted(EDGES, lengths, side="right") - 1, return_counts=True)
        counts = dict(zip(EDGES[bins].tolist(), documents.tolist(), strict=True))
        return cls(counts=counts, total=int(lengths.sum()))

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram.model_construct(counts=add_counts(self.counts, other.counts), total=self.total + other.total)

    @property
    def documents(self) -> int:
        return sum(self.counts.values())

    def quantile(self, share: float) -> int:
        """Return the lower edge of the bin with this quantile, at most a fifth below the exact value; 0 if empty."""
        remaining = share * self.documents
        for edge in sorted(self.counts):
            remaining -= self.counts[edge]
            if remaining <= 0:
                return edge
        return 0


class Throughput(BaseModel):
    """Documents written over time, in at most 256 slots.

    Attributes:
        width_s: Width of a slot, the smallest sufficient power of 2.
        documents: Documents by slot number, which is the Unix time divided by ``width_s``.
    """

    windows: int = 0
    width_s: int = 1
    documents: dict[int, int] = {}

    @classmethod
    def of(cls, time_s: float, documents: int) -> Throughput:
        """Count the documents of one window, written at a Unix time."""
        return cls(windows=1, documents={int(time_s): documents}) if documents else cls()

    def __add__(self, other: Throughput) -> Throughput:
        width_s = max(self.width_s, other.width_s)
        slots = add_counts(self.with_width(width_s).documents, other.with_width(width_s).documents)
        total = Throughput.model_construct(windows=self.windows + other.windows, width_s=width_s, documents=slots)
        while total.slot_count > _MAX_SLOTS:
            total = total.with_width(2 * total.width_s)
        return total

    @property
    def slot_count(self) -> int:
        """Number of slots from the first to the last, including empty ones."""
        return max(self.documents) - min(self.documents) + 1 if self.documents else 0

    def with_width(self, width_s: int) -> Throughput:
        """Return the same counts in wider slots; ``width_s`` must be a multiple of the present width."""
        if width_s == self.width_s:
            return self
        slots = Counter[int]()
        for number, documents in self.documents.items():
            slots[number * self.width_s // width_s] += documents
        return Throughput.model_construct(windows=self.windows, width_s=width_s, documents=dict(slots))


class RunStats(Stored):
    """Statistics of a window's or a run's documents."""

    throughput: Throughput = Field(Throughput(), alias="course")
    sources: Histogram = Histogram()
    """Tokens of the summarized documents before truncation."""
    summaries: Histogram = Histogram()
    read_tokens: int = 0
    """Tokens that the model read."""
    byte_tokens: int = 0
    """Tokens read that are unknown, or a byte of a character outside the vocabulary."""
    score_micronats: int = 0
    """Sum of the finite scores, an integer so that sums are exact."""
    unscored: int = 0
    """Summaries whose score is not finite."""
    empty: int = 0
    """Summaries without a word."""
    duplicates: DuplicateSketch = Field(DuplicateSketch(), alias="repeats")
    sample: DocumentSample = DocumentSample()
    rejects: RejectExamples = RejectExamples()

    def __add__(self, other: RunStats) -> RunStats:
        # Both are valid; validating the sum would take most of the time.
        return RunStats.model_construct(
            **{name: getattr(self, name) + getattr(other, name) for name in type(self).model_fields}
        )


def to_micronats(scores: npt.NDArray[np.floating[Any]]) -> tuple[int, int]:
    """Return the sum of the finite ones among N scores [N] in micronats, and the number of the others."""
    finite = np.isfinite(scores)
    return int(np.rint(scores[finite].astype(np.float64) * _MICRO).sum()), int((~finite).sum())


def mean_nats(sum_micronats: int, documents: int) -> float | None:
    """Return the mean score (nats); None if there are no documents."""
    return sum_micronats / _MICRO / documents if documents else None
