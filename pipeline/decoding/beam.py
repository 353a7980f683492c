"""Beam search, with its length and coverage penalties (Wu et al. 2016, section 7).

``_end_at_eos`` handles ``</s>``, ``_continue_beam`` picks the hypotheses to continue, ``_end_at_limit`` handles the length
limit and stops sources that cannot improve. ``beam_search`` compacts the batch between steps (batch_state.py). It uses no CUDA
graphs.

Shapes: B batch (sources), N slots, K hypotheses per source (the beam), M hypotheses per slot (K or 2K), S source steps, T
target steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config.model import DecodingConfig
from pipeline.data.special_tokens import BOS, EOS, PAD
from pipeline.decoding.backends import TokenConstraints
from pipeline.decoding.batch_state import STEPS_BETWEEN_CHECKS, BatchState, SearchResult, compact_batch
from pipeline.decoding.engine import Engine


@dataclass
class _Hypotheses:
    """Incomplete hypotheses: log-probabilities totals[N, M] (nat), written[N, M, T], attention summed over steps[N, M, S]."""

    totals: Tensor
    written: Tensor
    coverage: Tensor

    def gather(self, indices: Tensor) -> _Hypotheses:
        return _Hypotheses(self.totals.gather(1, indices), *(_gather(part, indices) for part in (self.written, self.coverage)))


@dataclass
class _Beam:
    """The hypotheses to continue, K in each of N slots.

    Attributes:
        hypotheses: tokens so far, with their log-probabilities and coverage.
        last: tokens of the last step [N, K].
        is_source: [N, S], False at padding.
        is_greedy: [N], True while the first hypothesis is what greedy search writes.
        live: [N], True until the source is done.
    """

    batch: BatchState
    hypotheses: _Hypotheses
    last: Tensor
    is_source: Tensor
    is_greedy: Tensor
    live: Tensor

    @classmethod
    def start(cls, batch: BatchState, options: DecodingConfig) -> _Beam:
        """Start every hypothesis with ``<s>``."""
        ids, beam_size = batch.encoded.ids, options.beam_size
        (slots, width), device = ids.shape, ids.device
        for part in (batch.state.recurrent, batch.state.cell):
            part[:] = [layer.repeat_interleave(beam_size, 0) for layer in part]
        totals = torch.full((slots, beam_size), -torch.inf, device=device)
        totals[:, 0] = 0.0  # the K hypotheses are the same before the first token
        written = torch.full((slots, beam_size, options.max_target_tokens), PAD, device=device)
        return cls(
            batch=batch,
            hypotheses=_Hypotheses(totals, written, torch.zeros(slots, beam_size, width, device=device)),
            last=torch.full((slots, beam_size), BOS, device=device),
            is_source=torch.arange(width, device=device) < batch.encoded.lengths[:, None],
            is_greedy=torch.ones(slots, dtype=torch.bool, device=device),
            live=torch.ones(slots, dtype=torch.bool, device=device),
        )

    def values(self, hypotheses: _Hypotheses, length: int, options: DecodingConfig) -> Tensor:
        """Return log-probabilities with both penalties [N, M], for ``length`` tokens including ``</s>``."""
        values = hypotheses.totals / _length_penalty(length, options)
        if options.coverage_penalty and self.batch.encoded.states is not None:
            logs = hypotheses.coverage.clamp(1e-9, 1.0).log().masked_fill(~self.is_source[:, None], 0.0)
            values = values + options.coverage_penalty * logs.sum(-1)
        return values


@dataclass
class _BestHypotheses:
    """The best complete hypothesis of B sources; values[B] are those of ``beam_search``, the rest as in SearchResult."""

    tokens: Tensor
    lengths: Tensor
    log_prob_sums: Tensor
    values: Tensor
    finished: Tensor

    def offer(self, rows: Tensor, values: Tensor, hypotheses: _Hypotheses, length: int, *, ends: bool) -> None:
        """Replace hypotheses of rows[N] by better ones among values[N, K], of ``length`` tokens without ``</s>``."""
        for rank in range(values.shape[1]):
            is_better = values[:, rank] > self.values[rows]
            for best, new in (
                (self.tokens, hypotheses.written[:, rank]),
                (self.lengths, torch.full_like(rows, length)),
                (self.log_prob_sums, hypotheses.totals[:, rank]),
                (self.values, values[:, rank]),
                (self.finished, torch.full_like(is_better, ends)),
            ):
                best[rows] = torch.where(is_better.view(-1, *[1] * (best.dim() - 1)), new, best[rows])


@dataclass
class _Candidates:
    """The 2K best one-token extensions in each slot, by descending log-probability, except that the greedy one comes first."""

    parents: Tensor  # [N, 2K], indices of the extended hypotheses
    tokens: Tensor  # [N, 2K], the next tokens
    hypotheses: _Hypotheses  # ``written`` without the next token


def beam_search(engine: Engine, batch: BatchState, limits: Tensor, options: DecodingConfig) -> SearchResult:
    """Return the best hypotheses that a beam of K finds for B sources, one per slot, of at most limits[B] tokens.

    The value of a hypothesis Y is log P(Y | X) / lp(Y) + cp(X; Y), with lp = ((5 + |Y|) / 6) ** length_penalty, where |Y|
    includes ``</s>``, and cp = coverage_penalty times the sum over source positions of log(min(attention summed over Y, 1)).

    A source is done once no hypothesis can become better than its best complete one: log-probabilities only fall, and lp is
    largest at the limit. If no hypothesis ends with ``</s>``, the best one at the limit counts.

    The greedy hypothesis always stays in the beam. Otherwise a wide beam would sometimes find a worse result than K = 1.
    """
    sources, device = len(limits), engine.device
    best = _BestHypotheses(
        tokens=torch.full((sources, options.max_target_tokens), PAD, device=device),
        lengths=torch.zeros_like(limits),
        log_prob_sums=torch.zeros(sources, device=device),
        values=torch.full((sources,), -torch.inf, device=device),
        finished=torch.zeros(sources, dtype=torch.bool, device=device),
    )
    beam = _Beam.start(batch, options)
    row_steps = 0
    for step in range(options.max_target_tokens):
        row_steps += beam.last.numel()
        candidates = _extend(engine, beam, step, options)
        _end_at_eos(beam, candidates, best, step, options)
        _continue_beam(beam, candidates, step)
        _end_at_limit(beam, best, limits, step, options)
        if (step + 1) % STEPS_BETWEEN_CHECKS[device.type] == 0:
            live_count = int(beam.live.sum())
            beam = compact_batch(beam.live.clone(), live_count, beam, live_count)
            if live_count == 0:
                break
    scores = best.log_prob_sums / (best.lengths + best.finished)
    return SearchResult(best.tokens, best.lengths, scores, best.finished, row_steps)


def _extend(engine: Engine, beam: _Beam, step: int, options: DecodingConfig) -> _Candidates:
    """Run a step of the network, add its attention to the coverage, and rank the extensions by one token."""
    (slots, beam_size), hypotheses = beam.last.shape, beam.hypotheses
    output = engine.step(beam.last.flatten(), beam.batch.state, beam.batch.encoded)
    eos_allowed = torch.full((), step >= options.min_target_tokens, device=engine.device)
    constraints = TokenConstraints(hypotheses.written[:, :, :step].flatten(0, 1), options.no_repeat_ngram, eos_allowed)
    # K + 1 tokens per hypothesis, because one of them may be </s>.
    count = beam_size + 1
    tokens, log_probs = engine.backend.top_tokens(count, output.logits, constraints, beam.batch.copy_inputs(output))
    totals = (hypotheses.totals[:, :, None] + log_probs.view(slots, beam_size, count)).flatten(1)
    is_first = torch.arange(totals.shape[1], device=engine.device) == 0
    ranks = totals.masked_fill(beam.is_greedy[:, None] & is_first, torch.inf).topk(2 * beam_size, dim=1).indices
    if output.weights is not None:
        hypotheses.coverage = hypotheses.coverage + output.weights.view(hypotheses.coverage.shape)
    parents = ranks // count
    written, coverage = _gather(hypotheses.written, parents), _gather(hypotheses.coverage, parents)
    next_tokens = tokens.view(slots, beam_size * count).gather(1, ranks)
    return _Candidates(parents, next_tokens, _Hypotheses(totals.gather(1, ranks), written, coverage))


def _end_at_eos(beam: _Beam, candidates: _Candidates, best: _BestHypotheses, step: int, options: DecodingConfig) -> None:
    """Offer candidates that end with ``</s>`` and are among the K best."""
    ends = candidates.tokens == EOS
    beam.is_greedy &= ~ends[:, 0]
    values = beam.values(candidates.hypotheses, step + 1, options).masked_fill(~ends | ~beam.live[:, None], -torch.inf)
    best.offer(beam.batch.rows, values[:, : options.beam_size], candidates.hypotheses, step, ends=True)


def _continue_beam(beam: _Beam, candidates: _Candidates, step: int) -> None:
    """Continue with the K best candidates that do not end."""
    slots, beam_size = beam.last.shape
    ends = candidates.tokens == EOS
    kept = ends.long().argsort(dim=1, stable=True)[:, :beam_size]
    candidates.hypotheses.totals.masked_fill_(ends, -torch.inf)
    beam.hypotheses = candidates.hypotheses.gather(kept)
    beam.last = candidates.tokens.gather(1, kept)
    beam.hypotheses.written[:, :, step] = beam.last
    parents = candidates.parents.gather(1, kept)
    rows = (torch.arange(slots, device=parents.device)[:, None] * beam_size + parents).flatten()
    for part in (beam.batch.state.recurrent, beam.batch.state.cell):
        part[:] = [layer[rows] for layer in part]


def _end_at_limit(beam: _Beam, best: _BestHypotheses, limits: Tensor, step: int, options: DecodingConfig) -> None:
    """Offer hypotheses at the limit where none has ended, and mark sources that are done."""
    rows = beam.batch.rows
    is_at_limit = step + 1 >= limits[rows]
    is_cut = beam.live & is_at_limit & ~best.finished[rows]
    values = beam.values(beam.hypotheses, step + 1, options).masked_fill(~is_cut[:, None], -torch.inf)
    best.offer(rows, values, beam.hypotheses, step + 1, ends=False)
    bound = beam.hypotheses.totals.amax(1) / _length_penalty(limits[rows] + 1, options)
    beam.live &= ~(is_at_limit | (bound <= best.values[rows]))


def _length_penalty(length: int | Tensor, options: DecodingConfig) -> float | Tensor:
    """Return lp of Wu et al. 2016, eq. 14, for lengths including ``</s>``."""
    penalty: float | Tensor = ((5 + length) / 6) ** options.length_penalty
    return penalty


def _gather(values: Tensor, indices: Tensor) -> Tensor:
    """Return values[N, M, any] at indices[N, M] of its second dimension."""
    return values.gather(1, indices[:, :, None].expand(-1, -1, values.shape[2]))
