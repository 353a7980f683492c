"""Beam search: the best of all hypotheses that K at a time lead to.

Shapes: B sources, N slots, K hypotheses of each at a time (the beam), S source steps, T target steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config.model import DecodingConfig
from pipeline.data.special_tokens import BOS, EOS, PAD
from pipeline.decoding.batch_state import STEPS_BETWEEN_CHECKS, BatchState, SearchResult, compact
from pipeline.decoding.engine import Engine


@dataclass
class _BestHypotheses:
    """The best hypothesis so far of B sources; values[B] as beam search compares them, the rest as in Found."""

    tokens: Tensor
    lengths: Tensor
    log_prob_sums: Tensor
    values: Tensor
    finished: Tensor

    def offer(self, rows: Tensor, values: Tensor, written: Tensor, length: int, log_prob_sums: Tensor, ends: bool) -> None:
        """One hypothesis for each of rows[n], of value[n] (minus infinity: none) and written[n, T]."""
        better = values > self.values[rows]
        for kept, new in (
            (self.tokens, written),
            (self.lengths, torch.full_like(rows, length)),
            (self.log_prob_sums, log_prob_sums),
            (self.values, values),
            (self.finished, torch.full_like(better, ends)),
        ):
            kept[rows] = torch.where(better.view(-1, *[1] * (kept.dim() - 1)), new, kept[rows])


def beam_search(engine: Engine, slots: BatchState, limits: Tensor, options: DecodingConfig) -> SearchResult:
    """The best of all hypotheses that K at a time lead to (Wu et al. 2016, section 7), greedy search's always among them.

    A hypothesis Y is worth log P(Y | X) / lp(Y) + cp(X; Y): lp = ((5 + |Y|) / 6) ** alpha, |Y| with ``</s>``; cp = beta times
    the sum over source positions of log(min(attention summed over Y, 1)). A source is done once no hypothesis that
    goes on can be worth more than the best that has ended: a log-probability only falls, and lp grows no larger than at the
    limit. One that never ended is taken if none has. What greedy search would write is followed to its end, however unlikely
    it becomes on the way: else a wider search would now and then find less than the narrowest.
    """
    batch, beam, device = len(limits), options.beam_size, engine.device
    longest = options.max_target_tokens
    best = _BestHypotheses(
        tokens=torch.full((batch, longest), PAD, device=device),
        lengths=torch.zeros_like(limits),
        log_prob_sums=torch.zeros(batch, device=device),
        values=torch.full((batch,), -torch.inf, device=device),
        finished=torch.zeros(batch, dtype=torch.bool, device=device),
    )
    width = slots.sources.ids.shape[1]
    for part in (slots.carry.recurrent, slots.carry.cell):
        part[:] = [of_layer.repeat_interleave(beam, 0) for of_layer in part]
    totals = torch.full((batch, beam), -torch.inf, device=device)
    totals[:, 0] = 0.0  # all K are alike before the first token
    written = torch.full((batch, beam, longest), PAD, device=device)
    coverage = torch.zeros(batch, beam, width, device=device)
    last = torch.full((batch, beam), BOS, device=device)
    live = torch.ones_like(limits, dtype=torch.bool)
    greedy = torch.ones_like(live)  # whether the first hypothesis is still what greedy search writes
    inside = torch.arange(width, device=device) < slots.sources.lengths[:, None]

    def values_of(totals: Tensor, coverage: Tensor, length: int) -> Tensor:
        values: Tensor = totals / ((5 + length) / 6) ** options.length_penalty
        if options.coverage_penalty and slots.sources.states is not None:
            logs = coverage.clamp(1e-9, 1.0).log().masked_fill(~inside[:, None], 0.0)
            values = values + options.coverage_penalty * logs.sum(-1)
        return values

    steps = torch.zeros((), dtype=torch.long, device=device)
    row_steps = 0
    for step in range(longest):
        rows = slots.rows
        row_steps += beam * len(rows)
        prediction = engine.step(last.flatten(), slots.carry, slots.sources)
        # One more than K of each: one of them may be </s>.
        tokens, log_probs = engine.arithmetic.likeliest(
            beam + 1,
            prediction.logits,
            written[:, :, :step].flatten(0, 1),
            options.no_repeat_ngram,
            steps >= options.min_target_tokens,
            slots.copying(prediction),
        )
        reached = (totals[:, :, None] + log_probs.view(-1, beam, beam + 1)).flatten(1)
        first = torch.arange(reached.shape[1], device=device) == 0
        which = reached.masked_fill(greedy[:, None] & first, torch.inf).topk(2 * beam, dim=1).indices
        reached = reached.gather(1, which)
        parents, next_tokens = which // (beam + 1), tokens.view(-1, beam * (beam + 1)).gather(1, which)
        if prediction.weights is not None:
            coverage = coverage + prediction.weights.view(-1, beam, width)
        reached_coverage = coverage.gather(1, parents[:, :, None].expand(-1, -1, width))
        reached_written = written.gather(1, parents[:, :, None].expand(-1, -1, longest))
        ends = next_tokens == EOS
        greedy &= ~ends[:, 0]
        values = values_of(reached, reached_coverage, step + 1).masked_fill(~ends, -torch.inf)
        values[:, beam:] = -torch.inf  # what is not among the K best does not end either
        values.masked_fill_(~live[:, None], -torch.inf)
        for rank in range(beam):
            best.offer(rows, values[:, rank], reached_written[:, rank], step, reached[:, rank], ends=True)

        # The K best that go on.
        order = ends.long().argsort(dim=1, stable=True)[:, :beam]
        parents, last = parents.gather(1, order), next_tokens.gather(1, order)
        totals = reached.masked_fill(ends, -torch.inf).gather(1, order)
        written = reached_written.gather(1, order[:, :, None].expand(-1, -1, longest)).clone()
        written[:, :, step] = last
        coverage = reached_coverage.gather(1, order[:, :, None].expand(-1, -1, width))
        at = (torch.arange(len(rows), device=device)[:, None] * beam + parents).flatten()
        for part in (slots.carry.recurrent, slots.carry.cell):
            part[:] = [of_layer[at] for of_layer in part]

        at_limit = step + 1 >= limits[rows]
        never_ended = values_of(totals, coverage, step + 1).masked_fill(
            ~(live & at_limit & ~best.finished[rows])[:, None], -torch.inf
        )
        for rank in range(beam):
            best.offer(rows, never_ended[:, rank], written[:, rank], step + 1, totals[:, rank], ends=False)
        bound = totals.amax(1) / ((5 + limits[rows] + 1) / 6) ** options.length_penalty
        live &= ~(at_limit | (bound <= best.values[rows]))
        steps += 1
        if (step + 1) % STEPS_BETWEEN_CHECKS[device.type] == 0:
            number = int(live.sum())
            parts = (slots, last, totals, written, coverage, inside, greedy, live)
            slots, last, totals, written, coverage, inside, greedy, live = compact(live.clone(), number, parts, number)
            if len(live) == 0:
                break
    scores = best.log_prob_sums / (best.lengths + best.finished)
    return SearchResult(best.tokens, best.lengths, scores, best.finished, row_steps)
