"""A decode step in plain Python that numba compiles: the logits after a few new tokens, on the CPU.

Why it is fast. One token at a time, each weight is used once, so a step takes the time in which the memory can deliver
the weights: bytes of the weights / bytes per second. Each matrix is therefore read exactly once per step, in the form
in which it is stored (float32, bfloat16, INT8, INT4), front to back, by all threads, and becomes float32 in registers
only; several tokens share one reading. The inner loops are sums of products over neighbouring numbers, which the
compiler turns into vector instructions by itself. All else (norms, rotation, softmax) is small beside the weights.

Shapes: N new tokens (of all rows), C n_embd, H query heads, KV key/value heads, D head_dim, S slots of the cache,
R rows and K columns of a matrix, in G groups of K/G columns with one scale each. The arithmetic is that of
:class:`glassgpt.model.GPT`, in float32.
"""

import math
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import njit, prange
from numba.extending import overload

f32, i8, u8, i32, u32 = np.float32, np.int8, np.uint8, np.int32, np.uint32
#: Keys that one task of the attention reads: long contexts are shared among the threads.
CHUNK = 256
#: Rows of a matrix that are read again, out of a cache, for every four tokens.
ROWS = 16
#: Sums in any order, so that they become vector instructions; but infinities and NaN stay what they are.
FAST: Any = {"fastmath": {"nsz", "arcp", "contract", "afn", "reassoc"}, "error_model": "numpy"}
INLINE = FAST | {"forceinline": True}
GELU, GELU_TANH, SWIGLU = range(3)


class Matrix(NamedTuple):
    """The weights of a linear layer: ``y = values * scales @ x + bias``.

    Attributes:
        values: ``[R, G, K/G]`` float32, uint16 (the bits of bfloat16) or int8; or ``[R, G, K/G/2]`` uint8: byte i of a
            group holds input i in its low and input i + K/G/2 in its high four bits, both plus 8 (INT4).
        scales: ``[R, G]`` float32.
        bias: ``[R]`` float32.
    """

    values: Any
    scales: Any
    bias: Any


class Layer(NamedTuple):
    """The weights of a block. Norms are ``[2, C]`` float32: weight and bias."""

    norm_1: Any
    qkv: Matrix
    qk_norm: Any  # [2, 2, D]: of q and of k; [0, 2, D]: none
    out: Matrix
    norm_2: Any
    gate: Matrix  # unused without a gate
    up: Matrix
    down: Matrix


class Shape(NamedTuple):
    """What the configuration says: see :class:`glassgpt.config.ModelConfig`."""

    n_head: int
    n_kv_head: int
    head_dim: int
    rms: bool
    eps: float
    mlp: int  # 0 gelu, 1 gelu_tanh, 2 swiglu
    rope: bool


class Model(NamedTuple):
    """The weights of a model, and what else a step has to know of it."""

    layers: Any  # a Layer for each block
    windows: Any  # [L]: the sliding window of each block; 0: none
    final_norm: Any  # [2, C]
    head: Matrix
    embedding: Matrix
    table: Any  # [S, C]: the learned positions; [0, C]: none
    shape: Shape


# --- numbers ----------------------------------------------------------------------------------------------------------


def as_float(value: Any) -> Any:
    """Turn a stored number into float32."""


@overload(as_float, jit_options=INLINE)
def _as_float(value):
    if value == numba.uint16:  # bfloat16 is the upper half of a float32
        return lambda value: u32(u32(value) << u32(16)).view(f32)
    return lambda value: f32(value)


def as_stored(value: Any, like: Any) -> Any:
    """Turn a float32 into the type of ``like``: float32, or uint16 for bfloat16, rounded to nearest even."""


@overload(as_stored, jit_options=INLINE)
def _as_stored(value, like):
    if like != numba.uint16:
        return lambda value, like: value

    def rounded(value, like):
        bits = f32(value).view(u32)
        return np.uint16(u32(bits + u32(0x7FFF) + u32(u32(bits >> u32(16)) & u32(1))) >> u32(16))

    return rounded


