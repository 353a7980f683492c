"""How decoding computes: matrix products with weights that stay, and the arithmetic between them.

``TorchBackend`` uses torch alone and runs on every device. ``CpuBackend`` runs on CPUs: oneDNN multiplies, with weights laid
out for it once, in float32, bfloat16 or int8, and cpu_kernels.py does the rest. Both compute the same; engine.py uses either.

A cell's h and a readout lie within ±1: they are *stored* as the products that read them want them, a byte of fixed scale
if that is what these multiply, so that a row's numbers never hang on its neighbours'. All else is *free*: float32 or bfloat16.
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
"""x[N, K] to x times a weight[M, K] transposed, plus a bias[M]."""


class Backend(Protocol):
    """What engine.py and search.py compute with.

    dtype, bytes: of a free number. stepwise: sources are read a step at a time, by ``cell``, not by the network's modules;
    module_dtype: what these compute in.
    """

    device: torch.device
    dtype: torch.dtype
    bytes: int
    stepwise: bool
    module_dtype: torch.dtype

    def product(self, weight: Tensor, bias: Tensor | None) -> Product:
        """Reads stored numbers, gives free ones (or float32)."""

    def free_product(self, weight: Tensor, bias: Tensor | None) -> Product:
        """Reads free or float32 numbers, gives free ones."""

    def empty(self, *shape: int) -> Tensor:
        """Stored numbers that are still to be written."""

    def zeros(self, *shape: int) -> Tensor:
        """Stored zeros."""

    def stored(self, x: Tensor) -> Tensor:
        """Float numbers within ±1 as stored ones."""

    def free(self, x: Tensor) -> Tensor:
        """Stored or float32 numbers as free ones."""

    def cell(self, inputs: Tensor, index: Tensor, recurrent: Tensor, carry: Tensor, h: Tensor) -> None:
        """One step of B cells: inputs[·, G] at index[B] and recurrent[B, G or more] to carry[B, H] and h[B, H]."""

    def attend(
        self, states: Tensor, keys: Tensor | None, to_score: Tensor | None, lengths: Tensor, query: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weigh states[B, S, H] up to lengths[B] by query[R, H], R / B rows after each other for each source.

        Additive if there are keys[B, S, H] and to_score[H], else by the dot product.

        Returns:
            weights[R, S] float32, 0 beyond a length; context[R, H], the mean of states by them.
        """

    def likeliest(
        self, number: int, logits: Tensor, written: Tensor, ngram: int, may_end: Tensor, copying: CopyInputs | None
    ) -> tuple[Tensor, Tensor]:
        """A number K of the likeliest allowed tokens[R, K] after written[R, T], by logits[R, V]; log-probabilities[R, K] (nat).

        Logits are used up: other numbers may stand there afterwards.

        Never allowed: ``<pad>``, ``<unk>``, ``<s>``; ``</s>`` unless may_end, a truth without dimensions; a token that would
        end an n-gram which is in written, for ngram > 0. Any ``<pad>`` in written is before the tokens.
        """


class CopyInputs(NamedTuple):
    """How R rows, R / B after each other for each of B sources, may copy from ids[B, S] with lengths[B].

    first[B, S]: where the same token is first in its row. weights[R, S]: attention's, 0 beyond a length. logits[R] float32:
    of copying by them, rather than generating.
    """

    ids: Tensor
    first: Tensor
    lengths: Tensor
    weights: Tensor
    logits: Tensor


