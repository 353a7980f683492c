"""Two common decoding loops that the decode benchmark compares with the engine.

Both apply a softmax over the vocabulary, and check on the CPU at every step which rows have ended.
"""

from __future__ import annotations

from collections.abc import Iterable
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

_COMPACT_SHARE = 1 / 8
"""The sorted loop removes finished rows once they are this share of a batch: copying then costs less than it saves."""


@dataclass(frozen=True)
class Task:
    """Sources to decode with a model.

    Attributes:
        limits: Maximum tokens of each hypothesis [N]; None if the model ends by itself.
    """

    name: str
    model: Seq2Seq
    sources: Rows
    options: DecodingConfig
    limits: npt.NDArray[np.int64] | None

    @property
    def source_lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each source that the model reads [N]."""
        return self.sources.lengths(self.options.max_source_tokens)

    def target_steps(self, tokens: list[list[int]]) -> npt.NDArray[np.int64]:
        """Return the decoder steps of each hypothesis [N], including the one that wrote ``</s>``."""
        lengths = np.array([len(row) for row in tokens])
        return lengths + (lengths < (self.options.max_target_tokens if self.limits is None else self.limits))


@dataclass(frozen=True)
class DecodingResult:
    """Output of a decoder.

    Attributes:
        tokens: Tokens of each hypothesis.
        padded_steps: Source and target steps that were computed, including padding.
    """

    tokens: list[list[int]]
    padded_steps: int


def textbook_loop(task: Task) -> DecodingResult:
    """Decode sources in their order, 32 at a time, each batch to the maximum length."""
    rows = np.arange(len(task.sources))
    return _decode(task, np.split(rows, range(_TEXTBOOK_BATCH, len(rows), _TEXTBOOK_BATCH)), compacts=False)


def sorted_loop(task: Task, token_budget: int) -> DecodingResult:
    """Decode sources by length, in batches within a budget of padded tokens; finished rows are removed from the batch."""
    lengths = task.source_lengths
    return _decode(task, budget_batches((lengths,), longest_first(lengths), token_budget), compacts=True)


def _decode(task: Task, batches: Iterable[Ints], *, compacts: bool) -> DecodingResult:
    tokens: list[list[int]] = [[] for _ in range(len(task.sources))]
    padded = 0
    for rows in batches:
        batch, steps = _decode_batch(task, rows, compacts=compacts)
        for row, hypothesis in zip(rows, batch, strict=True):
            tokens[row] = hypothesis
        padded += len(rows) * int(task.source_lengths[rows].max()) + steps
    return DecodingResult(tokens, padded)


@torch.inference_mode()
def _decode_batch(task: Task, rows: Ints, *, compacts: bool) -> tuple[list[list[int]], int]:
    """Decode one batch; return the tokens of each row and the number of steps, summed over rows."""
    model, options = task.model, task.options
    device = next(model.parameters()).device
    torch.backends.cudnn.allow_tf32 = False  # the engine does not use it in float32 either
    source, lengths = (part.to(device) for part in task.sources.padded(rows, options.max_source_tokens))
    limits = torch.full((len(rows),), options.max_target_tokens) if task.limits is None else torch.from_numpy(task.limits[rows])
    limits = limits.to(device)
    encoded, state = model.encode(source, lengths)
    live = torch.arange(len(rows), device=device)
    tokens = torch.full((len(rows), options.max_target_tokens), PAD, device=device)
    done = torch.zeros(len(rows), dtype=torch.bool, device=device)
    last = torch.full((len(rows),), BOS, device=device)
    steps = 0
    for step in range(options.max_target_tokens):
        probs, state = next_probabilities(model, last, state, encoded)
        steps += len(live)
        _forbid(probs, tokens[live, :step], options)
        last = probs.argmax(-1)
        tokens[live, step] = torch.where(~done[live] & (last != EOS), last, PAD)
        done[live] |= (last == EOS) | (step + 1 >= limits[live])
        unfinished = int((~done[live]).sum())
        if compacts and unfinished == 0:
            break
        if compacts and unfinished <= (1 - _COMPACT_SHARE) * len(live):
            keep = (~done[live]).nonzero()[:, 0]
            live, last = live[keep], last[keep]
            state = tuple(part[:, keep] for part in state)
            encoded = _select_rows(encoded, keep, int(lengths[live].max()))
    return [[token for token in row if token != PAD] for row in tokens.tolist()], steps


def next_probabilities(model: Seq2Seq, tokens: Tensor, state: State, encoded: EncoderOutput) -> tuple[Tensor, State]:
    """Return the probabilities [B, V] (float32) of the token after tokens [B], and the new state."""
    features, weights, gate, state = model.decoder(tokens[:, None], state, encoded)
    probs = model.decoder.output(features[:, 0]).float().softmax(-1)
    if weights is not None and gate is not None:
        # See et al. 2017, eq. 9
        probs.mul_(gate.sigmoid()).scatter_add_(1, encoded.source, weights[:, 0] * (-gate).sigmoid())
    return probs, state


def _select_rows(encoded: EncoderOutput, rows: Tensor, longest: int) -> EncoderOutput:
    """Select rows [R], whose sources have at most ``longest`` tokens."""
    parts = (None if part is None else part[rows, :longest] for part in (encoded.states, encoded.keys))
    return EncoderOutput(encoded.source[rows, :longest], encoded.padding[rows, :longest], *parts)


def _forbid(probs: Tensor, tokens: Tensor, options: DecodingConfig) -> None:
    """Set probs [B, V] to -1 or less for what may not follow tokens [B, T]."""
    step, n = tokens.shape[1], options.no_repeat_ngram
    for token in (PAD, UNK, BOS, EOS) if step < options.min_target_tokens else (PAD, UNK, BOS):
        probs[:, token] = -1.0
    if 0 < n <= step:
        ngrams = tokens.unfold(1, n, 1)
        repeats = (ngrams[:, :, : n - 1] == tokens[:, None, step - n + 1 :]).all(-1)
        probs.scatter_add_(1, ngrams[:, :, n - 1], repeats.float().mul_(-9.0))