@njit(**INLINE)
def exp(x):
    """e^x to 2e-7, in a form that becomes vector instructions: 2^n times a polynomial (Cody and Waite, 1980)."""
    x = min(max(x, f32(-87.0)), f32(88.0))
    n = np.floor(x * f32(1.44269504) + f32(0.5))
    r = x - n * f32(0.693359375) + n * f32(2.12194440e-4)  # the rest: |r| <= ln(2) / 2
    p = (f32(1.9875691500e-4) * r + f32(1.3981999507e-3)) * r + f32(8.3334519073e-3)
    p = ((p * r + f32(4.1665795894e-2)) * r + f32(1.6666665459e-1)) * r + f32(0.5)
    return (p * r * r + r + f32(1)) * u32(u32(i32(n) + i32(127)) << u32(23)).view(f32)


# --- matrices times vectors -------------------------------------------------------------------------------------------


@njit(**INLINE)
def dot(values, scales, x):
    """A row ``[G, K/G]``, with its scales ``[G]``, times one token ``x [G, K/G]``."""
    total = f32(0)
    for g in range(values.shape[0]):
        s = f32(0)
        for k in range(values.shape[1]):
            s += as_float(values[g, k]) * x[g, k]
        total += scales[g] * s
    return total


@njit(**INLINE)
def dot_4(values, scales, x0, x1, x2, x3):
    """A row times four tokens: each weight is read and made a float32 once."""
    t0 = t1 = t2 = t3 = f32(0)
    for g in range(values.shape[0]):
        s0 = s1 = s2 = s3 = f32(0)
        for k in range(values.shape[1]):
            v = as_float(values[g, k])
            s0, s1, s2, s3 = s0 + v * x0[g, k], s1 + v * x1[g, k], s2 + v * x2[g, k], s3 + v * x3[g, k]
        t0, t1, t2, t3 = t0 + scales[g] * s0, t1 + scales[g] * s1, t2 + scales[g] * s2, t3 + scales[g] * s3
    return t0, t1, t2, t3


@njit(**INLINE)
def low(byte):
    """The low four bits n of an INT4 pair as (n - 8) / 16: n is put into the bits of the float32 1 + n / 16."""
    return u32(u32(u32(byte) << u32(19)) & u32(0x780000) | u32(0x3F800000)).view(f32) - f32(1.5)


@njit(**INLINE)
def high(byte):
    """The high four bits, as :func:`low`."""
    return u32(u32(u32(byte) << u32(15)) & u32(0x780000) | u32(0x3F800000)).view(f32) - f32(1.5)


@njit(**INLINE)
def dot_int4(values, scales, x):
    """A packed row ``[G, K/G/2]`` times one token ``x [G, 2, K/G/2]``."""
    total = f32(0)
    for g in range(values.shape[0]):
        s = f32(0)
        if values.shape[1] == 32:  # the usual size: the compiler does better with a fixed one
            for k in range(32):
                s += low(values[g, k]) * x[g, 0, k] + high(values[g, k]) * x[g, 1, k]
        else:
            for k in range(values.shape[1]):
                s += low(values[g, k]) * x[g, 0, k] + high(values[g, k]) * x[g, 1, k]
        total += f32(16) * scales[g] * s
    return total


@njit(**INLINE)
def unpack_int4(values, row):
    """Unpack a row ``[G, K/G/2]`` into ``row [G, 2, K/G/2]``, int8."""
    for g in range(values.shape[0]):
        packed, first, second = values[g], row[g, 0], row[g, 1]
        for k in range(len(packed)):
            first[k] = i8(i8(packed[k] & u8(15)) - i8(8))
        for k in range(len(packed)):
            second[k] = i8(i8(packed[k] >> u8(4)) - i8(8))


def product_rows(w: Matrix, x: Any, y: Any, first: int, last: int) -> None:
    """Compute the rows first..last of ``y [N, R] = x [N, K] @ w.T``."""


