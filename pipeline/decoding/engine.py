"""The network as decoding runs it: the equations of seq2seq.py without gradients, arranged so that little is computed twice.

- The product of an embedding with a first layer's input weights depends on the token alone: it is a table that is read.
- Weights that are multiplied with the same vector (a decoder's state: by the recurrence, the query, the readout and the
  copy gate) are multiplied with it at once.
- Attention's query takes over the projection of the keys, which is then made once a target step and not once a source
  position, and leaves one array of states to read and not two.
- Sources come in falling length: on a CPU a recurrence's step takes the rows that reach so far, and padding is never seen.
  A GPU is better served by torch's own recurrence, a kernel for all steps.

How arrays are multiplied, and what lies between two products, is arithmetic.py's business; which token is taken is search.py's.

Shapes: B batch, S source steps, E embedding, H hidden, V vocabulary; G gates of a cell side by side, 4H (LSTM) or 3H (GRU).
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

_TABLE_BYTES = 512 * 2**20
"""A table of this size at most; the products of a larger one are computed as they are needed."""


@dataclass
class EncodedBatch:
    """B sources after reading, a slot each.

    ids[B, S]; lengths[B]; states[B, S, H], the encoder's outputs, and keys, their projection for additive attention; None
    where no attention needs them.
    """

    ids: Tensor
    lengths: Tensor
    states: Tensor | None = None
    keys: Tensor | None = None


@dataclass
class DecoderState:
    """A decoder between two steps, by layer.

    recurrent[R, G or more]: the last h times the recurrent weights, and maybe others. cell[R, H] float32: what its cell
    carries, c of an LSTM or h of a GRU.
    """

    recurrent: list[Tensor]
    cell: list[Tensor]


@dataclass(frozen=True)
class StepOutput:
    """What a step says of the next token of R rows.

    logits[R, V] of generating each. weights[R, S], attention's; None without. copy_logits[R] float32, of copying by these
    weights rather than generating; None without copying.
    """

    logits: Tensor
    weights: Tensor | None = None
    copy_logits: Tensor | None = None


class Engine:
    """A model arranged for decoding. Later changes of the model's weights do not reach it.

    Args:
        model: in evaluation mode, on the device to compute on.
        arithmetic: how to compute.
        graphs: launch steps as graphs, on a GPU; capturing them pays where windows of one kind come again and again.
    """

    def __init__(self, model: Seq2Seq, arithmetic: Backend, graphs: bool = True) -> None:
        self.config, self.vocabulary_size = model.config, model.vocabulary_size
        self.device, self.arithmetic = arithmetic.device, arithmetic
        self.graphs = GraphCache(self.device) if graphs and self.device.type == "cuda" else None
        self._gates = (4 if self.config.cell == "lstm" else 3) * self.config.hidden_size
        self._encoder: Encoder | None = None
        with torch.inference_mode():
            if arithmetic.stepwise:
                self._build_encoder(model)
            else:
                self._encoder = copy.deepcopy(model.encoder).to(arithmetic.module_dtype)
            self._build_decoder(model)

    def footprint(self, options: DecodingConfig) -> tuple[int, int]:
        """Bytes that a batch takes for each padded source position, and for each row besides: more rather than less."""
        c, free, full = self.config, self.arithmetic.bytes, torch.float32.itemsize
        outputs = (2 if c.bidirectional else 1) * c.hidden_size
        position = 10 * torch.long.itemsize  # ids in their order and others
        if c.layers > 1 or c.attention != "none":
            position += 2 * outputs * full  # what a layer gives, by direction and together
        if c.layers > 1 or not self.arithmetic.stepwise or not self._source_inputs[0][0].is_table:
            position += (outputs + self._gates) * full  # what a layer is given, and what its gates make of it
        if c.attention != "none":  # its states, twice while they are made, and those that graphs read; its weights
            position += 2 * c.hidden_size * full + options.beam_size * 4 * full
        if c.attention == "additive":
            position += (1 if self.arithmetic.stepwise else 3) * c.hidden_size * free  # keys; their sum with a query, its tanh
        row = self.vocabulary_size * (2 if self.arithmetic.stepwise else 6) * full  # logits; what comes of them
        row += c.layers * 4 * (self._gates + 4 * c.hidden_size) * full
        row += 5 * options.max_target_tokens * torch.long.itemsize  # what is written, and copies of it
        if self.graphs is not None and options.beam_size == 1:  # a second copy, of shapes a quarter larger in each direction
            position, row = position + 2 * position, row + 2 * row
        return position, options.beam_size * row

    def _build_encoder(self, model: Seq2Seq) -> None:
        encoder, arithmetic = model.encoder, self.arithmetic
        self._source_inputs: list[list[_InputGates]] = []
        self._source_recurrences: list[list[Product]] = []
        for depth, layer in enumerate(encoder.layers):
            inputs, recurrences = [], []
            for direction in ("l0", "l0_reverse") if self.config.bidirectional else ("l0",):
                w_input, b_input, w_hidden, b_hidden = _weights(layer, direction)
                # The last input column is for padding (seq2seq.py), which no step here sees.
                embedding = encoder.embedding.weight if depth == 0 else None
                inputs.append(_InputGates(arithmetic, w_input[:, :-1], b_input, embedding))
                recurrences.append(arithmetic.product(w_hidden, b_hidden))
            self._source_inputs.append(inputs)
            self._source_recurrences.append(recurrences)
        bridges = [_affine(bridge) for bridge in encoder.bridges or ()]
        self._h_bridge = arithmetic.product(*bridges[0]) if bridges else None
        self._c_bridge = arithmetic.free_product(*bridges[1]) if len(bridges) > 1 else None
        self._memory_bridge = arithmetic.product(*_affine(encoder.memory_bridge)) if encoder.memory_bridge else None

    def _build_decoder(self, model: Seq2Seq) -> None:
        decoder, arithmetic, hidden = model.decoder, self.arithmetic, self.config.hidden_size
        layers = [_weights(decoder.recurrence, f"l{depth}") for depth in range(self.config.layers)]
        w_input, b_input, _, _ = layers[0]
        self._target_inputs = _InputGates(arithmetic, w_input, b_input, decoder.embedding.weight)
        # After each layer: its own recurrent product, for the next step; then what reads its h in this one.
        readers: list[list[_Affine]] = [[(w_hidden, b_hidden)] for _, _, w_hidden, b_hidden in layers]
        for below, (w_input, b_input, _, _) in zip(readers, layers[1:], strict=False):
            below.append((w_input, b_input))
        self._width = decoder.output.weight.shape[1]
        self._readout: Product | None = None
        self._of_context: Product | None = None
        self._to_keys: Product | None = None
        self._to_score: Tensor | None = None
        self._copy_of_token: Tensor | None = None
        output = _affine(decoder.output)
        if decoder.attention is None:
            if isinstance(decoder.readout, nn.Linear):
                self._readout = arithmetic.product(*_affine(decoder.readout))
                self._output = arithmetic.free_product(*output)
            else:
                self._output = arithmetic.product(*output)
        else:
            self._output = arithmetic.product(*output)
            self._build_attention(decoder, readers[-1], hidden)
        self._after = [arithmetic.product(*_concatenate(parts)) for parts in readers]

    def _build_attention(self, decoder: Decoder, of_h: list[_Affine], hidden: int) -> None:
        """Adds to what reads the top layer's h: the query, the readout's part of it and, with copying, the gate's."""
        attention = decoder.attention
        assert attention is not None
        assert isinstance(decoder.readout, nn.Sequential)
        if attention.kind == "dot":
            of_h.append((torch.eye(hidden, device=self.device), None))
        elif attention.kind == "general":
            of_h.append((_affine(attention.to_keys)[0].t(), None))
        else:
            of_h.append(_affine(attention.to_query))
            self._to_keys = self.arithmetic.free_product(*_affine(attention.to_keys))
            self._to_score = _affine(attention.to_score)[0][0].float().contiguous()
        weight, bias = _affine(decoder.readout[0])
        of_context: list[_Affine] = [(weight[:, :hidden], None)]
        of_h.append((weight[:, hidden:], bias))
        if decoder.copy_gate is not None:
            # Negated: the network's gate is of generating.
            gate = -decoder.copy_gate.weight
            of_context.append((gate[:, :hidden], None))
            of_h.append((gate[:, hidden : 2 * hidden], -decoder.copy_gate.bias))
            self._copy_of_token = (decoder.embedding.weight @ gate[0, 2 * hidden :]).float()
        self._of_context = self.arithmetic.free_product(*_concatenate(of_context))

    @torch.inference_mode()
    def read(self, ids: Tensor, lengths: Tensor) -> tuple[EncodedBatch, DecoderState]:
        """Encode ids[B, S] with lengths[B] ≥ 1, in falling order."""
        inside = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        if self._encoder is None:
            states, keys, carry = self._read_stepwise(ids, inside)
            return EncodedBatch(ids, lengths, states, keys), carry
        # cuDNN's recurrences take TensorFloat-32 for float32 unless told; a summary would then hang on the batch's shape.
        torch.backends.cudnn.allow_tf32 = self.arithmetic.dtype != torch.float32
        states, state = self._encoder(ids, lengths, ~inside)
        states = self.arithmetic.free(states)
        carry = DecoderState([after(h) for after, h in zip(self._after, state[0], strict=True)], [*state[-1].float()])
        if self._of_context is None:
            return EncodedBatch(ids, lengths), carry
        keys = None if self._to_keys is None else self._to_keys(states.flatten(0, 1)).view(*ids.shape, -1)
        return EncodedBatch(ids, lengths, states, keys), carry

    def _read_stepwise(self, ids: Tensor, inside: Tensor) -> tuple[Tensor | None, Tensor | None, DecoderState]:
        """States and keys of Sources, and where the decoder starts.

        Between steps there is no padding: the N positions inside ids[B, S] lie by step, and of a step the first rows.
        """
        active = inside.sum(0).tolist()
        inside = inside.t()
        carry = DecoderState([], [])
        below = ids.t()[inside]
        for depth, after in enumerate(self._after):
            is_read = depth + 1 < len(self._after) or self._of_context is not None
            runs = [
                self._run(*of_input(below), recurrence, active, backwards, is_read)
                for of_input, recurrence, backwards in zip(
                    self._source_inputs[depth], self._source_recurrences[depth], (False, True), strict=False
                )
            ]
            below, h, cell = (parts[0] if len(parts) == 1 else torch.cat(parts, -1) for parts in zip(*runs, strict=True))
            if self._h_bridge is not None:
                first = self._h_bridge(h).float().tanh()
                h = self.arithmetic.stored(first)
                cell = first if self._c_bridge is None else self._c_bridge(cell).float().tanh()
            carry.recurrent.append(after(h))
            carry.cell.append(cell)
        if self._of_context is None:
            return None, None, carry
        states = self.arithmetic.free(below if self._memory_bridge is None else self._memory_bridge(below))
        keys = None if self._to_keys is None else self._to_keys(states)
        return _by_row(states, inside), None if keys is None else _by_row(keys, inside), carry

    def _run(
        self, inputs: Tensor, index: Tensor, recurrence: Product, active: list[int], backwards: bool, is_read: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One direction of one layer: its h at all positions [N, H], if they are read, and each row's last h and carry [B, H].

        inputs[·, G], of which position n reads the one that index[N] says. active[S]: rows that reach so far.
        """
        hidden = self.config.hidden_size
        outputs = self.arithmetic.empty(len(index) if is_read else 0, hidden)
        h = self.arithmetic.zeros(active[0], hidden)
        carry = torch.zeros(active[0], hidden, device=self.device)
        steps = list(zip(itertools.accumulate(active, initial=0), active, strict=False))
        for start, rows in reversed(steps) if backwards else steps:
            self.arithmetic.cell(inputs, index[start : start + rows], recurrence(h[:rows]), carry[:rows], h[:rows])
            if is_read:
                outputs[start : start + rows] = h[:rows]
        return outputs, h, carry

    @torch.inference_mode()
    def step(self, tokens: Tensor, carry: DecoderState, sources: EncodedBatch) -> StepOutput:
        """Predict what follows the last tokens[R], R / B after each other for each source; the carry moves on by a step."""
        inputs, index = self._target_inputs(tokens)
        for depth, product in enumerate(self._after):
            h = self.arithmetic.empty(len(tokens), self.config.hidden_size)
            self.arithmetic.cell(inputs, index, carry.recurrent[depth], carry.cell[depth], h)
            carry.recurrent[depth] = after = product(h)
            inputs = after[:, self._gates :].contiguous()
            index = torch.arange(len(tokens), device=self.device)
        if self._of_context is None:
            return StepOutput(self._output(h if self._readout is None else self._readout(h)))
        hidden = self.config.hidden_size
        query, of_h = inputs[:, :hidden].contiguous(), inputs[:, hidden:]
        assert sources.states is not None
        weights, context = self.arithmetic.attend(sources.states, sources.keys, self._to_score, sources.lengths, query)
        summed = self._of_context(context).float() + of_h
        logits = self._output(self.arithmetic.stored(summed[:, : self._width].tanh()))
        if self._copy_of_token is None:
            return StepOutput(logits, weights)
        return StepOutput(logits, weights, summed[:, self._width] + self._copy_of_token[tokens])


class _InputGates:
    """The part of a layer's gates that its inputs make: of a first layer's tokens, or of the outputs below."""

    def __init__(self, arithmetic: Backend, weight: Tensor, bias: Tensor, embedding: Tensor | None) -> None:
        self._product: Product | None = None
        self._table: Tensor | None = None
        self._embedding: Tensor | None = None
        if embedding is None:
            self._product = arithmetic.product(weight, bias)
        elif len(embedding) * len(weight) * arithmetic.bytes <= _TABLE_BYTES:
            self._table = arithmetic.free(embedding @ weight.t() + bias)
        else:
            self._product, self._embedding = arithmetic.free_product(weight, bias), arithmetic.free(embedding)

    @property
    def is_table(self) -> bool:
        """Whether all products there can be are in memory already."""
        return self._table is not None

    def __call__(self, below: Tensor) -> tuple[Tensor, Tensor]:
        """Of ids[...], or of outputs[..., K]: gates[N, G], and index[...] into them."""
        if self._table is not None:
            return self._table, below
        assert self._product is not None
        if self._embedding is not None:
            below = self._embedding[below]
        shape = below.shape[:-1]
        return self._product(below.flatten(0, -2)), torch.arange(shape.numel(), device=below.device).view(shape)


def _by_row(by_step: Tensor, inside: Tensor) -> Tensor:
    """What lies by step, [N, H], as rows [B, S, H]; inside[S, B]. What stands at padding means nothing, and is finite."""
    position = (inside.flatten().cumsum(0) - 1).view(inside.shape)
    return by_step.index_select(0, position.t().flatten()).view(*position.t().shape, -1)


_Affine = tuple[Tensor, Tensor | None]
"""weight[N, K] and bias[N]."""


def _affine(linear: nn.Module) -> _Affine:
    assert isinstance(linear, nn.Linear)
    return linear.weight, linear.bias


def _concatenate(parts: list[_Affine]) -> tuple[Tensor, Tensor]:
    """Several that read the same, as one."""
    biases = [weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in parts]
    return torch.cat([weight for weight, _ in parts]), torch.cat(biases)


def _weights(layer: nn.Module, suffix: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of one layer and direction: w_input[G, K], b_input[G], w_hidden[G, H], b_hidden[G]."""
    w_input, w_hidden, b_input, b_hidden = (
        getattr(layer, f"{name}_{suffix}").detach().float() for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    return w_input, b_input, w_hidden, b_hidden
