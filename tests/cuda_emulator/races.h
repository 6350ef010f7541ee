// Finds two threads that touch one place of shared memory, one of them writing, with no barrier between.
//
// g++ -fsanitize=thread calls __tsan_* at every access. A barrier of the block orders all its threads, __syncwarp those
// of a warp; shuffles order nothing, as on the device.
#pragma once

static const int NOBODY = -1, SEVERAL = -2, UNIT = 2;  // bytes that are watched as one

struct Watched {
    unsigned long long block_epoch;
    unsigned write_epoch, read_epoch;  // of the warp
    short writer, reader, reading_warp;
};

static Watched watched_dynamic[MOST_SHARED / UNIT], watched_static[MOST_SHARED / UNIT];
static unsigned long long block_epoch;
static unsigned warp_epoch[MOST_THREADS / 32];
static unsigned char *static_first;
static unsigned long long static_bytes;

static void touch(Watched &at, bool writes, long long offset, const char *kind) {
    const short thread = threadIdx.x, warp = thread / 32;
    if (at.block_epoch != block_epoch) at = {block_epoch, 0, 0, NOBODY, NOBODY, NOBODY};
    const bool after_write = at.writer == NOBODY || at.writer == thread
        || (at.writer / 32 == warp && at.write_epoch < warp_epoch[warp]);
    const bool after_reads = !writes || at.reader == NOBODY || at.reader == thread
        || (at.reading_warp == warp && at.read_epoch < warp_epoch[warp]);
    if (!after_write || !after_reads) {
        const char *other = after_write ? at.reader == SEVERAL ? "others read" : "another reads" : "another writes";
        return fail("block %u: race: thread %d %s byte %lld of the %s shared memory, which %s with no barrier between",
                    blockIdx.x, thread, writes ? "writes" : "reads", offset, kind, other);
    }
    if (writes) {
        at.writer = thread;
        at.write_epoch = warp_epoch[warp];
        at.reader = at.reading_warp = NOBODY;
    } else {
        at.reading_warp = at.reading_warp == NOBODY || at.reading_warp == warp ? warp : SEVERAL;
        at.reader = at.reader == NOBODY || at.reader == thread ? thread : SEVERAL;
        at.read_epoch = warp_epoch[warp];
    }
}

static void watch(const void *address, long long bytes, bool writes) {
    unsigned long long place = reinterpret_cast<unsigned long long>(address);
    unsigned long long offset = place - reinterpret_cast<unsigned long long>(emulated_shared_memory());
    Watched *trace = watched_dynamic;
    if (offset >= (unsigned long long)now->shared) {
        offset = place - reinterpret_cast<unsigned long long>(static_first);
        if (offset >= static_bytes) return;
        trace = watched_static;
    }
    const char *kind = trace == watched_dynamic ? "dynamic" : "static";
    for (unsigned long long i = offset / UNIT; i <= (offset + bytes - 1) / UNIT && i < MOST_SHARED / UNIT; ++i)
        touch(trace[i], writes, UNIT * i, kind);
    if (failed) yield();
}

#define EMULATED_WATCH(bytes)                                                                                 \
    void __tsan_read##bytes(const void *at) { watch(at, bytes, false); }                                      \
    void __tsan_write##bytes(const void *at) { watch(at, bytes, true); }                                      \
    void __tsan_unaligned_read##bytes(const void *at) { watch(at, bytes, false); }                            \
    void __tsan_unaligned_write##bytes(const void *at) { watch(at, bytes, true); }
#pragma GCC visibility push(default)
extern "C" {
EMULATED_WATCH(1)
EMULATED_WATCH(2)
EMULATED_WATCH(4)
EMULATED_WATCH(8)
EMULATED_WATCH(16)
void __tsan_read_range(const void *at, unsigned long long bytes) { watch(at, bytes, false); }
void __tsan_write_range(const void *at, unsigned long long bytes) { watch(at, bytes, true); }
void __tsan_init() { }
void __tsan_func_entry(const void *) { }
void __tsan_func_exit() { }
}
#pragma GCC visibility pop
