"""Greedy search: the likeliest allowed token at each step, until ``</s>`` or the limit.

A step has fixed shapes, changes its arrays in their place and reads no number back to the host, so that a GPU can take several
as one launch (graphs.py). Rows leave between such launches.

Shapes: B sources, N slots, S source steps, T target steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pipeline.config.model import DecodingConfig
from pipeline.data.special_tokens import BOS, EOS, PAD
from pipeline.decoding.batch_state import STEPS_BETWEEN_CHECKS, BatchState, SearchResult, compact, map_tensors
from pipeline.decoding.cuda_graphs import GraphCache, round_up_to_bucket
from pipeline.decoding.engine import Engine


@dataclass
class _Results:
    """Of N rows: written[N, T], lengths[N] of it without ``</s>``, log_prob_sums[N] (nat), ended[N] by ``</s>``."""

    written: Tensor
    lengths: Tensor
    log_prob_sums: Tensor
    ended: Tensor

    @classmethod
    def empty(cls, rows: int, longest: int, device: torch.device) -> _Results:
        """Of rows without a token."""
        return cls(
            written=torch.full((rows, longest), PAD, device=device),
            lengths=torch.zeros(rows, dtype=torch.long, device=device),
            log_prob_sums=torch.zeros(rows, device=device),
            ended=torch.zeros(rows, dtype=torch.bool, device=device),
        )


@dataclass
class _Step:
    """N slots on their way: last[N], the tokens of the last step; live[N], whether they go on; limits[N], their most tokens.

    The outcome's tokens stand at the right end, those of all steps so far, with ``<pad>`` before them and after a row's end.
    """

    slots: BatchState
    outcome: _Results
    last: Tensor
    live: Tensor
    limits: Tensor


def greedy_search(engine: Engine, slots: BatchState, limits: Tensor, options: DecodingConfig) -> SearchResult:
    """Hypotheses of B sources, all in slots, of limits[B] tokens at most."""
    batch, longest, device, graphs = len(limits), options.max_target_tokens, engine.device, engine.graphs
    # One more than there are rows: there goes what a slot without a row writes.
    found = _Results.empty(batch + 1, longest, device)
    outcome, live = _Results.empty(batch, longest, device), torch.ones_like(limits, dtype=torch.bool)
    writing = _Step(slots, outcome, torch.full_like(limits, BOS), live, limits)
    steps = torch.zeros((), dtype=torch.long, device=device)
    if graphs is not None:
        writing, steps = _in_static_buffers(graphs, writing), graphs.hold("steps", steps)
    taken = row_steps = 0
    while len(writing.live) and taken < longest:
        number = min(STEPS_BETWEEN_CHECKS[device.type], longest - taken)
        work = partial(_take_steps, engine, writing, steps, options, number)
        if graphs is None:
            work()
        else:
            graphs.run((writing.slots.sources.ids.shape, number, options.model_dump_json()), work)
        taken += number
        row_steps += number * len(writing.live)
        writing = _drop_finished(writing, found, taken, int if graphs is None else round_up_to_bucket)
    # </s> is never written past the limit, so a cut row's mean is over its tokens alone.
    scores = found.log_prob_sums / (found.lengths + found.ended)
    return SearchResult(found.written[:batch], found.lengths[:batch], scores[:batch], found.ended[:batch], row_steps)


def _in_static_buffers(graphs: GraphCache, writing: _Step) -> _Step:
    """The same in memory that stays in its place, with slots that have no row up to the next rung of the ladder."""
    slots, sources, names = writing.slots, writing.slots.sources, itertools.count()
    batch, width = sources.ids.shape
    by_position = [sources.ids, sources.states, sources.keys, slots.first]

    def held(part: Tensor) -> Tensor:
        shape = [round_up_to_bucket(batch), *part.shape[1:]]
        if any(part is one for one in by_position):
            shape[1] = round_up_to_bucket(width)
        return graphs.hold(f"{next(names)}", part, *shape)

    writing = map_tensors(held, writing)
    writing.slots.rows[batch:] = batch
    writing.slots.sources.lengths[batch:] = 1
    writing.live[batch:] = False
    return writing


def _take_steps(engine: Engine, writing: _Step, steps: Tensor, options: DecodingConfig, number: int) -> None:
    """A number of steps, in place; steps, a number without dimensions, counts them."""
    recurrent = writing.slots.carry.recurrent
    first = list(recurrent)
    for _ in range(number):
        _take_step(engine, writing, steps, options)
    if engine.graphs is not None:
        for held, new in zip(first, recurrent, strict=True):
            held.copy_(new)
        recurrent[:] = first


def _take_step(engine: Engine, writing: _Step, steps: Tensor, options: DecodingConfig) -> None:
    slots, outcome, live = writing.slots, writing.outcome, writing.live
    prediction = engine.step(writing.last, slots.carry, slots.sources)
    tokens, log_probs = engine.arithmetic.likeliest(
        1,
        prediction.logits,
        outcome.written,
        options.no_repeat_ngram,
        steps >= options.min_target_tokens,
        slots.copying(prediction),
    )
    last = writing.last.copy_(tokens[:, 0])
    ends = live & (last == EOS)
    writes = live & ~ends
    outcome.log_prob_sums += torch.where(live, log_probs[:, 0], 0.0)
    outcome.lengths += writes
    outcome.written.copy_(torch.cat((outcome.written[:, 1:], torch.where(writes, last, PAD)[:, None]), 1))
    outcome.ended |= ends
    steps += 1
    live &= ~ends & (steps < writing.limits)


def _drop_finished(writing: _Step, found: _Results, taken: int, room: Callable[[int], int]) -> _Step:
    """Note what the rows that are done have written in so many steps, and let go of them, if that makes fewer slots.

    See compacted for room.
    """
    number = int(writing.live.sum())
    if number and room(number) == len(writing.live):
        return writing
    done = (~writing.live).nonzero()[:, 0]
    rows, outcome = writing.slots.rows[done], writing.outcome
    found.written[rows, :taken] = outcome.written[done, -taken:]
    found.lengths[rows] = outcome.lengths[done]
    found.log_prob_sums[rows] = outcome.log_prob_sums[done]
    found.ended[rows] = outcome.ended[done]
    writing = compact(writing.live.clone(), number, writing, room(number))
    writing.slots.rows[number:] = len(found.lengths) - 1
    writing.live[:number] = True
    writing.live[number:] = False
    return writing
