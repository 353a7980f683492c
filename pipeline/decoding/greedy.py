"""Greedy search: take the most likely allowed token at each step, until ``</s>`` or the length limit.

``_take_step`` ends a row at ``</s>`` or at its limit. It has fixed shapes, writes in place and never waits for the device, so
that a GPU replays several steps as one CUDA graph (cuda_graphs.py). Between those launches ``_remove_finished`` checks which
rows are done, stores their results and compacts the batch (batch_state.py).

Shapes: B batch (sources), N slots, S source steps, T target steps.
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
from pipeline.decoding.backends import TokenConstraints
from pipeline.decoding.batch_state import STEPS_BETWEEN_CHECKS, BatchState, SearchResult, compact_batch, map_tensors
from pipeline.decoding.cuda_graphs import GraphCache, round_up_to_bucket
from pipeline.decoding.engine import Engine


@dataclass
class _Hypotheses:
    written: Tensor  # [N, T], tokens
    lengths: Tensor  # [N], without ``</s>``
    log_prob_sums: Tensor  # [N], nats, with ``</s>``
    ended: Tensor  # [N], whether ``</s>`` was written

    @classmethod
    def empty(cls, rows: int, max_tokens: int, device: torch.device) -> _Hypotheses:
        return cls(
            written=torch.full((rows, max_tokens), PAD, device=device),
            lengths=torch.zeros(rows, dtype=torch.long, device=device),
            log_prob_sums=torch.zeros(rows, device=device),
            ended=torch.zeros(rows, dtype=torch.bool, device=device),
        )


@dataclass
class _Search:
    """The search in each of N slots.

    Attributes:
        hypotheses: tokens so far, aligned to the right of ``written``, with ``<pad>`` before them and after a row's end.
        last: tokens of the last step [N].
        live: [N], True until the row ends.
        limits: maximum tokens of each row [N].
    """

    batch: BatchState
    hypotheses: _Hypotheses
    last: Tensor
    live: Tensor
    limits: Tensor


def greedy_search(engine: Engine, batch: BatchState, limits: Tensor, options: DecodingConfig) -> SearchResult:
    """Decode B sources, one per slot, to at most limits[B] tokens each."""
    rows, max_tokens, device, graphs = len(limits), options.max_target_tokens, engine.device, engine.graphs
    results = _Hypotheses.empty(rows + 1, max_tokens, device)  # the last row collects what slots without a row write
    hypotheses, live = _Hypotheses.empty(rows, max_tokens, device), torch.ones_like(limits, dtype=torch.bool)
    search = _Search(batch, hypotheses, torch.full_like(limits, BOS), live, limits)
    step = torch.zeros((), dtype=torch.long, device=device)
    if graphs is not None:
        search, step = _in_static_buffers(graphs, search), graphs.static_buffer("step", step)
    steps_done = row_steps = 0
    while len(search.live) and steps_done < max_tokens:
        count = min(STEPS_BETWEEN_CHECKS[device.type], max_tokens - steps_done)
        work = partial(_take_steps, engine, search, step, options, count)
        if graphs is None:
            work()
        else:
            graphs.run((search.batch.encoded.ids.shape, count, options.model_dump_json()), work)
        steps_done += count
        row_steps += count * len(search.live)
        search = _remove_finished(search, results, steps_done, int if graphs is None else round_up_to_bucket)
    # </s> is never written past the limit, so the mean of a cut row covers its tokens only.
    scores = results.log_prob_sums / (results.lengths + results.ended)
    return SearchResult(results.written[:rows], results.lengths[:rows], scores[:rows], results.ended[:rows], row_steps)


def _in_static_buffers(graphs: GraphCache, search: _Search) -> _Search:
    """Copy the search into static buffers, and add slots without a row up to the next bucket of both N and S."""
    batch, encoded, buffer_numbers = search.batch, search.batch.encoded, itertools.count()
    rows, width = encoded.ids.shape
    with_source_steps = [encoded.ids, encoded.states, encoded.keys, batch.first_positions]

    def to_buffer(part: Tensor) -> Tensor:
        shape = [round_up_to_bucket(rows), *part.shape[1:]]
        if any(part is other for other in with_source_steps):
            shape[1] = round_up_to_bucket(width)
        return graphs.static_buffer(f"{next(buffer_numbers)}", part, *shape)

    search = map_tensors(to_buffer, search)
    search.batch.rows[rows:] = rows
    search.batch.encoded.lengths[rows:] = 1
    search.live[rows:] = False
    return search


def _take_steps(engine: Engine, search: _Search, step: Tensor, options: DecodingConfig, count: int) -> None:
    """Take ``count`` steps in place. ``step`` counts them on the device."""
    recurrent = search.batch.state.recurrent
    buffers = list(recurrent)
    for _ in range(count):
        _take_step(engine, search, step, options)
    if engine.graphs is not None:  # engine.step replaces these tensors; the next replay reads the static buffers
        for buffer, new in zip(buffers, recurrent, strict=True):
            buffer.copy_(new)
        recurrent[:] = buffers


def _take_step(engine: Engine, search: _Search, step: Tensor, options: DecodingConfig) -> None:
    batch, hypotheses, live = search.batch, search.hypotheses, search.live
    output = engine.step(search.last, batch.state, batch.encoded)
    constraints = TokenConstraints(hypotheses.written, options.no_repeat_ngram, step >= options.min_target_tokens)
    tokens, log_probs = engine.backend.top_tokens(1, output.logits, constraints, batch.copy_inputs(output))
    last = search.last.copy_(tokens[:, 0])
    ends = live & (last == EOS)
    writes = live & ~ends
    hypotheses.log_prob_sums += torch.where(live, log_probs[:, 0], 0.0)
    hypotheses.lengths += writes
    hypotheses.written.copy_(torch.cat((hypotheses.written[:, 1:], torch.where(writes, last, PAD)[:, None]), 1))
    hypotheses.ended |= ends
    step += 1
    live &= ~ends & (step < search.limits)


def _remove_finished(search: _Search, results: _Hypotheses, steps: int, bucket: Callable[[int], int]) -> _Search:
    """Store the hypotheses of finished rows and remove their slots, if a smaller batch fits the live ones.

    Args:
        steps: taken so far.
        bucket: rounds a number of live slots up to the number of slots to keep.
    """
    live_count = int(search.live.sum())
    if live_count and bucket(live_count) == len(search.live):
        return search
    done = (~search.live).nonzero()[:, 0]
    rows, hypotheses = search.batch.rows[done], search.hypotheses
    results.written[rows, :steps] = hypotheses.written[done, -steps:]
    results.lengths[rows] = hypotheses.lengths[done]
    results.log_prob_sums[rows] = hypotheses.log_prob_sums[done]
    results.ended[rows] = hypotheses.ended[done]
    search = compact_batch(search.live.clone(), live_count, search, bucket(live_count))
    search.batch.rows[live_count:] = len(results.lengths) - 1
    search.live[:live_count] = True
    search.live[live_count:] = False
    return search
