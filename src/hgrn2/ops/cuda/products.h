// The backward's matrix products. Sixteen warps; for a result of [64 tokens][128 channels] warp w has 16 rows from
// 16 * (w % 4) and 32 columns from 32 * (w / 4).
#pragma once
#include "scores.h"

struct BackwardLayout {
    enum { RAW_F = 0, RAW_Q = RAW_F + TILE, V = RAW_Q + TILE, DO = V + TILE, QHAT = DO + TILE, KW = QHAT + TILE,
           LEVELS = KW + TILE, G = LEVELS + 4 * TILE, P = G + HEAD * WIDTH * 2, DP = P + SCORES, TOTALS = DP + SCORES,
           TABLE = TOTALS + GROUPS * WIDTH * 4, WHOLE = TABLE + 2 * 2 * GROUPS * PAIRS * 4, INNER = WHOLE + WIDTH * 4,
           SUMS = INNER + 2 * WIDTH * 4, LOWER_BOUND = SUMS + 2 * GROUPS * WIDTH * 4, END = LOWER_BOUND + GROUPS * WIDTH * 4 };  // SUMS has two arrays, P holds two more
};
typedef BackwardLayout At;
typedef float Part[4][4];     // a warp's 16 x 32 of a result
typedef float Gradient[HEAD / 16][4];  // of the state: keys 16 * (w % 8) + (0..15), half w / 8 of the values

DEVICE void zero(Part& c) {
#pragma unroll
    for (int n = 0; n < 4; n++) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0.0f;
}
DEVICE void put_part(u32 tile, const Part& c, int warp, u32 lane) {
    u32 at = tile + (16 * (warp & 3) + (lane >> 2)) * 256 + ((lane >> 2) << 4) + (lane & 3) * 4;
#pragma unroll
    for (int n = 0; n < 4; n++) {
        u32 to = at ^ (4 * (warp >> 2) + n) << 4;
        sts32(to, pack(c[n][0], c[n][1]));
        sts32(to + 8 * 256, pack(c[n][2], c[n][3]));
    }
}
// c += a [16 x 16] b [16 x 32], b read from rows of a tile.
DEVICE void times_rows(Part& c, const u32 (&a)[4], u32 tile, int row, int column) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        u32 b[4];
        ldsm_t(b, block_at(tile, row, column + 2 * h));
        mma(c[2 * h], a[0], a[1], a[2], a[3], b[0], b[1]);
        mma(c[2 * h + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
    }
}
DEVICE void transposed(u32 (&a)[4], u32 at) {  // a 16 x 16 block as left factor, transposed
    u32 r[4];
    ldsm_t(r, at);
    a[0] = r[0];
    a[1] = r[2];
    a[2] = r[1];
    a[3] = r[3];
}

