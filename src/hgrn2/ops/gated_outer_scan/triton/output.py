"""The forward's second pass, parallel over all chunks: o = (q ⊙ pb) S + P v with exact scores P for every gate.

By SPLIT: with the smallest lower bound of a head from 0.3 on the scores of a chunk are one product (6); from 0.008 on
those of 16 tokens are, and halving joins them (4); otherwise halving does all (0). Lower bounds are on the GPU, so is
the choice.
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
    matmul,
    narrow,
    piece_of,
    raw_gates,
    split_of,
    state_place,
    store_rows,
    token_sums,
)


@triton.jit
def level_picks(apart, before, second, level):
    """[s,t]: the tokens s whose decay lies between token t and the middle of t's block of 2^(level+1) tokens.

    apart = s xor t; before = s ≤ t; second = t lies in the second half.
    """
    return ((apart >> level) == 0) & (before == second[None, :])


@triton.jit
def halving_scores(q, k, log, SPLIT: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr):
    """Scores of all pairs of different tokens, [CHUNK, CHUNK]; the lower triangle is P, of the tile's channels only.

    Blocks of 2^SPLIT tokens are one product from the block's start; above, rows of a block's second half meet columns
    of its first with the decay split at the middle, both in one tile Z, and Zᵀ Z holds their scores.
    """
    token = tl.arange(0, CHUNK)
    apart = token[:, None] ^ token[None, :]
    before = token[:, None] <= token[None, :]
    scores = tl.zeros([CHUNK, CHUNK], tl.float32)
    if SPLIT > 0:
        inner = token_sums(log, ((apart >> SPLIT) == 0) & before, WORK, PRECISION)
        block = matmul(tl.trans(narrow(q * tl.exp2(inner), WORK)), k * tl.exp2(-inner), WORK, PRECISION)
        scores = tl.where((apart >> SPLIT) == 0, block, 0.0)
    for level in range(SPLIT, 6):
        second = ((token >> level) & 1) == 1
        outward = token_sums(log, level_picks(apart, before, second, level), WORK, PRECISION)
        z = narrow(tl.where(second[None, :], q, k) * tl.exp2(outward), WORK)
        scores += tl.where((apart >> level) == 1, tl.dot(tl.trans(z), z, input_precision=PRECISION), 0.0)
    return scores


@triton.jit
def chunk_output(
    q, f, k, v, lower_bound_ptr, states, o, origin, length, index, head, v0, heads, q_stride, f_stride, k_stride,
    v_stride, scale,
    K: tl.constexpr, V: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, RAW: tl.constexpr,
    LOWER_BOUND: tl.constexpr, ACT_IN: tl.constexpr, ACT_OUT: tl.constexpr, REVERSE: tl.constexpr, WORK: tl.constexpr,
    PRECISION: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """o of one chunk and head, and of the tile of V from v0 on."""
    EXACT: tl.constexpr = WORK == tl.float32
    WHOLE: tl.constexpr = K % KEYS == 0
    V_WHOLE: tl.constexpr = V % VALUES == 0
    token = tl.arange(0, CHUNK)
    result = tl.zeros([CHUNK, VALUES], tl.float32)
    scores = tl.zeros([CHUNK, CHUNK], tl.float32)
    diagonal = tl.zeros([CHUNK], tl.float32)
    for k0 in range(0, K, KEYS):
        channel, width = head * K + k0, K - k0
        x = load_keys(f, origin, f_stride, channel, length, width, float("inf") if RAW else 0.0, KEYS, WHOLE, REVERSE)
        query = load_keys(q, origin, q_stride, channel, length, width, 0.0, KEYS, WHOLE, REVERSE).to(tl.float32)
        query = scale * activate(query, ACT_OUT, EXACT)
        lower_bound = tl.zeros([KEYS], tl.float32)
        if LOWER_BOUND:
            lower_bound = load_channels(lower_bound_ptr, channel, width, 0.0, KEYS)
        if RAW:
            up, down, key, forget, log = raw_gates(x.to(tl.float32), lower_bound, EXACT)
        else:
            log = LOG2E * tl.maximum(x.to(tl.float32), SMALLEST_LOG_GATE)
            key = load_keys(k, origin, k_stride, channel, length, width, 0.0, KEYS, WHOLE, REVERSE).to(tl.float32)
        if SPLIT < 6:
            diagonal += tl.sum(query * key, 0)
            scores += halving_scores(query, key, log, SPLIT, WORK, PRECISION)
        prefix = token_sums(log, token[:, None] <= token[None, :], WORK, PRECISION)
        row = narrow(query * tl.exp2(prefix), WORK)
        if SPLIT == 6:
            column = narrow(key * tl.exp2(-prefix), WORK)
            scores = tl.dot(tl.trans(row), column, scores, input_precision=PRECISION)
        place, inside = state_place(states, index, k0, v0, K, V, KEYS, VALUES)
        state = tl.load(place, mask=inside, other=0.0)
        result = tl.dot(tl.trans(row), state, result, input_precision=PRECISION)

    value = load_rows(v, origin, v_stride, head * V + v0, length, V - v0, 0.0, VALUES, V_WHOLE, REVERSE)
    if ACT_IN != NONE:
        value = activate(value.to(tl.float32), ACT_IN, EXACT)
    if SPLIT < 6:
        scores = tl.where(token[:, None] == token[None, :], diagonal[:, None], scores)
    scores = tl.where(token[:, None] >= token[None, :], scores, 0.0)
    result = tl.dot(narrow(scores, WORK), value.to(WORK), result, input_precision=PRECISION)
    store_rows(o, result, origin, heads * V, head * V + v0, length, V - v0, V_WHOLE, REVERSE)


@triton.jit(do_not_specialize=["tokens", "chunks", "sequences"])
def output_kernel(
    q, f, k, v, lower_bound_ptr, states, o, offsets, owner, first, tokens, chunks, sequences, heads,
    q_stride, f_stride, k_stride, v_stride, scale,
    K: tl.constexpr, V: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, RAW: tl.constexpr,
    LOWER_BOUND: tl.constexpr, QUICK: tl.constexpr, ACT_IN: tl.constexpr, ACT_OUT: tl.constexpr, PACKED: tl.constexpr,
    REVERSE: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: o of a chunk, a head and a tile of V. QUICK: lower bounds choose how scores are split."""
    v_tiles: tl.constexpr = (V + VALUES - 1) // VALUES
    v0 = (tl.program_id(0) % v_tiles) * VALUES
    head = (tl.program_id(0) // v_tiles) % heads
    piece = tl.program_id(0) // v_tiles // heads
    if PACKED:
        if tl.load(owner + piece) >= sequences:
            return
    sequence, rank, begin, end = piece_of(piece, offsets, owner, first, tokens, chunks, PACKED)
    origin = begin + rank.to(tl.int64) * CHUNK
    length = tl.minimum(end - origin, CHUNK).to(tl.int32)
    if REVERSE:
        origin = begin + end - 1 - origin
    index = piece.to(tl.int64) * heads + head
    split = 0
    if QUICK:
        split = split_of(lower_bound_ptr, head, K)
    if split == 6:
        chunk_output(
            q, f, k, v, lower_bound_ptr, states, o, origin, length, index, head, v0, heads, q_stride, f_stride,
            k_stride,
            v_stride, scale, K, V, KEYS, VALUES, RAW, LOWER_BOUND, ACT_IN, ACT_OUT, REVERSE, WORK, PRECISION, 6,
        )  # fmt: skip
    elif split == 4:
        chunk_output(
            q, f, k, v, lower_bound_ptr, states, o, origin, length, index, head, v0, heads, q_stride, f_stride,
            k_stride,
            v_stride, scale, K, V, KEYS, VALUES, RAW, LOWER_BOUND, ACT_IN, ACT_OUT, REVERSE, WORK, PRECISION, 4,
        )  # fmt: skip
    else:
        chunk_output(
            q, f, k, v, lower_bound_ptr, states, o, origin, length, index, head, v0, heads, q_stride, f_stride,
            k_stride,
            v_stride, scale, K, V, KEYS, VALUES, RAW, LOWER_BOUND, ACT_IN, ACT_OUT, REVERSE, WORK, PRECISION, 0,
        )  # fmt: skip
