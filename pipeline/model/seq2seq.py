"""The network: an LSTM or GRU encoder-decoder, with optional attention and copying.

Token ids go in, probabilities or a loss come out. Searching for a sequence is in decoding/, updating the weights in training/.
Shapes: B batch, S source steps, T target steps, E embedding, H hidden (H' per direction of the encoder), V vocabulary, N target
positions that are not padding.

Padding never changes a result. RNNs run over whole padded rectangles, which is much faster on CPUs than packed sequences. Every
encoder layer has one more input column, which is 0 at a token and 1 at padding. Its weights freeze the state at padding: they
close the LSTM's input gate and open its forget gate (or open the GRU's update gate) completely. So a reverse pass reaches the
last token with a zero state, and a forward pass keeps the cell state of the last token. The gates are saturated there, so
training does not change these weights. No other value at a padded position is used: its attention weight is exactly 0.
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

CHUNK_LOGITS = 1 << 24
"""Logits computed at a time in training: 64 MB in float32. All chunks of a batch but the last have one size. Arrays as large as
their batch would fragment the heap, and memory would grow for hours (benchmarks/README.md)."""

MAX_SAVED_LOGITS = 1 << 26
"""Logits kept for the backward pass: 256 MB in float32. Batches with more compute them again, chunk by chunk."""


@dataclass(frozen=True)
class EncoderOutput:
    """Encoded sources for the decoder to attend to and copy from.

    Attributes:
        source: ids[B, S].
        padding: [B, S], True beyond a row's end.
        states: encoder outputs[B, S, H]; None without attention.
        keys: projection[B, S, H] of the states that queries are compared with; None without attention.
    """

    source: Tensor
    padding: Tensor
    states: Tensor | None
    keys: Tensor | None


@dataclass(frozen=True)
class LossConfig:
    """Terms of the loss besides the negative log-likelihood.

    Attributes:
        label_smoothing: share of the target probability that is spread over the vocabulary (Szegedy et al. 2016, section 7).
            Applies to generating, not to copying.
        coverage: weight of attention to positions that earlier steps attended to (See et al. 2017, eq. 12). Unlike there,
            attention has no coverage input, which would need a loop over target steps.
    """

    label_smoothing: float = 0.0
    coverage: float = 0.0


class Encoder(nn.Module):
    def __init__(self, config: ModelConfig, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding
        self.dropout = Dropout(config)
        self.recurrent_dropout = config.recurrent_dropout
        directions = 2 if config.bidirectional else 1
        recurrence = nn.LSTM if config.cell == "lstm" else nn.GRU
        units = config.encoder_units
        widths = [config.embedding_size] + [directions * units] * (config.layers - 1)
        self.layers = nn.ModuleList(
            recurrence(width + 1, units, batch_first=True, bidirectional=config.bidirectional) for width in widths
        )
        self.units = units
        self.bridges: nn.ModuleList | None = None
        self.memory_bridge: nn.Linear | None = None
        if config.bidirectional:
            parts = 2 if config.cell == "lstm" else 1
            self.bridges = nn.ModuleList(nn.Linear(2 * units, config.hidden_size) for _ in range(parts))
            if config.attention != "none":
                self.memory_bridge = nn.Linear(2 * units, config.hidden_size, bias=False)
        for layer in self.layers:
            initialize(cast(nn.RNNBase, layer))
            hold_state_at_padding(cast(nn.RNNBase, layer))

    def forward(self, source: Tensor, lengths: Tensor, padding: Tensor) -> tuple[Tensor, State]:
        """Encode source[B, S] with lengths[B] ≥ 1 and padding[B, S], True beyond a row's end.

        Returns:
            the last layer's outputs[B, S, H], or 2H' if bidirectional without attention; the decoder's first state,
            (h[layers, B, H], c[layers, B, H]) or (h,).
        """
        outputs = self.embedding(source)
        finals: list[list[Tensor]] = []
        for layer in self.layers:
            outputs = self.dropout(outputs)
            inputs = torch.cat((outputs, padding.unsqueeze(-1).to(outputs.dtype)), -1)
            outputs, last = run_rnn(cast(nn.RNNBase, layer), inputs, None, self.dropout, self.recurrent_dropout)
            finals.append(self._final_state(outputs, last, lengths))
        state = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
        if self.bridges is not None:
            state = tuple(torch.tanh(bridge(part)) for bridge, part in zip(self.bridges, state, strict=True))
        if self.memory_bridge is not None:
            outputs = self.memory_bridge(outputs)
        return outputs, state

    def _final_state(self, outputs: Tensor, last: State, lengths: Tensor) -> list[Tensor]:
        """Return a layer's state after each row's last token: h and, for an LSTM, c; [B, H], or 2H' if bidirectional."""
        # Read h where the row ends: padding does not freeze an LSTM's output gate, and changes the last bit of a GRU's h.
        rows = torch.arange(len(lengths), device=lengths.device)
        h = torch.cat((outputs[rows, lengths - 1, : self.units], outputs[:, 0, self.units :]), -1)
        return [h, *(torch.cat(c.unbind(0), -1) for c in last[1:])]


