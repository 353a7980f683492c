"""How decoding computes: matrix products with fixed weights, and the operations between them.

``TorchBackend`` uses torch operations and runs on every device. ``CpuBackend`` multiplies with oneDNN, whose weights it packs
once, in float32, bfloat16 or int8; cpu_kernels.py does the rest. Both compute the same, and engine.py uses either.

A cell's h and a readout are within ±1. Backends keep them *quantized*: in int8 as bytes of a fixed scale, so that a row's
result does not depend on the other rows of its batch; otherwise as floats of ``dtype``. All other numbers are floats.

Shapes: B batch, R decoder rows (a multiple of B: the hypotheses of a source are adjacent), S source steps, T target steps,
H hidden, V vocabulary, G gates side by side (4H for LSTM, 3H for GRU).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.special_tokens import BOS, EOS, PAD, UNK
from pipeline.decoding import cpu_kernels
from pipeline.errors import UserError
from pipeline.model.precision import compute_dtype
from pipeline.model.rnn import recurrence_dtype

Product = Callable[[Tensor], Tensor]
"""Maps x[N, K] to x @ weight[M, K].T + bias[M]."""


class CopyInputs(NamedTuple):
    """Inputs of copying from the source in one step (See et al. 2017).

    Attributes:
        ids: source tokens[B, S].
        first_positions: position[B, S] at which the same token occurs first in its row.
        lengths: of the sources [B].
        weights: attention[R, S], 0 beyond a length.
        logits: [R] float32, of copying rather than generating.
    """

    ids: Tensor
    first_positions: Tensor
    lengths: Tensor
    weights: Tensor
    logits: Tensor


class TokenConstraints(NamedTuple):
    """Which tokens may come next. ``<pad>``, ``<unk>`` and ``<s>`` never do.

    Attributes:
        written: tokens so far [R, T], with any ``<pad>`` before them.
        no_repeat_ngram: forbid tokens that would repeat an n-gram of ``written``; 0 for no limit.
        eos_allowed: whether ``</s>`` may come, a bool tensor without dimensions.
    """

    written: Tensor
    no_repeat_ngram: int
    eos_allowed: Tensor


class Backend(Protocol):
    """The operations of engine.py and of the searches.

    Attributes:
        dtype: type of floats.
        is_stepwise: True to read sources one step at a time with ``cell``, False to use the network's own modules.
        module_dtype: type that those modules compute in.
    """

    device: torch.device
    dtype: torch.dtype
    is_stepwise: bool
    module_dtype: torch.dtype

    def product(self, weight: Tensor, bias: Tensor | None) -> Product:
        """Return a product of quantized inputs, with outputs in ``dtype`` or float32."""

    def float_product(self, weight: Tensor, bias: Tensor | None) -> Product:
        """Return a product of float inputs, with outputs in ``dtype``."""

    def empty(self, *shape: int) -> Tensor:
        """Return an uninitialized quantized tensor."""

    def zeros(self, *shape: int) -> Tensor:
        """Return a quantized tensor of zeros."""

    def quantize(self, x: Tensor) -> Tensor:
        """Quantize floats within ±1."""

    def dequantize(self, x: Tensor) -> Tensor:
        """Convert a quantized or float tensor to ``dtype``."""

    def cell(self, inputs: Tensor, index: Tensor, recurrent: Tensor, state: Tensor, h: Tensor) -> None:
        """Run one step of R cells in place: update float32 state[R, H] (c of an LSTM, h of a GRU), write quantized h[R, H].

        Row r adds the gates inputs[index[r], G] and recurrent[r, G or more].
        """

    def attend(
        self, states: Tensor, keys: Tensor | None, to_score: Tensor | None, lengths: Tensor, query: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weigh states[B, S, H] up to lengths[B] by query[R, H].

        The score is additive with keys[B, S, H] and to_score[H], else the dot product with the states.

        Returns:
            weights[R, S] float32, 0 beyond a length; context[R, H], the weighted mean of the states.
        """

    def top_tokens(
        self, count: int, logits: Tensor, constraints: TokenConstraints, copying: CopyInputs | None
    ) -> tuple[Tensor, Tensor]:
        """Return the ``count`` most likely allowed tokens of logits[R, V], with their log-probabilities (nat), both [R, count].

        May overwrite the logits.
        """


