"""Run the network's LSTMs and GRUs over whole sequences, with features that torch's modules lack.

These are variational and recurrent dropout, the initialization, weights that freeze the state at padding (see seq2seq.py), and
control over the dtype under autocast. Shapes: B batch, S source steps, T target steps, E embedding, H hidden.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.model import ModelConfig

_SATURATING = 1e4
"""Added to a gate before its sigmoid: gives exactly 0 or 1, and fits in float16."""

_MIN_CUDNN_BFLOAT16 = 91_300
"""The first cuDNN version whose RNNs torch runs in bfloat16 (pytorch/pytorch#164411). With an older one, use float32."""

State = tuple[Tensor, ...]
"""A decoder's recurrent state: (h,) of a GRU or (h, c) of an LSTM, each [layers, B, H]."""


class Dropout(nn.Module):
    """Dropout on inputs[B, S or T, E or H].

    Drops each unit at each step on its own or, if variational, the same units at all steps of a row (Gal & Ghahramani 2016,
    section 4.1).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.rate, self.variational = config.dropout, config.variational_dropout

    def forward(self, inputs: Tensor) -> Tensor:
        if not (self.variational and self.training and self.rate):
            return F.dropout(inputs, self.rate, self.training)
        return inputs * F.dropout(inputs.new_ones(len(inputs), 1, inputs.shape[-1]), self.rate)


def recurrence_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype for a device's RNN modules where everything else computes in ``dtype``."""
    if device.type == "cuda" and dtype == torch.bfloat16 and (torch.backends.cudnn.version() or 0) < _MIN_CUDNN_BFLOAT16:  # type: ignore[no-untyped-call]
        return torch.float32
    return dtype


def run_rnn(
    rnn: nn.RNNBase, inputs: Tensor, initial: State | None, dropout: Dropout, recurrent_dropout: float
) -> tuple[Tensor, State]:
    """Run all layers over whole sequences.

    Args:
        initial: the first state; None for zeros.
        dropout: between layers, if it is variational; else the module's own dropout applies.
        recurrent_dropout: share of hidden-to-hidden weights to drop, the same at all steps of a batch (DropConnect, Merity et
            al. 2018, section 2). Costs a copy of the weights.

    Returns:
        outputs[B, S, H], or 2H if bidirectional; the last state.
    """
    is_lstm, layers = isinstance(rnn, nn.LSTM), rnn.num_layers
    if initial is None:
        directions = 2 if rnn.bidirectional else 1
        zeros = inputs.new_zeros(directions * layers, len(inputs), rnn.hidden_size)
        initial = (zeros, zeros) if is_lstm else (zeros,)
    # The module itself runs all layers at once; layers run one by one where there is dropout that it does not have.
    is_plain = not rnn.training or not (recurrent_dropout or (dropout.variational and layers > 1))
    dtype = dtype_instead_of_autocast(inputs.device)
    if is_plain and dtype is None:
        outputs, last = rnn(inputs, initial if is_lstm else initial[0])
        return outputs, last if is_lstm else (last,)
    with contextlib.nullcontext() if dtype is None else torch.autocast(inputs.device.type, enabled=False):
        inputs, initial = inputs.to(dtype=dtype), tuple(part.to(dtype=dtype) for part in initial)
        states: list[State] = []
        step = layers if is_plain else 1
        for layer in range(0, layers, step):
            rows = slice(layer * len(initial[0]) // layers, (layer + step) * len(initial[0]) // layers)
            # Per layer and direction: input weights, hidden weights, and two biases.
            weights = [
                part.to(dtype=dtype)
                for w_input, w_hidden, *biases in rnn.all_weights[rows]
                for part in (w_input, F.dropout(w_hidden, recurrent_dropout, not is_plain), *biases)
            ]
            first = tuple(part[rows].contiguous() for part in initial)
            module_dropout = rnn.dropout if is_plain else 0.0
            arguments = (weights, True, step, module_dropout, rnn.training, rnn.bidirectional, True)
            dropped = dropout(inputs) if layer else inputs
            inputs, *state = torch.lstm(dropped, first, *arguments) if is_lstm else torch.gru(dropped, first[0], *arguments)
            states.append(tuple(state))
    return inputs, tuple(torch.cat(parts) for parts in zip(*states, strict=True))


def dtype_instead_of_autocast(device: torch.device) -> torch.dtype | None:
    """Return the dtype to run RNNs in where autocast would choose the wrong one, or None to leave it to autocast.

    On GPUs autocast runs cuDNN's RNNs in float16, whatever its own dtype (ATen/cudnn/AutocastRNN.cpp). Training in bfloat16
    does not scale gradients, which would underflow in float16.
    """
    if device.type != "cuda" or not torch.is_autocast_enabled("cuda") or torch.get_autocast_dtype("cuda") != torch.bfloat16:
        return None
    return recurrence_dtype(torch.bfloat16, device)


def initialize(rnn: nn.RNNBase) -> None:
    """Initialize with orthogonal hidden weights (Saxe et al. 2014) and an LSTM's forget gate open (Jozefowicz et al. 2015)."""
    hidden = rnn.hidden_size
    for name, weight in rnn.named_parameters():
        if name.startswith("weight_hh"):
            for gate in torch.split(weight.data, hidden):
                nn.init.orthogonal_(gate)
        elif name.startswith("weight_ih"):
            nn.init.xavier_uniform_(weight)
        else:
            nn.init.zeros_(weight)
            if isinstance(rnn, nn.LSTM) and name.startswith("bias_ih"):
                weight.data[hidden : 2 * hidden] = 1.0


def hold_state_at_padding(rnn: nn.RNNBase) -> None:
    """Set the weights of the last input column so that a 1 in it keeps the state unchanged (see seq2seq.py)."""
    hidden = rnn.hidden_size
    for name, weight in rnn.named_parameters():
        if name.startswith("weight_ih"):
            column = weight.data[:, -1]
            column.zero_()
            if isinstance(rnn, nn.LSTM):
                column[:hidden] = -_SATURATING  # input gate
                column[hidden : 2 * hidden] = _SATURATING  # forget gate
            else:
                column[hidden : 2 * hidden] = _SATURATING  # update gate: h' = (1 - z) n + z h
