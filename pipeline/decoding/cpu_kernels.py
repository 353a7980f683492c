"""Compiled CPU loops for everything between two matrix products of a decoding step.

As tensor operations, each of these small computations would read and write whole arrays. Here a row goes through all of them
while it is in the cache, and only up to its true length, so padding costs nothing. Numba compiles the functions on first use
and caches the machine code on disk. They release the GIL, so threads run in parallel. All stay in this file: Numba discards the
cached code of a function when its own file changes, but not when another file does.

Arithmetic is in float32. Arrays hold float32, bfloat16 (its bits, as uint16), or bytes: ``round(127 x) + 128`` for an x within
±1, the output of a sigmoid or tanh.

Shapes: B batch, R decoder rows (a multiple of B), S source steps, T target steps, H hidden, V vocabulary, G gates side by side
(4H for LSTM, 3H for GRU).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from pipeline.data.special_tokens import BOS, EOS, PAD, UNK

BYTE_ZERO = 128
_F32 = np.float32
_LOG2_E, _LN_2 = _F32(1.4426950408889634), _F32(0.6931471805599453)
_MINUS_INFINITY = _F32(-np.inf)

_BLOCK = 256
"""Logits per block. Each block's maximum is kept, so that finding the next token reads few of them."""

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])


def _compiled(function: _Kernel) -> _Kernel:
    """Compile with reordered sums and reciprocal divisions, without which no loop over floats is vectorized.

    Infinities keep their meaning: they mark forbidden tokens.
    """
    flags = {"contract", "reassoc", "arcp", "nsz", "afn"}
    options: dict[str, Any] = {"fastmath": flags, "nogil": True, "error_model": "numpy"}
    try:
        compiled: Any = njit(cache=True, **options)(function)
    except RuntimeError:  # no writable cache folder: each process compiles
        compiled = njit(**options)(function)
    return cast(_Kernel, compiled)


# Scalar operations as LLVM instructions. An intrinsic returns its signature and a function that emits the instructions.

_intrinsic: Callable[[Callable[..., Any]], Any] = intrinsic
_I8, _I16, _I32, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()


@_intrinsic
def _float_bits(_typing: Any, _x: Any) -> Any:
    """Reinterpret a float32 as an int32."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _I32)

    return types.int32(types.float32), emit


@_intrinsic
def _float_from_bits(_typing: Any, _x: Any) -> Any:
    """Reinterpret an int32 as a float32."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _FLOAT)

    return types.float32(types.int32), emit


@_intrinsic
def _nearest(_typing: Any, x: Any) -> Any:
    """Round a float32 to the nearest whole number."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.call(builder.module.declare_intrinsic("llvm.rint", [_FLOAT]), args)

    return types.float32(x), emit


@_intrinsic
def _power_of_two(_typing: Any, k: Any) -> Any:
    """Return 2 ** k for a whole float32 from -126 to 127, by setting its exponent bits."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        biased = builder.add(builder.fptosi(args[0], _I32), _I32(127))
        return builder.bitcast(builder.shl(biased, _I32(23)), _FLOAT)

    return types.float32(k), emit


@_intrinsic
def _load(_typing: Any, number: Any) -> Any:
    """Convert a number of an array (float32, bfloat16 or byte) to float32."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        if number == types.float32:
            return args[0]
        if number == types.uint16:
            return builder.bitcast(builder.shl(builder.zext(args[0], _I32), _I32(16)), _FLOAT)
        levels = builder.sub(builder.zext(args[0], _I32), _I32(BYTE_ZERO))
        return builder.fmul(builder.sitofp(levels, _FLOAT), _FLOAT(1 / 127))

    return types.float32(number), emit


@_intrinsic
def _store_as(_typing: Any, like: Any, x: Any) -> Any:
    """Convert a float32 x to the type of ``like``, rounded to the nearest."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        _, value = args
        if like == types.float32:
            return value
        if like == types.uint16:
            bits = builder.bitcast(value, _I32)
            to_even = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
            rounded = builder.add(builder.add(bits, _I32(0x7FFF)), to_even)
            return builder.trunc(builder.lshr(rounded, _I32(16)), _I16)
        # Always positive, so adding 1/2 and truncating rounds to the nearest.
        levels = builder.fadd(builder.fmul(value, _FLOAT(127.0)), _FLOAT(BYTE_ZERO + 0.5))
        return builder.trunc(builder.fptosi(levels, _I32), _I8)

    return like(like, x), emit


@_compiled
def exp(x: Any) -> Any:
    """Return e ** x to 2 units in the last place; constant below -86 and above 88."""
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
def sigmoid(x: Any) -> Any:
    return _F32(1.0) / (_F32(1.0) + exp(-x))


