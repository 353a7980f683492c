"""The network: an LSTM or GRU encoder-decoder, with or without attention and copying.

Token ids go in, probabilities come out; searching for a sequence (decoding.py) and learning the weights
(training/) are done elsewhere. Shapes: B batch, S source steps, T target steps, E embedding, H hidden, V vocabulary.

Padding never changes a result. The recurrences run over whole padded rectangles, much faster on CPUs than packed
sequences, because every layer's input has one more column that is 0 at a token and 1 at padding, and whose weights
hold the state still there: they shut the LSTM's input gate and open its forget gate (or open the GRU's update gate)
all the way. A reverse pass so arrives at the last token with the zero state it began with, and a forward pass keeps
the cell that it had after the last token. The gates are flat at that point, so training leaves these weights as they are.
What a padded position holds otherwise is never read: the attention's weight there is exactly 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pipeline.config.model import ModelConfig
from pipeline.data.special_tokens import BOS, EOS
from pipeline.model.rnn import Dropout, State, hold_state_at_padding, initialize, run_rnn

_PART_LOGITS = 1 << 24
"""That are computed at a time while learning: 64 MB in float32. Parts have one size, but for a batch's last: arrays as large as
their batch find the holes that others left too small, and a training's memory grows for hours (benchmarks/README.md)."""
_MAX_LOGITS = 1 << 26
"""That are kept for the way back, 256 MB in float32, whatever the batch and the vocabulary."""


@dataclass(frozen=True)
class EncoderOutput:
    """What the decoder may look at of B sources.

    source[B, S]: ids. padding[B, S]: True beyond a row's end. states[B, S, H] and keys[B, S, H]: encoder outputs, and
    their projection that queries are compared with; None without attention.
    """

    source: Tensor
    padding: Tensor
    states: Tensor | None
    keys: Tensor | None


@dataclass(frozen=True)
class LossConfig:
    """What learning minimises beside the negative log-likelihood.

    label_smoothing: share of a target token's probability that goes to the whole vocabulary alike (Szegedy et al. 2016, section
    7); of what the network generates, not of what it copies. coverage: weight of the attention that goes where it has been
    (See et al. 2017, eq. 12); the attention is not told, as there, where that was: it would have to be computed step by step.
    """

    label_smoothing: float = 0.0
    coverage: float = 0.0


