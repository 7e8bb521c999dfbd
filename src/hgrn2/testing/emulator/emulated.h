// A GPU's block of threads on a CPU, for tests: fibers that switch at barriers and at instructions of a whole warp.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

typedef uint32_t u32;
typedef uint16_t u16;
typedef long long i64;
struct float2 { float x, y; };
struct uint2 { u32 x, y; };
struct uint4 { u32 x, y, z, w; };
#define DEVICE static inline
#define DEVICE_MEMBER static inline
#define KERNEL(threads) static void

namespace emulated {
const int MOST = 1024, STACK = 1 << 16, SHARED = 232448;  // a block may use what an H100 has
struct Slot { u32 word[4]; float number[4]; u32 more[2]; };
struct Warp { int arrived; u32 turn; Slot slots[2][32]; };
struct Pending { int count, group, groups[64]; u32 to[64]; const void* from[64]; };
struct Barrier { int arrived; u32 turn; };
static ucontext_t scheduler, fibers[MOST];
static char* stacks;
static bool finished[MOST];
static Warp warps[MOST / 32];
static Barrier barriers[16];
static Pending pending[MOST];
static unsigned char shared[SHARED];
static u32 current, bx, by, granted = SHARED;
static bool early;  // whether asynchronous copies arrive at once
static void (*body)();

static void yield() {
    u32 me = current;
    swapcontext(&fibers[me], &scheduler);
    current = me;
}
static void entry() {
    body();
    finished[current] = true;
    swapcontext(&fibers[current], &scheduler);
}
static void run_block(int threads) {
    if (!stacks) stacks = (char*)malloc((size_t)MOST * STACK);
    memset(warps, 0, sizeof warps);
    memset(barriers, 0, sizeof barriers);
    memset(pending, 0, sizeof pending);
    memset(shared, 0xff, sizeof shared);  // NaN: what nobody wrote must not be read
    for (int i = 0; i < threads; i++) {
        finished[i] = false;
        getcontext(&fibers[i]);
        fibers[i].uc_stack.ss_sp = stacks + (size_t)i * STACK;
        fibers[i].uc_stack.ss_size = STACK;
        fibers[i].uc_link = &scheduler;
        makecontext(&fibers[i], entry, 0);
    }
    for (bool alive = true; alive;) {
        alive = false;
        for (int i = 0; i < threads; i++)
            if (!finished[i]) {
                alive = true;
                current = i;
                swapcontext(&scheduler, &fibers[i]);
            }
    }
}
static Slot* meet(const Slot& mine) {  // every lane of the warp gives its slot and gets all of them
    Warp& w = warps[current / 32];
    u32 turn = w.turn;
    w.slots[turn & 1][current % 32] = mine;
    if (++w.arrived == 32) {
        w.arrived = 0;
        w.turn++;
    } else
        while (w.turn == turn) yield();
    return w.slots[turn & 1];
}
static float widen(u32 x) { float f; x <<= 16; memcpy(&f, &x, 4); return f; }
static u32 narrow(float f) {
    u32 x;
    memcpy(&x, &f, 4);
    if (f != f) return 0x7fff;
    return (x + 0x7fff + ((x >> 16) & 1)) >> 16;
}
static u16 half_at(u32 at) { if (at + 2 > granted) abort(); u16 x; memcpy(&x, shared + at, 2); return x; }
static void need(bool true_here) { if (!true_here) abort(); }
static void arrive(u32 to, const void* from) { from ? memcpy(shared + to, from, 16) : memset(shared + to, 0, 16); }
template <class T> T read(u32 at) { need(at % sizeof(T) == 0 && at + sizeof(T) <= granted); T x; memcpy(&x, shared + at, sizeof x); return x; }
template <class T> void write(u32 at, T x) { need(at % sizeof(T) == 0 && at + sizeof(T) <= granted); memcpy(shared + at, &x, sizeof x); }
}  // namespace emulated