class Attention(nn.Module):
    """Weighs source positions by a query.

    Args:
        score: ``dot`` or ``general`` (Luong et al. 2015, section 3.1), or ``additive`` (Bahdanau et al. 2015, A.1.2, but with
            the decoder's new state as the query, as in Luong).
    """

    def __init__(self, score: str, hidden_size: int) -> None:
        super().__init__()
        self.score = score
        self.to_keys = nn.Identity() if score == "dot" else nn.Linear(hidden_size, hidden_size, bias=False)
        if score == "additive":
            self.to_query = nn.Linear(hidden_size, hidden_size)
            self.to_score = nn.Linear(hidden_size, 1, bias=False)

    def forward(self, query: Tensor, encoder_output: EncoderOutput) -> tuple[Tensor, Tensor]:
        """Attend from query[B, T, H].

        Returns:
            context[B, T, H]; weights[B, T, S] float32, 0 at padding.
        """
        states, keys = encoder_output.states, encoder_output.keys
        assert states is not None
        assert keys is not None
        if self.score == "additive":
            # One target step at a time, so that without gradients memory holds [B, S, H] and not [B, T, S, H].
            steps = self.to_query(query).split(1, 1)
            scores = torch.cat([self.to_score(torch.tanh(keys + step)).transpose(1, 2) for step in steps], 1)
        else:
            scores = query @ keys.transpose(1, 2)
        weights = scores.float().masked_fill(encoder_output.padding[:, None], -math.inf).softmax(-1)
        return weights.to(states.dtype) @ states, weights


class Decoder(nn.Module):
    """Writes a target from the encoder's last state and, with attention, its outputs."""

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
        self, tokens: Tensor, state: State, encoder_output: EncoderOutput
    ) -> tuple[Tensor, Tensor | None, Tensor | None, State]:
        """Read tokens[B, T], each the predecessor of the token to predict.

        Returns:
            features[B, T, E or H], the input of ``output``; attention weights[B, T, S], or None without attention; gate logit
            [B, T] of generating rather than copying, or None without copying; the state after the last token.
        """
        embedded = self.dropout(self.embedding(tokens))
        outputs, last = run_rnn(self.recurrence, embedded, state, self.dropout, self.recurrent_dropout)
        weights = gate = None
        if self.attention is not None:
            context, weights = self.attention(outputs, encoder_output)
            outputs = torch.cat((context, outputs), -1)
            if self.copy_gate is not None:
                gate = self.copy_gate(torch.cat((outputs, embedded), -1)).squeeze(-1).float()
        return self.dropout(self.readout(outputs)), weights, gate, last


