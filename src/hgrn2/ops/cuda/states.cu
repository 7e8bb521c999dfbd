// States without outputs. SCAN: from the start of an item, the state at the start of every chunk in bfloat16, for the
// backward. LOCAL: the state an item adds to what came before, and its product of gates. ARRIVING: the same for
// gradients, from the item's end to its start. Eight warps hold 16 keys each of the state; eight make the gates.
#include "columns.h"

struct StatesLayout {
    enum { LEFT = 0, RIGHT = LEFT + 2 * TILE, RAW_F = RIGHT + 4 * TILE, RAW_Q = RAW_F + 2 * TILE,
           TOTALS = RAW_Q + 4 * TILE, WHOLE = TOTALS + GROUPS * WIDTH * 4, END = WHOLE + 2 * WIDTH * 4 };
};
typedef StatesLayout At;
enum { SCAN = 0, LOCAL = 1, ARRIVING = 2, GATE_GROUP = 1, GATE_THREADS = 256, BLOCK = 512 };
typedef Copy<GATE_THREADS> Load;

struct Sources {
    Source q, f, i;
};
DEVICE void turn_round(Source& x, int chunks) {  // from the first chunk to the last, and from then on backwards
    x.from += (i64)(chunks - 1) * CHUNK * x.row;
}
DEVICE void step_back(Source& x) { x.from -= 2 * CHUNK * x.row; }

// Start the copies of the n-th chunk in the order of the scan; always one group of copies. Chunk n + 2 is on its way while other
// threads may still read chunk n, so what is read late has four places in turn; f is read before the barrier and has two.
DEVICE void fetch(const Problem& p, Sources& from, int n, int count, int tokens, u32 to, int thread) {
    if (n < count) {
        bool back = p.mode == ARRIVING;
        int left = tokens - (back ? count - 1 - n : n) * CHUNK;
        Load::tile(to + At::RAW_F + (n & 1) * TILE, from.f, p.f, left, thread);
        Load::tile(to + At::RIGHT + (n & 3) * TILE, from.i, back ? p.grad_o : p.i, left, thread);
        if (back) {
            Load::tile(to + At::RAW_Q + (n & 3) * TILE, from.q, p.q, left, thread);
            step_back(from.f);
            step_back(from.i);
            step_back(from.q);
        }
    }
    copies_commit();
}
DEVICE void prepare(const Problem& p, Sources& from, int n, int count, int tokens, u32 base, const Bound& b, int thread) {
    u32 lane = thread & 31, warp = thread >> 5, pair = (warp & 1) * 32 + lane, to = base + Load::target(thread), side = n & 1;
    int first = 2 * (warp >> 1), left = tokens - (p.mode == ARRIVING ? count - 1 - n : n) * CHUNK;
    u32 column = base + side * TILE + column_part(first, pair), totals = base + At::TOTALS;
    u32 outputs_column = base + (n & 3) * TILE + column_part(first, pair);
    Block f[2], k[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        u32 raw[ROWS];
        read_rows(raw, column, At::RAW_F + h * ROWS * 256);
        gates(f[h], k[h], raw, b, left - (first + h) * ROWS);
        store_product(totals, first + h, pair, f[h]);
    }
    barrier(GATE_GROUP, GATE_THREADS);
    fetch(p, from, n + 2, count, tokens, to, thread);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        Outward out = outward(totals, first + h, pair);
        Block Q;
        one(Q);
        doubled<1>(f[h], Q);
        doubled<2>(f[h], Q);
        doubled<4>(f[h], Q);
        u32 raw[ROWS];
        if (p.mode == ARRIVING) {
            read_rows(raw, outputs_column, At::RAW_Q + h * ROWS * 256);
            outputs(Q, raw, p);
            times(Q, f[h]);
        } else times(Q, k[h]);
        float a = p.mode == ARRIVING ? out.before[2][0] : out.after[2][0], z = p.mode == ARRIVING ? out.before[2][1] : out.after[2][1];
#pragma unroll
        for (int r = 0; r < ROWS; r++) put(column, At::LEFT + h * ROWS * 256, r, Q[r][0] * a, Q[r][1] * z);
        if (first + h == 0) stsf2(base + At::WHOLE + (side * WIDTH + 2 * pair) * 4, out.total[0], out.total[1]);
    }
    copies_wait_but_one();
    if (p.mode != ARRIVING && n + 1 < count) Load::activate(to + At::RIGHT + (n + 1 & 3) * TILE, p.input_activation);
}

// s[n] holds keys 16 * warp + (0..15) and values 8n..8n+7 of their head.
typedef float State[HEAD / 8][4];

