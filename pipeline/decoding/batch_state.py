"""The rows of a decode batch while they are searched for: a slot each, until they are done.

Rows that are done leave: the last ones move into their places, so that one row's states, the most of what it has, are copied
for one that leaves. On a GPU nothing waits for the device but a look, every few steps, at who is done.

Shapes: B sources, N slots, R rows of the decoder, N or a multiple of it: a beam's rows of a source lie together.
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

T = TypeVar("T")


@dataclass(frozen=True)
class SearchResult:
    """The hypothesis of each of B sources.

    tokens[B, T]: padded, without ``</s>``. lengths[B]: of them. scores[B]: mean log-probability of a token (nat), of
    ``</s>`` too where it was written. finished[B]: whether it was, or the maximum length cut the row. row_steps: steps of all
    rows together that were computed, some of them for nothing.
    """

    tokens: Tensor
    lengths: Tensor
    scores: Tensor
    finished: Tensor
    row_steps: int


@dataclass
class BatchState:
    """Which row of the batch each slot has, rows[N], and what the network needs of it. first[N, S]: see Copying."""

    rows: Tensor
    sources: EncodedBatch
    carry: DecoderState
    first: Tensor | None

    def copying(self, prediction: StepOutput) -> CopyInputs | None:
        """How this prediction may copy."""
        if prediction.copy_logits is None or self.first is None or prediction.weights is None:
            return None
        sources = self.sources
        return CopyInputs(sources.ids, self.first, sources.lengths, prediction.weights, prediction.copy_logits)


def map_tensors(change: Callable[[Tensor], Tensor], tree: T) -> T:
    """A tree of dataclasses, lists and tuples with every tensor in it changed."""
    changed: Any = tree
    if isinstance(tree, Tensor):
        changed = change(tree)
    elif isinstance(tree, list | tuple):
        changed = type(tree)(map_tensors(change, part) for part in tree)
    elif is_dataclass(tree) and not isinstance(tree, type):
        changed = replace(tree, **{field.name: map_tensors(change, getattr(tree, field.name)) for field in fields(tree)})
    return changed  # type: ignore[no-any-return]


def compact(live: Tensor, number: int, tree: T, size: int) -> T:
    """Let go of slots that are not live[N], in all tensors of a tree, in their place: of a number that are, size ≥ it stay."""
    if number == len(live):
        return tree
    gaps = (~live[:number]).nonzero()[:, 0]
    movers = live[number:].nonzero()[:, 0] + number

    def kept(part: Tensor) -> Tensor:
        by_slot = part.view(len(live), -1) if len(part) != len(live) else part
        by_slot[gaps] = by_slot[movers]
        return part[: size * (len(part) // len(live))]

    return map_tensors(kept, tree)


def first_positions(ids: Tensor) -> Tensor:
    """Where the token at each position of ids[B, S] is first in its row, [B, S]."""
    order = ids.argsort(dim=1, stable=True)
    ordered = ids.gather(1, order)
    starts = torch.ones_like(ids, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    at = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    run = torch.where(starts, at, 0).cummax(1).values
    return torch.empty_like(ids).scatter_(1, order, order.gather(1, run))
