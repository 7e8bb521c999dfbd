// What a launch is told, and where a block's tokens lie. HEAD (64 or 128) is K = V = n; a block serves 128 channels,
// which are one head of 128 or two of 64.
#pragma once
#include "activations.h"

enum { CHUNK = 64, WIDTH = 128, HEADS = WIDTH / HEAD, TILE = CHUNK * WIDTH * 2, SCORES = 8192 + (HEADS - 1) * 4096 };

struct Item {  // a run of tokens of one sequence, read from one end to the other
    int sequence, begin, tokens, first, last, chunk, unused[2];
};

struct Problem {
    const u16 *q, *f, *i, *grad_o;      // rows of channels, one per token
    i64 q_row, f_row, i_row, o_row;     // elements from row to row; o_row is grad_o's
    const float* lower_bound;        // γ [channels] or null
    const float* state;                 // [sequences, heads, K, V] or null
    const float* grad_state;            // gradient of the final state, or null
    u16 *o, *dq, *df, *di;              // [tokens, channels]
    float *final_state, *d_state;       // [sequences, heads, K, V]
    float* d_lower_bound;                     // [items, channels]
    float* segments;                    // [items, heads, K, V]: local states, then (joined) states at the start of items
    float* decays;                      // [items, channels]: product of the gates of an item
    float* arriving;                    // [items, heads, K, V]: the same for gradients, at the end of items
    uint4* chunks;                      // [chunks, heads, n * n / 8]: states at the start of chunks, in bfloat16
    const Item* items;
    int count, heads, reverse, input_activation, output_activation, mode;
    float scale;
};

// Tiles are [64 tokens][128 channels] of bfloat16; the 16-byte pieces of a row are permuted so that neither rows nor
// columns of pieces meet in one bank: piece c of row r lies at c ^ (r % 8). Tiles start at multiples of 256, so a
// thread adds its own part to the tile's address once and reaches other pieces by xor and other rows by addition.
DEVICE u32 piece(u32 row, u32 column) { return row * 256 + ((column ^ (row & 7)) << 4); }

// Where lane l points for a 16x16 block: matrices 0, 1 are the upper and lower rows of the first eight columns, 2 and 3
// those of the next eight. `tile` holds lane_part already; row is the first row, column (even) the first piece.
DEVICE u32 lane_part(u32 lane) { return piece(lane & 15, lane >> 4); }
DEVICE u32 block_at(u32 tile, u32 row, u32 column) { return (tile ^ (column << 4)) + row * 256; }

// Scores are [64][64], of which the upper right quarter is never used: a second head's first rows are kept there.
// `tile` holds score_part (to read) or score_put_part (a lane's numbers of a product) already; row is a multiple of 8.
DEVICE u32 score_part(u32 lane) { return (lane & 15) * 128 + (((lane >> 4) ^ (lane & 7)) << 4); }
DEVICE u32 score_put_part(u32 lane) { return (lane >> 2) * 128 + ((lane >> 2) << 4) + (lane & 3) * 4; }
DEVICE u32 score_at(u32 tile, u32 row, u32 column, int head) {
    bool second = HEADS == 2 && head;
    u32 r = second && row >= 32 ? row + 32 : row, c = second && row < 32 ? column + 4 : column;
    return (tile ^ (c << 4)) + r * 128;
}

struct Place {  // the tokens of a chunk
    int start, step, left;
};
DEVICE i64 token(const Place& at, int row) { return at.start + at.step * row; }
DEVICE Place place_of(const Problem& p, const Item& item, int chunk) {
    int done = chunk * CHUNK;
    int start = p.reverse ? item.begin + item.tokens - 1 - done : item.begin + done;
    return Place{start, p.reverse ? -1 : 1, item.tokens - done};
}
DEVICE int chunks_of(const Item& item) { return (item.tokens + CHUNK - 1) / CHUNK; }

// Where a thread copies from, and how far it is to the next chunk and to its next row; a tile has 16 pieces per row.
struct Source {
    const u16* from;
    i64 row;
};
template <int THREADS> struct Copy {
    enum { STEP = THREADS / 16, TIMES = CHUNK / STEP };
    DEVICE_MEMBER Source source(const u16* x, i64 row, const Place& at, u32 channel, int thread) {
        return Source{x + token(at, thread >> 4) * row + channel + (thread & 15) * 8, at.step * row};
    }
    DEVICE_MEMBER u32 target(int thread) { return piece(thread >> 4, thread & 15); }
    // Rows beyond the end become zeros; `to` holds target(thread). The source moves on to the next chunk.
    DEVICE_MEMBER void tile(u32 to, Source& x, const u16* safe, int left, int thread) {
        const u16* from = x.from;
#pragma unroll
        for (int n = 0; n < TIMES; n++, from += STEP * x.row) {
            bool inside = (thread >> 4) + n * STEP < left;
            copy16(to + n * STEP * 256, inside ? from : safe, inside);
        }
        x.from += CHUNK * x.row;
    }
    // The thread that copied pieces of a tile applies the input activation to them.
    DEVICE_MEMBER void activate(u32 to, int kind) {
        if (kind == NONE) return;
#pragma unroll 1
        for (int n = 0; n < TIMES * 4; n++) {
            u32 at = to + n / 4 * STEP * 256 + n % 4 * 4, x = lds32(at);
            sts32(at, pack(::activate(low(x), kind), ::activate(high(x), kind)));
        }
    }
};
