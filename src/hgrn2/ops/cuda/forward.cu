// o and the final state. Eight warps hold the state, transposed, in registers (16 values v each) and do its products;
// eight others are one chunk ahead and turn projections into gates, decays and scores.
#include "scores.h"

struct ForwardLayout {  // bytes from the start of shared memory
    enum { QHAT = 0, KW = QHAT + 2 * TILE, V = KW + 2 * TILE, P = V + 2 * TILE, LEVELS = P + 2 * SCORES,
           RAW_F = LEVELS + 4 * TILE, RAW_Q = RAW_F + TILE, TOTALS = RAW_Q + TILE,
           TABLE = TOTALS + GROUPS * WIDTH * 4, WHOLE = TABLE + 2 * 2 * GROUPS * PAIRS * 4, END = WHOLE + 2 * WIDTH * 4 };
};
typedef ForwardLayout At;
enum { GATE_GROUP = 1, GATE_THREADS = 256, BLOCK = 512 };

struct Sources {
    Source q, f, i;
};
typedef Copy<GATE_THREADS> Load;
DEVICE void load(u32 to, Source& x, const u16* safe, int left, int thread) {
    Load::tile(to, x, safe, left, thread);
    copies_commit();
}

// Everything the state's warps need of a chunk, into its half of the double buffers.
DEVICE void prepare(const Problem& p, Sources& from, int left, bool more, u32 base, u32 side, const Bound& b, int thread) {
    u32 lane = thread & 31, warp = thread >> 5, pair = (warp & 1) * 32 + lane, to = base + Load::target(thread);
    int first = 2 * (warp >> 1);
    u32 column = base + column_part(first, pair), totals = base + At::TOTALS;
    load(to + At::V + side * TILE, from.i, p.i, left, thread);
    u32 raw[2][ROWS];
    Block f, k;
#pragma unroll
    for (int n = 1; n >= 0; n--) {  // the second group's gates are computed twice: kept, they would not fit into registers
        read_rows(raw[n], column, At::RAW_F + n * ROWS * 256);
        gates(f, k, raw[n], b, left - (first + n) * ROWS);
        store_product(totals, first + n, pair, f);
    }
    barrier(GATE_GROUP, GATE_THREADS);
    if (more) load(to + At::RAW_F, from.f, p.f, left - CHUNK, thread);
#pragma unroll
    for (int n = 0; n < 2; n++) {
        int group = first + n;
        const u32 rows = n * ROWS * 256;
        if (n) gates(f, k, raw[n], b, left - group * ROWS);
        Block q, Q;
        read_rows(raw[0], column, At::RAW_Q + rows);
        outputs(q, raw[0], p);
        small_scores(base + At::TABLE + (warp & 1) * 2 * GROUPS * PAIRS * 4, group, q, f, k, lane);
        Outward out = outward(totals, group, pair);
        put_levels(column, At::LEVELS + rows, group, q, k, f, Q, out);
        put_rows(column + side * TILE, At::QHAT + rows, q, out.before[2][0], out.before[2][1]);
        put_rows(column + side * TILE, At::KW + rows, k, out.after[2][0], out.after[2][1]);
        if (group == 0) stsf2(base + At::WHOLE + (side * WIDTH + 2 * pair) * 4, out.total[0], out.total[1]);
    }
    barrier(GATE_GROUP, GATE_THREADS);
    if (more) load(to + At::RAW_Q, from.q, p.q, left - CHUNK, thread);
    all_scores(base + At::P + side * SCORES, base + At::LEVELS + lane_part(lane), base + At::TABLE, warp, lane);
    copies_wait();
    Load::activate(to + At::V + side * TILE, p.input_activation);
}

// s[n] is the block of the transposed state with rows v0 + (0..15) and keys 8n..8n+7.
typedef float State[HEAD / 8][4];