class Encoder(nn.Module):
    """Reads a source.

    Args:
        config: the network's shape. embedding: the source's embedding table.
    """

    def __init__(self, config: ModelConfig, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding
        self.dropout = Dropout(config)
        self.recurrent_dropout = config.recurrent_dropout
        directions = 2 if config.bidirectional else 1
        recurrence = nn.LSTM if config.cell == "lstm" else nn.GRU
        widths = [config.embedding_size] + [directions * config.hidden_size] * (config.layers - 1)
        self.layers = nn.ModuleList(
            recurrence(width + 1, config.hidden_size, batch_first=True, bidirectional=config.bidirectional) for width in widths
        )
        self.hidden_size = config.hidden_size
        self.bridges: nn.ModuleList | None = None
        self.memory_bridge: nn.Linear | None = None
        if config.bidirectional:
            parts = 2 if config.cell == "lstm" else 1
            self.bridges = nn.ModuleList(nn.Linear(2 * config.hidden_size, config.hidden_size) for _ in range(parts))
            if config.attention != "none":
                self.memory_bridge = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        for layer in self.layers:
            initialize(cast(nn.RNNBase, layer))
            hold_state_at_padding(cast(nn.RNNBase, layer))

    def forward(self, source: Tensor, lengths: Tensor, padding: Tensor) -> tuple[Tensor, State]:
        """Encode source[B, S] with lengths[B] ≥ 1 and padding[B, S], True beyond them.

        Returns:
            the last layer's outputs, [B, S, H] wherever there is an attention to read them; the decoder's first state,
            (h[layers, B, H], c[layers, B, H]) or (h,).
        """
        outputs = self.embedding(source)
        finals: list[list[Tensor]] = []
        for layer in self.layers:
            outputs = self.dropout(outputs)
            inputs = torch.cat((outputs, padding.unsqueeze(-1).to(outputs.dtype)), -1)
            outputs, held = run_rnn(cast(nn.RNNBase, layer), inputs, None, self.dropout, self.recurrent_dropout)
            finals.append(self._final_state(outputs, held, lengths))
        state = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
        if self.bridges is not None:
            state = tuple(torch.tanh(bridge(part)) for bridge, part in zip(self.bridges, state, strict=True))
        if self.memory_bridge is not None:
            outputs = self.memory_bridge(outputs)
        return outputs, state

    def _final_state(self, outputs: Tensor, held: State, lengths: Tensor) -> list[Tensor]:
        """One layer's state after each row's last token: h and, of an LSTM, c; directions side by side [B, H or 2H]."""
        # h is read where the row ends: an LSTM's output gate is not held, and a GRU's h is held but for its last bit.
        rows = torch.arange(len(lengths), device=lengths.device)
        h = torch.cat((outputs[rows, lengths - 1, : self.hidden_size], outputs[:, 0, self.hidden_size :]), -1)
        return [h, *(torch.cat(c.unbind(0), -1) for c in held[1:])]


class Attention(nn.Module):
    """Weighs source positions by a query.

    kind: ``dot`` and ``general`` are of Luong et al. 2015, section 3.1; ``additive`` of Bahdanau et al. 2015, A.1.2, but
    with the decoder's new state for its last one, as in Luong.
    """

    def __init__(self, kind: str, hidden_size: int) -> None:
        super().__init__()
        self.kind = kind
        self.to_keys = nn.Identity() if kind == "dot" else nn.Linear(hidden_size, hidden_size, bias=False)
        if kind == "additive":
            self.to_query = nn.Linear(hidden_size, hidden_size)
            self.to_score = nn.Linear(hidden_size, 1, bias=False)

    def forward(self, query: Tensor, memory: EncoderOutput) -> tuple[Tensor, Tensor]:
        """Attend from query[B, T, H].

        Returns:
            context[B, T, H]; weights[B, T, S] float32, 0 at padding.
        """
        assert memory.keys is not None
        assert memory.states is not None
        if self.kind == "additive":
            # One target step at a time, so that without gradients [B, S, H] is held and not [B, T, S, H].
            projected = self.to_query(query)
            scores = torch.cat(
                [self.to_score(torch.tanh(memory.keys + step)).transpose(1, 2) for step in projected.split(1, 1)], 1
            )
        else:
            scores = query @ memory.keys.transpose(1, 2)
        weights = scores.float().masked_fill(memory.padding[:, None], -math.inf).softmax(-1)
        return weights.to(memory.states.dtype) @ memory.states, weights


class Decoder(nn.Module):
    """Writes a target, given the encoder's last state and, with attention, its outputs."""

    def __init__(self, config: ModelConfig, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding
        self.dropout = Dropout(config)
        self.recurrent_dropout = config.recurrent_dropout
        recurrence = nn.LSTM if config.cell == "lstm" else nn.GRU
        self.recurrence = recurrence(
            config.embedding_size,
            config.hidden_size,
            config.layers,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        initialize(self.recurrence)
        width = config.embedding_size if config.tied_embeddings else config.hidden_size
        self.attention: Attention | None = None
        self.readout: nn.Module
        if config.attention != "none":
            self.attention = Attention(config.attention, config.hidden_size)
            self.readout = nn.Sequential(nn.Linear(2 * config.hidden_size, width), nn.Tanh())
        elif width != config.hidden_size:
            self.readout = nn.Linear(config.hidden_size, width)
        else:
            self.readout = nn.Identity()
        self.copy_gate: nn.Linear | None = None
        if config.copy_source:
            self.copy_gate = nn.Linear(2 * config.hidden_size + config.embedding_size, 1)
        self.output = nn.Linear(width, embedding.num_embeddings)
        nn.init.zeros_(self.output.bias)
        if config.tied_embeddings:
            self.output.weight = embedding.weight

    def forward(
        self, tokens: Tensor, state: State, memory: EncoderOutput
    ) -> tuple[Tensor, Tensor | None, Tensor | None, State]:
        """Read tokens[B, T], each the one before that to be predicted.

        Returns:
            features[B, T, E or H], to be projected by ``output``; attention weights[B, T, S] or None; logit of
            generating rather than copying [B, T] or None; state after the last token.
        """
        embedded = self.dropout(self.embedding(tokens))
        outputs, after = run_rnn(self.recurrence, embedded, state, self.dropout, self.recurrent_dropout)
        weights = gate = None
        if self.attention is not None:
            context, weights = self.attention(outputs, memory)
            outputs = torch.cat((context, outputs), -1)
            if self.copy_gate is not None:
                gate = self.copy_gate(torch.cat((outputs, embedded), -1)).squeeze(-1).float()
        return self.dropout(self.readout(outputs)), weights, gate, after


class Seq2Seq(nn.Module):
    """Encoder-decoder over one shared subword vocabulary.

    Args:
        config: the network's shape. vocabulary_size: V.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocabulary_size = vocabulary_size
        source_embedding = _embedding(vocabulary_size, config.embedding_size)
        target_embedding = source_embedding if config.tied_embeddings else _embedding(vocabulary_size, config.embedding_size)
        self.encoder = Encoder(config, source_embedding)
        self.decoder = Decoder(config, target_embedding)

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[EncoderOutput, State]:
        """Read source[B, S] with lengths[B] ≥ 1: the decoder's memory and first state."""
        padding = torch.arange(source.shape[1], device=source.device) >= lengths[:, None]
        states, state = self.encoder(source, lengths, padding)
        if self.decoder.attention is None:
            return EncoderOutput(source, padding, None, None), state
        return EncoderOutput(source, padding, states, self.decoder.attention.to_keys(states)), state

    def forward(
        self,
        source: Tensor,
        source_lengths: Tensor,
        target: Tensor,
        target_lengths: Tensor,
        objective: LossConfig = LossConfig(),
    ) -> Tensor:
        """Teacher forcing: negative log-likelihood (nat) of target[B, T] with ``</s>`` after it, summed over real tokens.

        Takes source[B, S]; padding of either may be any ids. Divide by ``(target_lengths + 1).sum()`` for the mean. What the
        objective has beside it is in the sum.
        """
        memory, state = self.encode(source, source_lengths)
        before = F.pad(target, (1, 0), value=BOS)
        steps = torch.arange(before.shape[1], device=target.device)
        after = F.pad(target, (0, 1), value=EOS).masked_fill(steps == target_lengths[:, None], EOS)
        features, weights, gate, _ = self.decoder(before, state, memory)
        # The projection to the vocabulary is most of the decoder's work: padded steps are dropped before it. Looking for the
        # others waits for the device, and is done once.
        real = (steps <= target_lengths[:, None]).flatten().nonzero()[:, 0]
        gold = _at(real, after)
        entropies = self._cross_entropies(_at(real, features), gold, objective.label_smoothing > 0)
        nll = entropies[:, 0]
        if weights is not None and gate is not None:
            # P(w) = p_gen P_vocabulary(w) + (1 - p_gen) Σ_{i: source_i = w} attention_i (See et al. 2017, eq. 9),
            # in logarithms, for the gold token alone. A gold token that is not in the source has 0 copied.
            copied = _at(real, (weights * (memory.source[:, None] == after[:, :, None])).sum(-1))
            generate = _at(real, gate)
            copy_log_prob = copied.clamp_min(torch.finfo(copied.dtype).tiny).log() + F.logsigmoid(-generate)
            nll = -torch.logaddexp(F.logsigmoid(generate) - nll, copy_log_prob)
        loss = nll.sum()
        if objective.label_smoothing:
            loss = torch.lerp(loss, entropies[:, 1].sum(), objective.label_smoothing)
        if objective.coverage and weights is not None:
            before_this = weights.cumsum(1) - weights
            loss = loss + objective.coverage * _at(real, torch.minimum(weights, before_this).sum(-1)).sum()
        return loss

    def _cross_entropies(self, features: Tensor, gold: Tensor, spread: bool) -> Tensor:
        """Of generating, after features[N, E or H]: [N, 1], of gold[N] (nat), or [N, 2], and of all tokens on average.

        In parts, whose logits are computed again on the way back if they are more than memory is to hold.
        """
        rows = max(1, _PART_LOGITS // self.vocabulary_size)
        parts = zip(torch.split(features, rows), torch.split(gold, rows), strict=True)
        of_a_part = self._of_a_part
        if torch.is_grad_enabled() and len(gold) * self.vocabulary_size > _MAX_LOGITS:
            of_a_part = partial(checkpoint, of_a_part, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([of_a_part(*part, spread) for part in parts])

    def _of_a_part(self, features: Tensor, gold: Tensor, spread: bool) -> Tensor:
        logits = self.decoder.output(features).float()
        nll = F.cross_entropy(logits, gold, reduction="none")[:, None]
        return torch.cat((nll, nll + logits.gather(1, gold[:, None]) - logits.mean(1, True)), 1) if spread else nll


def _at(positions: Tensor, values: Tensor) -> Tensor:
    """Of values[B, T, …] those at positions[N] of a flat [B · T]: [N, …]."""
    return values.flatten(0, 1).index_select(0, positions)


def _embedding(vocabulary_size: int, size: int) -> nn.Embedding:
    embedding = nn.Embedding(vocabulary_size, size)
    nn.init.normal_(embedding.weight, std=size**-0.5)
    return embedding
