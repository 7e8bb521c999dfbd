// Gates and decays, seen along a pair of channels: a thread holds 8 consecutive tokens (a group) of 2 channels.
//
// Every decay is a product of gates that runs outward from a boundary, so it is at most 1, exact for every gate
// (0 included) and needs no logarithm. For blocks of m tokens, P_t is the product from the block's start through t and
// Q_t the product from t + 1 to the block's end; doubling m multiplies one of them by the neighbour's whole product.
#pragma once
#include "problem.h"

enum { ROWS = 8, GROUPS = CHUNK / ROWS, PAIRS = 10 };  // pairs i >= j of a block of 4 tokens: i (i + 1) / 2 + j
typedef float Block[ROWS][2];                          // a number for each token and channel of a thread

struct Bound {  // of a pair of channels
    float lower[2], rest[2];
};
DEVICE Bound bound_of(const Problem& p, u32 channel) {
    Bound b;
    for (int c = 0; c < 2; c++) {
        b.lower[c] = p.lower_bound ? p.lower_bound[channel + c] : 0.0f;
        b.rest[c] = 1.0f - b.lower[c];
    }
    return b;
}
// Row r of a thread's group and channels lies at (column ^ (r << 4)) + r * 256 in a tile; column holds column_part.
DEVICE u32 column_part(int group, u32 pair) { return group * ROWS * 256 + (pair >> 2) * 16 + (pair & 3) * 4; }
DEVICE u32 row_at(u32 column, u32 tile, int r) { return (column ^ (r << 4)) + (tile + r * 256); }
DEVICE void read_rows(u32 (&raw)[ROWS], u32 column, u32 tile) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) raw[r] = lds32(row_at(column, tile, r));
}
DEVICE void put(u32 column, u32 tile, int r, float a, float b) { sts32(row_at(column, tile, r), pack(a, b)); }
DEVICE float half_of(u32 x, int c) { return c ? high(x) : low(x); }

// f = γ + (1-γ) σ(x), k = (1-γ) σ(-x); e^60 keeps 0 · ∞ away. Rows beyond the end keep the state: f = 1, k = 0.
DEVICE void gates(Block& f, Block& k, const u32 (&raw)[ROWS], const Bound& b, int left) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            float t = exp2_fast(smaller(-1.4426950408889634f * half_of(raw[r], c), 86.5f)), y = reciprocal(1.0f + t);
            f[r][c] = b.lower[c] + b.rest[c] * y;
            k[r][c] = b.rest[c] * (t * y);
        }
    if (left < ROWS) {
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            for (int c = 0; c < 2; c++) {
                f[r][c] = r < left ? f[r][c] : 1.0f;
                k[r][c] = r < left ? k[r][c] : 0.0f;
            }
    }
}
DEVICE void outputs(Block& q, const u32 (&raw)[ROWS], const Problem& p) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < 2; c++) q[r][c] = p.scale * half_of(raw[r], c);
    if (p.output_activation == NONE) return;
    bool silu = p.output_activation == SILU;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < 2; c++) q[r][c] = (silu ? q[r][c] : p.scale) * sigmoid(half_of(raw[r], c));
}
DEVICE void store_product(u32 totals, int group, u32 pair, const Block& f) {
    float t[2] = {1.0f, 1.0f};
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < 2; c++) t[c] *= f[r][c];
    stsf2(totals + (group * WIDTH + 2 * pair) * 4, t[0], t[1]);
}

// Products of whole groups between a group and the edges of its blocks of 16, 32 and 64 tokens, and of all groups.
struct Outward {
    float before[3][2], after[3][2], total[2];
};
DEVICE Outward outward(u32 totals, int group, u32 pair) {
    Outward x;
    float2 own = ldsf2(totals + (group * WIDTH + 2 * pair) * 4);
    float a[2] = {1.0f, 1.0f}, z[2] = {1.0f, 1.0f}, all[2] = {own.x, own.y};
#pragma unroll
    for (int level = 0; level < 3; level++) {
        float s[2] = {1.0f, 1.0f};  // of the neighbouring block, of which bit `level` of the group tells the side
        int first = (group >> level ^ 1) << level;
#pragma unroll
        for (int n = 0; n < 4; n++) {
            if (n >= 1 << level) continue;
            float2 t = ldsf2(totals + ((first + n) * WIDTH + 2 * pair) * 4);
            s[0] *= t.x;
            s[1] *= t.y;
        }
        bool second = group >> level & 1;
#pragma unroll
        for (int c = 0; c < 2; c++) {
            all[c] *= s[c];
            x.before[level][c] = a[c] *= second ? s[c] : 1.0f;
            x.after[level][c] = z[c] *= second ? 1.0f : s[c];
        }
    }
    x.total[0] = all[0];
    x.total[1] = all[1];
    return x;
}

DEVICE void one(Block& q) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) q[r][0] = q[r][1] = 1.0f;
}
template <int M> DEVICE void doubled(Block& P, Block& Q) {
#pragma unroll
    for (int start = 0; start < ROWS; start += 2 * M)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            float first = P[start + M - 1][c], second = P[start + 2 * M - 1][c];
#pragma unroll
            for (int r = 0; r < M; r++) {
                Q[start + r][c] *= second;
                P[start + M + r][c] *= first;
            }
        }
}
DEVICE void times(Block& x, const Block& y) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < 2; c++) x[r][c] *= y[r][c];
}
