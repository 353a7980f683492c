"""The network's recurrences: whole sequences at a time, and what torch's own modules do not know of them.

Dropout that is drawn once a row or once a batch, a start with open gates, a state that padding leaves as it is (seq2seq.py
tells why), and the number type. Shapes: B batch, S source steps, T target steps, E embedding, H hidden.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.model import ModelConfig

_HOLD = 1e4
"""Added to a gate before its sigmoid: gives exactly 0 or 1, and fits in float16."""

_CUDNN_BFLOAT16 = 91_300
"""The first cuDNN whose recurrences torch gives bfloat16 to (pytorch/pytorch#164411); before it torch's own may know none."""

State = tuple[Tensor, ...]
"""A decoder's recurrent state: (h,) of a GRU or (h, c) of an LSTM, each [layers, B, H]."""


class Dropout(nn.Module):
    """Dropout of inputs[B, S or T, E or H]: of each unit at each step apart, or of a unit at all steps of a row alike.

    The latter is variational dropout (Gal & Ghahramani 2016, section 4.1).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.share, self.variational = config.dropout, config.variational_dropout

    def forward(self, inputs: Tensor) -> Tensor:
        """The inputs, of which a share is 0 while learning."""
        if not (self.variational and self.training and self.share):
            return F.dropout(inputs, self.share, self.training)
        return inputs * F.dropout(inputs.new_ones(len(inputs), 1, inputs.shape[-1]), self.share)


def recurrence_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What a device's recurrences compute in where all else computes in ``dtype``."""
    if device.type == "cuda" and dtype == torch.bfloat16 and (torch.backends.cudnn.version() or 0) < _CUDNN_BFLOAT16:  # type: ignore[no-untyped-call]
        return torch.float32
    return dtype


def run_rnn(
    recurrence: nn.RNNBase, inputs: Tensor, before: State | None, dropout: Dropout, recurrent_dropout: float
) -> tuple[Tensor, State]:
    """Outputs and last state of ``recurrence``, whole sequences at a time, with what dropout it does not know itself.

    before: the state to begin with; None for zeros. recurrent_dropout: share of the weights from step to step that are 0, the
    same at all steps of a batch (DropConnect, as Merity et al. 2018, section 2, use it); costs a copy of the weights.
    """
    is_lstm, layers = isinstance(recurrence, nn.LSTM), recurrence.num_layers
    if before is None:
        directions = 2 if recurrence.bidirectional else 1
        zeros = inputs.new_zeros(directions * layers, len(inputs), recurrence.hidden_size)
        before = (zeros, zeros) if is_lstm else (zeros,)
    is_plain = not recurrence.training or not (recurrent_dropout or (dropout.variational and layers > 1))
    dtype = _dtype_beside_autocast(inputs.device)
    if is_plain and dtype is None:
        outputs, after = recurrence(inputs, before if is_lstm else before[0])
        return outputs, after if is_lstm else (after,)
    with contextlib.nullcontext() if dtype is None else torch.autocast(inputs.device.type, enabled=False):
        inputs, before = inputs.to(dtype=dtype), tuple(part.to(dtype=dtype) for part in before)
        states: list[State] = []
        step = layers if is_plain else 1
        for layer in range(0, layers, step):
            rows = slice(layer * len(before[0]) // layers, (layer + step) * len(before[0]) // layers)
            # Of each layer and direction: from input, from step to step, and two biases.
            weights = [
                part.to(dtype=dtype)
                for from_input, from_state, *biases in recurrence.all_weights[rows]
                for part in (from_input, F.dropout(from_state, recurrent_dropout, not is_plain), *biases)
            ]
            first = tuple(part[rows].contiguous() for part in before)
            between = recurrence.dropout if is_plain else 0.0
            shape = (weights, True, step, between, recurrence.training, recurrence.bidirectional, True)
            dropped = dropout(inputs) if layer else inputs
            inputs, *after = torch.lstm(dropped, first, *shape) if is_lstm else torch.gru(dropped, first[0], *shape)
            states.append(tuple(after))
    return inputs, tuple(torch.cat(parts) for parts in zip(*states, strict=True))


def _dtype_beside_autocast(device: torch.device) -> torch.dtype | None:
    """What a recurrence is to compute in where autocast would choose another type; None where it would not.

    On GPUs it takes float16 for cuDNN's, whatever its own type (ATen/cudnn/AutocastRNN.cpp): the gradients of a training in
    bfloat16, which nobody scales, would be too small for that.
    """
    if device.type != "cuda" or not torch.is_autocast_enabled("cuda") or torch.get_autocast_dtype("cuda") != torch.bfloat16:
        return None
    return recurrence_dtype(torch.bfloat16, device)


def initialize(recurrence: nn.RNNBase) -> None:
    """Orthogonal recurrent weights (Saxe et al. 2014); an LSTM's forget gate starts open (Jozefowicz et al. 2015)."""
    hidden = recurrence.hidden_size
    for name, weight in recurrence.named_parameters():
        if name.startswith("weight_hh"):
            for gate in torch.split(weight.data, hidden):
                nn.init.orthogonal_(gate)
        elif name.startswith("weight_ih"):
            nn.init.xavier_uniform_(weight)
        else:
            nn.init.zeros_(weight)
            if isinstance(recurrence, nn.LSTM) and name.startswith("bias_ih"):
                weight.data[hidden : 2 * hidden] = 1.0


def hold_state_at_padding(recurrence: nn.RNNBase) -> None:
    """Set the last input column's weights so that a 1 there keeps the state as it is (see the module's docstring)."""
    hidden = recurrence.hidden_size
    for name, weight in recurrence.named_parameters():
        if name.startswith("weight_ih"):
            column = weight.data[:, -1]
            column.zero_()
            if isinstance(recurrence, nn.LSTM):
                column[:hidden] = -_HOLD  # input gate
                column[hidden : 2 * hidden] = _HOLD  # forget gate
            else:
                column[hidden : 2 * hidden] = _HOLD  # update gate: h' = (1 - z) n + z h
