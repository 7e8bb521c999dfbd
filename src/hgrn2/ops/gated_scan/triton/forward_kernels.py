"""The forward kernels: what each segment of a sequence does to a state, and the scan that writes h.

`summarise` is needed only where there are too few channels to fill a GPU with one program for each: the sequence is cut
into segments, and a segment takes any state h to (product of its gates) · h + (its scan from zero).
"""

# Triton's annotations know neither loops that it unrolls nor what it takes for a constant.
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

from hgrn2.ops.gated_scan.triton.rows import (
    document,
    initial,
    load_rows,
    marked,
    multiply_add,
    neutral,
    parts,
    pass_through,
    place,
    product,
    whole,
)

COUNTS = ("tokens", "length", "segments", "blocks", "first_row", "direction")
"""Arguments that must not be specialised: another length, or reading backwards, is not another kernel."""


@triton.jit(do_not_specialize=COUNTS)
def summarise(
    x, f, state, first, products, sums, tokens, length, segments, blocks, reals, first_row, direction,
    x_batch, x_token, f_batch, f_token,
    STATE: tl.constexpr, PACKED: tl.constexpr, COMPLEX: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """products, sums [B, segments, reals] for all segments but the last, which nobody enters from."""
    sequence, segment, channel = place(segments - 1, blocks, WIDTH)
    channels = channel + tl.arange(0, WIDTH)
    inside = channels < reals
    dtype: tl.constexpr = products.dtype.element_ty
    x += sequence * x_batch + first_row.to(tl.int64) * x_token + channels
    f += sequence * f_batch + first_row.to(tl.int64) * f_token + channels
    x_step, f_step = direction.to(tl.int64) * x_token, direction.to(tl.int64) * f_token
    one = neutral(WIDTH, COMPLEX)
    pr, pi = parts(one, dtype, COMPLEX)
    hr, hi = parts(one * 0, dtype, COMPLEX)
    begin = segment * length
    for s in range(begin, begin + length, ROWS):  # only the last segment, which is not here, may be shorter
        xs = load_rows(x + s * x_step, x_step, ROWS, inside, 0.0, ROWS)
        fs = load_rows(f + s * f_step, f_step, ROWS, inside, one, ROWS)
        begins = marked(first + s, ROWS, ROWS) if PACKED else 0
        for u in tl.static_range(ROWS):
            if PACKED and (begins >> u) & 1:
                pr, pi = parts(one * 0, dtype, COMPLEX)
                hr, hi = initial(state, first + s + u, channels, reals, inside, one * 0, dtype, STATE, COMPLEX)
            fr, fi = parts(fs[u], dtype, COMPLEX)
            xr, xi = parts(xs[u], dtype, COMPLEX)
            hr, hi = multiply_add(fr, fi, hr, hi, xr, xi, COMPLEX)
            pr, pi = product(fr, fi, pr, pi, COMPLEX)
    at = (sequence * segments + segment) * reals + channels
    tl.store(products + at, whole(pr, pi, COMPLEX), mask=inside)
    tl.store(sums + at, whole(hr, hi, COMPLEX), mask=inside)


@triton.jit(do_not_specialize=COUNTS)
def scan(
    x, f, state, first, last, products, sums, h, carries, final, tokens, length, segments, blocks, reals, first_row,
    direction, x_batch, x_token, f_batch, f_token,
    STATE: tl.constexpr, PACKED: tl.constexpr, COMPLEX: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """h [B,T,reals]; carries [B, ⌈T/ROWS⌉, reals], the state before each ROWS tokens; final [N, reals]."""
    sequence, segment, channel = place(segments, blocks, WIDTH)
    channels = channel + tl.arange(0, WIDTH)
    inside = channels < reals
    dtype: tl.constexpr = carries.dtype.element_ty
    x += sequence * x_batch + first_row.to(tl.int64) * x_token + channels
    f += sequence * f_batch + first_row.to(tl.int64) * f_token + channels
    h += (sequence * tokens + first_row) * reals + channels
    carries += sequence * ((tokens + ROWS - 1) // ROWS) * reals + channels
    wide = reals + 0 * sequence  # the same number in 64 bits
    x_step, f_step = direction.to(tl.int64) * x_token, direction.to(tl.int64) * f_token
    h_step = direction.to(tl.int64) * reals
    one = neutral(WIDTH, COMPLEX)
    start = one * 0
    if STATE and not PACKED:
        start = tl.load(state + sequence * reals + channels, mask=inside, other=0.0)
    hr, hi = parts(start, dtype, COMPLEX)
    entry = sequence * segments * reals + channels
    hr, hi = pass_through(products + entry, sums + entry, reals, segment, inside, one.to(dtype), hr, hi, COMPLEX)
    begin = segment * length
    end = tl.minimum(begin + length, tokens)
    for s in range(begin, end, ROWS):
        xs = load_rows(x + s * x_step, x_step, end - s, inside, 0.0, ROWS)
        fs = load_rows(f + s * f_step, f_step, end - s, inside, one, ROWS)
        begins = marked(first + s, end - s, ROWS) if PACKED else 0
        ends = marked(last + s, end - s, ROWS) if PACKED else 0
        tl.store(carries + (s // ROWS) * wide, whole(hr, hi, COMPLEX), mask=inside)
        for u in tl.static_range(ROWS):
            if PACKED and (begins >> u) & 1:
                hr, hi = initial(state, first + s + u, channels, reals, inside, one * 0, dtype, STATE, COMPLEX)
            fr, fi = parts(fs[u], dtype, COMPLEX)
            xr, xi = parts(xs[u], dtype, COMPLEX)
            hr, hi = multiply_add(fr, fi, hr, hi, xr, xi, COMPLEX)
            row = whole(hr, hi, COMPLEX)
            tl.store(h + (s + u) * h_step, row.to(h.dtype.element_ty), mask=inside & (s + u < end))
            if PACKED and (ends >> u) & 1:
                tl.store(document(final, last + s + u, channels, reals), row, mask=inside)
    if not PACKED:
        tl.store(final + sequence * reals + channels, whole(hr, hi, COMPLEX), mask=inside & (segment == segments - 1))
