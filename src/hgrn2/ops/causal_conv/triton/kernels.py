"""The short convolution of a block of tokens, and its gradients; programs know nothing of each other.

A program owns a warp's width of channels and ROWS tokens, and has all their rows on the way from memory before it uses
the first. Sums over taps and over tokens are made one after the other in one thread: in every dtype in the same order.
"""

import triton
import triton.language as tl

# Triton's annotations know neither loops that it unrolls nor what it takes for a constant.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportAttributeAccessIssue=false

COUNTS = ("tokens", "pieces", "blocks")
"""Arguments that must not be specialised: another length is not another kernel."""


@triton.jit
def place(pieces, blocks, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """This program's (sequence, number of its piece in it, first token, channels)."""
    program = tl.program_id(0)
    piece = (program // blocks) % pieces
    channels = (program % blocks) * WIDTH + tl.arange(0, WIDTH)
    return (program // blocks // pieces).to(tl.int64), piece, piece * ROWS, channels


@triton.jit
def load_rows(start, step, token, tokens, inside, COUNT: tl.constexpr):
    """Rows of the COUNT tokens from number `token` on; zeros where there is none."""
    rows = ()
    for u in tl.static_range(COUNT):
        there = (token + u >= 0) & (token + u < tokens)
        rows += (tl.load(start + (token + u) * step, mask=inside & there, other=0.0),)
    return rows


@triton.jit
def load_taps(weight, channels, inside, dtype: tl.constexpr, TAPS: tl.constexpr):
    """The weights [D,TAPS] of these channels, tap by tap."""
    taps = ()
    for j in tl.static_range(TAPS):
        taps += (tl.load(weight + channels * TAPS + j, mask=inside, other=0.0).to(dtype),)
    return taps


@triton.jit
def earlier(row, state, j, age, document, channels, channels_all, inside, STATE: tl.constexpr, TAPS: tl.constexpr):
    """The input j tokens before one that has `age` tokens of its document before it: `row`, or one of the state's."""
    dtype: tl.constexpr = state.dtype.element_ty
    past = tl.full(row.shape, 0.0, dtype)
    if STATE:
        place = (document * (TAPS - 1) + TAPS - 1 + age - j) * channels_all
        past = tl.load(state + place + channels, mask=inside & (j > age), other=0.0)
    return tl.where(j <= age, row.to(dtype), past)


@triton.jit
def convolve(
    x, weight, state, ages, documents, y, tokens, pieces, blocks, channels_all, x_batch, x_token,
    STATE: tl.constexpr, PACKED: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """y [B,T,D]. ages [T] counts the tokens of its document before each token; a dense batch needs no table."""
    sequence, _, token, channels = place(pieces, blocks, ROWS, WIDTH)
    inside = channels < channels_all
    dtype: tl.constexpr = state.dtype.element_ty
    step, wide = x_token + 0 * sequence, channels_all + 0 * sequence  # the same numbers in 64 bits
    xs = load_rows(x + sequence * x_batch + channels, step, token - (TAPS - 1), tokens, inside, ROWS + TAPS - 1)
    taps = load_taps(weight, channels, inside, dtype, TAPS)
    y += sequence * tokens * channels_all + channels
    for u in tl.static_range(ROWS):
        there = token + u < tokens
        age, document = token + u, sequence
        if PACKED:
            age = tl.load(ages + token + u, mask=there, other=0)
            document = tl.load(documents + token + u, mask=there, other=0).to(tl.int64)
        total = taps[0] * xs[u + TAPS - 1].to(dtype)
        for j in tl.static_range(1, TAPS):
            row = xs[u + TAPS - 1 - j]
            before = earlier(row, state, j, age, document, channels, channels_all, inside & there, STATE, TAPS)
            total = tl.fma(taps[j], before, total)
        tl.store(y + (token + u) * wide, total.to(y.dtype.element_ty), mask=inside & there)


@triton.jit
def convolve_back(
    x, weight, state, grad, grad_state, ages, left, documents, dx, partial, tokens, pieces, blocks, channels_all,
    x_batch, x_token, g_batch, g_token,
    STATE: tl.constexpr, PACKED: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """dx [B,T,D], and partial [B·pieces,TAPS,D]: this piece's share of the weights' gradient.

    left [T] counts the tokens of its document after each token; the last TAPS-1 of them are also final states.
    """
    sequence, piece, token, channels = place(pieces, blocks, ROWS, WIDTH)
    inside = channels < channels_all
    dtype: tl.constexpr = state.dtype.element_ty
    x_step, g_step, wide = x_token + 0 * sequence, g_token + 0 * sequence, channels_all + 0 * sequence
    xs = load_rows(x + sequence * x_batch + channels, x_step, token - (TAPS - 1), tokens, inside, ROWS + TAPS - 1)
    gs = load_rows(grad + sequence * g_batch + channels, g_step, token, tokens, inside, ROWS + TAPS - 1)
    taps = load_taps(weight, channels, inside, dtype, TAPS)
    dx += sequence * tokens * channels_all + channels
    sums = ()
    for _ in tl.static_range(TAPS):
        sums += (tl.full((WIDTH,), 0.0, dtype),)
    for u in tl.static_range(ROWS):
        there = token + u < tokens
        age, after, document = token + u, tokens - 1 - token - u, sequence
        if PACKED:
            age = tl.load(ages + token + u, mask=there, other=0)
            after = tl.load(left + token + u, mask=there, other=0)
            document = tl.load(documents + token + u, mask=there, other=0).to(tl.int64)
        g = gs[u].to(dtype)
        total = taps[0] * g
        old = sums
        sums = (tl.fma(g, xs[u + TAPS - 1].to(dtype), old[0]),)
        for j in tl.static_range(1, TAPS):
            total = tl.fma(taps[j], tl.where(j <= after, gs[u + j].to(dtype), 0.0), total)
            row = xs[u + TAPS - 1 - j]
            before = earlier(row, state, j, age, document, channels, channels_all, inside & there, STATE, TAPS)
            sums += (tl.fma(g, before, old[j]),)
        last = (document * (TAPS - 1) + TAPS - 2 - after) * channels_all
        total += tl.load(grad_state + last + channels, mask=inside & there & (after < TAPS - 1), other=0.0)
        tl.store(dx + (token + u) * wide, total.to(dx.dtype.element_ty), mask=inside & there)
    for j in tl.static_range(TAPS):
        row = (sequence * pieces + piece) * TAPS + j
        tl.store(partial + row * channels_all + channels, sums[j], mask=inside)