DEVICE u32 shared_base() { return 0; }
DEVICE u32 lds32(u32 at) { return emulated::read<u32>(at); }
DEVICE float ldsf(u32 at) { return emulated::read<float>(at); }
DEVICE float2 ldsf2(u32 at) { return emulated::read<float2>(at); }
DEVICE uint2 lds64(u32 at) { return emulated::read<uint2>(at); }
DEVICE void sts32(u32 at, u32 x) { emulated::write(at, x); }
DEVICE void sts16(u32 at, u32 x) { emulated::write(at, (u16)x); }
DEVICE void stsf(u32 at, float x) { emulated::write(at, x); }
DEVICE void stsf2(u32 at, float x, float y) { emulated::write(at, float2{x, y}); }
DEVICE void ldsm_any(u32 (&r)[4], u32 at, bool transposed) {
    emulated::need(at % 16 == 0);
    emulated::Slot mine{};
    mine.word[0] = at;
    emulated::Slot* all = emulated::meet(mine);
    int lane = emulated::current % 32, row = lane / 4, column = lane % 4 * 2;
    for (int m = 0; m < 4; m++) {
        u32 a = transposed ? all[8 * m + column].word[0] + 2 * row : all[8 * m + row].word[0] + 2 * column;
        u32 b = transposed ? all[8 * m + column + 1].word[0] + 2 * row : a + 2;
        r[m] = emulated::half_at(a) | (u32)emulated::half_at(b) << 16;
    }
}
DEVICE void ldsm(u32 (&r)[4], u32 at) { ldsm_any(r, at, false); }
DEVICE void ldsm_t(u32 (&r)[4], u32 at) { ldsm_any(r, at, true); }
DEVICE void mma(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    emulated::Slot mine{{a0, a1, a2, a3}, {}, {b0, b1}};
    emulated::Slot* all = emulated::meet(mine);
    int lane = emulated::current % 32, g = lane / 4, t = lane % 4;
    for (int e = 0; e < 4; e++) {
        double sum = 0;
        for (int k = 0; k < 16; k++) {
            u32 a = all[g * 4 + k % 8 / 2].word[e / 2 + k / 8 * 2], b = all[(2 * t + e % 2) * 4 + k % 8 / 2].more[k / 8];
            sum += (double)emulated::widen(k % 2 ? a >> 16 : a & 0xffff) * emulated::widen(k % 2 ? b >> 16 : b & 0xffff);
        }
        c[e] += (float)sum;
    }
}
DEVICE u32 pack(float lo, float hi) { return emulated::narrow(lo) | emulated::narrow(hi) << 16; }
DEVICE float exp2_fast(float x) { return exp2f(x); }
DEVICE float reciprocal(float x) { return 1.0f / x; }
DEVICE float smaller(float x, float y) { return x != x || x < y ? x : y; }
DEVICE float bits_to_float(u32 x) { float f; memcpy(&f, &x, 4); return f; }
DEVICE float from_lane(float x, int lane) {
    emulated::Slot mine{};
    mine.number[0] = x;
    return emulated::meet(mine)[lane].number[0];
}
DEVICE float exchange(float x, int mask) { return from_lane(x, (emulated::current % 32) ^ mask); }
DEVICE void copy16(u32 to, const void* from, bool inside) {  // arrives when waited for, not before; or at once
    emulated::need(to % 16 == 0 && to + 16 <= emulated::granted && (uintptr_t)from % 16 == 0);
    if (emulated::early) {
        emulated::arrive(to, inside ? from : nullptr);
        return;
    }
    emulated::Pending& mine = emulated::pending[emulated::current];
    emulated::need(mine.count < 64);
    mine.groups[mine.count] = mine.group;
    mine.to[mine.count] = to;
    mine.from[mine.count++] = inside ? from : nullptr;
}
DEVICE void prefetch(const void*) {}
DEVICE void copies_commit() { emulated::pending[emulated::current].group++; }
DEVICE void copies_until(int left) {  // all groups but the last `left` committed ones
    emulated::Pending& mine = emulated::pending[emulated::current];
    int kept = 0;
    for (int n = 0; n < mine.count; n++)
        if (mine.groups[n] >= mine.group - left) {
            mine.groups[kept] = mine.groups[n];
            mine.to[kept] = mine.to[n];
            mine.from[kept++] = mine.from[n];
        } else emulated::arrive(mine.to[n], mine.from[n]);
    mine.count = kept;
}
DEVICE void copies_wait() { copies_until(0); }
DEVICE void copies_wait_but_one() { copies_until(1); }
DEVICE void barrier(int id, int threads) {
    emulated::Barrier& b = emulated::barriers[id];
    u32 turn = b.turn;
    if (++b.arrived == threads) {
        b.arrived = 0;
        b.turn++;
    } else
        while (b.turn == turn) emulated::yield();
}
DEVICE u32 thread_number() { return emulated::current; }
DEVICE u32 block_x() { return emulated::bx; }
DEVICE u32 block_y() { return emulated::by; }
