// Local states of a sequence's items, one after the other, become the states at the start of the items (mode LOCAL)
// or the gradients that arrive at their ends (mode ARRIVING). A thread follows one number of the state.
#include "problem.h"

enum { LOCAL = 1, ARRIVING = 2, BLOCK = 256 };

KERNEL(BLOCK) join(const Problem p) {
    int n = block_x();
    if (p.items[n].sequence < 0 || !p.items[n].first) return;
    bool back = p.mode == ARRIVING;
    int last = n;
    while (!p.items[last].last) last++;
    int part = block_y() * BLOCK + thread_number(), size = p.heads * HEAD * HEAD;
    const float* outer = back ? p.grad_state : p.state;
    float* local = back ? p.arriving : p.segments;
    float run = outer ? outer[(i64)p.items[n].sequence * size + part] : 0.0f;
    for (int m = back ? last : n; back ? m >= n : m <= last; m += back ? -1 : 1) {
        float* at = local + (i64)m * size + part;
        bool end = m == (back ? n : last);
        float added = end ? 0.0f : *at;
        *at = run;
        if (!end) run = p.decays[(i64)m * p.heads * HEAD + part / HEAD] * run + added;
    }
}
