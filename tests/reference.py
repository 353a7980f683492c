"""The reference: what the network computes and what greedy search writes, straight from the equations.

One row at a time, one token a step; no batch, no padding, no fused kernel, nothing kept for speed. It reads a model's
weights by name and shares no code with it, in float64, so that what differs is the fast path's error. Every fast path is
held to this file, and it is the place to learn from how the network works.

Shapes: S source steps, E embedding, H hidden, V vocabulary. A vector is one-dimensional; W @ x is a matrix times a vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config.model import DecodingConfig
from pipeline.data.special_tokens import BOS, EOS, PAD, UNK
from pipeline.model.seq2seq import Seq2Seq

Cells = list[tuple[Tensor, Tensor]]
"""(h[H], c[H]) of each layer; a GRU leaves c as it was."""


@dataclass(frozen=True)
class Encoded:
    """A source after reading: its ids [S]; what attention looks at, [S, H]; where the decoder starts."""

    source: Tensor
    states: Tensor
    first: Cells


@dataclass(frozen=True)
class Written:
    """A hypothesis: ids without ``</s>``; mean log-probability of a token, ``</s>`` included; whether it was written."""

    tokens: list[int]
    score: float
    finished: bool


@dataclass(frozen=True)
class _Going:
    """A hypothesis that beam search follows: its log-probability, tokens, cells, and attention summed over its steps [S].

    greedy: each of its tokens is the likeliest after those before it.
    """

    total: float
    tokens: list[int]
    cells: Cells
    coverage: Tensor
    greedy: bool


class Reference:
    """The equations, with the weights of ``model``."""

    def __init__(self, model: Seq2Seq) -> None:
        self.config = model.config
        self.weights = {name: tensor.double() for name, tensor in model.state_dict().items()}

    def encode(self, source: list[int]) -> Encoded:
        """Read a source of one token or more."""
        size = self.config.hidden_size
        directions = ("", "_reverse") if self.config.bidirectional else ("",)
        inputs = [self.weights["encoder.embedding.weight"][token] for token in source]
        first: Cells = []
        for layer in range(self.config.layers):
            outputs: list[list[Tensor]] = []
            lasts: Cells = []
            for direction in directions:
                h, c = torch.zeros(size).double(), torch.zeros(size).double()
                read = []
                for x in reversed(inputs) if direction else inputs:
                    h, c = self._cell(f"encoder.layers.{layer}", f"l0{direction}", x, h, c)
                    read.append(h)
                outputs.append(read[::-1] if direction else read)
                lasts.append((h, c))
            inputs = [torch.cat(both) for both in zip(*outputs, strict=True)]
            first.append((torch.cat([h for h, _ in lasts]), torch.cat([c for _, c in lasts])))
        states = torch.stack(inputs)
        if self.config.bidirectional:
            first = [(self._bridge(0, h), self._bridge(1, c)) for h, c in first]
            if self.config.attention != "none":
                states = states @ self.weights["encoder.memory_bridge.weight"].T
        return Encoded(torch.tensor(source), states, first)

    def step(self, token: int, cells: Cells, memory: Encoded) -> tuple[Tensor, Cells, Tensor]:
        """Read the last token; log-probabilities of the next one [V], the decoder's cells after it, attention's weights [S]."""
        embedded = self.weights["decoder.embedding.weight"][token]
        x, after = embedded, []
        for layer, (h, c) in enumerate(cells):
            h, c = self._cell("decoder.recurrence", f"l{layer}", x, h, c)
            after.append((h, c))
            x = h
        if self.config.attention == "none":
            return self._vocabulary(self._linear("decoder.readout", x)).log(), after, torch.zeros(len(memory.source)).double()
        attention = self._attention_scores(x, memory.states).softmax(0)
        both = torch.cat((attention @ memory.states, x))
        probabilities = self._vocabulary(torch.tanh(self._linear("decoder.readout.0", both)))  # Luong et al. 2015, eq. 5
        if self.config.copy_source:  # See et al. 2017, eq. 8 and 9
            generate = torch.sigmoid(self._linear("decoder.copy_gate", torch.cat((both, embedded))))
            probabilities = (generate * probabilities).index_add(0, memory.source, (1 - generate) * attention)
        return probabilities.log(), after, attention

    def log_probs(self, source: list[int], target: list[int]) -> list[float]:
        """Log-probability of each token of target, and of ``</s>`` after it, each given those before it."""
        memory = self.encode(source)
        cells, found = memory.first, []
        for before, token in zip([BOS, *target], [*target, EOS], strict=True):
            log_probs, cells, _ = self.step(before, cells, memory)
            found.append(float(log_probs[token]))
        return found

    def greedy(self, source: list[int], options: DecodingConfig) -> Written:
        """Take the likeliest token that is allowed, until ``</s>`` or the maximum length."""
        source = source[: options.max_source_tokens]
        if not source:
            return Written([], 0.0, True)
        memory = self.encode(source)
        tokens: list[int] = []
        cells, last, total = memory.first, BOS, 0.0
        while len(tokens) < _limit(source, options):
            log_probs, cells, _ = self.step(last, cells, memory)
            last = int(_allowed(log_probs, tokens, options).argmax())
            total += float(log_probs[last])
            if last == EOS:
                return Written(tokens, total / (len(tokens) + 1), True)
            tokens.append(last)
        return Written(tokens, total / len(tokens), False)

    def beam(self, source: list[int], options: DecodingConfig) -> Written:
        """Beam search (Wu et al. 2016, section 7); what a hypothesis is worth and when it stops: pipeline/model/beam.py."""
        source, beam = source[: options.max_source_tokens], options.beam_size
        if not source:
            return Written([], 0.0, True)
        memory, limit = self.encode(source), _limit(source, options)
        going = [_Going(0.0, [], memory.first, torch.zeros(len(source)).double(), greedy=True)]
        ended: list[tuple[float, Written]] = []
        for _ in range(limit):
            candidates = []
            for hypothesis in going:
                last = hypothesis.tokens[-1] if hypothesis.tokens else BOS
                log_probs, cells, attention = self.step(last, hypothesis.cells, memory)
                covered = hypothesis.coverage + attention
                allowed = _allowed(log_probs, hypothesis.tokens, options)
                likeliest = int(allowed.argmax())
                for token, log_prob in enumerate(allowed.tolist()):
                    if log_prob > -math.inf:
                        greedy = hypothesis.greedy and token == likeliest
                        total, tokens = hypothesis.total + log_prob, [*hypothesis.tokens, token]
                        candidates.append(_Going(total, tokens, cells, covered, greedy))
            candidates.sort(key=lambda one: (not one.greedy, -one.total))
            for one in candidates[:beam]:
                if one.tokens[-1] == EOS:
                    written = Written(one.tokens[:-1], one.total / len(one.tokens), True)
                    ended.append((self._worth(one, options), written))
            going = [one for one in candidates if one.tokens[-1] != EOS][:beam]
            best = max((worth for worth, _ in ended), default=-math.inf)
            bound = max(one.total for one in going) / ((5 + limit + 1) / 6) ** options.length_penalty
            if bound <= best:
                break
        if not ended:
            ended = [(self._worth(one, options), Written(one.tokens, one.total / len(one.tokens), False)) for one in going]
        return max(ended, key=lambda pair: pair[0])[1]

    def _worth(self, hypothesis: _Going, options: DecodingConfig) -> float:
        worth = hypothesis.total / ((5 + len(hypothesis.tokens)) / 6) ** options.length_penalty
        if self.config.attention != "none":
            worth += options.coverage_penalty * float(hypothesis.coverage.clamp(1e-9, 1.0).log().sum())
        return worth

    def _cell(self, module: str, suffix: str, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """One step of a cell from input x: the new (h, c)."""
        w_x, w_h = self.weights[f"{module}.weight_ih_{suffix}"], self.weights[f"{module}.weight_hh_{suffix}"]
        b_x, b_h = self.weights[f"{module}.bias_ih_{suffix}"], self.weights[f"{module}.bias_hh_{suffix}"]
        w_x = w_x[:, : len(x)]  # the encoder's last column is for padding, which is not here
        if self.config.cell == "lstm":  # Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000
            i, f, g, o = (w_x @ x + b_x + w_h @ h + b_h).chunk(4)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            return torch.sigmoid(o) * torch.tanh(c), c
        # Cho et al. 2014, with the reset gate after the matrix product
        r_x, z_x, n_x = (w_x @ x + b_x).chunk(3)
        r_h, z_h, n_h = (w_h @ h + b_h).chunk(3)
        r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
        n = torch.tanh(n_x + r * n_h)
        return (1 - z) * n + z * h, c

    def _attention_scores(self, query: Tensor, states: Tensor) -> Tensor:
        """How well each of states[S, H] answers query[H], [S]."""
        if self.config.attention == "dot":  # Luong et al. 2015, eq. 8
            return states @ query
        keys = states @ self.weights["decoder.attention.to_keys.weight"].T
        if self.config.attention == "general":
            return keys @ query
        summed = torch.tanh(keys + self._linear("decoder.attention.to_query", query))  # Bahdanau et al. 2015, A.1.2
        return summed @ self.weights["decoder.attention.to_score.weight"][0]

    def _vocabulary(self, features: Tensor) -> Tensor:
        return self._linear("decoder.output", features).softmax(0)

    def _bridge(self, part: int, both: Tensor) -> Tensor:
        if f"encoder.bridges.{part}.weight" not in self.weights:  # a GRU has no c
            return torch.zeros(self.config.hidden_size).double()
        return torch.tanh(self._linear(f"encoder.bridges.{part}", both))

    def _linear(self, module: str, x: Tensor) -> Tensor:
        if f"{module}.weight" not in self.weights:  # the sizes agree, and nothing is in between
            return x
        return self.weights[f"{module}.weight"] @ x + self.weights[f"{module}.bias"]


def _limit(source: list[int], options: DecodingConfig) -> int:
    """The most tokens that may be written."""
    if options.max_target_ratio is None:
        return options.max_target_tokens
    grown = int(options.max_target_ratio * len(source)) + options.max_target_extra
    return min(max(grown, 1, options.min_target_tokens), options.max_target_tokens)


def _allowed(log_probs: Tensor, tokens: list[int], options: DecodingConfig) -> Tensor:
    """log_probs[V] of the token after these, minus infinity where it is forbidden."""
    forbidden = {PAD, UNK, BOS} | _would_repeat(tokens, options.no_repeat_ngram)
    if len(tokens) < options.min_target_tokens:
        forbidden.add(EOS)
    return log_probs.index_fill(0, torch.tensor(sorted(forbidden)), -torch.inf)


def _would_repeat(tokens: list[int], n: int) -> set[int]:
    """Tokens that would end an n-gram which tokens has already; none if n is 0."""
    if n == 0 or len(tokens) < n:
        return set()
    opening = tokens[len(tokens) - n + 1 :]
    return {tokens[at + n - 1] for at in range(len(tokens) - n + 1) if tokens[at : at + n - 1] == opening}
