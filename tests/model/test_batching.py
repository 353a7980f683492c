"""Batches hold every row once, within the budget, and give rows back unchanged."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_models import to_rows

from pipeline.model.batching import PairBatch, PairLimits, Rows, budget_batches, longest_first, pair_batches

LENGTHS = st.lists(st.integers(0, 40), max_size=60)


def padded_tokens(lengths: np.ndarray, rows: np.ndarray) -> int:
    return len(rows) * int(lengths[rows].max())


@given(LENGTHS, st.integers(1, 300))
def test_batches_hold_each_row_once_in_order_and_are_full(lengths: list[int], token_budget: int) -> None:
    sizes = np.array(lengths, np.int64)
    order = longest_first(sizes)
    batches = list(budget_batches((sizes,), order, token_budget))
    assert [row for rows in batches for row in rows] == order.tolist()
    assert all(padded_tokens(sizes, rows) <= token_budget for rows in batches if len(rows) > 1)
    for rows, next_rows in pairwise(batches):
        assert padded_tokens(sizes, np.append(rows, next_rows[0])) > token_budget


@given(LENGTHS)
def test_longest_first_is_stable(lengths: list[int]) -> None:
    assert longest_first(np.array(lengths, np.int64)).tolist() == sorted(range(len(lengths)), key=lambda row: -lengths[row])


def test_padded_cuts_long_rows_and_pads_on_the_right() -> None:
    rows = to_rows([[5, 6, 7], [], [8], [9, 10]])
    ids, lengths = rows.padded(np.array([3, 0, 1]), max_tokens=2, padding=4)
    assert ids.tolist() == [[9, 10], [5, 6], [4, 4]]
    assert lengths.tolist() == [2, 2, 0]
    assert rows.lengths().tolist() == [3, 0, 1, 2]
    assert rows.lengths(max_tokens=2).tolist() == [2, 0, 1, 2]


def test_rows_may_start_in_the_middle_of_the_values() -> None:
    rows = Rows(np.arange(10, dtype=np.int32), np.array([4, 6, 9], np.int64))
    assert rows.padded(np.array([1, 0]), max_tokens=9)[0].tolist() == [[6, 7, 8], [4, 5, 0]]


def random_pairs(count: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return sources and targets of random lengths. Source i holds only 2i, target i only 2i + 1."""
    rng = np.random.default_rng(count)
    lengths = rng.integers(0, 30, size=(count, 2))
    sources = [[2 * row] * length for row, (length, _) in enumerate(lengths)]
    return sources, [[2 * row + 1] * length for row, (_, length) in enumerate(lengths)]


def pairs_in(batches: list[PairBatch]) -> list[tuple[list[int], list[int]]]:
    return [
        (source[:source_length].tolist(), target[:target_length].tolist())
        for batch in batches
        for source, source_length, target, target_length in zip(*vars(batch).values(), strict=True)
    ]


@pytest.mark.parametrize("seed", [None, 1])
def test_pairs_stay_together_within_the_budget(seed: int | None) -> None:
    sources, targets = random_pairs(300)
    rng = None if seed is None else np.random.default_rng(seed)
    batches = list(pair_batches(to_rows(sources), to_rows(targets), PairLimits(25, 20, 400), rng))
    expected = [(source[:25], target[:20]) for source, target in zip(sources, targets, strict=True) if source]
    assert sorted(pairs_in(batches)) == sorted(expected)
    assert len(expected) < len(sources)  # pairs without a source are skipped
    padded = [batch.source.numel() + batch.target.numel() + len(batch.target) for batch in batches]  # with </s>
    assert all(tokens <= 400 or len(batch.source) == 1 for tokens, batch in zip(padded, batches, strict=True))
    assert sum(len(source) + len(target) + 1 for source, target in expected) > 0.75 * sum(padded)


def test_generator_determines_the_order_of_batches() -> None:
    sources, targets = (to_rows(rows) for rows in random_pairs(300))

    def order(rng: np.random.Generator | None) -> list[tuple[list[int], list[int]]]:
        return pairs_in(list(pair_batches(sources, targets, PairLimits(30, 30, 400), rng)))

    assert order(np.random.default_rng(1)) == order(np.random.default_rng(1))
    assert order(np.random.default_rng(1)) != order(np.random.default_rng(2))
    lengths = [len(source) // 8 for source, _ in order(None)]
    assert lengths == sorted(lengths, reverse=True)
