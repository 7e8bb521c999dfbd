// Small heads, n = HEAD of 1 to 16: the recurrence itself in float32, token by token. A warp scans one sequence for as
// many whole heads as fit into 32 lanes; a lane owns one channel. What other channels of its head hold it gets by
// shuffles, so a token is read once and nothing of the size of the state touches memory but every RUN tokens.
#pragma once
#include "device.h"

// HEAD is n, and 100 more where the tensors are float32.
enum { N = HEAD % 100, WIDE = HEAD / 100, GROUP = 32 / N, LANES = GROUP * N, RUN = N <= 8 ? 8 : 4 };
enum { BLOCK = 32 };  // one warp: then the compiler sees that all lanes of a shuffle run together
enum { NONE = 0, SILU = 1, SIGMOID = 2 };

struct Problem {
    const void *q, *f, *i, *grad_o;  // rows of channels, one per token, in bfloat16, or float32 where WIDE
    i64 q_row, f_row, i_row, o_row;  // elements from row to row; o_row is grad_o's
    const float* lower_bound;        // γ [channels] or null
    const float* state;              // [sequences, heads, K, V] or null
    const float* grad_state;         // gradient of the final state, or null
    void *o, *dq, *df, *di;          // [tokens, channels], dtype as the inputs
    float *final_state, *d_state;    // [sequences, heads, K, V]; the second null where there is none
    float* d_lower_bound;                  // [sequences, channels]
    float* kept;                     // backward: states before every RUN-th token (where `kept_at` says)
    const i64* offsets;              // [sequences + 1] of packed documents, or null
    int sequences, tokens, heads, reverse, input_activation, output_activation;
    float scale;
};

struct Lane {  // what a thread works on
    int sequence, group, groups, head, own, first, tokens, channel;
    i64 begin;
    bool real, here;  // whether there is such a channel, such a sequence
};
DEVICE Lane lane_of(const Problem& p) {
    int lane = thread_number();
    u32 warp = block_x();
    Lane me;
    me.groups = (p.heads + GROUP - 1) / GROUP;
    me.sequence = (int)(warp / (u32)me.groups);
    me.here = me.sequence < p.sequences;
    me.group = (int)(warp % (u32)me.groups);
    me.head = me.group * GROUP + lane / N;
    me.own = lane % N;
    me.first = lane - me.own;
    me.real = lane < LANES && me.head < p.heads;
    me.channel = me.real ? me.head * N + me.own : 0;
    me.begin = 0, me.tokens = 0;
    if (me.here) {
        me.begin = p.offsets ? p.offsets[me.sequence] : (i64)me.sequence * p.tokens;
        me.tokens = p.offsets ? (int)(p.offsets[me.sequence + 1] - me.begin) : p.tokens;
    }
    return me;
}
DEVICE float other(float x, const Lane& me, int n) { return from_lane(x, (me.first + n) & 31); }
DEVICE i64 state_at(const Problem& p, const Lane& me, int k, int v) {
    return (((i64)me.sequence * p.heads + (me.real ? me.head : 0)) * N + k) * N + v;
}
// Where a lane keeps the state before token RUN * run; runs of packed documents never meet.
DEVICE i64 kept_at(const Lane& me, int run) {
    return ((me.begin / RUN + me.sequence + run) * me.groups + me.group) * (N * 32) + (thread_number() & 31);
}

// A lane's numbers of a run of tokens: `first` is that of its first token, `step` leads to the next one.
struct Rows {
    i64 first;
    int step;
};
DEVICE Rows rows_of(const Problem& p, const Lane& me, i64 row, int done) {
    i64 at = me.begin + (p.reverse ? me.tokens - 1 - done : done);
    return Rows{at * row + me.channel, p.reverse ? -(int)row : (int)row};
}
DEVICE float load(const void* x, const Rows& at, int n) {
    return WIDE ? ((const float*)x + at.first)[n * at.step]
                : bits_to_float((u32)((const u16*)x + at.first)[n * at.step] << 16);
}
DEVICE void store(void* x, const Rows& at, int n, float value) {
    if (WIDE) ((float*)x + at.first)[n * at.step] = value;
    else ((u16*)x + at.first)[n * at.step] = (u16)pack(value, value);
}

struct Sigmoid {
    float up, down;  // of x and of -x, neither as 1 minus the other
};
// float32 inputs get a sigmoid that is right to the last digits, bfloat16 ones the instructions of the special unit.
DEVICE Sigmoid sigmoid(float x) {
    float e = WIDE ? expf(-fabsf(x)) : exp2_fast(-1.4426950408889634f * fabsf(x));
    float large = WIDE ? 1.0f / (1.0f + e) : reciprocal(1.0f + e), small = e * large;
    return x >= 0 ? Sigmoid{large, small} : Sigmoid{small, large};
}
struct Activated {
    float value, slope;
};
DEVICE Activated activate(float x, int kind) {
    if (kind == NONE) return Activated{x, 1.0f};
    Sigmoid s = sigmoid(x);
    if (kind == SIGMOID) return Activated{s.up, s.up * s.down};
    return Activated{x * s.up, s.up * (1.0f + x * s.down)};
}
struct Gate {
    float forget, key;
};
DEVICE Gate gate_of(const Sigmoid& s, float lower_bound) {
    return Gate{lower_bound + (1.0f - lower_bound) * s.up, (1.0f - lower_bound) * s.down};
}