class TorchBackend:
    """Torch's own operations, on any device, in float32, or with products in bfloat16 or float16.

    Nothing in a decoding step waits for the device.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.device, self.dtype, self.bytes, self.stepwise = device, dtype, dtype.itemsize, False
        self.module_dtype = recurrence_dtype(dtype, device)

    def product(self, weight: Tensor, bias: Tensor | None) -> Product:
        """Reads and gives numbers of the type."""
        weight, bias = self.free(weight), None if bias is None else self.free(bias)
        return lambda x: F.linear(x.to(self.dtype), weight, bias)

    free_product = product

    def empty(self, *shape: int) -> Tensor:
        """Of the type."""
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def zeros(self, *shape: int) -> Tensor:
        """Zeros of the type."""
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def stored(self, x: Tensor) -> Tensor:
        """x as the type."""
        return x.to(self.dtype)

    free = stored

    def cell(self, inputs: Tensor, index: Tensor, recurrent: Tensor, carry: Tensor, h: Tensor) -> None:
        """LSTM with gates i, f, g, o if G is 4H; GRU with r, z, n if 3H."""
        size, gates = carry.shape[1], inputs.shape[1]
        x, y = inputs[index].float(), recurrent[:, :gates].float()
        if gates == 4 * size:
            i, f, g, o = (x + y).chunk(4, 1)
            carry.copy_(f.sigmoid() * carry + i.sigmoid() * g.tanh())
            h.copy_(o.sigmoid() * carry.tanh())
        else:
            r, z = (x[:, : 2 * size] + y[:, : 2 * size]).sigmoid().chunk(2, 1)
            n = (x[:, 2 * size :] + r * y[:, 2 * size :]).tanh()
            h.copy_(carry.copy_(n + z * (carry - n)))

    def attend(
        self, states: Tensor, keys: Tensor | None, to_score: Tensor | None, lengths: Tensor, query: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Over whole rectangles; padding gets minus infinity."""
        batch = len(states)
        query = query.view(batch, -1, query.shape[1])
        if keys is None:
            scores = query @ states.transpose(1, 2)
        else:
            assert to_score is not None
            # A query at a time, so that [B, S, H] is held once.
            of_each = [torch.tanh(keys + one) @ to_score.to(self.dtype) for one in torch.split(query, 1, 1)]
            scores = torch.stack(of_each, 1)
        padding = torch.arange(states.shape[1], device=self.device) >= lengths[:, None]
        weights = scores.float().masked_fill(padding[:, None], -math.inf).softmax(-1)
        return weights.flatten(0, 1), (weights.to(self.dtype) @ states).flatten(0, 1)

    def likeliest(
        self, number: int, logits: Tensor, written: Tensor, ngram: int, may_end: Tensor, copying: CopyInputs | None
    ) -> tuple[Tensor, Tensor]:
        """By the logarithms, so that float16 has room for what is unlikely."""
        worth = logits.float()
        log_total = worth.logsumexp(-1, keepdim=True)
        if copying is not None:
            ids = copying.ids.repeat_interleave(len(logits) // len(copying.ids), 0)
            copied = torch.zeros_like(worth).scatter_add_(1, ids, copying.weights).log_()
            generated = worth - (log_total - F.logsigmoid(-copying.logits)[:, None])
            worth = torch.logaddexp(generated, copied.add_(F.logsigmoid(copying.logits)[:, None]))
            log_total = torch.zeros_like(log_total)
        for token in (PAD, UNK, BOS):
            worth[:, token] = -math.inf
        worth[:, EOS].masked_fill_(~may_end, -math.inf)
        steps = written.shape[1]
        if 0 < ngram <= steps:
            # Every n-gram so far, against the n - 1 tokens just written: where its first n - 1 match, its last is forbidden.
            ngrams = written.unfold(1, ngram, 1)
            repeats = (ngrams[:, :, : ngram - 1] == written[:, None, steps - ngram + 1 :]).all(-1)
            # Added, since one token may end a matching and another n-gram, and a plain scatter would keep either.
            bans = torch.zeros(repeats.shape, device=self.device).masked_fill_(repeats, -math.inf)
            worth.scatter_add_(1, ngrams[:, :, ngram - 1], bans)
        best = worth.topk(number, dim=-1) if number > 1 else worth.max(-1, keepdim=True)
        return best.indices, best.values - log_total


class CpuBackend:
    """oneDNN's products and cpu_kernels.py, on a CPU.

    dtype: float32 or bfloat16, of free numbers and their products. multiply_bytes: store a byte instead, with a scale per row
    of the weight that is multiplied with it. Sums of bytes are exact, so that a row's result is the same in every batch.

    weight_levels: a weight's byte is between this and its negative. A CPU without VNNI adds pairs of products in 16 bits,
    where two of 255 x 127 are cut off without a word and two of 255 x 64 just fit.
    """

    def __init__(self, dtype: torch.dtype, multiply_bytes: bool = False) -> None:
        self.device, self.dtype, self.bytes, self.stepwise = torch.device("cpu"), dtype, dtype.itemsize, True
        self.module_dtype = dtype
        self._stored = torch.uint8 if multiply_bytes else dtype
        capabilities = torch.cpu.get_capabilities()
        self.weight_levels = 127 if capabilities.get("avx512_vnni") or capabilities.get("amx_int8") else 64

    def product(self, weight: Tensor, bias: Tensor | None) -> Product:
        """Of bytes if these are what is stored: gives float32 then."""
        if self._stored != torch.uint8:
            return self.free_product(weight, bias)
        weight = weight.detach().float()
        scale = (weight.abs().amax(1) / self.weight_levels).clamp_min(torch.finfo(torch.float32).tiny)
        packed = torch.ops.onednn.qlinear_prepack((weight / scale[:, None]).round().to(torch.int8), None)
        zero = torch.zeros(len(weight), dtype=torch.int32)
        bias = None if bias is None else bias.detach().float()
        return lambda x: torch.ops.onednn.qlinear_pointwise(
            x, 1 / 127, cpu_kernels.BYTE_ZERO, packed, scale, zero, bias, 1.0, 0, torch.float32, "none", [], ""
        )

    def free_product(self, weight: Tensor, bias: Tensor | None) -> Product:
        """oneDNN's, of weights that it has laid out."""
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(self.dtype).contiguous(), None)
        bias = None if bias is None else bias.detach().to(self.dtype)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), packed, bias, "none", [], "")

    def empty(self, *shape: int) -> Tensor:
        """Of what is stored."""
        return torch.empty(shape, dtype=self._stored)

    def zeros(self, *shape: int) -> Tensor:
        """Filled with what 0 is stored as."""
        return torch.full(shape, cpu_kernels.BYTE_ZERO if self._stored == torch.uint8 else 0, dtype=self._stored)

    def stored(self, x: Tensor) -> Tensor:
        """x, or bytes of a fixed scale."""
        if self._stored != torch.uint8:
            return x.to(self._stored)
        return (x * 127 + (cpu_kernels.BYTE_ZERO + 0.5)).to(torch.uint8)

    def free(self, x: Tensor) -> Tensor:
        """x as the type of free numbers."""
        if x.dtype == torch.uint8:
            x = (x.float() - cpu_kernels.BYTE_ZERO) / 127
        return x.detach().to(self.dtype)

    def cell(self, inputs: Tensor, index: Tensor, recurrent: Tensor, carry: Tensor, h: Tensor) -> None:
        """One kernel."""
        kernel = cpu_kernels.lstm if inputs.shape[1] == 4 * carry.shape[1] else cpu_kernels.gru
        kernel(_array(inputs), _array(index), _array(recurrent), _array(carry), _array(h))

    def attend(
        self, states: Tensor, keys: Tensor | None, to_score: Tensor | None, lengths: Tensor, query: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One kernel, at each row's true length."""
        weights = torch.empty(len(query), states.shape[1])
        context = torch.empty_like(query, dtype=self.dtype)
        if keys is None:
            cpu_kernels.attend(*map(_array, (states, lengths, query, weights, context)))
        else:
            assert to_score is not None
            cpu_kernels.attend_additively(*map(_array, (states, keys, to_score, lengths, query, weights, context)))
        return weights, context

    def likeliest(
        self, number: int, logits: Tensor, written: Tensor, ngram: int, may_end: Tensor, copying: CopyInputs | None
    ) -> tuple[Tensor, Tensor]:
        """One kernel."""
        tokens = torch.empty(len(logits), number, dtype=torch.long)
        log_probs = torch.empty(len(logits), number)
        rest = (_array(written), ngram, bool(may_end), _array(tokens), _array(log_probs))
        if copying is None:
            cpu_kernels.top_tokens(_array(logits), *rest)
        else:
            ids, first, lengths, weights, copy_logits = map(_array, copying)
            cpu_kernels.top_tokens_with_copy(_array(logits), ids, first, lengths, weights, copy_logits, *rest)
        return tokens, log_probs


def _array(x: Tensor) -> npt.NDArray[np.generic]:
    """The same memory, as cpu_kernels.py reads it: bfloat16 as its bits, rows contiguous."""
    x = x.contiguous() if x.dtype != torch.bfloat16 else x.contiguous().view(torch.uint16)
    return x.numpy()


def backend_for(precision: str, device: torch.device) -> Backend:
    """How to decode on a device, in any precision of ``compute_dtype`` or, on CPUs with AVX2, in ``int8``.

    Raises:
        UserError: the device does not compute in the precision asked for.
    """
    has_onednn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    if precision == "int8" and not (device.type == "cpu" and torch.cpu.get_capabilities().get("avx2") and has_onednn):
        raise UserError("int8 computes on CPUs with AVX2 alone; set the precision to auto or float32")
    dtype = compute_dtype("auto" if precision == "int8" else precision, device)
    if device.type == "cpu" and has_onednn:
        return CpuBackend(dtype, multiply_bytes=precision == "int8")
    return TorchBackend(device, dtype)


def supported_precisions(device: torch.device) -> list[str]:
    """Those that the device decodes in, float32 first."""
    found = []
    for precision in ("float32", "bfloat16", "float16", "int8"):
        with contextlib.suppress(UserError):
            backend_for(precision, device)
            found.append(precision)
    return found
