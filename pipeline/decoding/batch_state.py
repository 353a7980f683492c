"""The state of a decode batch during a search, and its compaction: removing the rows that are done.

Each unfinished source of a batch has a slot. greedy.py and beam.py decide which rows are done (``</s>``, length limit) and call
``compact_batch`` every STEPS_BETWEEN_CHECKS steps. It moves the last live slots into the places of finished ones: one copy for
each slot that leaves. On a GPU nothing waits for the device except that check.

Shapes: B batch (sources), N slots, R decoder rows (N, or N times the beam size; a source's hypotheses are adjacent), S source
steps, T target steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from pipeline.decoding.backends import CopyInputs
from pipeline.decoding.engine import DecoderState, EncodedBatch, StepOutput

STEPS_BETWEEN_CHECKS = {"cpu": 1, "cuda": 8}

Tree = TypeVar("Tree")


@dataclass(frozen=True)
class SearchResult:
    """The best hypothesis of each source.

    Attributes:
        tokens: [B, T], padded, without ``</s>``.
        lengths: tokens of each hypothesis [B].
        scores: mean log-probability of a token [B] (nat), including ``</s>`` where there is one.
        finished: [B], True if the hypothesis ended with ``</s>``, False if the length limit cut it.
        row_steps: computed steps, summed over rows, including those beyond a row's end.
    """

    tokens: Tensor
    lengths: Tensor
    scores: Tensor
    finished: Tensor
    row_steps: int


@dataclass
class BatchState:
    """The network's inputs and state in each slot.

    Attributes:
        rows: row of the batch in each slot [N].
        first_positions: [N, S], see CopyInputs; None without copying.
    """

    rows: Tensor
    encoded: EncodedBatch
    state: DecoderState
    first_positions: Tensor | None

    def copy_inputs(self, output: StepOutput) -> CopyInputs | None:
        """Return what a step needs for copying, or None if the network does not copy."""
        if output.copy_logits is None or self.first_positions is None or output.weights is None:
            return None
        return CopyInputs(self.encoded.ids, self.first_positions, self.encoded.lengths, output.weights, output.copy_logits)


def map_tensors(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Apply a function to every tensor in a tree of dataclasses, lists and tuples."""
    mapped: Any = tree
    if isinstance(tree, Tensor):
        mapped = function(tree)
    elif isinstance(tree, list | tuple):
        mapped = type(tree)(map_tensors(function, part) for part in tree)
    elif is_dataclass(tree) and not isinstance(tree, type):
        mapped = replace(tree, **{field.name: map_tensors(function, getattr(tree, field.name)) for field in fields(tree)})
    return mapped  # type: ignore[no-any-return]


def compact_batch(live: Tensor, live_count: int, tree: Tree, size: int) -> Tree:
    """Move live slots to the front of every tensor in a tree, in place, and return views of the first ``size`` slots.

    Args:
        live: [N] bool; must not be a tensor of the tree.
        live_count: number of live slots.
        size: slots to keep, at least ``live_count``.
    """
    if live_count == len(live):
        return tree
    gaps = (~live[:live_count]).nonzero()[:, 0]
    movers = live[live_count:].nonzero()[:, 0] + live_count

    def shrink(part: Tensor) -> Tensor:
        by_slot = part.view(len(live), -1) if len(part) != len(live) else part
        by_slot[gaps] = by_slot[movers]
        return part[: size * (len(part) // len(live))]

    return map_tensors(shrink, tree)


def first_positions(ids: Tensor) -> Tensor:
    """Return for each position of ids[B, S] where its token occurs first in the row, [B, S]."""
    order = ids.argsort(dim=1, stable=True)
    sorted_ids = ids.gather(1, order)
    starts_run = torch.ones_like(ids, dtype=torch.bool)
    starts_run[:, 1:] = sorted_ids[:, 1:] != sorted_ids[:, :-1]
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    run_starts = torch.where(starts_run, positions, 0).cummax(1).values
    return torch.empty_like(ids).scatter_(1, order, order.gather(1, run_starts))