class TorchBackend:
    """Torch operations on any device, with products in float32, bfloat16 or float16. A step never waits for the device."""

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.device, self.dtype, self.is_stepwise = device, dtype, False
        self.module_dtype = recurrence_dtype(dtype, device)

    def product(self, weight: Tensor, bias: Tensor | None) -> Product:
        weight, bias = self.dequantize(weight), None if bias is None else self.dequantize(bias)
        return lambda x: F.linear(x.to(self.dtype), weight, bias)

    float_product = product

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def quantize(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)

    dequantize = quantize

    def cell(self, inputs: Tensor, index: Tensor, recurrent: Tensor, state: Tensor, h: Tensor) -> None:
        """Run an LSTM with gates i, f, g, o if G is 4H, a GRU with gates r, z, n if it is 3H."""
        size, gates = state.shape[1], inputs.shape[1]
        x, y = inputs[index].float(), recurrent[:, :gates].float()
        if gates == 4 * size:
            i, f, g, o = (x + y).chunk(4, 1)
            state.copy_(f.sigmoid() * state + i.sigmoid() * g.tanh())
            h.copy_(o.sigmoid() * state.tanh())
        else:
            r, z = (x[:, : 2 * size] + y[:, : 2 * size]).sigmoid().chunk(2, 1)
            n = (x[:, 2 * size :] + r * y[:, 2 * size :]).tanh()
            h.copy_(state.copy_(n + z * (state - n)))

    def attend(
        self, states: Tensor, keys: Tensor | None, to_score: Tensor | None, lengths: Tensor, query: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attend over padded rectangles, with padding at minus infinity."""
        batch = len(states)
        query = query.view(batch, -1, query.shape[1])
        if keys is None:
            scores = query @ states.transpose(1, 2)
        else:
            assert to_score is not None
            # One query per source at a time, so that memory holds [B, S, H] once.
            queries = torch.split(query, 1, 1)
            scores = torch.stack([torch.tanh(keys + one) @ to_score.to(self.dtype) for one in queries], 1)
        padding = torch.arange(states.shape[1], device=self.device) >= lengths[:, None]
        weights = scores.float().masked_fill(padding[:, None], -math.inf).softmax(-1)
        return weights.flatten(0, 1), (weights.to(self.dtype) @ states).flatten(0, 1)

    def top_tokens(
        self, count: int, logits: Tensor, constraints: TokenConstraints, copying: CopyInputs | None
    ) -> tuple[Tensor, Tensor]:
        """Work on log-probabilities, so that float16 has room for unlikely tokens."""
        scores = logits.float()
        log_total = scores.logsumexp(-1, keepdim=True)
        if copying is not None:
            ids = copying.ids.repeat_interleave(len(logits) // len(copying.ids), 0)
            copied = torch.zeros_like(scores).scatter_add_(1, ids, copying.weights).log_()
            generated = scores - (log_total - F.logsigmoid(-copying.logits)[:, None])
            scores = torch.logaddexp(generated, copied.add_(F.logsigmoid(copying.logits)[:, None]))
            log_total = torch.zeros_like(log_total)
        self._forbid(scores, constraints)
        best = scores.topk(count, dim=-1) if count > 1 else scores.max(-1, keepdim=True)
        return best.indices, best.values - log_total

    def _forbid(self, scores: Tensor, constraints: TokenConstraints) -> None:
        """Set the scores[R, V] of forbidden tokens to minus infinity."""
        for token in (PAD, UNK, BOS):
            scores[:, token] = -math.inf
        scores[:, EOS].masked_fill_(~constraints.eos_allowed, -math.inf)
        written, n = constraints.written, constraints.no_repeat_ngram
        steps = written.shape[1]
        if 0 < n <= steps:
            # Compare every n-gram so far with the last n - 1 tokens: where its first n - 1 match, its last is forbidden.
            ngrams = written.unfold(1, n, 1)
            matches = (ngrams[:, :, : n - 1] == written[:, None, steps - n + 1 :]).all(-1)
            # A token may end both a matching and another n-gram: adding keeps the infinity, a plain scatter might not.
            penalties = torch.zeros(matches.shape, device=self.device).masked_fill_(matches, -math.inf)
            scores.scatter_add_(1, ngrams[:, :, n - 1], penalties)


class CpuBackend:
    """oneDNN products and the kernels of cpu_kernels.py, on a CPU.

    Args:
        dtype: of floats and their products, float32 or bfloat16.
        quantizes_to_bytes: multiply in int8, with a scale for each row of a weight. Sums of bytes are exact, so a row's result
            is the same in every batch.

    Attributes:
        weight_levels: largest absolute value of a quantized weight. A CPU without VNNI adds pairs of products in 16 bits, which
            silently saturate: two of 255 x 127 overflow, two of 255 x 64 just fit.
    """

    def __init__(self, dtype: torch.dtype, quantizes_to_bytes: bool = False) -> None:
        self.device, self.dtype, self.is_stepwise = torch.device("cpu"), dtype, True
        self.module_dtype = dtype
        self._quantized_dtype = torch.uint8 if quantizes_to_bytes else dtype
        capabilities = torch.cpu.get_capabilities()
        self.weight_levels = 127 if capabilities.get("avx512_vnni") or capabilities.get("amx_int8") else 64

    def product(self, weight: Tensor, bias: Tensor | None) -> Product:
        """Return an int8 product with float32 outputs, or a float product."""
        if self._quantized_dtype != torch.uint8:
            return self.float_product(weight, bias)
        weight = weight.detach().float()
        scale = (weight.abs().amax(1) / self.weight_levels).clamp_min(torch.finfo(torch.float32).tiny)
        packed = torch.ops.onednn.qlinear_prepack((weight / scale[:, None]).round().to(torch.int8), None)
        zero = torch.zeros(len(weight), dtype=torch.int32)
        bias = None if bias is None else bias.detach().float()
        return lambda x: torch.ops.onednn.qlinear_pointwise(
            x, 1 / 127, cpu_kernels.BYTE_ZERO, packed, scale, zero, bias, 1.0, 0, torch.float32, "none", [], ""
        )

    def float_product(self, weight: Tensor, bias: Tensor | None) -> Product:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(self.dtype).contiguous(), None)
        bias = None if bias is None else bias.detach().to(self.dtype)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), packed, bias, "none", [], "")

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self._quantized_dtype)

    def zeros(self, *shape: int) -> Tensor:
        zero = cpu_kernels.BYTE_ZERO if self._quantized_dtype == torch.uint8 else 0
        return torch.full(shape, zero, dtype=self._quantized_dtype)

    def quantize(self, x: Tensor) -> Tensor:
        if self._quantized_dtype != torch.uint8:
            return x.to(self._quantized_dtype)
        return (x * 127 + (cpu_kernels.BYTE_ZERO + 0.5)).to(torch.uint8)

    def dequantize(self, x: Tensor) -> Tensor:
        if x.dtype == torch.uint8:
            x = (x.float() - cpu_kernels.BYTE_ZERO) / 127
        return x.detach().to(self.dtype)

    def cell(self, inputs: Tensor, index: Tensor, recurrent: Tensor, state: Tensor, h: Tensor) -> None:
        kernel = cpu_kernels.lstm if inputs.shape[1] == 4 * state.shape[1] else cpu_kernels.gru
        kernel(_array(inputs), _array(index), _array(recurrent), _array(state), _array(h))

    def attend(
        self, states: Tensor, keys: Tensor | None, to_score: Tensor | None, lengths: Tensor, query: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attend over each row's true length."""
        weights = torch.empty(len(query), states.shape[1])
        context = torch.empty_like(query, dtype=self.dtype)
        if keys is None:
            cpu_kernels.attend(*map(_array, (states, lengths, query, weights, context)))
        else:
            assert to_score is not None
            cpu_kernels.attend_additively(*map(_array, (states, keys, to_score, lengths, query, weights, context)))
        return weights, context

    def top_tokens(
        self, count: int, logits: Tensor, constraints: TokenConstraints, copying: CopyInputs | None
    ) -> tuple[Tensor, Tensor]:
        tokens = torch.empty(len(logits), count, dtype=torch.long)
        log_probs = torch.empty(len(logits), count)
        written, n, eos_allowed = constraints
        arguments = (_array(written), n, bool(eos_allowed), _array(tokens), _array(log_probs))
        if copying is None:
            cpu_kernels.top_tokens(_array(logits), *arguments)
        else:
            ids, first_positions, lengths, weights, copy_logits = map(_array, copying)
            cpu_kernels.top_tokens_with_copy(_array(logits), ids, first_positions, lengths, weights, copy_logits, *arguments)
        return tokens, log_probs


def _array(x: Tensor) -> npt.NDArray[np.generic]:
    """Return the same memory as a contiguous array; bfloat16 as its bits, which cpu_kernels.py expects."""
    x = x.contiguous() if x.dtype != torch.bfloat16 else x.contiguous().view(torch.uint16)
    return x.numpy()


def backend_for(precision: str, device: torch.device) -> Backend:
    """Return the backend for a device and a precision: one of ``compute_dtype`` or, on CPUs with AVX2, ``int8``.

    Raises:
        UserError: the device does not support the precision.
    """
    has_onednn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    if precision == "int8" and not (device.type == "cpu" and torch.cpu.get_capabilities().get("avx2") and has_onednn):
        raise UserError("int8 needs a CPU with AVX2; set the precision to auto or float32")
    dtype = compute_dtype("auto" if precision == "int8" else precision, device)
    if device.type == "cpu" and has_onednn:
        return CpuBackend(dtype, quantizes_to_bytes=precision == "int8")
    return TorchBackend(device, dtype)


def supported_precisions(device: torch.device) -> list[str]:
    """Return the precisions that the device decodes in, float32 first."""
    supported = []
    for precision in ("float32", "bfloat16", "float16", "int8"):
        with contextlib.suppress(UserError):
            backend_for(precision, device)
            supported.append(precision)
    return supported
