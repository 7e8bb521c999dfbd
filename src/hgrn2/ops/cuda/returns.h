// From the products back to the projections, along one channel at a time: dq, dk, d log f and through the gates.
//
// d log f counts, for token t, the pairs j < t <= i that cross it: sums of q_i dq_i over rows from t on and of k_j dk_j
// over columns before t, in every block that t shares with them. Nothing is subtracted, so nothing cancels.
// What is kept in registers at a time is kept small: local memory would go past the L1 cache, which is all shared memory.
#pragma once
#include "products.h"

struct Shares {  // what a group gives to the d log f of other groups
    float rows, columns, level[2];
};
struct Channel {  // of 8 tokens; f and k follow from s = σ(x) and n = σ(-x)
    float s[ROWS], n[ROWS], q[ROWS], dl[ROWS], lower, rest;
};
DEVICE float gate(const Channel& x, int r) { return x.lower + x.rest * x.s[r]; }
DEVICE float key(const Channel& x, int r) { return x.rest * x.n[r]; }

struct Edges {  // of one channel: products of whole groups before and after a group, in its blocks of 16, 32, 64 tokens
    float before[3], after[3];
};
DEVICE Edges edges(u32 totals, int group, u32 channel) {
    Edges x;
    float a = 1.0f, z = 1.0f;
#pragma unroll
    for (int level = 0; level < 3; level++) {
        float s = 1.0f;
        int first = (group >> level ^ 1) << level;
#pragma unroll
        for (int n = 0; n < 4; n++)
            if (n < 1 << level) s *= ldsf(totals + ((first + n) * WIDTH + channel) * 4);
        bool second = group >> level & 1;
        x.before[level] = a *= second ? s : 1.0f;
        x.after[level] = z *= second ? 1.0f : s;
    }
    return x;
}

DEVICE void read_channel(Channel& x, float (&slope)[ROWS], const Problem& p, u32 column, int c, const Bound& b, int left) {
    x.lower = b.lower[c];
    x.rest = b.rest[c];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float raw = half_of(lds32(row_at(column, At::RAW_F, r)), c);
        float t = exp2_fast(smaller(-1.4426950408889634f * raw, 86.5f)), s = reciprocal(1.0f + t);
        x.s[r] = s;
        x.n[r] = t * s;
        raw = half_of(lds32(row_at(column, At::RAW_Q, r)), c);
        x.q[r] = p.scale * raw;
        slope[r] = p.scale;
        if (p.output_activation != NONE) {
            float y = sigmoid(raw), other = 1.0f - y;
            bool silu = p.output_activation == SILU;
            x.q[r] = (silu ? x.q[r] : p.scale) * y;
            slope[r] = p.scale * y * (silu ? 1.0f + raw * other : other);
        }
    }
    if (left < ROWS) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            x.s[r] = r < left ? x.s[r] : 1.0f;
            x.n[r] = r < left ? x.n[r] : 0.0f;
        }
    }
}
// Products inside the two blocks of 4 tokens: from a block's start, or to its end.
DEVICE void inner_products(float (&y)[ROWS], const Channel& x, bool from_start) {
#pragma unroll
    for (int b = 0; b < ROWS; b += 4)
#pragma unroll
        for (int n = 0; n < 4; n++)
            if (from_start) y[b + n] = n ? y[b + n - 1] * gate(x, b + n) : gate(x, b);
            else y[b + 3 - n] = n ? y[b + 4 - n] * gate(x, b + 4 - n) : 1.0f;
}
// z += decay * far * (one level's answer); returns Σ x * what was added, which the group gives to others of that level.
DEVICE float add_level(float (&z)[ROWS], const float (&decay)[ROWS], const float (&x)[ROWS], u32 column, u32 tile, int c, float far) {
    float sum = 0.0f;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float y = decay[r] * (far * half_of(lds32(row_at(column, tile, r)), c));
        z[r] += y;
        sum += x[r] * y;
    }
    return sum;
}
DEVICE void scores_of_row(float (&s)[4], u32 base, int group, int r, int head) {
    uint2 x = lds64((score_at(base + At::DP, group * ROWS, group, head) ^ r << 4) + r * 128 + (r & 4) * 2);
    s[0] = low(x.x);
    s[1] = high(x.x);
    s[2] = low(x.y);
    s[3] = high(x.y);
}
// A result of one channel goes to the half of a tile's number that this thread alone has read and needs no more.
DEVICE void leave(u32 column, u32 tile, int r, int c, float x) { sts16(row_at(column, tile, r) + 2 * c, pack(x, 0.0f)); }
enum { LEFT_DQ = At::QHAT, LEFT_OWN = At::LEVELS, LEFT_EACH = At::KW };

// Everything of rows: dq, and the part of d log f that sums over rows from a token on.
DEVICE void row_returns(Channel& x, Shares& give, const float (&slope)[ROWS], u32 base, u32 column, int c, int group,
                        int head, const Edges& out) {
    float P[ROWS], dq[ROWS];
    inner_products(P, x, true);
    float first = P[3], run = 0.0f, near[4];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        dq[r] = x.dl[r] = 0.0f;
        if (r >= 4) near[r - 4] = P[r] * half_of(lds32(row_at(column, At::LEVELS, r)), c);
    }
