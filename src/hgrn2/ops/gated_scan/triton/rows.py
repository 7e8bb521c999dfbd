"""Pieces that the kernels of this folder share: rows of channels in registers, complex numbers as pairs, documents.

A program owns one warp's width of channels and holds ROWS tokens of them at a time. All rows are loaded before the
first one is used: one program then has kilobytes on their way from memory, which is what a bandwidth-limited scan
needs, and the recurrence itself runs from registers. A row of complex numbers is a row of (re, im) pairs of twice the
width.
"""

# Triton's annotations know neither loops that it unrolls nor what it takes for a constant.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false

import triton
import triton.language as tl


@triton.jit
def place(segments, blocks, WIDTH: tl.constexpr):
    """This program's (sequence, segment, first real of its channels)."""
    program = tl.program_id(0)
    sequence = (program // blocks // segments).to(tl.int64)
    return sequence, (program // blocks) % segments, (program % blocks) * WIDTH


@triton.jit
def load_rows(start, step, left, inside, other, ROWS: tl.constexpr):
    """ROWS rows from the pointers `start` on, `step` apart; rows from number `left` on are `other`."""
    rows = ()
    for u in tl.static_range(ROWS):
        rows += (tl.load(start + u * step, mask=inside & (u < left), other=other),)
    return rows


@triton.jit
def neutral(WIDTH: tl.constexpr, COMPLEX: tl.constexpr):
    """A row of ones: a token with this gate and no input leaves the state as it is."""
    if COMPLEX:
        row = tl.where(tl.arange(0, WIDTH) % 2 == 0, 1.0, 0.0)
    else:
        row = tl.full((WIDTH,), 1.0, tl.float32)
    return row


@triton.jit
def parts(row, dtype: tl.constexpr, COMPLEX: tl.constexpr):
    """Real and imaginary part in the working dtype; a real row stands in for both."""
    row = row.to(dtype)
    if COMPLEX:
        real, imaginary = tl.split(tl.reshape(row, (row.shape[0] // 2, 2)))
    else:
        real, imaginary = row, row
    return real, imaginary


@triton.jit
def whole(real, imaginary, COMPLEX: tl.constexpr):
    """The row with these parts."""
    if COMPLEX:
        row = tl.reshape(tl.join(real, imaginary), (2 * real.shape[0],))
    else:
        row = real
    return row


@triton.jit
def multiply_add(ar, ai, br, bi, cr, ci, COMPLEX: tl.constexpr):
    """a b + c, with fused roundings written out so that every input dtype gets the same ones."""
    real = tl.fma(ar, br, cr)
    imaginary = ci
    if COMPLEX:
        real = tl.fma(-ai, bi, real)
        imaginary = tl.fma(ar, bi, tl.fma(ai, br, ci))
    return real, imaginary


@triton.jit
def product(ar, ai, br, bi, COMPLEX: tl.constexpr):
    """a b."""
    real = ar * br
    imaginary = real
    if COMPLEX:
        real = tl.fma(-ai, bi, real)
        imaginary = tl.fma(ai, br, ar * bi)
    return real, imaginary


@triton.jit
def conjugate_product(ar, ai, br, bi, COMPLEX: tl.constexpr):
    """conj(a) b."""
    real = ar * br
    imaginary = real
    if COMPLEX:
        real = tl.fma(ai, bi, real)
        imaginary = tl.fma(-ai, br, ar * bi)
    return real, imaginary


@triton.jit
def either(a, b):
    """Bits of a or b."""
    return a | b


@triton.jit
def marked(marks, left, ROWS: tl.constexpr):
    """A bit for each of the next ROWS tokens: whether a document has its mark there."""
    row = tl.arange(0, ROWS)
    here = tl.load(marks + row, mask=row < left, other=-1) >= 0
    return tl.reduce(tl.where(here, 1 << row, 0), 0, either)


@triton.jit
def document(values, mark, channels, reals):
    """Pointers to the row of `values` [N, reals] of the document whose mark is here."""
    return values + tl.load(mark).to(tl.int64) * reals + channels


@triton.jit
def initial(
    state, mark, channels, reals, inside, zero, dtype: tl.constexpr, STATE: tl.constexpr, COMPLEX: tl.constexpr
):
    """Parts of the initial state of the document that begins here."""
    if STATE:
        row = tl.load(document(state, mark, channels, reals), mask=inside, other=0.0)
    else:
        row = zero
    return parts(row, dtype, COMPLEX)


@triton.jit
def pass_through(products, sums, step, count, inside, one, hr, hi, COMPLEX: tl.constexpr):
    """h carried through `count` segments, each of which takes h to product · h + sum; in one order on every run."""
    TOGETHER: tl.constexpr = 8  # pyright: ignore[reportAssignmentType]
    for done in range(0, count, TOGETHER):
        gates = load_rows(products + done * step, step, count - done, inside, one, TOGETHER)
        inputs = load_rows(sums + done * step, step, count - done, inside, 0.0, TOGETHER)
        for u in tl.static_range(TOGETHER):
            fr, fi = parts(gates[u], hr.dtype, COMPLEX)
            xr, xi = parts(inputs[u], hr.dtype, COMPLEX)
            hr, hi = multiply_add(fr, fi, hr, hi, xr, xi, COMPLEX)
    return hr, hi


@triton.jit
def mark_documents(cu_seqlens, first, last, documents, tokens, first_row, direction, BLOCK: tl.constexpr):
    """Puts document n at its first and last token in the order of the scan; empty documents have neither.

    Offsets outside [0, tokens] are skipped: wrong ones must not write elsewhere, and the host never reads them.
    """
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = number < documents
    begin = tl.load(cu_seqlens + number, mask=known, other=0)
    end = tl.load(cu_seqlens + number + 1, mask=known, other=0) - 1
    good = known & (begin >= 0) & (begin <= end) & (end < tokens)
    early, late = first_row + direction * begin, first_row + direction * end
    tl.store(first + (early if direction > 0 else late), number, mask=good)
    tl.store(last + (late if direction > 0 else early), number, mask=good)
