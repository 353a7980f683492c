"""Stats of windows add up to the stats of the run, in any order, and stay small."""

from __future__ import annotations

import math
import random
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.runs.samples import (
    OPENING_CHARS,
    RUN_SKETCH,
    DocumentSample,
    DuplicateSketch,
    RejectExamples,
    SketchSize,
    sketch_size,
    smallest_keys,
)
from pipeline.runs.stats import EDGES, Histogram, RunStats, Throughput, mean_nats, to_micronats

SMALL = SketchSize(sample=3, hashes=4)
Document = tuple[int, str, int, float, int]  # key, summary, source tokens, score, Unix time

documents = st.tuples(
    st.integers(0, 2**64 - 1),
    st.sampled_from(["a", "b", "c", " ", ""]) | st.text(max_size=6),
    st.integers(0, 10_000_000),
    st.floats(-100, 0, width=32) | st.just(math.nan),
    st.integers(1_700_000_000, 1_700_100_000),
)
windows = st.lists(documents, max_size=60, unique_by=lambda document: document[0])


def to_stats(window: list[Document], size: SketchSize = RUN_SKETCH) -> RunStats:
    """Compute stats like the writing stage, but count each document as a window of the throughput."""
    keys = np.array([key for key, *_ in window], np.uint64)
    openings: list[str | None] = [None] * len(window)
    for row in smallest_keys(keys, size.sample):
        openings[row] = f"opening {row}"[: keys[row] % 10]
    names, summaries = [f"id {key}" for key, *_ in window], [summary for _, summary, *_ in window]
    lengths = np.array([length for _, _, length, _, _ in window], np.int64)
    total, unscored = to_micronats(np.array([score for _, _, _, score, _ in window], np.float32))
    return RunStats(
        throughput=reduce(add, [Throughput.of(time_s, 1) for *_, time_s in window], Throughput()),
        sources=Histogram.of(lengths),
        summaries=Histogram.of(lengths // 7),
        read_tokens=int(lengths.sum()),
        byte_tokens=len(window),
        score_micronats=total,
        unscored=unscored,
        empty=sum(not summary.strip() for summary in summaries),
        duplicates=DuplicateSketch.of(summaries, size.hashes),
        sample=DocumentSample.of(keys, names, openings, summaries),
        rejects=RejectExamples.of(
            keys, [None if key % 3 == 0 else f"id {key}" for key in keys.tolist()], [text[:1] for text in summaries], names
        ),
    )


def without_openings(stats: RunStats) -> RunStats:
    """Clear the openings, which contain row numbers of windows."""
    documents = [document.model_copy(update={"opening": ""}) for document in stats.sample.documents]
    return stats.model_copy(update={"sample": DocumentSample(below=stats.sample.below, documents=documents)})


@settings(max_examples=60, deadline=None)
@given(windows, windows, windows)
def test_addition_is_associative_and_commutative(a: list[Document], b: list[Document], c: list[Document]) -> None:
    for size in (RUN_SKETCH, SMALL):
        x, y, z = to_stats(a, size), to_stats(b, size), to_stats(c, size)
        assert (x + y) + z == x + (y + z)
        assert x + y == y + x
        assert x + RunStats() == x == RunStats() + x


@settings(max_examples=60, deadline=None)
@given(windows, st.integers(1, 9))
def test_stats_of_windows_add_up_to_the_stats_of_the_run(run: list[Document], parts: int) -> None:
    total = reduce(add, (to_stats(run[part::parts]) for part in range(parts)))
    assert without_openings(total) == without_openings(to_stats(run))


@settings(max_examples=60, deadline=None)
@given(windows, st.integers(1, 9))
def test_samples_of_small_windows_are_exact_below_their_threshold(run: list[Document], parts: int) -> None:
    total = reduce(add, (to_stats(run[part::parts], SMALL) for part in range(parts)))
    keys = sorted(key for key, *_ in run)
    kept = [document.key for document in total.sample.documents]
    assert kept == keys[: len(kept)]
    assert len(kept) >= min(len(run), SMALL.sample, RUN_SKETCH.sample)
    exact = DuplicateSketch.of([summary for _, summary, *_ in run], 10_000)
    below = total.duplicates.below
    assert total.duplicates.counts == {value: number for value, number in exact.counts.items() if value < below}
    assert total.duplicates.summaries == len(run)


@given(windows)
def test_stats_survive_json(window: list[Document]) -> None:
    assert RunStats.model_validate_json(to_stats(window).model_dump_json()) == to_stats(window)


@given(st.lists(st.integers(0, 2**40), min_size=1))
def test_histogram_counts_all_lengths_and_quantiles_are_close(lengths: list[int]) -> None:
    histogram = Histogram.of(np.array(lengths))
    assert (histogram.documents, histogram.total) == (len(lengths), sum(lengths))
    for share in (0.05, 0.5, 0.95):
        exact = sorted(lengths)[max(0, math.ceil(share * len(lengths) - 1e-9) - 1)]
        quantile = histogram.quantile(share)
        assert quantile <= exact
        assert exact > EDGES[-1] or exact <= max(1.26 * quantile, 31) + 1
        assert exact > 31 or quantile == exact


@pytest.mark.parametrize("seconds", [1, 200, 300, 40_000, 40_000_000])
def test_throughput_has_few_slots_however_long_the_run(seconds: int) -> None:
    times_s = [1_700_000_000 + step * seconds // 1000 for step in range(1000)]
    random.Random(0).shuffle(times_s)
    throughput = reduce(add, [Throughput.of(time_s, 5) for time_s in times_s])
    assert throughput.slot_count <= 256
    assert throughput.width_s == 1 or throughput.slot_count > 128, "slots are no wider than necessary"
    assert (sum(throughput.documents.values()), throughput.windows) == (5000, 1000)
    assert set(throughput.documents) == {time_s // throughput.width_s for time_s in times_s}


def duplicate_share(summaries: list[str]) -> float:
    """Estimate the share from windows of 512 summaries with the small sketches of a long run."""
    size = sketch_size(1_000_000)
    parts = [DuplicateSketch.of(summaries[start : start + 512], size.hashes) for start in range(0, len(summaries), 512)]
    return reduce(add, parts, DuplicateSketch()).share


def test_share_of_duplicate_summaries_is_close() -> None:
    different = [f"summary {n}" for n in range(40_000)]
    assert duplicate_share(different) == 0
    half = [f"summary {n // 2}" for n in range(40_000)]
    random.Random(0).shuffle(half)
    assert abs(duplicate_share(half) - 0.5) < 0.05
    few = [f"summary {n if n % 10 else 0}" for n in range(40_000)]  # one text is a tenth of all
    assert duplicate_share(few) < 0.25
    one = [f"summary {n if n % 2 else 0}" for n in range(40_000)]
    assert abs(duplicate_share(one) - 0.5) < 0.1
    assert duplicate_share(["the same"] * 40_000) == pytest.approx(1, abs=1e-4)
    assert duplicate_share([]) == 0
    assert duplicate_share(["a", "b", "a", "a"]) == 0.5


def test_sample_is_uniform() -> None:
    """Documents of the first and of the second half of the windows are equally likely."""
    rng = np.random.default_rng(0)
    from_first_half = []
    for _ in range(40):
        parts = []
        for window in range(30):
            keys = rng.integers(2**64, size=100, dtype=np.uint64)
            openings: list[str | None] = [None] * 100
            for row in smallest_keys(keys, 8):
                openings[row] = "opening"
            parts.append(DocumentSample.of(keys, [f"{window}"] * 100, openings, ["s"] * 100))
        sample = reduce(add, parts)
        assert len(sample.documents) == 30
        from_first_half.append(sum(int(document.id) < 15 for document in sample.documents))
    assert abs(np.mean(from_first_half) - 15) < 4 * (30 * 0.25) ** 0.5 / 40**0.5


def test_stats_of_a_window_take_a_few_kilobytes() -> None:
    """A window has 512 long documents with distinct summaries, and rejects with long ids and details."""
    size = sketch_size(1_000_000)
    keys = np.random.default_rng(0).integers(2**64, size=512, dtype=np.uint64)
    openings: list[str | None] = [None] * 512
    for row in smallest_keys(keys, size.sample):
        openings[row] = "opening " * 100
    names = [f"document {n} " + "x" * 1000 for n in range(512)]
    stats = RunStats(
        throughput=Throughput.of(1_700_000_000, 512),
        sources=Histogram.of(keys % np.uint64(1000)),
        summaries=Histogram.of(keys % np.uint64(48)),
        duplicates=DuplicateSketch.of([f"summary {n}" for n in range(512)], size.hashes),
        sample=DocumentSample.of(keys, names, openings, names),
        rejects=RejectExamples.of(keys[:64], names[:64], ["null_text", "too_long"] * 32, names[:64]),
    )
    assert all(len(document.opening) == OPENING_CHARS for document in stats.sample.documents)
    assert len(stats.sample.documents) == size.sample
    assert len(stats.model_dump_json()) < 17_000
    total = reduce(add, [stats] * 5000)
    assert len(total.model_dump_json()) < 100_000


def test_non_finite_scores_are_counted_separately() -> None:
    assert to_micronats(np.array([-1.5, math.nan, -math.inf, -0.5], np.float32)) == (-2_000_000, 2)
    assert mean_nats(-2_000_000, 2) == -1
    assert mean_nats(0, 0) is None
