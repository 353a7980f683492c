"""Greedy search: from sources to the hypotheses that the network finds likeliest, a token at a time.

Works on token ids alone. A window of sources is sorted by length into batches within a token budget; a batch runs until
every row has written ``</s>`` or reached the maximum length, and rows that are done leave it on the way. What a row
becomes depends on that row, the weights and the options, not on its neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import BOS, EOS, PAD, UNK, DecodingConfig
from pipeline.model.batching import Rows, longest_first, within_budget
from pipeline.model.seq2seq import Memory, Seq2Seq, State

_LEAVING_SHARE = 1 / 8
"""Finished rows leave once they are this share of the batch: a copy of the memory then costs less than it saves."""


@dataclass(frozen=True)
class Hypotheses:
    """N hypotheses.

    values, offsets[N + 1]: token ids, flat, without ``</s>``. scores[N]: mean log-probability of a token (nat), with
    ``</s>`` where it was written. finished[N]: True if ``</s>`` was written, False if the maximum length cut the row.
    """

    values: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    finished: npt.NDArray[np.bool_]


def decode_window(
    model: Seq2Seq,
    values: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    options: DecodingConfig,
    token_budget: int,
) -> Hypotheses:
    """Greedy-decode a window of N sources.

    Args:
        model: in evaluation mode. values, offsets[N + 1]: source ids, flat; a source without tokens gives an empty,
            finished hypothesis with score 0.
        options: lengths and blocking; sources are cut to ``max_source_tokens``.
        token_budget: padded source tokens of a batch.

    Returns:
        Hypotheses in the order of the sources.
    """
    sources = Rows(values, offsets)
    lengths = sources.lengths(options.max_source_tokens)
    device = next(model.parameters()).device
    tokens = np.full((len(sources), options.max_target_tokens), PAD, np.int32)
    counts = np.zeros(len(sources), np.int64)
    scores = np.zeros(len(sources), np.float32)
    finished = np.ones(len(sources), np.bool_)
    order = longest_first(lengths)
    for rows in within_budget((lengths,), order[lengths[order] > 0], token_budget):
        source, source_lengths = sources.padded(rows, options.max_source_tokens)
        batch = greedy(model, source.to(device), source_lengths.to(device), options)
        tokens[rows, : batch.tokens.shape[1]] = batch.tokens.cpu().numpy()
        counts[rows] = batch.lengths.cpu().numpy()
        scores[rows] = batch.scores.cpu().numpy()
        finished[rows] = batch.finished.cpu().numpy()
    return Hypotheses(
        values=tokens[np.arange(tokens.shape[1]) < counts[:, None]],
        offsets=np.concatenate(([0], np.cumsum(counts))),
        scores=scores,
        finished=finished,
    )


@dataclass(frozen=True)
class GreedyBatch:
    """Hypotheses of a batch: tokens[B, T] padded, without ``</s>``; lengths[B]; scores[B]; finished[B]."""

    tokens: Tensor
    lengths: Tensor
    scores: Tensor
    finished: Tensor


@torch.inference_mode()
def greedy(model: Seq2Seq, source: Tensor, source_lengths: Tensor, options: DecodingConfig) -> GreedyBatch:
    """Decode source[B, S] with source_lengths[B] ≥ 1, taking the likeliest allowed token at each step."""
    batch, device = len(source), source.device
    tokens = torch.full((batch, options.max_target_tokens), PAD, device=device)
    lengths = torch.zeros(batch, dtype=torch.long, device=device)
    log_prob_sums = torch.zeros(batch, device=device)
    finished = torch.zeros(batch, dtype=torch.bool, device=device)

    memory, state = model.encode(source, source_lengths)
    rows = torch.arange(batch, device=device)  # the batch's row in each live slot
    last = torch.full((batch,), BOS, device=device)
    for step in range(options.max_target_tokens):
        probs, state = model.step(last, state, memory)
        _forbid(probs, tokens[rows, :step], options)
        best, last = probs.max(-1)
        live = ~finished[rows]
        log_prob_sums[rows] += torch.where(live, best.log(), 0.0)
        ends = live & (last == EOS)
        lengths[rows] += (live & ~ends).long()
        tokens[rows, step] = torch.where(live & ~ends, last, PAD)
        finished[rows] |= ends
        keep = (~finished[rows]).nonzero()[:, 0]
        if len(keep) == 0:
            break
        if len(keep) <= (1 - _LEAVING_SHARE) * len(rows):
            rows, last, state, memory = _keep(keep, rows, last, state, memory, source_lengths)
    # Greedy search never writes </s> past the limit, so a cut row's mean is over its tokens alone.
    return GreedyBatch(tokens, lengths, log_prob_sums / (lengths + finished.long()), finished)


def _keep(
    keep: Tensor, rows: Tensor, last: Tensor, state: State, memory: Memory, source_lengths: Tensor
) -> tuple[Tensor, Tensor, State, Memory]:
    """Drop the finished slots, and the source columns that only they needed."""
    rows = rows[keep]
    longest = int(source_lengths[rows].max())
    return rows, last[keep], tuple(part[:, keep] for part in state), memory.select(keep, longest)


def _forbid(probs: Tensor, written: Tensor, options: DecodingConfig) -> None:
    """Set what may not come next, given written[B, step], to minus infinity in probs[B, V]."""
    step = written.shape[1]
    for token in (PAD, UNK, BOS, EOS) if step < options.min_target_tokens else (PAD, UNK, BOS):
        probs[:, token] = -math.inf
    n = options.no_repeat_ngram
    if 0 < n <= step:
        # Every n-gram so far, against the n - 1 tokens just written: where its first n - 1 match, its last is forbidden.
        ngrams = written.unfold(1, n, 1)
        repeats = (ngrams[:, :, : n - 1] == written[:, None, step - n + 1 :]).all(-1)
        # Added, since one token may end a matching and another n-gram, and a plain scatter would keep either.
        bans = torch.zeros(repeats.shape, device=probs.device).masked_fill_(repeats, -math.inf)
        probs.scatter_add_(1, ngrams[:, :, n - 1], bans)
