"""The two loops that decoders of this kind are usually written as, for the decode benchmark to compare with.

Both look at the result at every step, and take a softmax over the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config.model import DecodingConfig
from pipeline.data.special_tokens import BOS, EOS, PAD, UNK
from pipeline.model.batching import Ints, Rows, budget_batches, longest_first
from pipeline.model.rnn import State
from pipeline.model.seq2seq import EncoderOutput, Seq2Seq

_TEXTBOOK_BATCH = 32
_LEAVING_SHARE = 1 / 8
"""In the sorted loop rows leave once they are this share of the batch: a copy of the memory then costs less than it saves."""


@dataclass(frozen=True)
class Task:
    """Sources to decode with a model. limits[N]: most tokens of each; None where the model ends by itself."""

    name: str
    model: Seq2Seq
    sources: Rows
    options: DecodingConfig
    limits: npt.NDArray[np.int64] | None


@dataclass(frozen=True)
class BaselineResult:
    """What a decoder wrote: tokens of each row; real source and target steps; those of the rectangles that it made of them.

    On a CPU the engine makes no rectangles of its sources.
    """

    tokens: list[list[int]]
    steps: int
    padded_steps: int


def textbook_loop(task: Task) -> BaselineResult:
    """Sources in the order they come, 32 at a time, each batch to the maximum length."""
    tokens: list[list[int]] = []
    padded = 0
    lengths = task.sources.lengths(task.options.max_source_tokens)
    for start in range(0, len(task.sources), _TEXTBOOK_BATCH):
        rows = np.arange(start, min(start + _TEXTBOOK_BATCH, len(task.sources)))
        batch, steps = _loop(task, rows, leave=False)
        tokens += batch
        padded += len(rows) * int(lengths[rows].max()) + steps
    return BaselineResult(tokens, real_steps(task, tokens), padded)


def sorted_loop(task: Task, token_budget: int) -> BaselineResult:
    """Sources by length, within a budget of padded tokens; rows that are done leave the batch."""
    tokens: list[list[int]] = [[] for _ in range(len(task.sources))]
    padded = 0
    lengths = task.sources.lengths(task.options.max_source_tokens)
    for rows in budget_batches((lengths,), longest_first(lengths), token_budget):
        batch, steps = _loop(task, rows, leave=True)
        for row, written in zip(rows, batch, strict=True):
            tokens[row] = written
        padded += len(rows) * int(lengths[rows].max()) + steps
    return BaselineResult(tokens, real_steps(task, tokens), padded)


@torch.inference_mode()
def _loop(task: Task, rows: Ints, leave: bool) -> tuple[list[list[int]], int]:
    """One batch: the tokens of each row, and how many row-steps were computed."""
    model, options = task.model, task.options
    device = next(model.parameters()).device
    torch.backends.cudnn.allow_tf32 = False  # as the engine has it in float32
    source, lengths = (part.to(device) for part in task.sources.padded(rows, options.max_source_tokens))
    limits = torch.full((len(rows),), options.max_target_tokens) if task.limits is None else torch.from_numpy(task.limits[rows])
    limits = limits.to(device)
    memory, state = model.encode(source, lengths)
    live = torch.arange(len(rows), device=device)
    tokens = torch.full((len(rows), options.max_target_tokens), PAD, device=device)
    done = torch.zeros(len(rows), dtype=torch.bool, device=device)
    last = torch.full((len(rows),), BOS, device=device)
    steps = 0
    for step in range(options.max_target_tokens):
        probs, state = next_probabilities(model, last, state, memory)
        steps += len(live)
        _forbid(probs, tokens[live, :step], options)
        last = probs.argmax(-1)
        writes = ~done[live] & (last != EOS)
        tokens[live, step] = torch.where(writes, last, PAD)
        done[live] |= (last == EOS) | (step + 1 >= limits[live])
        left = int((~done[live]).sum())
        if leave and left == 0:
            break
        if leave and left <= (1 - _LEAVING_SHARE) * len(live):
            keep = (~done[live]).nonzero()[:, 0]
            live, last = live[keep], last[keep]
            state = tuple(part[:, keep] for part in state)
            memory = _taken_rows(memory, keep, int(lengths[live].max()))
    return [[token for token in row if token != PAD] for row in tokens.tolist()], steps


def next_probabilities(model: Seq2Seq, tokens: Tensor, state: State, memory: EncoderOutput) -> tuple[Tensor, State]:
    """Probabilities[B, V] float32 of what comes after the last tokens[B], and the new state."""
    features, weights, gate, state = model.decoder(tokens[:, None], state, memory)
    probs = model.decoder.output(features[:, 0]).float().softmax(-1)
    if weights is not None and gate is not None:
        # See et al. 2017, eq. 9
        probs.mul_(gate.sigmoid()).scatter_add_(1, memory.source, weights[:, 0] * (-gate).sigmoid())
    return probs, state


def _taken_rows(memory: EncoderOutput, rows: Tensor, longest: int) -> EncoderOutput:
    """The memory of some rows [R] whose sources have at most ``longest`` tokens."""

    def taken(part: Tensor | None) -> Tensor | None:
        return None if part is None else part[rows, :longest]

    parts = taken(memory.states), taken(memory.keys)
    return EncoderOutput(memory.source[rows, :longest], memory.padding[rows, :longest], *parts)


def _forbid(probs: Tensor, written: Tensor, options: DecodingConfig) -> None:
    """What may not follow written[B, T] gets probability -1, in probs[B, V]."""
    step, n = written.shape[1], options.no_repeat_ngram
    for token in (PAD, UNK, BOS, EOS) if step < options.min_target_tokens else (PAD, UNK, BOS):
        probs[:, token] = -1.0
    if 0 < n <= step:
        ngrams = written.unfold(1, n, 1)
        repeats = (ngrams[:, :, : n - 1] == written[:, None, step - n + 1 :]).all(-1)
        probs.scatter_add_(1, ngrams[:, :, n - 1], repeats.float().mul_(-9.0))


def target_steps(task: Task, tokens: list[list[int]]) -> npt.NDArray[np.int64]:
    """Of each row, with the one that writes ``</s>``."""
    lengths = np.array([len(row) for row in tokens])
    return lengths + (lengths < (task.options.max_target_tokens if task.limits is None else task.limits))


def real_steps(task: Task, tokens: list[list[int]]) -> int:
    """Source tokens and target steps."""
    return int(task.sources.lengths(task.options.max_source_tokens).sum() + target_steps(task, tokens).sum())
