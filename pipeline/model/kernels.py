"""Decoding's inner loops on a CPU: what lies between two matrix products, compiled, a row at a time.

Between products a step does a little arithmetic on many numbers. As tensor operations, each bit of it reads and writes
whole arrays; here a row goes through all of it while it is in the cache, at its true length, so that padding is never
seen. Numba compiles these functions on first use and keeps the machine code on disk. They hold no lock, so that threads
run side by side.

Numbers are float32 while they are worked on. They lie in arrays as float32, as bfloat16 (its bits, in uint16), or as a
byte, ``round(127 x) + 128``, for an x that a sigmoid or a tanh has kept within ±1.

Shapes: B rows, S source steps, T target steps, H hidden, V vocabulary; G gates side by side, 4H (LSTM) or 3H (GRU).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from pipeline.config import BOS, EOS, PAD, UNK

_F32 = np.float32
_LOG2_E, _LN_2 = _F32(1.4426950408889634), _F32(0.6931471805599453)
BYTE_ZERO = 128
_LOWEST = _F32(-np.inf)

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])


def _compiled(function: _Kernel) -> _Kernel:
    """Sums may be taken in any order and divisions by reciprocals, without which no loop over floats runs 16 at a time.

    Infinities keep their meaning: they mark what is forbidden.
    """
    flags = {"contract", "reassoc", "arcp", "nsz", "afn"}
    options: dict[str, Any] = {"fastmath": flags, "nogil": True, "error_model": "numpy"}
    try:
        compiled: Any = njit(cache=True, **options)(function)
    except RuntimeError:  # there is no folder that may be written, so each process compiles
        compiled = njit(**options)(function)
    return cast(_Kernel, compiled)


# One number. An intrinsic says which machine instructions a call becomes, by the types that it is called with.


def _reinterpret(of: Any, to: Any, instructions: Any) -> Any:
    def reinterpreted(typing: Any, x: Any) -> Any:  # noqa: ARG001
        return to(of), lambda *call: call[1].bitcast(call[3][0], instructions)

    return intrinsic(reinterpreted)


_bits_of = _reinterpret(types.float32, types.int32, ir.IntType(32))
_of_bits = _reinterpret(types.int32, types.float32, ir.FloatType())


def _loaded(typing: Any, number: Any) -> Any:  # noqa: ARG001
    i32, f32 = ir.IntType(32), ir.FloatType()

    def widened(*call: Any) -> Any:
        _, builder, _, (x,) = call
        return builder.bitcast(builder.shl(builder.zext(x, i32), i32(16)), f32)

    def scaled(*call: Any) -> Any:
        _, builder, _, (x,) = call
        return builder.fmul(builder.sitofp(builder.sub(builder.zext(x, i32), i32(BYTE_ZERO)), f32), f32(1 / 127))

    how = {types.float32: lambda *call: call[3][0], types.uint16: widened, types.uint8: scaled}
    return types.float32(number), how[number]


def _stored_as(typing: Any, like: Any, x: Any) -> Any:  # noqa: ARG001
    i32 = ir.IntType(32)

    def narrowed(*call: Any) -> Any:
        _, builder, _, (_, x) = call
        bits = builder.bitcast(x, i32)
        to_even = builder.and_(builder.lshr(bits, i32(16)), i32(1))
        rounded = builder.add(builder.add(bits, i32(0x7FFF)), to_even)
        return builder.trunc(builder.lshr(rounded, i32(16)), ir.IntType(16))

    def quantized(*call: Any) -> Any:
        # Positive all through, so that cutting off what lies behind the point of y + 1/2 rounds.
        _, builder, _, (_, x) = call
        steps = builder.fadd(builder.fmul(x, ir.FloatType()(127.0)), ir.FloatType()(BYTE_ZERO + 0.5))
        return builder.trunc(builder.fptosi(steps, i32), ir.IntType(8))

    how = {types.float32: lambda *call: call[3][1], types.uint16: narrowed, types.uint8: quantized}
    return like(like, x), how[like]


_load: Any = intrinsic(_loaded)
"""A stored number as float32."""
_stored: Any = intrinsic(_stored_as)
"""(like, x): a float32 as the type of ``like`` stores it, rounded to the nearest."""


@_compiled
def _exp(x: Any) -> Any:
    """e to the x, to 2 units in the last place; flat below -86 and above 88."""
    x = min(max(x, _F32(-86.0)), _F32(88.0))
    # x = k ln 2 + r; the cast cuts towards 0, so that 127 more makes it round. 2^k is put together from its bits.
    k = np.int32(x * _LOG2_E + _F32(127.5)) - np.int32(127)
    r = x - _F32(k) * _LN_2
    p = _F32(1.3981999507e-3)
    p = p * r + _F32(8.3334519073e-3)
    p = p * r + _F32(4.1665795894e-2)
    p = p * r + _F32(1.6666665459e-1)
    p = p * r + _F32(0.5)
    p = p * r + _F32(1.0)
    p = p * r + _F32(1.0)
    return p * _of_bits((k + np.int32(127)) << np.int32(23))


@_compiled
def _sigmoid(x: Any) -> Any:
    return _F32(1.0) / (_F32(1.0) + _exp(-x))


@_compiled
def _tanh(x: Any) -> Any:
    return _F32(2.0) / (_F32(1.0) + _exp(_F32(-2.0) * x)) - _F32(1.0)


@_compiled
def _read(stored: Any, out: Any) -> None:
    """A stored row[N] as float32."""
    for at in range(len(out)):
        out[at] = _load(stored[at])


# Cells: inputs[·, G], of which row b reads the one that index[B] says; recurrent[B, G]; h[B, H] to be written


@_compiled
def lstm(inputs: Any, index: Any, recurrent: Any, c: Any, h: Any) -> None:
    """Gates i, f, g, o side by side; c[B, H] float32 is read and written. Hochreiter & Schmidhuber 1997, Gers et al. 2000."""
    size = c.shape[1]
    for row in range(len(index)):
        x, y, carry, out = inputs[index[row]], recurrent[row], c[row], h[row]
        for j in range(size):
            i = _sigmoid(_load(x[j]) + _load(y[j]))
            f = _sigmoid(_load(x[size + j]) + _load(y[size + j]))
            g = _tanh(_load(x[2 * size + j]) + _load(y[2 * size + j]))
            o = _sigmoid(_load(x[3 * size + j]) + _load(y[3 * size + j]))
            cell = f * carry[j] + i * g
            carry[j] = cell
            out[j] = _stored(out[j], o * _tanh(cell))


@_compiled
def gru(inputs: Any, index: Any, recurrent: Any, carry: Any, h: Any) -> None:
    """Gates r, z, n side by side; carry[B, H] float32 is the last h and becomes the new one. Cho et al. 2014."""
    size = carry.shape[1]
    for row in range(len(index)):
        x, y, last, out = inputs[index[row]], recurrent[row], carry[row], h[row]
        for j in range(size):
            r = _sigmoid(_load(x[j]) + _load(y[j]))
            z = _sigmoid(_load(x[size + j]) + _load(y[size + j]))
            n = _tanh(_load(x[2 * size + j]) + r * _load(y[2 * size + j]))
            new = n + z * (last[j] - n)
            last[j] = new
            out[j] = _stored(out[j], new)


# Attention: query[R, H], with R / B rows after each other for each of states[B, S, H] of lengths[B]; weights[R, S] and
# context[R, H] are written


@_compiled
def attend(states: Any, lengths: Any, query: Any, weights: Any, context: Any) -> None:
    """Weigh by the dot product with the query (Luong et al. 2015, section 3.1)."""
    size, per_source = query.shape[1], len(query) // len(lengths)
    q = np.empty(size, _F32)
    for row in range(len(query)):
        source = row // per_source
        _read(query[row], q)
        for at in range(lengths[source]):
            state, total = states[source, at], _F32(0.0)
            for j in range(size):
                total += _load(state[j]) * q[j]
            weights[row, at] = total
        _weigh(states[source], lengths[source], weights[row], context[row])


@_compiled
def attend_additively(states: Any, keys: Any, to_score: Any, lengths: Any, query: Any, weights: Any, context: Any) -> None:
    """Weigh by to_score[H] · tanh(keys[B, S, H] + query) (Bahdanau et al. 2015, A.1.2)."""
    size, per_source = query.shape[1], len(query) // len(lengths)
    q = np.empty(size, _F32)
    for row in range(len(query)):
        source = row // per_source
        _read(query[row], q)
        for at in range(lengths[source]):
            key, total = keys[source, at], _F32(0.0)
            for j in range(size):
                total += to_score[j] * _tanh(_load(key[j]) + q[j])
            weights[row, at] = total
        _weigh(states[source], lengths[source], weights[row], context[row])


@_compiled
def _weigh(states: Any, length: Any, weights: Any, context: Any) -> None:
    """One row: scores in weights[S] become their softmax, 0 beyond length, and context[H] the mean of states by them."""
    size = len(context)
    highest, total = _highest(weights[:length]), _F32(0.0)
    for at in range(length):
        weights[at] = _exp(weights[at] - highest)
        total += weights[at]
    summed = np.zeros(size, _F32)
    for at in range(length):
        weights[at] /= total
        weight, state = weights[at], states[at]
        for j in range(size):
            summed[j] += weight * _load(state[j])
    for at in range(length, len(weights)):
        weights[at] = _F32(0.0)
    for j in range(size):
        context[j] = _stored(context[j], summed[j])


# Choosing the next token


@_compiled
def _highest(x: Any) -> Any:
    """The largest of x[N]. As integers, whose order is that of floats once negative ones are flipped: those vectorize."""
    best = np.int32(-0x80000000)
    for at in range(len(x)):
        bits = _bits_of(x[at])
        best = max(best, bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))
    return _of_bits(best ^ ((best >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@_compiled
def _sum_of_exp(x: Any, highest: Any) -> Any:
    total = _F32(0.0)
    for at in range(len(x)):
        total += _exp(x[at] - highest)
    return total


@_compiled
def _forbid(logits: Any, written: Any, ngram: int, may_end: bool) -> None:
    """Minus infinity in logits[V] for what may not follow written[T]: a token that would end an n-gram that is there."""
    logits[PAD] = logits[UNK] = logits[BOS] = _LOWEST
    if not may_end:
        logits[EOS] = _LOWEST
    steps = len(written)
    if 0 < ngram <= steps:
        for start in range(steps - ngram + 1):
            same = True
            for at in range(ngram - 1):
                same = same and written[start + at] == written[steps - ngram + 1 + at]
            if same:
                logits[written[start + ngram - 1]] = _LOWEST


@_compiled
def likeliest(logits: Any, written: Any, ngram: int, may_end: bool, tokens: Any, log_probs: Any) -> None:
    """The K likeliest allowed tokens[R, K] of logits[R, V] after written[R, T], by falling log-probability (nat)."""
    row_logits = np.empty(logits.shape[1], _F32)
    for row in range(len(logits)):
        _read(logits[row], row_logits)
        highest = _highest(row_logits)
        log_total = highest + np.log(_sum_of_exp(row_logits, highest))
        _forbid(row_logits, written[row], ngram, may_end)
        _take_highest(row_logits, log_total, tokens[row], log_probs[row])


@_compiled
def likeliest_or_copied(
    logits: Any,
    ids: Any,
    first: Any,
    lengths: Any,
    weights: Any,
    copy_logits: Any,
    written: Any,
    ngram: int,
    may_end: bool,
    tokens: Any,
    log_probs: Any,
) -> None:
    """As ``likeliest``, where rows may copy from their sources (See et al. 2017, eq. 9); see arithmetic.Copying."""
    row_logits = np.empty(logits.shape[1], _F32)
    copied = np.empty(ids.shape[1], _F32)
    per_source = len(logits) // len(lengths)
    for row in range(len(logits)):
        source = row // per_source
        _read(logits[row], row_logits)
        highest = _highest(row_logits)
        total = _sum_of_exp(row_logits, highest)
        # P(w) = p_gen exp(logit - highest) / total + (1 - p_gen) copied: a logit of its own for each token of the source.
        copy_logit = min(max(copy_logits[row], _F32(-80.0)), _F32(80.0))
        share = total * _exp(copy_logit)
        copied[: lengths[source]] = _F32(0.0)
        for at in range(lengths[source]):
            copied[first[source, at]] += weights[row, at]
        for at in range(lengths[source]):
            if first[source, at] == at:
                token = ids[source, at]
                row_logits[token] = highest + np.log(_exp(row_logits[token] - highest) + share * copied[at])
        _forbid(row_logits, written[row], ngram, may_end)
        log_total = highest + np.log(total) - np.log(_sigmoid(-copy_logit))
        _take_highest(row_logits, log_total, tokens[row], log_probs[row])


@_compiled
def _take_highest(logits: Any, log_total: Any, tokens: Any, log_probs: Any) -> None:
    """The indices of the highest of logits[V] into tokens[K], one after the other, taken out of logits."""
    for rank in range(len(tokens)):
        token = _index_of_highest(logits)
        tokens[rank], log_probs[rank] = token, logits[token] - log_total
        logits[token] = _LOWEST


@_compiled
def _index_of_highest(x: Any) -> Any:
    """Where the largest of x[N] is first. In blocks, so that only one of them is searched."""
    block = 256
    best, start = _highest(x[:block]), 0
    for at in range(block, len(x), block):
        found = _highest(x[at : at + block])
        if found > best:
            best, start = found, at
    for at in range(start, len(x)):
        if x[at] == best:
            return at
    return start
