"""The network arranged for decoding: the equations of seq2seq.py without gradients, with little computed twice.

- The product of an embedding with a first layer's input weights depends on the token only, so it is a lookup table.
- Weights that multiply the same vector are joined into one product: a decoder's h feeds the next recurrence, the query, the
  readout and the copy gate.
- The projection of the attention's keys moves to the query: one product per target step instead of one per source position, and
  one array of states to read instead of two.
- Sources come by falling length. On a CPU each recurrent step computes only the rows that are long enough, without padding. On
  a GPU torch's own RNNs are faster: one kernel for all steps.

backends.py knows how to multiply and what happens between products; greedy.py and beam.py choose the tokens.

Shapes: B batch, R decoder rows (a multiple of B), S source steps, N source positions that are not padding, E embedding, H
hidden, V vocabulary, G gates side by side (4H for LSTM, 3H for GRU).
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.config.model import DecodingConfig
from pipeline.decoding.backends import Backend, Product
from pipeline.decoding.cuda_graphs import GraphCache
from pipeline.model.seq2seq import Decoder, Encoder, Seq2Seq

MAX_TABLE_BYTES = 512 * 2**20
"""Largest lookup table of embeddings times input weights. Above it, products are computed when needed."""


@dataclass
class EncodedBatch:
    """Encoded sources.

    Attributes:
        ids: source tokens[B, S].
        lengths: of the sources [B].
        states: encoder outputs[B, S, H]; None without attention.
        keys: their projection[B, S, H]; None unless attention is additive.
    """

    ids: Tensor
    lengths: Tensor
    states: Tensor | None = None
    keys: Tensor | None = None


@dataclass
class DecoderState:
    """The decoder's state between two steps, one entry per layer.

    Attributes:
        recurrent: [R, G or more], the last h times the recurrent weights; beyond G, other products of h.
        cell: [R, H] float32, c of an LSTM or h of a GRU.
    """

    recurrent: list[Tensor]
    cell: list[Tensor]


@dataclass(frozen=True)
class StepOutput:
    """The network's output for the next token of R rows.

    Attributes:
        logits: [R, V], of generating each token.
        weights: attention[R, S]; None without attention.
        copy_logits: [R] float32, of copying rather than generating; None without copying.
    """

    logits: Tensor
    weights: Tensor | None = None
    copy_logits: Tensor | None = None


class Engine:
    """A model arranged for decoding. Later changes to the model's weights have no effect.

    Args:
        model: in evaluation mode, on the backend's device.
        graphs: use CUDA graphs on a GPU. Capturing them pays off if many windows are decoded.
    """

    def __init__(self, model: Seq2Seq, backend: Backend, graphs: bool = True) -> None:
        self.config, self.vocabulary_size = model.config, model.vocabulary_size
        self.device, self.backend = backend.device, backend
        self.graphs = GraphCache(self.device) if graphs and self.device.type == "cuda" else None
        self._gates = (4 if self.config.cell == "lstm" else 3) * self.config.hidden_size
        self._encoder: Encoder | None = None
        with torch.inference_mode():
            if backend.is_stepwise:
                self._build_encoder(model.encoder)
            else:
                self._encoder = copy.deepcopy(model.encoder).to(backend.module_dtype)
            self._build_decoder(model.decoder)

    def footprint(self, options: DecodingConfig) -> tuple[int, int]:
        """Return an upper estimate of the bytes that a batch takes per padded source position, and per row besides."""
        config, itemsize, float32 = self.config, self.backend.dtype.itemsize, torch.float32.itemsize
        is_stepwise = self.backend.is_stepwise
        outputs = (2 if config.bidirectional else 1) * config.encoder_units
        position = 10 * torch.long.itemsize  # ids, sorted and not
        if config.layers > 1 or config.attention != "none":
            position += 2 * outputs * float32  # a layer's outputs, by direction and joined
        if config.layers > 1 or not is_stepwise or not self._source_layers[0][0].gates.is_table:
            position += (outputs + max(self._gates, 4 * config.encoder_units)) * float32  # a layer's inputs and their gates
        if config.attention != "none":  # states, twice while they are computed and in static buffers; weights
            position += 2 * config.hidden_size * float32 + options.beam_size * 4 * float32
        if config.attention == "additive":
            position += (1 if is_stepwise else 3) * config.hidden_size * itemsize  # keys; their sum with a query, its tanh
        row = self.vocabulary_size * (2 if is_stepwise else 6) * float32  # logits and scores
        row += config.layers * 4 * (self._gates + 4 * config.hidden_size) * float32
        row += 5 * options.max_target_tokens * torch.long.itemsize  # written tokens and copies of them
        if self.graphs is not None and options.beam_size == 1:  # static buffers, a quarter larger in each direction
            position, row = position + 2 * position, row + 2 * row
        return position, options.beam_size * row

    def _build_encoder(self, encoder: Encoder) -> None:
        backend = self.backend
        suffixes = ("l0", "l0_reverse") if self.config.bidirectional else ("l0",)
        self._source_layers: list[list[_Direction]] = []
        for depth, layer in enumerate(encoder.layers):
            directions = []
            for suffix in suffixes:
                w_input, b_input, w_hidden, b_hidden = _weights(layer, suffix)
                # The last input column is for padding (seq2seq.py), which stepwise reading skips.
                embedding = encoder.embedding.weight if depth == 0 else None
                gates = _InputGates(backend, w_input[:, :-1], b_input, embedding)
                directions.append(_Direction(gates, backend.product(w_hidden, b_hidden), suffix.endswith("reverse")))
            self._source_layers.append(directions)
        bridges = [_affine(bridge) for bridge in encoder.bridges or ()]
        self._h_bridge = backend.product(*bridges[0]) if bridges else None
        self._c_bridge = backend.float_product(*bridges[1]) if len(bridges) > 1 else None
        self._memory_bridge = backend.product(*_affine(encoder.memory_bridge)) if encoder.memory_bridge else None

    def _build_decoder(self, decoder: Decoder) -> None:
        backend = self.backend
        layers = [_weights(decoder.recurrence, f"l{depth}") for depth in range(self.config.layers)]
        w_input, b_input, _, _ = layers[0]
        self._target_gates = _InputGates(backend, w_input, b_input, decoder.embedding.weight)
        # What multiplies each layer's h: its own recurrence, for the next step; then what reads h in this step.
        h_readers: list[list[_Affine]] = [[(w_hidden, b_hidden)] for _, _, w_hidden, b_hidden in layers]
        for readers, (w_input, b_input, _, _) in zip(h_readers, layers[1:], strict=False):
            readers.append((w_input, b_input))
        self._readout_width = decoder.output.weight.shape[1]
        self._readout: Product | None = None
        self._context_product: Product | None = None
        self._to_keys: Product | None = None
        self._to_score: Tensor | None = None
        self._copy_logit_table: Tensor | None = None
        output = _affine(decoder.output)
        if decoder.attention is not None:
            self._output = backend.product(*output)
            self._build_attention(decoder, h_readers[-1])
        elif isinstance(decoder.readout, nn.Linear):
            self._readout = backend.product(*_affine(decoder.readout))
            self._output = backend.float_product(*output)
        else:
            self._output = backend.product(*output)
        self._h_products = [backend.product(*_concatenate(readers)) for readers in h_readers]

    def _build_attention(self, decoder: Decoder, h_readers: list[_Affine]) -> None:
        """Add the readers of the top layer's h: the query, its part of the readout and, with copying, of the gate."""
        attention, hidden = decoder.attention, self.config.hidden_size
        assert attention is not None
        assert isinstance(decoder.readout, nn.Sequential)
        if attention.score == "dot":
            h_readers.append((torch.eye(hidden, device=self.device), None))
        elif attention.score == "general":
            h_readers.append((_affine(attention.to_keys)[0].t(), None))
        else:
            h_readers.append(_affine(attention.to_query))
            self._to_keys = self.backend.float_product(*_affine(attention.to_keys))
            self._to_score = _affine(attention.to_score)[0][0].float().contiguous()
        weight, bias = _affine(decoder.readout[0])
        context_readers: list[_Affine] = [(weight[:, :hidden], None)]
        h_readers.append((weight[:, hidden:], bias))
        if decoder.copy_gate is not None:
            # Negated: the network's gate is the logit of generating.
            gate = -decoder.copy_gate.weight
            context_readers.append((gate[:, :hidden], None))
            h_readers.append((gate[:, hidden : 2 * hidden], -decoder.copy_gate.bias))
            self._copy_logit_table = (decoder.embedding.weight @ gate[0, 2 * hidden :]).float()
        self._context_product = self.backend.float_product(*_concatenate(context_readers))

    @torch.inference_mode()
    def read(self, ids: Tensor, lengths: Tensor) -> tuple[EncodedBatch, DecoderState]:
        """Encode ids[B, S] with lengths[B] ≥ 1, in descending order. Return also the decoder's first state."""
        is_source = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        if self._encoder is None:
            states, keys, state = self._read_stepwise(ids, is_source)
            return EncodedBatch(ids, lengths, states, keys), state
        # By default cuDNN's RNNs use TensorFloat-32 for float32, and a summary would depend on the batch's shape.
        torch.backends.cudnn.allow_tf32 = self.backend.dtype != torch.float32
        states, last = self._encoder(ids, lengths, ~is_source)
        states = self.backend.dequantize(states)
        state = DecoderState([product(h) for product, h in zip(self._h_products, last[0], strict=True)], [*last[-1].float()])
        if self._context_product is None:
            return EncodedBatch(ids, lengths), state
        keys = None if self._to_keys is None else self._to_keys(states.flatten(0, 1)).view(*ids.shape, -1)
        return EncodedBatch(ids, lengths, states, keys), state

    def _read_stepwise(self, ids: Tensor, is_source: Tensor) -> tuple[Tensor | None, Tensor | None, DecoderState]:
        """Return states and keys of an EncodedBatch, and the decoder's first state.

        The N real positions of ids[B, S] are packed by step; those of a step are its first rows.
        """
        rows_per_step = is_source.sum(0).tolist()
        is_source = is_source.t()
        state = DecoderState([], [])
        outputs = ids.t()[is_source]
        for depth, (directions, h_product) in enumerate(zip(self._source_layers, self._h_products, strict=True)):
            needs_outputs = depth + 1 < len(self._source_layers) or self._context_product is not None
            runs = [self._run_direction(direction, outputs, rows_per_step, needs_outputs) for direction in directions]
            outputs, h, cell = (parts[0] if len(parts) == 1 else torch.cat(parts, -1) for parts in zip(*runs, strict=True))
            if self._h_bridge is not None:
                first_h = self._h_bridge(h).float().tanh()
                h = self.backend.quantize(first_h)
                cell = first_h if self._c_bridge is None else self._c_bridge(cell).float().tanh()
            state.recurrent.append(h_product(h))
            state.cell.append(cell)
        if self._context_product is None:
            return None, None, state
        states = self.backend.dequantize(outputs if self._memory_bridge is None else self._memory_bridge(outputs))
        keys = None if self._to_keys is None else self._to_keys(states)
        return _unpack(states, is_source), None if keys is None else _unpack(keys, is_source), state

    def _run_direction(
        self, direction: _Direction, below: Tensor, rows_per_step: list[int], needs_outputs: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run one direction of an encoder layer over ids[N] or the outputs below [N, K].

        Returns:
            h of all positions [N, H'], or [0, H'] if not needed; each row's last h and cell [B, H'], of the encoder's units.
        """
        gates, index = direction.gates(below)
        backend, hidden, batch = self.backend, self.config.encoder_units, rows_per_step[0]
        outputs = backend.empty(len(index) if needs_outputs else 0, hidden)
        h, cell = backend.zeros(batch, hidden), torch.zeros(batch, hidden, device=self.device)
        steps = list(zip(itertools.accumulate(rows_per_step, initial=0), rows_per_step, strict=False))
        for start, rows in reversed(steps) if direction.is_reverse else steps:
            backend.cell(gates, index[start : start + rows], direction.recurrence(h[:rows]), cell[:rows], h[:rows])
            if needs_outputs:
                outputs[start : start + rows] = h[:rows]
        return outputs, h, cell

    @torch.inference_mode()
    def step(self, tokens: Tensor, state: DecoderState, encoded: EncodedBatch) -> StepOutput:
        """Predict what follows the last tokens[R], and update the state in place."""
        gates, index = self._target_gates(tokens)
        for depth, product in enumerate(self._h_products):
            h = self.backend.empty(len(tokens), self.config.hidden_size)
            self.backend.cell(gates, index, state.recurrent[depth], state.cell[depth], h)
            state.recurrent[depth] = products = product(h)
            gates = products[:, self._gates :].contiguous()
            index = torch.arange(len(tokens), device=self.device)
        if self._context_product is None:
            return StepOutput(self._output(h if self._readout is None else self._readout(h)))
        hidden = self.config.hidden_size
        query, from_h = gates[:, :hidden].contiguous(), gates[:, hidden:]
        assert encoded.states is not None
        weights, context = self.backend.attend(encoded.states, encoded.keys, self._to_score, encoded.lengths, query)
        readout = self._context_product(context).float() + from_h
        logits = self._output(self.backend.quantize(readout[:, : self._readout_width].tanh()))
        if self._copy_logit_table is None:
            return StepOutput(logits, weights)
        return StepOutput(logits, weights, readout[:, self._readout_width] + self._copy_logit_table[tokens])


class _InputGates:
    """The part of a layer's gates that depends on its inputs: tokens for a first layer, else the outputs below."""

    def __init__(self, backend: Backend, weight: Tensor, bias: Tensor, embedding: Tensor | None) -> None:
        self._product: Product | None = None
        self._table: Tensor | None = None
        self._embedding: Tensor | None = None
        if embedding is None:
            self._product = backend.product(weight, bias)
        elif len(embedding) * len(weight) * backend.dtype.itemsize <= MAX_TABLE_BYTES:
            self._table = backend.dequantize(embedding @ weight.t() + bias)
        else:
            self._product, self._embedding = backend.float_product(weight, bias), backend.dequantize(embedding)

    @property
    def is_table(self) -> bool:
        return self._table is not None

    def __call__(self, below: Tensor) -> tuple[Tensor, Tensor]:
        """Return gates[any, G] for ids[...] or outputs[..., K], and index[...] into them."""
        if self._table is not None:
            return self._table, below
        assert self._product is not None
        if self._embedding is not None:
            below = self._embedding[below]
        shape = below.shape[:-1]
        return self._product(below.flatten(0, -2)), torch.arange(shape.numel(), device=below.device).view(shape)