#pragma unroll
    for (int r = 4; r < ROWS; r++) P[r] *= first;
    give.rows = add_level(dq, P, x.q, column, At::QHAT, c, out.before[2]);
    if (group & 1) add_level(dq, P, x.q, column, At::LEVELS + TILE, c, 1.0f);
    if (group & 2) give.level[0] = add_level(dq, P, x.q, column, At::LEVELS + 2 * TILE, c, out.before[0]);
    if (group & 4) give.level[1] = add_level(dq, P, x.q, column, At::LEVELS + 3 * TILE, c, out.before[1]);
#pragma unroll
    for (int r = ROWS - 1; r >= 0; r--) {
        run += x.q[r] * dq[r];
        x.dl[r] = run;
    }
    run = 0.0f;
#pragma unroll
    for (int r = ROWS - 1; r >= 4; r--) {
        run += x.q[r] * near[r - 4];
        x.dl[r] += run;
        dq[r] += near[r - 4];
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float s[4], decay = 1.0f, part[4], before = 0.0f;
        scores_of_row(s, base, group, r, head);
        const int start = r & 4;
#pragma unroll
        for (int j = r; j >= start; j--) {
            part[j - start] = s[j - start] * key(x, j) * decay;
            dq[r] += part[j - start];
            decay *= gate(x, j);
        }
#pragma unroll
        for (int t = start + 1; t <= r; t++) {
            before += part[t - 1 - start];
            x.dl[t] += x.q[r] * before;
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) leave(column, LEFT_DQ, r, c, dq[r] * slope[r]);
}
// Everything of columns: dk, the rest of d log f, and the way back through the gates, up to other groups' share of
// d log f: d x^f = own + share * each, and so for the lower bound.
DEVICE void column_returns(Channel& x, Shares& give, float& lower_bound, float& lower_bound_each, u32 base, u32 column, int c,
                           int group, int head, const Edges& out) {
    float Q[ROWS], dk[ROWS], run = 0.0f, near[4];
    inner_products(Q, x, false);
    float last = Q[4] * gate(x, 4);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        dk[r] = 0.0f;
        if (r < 4) near[r] = Q[r] * half_of(lds32(row_at(column, At::LEVELS, r)), c);
    }
#pragma unroll
    for (int r = 0; r < 4; r++) Q[r] *= last;
    give.columns = add_level(dk, Q, x.n, column, At::KW, c, out.after[2]) * x.rest;
    if (!(group & 1)) add_level(dk, Q, x.n, column, At::LEVELS + TILE, c, 1.0f);
    if (!(group & 2)) give.level[0] = add_level(dk, Q, x.n, column, At::LEVELS + 2 * TILE, c, out.after[0]) * x.rest;
    if (!(group & 4)) give.level[1] = add_level(dk, Q, x.n, column, At::LEVELS + 3 * TILE, c, out.after[1]) * x.rest;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        x.dl[r] += run;
        run += key(x, r) * dk[r];
    }
    run = 0.0f;
#pragma unroll
    for (int r = 0; r < 4; r++) {
        x.dl[r] += run;
        run += key(x, r) * near[r];
        dk[r] += near[r];
    }
    lower_bound = lower_bound_each = 0.0f;
#pragma unroll
    for (int i = ROWS - 1; i >= 0; i--) {  // rows downwards: when i is done, nothing more comes to its dk
        float s[4], decay = x.q[i];
        scores_of_row(s, base, group, i, head);
#pragma unroll
        for (int j = i; j >= (i & 4); j--) {
            dk[j] += s[j & 3] * decay;
            decay *= gate(x, j);
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float over = reciprocal(gate(x, r)), slope = key(x, r) * x.s[r], a = x.dl[r] * over - dk[r];
        lower_bound += x.n[r] * a;
        lower_bound_each += x.n[r] * over;
        leave(column, LEFT_OWN, r, c, slope * a);
        leave(column, LEFT_EACH, r, c, slope * over);
    }
}

// Shares travel through four arrays [groups][channels]; the first two lie where the scores were.
DEVICE u32 share_at(u32 base, int which, int group, u32 channel) {
    return base + (which < 2 ? (u32)At::P + which * GROUPS * WIDTH * 4 : (u32)At::SUMS + (which - 2) * GROUPS * WIDTH * 4) +
           (group * WIDTH + channel) * 4;
}
DEVICE void put_shares(u32 base, int group, u32 channel, const Shares& give) {
    stsf(share_at(base, 0, group, channel), give.rows);
    stsf(share_at(base, 1, group, channel), give.columns);
    stsf(share_at(base, 2, group, channel), give.level[0]);
    stsf(share_at(base, 3, group, channel), give.level[1]);
}
DEVICE float2 shares_for(u32 base, int group, u32 pair) {
    float2 sum = {0.0f, 0.0f};
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        if (g != group) {
            float2 x = ldsf2(share_at(base, g > group ? 0 : 1, g, 2 * pair));
            sum.x += x.x;
            sum.y += x.y;
        }
        if ((g ^ group) < 4 && (group & 4 ? g > group : g < group)) {
            float2 x = ldsf2(share_at(base, 3, g, 2 * pair));
            sum.x += x.x;
            sum.y += x.y;
        }
    }
    bool second = group & 2, first_of_two = !(group & 1);
    if (second != first_of_two) return sum;
    float2 x = ldsf2(share_at(base, 2, group ^ 1, 2 * pair));
    return float2{sum.x + x.x, sum.y + x.y};
}
