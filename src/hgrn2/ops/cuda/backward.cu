// Gradients of the projections, the lower bound and the initial state: one scan over the chunks from the end, with the
// gradient of the state in registers and the states at the starts of chunks read back in bfloat16.
#include "returns.h"

enum { BLOCK = 512 };
typedef Copy<BLOCK> Load;

// Sources are worked out anew for each chunk: kept, their addresses would take registers from the gradient of the state.
DEVICE void fetch(u32 to, const u16* x, i64 row, const Place& at, u32 channel, int thread) {
    Source from = Load::source(x, row, at, channel, thread);
    Load::tile(to, from, x, at.left, thread);
}
DEVICE void fetch_gates(const Problem& p, const Place& at, u32 to, u32 channel, int thread) {
    fetch(to + At::RAW_F, p.f, p.f_row, at, channel, thread);
    fetch(to + At::RAW_Q, p.q, p.q_row, at, channel, thread);
    copies_commit();
}
DEVICE void fetch_values(const Problem& p, const Place& at, u32 to, u32 channel, int thread) {
    fetch(to + At::V, p.i, p.i_row, at, channel, thread);
    fetch(to + At::DO, p.grad_o, p.o_row, at, channel, thread);
    copies_commit();
}

// The gates' products over groups, then level tiles, q̂, k w and the small scores of this chunk.
DEVICE void spread(const Problem& p, u32 base, const Bound& b, int left, int group, u32 pair, int warp, u32 lane) {
    u32 column = base + column_part(group, pair), raw[ROWS];
    Block f, k, q, Q;
    read_rows(raw, column, At::RAW_F);
    gates(f, k, raw, b, left - group * ROWS);
    store_product(base + At::TOTALS, group, pair, f);
    barrier(0, BLOCK);
    read_rows(raw, column, At::RAW_Q);
    outputs(q, raw, p);
    small_scores(base + At::TABLE + (warp & 1) * 2 * GROUPS * PAIRS * 4, group, q, f, k, lane);
    Outward out = outward(base + At::TOTALS, group, pair);
    put_levels(column, At::LEVELS, group, q, k, f, Q, out);
    put_rows(column, At::QHAT, q, out.before[2][0], out.before[2][1]);
    put_rows(column, At::KW, k, out.after[2][0], out.after[2][1]);
    if (group == 0) stsf2(base + At::WHOLE + 2 * pair * 4, out.total[0], out.total[1]);
}

DEVICE void store_values(const Problem& p, const Part& c, const Place& at, u32 channel, int warp, u32 lane) {
    i64 width = (i64)p.heads * HEAD;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int row = 16 * (warp & 3) + (lane >> 2) + 8 * h;
        if (row >= at.left) continue;
        u32 first = channel + 32 * (warp >> 2) + 2 * (lane & 3);
        u16* to = p.di + token(at, row) * width + first;
        const u16* x = p.i + token(at, row) * p.i_row + first;
#pragma unroll
        for (int n = 0; n < 4; n++) {
            float a = c[n][2 * h], b = c[n][2 * h + 1];
            if (p.input_activation != NONE) {
                u32 raw = *(const u32*)(x + 8 * n);
                a *= activation_slope(low(raw), p.input_activation);
                b *= activation_slope(high(raw), p.input_activation);
            }
            *(u32*)(to + 8 * n) = pack(a, b);
        }
    }
}

DEVICE void returns(const Problem& p, float (&lower_bound)[2], float (&lower_bound_each)[2], u32 base, const Bound& b, int left, int group, u32 pair) {
    int head = HEADS == 1 ? 0 : pair / 32;
    u32 column = base + column_part(group, pair);
#pragma unroll
    for (int c = 0; c < 2; c++) {
        Edges out = edges(base + At::TOTALS, group, 2 * pair + c);
        Channel x;
        Shares give;
        float slope[ROWS];
        read_channel(x, slope, p, column, c, b, left);
        row_returns(x, give, slope, base, column, c, group, head, out);
        column_returns(x, give, lower_bound[c], lower_bound_each[c], base, column, c, group, head, out);
        put_shares(base, group, 2 * pair + c, give);
    }
}
DEVICE void finish(const Problem& p, const float (&lower_bound)[2], const float (&lower_bound_each)[2], u32 base, const Place& at,
                   u32 channel, int group, u32 pair) {
    float2 share = shares_for(base, group, pair), whole = ldsf2(base + At::WHOLE + 2 * pair * 4);
    float2 one = ldsf2(base + At::INNER + 2 * pair * 4), two = ldsf2(base + At::INNER + (WIDTH + 2 * pair) * 4);
    share.x += whole.x * (one.x + two.x);
    share.y += whole.y * (one.y + two.y);
    u32 sums = base + At::LOWER_BOUND + (group * WIDTH + 2 * pair) * 4;
    float2 d = ldsf2(sums);
    stsf2(sums, d.x + lower_bound[0] + share.x * lower_bound_each[0], d.y + lower_bound[1] + share.y * lower_bound_each[1]);
    int left = at.left - group * ROWS;
    u32 column = base + column_part(group, pair);
    i64 first = token(at, group * ROWS) * ((i64)p.heads * HEAD) + channel + 2 * pair, row = (i64)at.step * p.heads * HEAD;
#pragma unroll
    for (int r = 0; r < ROWS; r++, first += row)
        if (r < left) {
            u32 own = lds32(row_at(column, LEFT_OWN, r)), each = lds32(row_at(column, LEFT_EACH, r));
            *(u32*)(p.df + first) = pack(low(own) + share.x * low(each), high(own) + share.y * high(each));
            *(u32*)(p.dq + first) = lds32(row_at(column, LEFT_DQ, r));
        }
}

