// o_t = scale act(q_t) S_t over one sequence; a lane holds its value's column of the state.
#include "small.h"

KERNEL(BLOCK) small_forward(const Problem p) {
    const Lane me = lane_of(p);
    if (!me.here) return;
    const float lower_bound = p.lower_bound ? p.lower_bound[me.channel] : 0.0f;
    float state[N];
#pragma unroll
    for (int k = 0; k < N; k++) state[k] = p.state && me.real ? p.state[state_at(p, me, k, me.own)] : 0.0f;

    for (int done = 0; done < me.tokens; done += RUN) {
        const Rows qs = rows_of(p, me, p.q_row, done), fs = rows_of(p, me, p.f_row, done);
        const Rows is = rows_of(p, me, p.i_row, done), os = rows_of(p, me, p.heads * N, done);
        const int left = me.tokens - done;
        float q[RUN], f[RUN], i[RUN];
#pragma unroll
        for (int n = 0; n < RUN; n++) {
            int at = n < left ? n : 0;
            q[n] = load(p.q, qs, at), f[n] = load(p.f, fs, at), i[n] = load(p.i, is, at);
        }
#pragma unroll
        for (int n = 0; n < RUN; n++) {
            if (n >= left) break;
            const Gate gate = gate_of(sigmoid(f[n]), lower_bound);
            const float query = p.scale * activate(q[n], p.output_activation).value;
            const float value = activate(i[n], p.input_activation).value;
            float o = 0.0f;
#pragma unroll
            for (int k = 0; k < N; k++) {
                state[k] = other(gate.forget, me, k) * state[k] + other(gate.key, me, k) * value;
                o += other(query, me, k) * state[k];
            }
            if (me.real) store(p.o, os, n, o);
        }
    }
    if (!me.real) return;
#pragma unroll
    for (int k = 0; k < N; k++) p.final_state[state_at(p, me, k, me.own)] = state[k];
}
