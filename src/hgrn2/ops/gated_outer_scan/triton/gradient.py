"""The backward of a chunk, parallel over all chunks: gradients of q, k (or the gate's logits), v and of log f.

Only pairs of tokens that cross a token count for its log f, so nothing cancels (docs/math.md). The kernel is staged:
what one gradient needs is finished before the next one begins, and few tiles are alive at a time.

SPLIT is 6 or 0 here (see `output`): a third body for blocks of 16 tokens would take nearly half of the compile time.
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
    add_token_sums,
    load_channels,
    load_keys,
    load_rows,
    logits,
    matmul,
    narrow,
    piece_of,
    raw_gates,
    reciprocal,
    slope,
    split_of,
    state_place,
    store_rows,
    token_sums,
)
from hgrn2.ops.gated_outer_scan.triton.output import halving_scores, level_picks


@triton.jit
def level_pairs(q, k, log, w, dq, dk, dl, WORK: tl.constexpr, PRECISION: tl.constexpr):
    """Adds to dq, dk, d log f what pairs of different tokens give, exact for every gate.

    w holds do vᵀ below the diagonal and its transpose above, Z the rows and columns of a halving level in one (see
    `halving_scores`): one product Z W serves rows and columns alike.
    """
    token = tl.arange(0, CHUNK)
    apart = token[:, None] ^ token[None, :]
    before = token[:, None] <= token[None, :]
    for level in range(6):
        second = ((token >> level) & 1) == 1
        outward = tl.exp2(token_sums(log, level_picks(apart, before, second, level), WORK, PRECISION))
        factor = tl.where(second[None, :], q, k)
        change = outward * matmul(factor * outward, tl.where((apart >> level) == 1, w, 0.0), WORK, PRECISION)
        dq += tl.where(second[None, :], change, 0.0)
        dk += tl.where(second[None, :], 0.0, change)
        # a pair counts for the tokens between it and the middle: the transpose of the picks of `outward`
        back = ((apart >> level) == 0) & ((token[None, :] <= token[:, None]) == second[:, None])
        dl = add_token_sums(dl, factor * change, back, WORK, PRECISION)
    return dq, dk, dl


@triton.jit
def score_gradients(do, value, SPLIT: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr):
    """do_t · v_j as two tiles and its diagonal: [j,t] for j ≤ t and [t,j] for j ≤ t; below 6 one symmetric tile twice.

    The diagonal is in the two tiles with SPLIT 6, and beside them otherwise.
    """
    token = tl.arange(0, CHUNK)
    above = tl.dot(value, tl.trans(do), input_precision=PRECISION)
    below = tl.dot(do, tl.trans(value), input_precision=PRECISION)
    diagonal = tl.zeros([CHUNK], tl.float32)
    if SPLIT == 6:
        above = tl.where(token[:, None] <= token[None, :], above, 0.0)
        below = tl.where(token[:, None] >= token[None, :], below, 0.0)
    else:
        diagonal = tl.sum(tl.where(token[:, None] == token[None, :], above, 0.0), 0)
        above = tl.where(token[:, None] < token[None, :], above, 0.0)
        above = tl.where(token[:, None] > token[None, :], below, above)
        below = above
    return narrow(above, WORK), narrow(below, WORK), diagonal


@triton.jit
def load_query(
    q, origin, stride, column, length, width, scale, KEYS: tl.constexpr, WHOLE: tl.constexpr, REVERSE: tl.constexpr,
    ACT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """scale · act(q), [KEYS, CHUNK] in float32."""
    x = load_keys(q, origin, stride, column, length, width, 0.0, KEYS, WHOLE, REVERSE).to(tl.float32)
    return scale * activate(x, ACT, EXACT)


@triton.jit
def chunk_gradient(
    q, f, k, v, lower_bound_ptr, grad_o, states, grads, dq, df, dk, dv, d_lower_bound, origin, length, index, head,
    heads,
    q_stride, f_stride, k_stride, v_stride, o_stride, scale,
    K: tl.constexpr, V: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, RAW: tl.constexpr,
    LOWER_BOUND: tl.constexpr, ACT_IN: tl.constexpr, ACT_OUT: tl.constexpr, REVERSE: tl.constexpr, WORK: tl.constexpr,
    PRECISION: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """All gradients of one chunk and head; loops over the K-tiles."""
    EXACT: tl.constexpr = WORK == tl.float32
    WHOLE: tl.constexpr = K % KEYS == 0
    V_WHOLE: tl.constexpr = V == VALUES
    token = tl.arange(0, CHUNK)
    earlier = token[:, None] < token[None, :]
    after_or_at = token[:, None] >= token[None, :]
    do = load_rows(grad_o, origin, o_stride, head * V, length, V, 0.0, VALUES, V_WHOLE, REVERSE).to(WORK)
    value = load_rows(v, origin, v_stride, head * V, length, V, 0.0, VALUES, V_WHOLE, REVERSE)
    if ACT_IN != NONE:
        value = activate(value.to(tl.float32), ACT_IN, EXACT)
    value = value.to(WORK)
    above, below, diagonal = score_gradients(do, value, SPLIT, WORK, PRECISION)

    d_value = tl.zeros([VALUES, CHUNK], tl.float32)
    scores = tl.zeros([CHUNK, CHUNK], tl.float32)
    own = tl.zeros([CHUNK], tl.float32)
    for k0 in range(0, K, KEYS):
        channel, width = head * K + k0, K - k0
        x = load_keys(f, origin, f_stride, channel, length, width, float("inf") if RAW else 0.0, KEYS, WHOLE, REVERSE)
        lower_bound = tl.zeros([KEYS], tl.float32)
        if LOWER_BOUND:
            lower_bound = load_channels(lower_bound_ptr, channel, width, 0.0, KEYS)
        if RAW:
            up, down, key, forget, log = raw_gates(x.to(tl.float32), lower_bound, EXACT)
        else:
            log = LOG2E * tl.maximum(x.to(tl.float32), SMALLEST_LOG_GATE)
            key = load_keys(k, origin, k_stride, channel, length, width, 0.0, KEYS, WHOLE, REVERSE).to(tl.float32)

        # 1: what the chunk's own pairs and the state before it give; the gradient of q is then complete
        if SPLIT < 6:
            query = load_query(q, origin, q_stride, channel, length, width, scale, KEYS, WHOLE, REVERSE, ACT_OUT, EXACT)
            own += tl.sum(query * key, 0)
            scores += halving_scores(query, key, log, SPLIT, WORK, PRECISION)
        prefix = token_sums(log, token[:, None] <= token[None, :], WORK, PRECISION)
        total = tl.exp2(tl.sum(tl.where((token == CHUNK - 1)[None, :], prefix, 0.0), 1))
        place, inside = state_place(states, index, k0, 0, K, V, KEYS, VALUES)
        if SPLIT == 6:  # rows and columns with their decay from the chunk's start
            shrink = tl.exp2(-prefix)
            column = narrow(key * shrink, WORK)
            query = load_query(q, origin, q_stride, channel, length, width, scale, KEYS, WHOLE, REVERSE, ACT_OUT, EXACT)
            grow = tl.exp2(prefix)
            row = narrow(query * grow, WORK)
            scores = tl.dot(tl.trans(row), column, scores, input_precision=PRECISION)
            from_state = tl.dot(column, above, input_precision=PRECISION)
            state = tl.load(place, mask=inside, other=0.0)
            from_state = tl.dot(state, tl.trans(do), from_state, input_precision=PRECISION)
            d_query = grow * from_state
            crossing = row.to(tl.float32) * from_state
            d_key = tl.dot(row, below, input_precision=PRECISION)
            # the very factors of the product: with unrounded ones the difference would not cancel where it must
            crossing -= column.to(tl.float32) * d_key
            dl = token_sums(crossing, after_or_at, WORK, PRECISION)
        else:
            state = tl.load(place, mask=inside, other=0.0)
            from_state = tl.exp2(prefix) * tl.dot(state, tl.trans(do), input_precision=PRECISION)
            dl = token_sums(query * from_state, after_or_at, WORK, PRECISION)
            d_query = from_state + diagonal[None, :] * key
            d_key = diagonal[None, :] * query
            d_query, d_key, dl = level_pairs(query, key, log, above, d_query, d_key, dl, WORK, PRECISION)
        raw = load_keys(q, origin, q_stride, channel, length, width, 0.0, KEYS, WHOLE, REVERSE).to(tl.float32)
        d_query = scale * d_query * slope(raw, ACT_OUT, EXACT)
        store_rows(dq, tl.trans(d_query), origin, heads * K, channel, length, width, WHOLE, REVERSE)

        # 2: what arrives after the chunk
        place, inside = state_place(grads, index, k0, 0, K, V, KEYS, VALUES)
        after = tl.load(place, mask=inside, other=0.0)
        from_after = tl.dot(after, tl.trans(value), input_precision=PRECISION)
        if SPLIT == 6:
            from_after *= total[:, None]
            dl = add_token_sums(dl, column.to(tl.float32) * from_after, earlier, WORK, PRECISION)
            d_key = shrink * (d_key + from_after)
            reach = column.to(tl.float32) * total[:, None]
        else:
            suffix = tl.exp2(token_sums(log, token[:, None] > token[None, :], WORK, PRECISION))
            reach = key * suffix
            dl = add_token_sums(dl, reach * from_after, earlier, WORK, PRECISION)
            d_key += suffix * from_after
        d_value = tl.dot(tl.trans(after), narrow(reach, WORK), d_value, input_precision=PRECISION)
        place, inside = state_place(states, index, k0, 0, K, V, KEYS, VALUES)
        state = tl.load(place, mask=inside, other=0.0)
        through = tl.sum(state.to(tl.float32) * after.to(tl.float32), 1)
        dl += (total * through)[:, None]

        # 3: through the gates
        if RAW:
            x = load_keys(f, origin, f_stride, channel, length, width, float("inf"), KEYS, WHOLE, REVERSE)
            up, down, key, forget, log = raw_gates(logits(x), lower_bound, EXACT)
            both = down * (dl * reciprocal(forget) - d_key)
            dx = (1.0 - lower_bound)[:, None] * up * both
            store_rows(df, tl.trans(dx), origin, heads * K, channel, length, width, WHOLE, REVERSE)
            if LOWER_BOUND:
                each = k0 + tl.arange(0, KEYS)
                tl.store(d_lower_bound + index * K + each, tl.sum(both, 1), mask=each < K)
        else:
            store_rows(df, tl.trans(dl), origin, heads * K, channel, length, width, WHOLE, REVERSE)
            store_rows(dk, tl.trans(d_key), origin, heads * K, channel, length, width, WHOLE, REVERSE)

    if SPLIT < 6:
        scores = tl.where(token[:, None] == token[None, :], own[:, None], scores)
    scores = narrow(tl.where(after_or_at, scores, 0.0), WORK)
    d_value = tl.trans(tl.dot(tl.trans(do), scores, d_value, input_precision=PRECISION))
    if ACT_IN != NONE:
        other = load_rows(v, origin, v_stride, head * V, length, V, 0.0, VALUES, V_WHOLE, REVERSE)
        d_value = d_value * slope(other.to(tl.float32), ACT_IN, EXACT)
    store_rows(dv, d_value, origin, heads * V, head * V, length, V, V_WHOLE, REVERSE)


@triton.jit(do_not_specialize=["tokens", "chunks", "sequences"])
def gradient(
    q, f, k, v, lower_bound_ptr, grad_o, states, grads, dq, df, dk, dv, d_lower_bound, offsets, owner, first,
    tokens, chunks, sequences, heads, q_stride, f_stride, k_stride, v_stride, o_stride, scale,
    K: tl.constexpr, V: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, RAW: tl.constexpr,
    LOWER_BOUND: tl.constexpr, QUICK: tl.constexpr, ACT_IN: tl.constexpr, ACT_OUT: tl.constexpr, PACKED: tl.constexpr,
    REVERSE: tl.constexpr, WORK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: a chunk and a head, all of V. QUICK: lower bounds choose how scores are split.

    states: S at each chunk's start; grads: G arriving after it. d_bound [chunks, H*K] takes each chunk's part of dγ.
    """
    head = tl.program_id(0) % heads
    piece = tl.program_id(0) // heads
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
        chunk_gradient(
            q, f, k, v, lower_bound_ptr, grad_o, states, grads, dq, df, dk, dv, d_lower_bound, origin, length, index,
            head, heads,
            q_stride, f_stride, k_stride, v_stride, o_stride, scale, K, V, KEYS, VALUES, RAW, LOWER_BOUND, ACT_IN,
            ACT_OUT,
            REVERSE, WORK, PRECISION, 6,
        )  # fmt: skip
    else:
        chunk_gradient(
            q, f, k, v, lower_bound_ptr, grad_o, states, grads, dq, df, dk, dv, d_lower_bound, origin, length, index,
            head, heads,
            q_stride, f_stride, k_stride, v_stride, o_stride, scale, K, V, KEYS, VALUES, RAW, LOWER_BOUND, ACT_IN,
            ACT_OUT,
            REVERSE, WORK, PRECISION, 0,
        )  # fmt: skip