@overload(product_rows, jit_options=INLINE)
def _product_rows(w, x, y, first, last):
    def whole(w, x, y, first, last):
        N, G = len(x), w.values.shape[1]
        x = x.reshape(N, G, -1)
        for start in range(first, last, ROWS):
            stop = min(start + ROWS, last)
            for n in range(0, N - 3, 4):  # four tokens stay in the nearest cache while the rows are read again
                x0, x1, x2, x3 = x[n], x[n + 1], x[n + 2], x[n + 3]
                for j in range(start, stop):
                    values, scales = w.values[j], w.scales[j]
                    y[n, j], y[n + 1, j], y[n + 2, j], y[n + 3, j] = dot_4(values, scales, x0, x1, x2, x3)
            for n in range(N - N % 4, N):
                x0 = x[n]
                for j in range(start, stop):
                    values, scales = w.values[j], w.scales[j]
                    y[n, j] = dot(values, scales, x0)

    def packed(w, x, y, first, last):
        N, G, half = len(x), w.values.shape[1], w.values.shape[2]
        pairs, x = x.reshape(N, G, 2, half), x.reshape(N, G, 2 * half)
        row = np.empty((G, 2, half), i8)
        unpacked = row.reshape(G, 2 * half)
        for j in range(first, last):
            if N >= 4:
                unpack_int4(w.values[j], row)
            for n in range(0, N - 3, 4):
                s = dot_4(unpacked, w.scales[j], x[n], x[n + 1], x[n + 2], x[n + 3])
                y[n, j], y[n + 1, j], y[n + 2, j], y[n + 3, j] = s
            for n in range(N - N % 4, N):
                y[n, j] = dot_int4(w.values[j], w.scales[j], pairs[n])

    return packed if w.types[0].dtype == numba.uint8 else whole


@njit(**FAST)
def product(w, x, y, t, threads):
    """Compute thread t's rows of ``y [N, R] = x [N, K] @ w.T + bias``; return the first and the last + 1."""
    R = len(w.values)
    first, last = t * R // threads, (t + 1) * R // threads
    product_rows(w, x, y, first, last)
    if w.bias.size:
        for n in range(len(y)):
            for j in range(first, last):
                y[n, j] += w.bias[j]
    return first, last


# --- the small steps between ------------------------------------------------------------------------------------------


