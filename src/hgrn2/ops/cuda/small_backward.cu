// All gradients of one sequence. With G_t that of the state after token t, arriving from t and all that follow:
//   G_t += q_t (x) do_t    dq = do_t S_tT    dv = k_t G_t    r = rowsum(G_t (S_{t-1} - v_t))    G_{t-1} = f_t G_t
//   dx_f = (1-lower_bound) s(x) s(-x) r          dbound += s(-x) r
// S_{t-1} - v_t is what a gate decides between, so the gradients of f and of the tied key 1 - f are one sum that does
// not cancel. A lane holds its key's row of S and G, and its value's column of G. Where a state is needed again it is
// computed again, from one kept every RUN tokens.
#include "small.h"

KERNEL(BLOCK) small_backward(const Problem p) {
    const Lane me = lane_of(p);
    if (!me.here) return;
    const float lower_bound = p.lower_bound ? p.lower_bound[me.channel] : 0.0f;
    const int width = p.heads * N;
    float row[N], column[N], state[N], d_lower_bound = 0.0f;
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
        const Rows fs = rows_of(p, me, p.f_row, done), is = rows_of(p, me, p.i_row, done);
        float f[RUN], i[RUN];
#pragma unroll
        for (int n = 0; n < RUN; n++) f[n] = load(p.f, fs, n), i[n] = load(p.i, is, n);
#pragma unroll
        for (int n = 0; n < RUN; n++) {
            const Gate gate = gate_of(sigmoid(f[n]), lower_bound);
            const float value = activate(i[n], p.input_activation).value;
#pragma unroll
            for (int v = 0; v < N; v++) state[v] = gate.forget * state[v] + gate.key * other(value, me, v);
        }
    }

    for (; run >= 0 && me.tokens > 0; run--) {
        const int done = run * RUN, left = me.tokens - done;
        const Rows qs = rows_of(p, me, p.q_row, done), fs = rows_of(p, me, p.f_row, done);
        const Rows is = rows_of(p, me, p.i_row, done), os = rows_of(p, me, p.o_row, done);
        const Rows ds = rows_of(p, me, width, done);
        float q[RUN], go[RUN], before[RUN][N];
        Sigmoid gates[RUN];
        Activated values[RUN];
        const float* kept = p.kept + kept_at(me, run);
#pragma unroll
        for (int v = 0; v < N; v++) state[v] = kept[v * 32];
#pragma unroll
        for (int n = 0; n < RUN; n++) {
            int at = n < left ? n : 0;
            q[n] = load(p.q, qs, at), gates[n].up = load(p.f, fs, at), values[n].value = load(p.i, is, at);
            go[n] = p.scale * load(p.grad_o, os, at);
        }
#pragma unroll
        for (int n = 0; n < RUN; n++) {
            if (n >= left) break;
            gates[n] = sigmoid(gates[n].up);
            values[n] = activate(values[n].value, p.input_activation);
            const Gate gate = gate_of(gates[n], lower_bound);
            const Activated query = activate(q[n], p.output_activation);
            float dq = 0.0f;
#pragma unroll
            for (int v = 0; v < N; v++) {
                const float value = other(values[n].value, me, v);
                before[n][v] = state[v] - value;
                state[v] = gate.forget * state[v] + gate.key * value;
                dq += other(go[n], me, v) * state[v];
            }
            q[n] = query.value;
            if (me.real) store(p.dq, ds, n, dq * query.slope);
        }
#pragma unroll
        for (int n = RUN - 1; n >= 0; n--) {
            if (n >= left) continue;
            const Gate gate = gate_of(gates[n], lower_bound);
            float turned = 0.0f, dv = 0.0f;
#pragma unroll
            for (int m = 0; m < N; m++) {
                row[m] += q[n] * other(go[n], me, m);
                column[m] += other(q[n], me, m) * go[n];
                turned += row[m] * before[n][m];
                dv += column[m] * other(gate.key, me, m);
                row[m] *= gate.forget;
                column[m] *= other(gate.forget, me, m);
            }
            d_lower_bound += gates[n].down * turned;
            if (me.real) {
                store(p.df, ds, n, gate.key * gates[n].up * turned);
                store(p.di, ds, n, dv * values[n].slope);
            }
        }
    }
    if (!me.real) return;
    p.d_lower_bound[(i64)me.sequence * width + me.channel] = d_lower_bound;
    if (!p.d_state) return;
#pragma unroll
    for (int v = 0; v < N; v++) p.d_state[state_at(p, me, me.own, v)] = row[v];
}