// dP = do vᵀ on and below the diagonal, by warps 8 to 15.
DEVICE void score_gradients(u32 base, int warp, u32 lane) {
    u32 tile = base + lane_part(lane);
    for (int n = warp - 8; n < 10 * HEADS; n += 8) {
        int head = n / 10, b = n % 10, row = b < 1 ? 0 : b < 3 ? 1 : b < 6 ? 2 : 3, column = b - row * (row + 1) / 2;
        float c[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
        rows_by_rows(c, tile + At::DO, 16 * row, tile + At::V, 16 * column, head);
        put_scores(base + At::DP, 16 * row, 16 * column, c, head, lane);
    }
}
// dv = (k w) G + Pᵀ do
DEVICE void value_gradients(Part& c, u32 base, int warp, u32 lane) {
    int row = 16 * (warp & 3), column = 4 * (warp >> 2), head = HEADS == 1 ? 0 : column / (HEAD / 8);
    u32 tile = base + lane_part(lane);
    zero(c);
#pragma unroll
    for (int k = 0; k < HEAD / 16; k++) {
        u32 a[4];
        ldsm(a, block_at(tile, row, head * (HEAD / 8) + 2 * k) + At::KW);
        times_rows(c, a, tile + At::G, 16 * k, column);
    }
    for (int i = warp & 3; i < 4; i++) {
        u32 a[4];
        transposed(a, score_at(base + At::P + score_part(lane), 16 * i, 2 * (warp & 3), head));
        times_rows(c, a, tile + At::DO, 16 * i, column);
    }
}
// v Gᵀ: what the state after the chunk asks of the keys.
DEVICE void key_gradients(Part& c, u32 base, int warp, u32 lane) {
    int row = 16 * (warp & 3), column = 4 * (warp >> 2), head = HEADS == 1 ? 0 : column / (HEAD / 8);
    u32 tile = base + lane_part(lane);
    zero(c);
#pragma unroll
    for (int s = 0; s < HEAD / 16; s++) {
        u32 a[4], b[4], piece = head * (HEAD / 8) + 2 * s;
        ldsm(a, block_at(tile, row, piece) + At::V);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            ldsm(b, block_at(tile + At::G, column * 8 % HEAD + 16 * h, piece));
            mma(c[2 * h], a[0], a[1], a[2], a[3], b[0], b[2]);
            mma(c[2 * h + 1], a[0], a[1], a[2], a[3], b[1], b[3]);
        }
    }
}
// do Sᵀ with the state at the chunk's start, which lies in the order of right factors.
DEVICE void query_gradients(Part& c, u32 base, const uint4* states, int warp, u32 lane) {
    int row = 16 * (warp & 3), column = 4 * (warp >> 2), head = HEADS == 1 ? 0 : column / (HEAD / 8);
    u32 tile = base + lane_part(lane);
    const uint4* from = states + (head * (HEAD * HEAD / 8) + column * 8 % HEAD / 16 * (HEAD / 16) * 32) + lane;
    zero(c);
#pragma unroll
    for (int s = 0; s < HEAD / 16; s++) {
        u32 a[4];
        ldsm(a, block_at(tile, row, head * (HEAD / 8) + 2 * s) + At::DO);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint4 b = from[(h * (HEAD / 16) + s) * 32];
            mma(c[2 * h], a[0], a[1], a[2], a[3], b.x, b.y);
            mma(c[2 * h + 1], a[0], a[1], a[2], a[3], b.z, b.w);
        }
    }
}
// Σ_v S G for each key, and then G ← Diag(Π f) G + (q pb)ᵀ do.
DEVICE void state_gradients(Gradient& g, u32 base, const uint4* states, int warp, u32 lane) {
    int keys = warp & 7, half = warp >> 3, head = HEADS == 1 ? 0 : keys * 16 / HEAD;
    const uint4* from = states + head * (HEAD * HEAD / 8) + (keys * 16 % HEAD / 16 * (HEAD / 16) + half * (HEAD / 32)) * 32 + lane;
    float inner[2] = {0.0f, 0.0f};
    u32 whole = base + At::WHOLE + (16 * keys + (lane >> 2)) * 4;
    float a = ldsf(whole), b = ldsf(whole + 32);
#pragma unroll
    for (int n = 0; n < HEAD / 32; n++) {
        uint4 x = from[n * 32];
        float(&c)[4] = g[2 * n], (&d)[4] = g[2 * n + 1];
        inner[0] += low(x.x) * c[0] + high(x.x) * c[1] + low(x.y) * d[0] + high(x.y) * d[1];
        inner[1] += low(x.z) * c[2] + high(x.z) * c[3] + low(x.w) * d[2] + high(x.w) * d[3];
        for (int m = 2 * n; m < 2 * n + 2; m++) {
            g[m][0] *= a;
            g[m][1] *= a;
            g[m][2] *= b;
            g[m][3] *= b;
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        inner[h] += exchange(inner[h], 1);
        inner[h] += exchange(inner[h], 2);
        if ((lane & 3) == 0) stsf(base + At::INNER + (half * WIDTH + 16 * keys + 8 * h + (lane >> 2)) * 4, inner[h]);
    }
    u32 tile = base + lane_part(lane);
#pragma unroll
    for (int k = 0; k < 4; k++) {
        u32 x[4];
        transposed(x, block_at(tile, 16 * k, 2 * keys) + At::QHAT);
#pragma unroll
        for (int n = 0; n < HEAD / 32; n++) {
            u32 y[4];
            ldsm_t(y, block_at(tile, 16 * k, head * (HEAD / 8) + half * (HEAD / 16) + 2 * n) + At::DO);
            mma(g[2 * n], x[0], x[1], x[2], x[3], y[0], y[1]);
            mma(g[2 * n + 1], x[0], x[1], x[2], x[3], y[2], y[3]);
        }
    }
}
// G in bfloat16 for the products: rows are keys within a head, heads side by side.
DEVICE void put_state_gradient(u32 base, const Gradient& g, int warp, u32 lane) {
    int keys = warp & 7, head = HEADS == 1 ? 0 : keys * 16 / HEAD;
    u32 r = lane >> 2, at = base + At::G + (16 * keys % HEAD + r) * 256 + (r << 4) + (lane & 3) * 4;
#pragma unroll
    for (int n = 0; n < HEAD / 16; n++) {
        u32 to = at ^ (head * (HEAD / 8) + (warp >> 3) * (HEAD / 16) + n) << 4;
        sts32(to, pack(g[n][0], g[n][1]));
        sts32(to + 8 * 256, pack(g[n][2], g[n][3]));
    }
}

// Level tiles of 64 (`level` 3) and 32 (2) tokens: second halves get dP times the first halves' tile rows, first
// halves dPᵀ times the second halves'.
DEVICE void large_level(Part& c, int level, u32 base, int warp, u32 lane) {
    int m = warp & 3, column = 4 * (warp >> 2), head = HEADS == 1 ? 0 : column / (HEAD / 8);
    int blocks = level == 3 ? 2 : 1, other = (m / blocks ^ 1) * blocks;
    u32 scores = base + At::DP + score_part(lane), tile = base + At::LEVELS + level * TILE + lane_part(lane);
    zero(c);
    for (int s = 0; s < blocks; s++) {
        u32 a[4];
        if (m / blocks & 1) ldsm(a, score_at(scores, 16 * m, 2 * (other + s), head));
        else transposed(a, score_at(scores, 16 * (other + s), 2 * m, head));
        times_rows(c, a, tile, 16 * (other + s), column);
    }
}
// Level tiles of 16 and 8 tokens, from the block of dP on the diagonal.
DEVICE void small_levels(Part& c16, Part& c8, u32 base, int warp, u32 lane) {
    int m = warp & 3, column = 4 * (warp >> 2), head = HEADS == 1 ? 0 : column / (HEAD / 8);
    u32 at = score_at(base + At::DP + score_part(lane), 16 * m, 2 * m, head), below[4], above[4], g = lane >> 2, t = lane & 3;
    ldsm(below, at);
    ldsm_t(above, at);
    u32 a16[4] = {0, below[1], above[1], 0}, a8[4] = {0, 0, 0, 0};
    if (g >= 4 && t < 2) a8[0] = below[0], a8[3] = below[3];
    if (g < 4 && t >= 2) a8[0] = above[0], a8[3] = above[3];
    zero(c16);
    zero(c8);
    u32 tile = base + At::LEVELS + lane_part(lane);
    times_rows(c16, a16, tile + TILE, 16 * m, column);
    times_rows(c8, a8, tile, 16 * m, column);
}
