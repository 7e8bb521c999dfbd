// o_t = scale act(q_t) S_t over one sequence; a lane holds its value's column of the state.
#include "small.h"

KERNEL(BLOCK) small_forward(const Problem p) {
    const Lane me = lane_of(p);
    if (!me.here) return;
    const float bound = p.bound ? p.bound[me.channel] : 0.0f;
    float state[N];
#pragma unroll
    for (int k = 0; k < N; k++) state[k] = p.state && me.real ? p.state[state_at(p, me, k, me.own)] : 0.0f;

    for (int done = 0; done < me.tokens; done += RUN) {
        float q[RUN], f[RUN], i[RUN];
#pragma unroll
        for (int n = 0; n < RUN; n++) {
            i64 row = row_of(p, me, done + n < me.tokens ? done + n : done);
            q[n] = load(p, p.q, row * p.q_row + me.channel);
            f[n] = load(p, p.f, row * p.f_row + me.channel);
            i[n] = load(p, p.i, row * p.i_row + me.channel);
        }
#pragma unroll
        for (int n = 0; n < RUN; n++) {
            if (done + n >= me.tokens) break;
            const Gate gate = gate_of(f[n], bound);
            const float query = p.scale * activated(q[n], p.output_activation);
            const float value = activated(i[n], p.input_activation);
            float o = 0.0f;
#pragma unroll
            for (int k = 0; k < N; k++) {
                state[k] = other(gate.forget, me, k) * state[k] + other(gate.key, me, k) * value;
                o += other(query, me, k) * state[k];
            }
            if (me.real) store(p, p.o, row_of(p, me, done + n) * (i64)(p.heads * N) + me.channel, o);
        }
    }
    if (!me.real) return;
#pragma unroll
    for (int k = 0; k < N; k++) p.final_state[state_at(p, me, k, me.own)] = state[k];
}
