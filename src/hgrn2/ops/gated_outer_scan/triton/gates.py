"""Device functions that all kernels of the outer-product scan share: gates, exact sums over tokens, tiles of memory.

Decays are kept as log2 f, so that every power is one exp2. Everything that belongs to key channels is a tile
[channels, CHUNK], tokens along the second axis: results of products then are first operands of the next without leaving
the registers, and a thread needs γ of two channels only. Tokens beyond a sequence's end read as f = 1 and k = 0, which
leaves state and gradients alone.
"""

# ruff: noqa: SIM300
# Pyright takes the language's constants for objects of its own.
# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportCallIssue=false

import os

import triton
import triton.language as tl

CHUNK = tl.constexpr(64)
"""Tokens of a chunk."""
ONE_PRODUCT_LOWER_BOUND = tl.constexpr(0.3)
"""From this γ on scores of a chunk are one product: its quotients of decays are at most 0.3^-64 = e^77, which fits."""
BLOCK_LOWER_BOUND = tl.constexpr(0.008)
"""From this γ on scores of 16 tokens are one product: 0.008^-16 = e^77."""
LOG2E = tl.constexpr(1.4426950408889634)
LN2_HIGH = tl.constexpr(0.693145751953125)  # few digits: products with small whole numbers are exact in float32
LN2_LOW = tl.constexpr(1.42860682030941723e-06)
SMALLEST_LOGIT = tl.constexpr(-60.0)  # e^-60 vanishes beside any other term
SMALLEST_LOG_GATE = tl.constexpr(-256.0)  # of a gate that is given: e^-256 is exactly 0 in float32
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
NONE, SILU, SIGMOID = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def decaying(x, EXACT: tl.constexpr):
    """e^-x, e^60 at most. EXACT splits -x = n ln2 + r first: one rounding of x·log2(e) alone costs |x| epsilons."""
    x = tl.where(x < SMALLEST_LOGIT, SMALLEST_LOGIT, x)  # lets NaN through, unlike a maximum
    if EXACT:
        whole = tl.floor(0.5 - tl.minimum(x, 100.0) * LOG2E)
        rest = (-x - whole * LN2_HIGH) - whole * LN2_LOW
        y = tl.where(x > 100.0, 0.0, tl.exp2(whole) * tl.exp2(rest * LOG2E))
    else:
        y = tl.exp2(x * (-LOG2E))
    return y


@triton.jit
def log2(x):
    """One instruction, off by 2^-22 of the result (absolutely, near x = 1); the library's branches once an element."""
    if INTERPRETED:
        y = tl.log2(x)
    else:
        y = tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, pack=1)
    return y


@triton.jit
def reciprocal(x):
    """1 / x for x from 1 on, in one instruction that is off by one rounding; a quotient takes eight."""
    if INTERPRETED:
        y = 1.0 / x
    else:
        y = tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, pack=1)
    return y


@triton.jit
def log2_gate(key, forget, EXACT: tl.constexpr):
    """log2 f from f and k = 1 - f, of which the smaller one is precise."""
    if EXACT:
        z = key * reciprocal(2.0 - key)  # log(1-k) = -2 artanh(k / (2-k)), z at most 1/3
        s = z * z
        series = 1.0 / 11.0 + s * (1.0 / 13.0 + s * (1.0 / 15.0))
        series = 1.0 / 5.0 + s * (1.0 / 7.0 + s * (1.0 / 9.0 + s * series))
        near = -2.0 * LOG2E * (z + z * s * (1.0 / 3.0 + s * series))
        y = tl.where(key < 0.5, near, log2(forget))
    else:
        near = -LOG2E * key * (1.0 + key * (0.5 + key * 0.3333333333))
        y = tl.where(key < 0.015625, near, log2(forget))
    return y


@triton.jit
def raw_gates(x, lower_bound, EXACT: tl.constexpr):
    """From logits [K,C] and γ [K]: σ(x), σ(-x), key (1-γ)σ(-x), forget gate, its log2. x = +inf gives k = 0, f = 1."""
    small = decaying(x, EXACT)
    up = reciprocal(1.0 + small)
    down = small * up
    key = (1.0 - lower_bound)[:, None] * down
    forget = lower_bound[:, None] + (1.0 - lower_bound)[:, None] * up
    return up, down, key, forget, log2_gate(key, forget, EXACT)


@triton.jit
def sigmoid(x, EXACT: tl.constexpr):
    return reciprocal(1.0 + decaying(x, EXACT))


@triton.jit
def activate(x, NAME: tl.constexpr, EXACT: tl.constexpr):
    """x, x σ(x) or σ(x)."""
    if NAME == NONE:
        y = x
    elif NAME == SILU:
        y = x * sigmoid(x, EXACT)
    else:
        y = sigmoid(x, EXACT)
    return y


@triton.jit
def slope(x, NAME: tl.constexpr, EXACT: tl.constexpr):
    """d activate(x) / dx; σ(x)σ(-x), not y(1-y)."""
    if NAME == NONE:
        y = tl.full(x.shape, 1.0, tl.float32)
    elif NAME == SILU:
        y = sigmoid(x, EXACT) * (1.0 + x * sigmoid(-x, EXACT))
    else:
        y = sigmoid(x, EXACT) * sigmoid(-x, EXACT)
    return y


