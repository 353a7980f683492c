"""Batches of similar length within a budget of padded tokens.

Everything here is about row numbers and lengths, in numpy; what a token means is not its business. Rows come flat, as
``values`` and ``offsets`` (row i is ``values[offsets[i]:offsets[i + 1]]``), the layout of an Arrow list column.
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
    """N rows of token ids: ``values``, and ``offsets[N + 1]`` into it."""

    values: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self, longest: int | None = None) -> npt.NDArray[np.int64]:
        """Tokens of each row [N], or ``longest`` where a row has more."""
        lengths = np.diff(self.offsets)
        return lengths if longest is None else np.minimum(lengths, longest)

    def padded(self, rows: Ints, longest: int, padding: int = 0) -> tuple[Tensor, Tensor]:
        """The chosen rows as a rectangle.

        Returns:
            ids[B, S] int64, each row cut to ``longest`` tokens and filled with ``padding`` on the right; lengths[B] int64.
        """
        starts = self.offsets[rows]
        lengths = np.minimum(self.offsets[rows + 1] - starts, longest)
        width = int(lengths.max(initial=0))
        columns = np.arange(width)
        inside = columns < lengths[:, None]
        ids = np.full((len(rows), width), padding, np.int64)
        ids[inside] = self.values[(starts[:, None] + columns)[inside]]
        return torch.from_numpy(ids), torch.from_numpy(lengths)


def budget_batches(lengths: Sequence[Ints], order: Ints, token_budget: int) -> Iterator[Ints]:
    """Cut ``order`` into runs of rows whose padded rectangles hold at most ``token_budget`` tokens together.

    Args:
        lengths: tokens of each row [N], for each rectangle: of the sources, or of sources and targets.
        order: row numbers, rows of similar length beside each other.
        token_budget: rows × longest row, summed over rectangles; one row longer than this is a batch of its own.

    Yields:
        Row numbers of a batch. Each row of ``order`` comes in exactly one.
    """
    start, longest = 0, (0,) * len(lengths)
    for end, row in enumerate(zip(*(part[order].tolist() for part in lengths), strict=True)):
        grown = tuple(map(max, longest, row))
        if end > start and sum(grown) * (end - start + 1) > token_budget:
            yield order[start:end]
            start, grown = end, row
        longest = grown
    if start < len(order):
        yield order[start:]


def longest_first(lengths: Ints) -> Ints:
    """Row numbers by falling length; rows of one length keep their order.

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
        """The batch on another device, which copies it while it computes."""
        parts: list[Tensor] = list(vars(self).values())
        if device.type == "cuda":  # from memory that is not pinned the copy would wait for what the device does
            parts = [part.pin_memory() for part in parts]
        return PairBatch(*(part.to(device, non_blocking=True) for part in parts))


def pair_batches(
    sources: Rows,
    targets: Rows,
    longest_source: int,
    longest_target: int,
    token_budget: int,
    rng: np.random.Generator | None,
) -> Iterator[PairBatch]:
    """Bucket a window of N pairs by length into training batches.

    Args:
        sources, targets: N rows each; longer ones are cut to ``longest_source`` and ``longest_target``.
            A pair without a source token is left out: there is nothing to read.
        token_budget: padded source and target tokens of a batch, ``</s>`` included.
        rng: shuffles rows of equal length and the order of batches; None keeps falling length, for validation.
    """
    source_lengths, target_lengths = sources.lengths(longest_source), targets.lengths(longest_target) + 1
    # Sorting by source and then target length keeps both rectangles tight: few rows share a source length exactly, so
    # sources are grouped in steps of 8.
    tie = rng.random(len(sources)) if rng else np.arange(len(sources))
    order = np.lexsort((tie, -target_lengths, -(source_lengths // 8)))
    order = order[source_lengths[order] > 0]
    batches = list(budget_batches((source_lengths, target_lengths), order, token_budget))
    if rng:
        rng.shuffle(batches)
    for rows in batches:
        yield PairBatch(*sources.padded(rows, longest_source), *targets.padded(rows, longest_target))