class Seq2Seq(nn.Module):
    """Encoder-decoder over one shared subword vocabulary."""

    def __init__(self, config: ModelConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocabulary_size = vocabulary_size
        source_embedding = _embedding(vocabulary_size, config.embedding_size)
        target_embedding = source_embedding if config.tied_embeddings else _embedding(vocabulary_size, config.embedding_size)
        self.encoder = Encoder(config, source_embedding)
        self.decoder = Decoder(config, target_embedding)

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[EncoderOutput, State]:
        """Read source[B, S] with lengths[B] ≥ 1. Return what the decoder attends to, and its first state."""
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
        loss_config: LossConfig = LossConfig(),
    ) -> Tensor:
        """Return the loss of target[B, T] and its ``</s>`` given source[B, S], with teacher forcing.

        The loss is the negative log-likelihood (nat), summed over real tokens, plus the terms of ``loss_config``. Divide it by
        ``(target_lengths + 1).sum()`` for the mean. Padding may hold any ids.
        """
        encoder_output, state = self.encode(source, source_lengths)
        inputs = F.pad(target, (1, 0), value=BOS)
        steps = torch.arange(inputs.shape[1], device=target.device)
        gold = F.pad(target, (0, 1), value=EOS).masked_fill(steps == target_lengths[:, None], EOS)
        features, weights, gate, _ = self.decoder(inputs, state, encoder_output)
        # The projection to the vocabulary is most of the decoder's work, so drop padded steps before it. ``nonzero`` waits for
        # the device; call it once.
        real = (steps <= target_lengths[:, None]).flatten().nonzero()[:, 0]
        entropies = self._cross_entropies(
            _select(features, real), _select(gold, real), with_vocabulary_mean=loss_config.label_smoothing > 0
        )
        nll = entropies[:, 0]
        if weights is not None and gate is not None:
            # P(w) = p_gen P_vocabulary(w) + (1 - p_gen) Σ_{i: source_i = w} attention_i (See et al. 2017, eq. 9),
            # in logarithms, for the gold token only. A gold token that is not in the source has copied 0.
            copied = _select((weights * (encoder_output.source[:, None] == gold[:, :, None])).sum(-1), real)
            generate = _select(gate, real)
            copy_log_prob = copied.clamp_min(torch.finfo(copied.dtype).tiny).log() + F.logsigmoid(-generate)
            nll = -torch.logaddexp(F.logsigmoid(generate) - nll, copy_log_prob)
        loss = nll.sum()
        if loss_config.label_smoothing:
            loss = torch.lerp(loss, entropies[:, 1].sum(), loss_config.label_smoothing)
        if loss_config.coverage and weights is not None:
            earlier = weights.cumsum(1) - weights
            loss = loss + loss_config.coverage * _select(torch.minimum(weights, earlier).sum(-1), real).sum()
        return loss

    def _cross_entropies(self, features: Tensor, gold: Tensor, *, with_vocabulary_mean: bool) -> Tensor:
        """Return cross entropies (nat) of generating after features[N, E or H], in chunks to bound memory.

        Returns:
            [N, 1], of gold[N]; or [N, 2], also the mean over the vocabulary.
        """
        rows = max(1, CHUNK_LOGITS // self.vocabulary_size)
        chunks = zip(torch.split(features, rows), torch.split(gold, rows), strict=True)
        compute = self._chunk_cross_entropies
        if torch.is_grad_enabled() and len(gold) * self.vocabulary_size > MAX_SAVED_LOGITS:
            compute = partial(checkpoint, compute, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([compute(*chunk, with_vocabulary_mean) for chunk in chunks])

    def _chunk_cross_entropies(self, features: Tensor, gold: Tensor, with_vocabulary_mean: bool) -> Tensor:
        logits = self.decoder.output(features).float()
        nll = F.cross_entropy(logits, gold, reduction="none")[:, None]
        if not with_vocabulary_mean:
            return nll
        return torch.cat((nll, nll + logits.gather(1, gold[:, None]) - logits.mean(1, True)), 1)


def _select(values: Tensor, positions: Tensor) -> Tensor:
    """Return values[B, T, …] at flat positions[N] of [B · T], as [N, …]."""
    return values.flatten(0, 1).index_select(0, positions)


def _embedding(vocabulary_size: int, size: int) -> nn.Embedding:
    if (weight := torch.empty(vocabulary_size, size)).is_meta:
        # Meta tensors need no values, and normal_ would import torch._dynamo for them, which takes over a second.
        return nn.Embedding(vocabulary_size, size, _weight=weight)
    embedding = nn.Embedding(vocabulary_size, size)
    nn.init.normal_(embedding.weight, std=size**-0.5)
    return embedding