@triton.jit
def narrow(x, WORK: tl.constexpr):
    """x rounded to WORK, two at a time: alone, a conversion to bfloat16 is a slow instruction."""
    if x.dtype == WORK:
        y = x
    elif INTERPRETED or x.dtype != tl.float32:
        y = x.to(WORK)
    else:
        y = tl.inline_asm_elementwise("cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [x], tl.bfloat16, True, pack=2)
    return y


@triton.jit
def matmul(a, b, WORK: tl.constexpr, PRECISION: tl.constexpr):
    """a @ b of operands rounded to WORK, in float32."""
    return tl.dot(narrow(a, WORK), narrow(b, WORK), input_precision=PRECISION)


@triton.jit
def token_sums(x, picks, WORK: tl.constexpr, PRECISION: tl.constexpr):
    """Σ_s x_s over the tokens s that `picks` [s,t] names: see `add_token_sums`."""
    return add_token_sums(tl.zeros(x.shape, tl.float32), x, picks, WORK, PRECISION)


@triton.jit
def add_token_sums(to, x, picks, WORK: tl.constexpr, PRECISION: tl.constexpr):
    """to + Σ_s x_s over the tokens s that `picks` [s,t] names, on tensor cores, x as two bfloat16 parts (16 bits).

    Outward sums from any boundary are one such product each; nothing is subtracted and no token is shuffled.
    """
    if WORK == tl.float32:
        sums = tl.dot(x, picks.to(tl.float32), to, input_precision=PRECISION)
    else:
        ones = picks.to(tl.bfloat16)
        high = narrow(x, WORK)
        low = narrow(x - high.to(tl.float32), WORK)
        sums = tl.dot(low, ones, tl.dot(high, ones, to))
    return sums


@triton.jit
def logits(x):
    """Logits of gates [K,C] in float32, made finite: below -60 nothing changes, from 1000 on k is exactly 0.

    Narrow ones pass a product with the identity, which is exact. Its result has the layout of all other products, so
    gates are computed once, in that layout; otherwise the compiler computes them elsewhere and moves float32 tiles.
    """
    finite = tl.where(x < SMALLEST_LOGIT, SMALLEST_LOGIT, tl.where(x > 1000.0, 1000.0, x.to(tl.float32)))
    if x.dtype == tl.float32:
        y = finite
    else:
        token = tl.arange(0, CHUNK)
        y = tl.dot(finite.to(x.dtype), (token[:, None] == token[None, :]).to(x.dtype))
    return y


@triton.jit
def split_of(lower_bound_ptr, head, K: tl.constexpr):
    """log2 of the tokens whose scores are one product, from the lower bounds γ of a head alone: 6 (a chunk), 4, or
    0."""
    channel = tl.arange(0, triton.next_power_of_2(K))
    least = tl.min(tl.load(lower_bound_ptr + head * K + channel, mask=channel < K, other=1.0), 0)
    return tl.where(least >= ONE_PRODUCT_LOWER_BOUND, 6, tl.where(least >= BLOCK_LOWER_BOUND, 4, 0))


@triton.jit
def load_rows(base, origin, stride, column, length, width, fill: tl.constexpr, COLUMNS: tl.constexpr,
              WHOLE: tl.constexpr, REVERSE: tl.constexpr):  # fmt: skip
    """[CHUNK, COLUMNS] of a matrix with this row stride, from token `origin` and `column` on; `fill` outside."""
    row, channel = tl.arange(0, CHUNK), tl.arange(0, COLUMNS)
    move = -row if REVERSE else row
    inside = (row < length)[:, None]
    if not WHOLE:
        inside = inside & (channel < width)[None, :]
    return tl.load(base + origin * stride + column + move[:, None] * stride + channel[None, :], mask=inside, other=fill)


@triton.jit
def store_rows(base, x, origin, stride, column, length, width, WHOLE: tl.constexpr, REVERSE: tl.constexpr):
    """The counterpart of `load_rows`."""
    row, channel = tl.arange(0, CHUNK), tl.arange(0, x.shape[1])
    move = -row if REVERSE else row
    inside = (row < length)[:, None]
    if not WHOLE:
        inside = inside & (channel < width)[None, :]
    place = base + origin * stride + column + move[:, None] * stride + channel[None, :]
    tl.store(place, x.to(base.dtype.element_ty), mask=inside)


@triton.jit
def load_keys(base, origin, stride, column, length, width, fill: tl.constexpr, KEYS: tl.constexpr,
              WHOLE: tl.constexpr, REVERSE: tl.constexpr):  # fmt: skip
    """[KEYS, CHUNK]: `load_rows` with tokens along the second axis."""
    return tl.trans(load_rows(base, origin, stride, column, length, width, fill, KEYS, WHOLE, REVERSE))


@triton.jit
def load_channels(base, column, width, fill: tl.constexpr, COLUMNS: tl.constexpr):
    """[COLUMNS] of a vector in float32."""
    channel = tl.arange(0, COLUMNS)
    return tl.load(base + column + channel, mask=channel < width, other=fill).to(tl.float32)


@triton.jit
def state_place(base, index, k0, v0, K: tl.constexpr, V: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr):
    """Pointers [KEYS, VALUES] and mask of a tile of state number `index`, states being [K,V] one after another."""
    k, v = k0 + tl.arange(0, KEYS), v0 + tl.arange(0, VALUES)
    return base + index * (K * V) + k[:, None] * V + v[None, :], (k < K)[:, None] & (v < V)[None, :]


@triton.jit
def piece_of(piece, offsets, owner, first, tokens, pieces, PACKED: tl.constexpr):
    """Which sequence a piece (chunk or segment) belongs to, its rank in it, and where the sequence begins and ends.

    A dense batch is arithmetic; packed documents have a table of owners and of each document's first piece.
    """
    if PACKED:
        sequence = tl.load(owner + piece).to(tl.int64)
        rank = piece - tl.load(first + sequence).to(tl.int32)
        begin, end = tl.load(offsets + sequence).to(tl.int64), tl.load(offsets + sequence + 1).to(tl.int64)
    else:
        sequence = (piece // pieces).to(tl.int64)
        rank = piece % pieces
        begin = sequence * tokens
        end = begin + tokens
    return sequence, rank, begin, end
