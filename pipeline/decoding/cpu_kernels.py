"""Decoding's inner loops on a CPU: what lies between two matrix products, compiled, a row at a time.

Between products a step does a little arithmetic on many numbers. As tensor operations, each bit of it reads and writes
whole arrays; here a row goes through all of it while it is in the cache, at its true length, so that padding is never
seen. Numba compiles these functions on first use and keeps the machine code on disk. They hold no lock, so that threads
run side by side. All are in this file, since a function's machine code on disk is known to be stale by its own file alone.

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

from pipeline.data.special_tokens import BOS, EOS, PAD, UNK

_F32 = np.float32
_LOG2_E, _LN_2 = _F32(1.4426950408889634), _F32(0.6931471805599453)
BYTE_ZERO = 128
_LOWEST = _F32(-np.inf)
_BLOCK = 256
"""Logits that are looked at together."""

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


def _rounded(typing: Any, x: Any) -> Any:  # noqa: ARG001
    f32 = ir.FloatType()

    def rounded(*call: Any) -> Any:
        _, builder, _, (x,) = call
        return builder.call(builder.module.declare_intrinsic("llvm.rint", [f32]), [x])

    return types.float32(x), rounded


def _exponent(typing: Any, k: Any) -> Any:  # noqa: ARG001
    i32 = ir.IntType(32)

    def put_together(*call: Any) -> Any:
        _, builder, _, (k,) = call
        biased = builder.add(builder.fptosi(k, i32), i32(127))
        return builder.bitcast(builder.shl(biased, i32(23)), ir.FloatType())

    return types.float32(k), put_together


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


_nearest: Any = intrinsic(_rounded)
"""The whole number nearest to a float32, as one."""
_power_of_two: Any = intrinsic(_exponent)
"""2 to a whole float32 of -126 to 127, put together from its bits."""
_load: Any = intrinsic(_loaded)
"""A stored number as float32."""
_stored: Any = intrinsic(_stored_as)
"""(like, x): a float32 as the type of ``like`` stores it, rounded to the nearest."""


@_compiled
def _exp(x: Any) -> Any:
    """e to the x, to 2 units in the last place; flat below -86 and above 88."""
    x = min(max(x, _F32(-86.0)), _F32(88.0))
    k = _nearest(x * _LOG2_E)
    r = x - k * _LN_2
    p = _F32(1.3981999507e-3)
    p = p * r + _F32(8.3334519073e-3)
    p = p * r + _F32(4.1665795894e-2)
    p = p * r + _F32(1.6666665459e-1)
    p = p * r + _F32(0.5)
    p = p * r + _F32(1.0)
    p = p * r + _F32(1.0)
    return p * _power_of_two(k)


@_compiled
def _sigmoid(x: Any) -> Any:
    return _F32(1.0) / (_F32(1.0) + _exp(-x))


@_compiled
def _tanh_parts(x: Any) -> Any:
    """tanh x as a fraction, to 4e-7: numerator, and denominator, 1 to 271. Several can then be divided at once.

    The polynomials are those of these degrees whose fraction is nearest to tanh below 8.2, above which float32's is 1.
    """
    x = min(max(x, _F32(-8.2)), _F32(8.2))
    u = x * x
    n = _F32(1.48405255e-8)
    n = n * u + _F32(2.16372504e-5)
    n = n * u + _F32(3.55668479e-3)
    n = n * u + _F32(1.34321216e-1)
    n = n * u + _F32(9.99999992e-1)
    d = _F32(8.37059046e-7)
    d = d * u + _F32(3.38643864e-4)
    d = d * u + _F32(2.61082927e-2)
    d = d * u + _F32(4.67654474e-1)
    d = d * u + _F32(1.0)
    return n * x, d


@_compiled
def _sigmoid_parts(x: Any) -> Any:
    """The sigmoid of x as a fraction, to 2e-7: (1 + tanh(x / 2)) / 2."""
    n, d = _tanh_parts(_F32(0.5) * x)
    return d + n, d + d


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
            i, i_of = _sigmoid_parts(_load(x[j]) + _load(y[j]))
            f, f_of = _sigmoid_parts(_load(x[size + j]) + _load(y[size + j]))
            g, g_of = _tanh_parts(_load(x[2 * size + j]) + _load(y[2 * size + j]))
            o, o_of = _sigmoid_parts(_load(x[3 * size + j]) + _load(y[3 * size + j]))
            both = i_of * g_of
            cell = (f * carry[j] * both + i * g * f_of) / (f_of * both)  # f c + i g
            carry[j] = cell
            of_cell, cell_of = _tanh_parts(cell)
            out[j] = _stored(out[j], o * of_cell / (o_of * cell_of))


@_compiled
def gru(inputs: Any, index: Any, recurrent: Any, carry: Any, h: Any) -> None:
    """Gates r, z, n side by side; carry[B, H] float32 is the last h and becomes the new one. Cho et al. 2014."""
    size = carry.shape[1]
    for row in range(len(index)):
        x, y, last, out = inputs[index[row]], recurrent[row], carry[row], h[row]
        for j in range(size):
            r, r_of = _sigmoid_parts(_load(x[j]) + _load(y[j]))
            z, z_of = _sigmoid_parts(_load(x[size + j]) + _load(y[size + j]))
            n, n_of = _tanh_parts(_load(x[2 * size + j]) + r / r_of * _load(y[2 * size + j]))
            new = (n * z_of + z * (last[j] * n_of - n)) / (n_of * z_of)  # n + z (h - n)
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
                n, d = _tanh_parts(_load(key[j]) + q[j])
                total += to_score[j] * n / d
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
def _scan(stored: Any, logits: Any, tops: Any) -> Any:
    """Read stored[V] into logits[V], and the highest of each block into tops: (the highest, the sum of exp(logit - highest)).

    A block at a time, which stays in the innermost cache; the sum is scaled anew where a block is higher than those before it.
    """
    highest, total = _LOWEST, _F32(0.0)
    for block in range(len(tops)):
        start, end = block * _BLOCK, min((block + 1) * _BLOCK, len(logits))
        part = logits[start:end]
        _read(stored[start:end], part)
        tops[block] = top = _highest(part)
        if top > highest:
            total *= _exp(highest - top)
            highest = top
        of_block = _F32(0.0)
        for at in range(len(part)):
            of_block += _exp(part[at] - highest)
        total += of_block
    return highest, total


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
def top_tokens(logits: Any, written: Any, ngram: int, may_end: bool, tokens: Any, log_probs: Any) -> None:
    """The K likeliest allowed tokens[R, K] of logits[R, V] after written[R, T], by falling log-probability (nat)."""
    row_logits = np.empty(logits.shape[1], _F32)
    tops = np.empty(-(-logits.shape[1] // _BLOCK), _F32)
    for row in range(len(logits)):
        highest, total = _scan(logits[row], row_logits, tops)
        _forbid(row_logits, written[row], ngram, may_end)
        _take_highest(row_logits, tops, highest + np.log(total), tokens[row], log_probs[row])


@_compiled
def top_tokens_with_copy(
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
    """As ``top_tokens``, where rows may copy from their sources (See et al. 2017, eq. 9); see arithmetic.Copying."""
    row_logits = np.empty(logits.shape[1], _F32)
    tops = np.empty(-(-logits.shape[1] // _BLOCK), _F32)
    copied = np.empty(ids.shape[1], _F32)
    per_source = len(logits) // len(lengths)
    for row in range(len(logits)):
        source = row // per_source
        highest, total = _scan(logits[row], row_logits, tops)
        # P(w) = p_gen exp(logit - highest) / total + (1 - p_gen) copied: a logit of its own for each token of the source.
        copy_logit = min(max(copy_logits[row], _F32(-70.0)), _F32(70.0))
        share = total * _exp(copy_logit)
        copied[: lengths[source]] = _F32(0.0)
        for at in range(lengths[source]):
            copied[first[source, at]] += weights[row, at]
        for at in range(lengths[source]):
            if first[source, at] == at:
                token = ids[source, at]
                logit = highest + np.log(_exp(row_logits[token] - highest) + share * copied[at])
                row_logits[token] = logit
                tops[token // _BLOCK] = max(tops[token // _BLOCK], logit)
        _forbid(row_logits, written[row], ngram, may_end)
        log_total = highest + np.log(total) - np.log(_sigmoid(-copy_logit))
        _take_highest(row_logits, tops, log_total, tokens[row], log_probs[row])


@_compiled
def _take_highest(logits: Any, tops: Any, log_total: Any, tokens: Any, log_probs: Any) -> None:
    """The indices of the highest of logits[V] into tokens[K], one after the other, taken out of logits.

    tops: no block holds a higher one. It comes down to what a block does hold as it is looked at.
    """
    for rank in range(len(tokens)):
        token = _index_of_highest(logits, tops)
        tokens[rank], log_probs[rank] = token, logits[token] - log_total
        logits[token] = _LOWEST


@_compiled
def _index_of_highest(logits: Any, tops: Any) -> Any:
    """Where the largest of logits[V] is first; tops as in ``_take_highest``."""
    while True:
        block = 0
        for other in range(1, len(tops)):
            if tops[other] > tops[block]:
                block = other
        start, end = block * _BLOCK, min((block + 1) * _BLOCK, len(logits))
        top = _highest(logits[start:end])
        if top < tops[block]:
            tops[block] = top
            continue
        for at in range(start, end):
            if logits[at] == top:
                return at
        return start  # not a number, of which decode_window tells
