"""Digests of windows add up to the digest of the whole, in any order, and stay small."""

from __future__ import annotations

import math
import random
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.runs.stats import (
    EDGES,
    OPENING_CHARS,
    RUN_SKETCH,
    DocumentSample,
    DuplicateSketch,
    Histogram,
    RejectExamples,
    RunStats,
    SketchSize,
    Throughput,
    mean_nats,
    sketch_size,
    smallest_keys,
    to_micronats,
)

SMALL = SketchSize(sample=3, hashes=4)
Document = tuple[int, str, int, float, int]  # key, summary, source tokens, score, second at which it was written

documents = st.tuples(
    st.integers(0, 2**64 - 1),
    st.sampled_from(["a", "b", "c", " ", ""]) | st.text(max_size=6),
    st.integers(0, 10_000_000),
    st.floats(-100, 0, width=32) | st.just(math.nan),
    st.integers(1_700_000_000, 1_700_100_000),
)
windows = st.lists(documents, max_size=60, unique_by=lambda document: document[0])


def of(window: list[Document], room: SketchSize = RUN_SKETCH) -> RunStats:
    """As the writing stage makes it; documents that are written in other seconds are windows of their own there."""
    keys = np.array([key for key, *_ in window], np.uint64)
    openings: list[str | None] = [None] * len(window)
    for row in smallest_keys(keys, room.sample):
        openings[row] = f"opening {row}"[: keys[row] % 10]
    names, summaries = [f"id {key}" for key, *_ in window], [summary for _, summary, *_ in window]
    lengths = np.array([length for _, _, length, _, _ in window], np.int64)
    total, unscored = to_micronats(np.array([score for _, _, _, score, _ in window], np.float32))
    return RunStats(
        throughput=reduce(add, [Throughput.of(at, 1) for *_, at in window], Throughput()),
        sources=Histogram.of(lengths),
        summaries=Histogram.of(lengths // 7),
        read_tokens=int(lengths.sum()),
        byte_tokens=len(window),
        score_micronats=total,
        unscored=unscored,
        empty=sum(not summary.strip() for summary in summaries),
        duplicates=DuplicateSketch.of(summaries, room.hashes),
        sample=DocumentSample.of(keys, names, openings, summaries),
        rejects=RejectExamples.of(
            keys, [None if key % 3 == 0 else f"id {key}" for key in keys.tolist()], [text[:1] for text in summaries], names
        ),
    )


def rid_of_openings(digest: RunStats) -> RunStats:
    """An opening's number is that of the row in its window."""
    plain = [document.model_copy(update={"opening": ""}) for document in digest.sample.documents]
    return digest.model_copy(update={"sample": DocumentSample(below=digest.sample.below, documents=plain)})


@settings(max_examples=60, deadline=None)
@given(windows, windows, windows)
def test_merging_is_associative_and_commutative(a: list[Document], b: list[Document], c: list[Document]) -> None:
    for room in (RUN_SKETCH, SMALL):
        x, y, z = of(a, room), of(b, room), of(c, room)
        assert (x + y) + z == x + (y + z)
        assert x + y == y + x
        assert x + RunStats() == x == RunStats() + x


@settings(max_examples=60, deadline=None)
@given(windows, st.integers(1, 9))
def test_the_digests_of_windows_are_that_of_the_whole(whole: list[Document], parts: int) -> None:
    merged = reduce(add, (of(whole[part::parts]) for part in range(parts)))
    assert rid_of_openings(merged) == rid_of_openings(of(whole))


@settings(max_examples=60, deadline=None)
@given(windows, st.integers(1, 9))
def test_of_small_windows_what_is_left_is_exact(whole: list[Document], parts: int) -> None:
    merged = reduce(add, (of(whole[part::parts], SMALL) for part in range(parts)))
    keys = sorted(key for key, *_ in whole)
    kept = [document.key for document in merged.sample.documents]
    assert kept == keys[: len(kept)], "the least of all, none left out"
    assert len(kept) >= min(len(whole), SMALL.sample, RUN_SKETCH.sample)
    exact = DuplicateSketch.of([summary for _, summary, *_ in whole], 10_000)
    below = merged.duplicates.below
    assert merged.duplicates.counts == {value: number for value, number in exact.counts.items() if value < below}
    assert merged.duplicates.summaries == len(whole)


@given(windows)
def test_a_digest_outlives_json(window: list[Document]) -> None:
    assert RunStats.model_validate_json(of(window).model_dump_json()) == of(window)


@given(st.lists(st.integers(0, 2**40), min_size=1))
def test_a_histogram_counts_all_and_its_quantiles_are_near(lengths: list[int]) -> None:
    histogram = Histogram.of(np.array(lengths))
    assert (histogram.documents, histogram.total) == (len(lengths), sum(lengths))
    for share in (0.05, 0.5, 0.95):
        exact = sorted(lengths)[max(0, math.ceil(share * len(lengths) - 1e-9) - 1)]
        found = histogram.quantile(share)
        assert found <= exact
        assert exact > EDGES[-1] or exact <= max(1.26 * found, 31) + 1
        assert exact > 31 or found == exact


@pytest.mark.parametrize("seconds", [1, 200, 300, 40_000, 40_000_000])
def test_a_course_has_few_slots_however_long_it_is(seconds: int) -> None:
    starts = [1_700_000_000 + at * seconds // 1000 for at in range(1000)]
    random.Random(0).shuffle(starts)
    throughput = reduce(add, [Throughput.of(at, 5) for at in starts])
    assert throughput.span <= 256
    assert throughput.width_s == 1 or throughput.span > 128, "no wider than they must be"
    assert (sum(throughput.documents.values()), throughput.windows) == (5000, 1000)
    slots = {at // throughput.width_s for at in starts}
    assert set(throughput.documents) == slots


def repeated(summaries: list[str]) -> float:
    """The share that windows of 512 say, each with as little room as in a long run."""
    room = sketch_size(1_000_000)
    parts = [DuplicateSketch.of(summaries[start : start + 512], room.hashes) for start in range(0, len(summaries), 512)]
    return reduce(add, parts, DuplicateSketch()).share


def test_the_share_of_repeated_summaries_is_near() -> None:
    different = [f"summary {n}" for n in range(40_000)]
    assert repeated(different) == 0
    half = [f"summary {n // 2}" for n in range(40_000)]
    random.Random(0).shuffle(half)
    assert abs(repeated(half) - 0.5) < 0.05
    few = [f"summary {n if n % 10 else 0}" for n in range(40_000)]  # one text is a tenth of all: at the edge of what is seen
    assert repeated(few) < 0.25
    one = [f"summary {n if n % 2 else 0}" for n in range(40_000)]
    assert abs(repeated(one) - 0.5) < 0.1
    assert repeated(["the same"] * 40_000) == pytest.approx(1, abs=1e-4)
    assert repeated([]) == 0
    assert repeated(["a", "b", "a", "a"]) == 0.5


def test_the_sample_is_of_all_parts_alike() -> None:
    """Documents of the first half of windows and of the second come as often, whatever their order."""
    draw = np.random.default_rng(0)
    first = []
    for _ in range(40):
        parts = []
        for window in range(30):
            keys = draw.integers(2**64, size=100, dtype=np.uint64)
            openings: list[str | None] = [None] * 100
            for row in smallest_keys(keys, 8):
                openings[row] = "opening"
            parts.append(DocumentSample.of(keys, [f"{window}"] * 100, openings, ["s"] * 100))
        sample = reduce(add, parts)
        assert len(sample.documents) == 30
        first.append(sum(int(document.id) < 15 for document in sample.documents))
    assert abs(np.mean(first) - 15) < 4 * (30 * 0.25) ** 0.5 / 40**0.5


def test_a_windows_digest_is_a_few_kilobytes() -> None:
    """Of 512 documents, long ones all, whose summaries differ, and rejects with long ids and details."""
    room = sketch_size(1_000_000)
    keys = np.random.default_rng(0).integers(2**64, size=512, dtype=np.uint64)
    openings: list[str | None] = [None] * 512
    for row in smallest_keys(keys, room.sample):
        openings[row] = "opening " * 100
    names = [f"document {n} " + "x" * 1000 for n in range(512)]
    digest = RunStats(
        throughput=Throughput.of(1_700_000_000, 512),
        sources=Histogram.of(keys % np.uint64(1000)),
        summaries=Histogram.of(keys % np.uint64(48)),
        duplicates=DuplicateSketch.of([f"summary {n}" for n in range(512)], room.hashes),
        sample=DocumentSample.of(keys, names, openings, names),
        rejects=RejectExamples.of(keys[:64], names[:64], ["null_text", "too_long"] * 32, names[:64]),
    )
    assert all(len(document.opening) == OPENING_CHARS for document in digest.sample.documents)
    assert len(digest.sample.documents) == room.sample
    assert len(digest.model_dump_json()) < 17_000
    whole = reduce(add, [digest] * 5000)
    assert len(whole.model_dump_json()) < 100_000


def test_scores_that_are_no_numbers_are_counted_apart() -> None:
    assert to_micronats(np.array([-1.5, math.nan, -math.inf, -0.5], np.float32)) == (-2_000_000, 2)
    assert mean_nats(-2_000_000, 2) == -1
    assert mean_nats(0, 0) is None
