"""Kernels that scan chunks with a tile of the state in registers, and the scan that joins segments of long sequences.

Forward, and with GRAD the gradient that arrives at the state, from the last chunk to the first:

    S ← Diag(tot) S + (k ⊙ w)ᵀ v          G ← Diag(tot) G + (q ⊙ pb)ᵀ do

Each K-tile is independent of the others, so a program holds [KEYS, VALUES] of one head. Where sequences and heads alone
are too few for the processor, sequences are cut into segments: `scan_chunks` gives each segment's decay and local
state, `join` turns them into start states, and a second `scan_chunks` writes the chunk states.
"""

# Conditions on compile-time constants stay apart from others, and a tuple is unpacked into names of one type each.
# ruff: noqa: SIM102, SIM300, RUF059
# Pyright takes the language's constants for objects of its own.
# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportCallIssue=false

import triton
import triton.language as tl

from hgrn2.ops.gated_outer_scan.triton.gates import (
    CHUNK,
    LOG2E,
    NONE,
    SMALLEST_LOG_GATE,
    activate,
    load_channels,
    load_keys,
    load_rows,
    narrow,
    piece_of,
    raw_gates,
    state_place,
    token_sums,
)


@triton.jit(do_not_specialize=["tokens", "pieces", "chunks", "span", "sequences"])
def scan_chunks(
    f, left, right, lower_bound_ptr, start, states, final, decays, offsets, owner, first, first_chunk,
    tokens, pieces, chunks, span, sequences, heads, f_stride, left_stride, right_stride, scale,
    K: tl.constexpr, V: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, RAW: tl.constexpr,
    GRAD: tl.constexpr, LOWER_BOUND: tl.constexpr, ACT: tl.constexpr, START: tl.constexpr, STATES: tl.constexpr,
    FINAL: tl.constexpr, DECAYS: tl.constexpr, PACKED: tl.constexpr, REVERSE: tl.constexpr, WORK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: a segment of one sequence, a head, a tile of the state.

    left: k, or q with GRAD (of raw projections k comes from f); right: v, or the gradient of o with GRAD. ACT is the
    activation of right (forward) or of left (GRAD). START, STATES, FINAL, DECAYS: which of those tensors there are.
    """
    EXACT: tl.constexpr = WORK == tl.float32
    WHOLE: tl.constexpr = K % KEYS == 0
    k_tiles: tl.constexpr = (K + KEYS - 1) // KEYS
    v_tiles: tl.constexpr = (V + VALUES - 1) // VALUES
    tile = tl.program_id(0) % (k_tiles * v_tiles)
    head = (tl.program_id(0) // (k_tiles * v_tiles)) % heads
    piece = tl.program_id(0) // (k_tiles * v_tiles) // heads
    if PACKED:
        if tl.load(owner + piece) >= sequences:
            return
    sequence, rank, begin, end = piece_of(piece, offsets, owner, first, tokens, pieces, PACKED)
    k0, v0 = (tile // v_tiles) * KEYS, (tile % v_tiles) * VALUES
    before = sequence * chunks
    if PACKED:
        before = tl.load(first_chunk + sequence).to(tl.int64)
    low = rank * span
    count = tl.maximum(tl.minimum(span, tl.cdiv(end - begin, CHUNK).to(tl.int32) - low), 0)
    index = piece.to(tl.int64) * heads + head

    token = tl.arange(0, CHUNK)
    if GRAD:
        picks = token[:, None] <= token[None, :]
    else:
        picks = token[:, None] > token[None, :]
    lower_bound = tl.zeros([KEYS], tl.float32)
    if LOWER_BOUND:
        lower_bound = load_channels(lower_bound_ptr, head * K + k0, K - k0, 0.0, KEYS)
    state = tl.zeros([KEYS, VALUES], tl.float32)
    total_decay = tl.zeros([KEYS], tl.float32)
    if START:
        start_place, inside = state_place(start, index, k0, v0, K, V, KEYS, VALUES)
        state = tl.load(start_place, mask=inside, other=0.0).to(tl.float32)

    for step in range(count):
        chunk = low + (count - 1 - step if GRAD else step)
        origin = begin + chunk.to(tl.int64) * CHUNK
        length = tl.minimum(end - origin, CHUNK).to(tl.int32)
        if REVERSE:
            origin = begin + end - 1 - origin
        if STATES:
            place, here = state_place(states, (before + chunk) * heads + head, k0, v0, K, V, KEYS, VALUES)
            tl.store(place, state.to(states.dtype.element_ty), mask=here)
        channel, width = head * K + k0, K - k0
        x = load_keys(f, origin, f_stride, channel, length, width, float("inf") if RAW else 0.0, KEYS, WHOLE, REVERSE)
        y = load_rows(right, origin, right_stride, head * V + v0, length, V - v0, 0.0, VALUES, V % VALUES == 0, REVERSE)
        if RAW:
            up, down, key, forget, log = raw_gates(x.to(tl.float32), lower_bound, EXACT)
        else:
            log = LOG2E * tl.maximum(x.to(tl.float32), SMALLEST_LOG_GATE)
        if GRAD or not RAW:
            factor = load_keys(left, origin, left_stride, channel, length, width, 0.0, KEYS, WHOLE, REVERSE).to(
                tl.float32
            )
            if GRAD:
                factor = scale * activate(factor, ACT, EXACT)
        else:
            factor = key
        if not GRAD and ACT != NONE:
            y = activate(y.to(tl.float32), ACT, EXACT)
        sums = token_sums(log, picks, WORK, PRECISION)
        # of the chunk: the last prefix sum, or the first suffix sum (taken from sums, log keeps one layout)
        total = (
            tl.where((token == CHUNK - 1)[None, :], sums, 0.0)
            if GRAD
            else tl.where((token == 0)[None, :], sums + log, 0.0)
        )
        decay = tl.sum(total, 1)
        total_decay += decay
        factor = narrow(factor * tl.exp2(sums), WORK)
        # the activation of a row without a token may not be 0 (sigmoid), but its factor is: k = 0, do = 0
        state = tl.dot(factor, y.to(WORK), state * tl.exp2(decay)[:, None], input_precision=PRECISION)

    if FINAL:
        final_place, within = state_place(final, index, k0, v0, K, V, KEYS, VALUES)
        tl.store(final_place, state, mask=within)
    if DECAYS:
        if v0 == 0:
            each = k0 + tl.arange(0, KEYS)
            tl.store(decays + index * K + each, total_decay, mask=each < K)


@triton.jit(do_not_specialize=["pieces", "sequences"])
def join(
    local, decays, start, starts, final, first, pieces, sequences, heads,
    K: tl.constexpr, V: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, GRAD: tl.constexpr,
    START: tl.constexpr, FINAL: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Start state of every segment of a sequence from the segments' local states and log2 decays, and the final one."""
    k_tiles: tl.constexpr = (K + KEYS - 1) // KEYS
    v_tiles: tl.constexpr = (V + VALUES - 1) // VALUES
    tile = tl.program_id(0) % (k_tiles * v_tiles)
    head = (tl.program_id(0) // (k_tiles * v_tiles)) % heads
    sequence = tl.program_id(0) // (k_tiles * v_tiles) // heads
    k0, v0 = (tile // v_tiles) * KEYS, (tile % v_tiles) * VALUES
    low = sequence * pieces
    count = pieces
    if PACKED:
        low = tl.load(first + sequence).to(tl.int32)
        count = tl.load(first + sequence + 1).to(tl.int32) - low
    state = tl.zeros([KEYS, VALUES], tl.float32)
    index = sequence.to(tl.int64) * heads + head
    if START:
        place, inside = state_place(start, index, k0, v0, K, V, KEYS, VALUES)
        state = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    for step in range(count):
        piece = (low + (count - 1 - step if GRAD else step)).to(tl.int64) * heads + head
        place, inside = state_place(starts, piece, k0, v0, K, V, KEYS, VALUES)
        tl.store(place, state, mask=inside)
        place, inside = state_place(local, piece, k0, v0, K, V, KEYS, VALUES)
        decay = load_channels(decays, piece * K + k0, K - k0, 0.0, KEYS)
        state = state * tl.exp2(decay)[:, None] + tl.load(place, mask=inside, other=0.0)
    if FINAL:
        final_place, inside = state_place(final, index, k0, v0, K, V, KEYS, VALUES)
        tl.store(final_place, state, mask=inside)
