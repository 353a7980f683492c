"""The reference decoder: network and searches, straight from the equations, in float64.

One row at a time, one token per step; no batches, no padding, no optimizations. It reads a model's weights by name and shares
no code with it. Every fast path must agree with this file, which is also the place to learn how the network works.

Shapes: S source steps, E embedding, H hidden, V vocabulary. Vectors have one dimension; W @ x is a matrix times a vector.
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
"""(h[H], c[H]) of each layer; a GRU does not use c."""


@dataclass(frozen=True)
class Encoded:
    """An encoded source: ids[S], states[S, H] to attend to, and the decoder's first cells."""

    source: Tensor
    states: Tensor
    cells: Cells


@dataclass(frozen=True)
class Hypothesis:
    """Ids without ``</s>``; mean log-probability of a token, including ``</s>``; whether it ended with ``</s>``."""

    tokens: list[int]
    score: float
    finished: bool


@dataclass(frozen=True)
class _Partial:
    """A hypothesis in the beam: log-probability, tokens, cells, attention summed over steps [S], and whether it is greedy."""

    total: float
    tokens: list[int]
    cells: Cells
    coverage: Tensor
    is_greedy: bool


class Reference:
    """The equations with a model's weights."""

    def __init__(self, model: Seq2Seq) -> None:
        self.config = model.config
        self.weights = {name: tensor.double() for name, tensor in model.state_dict().items()}

    def encode(self, source: list[int]) -> Encoded:
        """Encode a source of at least one token."""
        size = self.config.encoder_units
        directions = ("", "_reverse") if self.config.bidirectional else ("",)
        inputs = [self.weights["encoder.embedding.weight"][token] for token in source]
        first_cells: Cells = []
        for layer in range(self.config.layers):
            outputs: list[list[Tensor]] = []
            last: Cells = []
            for direction in directions:
                h, c = torch.zeros(size).double(), torch.zeros(size).double()
                steps = []
                for x in reversed(inputs) if direction else inputs:
                    h, c = self._cell(f"encoder.layers.{layer}", f"l0{direction}", x, h, c)
                    steps.append(h)
                outputs.append(steps[::-1] if direction else steps)
                last.append((h, c))
            inputs = [torch.cat(directions) for directions in zip(*outputs, strict=True)]
            first_cells.append((torch.cat([h for h, _ in last]), torch.cat([c for _, c in last])))
        states = torch.stack(inputs)
        if self.config.bidirectional:
            first_cells = [(self._bridge(0, h), self._bridge(1, c)) for h, c in first_cells]
            if self.config.attention != "none":
                states = states @ self.weights["encoder.memory_bridge.weight"].T
        return Encoded(torch.tensor(source), states, first_cells)

    def step(self, token: int, cells: Cells, encoded: Encoded) -> tuple[Tensor, Cells, Tensor]:
        """Read the last token. Return log-probabilities[V] of the next one, the new cells, and attention weights[S]."""
        embedded = self.weights["decoder.embedding.weight"][token]
        x, new_cells = embedded, []
        for layer, (h, c) in enumerate(cells):
            h, c = self._cell("decoder.recurrence", f"l{layer}", x, h, c)
            new_cells.append((h, c))
            x = h
        if self.config.attention == "none":
            log_probs = self._vocabulary(self._linear("decoder.readout", x)).log()
            return log_probs, new_cells, torch.zeros(len(encoded.source)).double()
        attention = self._attention_scores(x, encoded.states).softmax(0)
        context_and_h = torch.cat((attention @ encoded.states, x))
        # Luong et al. 2015, eq. 5
        probabilities = self._vocabulary(torch.tanh(self._linear("decoder.readout.0", context_and_h)))
        if self.config.copy_source:  # See et al. 2017, eq. 8 and 9
            generate = torch.sigmoid(self._linear("decoder.copy_gate", torch.cat((context_and_h, embedded))))
            probabilities = (generate * probabilities).index_add(0, encoded.source, (1 - generate) * attention)
        return probabilities.log(), new_cells, attention

    def log_probs(self, source: list[int], target: list[int]) -> list[float]:
        """Return the log-probability of each target token, and of ``</s>`` at the end, given its predecessors."""
        encoded = self.encode(source)
        cells, result = encoded.cells, []
        for previous, token in zip([BOS, *target], [*target, EOS], strict=True):
            log_probs, cells, _ = self.step(previous, cells, encoded)
            result.append(float(log_probs[token]))
        return result

    def greedy(self, source: list[int], options: DecodingConfig) -> Hypothesis:
        """Take the most likely allowed token until ``</s>`` or the length limit."""
        source = source[: options.max_source_tokens]
        if not source:
            return Hypothesis([], 0.0, True)
        encoded = self.encode(source)
        tokens: list[int] = []
        cells, last, total = encoded.cells, BOS, 0.0
        while len(tokens) < _limit(source, options):
            log_probs, cells, _ = self.step(last, cells, encoded)
            last = int(_allowed(log_probs, tokens, options).argmax())
            total += float(log_probs[last])
            if last == EOS:
                return Hypothesis(tokens, total / (len(tokens) + 1), True)
            tokens.append(last)
        return Hypothesis(tokens, total / len(tokens), False)

    def beam(self, source: list[int], options: DecodingConfig) -> Hypothesis:
        """Run a beam search (Wu et al. 2016, section 7). For values and the stopping rule see pipeline/decoding/beam.py."""
        source, beam_size = source[: options.max_source_tokens], options.beam_size
        if not source:
            return Hypothesis([], 0.0, True)
        encoded, limit = self.encode(source), _limit(source, options)
        beam = [_Partial(0.0, [], encoded.cells, torch.zeros(len(source)).double(), is_greedy=True)]
        ended: list[tuple[float, Hypothesis]] = []
        for _ in range(limit):
            candidates = [one for partial in beam for one in self._extensions(partial, encoded, options)]
            candidates.sort(key=lambda one: (not one.is_greedy, -one.total))
            for one in candidates[:beam_size]:
                if one.tokens[-1] == EOS:
                    ended.append((self._value(one, options), Hypothesis(one.tokens[:-1], one.total / len(one.tokens), True)))
            beam = [one for one in candidates if one.tokens[-1] != EOS][:beam_size]
            best = max((value for value, _ in ended), default=-math.inf)
            bound = max(one.total for one in beam) / ((5 + limit + 1) / 6) ** options.length_penalty
            if bound <= best:
                break
        if not ended:
            ended = [(self._value(one, options), Hypothesis(one.tokens, one.total / len(one.tokens), False)) for one in beam]
        return max(ended, key=lambda pair: pair[0])[1]

    def _extensions(self, partial: _Partial, encoded: Encoded, options: DecodingConfig) -> list[_Partial]:
        """Return a hypothesis with each allowed token appended."""
        last = partial.tokens[-1] if partial.tokens else BOS
        log_probs, cells, attention = self.step(last, partial.cells, encoded)
        coverage = partial.coverage + attention
        allowed = _allowed(log_probs, partial.tokens, options)
        most_likely = int(allowed.argmax())
        return [
            _Partial(
                partial.total + log_prob,
                [*partial.tokens, token],
                cells,
                coverage,
                is_greedy=partial.is_greedy and token == most_likely,
            )
            for token, log_prob in enumerate(allowed.tolist())
            if log_prob > -math.inf
        ]

    def _value(self, hypothesis: _Partial, options: DecodingConfig) -> float:
        value = hypothesis.total / ((5 + len(hypothesis.tokens)) / 6) ** options.length_penalty
        if self.config.attention != "none":
            value += options.coverage_penalty * float(hypothesis.coverage.clamp(1e-9, 1.0).log().sum())
        return value

    def _cell(self, module: str, suffix: str, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return the new (h, c) of a cell after input x."""
        w_x, w_h = self.weights[f"{module}.weight_ih_{suffix}"], self.weights[f"{module}.weight_hh_{suffix}"]
        b_x, b_h = self.weights[f"{module}.bias_ih_{suffix}"], self.weights[f"{module}.bias_hh_{suffix}"]
        w_x = w_x[:, : len(x)]  # the encoder's last column is for padding, which does not occur here
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
        """Return the scores[S] of states[S, H] for query[H]."""
        if self.config.attention == "dot":  # Luong et al. 2015, eq. 8
            return states @ query
        keys = states @ self.weights["decoder.attention.to_keys.weight"].T
        if self.config.attention == "general":
            return keys @ query
        summed = torch.tanh(keys + self._linear("decoder.attention.to_query", query))  # Bahdanau et al. 2015, A.1.2
        return summed @ self.weights["decoder.attention.to_score.weight"][0]

    def _vocabulary(self, features: Tensor) -> Tensor:
        return self._linear("decoder.output", features).softmax(0)

    def _bridge(self, part: int, directions: Tensor) -> Tensor:
        if f"encoder.bridges.{part}.weight" not in self.weights:  # a GRU has no c
            return torch.zeros(self.config.hidden_size).double()
        return torch.tanh(self._linear(f"encoder.bridges.{part}", directions))

    def _linear(self, module: str, x: Tensor) -> Tensor:
        if f"{module}.weight" not in self.weights:  # the sizes are equal, and there is no layer
            return x
        return self.weights[f"{module}.weight"] @ x + self.weights[f"{module}.bias"]


def _limit(source: list[int], options: DecodingConfig) -> int:
    """Return the maximum tokens of a hypothesis."""
    if options.max_target_ratio is None:
        return options.max_target_tokens
    by_length = int(options.max_target_ratio * len(source)) + options.max_target_extra
    return min(max(by_length, 1, options.min_target_tokens), options.max_target_tokens)


def _allowed(log_probs: Tensor, tokens: list[int], options: DecodingConfig) -> Tensor:
    """Return log_probs[V] of the next token, minus infinity where it is forbidden."""
    forbidden = {PAD, UNK, BOS} | _would_repeat(tokens, options.no_repeat_ngram)
    if len(tokens) < options.min_target_tokens:
        forbidden.add(EOS)
    return log_probs.index_fill(0, torch.tensor(sorted(forbidden)), -torch.inf)


def _would_repeat(tokens: list[int], n: int) -> set[int]:
    """Return the tokens that would repeat an n-gram; none if n is 0."""
    if n == 0 or len(tokens) < n:
        return set()
    prefix = tokens[len(tokens) - n + 1 :]
    return {tokens[i + n - 1] for i in range(len(tokens) - n + 1) if tokens[i : i + n - 1] == prefix}