template <class T> DEVICE void exchange_gradient(Gradient& g, T* state, int warp, u32 lane, bool save) {
    T* at = state + (16 * (warp & 7) % HEAD + (lane >> 2)) * HEAD + (warp >> 3) * (HEAD / 2) + 2 * (lane & 3);
#pragma unroll
    for (int n = 0; n < HEAD / 16; n++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float2* x = (float2*)(at + 8 * h * HEAD + 8 * n);
            if (save) *x = float2{g[n][2 * h], g[n][2 * h + 1]};
            else g[n][2 * h] = x->x, g[n][2 * h + 1] = x->y;
        }
}

KERNEL(BLOCK) backward(const Problem p) {
    int thread = thread_number(), warp = thread >> 5, group = warp >> 1;
    u32 lane = thread & 31, pair = (warp & 1) * 32 + lane, base = shared_base(), channel = block_y() * WIDTH;
    u32 to = base + Load::target(thread);
    Item item = p.items[block_x()];
    if (item.sequence < 0) return;
    int count = chunks_of(item), head = block_y() * HEADS + 16 * (warp & 7) / HEAD;
    Place at = place_of(p, item, count - 1);
    Gradient g = {};
    i64 size = HEAD * HEAD;
    const float* arrives = item.last ? p.grad_state : p.arriving;
    if (arrives) exchange_gradient(g, (float*)arrives + ((item.last ? (i64)item.sequence : (i64)block_x()) * p.heads + head) * size, warp, lane, false);
    put_state_gradient(base, g, warp, lane);
    if (count) {
        fetch_gates(p, at, to, channel, thread);
        fetch_values(p, at, to, channel, thread);
    }
    stsf2(base + At::LOWER_BOUND + (group * WIDTH + 2 * pair) * 4, 0.0f, 0.0f);
    const uint4* states = p.chunks + ((i64)(item.chunk + count - 1) * p.heads + block_y() * HEADS) * (size / 8);
#pragma unroll 1
    for (int n = count - 1; n >= 0; n--) {
        copies_wait();
        Load::activate(to + At::V, p.input_activation);
        barrier(0, BLOCK);
        if (n && thread < 256) {  // on its way from memory while this chunk is worked on
            const uint4* next = states - (i64)p.heads * (size / 8);
            prefetch(next + thread * 8);
        }
        spread(p, base, bound_of(p, channel + 2 * pair), at.left, group, pair, warp, lane);
        barrier(0, BLOCK);
        if (warp < 8) all_scores(base + At::P, base + At::LEVELS + lane_part(lane), base + At::TABLE, warp, lane);
        else score_gradients(base, warp, lane);
        barrier(0, BLOCK);
        {
            Part c, d;
            value_gradients(c, base, warp, lane);
            store_values(p, c, at, channel, warp, lane);
            key_gradients(c, base, warp, lane);
            query_gradients(d, base, states, warp, lane);
            state_gradients(g, base, states, warp, lane);
            barrier(0, BLOCK);
            if (n) fetch_values(p, place_of(p, item, n - 1), to, channel, thread);
            put_part(base + At::KW, c, warp, lane);
            put_part(base + At::QHAT, d, warp, lane);
            put_state_gradient(base, g, warp, lane);
            large_level(c, 3, base, warp, lane);
            large_level(d, 2, base, warp, lane);
            barrier(0, BLOCK);
            put_part(base + At::LEVELS + 3 * TILE, c, warp, lane);
            put_part(base + At::LEVELS + 2 * TILE, d, warp, lane);
            small_levels(c, d, base, warp, lane);
            barrier(0, BLOCK);
            put_part(base + At::LEVELS + TILE, c, warp, lane);
            put_part(base + At::LEVELS, d, warp, lane);
            barrier(0, BLOCK);
        }
        float lower_bound[2], lower_bound_each[2];
        returns(p, lower_bound, lower_bound_each, base, bound_of(p, channel + 2 * pair), at.left - group * ROWS, group, pair);
        barrier(0, BLOCK);
        if (n) fetch_gates(p, place_of(p, item, n - 1), to, channel, thread);
        finish(p, lower_bound, lower_bound_each, base, at, channel, group, pair);
        if (n) at = place_of(p, item, n - 1);
        states -= (i64)p.heads * (size / 8);
    }
    if (item.first && p.d_state) exchange_gradient(g, p.d_state + ((i64)item.sequence * p.heads + head) * size, warp, lane, true);
    barrier(0, BLOCK);
    if (thread >= WIDTH || !p.d_lower_bound) return;
    float sum = 0.0f;
    for (int n = 0; n < GROUPS; n++) sum += ldsf(base + At::LOWER_BOUND + (n * WIDTH + thread) * 4);
    p.d_lower_bound[(i64)block_x() * p.heads * HEAD + channel + thread] = sum;
}