DEVICE void advance(State& s, float (&decay)[2], u32 base, int n, int warp, u32 lane) {
    u32 left = base + (n & 1) * TILE + lane_part(lane) + At::LEFT, right = base + (n & 3) * TILE + lane_part(lane) + At::RIGHT;
    int head = HEADS == 1 ? 0 : warp * 16 / HEAD;
    u32 whole = base + At::WHOLE + ((n & 1) * WIDTH + 16 * warp + (lane >> 2)) * 4;
    float a = ldsf(whole), b = ldsf(whole + 32);
    decay[0] *= a;
    decay[1] *= b;
#pragma unroll
    for (int m = 0; m < HEAD / 8; m++) {
        s[m][0] *= a;
        s[m][1] *= a;
        s[m][2] *= b;
        s[m][3] *= b;
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
        u32 x[4];
        ldsm_t(x, block_at(left, 16 * k, 2 * warp));
#pragma unroll
        for (int m = 0; m < HEAD / 16; m++) {
            u32 y[4];
            ldsm_t(y, block_at(right, 16 * k, head * (HEAD / 8) + 2 * m));
            mma(s[2 * m], x[0], x[2], x[1], x[3], y[0], y[1]);
            mma(s[2 * m + 1], x[0], x[2], x[1], x[3], y[2], y[3]);
        }
    }
}
// In the order in which a product with the state's transpose takes it: 16 bytes per lane for 16 keys and 16 values.
DEVICE void write_chunk(const State& s, uint4* to, u32 lane) {
#pragma unroll
    for (int m = 0; m < HEAD / 16; m++)
        to[m * 32 + lane] = uint4{pack(s[2 * m][0], s[2 * m][1]), pack(s[2 * m + 1][0], s[2 * m + 1][1]),
                                  pack(s[2 * m][2], s[2 * m][3]), pack(s[2 * m + 1][2], s[2 * m + 1][3])};
}
template <class T> DEVICE void each(State& s, T* at, u32 lane, bool save) {  // rows are keys
#pragma unroll
    for (int m = 0; m < HEAD / 8; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float2* x = (float2*)(at + ((lane >> 2) + 8 * h) * HEAD + 8 * m + 2 * (lane & 3));
            if (save) *x = float2{s[m][2 * h], s[m][2 * h + 1]};
            else s[m][2 * h] = x->x, s[m][2 * h + 1] = x->y;
        }
}

KERNEL(BLOCK) states(const Problem p) {
    int thread = thread_number(), warp = thread >> 5;
    u32 lane = thread & 31, base = shared_base(), channel = block_y() * WIDTH;
    Item item = p.items[block_x()];
    if (item.sequence < 0 || (p.mode == LOCAL && item.last) || (p.mode == ARRIVING && item.first)) return;
    int count = chunks_of(item);
    Place at = place_of(p, item, 0);
    if (warp >= 8) {
        thread -= 256;
        Bound b = bound_of(p, channel + 2 * ((warp & 1) * 32 + lane));
        bool back = p.mode == ARRIVING;
        Sources from{Load::source(p.q, p.q_row, at, channel, thread), Load::source(p.f, p.f_row, at, channel, thread),
                     Load::source(back ? p.grad_o : p.i, back ? p.o_row : p.i_row, at, channel, thread)};
        if (back) {
            turn_round(from.q, count);
            turn_round(from.f, count);
            turn_round(from.i, count);
        }
        u32 to = base + Load::target(thread);
        fetch(p, from, 0, count, item.tokens, to, thread);
        fetch(p, from, 1, count, item.tokens, to, thread);
        copies_wait_but_one();
        if (!back && count) Load::activate(to + At::RIGHT, p.input_activation);
        barrier(GATE_GROUP, GATE_THREADS);
#pragma unroll 1
        for (int n = 0; n <= count; n++) {
            if (n < count) prepare(p, from, n, count, item.tokens, base, b, thread);
            barrier(0, BLOCK);
        }
        return;
    }
    int head = block_y() * HEADS + 16 * warp / HEAD, key = 16 * warp % HEAD;
    float* own = (p.mode == ARRIVING ? p.arriving : p.segments) + ((i64)block_x() * p.heads + head) * (HEAD * HEAD) + key * HEAD;
    State s = {};
    float decay[2] = {1.0f, 1.0f};
    if (p.mode == SCAN) {
        const float* first = p.state ? p.state + ((i64)item.sequence * p.heads + head) * (HEAD * HEAD) + key * HEAD : nullptr;
        const float* from = item.first ? first : own;
        if (from) each(s, (float*)from, lane, false);
    }
    uint4* chunks = p.chunks + ((i64)item.chunk * p.heads + head) * (HEAD * HEAD / 8) + key / 16 * (HEAD / 16) * 32;
#pragma unroll 1
    for (int n = 0; n <= count; n++) {
        if (n) {
            if (p.mode == SCAN) write_chunk(s, chunks, lane);
            chunks += (i64)p.heads * (HEAD * HEAD / 8);
            advance(s, decay, base, n - 1, warp, lane);
        }
        barrier(0, BLOCK);
    }
    if (p.mode == SCAN) return;
    each(s, own, lane, true);
    if ((lane & 3) == 0) {
        float* to = p.decays + (i64)block_x() * p.heads * HEAD + channel + 16 * warp + (lane >> 2);
        to[0] = decay[0];
        to[8] = decay[1];
    }
}