DEVICE float* state_at(float* states, const Problem& p, i64 sequence, int head) {
    return states + (sequence * p.heads + head) * (HEAD * HEAD);
}
DEVICE void load_state(State& s, const float* from, int v0, u32 lane) {
    u32 g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int n = 0; n < HEAD / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            s[n][e] = from ? from[(8 * n + 2 * t + (e & 1)) * HEAD + v0 + g + 8 * (e >> 1)] : 0.0f;
}
DEVICE void save_state(const State& s, float* to, int v0, u32 lane) {
    u32 g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int n = 0; n < HEAD / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) to[(8 * n + 2 * t + (e & 1)) * HEAD + v0 + g + 8 * (e >> 1)] = s[n][e];
}
// Output and update for one chunk; `to` is the lane's place in o at the chunk's first token.
DEVICE void advance(State& s, u32 base, u32 side, int warp, u32 lane, u16* to, i64 row, int left) {
    u32 v0 = 16 * warp, t = lane & 3, tile = base + side * TILE + lane_part(lane);
    int head = HEADS == 1 ? 0 : v0 / HEAD, key_piece = head * (HEAD / 8);
    u32 scores = base + At::P + side * SCORES + score_part(lane), whole = base + At::WHOLE + (side * WIDTH + head * HEAD + 2 * t) * 4;
    float o[4][2][4] = {};
#pragma unroll
    for (int k = 0; k < HEAD / 16; k++) {
        u32 b[4] = {pack(s[2 * k][0], s[2 * k][1]), pack(s[2 * k + 1][0], s[2 * k + 1][1]),
                    pack(s[2 * k][2], s[2 * k][3]), pack(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
        for (int m = 0; m < 4; m++) {
            u32 a[4];
            ldsm(a, block_at(tile, 16 * m, key_piece + 2 * k) + At::QHAT);
            mma(o[m][0], a[0], a[1], a[2], a[3], b[0], b[1]);
            mma(o[m][1], a[0], a[1], a[2], a[3], b[2], b[3]);
        }
    }
    u32 x[4][4];
#pragma unroll
    for (int k = 0; k < 4; k++) ldsm_t(x[k], block_at(tile, 16 * k, v0 / 8) + At::V);
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
        for (int k = 0; k <= m; k++) {
            u32 a[4];
            ldsm(a, score_at(scores, 16 * m, 2 * k, head));
            mma(o[m][0], a[0], a[1], a[2], a[3], x[k][0], x[k][1]);
            mma(o[m][1], a[0], a[1], a[2], a[3], x[k][2], x[k][3]);
        }
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
        for (int h = 0; h < 2; h++, to += 8 * row) {
            if (16 * m + 8 * h + (int)(lane >> 2) >= left) continue;
            *(u32*)to = pack(o[m][0][2 * h], o[m][0][2 * h + 1]);
            *(u32*)(to + 8) = pack(o[m][1][2 * h], o[m][1][2 * h + 1]);
        }
#pragma unroll
    for (int n = 0; n < HEAD / 16; n++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float2 w = ldsf2(whole + (16 * n + 8 * e) * 4);
            s[2 * n + e][0] *= w.x;
            s[2 * n + e][1] *= w.y;
            s[2 * n + e][2] *= w.x;
            s[2 * n + e][3] *= w.y;
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            u32 b[4];
            ldsm_t(b, block_at(tile, 16 * k, key_piece + 2 * n) + At::KW);
            mma(s[2 * n], x[k][0], x[k][2], x[k][1], x[k][3], b[0], b[1]);
            mma(s[2 * n + 1], x[k][0], x[k][2], x[k][1], x[k][3], b[2], b[3]);
        }
    }
}

KERNEL(BLOCK) forward(const Problem p) {
    int thread = thread_number(), warp = thread >> 5;
    u32 lane = thread & 31, base = shared_base(), channel = block_y() * WIDTH;
    Item item = p.items[block_x()];
    if (item.sequence < 0) return;
    int count = chunks_of(item);
    Place at = place_of(p, item, 0);
    if (warp >= 8) {  // gates, one chunk ahead
        thread -= 256;
        Bound b = bound_of(p, channel + 2 * ((warp & 1) * 32 + lane));
        Sources from{Load::source(p.q, p.q_row, at, channel, thread), Load::source(p.f, p.f_row, at, channel, thread),
                     Load::source(p.i, p.i_row, at, channel, thread)};
        if (count) {
            load(base + Load::target(thread) + At::RAW_F, from.f, p.f, item.tokens, thread);
            load(base + Load::target(thread) + At::RAW_Q, from.q, p.q, item.tokens, thread);
            copies_wait();
            barrier(GATE_GROUP, GATE_THREADS);
        }
#pragma unroll 1
        for (int c = 0; c <= count; c++) {
            if (c < count) prepare(p, from, item.tokens - c * CHUNK, c + 1 < count, base, c & 1, b, thread);
            barrier(0, BLOCK);
        }
        return;
    }
    int head = block_y() * HEADS + 16 * warp / HEAD, v0 = 16 * warp % HEAD;
    const float* from = item.first ? p.state : p.segments;
    if (from) from = state_at((float*)from, p, item.first ? item.sequence : (i64)block_x(), head);
    State s;
    load_state(s, from, v0, lane);
    i64 row = (i64)p.heads * HEAD * at.step;
    u16* to = p.o + at.start * ((i64)p.heads * HEAD) + channel + 16 * warp + 2 * (lane & 3) + (lane >> 2) * row;
#pragma unroll 1
    for (int c = 0; c <= count; c++) {
        if (c) {
            advance(s, base, (c - 1) & 1, warp, lane, to, row, item.tokens - (c - 1) * CHUNK);
            to += CHUNK * row;
        }
        barrier(0, BLOCK);
    }
    if (item.last) save_state(s, state_at(p.final_state, p, item.sequence, head), v0, lane);
}
