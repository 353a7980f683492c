"""Batches of rows of similar length within a budget of padded tokens.

Works on row indices and lengths, in numpy; it does not know what a token means. Rows are flat, like an Arrow list column: row i
is ``values[offsets[i]:offsets[i + 1]]``.

Shapes: N rows of a window, B batch, S source steps, T target steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ints = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Rows:
    """N rows of token ids: flat ``values``, and ``offsets[N + 1]`` into them."""

    values: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self, max_tokens: int | None = None) -> npt.NDArray[np.int64]:
        """Return the tokens of each row [N], at most ``max_tokens``."""
        lengths = np.diff(self.offsets)
        return lengths if max_tokens is None else np.minimum(lengths, max_tokens)

    def padded(self, rows: Ints, max_tokens: int, padding: int = 0) -> tuple[Tensor, Tensor]:
        """Return the chosen rows as a rectangle.

        Returns:
            ids[B, S] int64, each row cut to ``max_tokens`` and filled with ``padding`` on the right; lengths[B] int64.
        """
        starts = self.offsets[rows]
        lengths = np.minimum(self.offsets[rows + 1] - starts, max_tokens)
        width = int(lengths.max(initial=0))
        columns = np.arange(width)
        is_token = columns < lengths[:, None]
        ids = np.full((len(rows), width), padding, np.int64)
        ids[is_token] = self.values[(starts[:, None] + columns)[is_token]]
        return torch.from_numpy(ids), torch.from_numpy(lengths)


def budget_batches(lengths: Sequence[Ints], order: Ints, token_budget: int) -> Iterator[Ints]:
    """Cut ``order`` into batches whose padded rectangles hold at most ``token_budget`` tokens together.

    Args:
        lengths: tokens of each row [N], one array per rectangle (sources, or sources and targets).
        order: row indices, sorted so that rows of similar length are neighbors.
        token_budget: rows times longest row, summed over rectangles. A longer row is a batch of its own.

    Yields:
        Row indices of a batch. Each row of ``order`` comes exactly once.
    """
    start, widths = 0, (0,) * len(lengths)
    for end, row in enumerate(zip(*(part[order].tolist() for part in lengths), strict=True)):
        new_widths = tuple(map(max, widths, row))
        if end > start and sum(new_widths) * (end - start + 1) > token_budget:
            yield order[start:end]
            start, new_widths = end, row
        widths = new_widths
    if start < len(order):
        yield order[start:]


def longest_first(lengths: Ints) -> Ints:
    """Return row indices by falling length, ties in row order.

    Longest first, so that memory peaks in the first batch and not hours into a run.
    """
    return np.argsort(-np.asarray(lengths), kind="stable")


@dataclass(frozen=True)
class PairBatch:
    """A training batch: source[B, S], source_lengths[B], target[B, T], target_lengths[B]; int64, no ``<s>`` or ``</s>``."""

    source: Tensor
    source_lengths: Tensor
    target: Tensor
    target_lengths: Tensor

    def to(self, device: torch.device) -> PairBatch:
        """Return the batch on another device, which copies it while it computes."""
        parts: list[Tensor] = list(vars(self).values())
        if device.type == "cuda":  # copying from memory that is not pinned waits for the device
            parts = [part.pin_memory() for part in parts]
        return PairBatch(*(part.to(device, non_blocking=True) for part in parts))


@dataclass(frozen=True)
class PairLimits:
    """Limits on training batches.

    Attributes:
        max_source_tokens: cut longer sources to this many tokens.
        max_target_tokens: cut longer targets to this many tokens.
        token_budget: padded source and target tokens of a batch, ``</s>`` included.
    """

    max_source_tokens: int
    max_target_tokens: int
    token_budget: int


def pair_batches(sources: Rows, targets: Rows, limits: PairLimits, rng: np.random.Generator | None) -> Iterator[PairBatch]:
    """Bucket a window of N pairs by length into training batches. Pairs with an empty source are skipped.

    Args:
        rng: shuffles rows of equal length and the order of batches; None keeps falling length, for validation.
    """
    source_lengths = sources.lengths(limits.max_source_tokens)
    target_lengths = targets.lengths(limits.max_target_tokens) + 1
    # Sorting by source and then target length keeps both rectangles tight: few rows share a source length exactly, so
    # sources are grouped in steps of 8.
    tie_breaker = rng.random(len(sources)) if rng else np.arange(len(sources))
    order = np.lexsort((tie_breaker, -target_lengths, -(source_lengths // 8)))
    order = order[source_lengths[order] > 0]
    batches = list(budget_batches((source_lengths, target_lengths), order, limits.token_budget))
    if rng:
        rng.shuffle(batches)
    for rows in batches:
        yield PairBatch(*sources.padded(rows, limits.max_source_tokens), *targets.padded(rows, limits.max_target_tokens))
