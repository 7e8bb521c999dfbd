// What the columns' threads hand to the matrix products of a chunk.
#pragma once
#include "columns.h"

// Sums of 16 or 4 values over the lanes of a warp at once: lanes exchange half of what they hold, so that lane l ends
// with value l / 2 of 16 or l / 8 of 4.
template <int HALF, int N> DEVICE void folded(float (&v)[N], bool upper, int mask) {
#pragma unroll
    for (int n = 0; n < HALF; n++) {
        float mine = v[n], other = v[n + HALF], keep = upper ? other : mine, send = upper ? mine : other;
        v[n] = keep + exchange(send, mask);
    }
}
DEVICE float summed(float (&v)[16], int lane) {
    folded<8>(v, lane & 16, 16);
    folded<4>(v, lane & 8, 8);
    folded<2>(v, lane & 4, 4);
    folded<1>(v, lane & 2, 2);
    return v[0] + exchange(v[0], 1);
}
DEVICE float summed(float (&v)[4], int lane) {
    folded<2>(v, lane & 16, 16);
    folded<1>(v, lane & 8, 8);
    float sum = v[0] + exchange(v[0], 4);
    sum += exchange(sum, 2);
    return sum + exchange(sum, 1);
}
// Scores q_i k_j Π_{j<s≤i} f_s inside blocks of 4 tokens, summed over a warp's 64 channels into table[2 * group][PAIRS].
DEVICE void small_scores(u32 table, int group, const Block& q, const Block& f, const Block& k, int lane) {
    float v[16], w[4];
#pragma unroll
    for (int b = 0; b < 2; b++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float run[2] = {k[4 * b + j][0], k[4 * b + j][1]};
#pragma unroll
            for (int i = j; i < 4; i++) {
                if (i > j) {
                    run[0] *= f[4 * b + i][0];
                    run[1] *= f[4 * b + i][1];
                }
                float s = q[4 * b + i][0] * run[0] + q[4 * b + i][1] * run[1];
                int e = b * PAIRS + i * (i + 1) / 2 + j;
                if (e < 16) v[e] = s;
                else w[e - 16] = s;
            }
        }
    float most = summed(v, lane), rest = summed(w, lane);
    u32 at = table + 2 * group * PAIRS * 4;
    if (lane % 2 == 0) stsf(at + (lane / 2) * 4, most);
    if (lane % 8 == 0) stsf(at + (16 + lane / 8) * 4, rest);
}

DEVICE void put_rows(u32 column, u32 tile, const Block& x, float a, float b) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) put(column, tile, r, x[r][0] * a, x[r][1] * b);
}
// The tiles of the four halving levels of 8, 16, 32 and 64 tokens: tokens of second halves hold q, those of first
// halves k, each times its decay to the middle; rows x columns of one tile are the level's scores. `tile` is the first
// of them. Turns q and P into q P, k and Q into k Q over the group.
DEVICE void put_levels(u32 column, u32 tile, int group, Block& q, Block& k, Block& P, Block& Q, const Outward& out) {
    one(Q);
    doubled<1>(P, Q);
    doubled<2>(P, Q);
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        if (r < 4) put(column, tile, r, k[r][0] * Q[r][0], k[r][1] * Q[r][1]);
        else put(column, tile, r, q[r][0] * P[r][0], q[r][1] * P[r][1]);
    doubled<4>(P, Q);
    times(q, P);
    times(k, Q);
    if (group & 1) put_rows(column, tile + TILE, q, 1.0f, 1.0f);
    else put_rows(column, tile + TILE, k, 1.0f, 1.0f);
    if (group & 2) put_rows(column, tile + 2 * TILE, q, out.before[0][0], out.before[0][1]);
    else put_rows(column, tile + 2 * TILE, k, out.after[0][0], out.after[0][1]);
    if (group & 4) put_rows(column, tile + 3 * TILE, q, out.before[1][0], out.before[1][1]);
    else put_rows(column, tile + 3 * TILE, k, out.after[1][0], out.after[1][1]);
}
