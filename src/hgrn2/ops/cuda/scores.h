// Scores within a chunk from the tiles of the halving levels: P_ij for j <= i as a bfloat16 tile [64][64].
#pragma once
#include "levels.h"

// c[n] += 16 rows of one tile x 16 rows of another, over the channels of one head; tiles with lane_part.
DEVICE void rows_by_rows(float (&c)[2][4], u32 a_tile, u32 a_row, u32 b_tile, u32 b_row, int head) {
#pragma unroll
    for (int s = 0; s < HEAD / 16; s++) {
        u32 a[4], b[4], column = head * (HEAD / 8) + 2 * s;
        ldsm(a, block_at(a_tile, a_row, column));
        ldsm(b, block_at(b_tile, b_row, column));
        mma(c[0], a[0], a[1], a[2], a[3], b[0], b[2]);
        mma(c[1], a[0], a[1], a[2], a[3], b[1], b[3]);
    }
}
DEVICE void put_scores(u32 tile, u32 row, u32 column, const float (&c)[2][4], int head, u32 lane) {
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            sts32(score_at(tile + score_put_part(lane), row + 8 * h, column / 8 + n, head), pack(c[n][2 * h], c[n][2 * h + 1]));
}
// Entry (i, j) of a diagonal block of 4 tokens, 0 above the diagonal.
DEVICE float small_score(u32 table, u32 block, u32 i, u32 j, int head) {
    if (j > i) return 0.0f;
    u32 at = table + (block * PAIRS + i * (i + 1) / 2 + j) * 4, plane = 2 * GROUPS * PAIRS * 4;
    return HEADS == 1 ? ldsf(at) + ldsf(at + plane) : ldsf(at + head * plane);
}
// The 16x16 block on the diagonal: levels of 16 and 8 tokens from their tiles, blocks of 4 from the table.
DEVICE void diagonal_scores(u32 scores, u32 tiles, u32 table, int block, int head, u32 lane) {
    float c16[4] = {0, 0, 0, 0}, c8[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
#pragma unroll
    for (int s = 0; s < HEAD / 16; s++) {
        u32 a[4], column = head * (HEAD / 8) + 2 * s;
        ldsm(a, block_at(tiles, 16 * block, column) + TILE);
        mma(c16, a[0], a[1], a[2], a[3], a[0], a[2]);
        ldsm(a, block_at(tiles, 16 * block, column));
        mma(c8[0], a[0], a[1], a[2], a[3], a[0], a[2]);
        mma(c8[1], a[0], a[1], a[2], a[3], a[1], a[3]);
    }
    u32 g = lane >> 2, t = lane & 3;
    bool low_half = g >= 4 && t < 2, near = g / 4 == t / 2;
    float c[2][4];
#pragma unroll
    for (int e = 0; e < 2; e++) {
        u32 j = (2 * t + e) % 4;
        float first = near ? small_score(table, 4 * block + g / 4, g % 4, j, head) : low_half ? c8[0][e] : 0.0f;
        float second = near ? small_score(table, 4 * block + 2 + g / 4, g % 4, j, head) : low_half ? c8[1][2 + e] : 0.0f;
        c[0][e] = first;
        c[0][2 + e] = c16[2 + e];
        c[1][e] = 0.0f;
        c[1][2 + e] = second;
    }
    put_scores(scores, 16 * block, 16 * block, c, head, lane);
}
// `tiles` are the levels' with lane_part. Eight warps share the ten blocks of 16 x 16 on and below the diagonal.
DEVICE void all_scores(u32 scores, u32 tiles, u32 table, int warp, u32 lane) {
    for (int head = 0; head < HEADS; head++) {
        if (warp < 4) {
            diagonal_scores(scores, tiles, table, warp, head, lane);
            continue;
        }
        float c[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
        u32 row = 32 + 16 * (warp >> 1 & 1), column = 16 * (warp & 1);
        rows_by_rows(c, tiles + 3 * TILE, row, tiles + 3 * TILE, column, head);
        put_scores(scores, row, column, c, head, lane);
        if (warp > 5) continue;
        float d[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
        u32 block = 32 * (warp - 4);
        rows_by_rows(d, tiles + 2 * TILE, block + 16, tiles + 2 * TILE, block, head);
        put_scores(scores, block + 16, block, d, head, lane);
    }
}
