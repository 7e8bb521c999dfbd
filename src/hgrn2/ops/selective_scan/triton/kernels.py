"""The kernels: a warp goes through a sequence with WIDTH channels; the N numbers of each lie in a thread's registers.

Nothing N times as large as x is written but, for the backward, the states every ROWS tokens, and these for one layer
at a time. Sums over channels, for the gradients of what all channels share, are left as one part for each program.
"""

# Triton's annotations know neither loops that it unrolls nor what it takes for a constant.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportOptionalOperand=false
# pyright: reportOperatorIssue=false

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def rows_of(start, token, left, inside, ROWS: tl.constexpr):
    """ROWS rows from the pointers `start` on, in float32; zeros from number `left` on."""
    rows = ()
    for u in tl.static_range(ROWS):
        rows += (tl.load(start + u * token, mask=inside & (u < left), other=0.0).to(tl.float32),)
    return rows


@triton.jit
def numbers_of(start, stride, inside, N: tl.constexpr):
    """The N numbers of each channel from the pointers `start` on."""
    numbers = ()
    for n in tl.static_range(N):
        numbers += (tl.load(start + n * stride, mask=inside, other=0.0).to(tl.float32),)
    return numbers


@triton.jit(do_not_specialize=("tokens",))
def scan(
    x, step, decay, write, read, state, y, carries, final, tokens, channels, x_batch, x_token, w_batch, w_token,
    r_batch, r_token, STATE: tl.constexpr, CARRIES: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """y [B,T,E] and final [B,E,N]; with CARRIES instead of y the states before each ROWS tokens, [B,⌈T/ROWS⌉,N,E]."""
    sequence = tl.program_id(1).to(tl.int64)
    x_token, w_token, r_token = x_token + 0 * sequence, w_token + 0 * sequence, r_token + 0 * sequence  # in 64 bits
    wide = channels + 0 * sequence
    e = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    inside = e < channels
    x += sequence * x_batch + e
    step += sequence * tokens * channels + e
    y += sequence * tokens * channels + e
    write += sequence * w_batch
    read += sequence * r_batch
    carries += sequence * ((tokens + ROWS - 1) // ROWS) * N * channels + e
    a = numbers_of(decay + e * N, 1, inside, N)
    if STATE:
        h = numbers_of(state + (sequence * channels + e) * N, 1, inside, N)
    else:
        h = ()
        for _ in tl.static_range(N):
            h += (tl.zeros((WIDTH,), tl.float32),)
    for s in range(0, tokens, ROWS):
        xs = rows_of(x + s * x_token, x_token, tokens - s, inside, ROWS)
        steps = rows_of(step + s * wide, wide, tokens - s, inside, ROWS)
        if CARRIES:
            place = carries + (s // ROWS) * (N * wide)
            for n in tl.static_range(N):
                tl.store(place + n * channels, h[n], mask=inside)
        for u in tl.static_range(ROWS):
            there = s + u < tokens
            scaled = steps[u] * LOG2E
            added = steps[u] * xs[u]
            out = tl.zeros((WIDTH,), tl.float32)
            new = ()
            for n in tl.static_range(N):
                w = tl.load(write + (s + u) * w_token + n, mask=there, other=0.0).to(tl.float32)
                value = tl.exp2(scaled * a[n]) * h[n] + added * w
                new += (value,)
                if not CARRIES:
                    r = tl.load(read + (s + u) * r_token + n, mask=there, other=0.0).to(tl.float32)
                    out += value * r
            h = new
            if not CARRIES:
                tl.store(y + (s + u) * wide, out.to(y.dtype.element_ty), mask=inside & there)
    if not CARRIES:
        for n in tl.static_range(N):
            tl.store(final + (sequence * channels + e) * N + n, h[n], mask=inside)


@triton.jit(do_not_specialize=("tokens",))
def scan_back(
    x, step, decay, write, read, carries, grad_y, grad_state, dx, d_step, d_decay, d_write, d_read, d_state, tokens,
    channels, x_batch, x_token, w_batch, w_token, r_batch, r_token, N: tl.constexpr, ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """dx, d_step [B,T,E], d_decay [B,E,N], d_state [B,E,N], and d_write, d_read [programs of channels,B,T,N]."""
    block, sequence = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    x_token, w_token, r_token = x_token + 0 * sequence, w_token + 0 * sequence, r_token + 0 * sequence  # in 64 bits
    wide, numbers = channels + 0 * sequence, N + 0 * sequence
    e = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    inside = e < channels
    rounds = (tokens + ROWS - 1) // ROWS
    x += sequence * x_batch + e
    write += sequence * w_batch
    read += sequence * r_batch
    here = sequence * tokens * channels + e
    carries += sequence * rounds * N * channels + e
    part = (block * tl.num_programs(1) + sequence) * tokens * N
    a = numbers_of(decay + e * N, 1, inside, N)
    c = numbers_of(grad_state + (sequence * channels + e) * N, 1, inside, N)
    da = ()
    for _ in tl.static_range(N):
        da += (tl.zeros((WIDTH,), tl.float32),)
    for i in range(rounds):
        s = (rounds - 1 - i) * ROWS
        xs = rows_of(x + s * x_token, x_token, tokens - s, inside, ROWS)
        steps = rows_of(step + here + s * wide, wide, tokens - s, inside, ROWS)
        gs = rows_of(grad_y + here + s * wide, wide, tokens - s, inside, ROWS)
        h = numbers_of(carries + (s // ROWS) * (N * wide), channels, inside, N)
        before = h  # of every token, one after the other
        for u in tl.static_range(ROWS - 1):
            new = ()
            for n in tl.static_range(N):
                w = tl.load(write + (s + u) * w_token + n, mask=s + u < tokens, other=0.0).to(tl.float32)
                new += (tl.exp2(steps[u] * LOG2E * a[n]) * h[n] + steps[u] * xs[u] * w,)
            h = new
            before += h
        for v in tl.static_range(ROWS):
            t = s + ROWS - 1 - v
            there = t < tokens
            now, value, gy = steps[ROWS - 1 - v], xs[ROWS - 1 - v], gs[ROWS - 1 - v]
            to_step = tl.zeros((WIDTH,), tl.float32)
            to_value = tl.zeros((WIDTH,), tl.float32)
            earlier, rates = (), ()
            for n in tl.static_range(N):
                w = tl.load(write + t * w_token + n, mask=there, other=0.0).to(tl.float32)
                r = tl.load(read + t * r_token + n, mask=there, other=0.0).to(tl.float32)
                faded = tl.exp2(now * LOG2E * a[n])
                old = faded * before[(ROWS - 1 - v) * N + n]
                g = gy * r + c[n]
                at = part + t * numbers + n
                tl.store(d_read + at, tl.sum(gy * (old + now * value * w), 0), mask=there)
                tl.store(d_write + at, tl.sum(g * now * value, 0), mask=there)
                to_step += g * (old * a[n] + value * w)
                to_value += g * now * w
                rates += (da[n] + g * old * now,)
                earlier += (faded * g,)
            c, da = earlier, rates
            far = here + t * wide
            tl.store(dx + far, to_value.to(dx.dtype.element_ty), mask=inside & there)
            tl.store(d_step + far, to_step, mask=inside & there)
    for n in tl.static_range(N):
        tl.store(d_state + (sequence * channels + e) * N + n, c[n], mask=inside)
        tl.store(d_decay + (sequence * channels + e) * N + n, da[n], mask=inside)