@njit(**FAST)
def room(rows, columns):
    """Return memory for ``[rows, columns]`` that begins at a multiple of 64 bytes, as the reading of vectors likes."""
    memory = np.empty(rows * columns + 16, f32)
    start = -(memory.ctypes.data // 4) % 16
    return memory[start : start + rows * columns].reshape(rows, columns)


@njit(**INLINE)
def norm(x, weight, rms, eps, y):
    """LayerNorm or RMSNorm: ``x [C] -> y [C]``."""
    C = len(x)
    mean, square = f32(0), f32(0)
    if not rms:
        for c in range(C):
            mean += x[c]
        mean /= f32(C)
    for c in range(C):
        square += (x[c] - mean) * (x[c] - mean)
    scale = f32(1) / np.sqrt(square / f32(C) + f32(eps))
    for c in range(C):
        y[c] = (x[c] - mean) * scale * weight[0, c] + weight[1, c]


def row_of(w: Matrix, row: int) -> Any:
    """Give the values of a row, ``[G, K/G]``; those of INT4 are unpacked."""


@overload(row_of, jit_options=INLINE)
def _row_of(w, row):
    def packed(w, row):
        _, G, half = w.values.shape
        unpacked = np.empty((G, 2, half), i8)
        unpack_int4(w.values[row], unpacked)
        return unpacked.reshape(G, 2 * half)

    return packed if w.types[0].dtype == numba.uint8 else lambda w, row: w.values[row]


@njit(**FAST)
def embed(embedding, table, tokens, positions, x):
    """Look up the tokens, and their positions in ``table [S, C]`` if it has any: ``x [N, C]``."""
    N, G = len(tokens), embedding.values.shape[1]
    groups = x.reshape(N, G, -1)
    for n in range(N):
        values, scales = row_of(embedding, tokens[n]), embedding.scales[tokens[n]]
        for g in range(G):
            for k in range(values.shape[1]):
                groups[n, g, k] = scales[g] * as_float(values[g, k])
        if len(table):
            for c in range(x.shape[1]):
                x[n, c] += as_float(table[positions[n], c])


@njit(**FAST)
def add_and_norm(x, change, weight, shape, y):
    """Add a change to the residual stream ``x [N, C]``, and normalise it into ``y [N, C]``."""
    for n in range(len(x)):
        for c in range(x.shape[1]):
            x[n, c] += change[n, c]
        norm(x[n], weight, shape.rms, shape.eps, y[n])


@njit(**INLINE)
def rotate(x, cos, sin):
    """Rotate a head ``x [D]`` in place: channel i with channel i + D/2."""
    half = len(x) // 2
    for d in range(half):
        a, b = x[d], x[d + half]
        x[d] = a * cos[d] - b * sin[d]
        x[d + half] = b * cos[d] + a * sin[d]


@njit(**FAST)
def place(qkv, qk_norm, shape, cos, sin, rows, positions, keys, values):
    """Finish q ``[N, H, D]`` in place; put k and v of ``qkv [N, H + 2 KV, D]`` into the cache ``[B, KV, S, D]``."""
    N, _, D = qkv.shape
    H, KV = shape.n_head, shape.n_kv_head
    scale = f32(1) / np.sqrt(f32(D))
    for n in range(N):
        at = positions[n]
        for h in range(H + KV):
            head = qkv[n, h]
            if len(qk_norm):
                norm(head, qk_norm[0 if h < H else 1], True, shape.eps, head)
            if shape.rope:
                rotate(head, cos[at], sin[at])
        for h in range(H):
            for d in range(D):
                qkv[n, h, d] *= scale
        for h in range(KV):
            key, value = keys[rows[n], h, at], values[rows[n], h, at]
            for d in range(D):
                key[d] = as_stored(qkv[n, H + h, d], key[d])
                value[d] = as_stored(qkv[n, H + KV + h, d], value[d])


@njit(**FAST)
def activate(gate, up, shape, first, last):
    """The nonlinearity of the MLP, on columns first..last of ``up [N, intermediate_size]``, in place."""
    for n in range(len(up)):
        g, u = gate[n, first:last], up[n, first:last]
        if shape.mlp == SWIGLU:
            for i in range(len(u)):
                u[i] *= g[i] / (f32(1) + exp(-g[i]))
        elif shape.mlp == GELU_TANH:
            for i in range(len(u)):
                inner = f32(0.7978845608) * (u[i] + f32(0.044715) * u[i] * u[i] * u[i])
                u[i] *= f32(1) - f32(1) / (exp(f32(2) * inner) + f32(1))  # (1 + tanh(inner)) / 2
        else:
            for i in range(len(u)):
                u[i] *= f32(0.5 + 0.5 * math.erf(u[i] * 0.7071067811865476))


# --- attention --------------------------------------------------------------------------------------------------------


@njit(**INLINE)
def attend(q, keys, values, scores, out):
    """Attention of one query over a chunk of keys: ``q [D]``, keys and values ``[S, D]``, scores ``[S]`` to work in.

    Writes the sum of the values, weighted by exp(score - largest), to ``out [D]``; returns largest and sum of weights.
    """
    S, D = keys.shape
    largest, total = f32(-np.inf), f32(0)
    for s in range(S):
        score = f32(0)
        for d in range(D):
            score += q[d] * as_float(keys[s, d])
        scores[s] = score
    for s in range(S):
        largest = max(largest, scores[s])
    for s in range(S):
        scores[s] = exp(scores[s] - largest)
        total += scores[s]
    out[:] = 0
    for s in range(0, S - 3, 4):
        p0, p1, p2, p3 = scores[s], scores[s + 1], scores[s + 2], scores[s + 3]
        v0, v1, v2, v3 = values[s], values[s + 1], values[s + 2], values[s + 3]
        for d in range(D):
            out[d] += p0 * as_float(v0[d]) + p1 * as_float(v1[d]) + p2 * as_float(v2[d]) + p3 * as_float(v3[d])
    for s in range(S - S % 4, S):
        for d in range(D):
            out[d] += scores[s] * as_float(values[s, d])
    return largest, total


@njit(**FAST)
def attend_share(qkv, shape, window, rows, positions, keys, values, parts, t, threads):
    """Compute thread t's share of the attention: every (token, key/value head, chunk of keys) is a task."""
    group, D = shape.n_head // shape.n_kv_head, shape.head_dim
    scores = room(1, CHUNK)[0]
    task = 0
    for n in range(len(qkv)):
        end = positions[n] + 1
        start = max(0, end - window) if window else 0
        for h in range(shape.n_kv_head):
            for c, s in enumerate(range(start, end, CHUNK)):
                task += 1
                if task % threads != t:
                    continue
                k, v = keys[rows[n], h, s : min(s + CHUNK, end)], values[rows[n], h, s : min(s + CHUNK, end)]
                for head in range(h * group, (h + 1) * group):
                    part = parts[n, head, c]
                    part[D], part[D + 1] = attend(qkv[n, head], k, v, scores, part[:D])


@njit(**FAST)
def merge(parts, positions, window, y):
    """Join the chunks ``parts [N, H, chunks, D + 16]``: values, largest score, sum. It is the softmax of all keys."""
    N, H, D = len(parts), parts.shape[1], y.shape[1] // parts.shape[1]
    for n in range(N):
        end = positions[n] + 1
        chunks = (min(end, window) if window else end) + CHUNK - 1
        chunks //= CHUNK
        for h in range(H):
            out = y[n, h * D : (h + 1) * D]
            largest, total = f32(-np.inf), f32(0)
            for c in range(chunks):
                largest = max(largest, parts[n, h, c, D])
            out[:] = 0
            for c in range(chunks):
                weight = exp(parts[n, h, c, D] - largest)
                total += weight * parts[n, h, c, D + 1]
                part = parts[n, h, c]
                for d in range(D):
                    out[d] += weight * part[d]
            for d in range(D):
                out[d] /= total


# --- the step ---------------------------------------------------------------------------------------------------------

#: The parts of a step that the threads share. Each begins when all threads have ended the one before.
QKV, ATTENTION, OUT, UP, DOWN, HEAD = range(6)


def compiled(function: Any) -> Any:
    """Compile for several threads; keep the result on disk, if there is any folder that can be written."""
    try:
        return njit(parallel=True, nogil=True, cache=True, **FAST)(function)
    except RuntimeError:
        return njit(parallel=True, nogil=True, **FAST)(function)


@compiled
def step(
    layers, windows, final_norm, head, embedding, table, shape,
    tokens, rows, positions, cos, sin, keys, values, logits, threads,
):  # fmt: skip
    """Compute ``logits [N, V]`` of N tokens, and put their keys and values into the cache.

    Args:
        layers: and the six after it: of :class:`Model`.
        windows: see there.
        final_norm: see there.
        head: see there.
        embedding: see there.
        table: see there.
        shape: see there.
        tokens: ``[N]``.
        rows: the row of the cache of each token.
        positions: the slot, and position, of each token: tokens of a row in order.
        cos: of the rotary embedding, ``[S, D/2]``; so is ``sin``.
        sin: see ``cos``.
        keys: of the cache, ``[L, B, KV, S, D]``; so are ``values``.
        values: see ``keys``.
        logits: the result.
        threads: how many share the work.
    """
    N, C = len(tokens), final_norm.shape[1]
    H, KV, D = shape.n_head, shape.n_kv_head, shape.head_dim
    L, width = len(layers), len(layers[0].up.values)
    x, normed, change, y, qkv = room(N, C), room(N, C), room(N, C), room(N, H * D), room(N, (H + 2 * KV) * D)
    hidden, gate = room(N, width), room(N, width)
    change[:] = 0
    embed(embedding, table, tokens, positions, x)
    chunks = (positions.max() + CHUNK) // CHUNK
    parts = room(N, H * chunks * (D + 16)).reshape(N, H, chunks, D + 16)
    heads = qkv.reshape(N, H + 2 * KV, D)
    for number in range(5 * L + 1):
        part = number % 5 if number < 5 * L else HEAD
        i = min(number // 5, L - 1)
        window, k, v = windows[i], keys[i], values[i]
        if part == QKV:  # what one thread does first
            add_and_norm(x, change, layers[i].norm_1, shape, normed)
        elif part == ATTENTION:
            place(heads, layers[i].qk_norm, shape, cos, sin, rows, positions, k, v)
        elif part == OUT:
            merge(parts, positions, window, y)
        elif part == UP:
            add_and_norm(x, change, layers[i].norm_2, shape, normed)
        elif part == HEAD:
            add_and_norm(x, change, final_norm, shape, normed)
        for t in prange(threads):  # one loop for all parts: numba takes a second to compile each
            if part == QKV:
                product(layers[i].qkv, normed, qkv, t, threads)
            elif part == ATTENTION:
                attend_share(heads, shape, window, rows, positions, k, v, parts, t, threads)
            elif part == OUT:
                product(layers[i].out, y, change, t, threads)
            elif part == UP:
                if shape.mlp == SWIGLU:
                    product(layers[i].gate, normed, gate, t, threads)
                first, last = product(layers[i].up, normed, hidden, t, threads)
                activate(gate, hidden, shape, first, last)
            elif part == DOWN:
                product(layers[i].down, hidden, change, t, threads)
            else:
                product(head, normed, logits, t, threads)