@dataclass(frozen=True)
class _Direction:
    gates: _InputGates
    recurrence: Product
    is_reverse: bool


def _unpack(packed: Tensor, is_source: Tensor) -> Tensor:
    """Return rows[B, S, H] of packed[N, H], with is_source[S, B]. Padding holds arbitrary finite values."""
    positions = ((is_source.flatten().cumsum(0) - 1).view(is_source.shape)).t()
    return packed.index_select(0, positions.flatten()).view(*positions.shape, -1)


_Affine = tuple[Tensor, Tensor | None]
"""weight[M, K] and bias[M]."""


def _affine(linear: nn.Module) -> _Affine:
    assert isinstance(linear, nn.Linear)
    return linear.weight, linear.bias


def _concatenate(parts: list[_Affine]) -> tuple[Tensor, Tensor]:
    """Join products of the same input into one."""
    biases = [weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in parts]
    return torch.cat([weight for weight, _ in parts]), torch.cat(biases)


def _weights(layer: nn.Module, suffix: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return w_input[G, K], b_input[G], w_hidden[G, H], b_hidden[G] of a layer and direction."""
    w_input, w_hidden, b_input, b_hidden = (
        getattr(layer, f"{name}_{suffix}").detach().float() for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    return w_input, b_input, w_hidden, b_hidden
