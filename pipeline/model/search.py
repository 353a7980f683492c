"""Greedy and beam search over one batch: from what the network predicts at each step to whole hypotheses.

Rows that are done leave the batch: the last ones move into their places, so that a source's states, the most of what a row
has, are copied once at most. On a GPU nothing here waits for the device but a look, every few steps, at who is done.

Shapes: B sources, K hypotheses of each at a time (the beam), S source steps, T target steps, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config import BOS, EOS, PAD, DecodingConfig
from pipeline.model.arithmetic import Copying
from pipeline.model.engine import Carry, Engine, Prediction, Sources

STEPS_BETWEEN_LOOKS = {"cpu": 1, "cuda": 8}


@dataclass(frozen=True)
class Found:
    """The hypothesis of each of B sources.

    tokens[B, T]: padded, without ``</s>``. lengths[B]: of them. scores[B]: mean log-probability of a token (nat), of
    ``</s>`` too where it was written. finished[B]: whether it was, or the maximum length cut the row.
    """

    tokens: Tensor
    lengths: Tensor
    scores: Tensor
    finished: Tensor


@torch.inference_mode()
def search(
    engine: Engine, source: Tensor, source_lengths: Tensor, options: DecodingConfig, limits: Tensor | None = None
) -> Found:
    """Find hypotheses for source[B, S] with source_lengths[B] ≥ 1, in falling order.

    limits[B]: the most tokens of each, 1 to ``max_target_tokens``; without them the options say.
    """
    if limits is None:
        limits = torch.full_like(source_lengths, options.max_target_tokens)
        if options.max_target_ratio is not None:
            grown = (options.max_target_ratio * source_lengths).long() + options.max_target_extra
            limits = grown.clamp(max(1, options.min_target_tokens), options.max_target_tokens)
    sources, carry = engine.read(source, source_lengths)
    first = _first_positions(source) if engine.config.copy_source else None
    slots = _Slots(torch.arange(len(source), device=engine.device), sources, carry, first)
    return (_greedy if options.beam_size == 1 else _beam)(engine, slots, limits, options)


@dataclass
class _Slots:
    """Rows that are not done: which of the batch (rows[n]), and what the network needs of them. first: see Copying."""

    rows: Tensor
    sources: Sources
    carry: Carry
    first: Tensor | None

    def copying(self, prediction: Prediction) -> Copying | None:
        """How this prediction may copy."""
        if prediction.copy_logits is None or self.first is None or prediction.weights is None:
            return None
        sources = self.sources
        return Copying(sources.ids, self.first, sources.lengths, prediction.weights, prediction.copy_logits)

    def keep(self, live: Tensor, *others: Tensor) -> list[Tensor]:
        """Let go of slots that are not live[n]; others[n, ...] go along, and come back."""
        stay = int(live.sum())
        gaps = (~live[:stay]).nonzero()[:, 0]
        movers = live[stay:].nonzero()[:, 0] + stay

        def kept(part: Tensor) -> Tensor:
            # A beam's K rows of a source lie together.
            by_slot = part.view(len(live), -1) if len(part) != len(live) else part
            by_slot[gaps] = by_slot[movers]
            return part[: stay * (len(part) // len(live))]

        sources = self.sources
        if len(live) != stay:
            self.rows = kept(self.rows)
            self.first = None if self.first is None else kept(self.first)
            self.sources = Sources(
                kept(sources.ids),
                kept(sources.lengths),
                None if sources.states is None else kept(sources.states),
                None if sources.keys is None else kept(sources.keys),
            )
            self.carry = Carry([kept(part) for part in self.carry.recurrent], [kept(part) for part in self.carry.cell])
            others = tuple(kept(part) for part in others)
        return list(others)


def _greedy(engine: Engine, slots: _Slots, limits: Tensor, options: DecodingConfig) -> Found:
    """The likeliest allowed token at each step."""
    batch, device = len(limits), engine.device
    tokens = torch.full((batch, options.max_target_tokens), PAD, device=device)
    lengths = torch.zeros_like(limits)
    log_prob_sums = torch.zeros(batch, device=device)
    finished = torch.zeros(batch, dtype=torch.bool, device=device)
    last = torch.full((batch,), BOS, device=device)
    for step in range(options.max_target_tokens):
        rows = slots.rows
        prediction = engine.step(last, slots.carry, slots.sources)
        chosen, log_probs = engine.arithmetic.likeliest(
            1,
            prediction.logits,
            tokens[rows, :step],
            options.no_repeat_ngram,
            step >= options.min_target_tokens,
            slots.copying(prediction),
        )
        last = chosen[:, 0]
        live = ~finished[rows] & (step < limits[rows])
        ends = live & (last == EOS)
        writes = live & ~ends
        log_prob_sums[rows] += torch.where(live, log_probs[:, 0], 0.0)
        lengths[rows] += writes
        tokens[rows, step] = torch.where(writes, last, PAD)
        finished[rows] |= ends
        if (step + 1) % STEPS_BETWEEN_LOOKS[device.type] == 0:
            (last,) = slots.keep(~finished[rows] & (step + 1 < limits[rows]), last)
            if len(last) == 0:
                break
    # </s> is never written past the limit, so a cut row's mean is over its tokens alone.
    return Found(tokens, lengths, log_prob_sums / (lengths + finished), finished)


@dataclass
class _Best:
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


def _beam(engine: Engine, slots: _Slots, limits: Tensor, options: DecodingConfig) -> Found:
    """The best of all hypotheses that K at a time lead to (Wu et al. 2016, section 7), greedy search's always among them.

    A hypothesis Y is worth log P(Y | X) / lp(Y) + cp(X; Y): lp = ((5 + |Y|) / 6) ** alpha, |Y| with ``</s>``; cp = beta times
    the sum over source positions of log(min(attention summed over Y, 1)). A source is done once no hypothesis that
    goes on can be worth more than the best that has ended: a log-probability only falls, and lp grows no larger than at the
    limit. One that never ended is taken if none has. What greedy search would write is followed to its end, however unlikely
    it becomes on the way: else a wider search would now and then find less than the narrowest.
    """
    batch, beam, device = len(limits), options.beam_size, engine.device
    longest = options.max_target_tokens
    best = _Best(
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

    for step in range(longest):
        rows = slots.rows
        prediction = engine.step(last.flatten(), slots.carry, slots.sources)
        # One more than K of each: one of them may be </s>.
        tokens, log_probs = engine.arithmetic.likeliest(
            beam + 1,
            prediction.logits,
            written[:, :, :step].flatten(0, 1),
            options.no_repeat_ngram,
            step >= options.min_target_tokens,
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
        if (step + 1) % STEPS_BETWEEN_LOOKS[device.type] == 0:
            parts = slots.keep(live, last, totals, written, coverage, inside, greedy, live.clone())
            last, totals, written, coverage, inside, greedy, live = parts
            if len(live) == 0:
                break
    return Found(best.tokens, best.lengths, best.log_prob_sums / (best.lengths + best.finished), best.finished)


def _first_positions(ids: Tensor) -> Tensor:
    """Where the token at each position of ids[B, S] is first in its row, [B, S]."""
    order = ids.argsort(dim=1, stable=True)
    ordered = ids.gather(1, order)
    starts = torch.ones_like(ids, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    at = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    run = torch.where(starts, at, 0).cummax(1).values
    return torch.empty_like(ids).scatter_(1, order, order.gather(1, run))
