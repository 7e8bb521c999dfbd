"""The backward kernels: the same scan over the incoming gradients, from the last token to the first.

With c the gradient that arrives at a token's state from later tokens (the final state's gradient at the last one):

    g_t = dh_t + c      dx_t = g_t      df_t = g_t h̄_{t-1}      c ← f̄_t g_t      (after the first token: dh_0)

h_{t-1} is computed again from x and f, ROWS tokens at a time, from the states that the forward left: h itself is never
read, and gradients come from the unrounded h whatever dtype it was stored in.
"""

# Triton's annotations know neither loops that it unrolls nor what it takes for a constant.
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

from hgrn2.ops.gated_scan.triton.forward_kernels import COUNTS
from hgrn2.ops.gated_scan.triton.rows import (
    conjugate_product,
    document,
    initial,
    load_rows,
    marked,
    multiply_add,
    neutral,
    parts,
    pass_through,
    place,
    whole,
)


@triton.jit(do_not_specialize=COUNTS)
def summarise_back(
    f, grad, grad_state, last, products, sums, tokens, length, segments, blocks, reals, first_row, direction,
    f_batch, f_token, g_batch, g_token,
    PACKED: tl.constexpr, COMPLEX: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """products, sums [B, segments, reals]: what each segment but the first does to the gradient that arrives."""
    sequence, segment, channel = place(segments - 1, blocks, WIDTH)
    segment += 1
    channels = channel + tl.arange(0, WIDTH)
    inside = channels < reals
    dtype: tl.constexpr = products.dtype.element_ty
    f += sequence * f_batch + first_row.to(tl.int64) * f_token + channels
    grad += sequence * g_batch + first_row.to(tl.int64) * g_token + channels
    f_step, g_step = direction.to(tl.int64) * f_token, direction.to(tl.int64) * g_token
    one = neutral(WIDTH, COMPLEX)
    pr, pi = parts(one, dtype, COMPLEX)
    cr, ci = parts(one * 0, dtype, COMPLEX)
    begin = segment * length
    end = tl.minimum(begin + length, tokens)
    rounds = (end - begin + ROWS - 1) // ROWS
    for i in range(rounds):
        s = begin + (rounds - 1 - i) * ROWS
        fs = load_rows(f + s * f_step, f_step, end - s, inside, one, ROWS)
        gs = load_rows(grad + s * g_step, g_step, end - s, inside, 0.0, ROWS)
        ends = marked(last + s, end - s, ROWS) if PACKED else 0
        for v in tl.static_range(ROWS):
            if PACKED and (ends >> (ROWS - 1 - v)) & 1:
                pr, pi = parts(one * 0, dtype, COMPLEX)
                final = document(grad_state, last + s + ROWS - 1 - v, channels, reals)
                cr, ci = parts(tl.load(final, mask=inside, other=0.0), dtype, COMPLEX)
            fr, fi = parts(fs[ROWS - 1 - v], dtype, COMPLEX)
            gr, gi = parts(gs[ROWS - 1 - v], dtype, COMPLEX)
            cr, ci = conjugate_product(fr, fi, gr + cr, gi + ci, COMPLEX)
            pr, pi = conjugate_product(fr, fi, pr, pi, COMPLEX)
    at = (sequence * segments + segment) * reals + channels
    tl.store(products + at, whole(pr, pi, COMPLEX), mask=inside)
    tl.store(sums + at, whole(cr, ci, COMPLEX), mask=inside)


@triton.jit(do_not_specialize=COUNTS)
def scan_back(
    x, f, state, grad, grad_state, first, last, products, sums, carries, dx, df, d_state,
    tokens, length, segments, blocks, reals, first_row, direction,
    x_batch, x_token, f_batch, f_token, g_batch, g_token,
    STATE: tl.constexpr, PACKED: tl.constexpr, COMPLEX: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """dx, df [B,T,reals] and d_state [N, reals]."""
    sequence, segment, channel = place(segments, blocks, WIDTH)
    channels = channel + tl.arange(0, WIDTH)
    inside = channels < reals
    dtype: tl.constexpr = carries.dtype.element_ty
    x += sequence * x_batch + first_row.to(tl.int64) * x_token + channels
    f += sequence * f_batch + first_row.to(tl.int64) * f_token + channels
    grad += sequence * g_batch + first_row.to(tl.int64) * g_token + channels
    x_step, f_step = direction.to(tl.int64) * x_token, direction.to(tl.int64) * f_token
    g_step, d_step = direction.to(tl.int64) * g_token, direction.to(tl.int64) * reals
    dx += (sequence * tokens + first_row) * reals + channels
    df += (sequence * tokens + first_row) * reals + channels
    carries += sequence * ((tokens + ROWS - 1) // ROWS) * reals + channels
    wide = reals + 0 * sequence  # the same number in 64 bits
    one = neutral(WIDTH, COMPLEX)
    after = one * 0
    if not PACKED:
        after = tl.load(grad_state + sequence * reals + channels, mask=inside, other=0.0)
    cr, ci = parts(after, dtype, COMPLEX)
    entry = (sequence * segments + segments - 1) * reals + channels
    later = segments - 1 - segment
    cr, ci = pass_through(products + entry, sums + entry, -reals, later, inside, one.to(dtype), cr, ci, COMPLEX)
    begin = segment * length
    end = tl.minimum(begin + length, tokens)
    rounds = (end - begin + ROWS - 1) // ROWS
    for i in range(rounds):
        s = begin + (rounds - 1 - i) * ROWS
        xs = load_rows(x + s * x_step, x_step, end - s, inside, 0.0, ROWS)
        fs = load_rows(f + s * f_step, f_step, end - s, inside, one, ROWS)
        gs = load_rows(grad + s * g_step, g_step, end - s, inside, 0.0, ROWS)
        carry = tl.load(carries + (s // ROWS) * wide, mask=inside, other=0.0)
        begins = marked(first + s, end - s, ROWS) if PACKED else 0
        ends = marked(last + s, end - s, ROWS) if PACKED else 0
        hr, hi = parts(carry, dtype, COMPLEX)
        real, imaginary = (), ()  # h before each of the tokens
        for u in tl.static_range(ROWS):
            if PACKED and (begins >> u) & 1:
                hr, hi = initial(state, first + s + u, channels, reals, inside, one * 0, dtype, STATE, COMPLEX)
            real += (hr,)
            imaginary += (hi,)
            fr, fi = parts(fs[u], dtype, COMPLEX)
            xr, xi = parts(xs[u], dtype, COMPLEX)
            hr, hi = multiply_add(fr, fi, hr, hi, xr, xi, COMPLEX)
        for v in tl.static_range(ROWS):
            t = s + ROWS - 1 - v
            if PACKED and (ends >> (ROWS - 1 - v)) & 1:
                final = document(grad_state, last + t, channels, reals)
                cr, ci = parts(tl.load(final, mask=inside, other=0.0), dtype, COMPLEX)
            gr, gi = parts(gs[ROWS - 1 - v], dtype, COMPLEX)
            gr, gi = gr + cr, gi + ci
            fr, fi = parts(fs[ROWS - 1 - v], dtype, COMPLEX)
            wr, wi = conjugate_product(real[ROWS - 1 - v], imaginary[ROWS - 1 - v], gr, gi, COMPLEX)
            cr, ci = conjugate_product(fr, fi, gr, gi, COMPLEX)
            there = inside & (t < end)
            tl.store(dx + t * d_step, whole(gr, gi, COMPLEX).to(dx.dtype.element_ty), mask=there)
            tl.store(df + t * d_step, whole(wr, wi, COMPLEX).to(df.dtype.element_ty), mask=there)
            if PACKED and (begins >> (ROWS - 1 - v)) & 1:
                tl.store(document(d_state, first + t, channels, reals), whole(cr, ci, COMPLEX), mask=inside)
    if not PACKED:
        tl.store(d_state + sequence * reals + channels, whole(cr, ci, COMPLEX), mask=inside & (segment == 0))
