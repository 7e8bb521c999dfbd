// All gradients of one sequence. With G_t that of the state after token t, arriving from t and all that follow:
//   G_t += q_t (x) do_t    dq = do_t S_tT    dv = k_t G_t    r = rowsum(G_t (S_{t-1} - v_t))    G_{t-1} = f_t G_t
//   dx_f = (1-bound) s(x) s(-x) r          dbound += s(-x) r
// S_{t-1} - v_t is what a gate decides between, so the gradients of f and of the tied key 1 - f are one sum that does
// not cancel. A lane holds its key's row of S and G, and its value's column of G. Where a state is needed again it is
// computed again, from one kept every RUN tokens.
#include "small.h"

KERNEL(BLOCK) small_backward(const Problem p) {
    const Lane me = lane_of(p);
    if (!me.here) return;
    const float bound = p.bound ? p.bound[me.channel] : 0.0f;
    const int width = p.heads * N;
    float row[N], column[N], state[N], d_bound = 0.0f;
#pragma unroll
    for (int n = 0; n < N; n++) {
        row[n] = p.grad_state && me.real ? p.grad_state[state_at(p, me, me.own, n)] : 0.0f;
        column[n] = p.grad_state && me.real ? p.grad_state[state_at(p, me, n, me.own)] : 0.0f;
        state[n] = p.state && me.real ? p.state[state_at(p, me, me.own, n)] : 0.0f;
    }

    int run = 0;
    for (int done = 0; done < me.tokens; done += RUN, run++) {  // states before every RUN-th token
        float* kept = p.kept + kept_at(me, run);
#pragma unroll
        for (int v = 0; v < N; v++) kept[v * 32] = state[v];
        if (done + RUN >= me.tokens) break;
        float f[RUN], i[RUN];
#pragma unroll
        for (int n = 0; n < RUN; n++) {
            i64 at = row_of(p, me, done + n);
            f[n] = load(p, p.f, at * p.f_row + me.channel);
            i[n] = load(p, p.i, at * p.i_row + me.channel);
        }
#pragma unroll
        for (int n = 0; n < RUN; n++) {
            const Gate gate = gate_of(f[n], bound);
            const float value = activated(i[n], p.input_activation);
#pragma unroll
            for (int v = 0; v < N; v++) state[v] = gate.forget * state[v] + gate.key * other(value, me, v);
        }
    }

    for (; run >= 0 && me.tokens > 0; run--) {
        const int done = run * RUN;
        float q[RUN], f[RUN], i[RUN], go[RUN], before[RUN][N];
        const float* kept = p.kept + kept_at(me, run);
#pragma unroll
        for (int v = 0; v < N; v++) state[v] = kept[v * 32];
#pragma unroll
        for (int n = 0; n < RUN; n++) {
            i64 at = row_of(p, me, done + n < me.tokens ? done + n : done);
            q[n] = load(p, p.q, at * p.q_row + me.channel);
            f[n] = load(p, p.f, at * p.f_row + me.channel);
            i[n] = load(p, p.i, at * p.i_row + me.channel);
            go[n] = p.scale * load(p, p.grad_o, at * p.o_row + me.channel);
        }
#pragma unroll
        for (int n = 0; n < RUN; n++) {
            if (done + n >= me.tokens) break;
            const Gate gate = gate_of(f[n], bound);
            const float value = activated(i[n], p.input_activation);
            float dq = 0.0f;
#pragma unroll
            for (int v = 0; v < N; v++) {
                before[n][v] = state[v];
                state[v] = gate.forget * state[v] + gate.key * other(value, me, v);
                dq += other(go[n], me, v) * state[v];
            }
            dq *= slope(q[n], p.output_activation);
            if (me.real) store(p, p.dq, row_of(p, me, done + n) * width + me.channel, dq);
        }
#pragma unroll
        for (int n = RUN - 1; n >= 0; n--) {
            if (done + n >= me.tokens) continue;
            const Sigmoid s = sigmoid(f[n]);
            const Gate gate = gate_of(f[n], bound);
            const float query = activated(q[n], p.output_activation), value = activated(i[n], p.input_activation);
            float turned = 0.0f, dv = 0.0f;
#pragma unroll
            for (int m = 0; m < N; m++) {
                row[m] += query * other(go[n], me, m);
                column[m] += other(query, me, m) * go[n];
                turned += row[m] * (before[n][m] - other(value, me, m));
                dv += column[m] * other(gate.key, me, m);
                row[m] *= gate.forget;
                column[m] *= other(gate.forget, me, m);
            }
            d_bound += s.down * turned;
            if (me.real) {
                i64 at = row_of(p, me, done + n) * width + me.channel;
                store(p, p.df, at, (1.0f - bound) * s.up * s.down * turned);
                store(p, p.di, at, dv * slope(i[n], p.input_activation));
            }
        }
    }
    if (!me.real) return;
    p.d_bound[(i64)me.sequence * width + me.channel] = d_bound;
    if (!p.d_state) return;
#pragma unroll
    for (int v = 0; v < N; v++) p.d_state[state_at(p, me, me.own, v)] = row[v];
}
