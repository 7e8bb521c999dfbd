// One kernel file, named by KERNEL_FILE, with an entry that runs all of its blocks one after the other.
#include "emulated.h"
#include KERNEL_FILE

static Problem argument;
extern "C" void run(const Problem* p, int width, int height, int threads, int shared, int early) {
    emulated::granted = shared;
    emulated::early = early;
    argument = *p;
    emulated::body = [] { KERNEL_NAME(argument); };
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++) {
            emulated::bx = x;
            emulated::by = y;
            emulated::run_block(threads);
        }
}