@_compiled
def tanh_fraction(x: Any) -> Any:
    """Return numerator and denominator (1 to 271) of tanh x, to 4e-7. Callers divide several fractions at once.

    The polynomials give the best fraction of these degrees for |x| < 8.2; beyond, tanh is 1 in float32.
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
def sigmoid_fraction(x: Any) -> Any:
    """Return numerator and denominator of the sigmoid, to 2e-7: (1 + tanh(x / 2)) / 2."""
    n, d = tanh_fraction(_F32(0.5) * x)
    return d + n, d + d


@_compiled
def _load_row(row: Any, out: Any) -> None:
    """Convert row[N] to float32 out[N]."""
    for j in range(len(out)):
        out[j] = _load(row[j])


# Cells: row r adds the gates inputs[index[r], G] and recurrent[r, G], updates its state and writes h[r, H].


@_compiled
def lstm(inputs: Any, index: Any, recurrent: Any, c: Any, h: Any) -> None:
    """Gates i, f, g, o; the state is c[R, H] float32. Hochreiter & Schmidhuber 1997, Gers et al. 2000."""
    size = c.shape[1]
    for row in range(len(index)):
        x, y, cell, out = inputs[index[row]], recurrent[row], c[row], h[row]
        for j in range(size):
            i_num, i_den = sigmoid_fraction(_load(x[j]) + _load(y[j]))
            f_num, f_den = sigmoid_fraction(_load(x[size + j]) + _load(y[size + j]))
            g_num, g_den = tanh_fraction(_load(x[2 * size + j]) + _load(y[2 * size + j]))
            o_num, o_den = sigmoid_fraction(_load(x[3 * size + j]) + _load(y[3 * size + j]))
            ig_den = i_den * g_den
            new = (f_num * cell[j] * ig_den + i_num * g_num * f_den) / (f_den * ig_den)  # f c + i g
            cell[j] = new
            tanh_num, tanh_den = tanh_fraction(new)
            out[j] = _store_as(out[j], o_num * tanh_num / (o_den * tanh_den))


@_compiled
def gru(inputs: Any, index: Any, recurrent: Any, state: Any, h: Any) -> None:
    """Gates r, z, n; the state[R, H] float32 is h before quantization. Cho et al. 2014."""
    size = state.shape[1]
    for row in range(len(index)):
        x, y, last, out = inputs[index[row]], recurrent[row], state[row], h[row]
        for j in range(size):
            r_num, r_den = sigmoid_fraction(_load(x[j]) + _load(y[j]))
            z_num, z_den = sigmoid_fraction(_load(x[size + j]) + _load(y[size + j]))
            n_num, n_den = tanh_fraction(_load(x[2 * size + j]) + r_num / r_den * _load(y[2 * size + j]))
            new = (n_num * z_den + z_num * (last[j] * n_den - n_num)) / (n_den * z_den)  # n + z (h - n)
            last[j] = new
            out[j] = _store_as(out[j], new)


# Attention: write weights[R, S] and context[R, H] for query[R, H] over states[B, S, H] of lengths[B].


@_compiled
def attend(states: Any, lengths: Any, query: Any, weights: Any, context: Any) -> None:
    """Score by the dot product with the query (Luong et al. 2015, section 3.1)."""
    size, rows_per_source = query.shape[1], len(query) // len(lengths)
    q = np.empty(size, _F32)
    for row in range(len(query)):
        source = row // rows_per_source
        _load_row(query[row], q)
        for position in range(lengths[source]):
            state, total = states[source, position], _F32(0.0)
            for j in range(size):
                total += _load(state[j]) * q[j]
            weights[row, position] = total
        _softmax_mean(states[source], lengths[source], weights[row], context[row])


@_compiled
def attend_additively(states: Any, keys: Any, to_score: Any, lengths: Any, query: Any, weights: Any, context: Any) -> None:
    """Score by to_score[H] · tanh(keys[B, S, H] + query) (Bahdanau et al. 2015, A.1.2)."""
    size, rows_per_source = query.shape[1], len(query) // len(lengths)
    q = np.empty(size, _F32)
    for row in range(len(query)):
        source = row // rows_per_source
        _load_row(query[row], q)
        for position in range(lengths[source]):
            key, total = keys[source, position], _F32(0.0)
            for j in range(size):
                n, d = tanh_fraction(_load(key[j]) + q[j])
                total += to_score[j] * n / d
            weights[row, position] = total
        _softmax_mean(states[source], lengths[source], weights[row], context[row])


@_compiled
def _softmax_mean(states: Any, length: Any, weights: Any, context: Any) -> None:
    """Turn a row's scores in weights[S] into their softmax, 0 beyond length, and write the weighted mean of the states."""
    size = len(context)
    highest, total = _max(weights[:length]), _F32(0.0)
    for position in range(length):
        weights[position] = exp(weights[position] - highest)
        total += weights[position]
    mean = np.zeros(size, _F32)
    for position in range(length):
        weights[position] /= total
        weight, state = weights[position], states[position]
        for j in range(size):
            mean[j] += weight * _load(state[j])
    for position in range(length, len(weights)):
        weights[position] = _F32(0.0)
    for j in range(size):
        context[j] = _store_as(context[j], mean[j])


# Choosing the next token


