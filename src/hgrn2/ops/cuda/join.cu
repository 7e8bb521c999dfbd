// Local states of a sequence's items, one after the other, become the states at the start of the items (mode LOCAL)
// or the gradients that arrive at their ends (mode ARRIVING). A thread follows one number of the state; what it needs of
// several items is read at once, since the reads would otherwise wait for each other.
#include "problem.h"

enum { LOCAL = 1, ARRIVING = 2, BLOCK = 256, AHEAD = 8 };

KERNEL(BLOCK) join(const Problem p) {
    int n = block_x();
    if (p.items[n].sequence < 0 || !p.items[n].first) return;
    bool back = p.mode == ARRIVING;
    int count = 1;
    while (!p.items[n + count - 1].last) count++;
    int part = block_y() * BLOCK + thread_number(), size = p.heads * HEAD * HEAD, width = p.heads * HEAD;
    const float* outer = back ? p.grad_state : p.state;
    float* local = back ? p.arriving : p.segments;
    float run = outer ? outer[(i64)p.items[n].sequence * size + part] : 0.0f;
    for (int done = 0; done < count; done += AHEAD) {
        float added[AHEAD], decay[AHEAD];
#pragma unroll
        for (int m = 0; m < AHEAD; m++) {
            bool needed = done + m < count - 1;  // what the last one adds is not asked for, and was not computed
            i64 item = back ? n + count - 1 - (done + m) : n + done + m;
            added[m] = needed ? local[item * size + part] : 0.0f;
            decay[m] = needed ? p.decays[item * width + part / HEAD] : 0.0f;
        }
#pragma unroll
        for (int m = 0; m < AHEAD; m++) {
            if (done + m >= count) break;
            local[(i64)(back ? n + count - 1 - (done + m) : n + done + m) * size + part] = run;
            run = decay[m] * run + added[m];
        }
    }
}