@_compiled
def _max(x: Any) -> Any:
    """Return the largest of x[N]. Compares as integers, which vectorizes: flipping negative floats gives the same order."""
    best = np.int32(-0x80000000)
    for j in range(len(x)):
        bits = _float_bits(x[j])
        best = max(best, bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))
    return _float_from_bits(best ^ ((best >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@_compiled
def _scan(row: Any, logits: Any, block_max: Any) -> Any:
    """Convert row[V] to float32 logits[V] and fill block_max. Return the maximum, and the sum of exp(logit - maximum).

    Works on one block at a time, which stays in the L1 cache, and rescales the sum where the maximum rises.
    """
    highest, total = _MINUS_INFINITY, _F32(0.0)
    for block in range(len(block_max)):
        start, end = block * _BLOCK, min((block + 1) * _BLOCK, len(logits))
        part = logits[start:end]
        _load_row(row[start:end], part)
        block_max[block] = top = _max(part)
        if top > highest:
            total *= exp(highest - top)
            highest = top
        block_total = _F32(0.0)
        for j in range(len(part)):
            block_total += exp(part[j] - highest)
        total += block_total
    return highest, total


@_compiled
def _forbid(logits: Any, written: Any, no_repeat_ngram: int, eos_allowed: bool) -> None:
    """Set forbidden logits[V] after written[T] to minus infinity; see TokenConstraints in backends.py."""
    logits[PAD] = logits[UNK] = logits[BOS] = _MINUS_INFINITY
    if not eos_allowed:
        logits[EOS] = _MINUS_INFINITY
    steps, n = len(written), no_repeat_ngram
    if 0 < n <= steps:
        for start in range(steps - n + 1):
            matches = True
            for j in range(n - 1):
                matches = matches and written[start + j] == written[steps - n + 1 + j]
            if matches:
                logits[written[start + n - 1]] = _MINUS_INFINITY


@_compiled
def top_tokens(logits: Any, written: Any, no_repeat_ngram: int, eos_allowed: bool, tokens: Any, log_probs: Any) -> None:
    """Write the K most likely allowed tokens[R, K] of logits[R, V] and their log-probabilities (nat), in descending order."""
    row_logits = np.empty(logits.shape[1], _F32)
    block_max = np.empty(-(-logits.shape[1] // _BLOCK), _F32)
    for row in range(len(logits)):
        highest, total = _scan(logits[row], row_logits, block_max)
        _forbid(row_logits, written[row], no_repeat_ngram, eos_allowed)
        _take_highest(row_logits, block_max, highest + np.log(total), tokens[row], log_probs[row])


@_compiled
def top_tokens_with_copy(
    logits: Any,
    ids: Any,
    first_positions: Any,
    lengths: Any,
    weights: Any,
    copy_logits: Any,
    written: Any,
    no_repeat_ngram: int,
    eos_allowed: bool,
    tokens: Any,
    log_probs: Any,
) -> None:
    """Do the same as ``top_tokens`` where rows may copy from their sources (See et al. 2017, eq. 9); see CopyInputs."""
    row_logits = np.empty(logits.shape[1], _F32)
    block_max = np.empty(-(-logits.shape[1] // _BLOCK), _F32)
    copied = np.empty(ids.shape[1], _F32)
    rows_per_source = len(logits) // len(lengths)
    for row in range(len(logits)):
        source = row // rows_per_source
        highest, total = _scan(logits[row], row_logits, block_max)
        # P(w) = p_gen exp(logit - highest) / total + (1 - p_gen) copied: raise the logit of each token of the source.
        copy_logit = min(max(copy_logits[row], _F32(-70.0)), _F32(70.0))
        share = total * exp(copy_logit)
        copied[: lengths[source]] = _F32(0.0)
        for position in range(lengths[source]):
            copied[first_positions[source, position]] += weights[row, position]
        for position in range(lengths[source]):
            if first_positions[source, position] == position:
                token = ids[source, position]
                logit = highest + np.log(exp(row_logits[token] - highest) + share * copied[position])
                row_logits[token] = logit
                block_max[token // _BLOCK] = max(block_max[token // _BLOCK], logit)
        _forbid(row_logits, written[row], no_repeat_ngram, eos_allowed)
        log_total = highest + np.log(total) - np.log(sigmoid(-copy_logit))
        _take_highest(row_logits, block_max, log_total, tokens[row], log_probs[row])


@_compiled
def _take_highest(logits: Any, block_max: Any, log_total: Any, tokens: Any, log_probs: Any) -> None:
    """Write the indices of the highest logits[V] into tokens[K], and set those logits to minus infinity.

    block_max holds an upper bound for each block, which is lowered when the block is read.
    """
    for rank in range(len(tokens)):
        token = _argmax(logits, block_max)
        tokens[rank], log_probs[rank] = token, logits[token] - log_total
        logits[token] = _MINUS_INFINITY


@_compiled
def _argmax(logits: Any, block_max: Any) -> Any:
    """Return the first index of the largest of logits[V]; see ``_take_highest``."""
    while True:
        block = 0
        for other in range(1, len(block_max)):
            if block_max[other] > block_max[block]:
                block = other
        start, end = block * _BLOCK, min((block + 1) * _BLOCK, len(logits))
        top = _max(logits[start:end])
        if top < block_max[block]:
            block_max[block] = top
            continue
        for j in range(start, end):
            if logits[j] == top:
                return j
        return start  # NaN, which decode_window reports
