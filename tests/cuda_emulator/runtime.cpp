// Runs a kernel block by block, the threads of a block as fibers that take turns at barriers, shuffles and the end.
#include "runtime.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>

static const long long STACK = 64 << 10, MOST_THREADS = 1024, MOST_SHARED = 227 << 10, CANARY = 4 << 10;
static const unsigned char POISON = 0xff;  // NaN in every floating dtype

enum State { READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, DONE };

struct Fiber {
    void *stack_pointer;
    State state;
    unsigned mask;
    int source;
    const char *operation;
    unsigned long long bits, received;
};

struct Warp { unsigned live, waiting; };

static Fiber fibers[MOST_THREADS];
static Warp warps[MOST_THREADS / 32];
static unsigned char *const stacks = static_cast<unsigned char *>(
    mmap(nullptr, MOST_THREADS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
alignas(128) static unsigned char arena[2 * CANARY + MOST_SHARED];
static void *scheduler;
static void (*body)(const void *);
static const EmulatedLaunch *now;
static int at_block_barrier, done;
static bool failed;
static unsigned long long random_state;

extern "C" {
uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

unsigned char *emulated_shared_memory() { return arena + CANARY; }
void emulated_switch(void **from, void *to);
}

// Saves what a call must keep on the stack that is left, and takes it from the one that is entered.
asm(R"(
.text
.globl emulated_switch
.type emulated_switch, @function
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

template <class... Values>
static void fail(const char *format, Values... values) {
    if (!failed) snprintf(now->message, now->capacity, format, values...);
    failed = true;
}

static void yield() { emulated_switch(&fibers[threadIdx.x].stack_pointer, scheduler); }

#include "races.h"

static void release_block() {
    if (at_block_barrier == 0 || at_block_barrier + done < now->threads) return;
    for (int i = 0; i < now->threads; ++i)
        if (fibers[i].state == AT_BLOCK_BARRIER) fibers[i].state = READY;
    at_block_barrier = 0;
    ++block_epoch;
}

// Lets the lanes of `mask` go on, each with what it reads, once every one that still runs has come.
static void release_lanes(int warp, unsigned mask, const char *operation) {
    unsigned lanes = mask & warps[warp].live;
    if (lanes & ~warps[warp].waiting) return;
    for (int lane = 0; lane < 32; ++lane) {
        const Fiber &fiber = fibers[32 * warp + lane];
        if (lanes >> lane & 1 && (fiber.mask != mask || strcmp(fiber.operation, operation)))
            return fail("block %u: thread %d is at %s(0x%08x), another lane of its warp waits for it at %s(0x%08x)",
                        blockIdx.x, 32 * warp + lane, fiber.operation, fiber.mask, operation, mask);
    }
    for (int lane = 0; lane < 32; ++lane) {
        Fiber &fiber = fibers[32 * warp + lane];
        if (!(lanes >> lane & 1)) continue;
        fiber.received = ~0ull;
        if (fiber.source >= 0 && lanes >> fiber.source & 1) fiber.received = fibers[32 * warp + fiber.source].bits;
        fiber.state = READY;
    }
    warps[warp].waiting &= ~lanes;
    if (!strcmp(operation, "__syncwarp")) ++warp_epoch[warp];
}

extern "C" void emulated_syncthreads() {
    fibers[threadIdx.x].state = AT_BLOCK_BARRIER;
    ++at_block_barrier;
    release_block();
    yield();
}

static void meet(unsigned mask, const char *operation) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Fiber &fiber = fibers[threadIdx.x];
    fiber.mask = mask;
    fiber.operation = operation;
    fiber.state = AT_WARP_BARRIER;
    warps[warp].waiting |= 1u << lane;
    if (mask >> lane & 1) release_lanes(warp, mask, operation);
    else fail("block %u: thread %u calls %s with the mask 0x%08x, which lacks its own lane", blockIdx.x, threadIdx.x,
              operation, mask);
    yield();
}

extern "C" unsigned long long emulated_exchange(
    unsigned mask, unsigned long long bits, int source, const char *operation) {
    fibers[threadIdx.x].bits = bits;
    fibers[threadIdx.x].source = source;
    meet(mask, operation);
    return fibers[threadIdx.x].received;
}

extern "C" unsigned emulated_ballot(unsigned mask, int predicate) {
    unsigned votes = 0;
    for (int lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1)
            votes |= unsigned(emulated_exchange(mask, predicate != 0, lane, "__ballot_sync") & 1) << lane;
    return votes & warps[threadIdx.x / 32].live;
}

static void leave() {
    int warp = threadIdx.x / 32;
    fibers[threadIdx.x].state = DONE;
    ++done;
    warps[warp].live &= ~(1u << threadIdx.x % 32);
    release_block();
    for (int lane = 0; lane < 32; ++lane)
        if (warps[warp].waiting >> lane & 1)
            release_lanes(warp, fibers[32 * warp + lane].mask, fibers[32 * warp + lane].operation);
}

static void thread_main() {
    body(now->words);
    leave();
    yield();
}

// What g++ calls where -fsanitize finds a fault; the layouts are those of its libubsan.
struct SourceLocation { const char *file; unsigned line, column; };
struct TypeMismatch { SourceLocation at; const void *type; unsigned char log_alignment, kind; };
#pragma GCC visibility push(default)
extern "C" void __ubsan_handle_type_mismatch_v1(const TypeMismatch *fault, unsigned long long address) {
    fail("block %u: thread %u uses the address 0x%llx, which is null or no multiple of %d, at %s:%u", blockIdx.x,
         threadIdx.x, address, 1 << fault->log_alignment, fault->at.file, fault->at.line);
    yield();
}
extern "C" void __ubsan_handle_out_of_bounds(const SourceLocation *at, unsigned long long index) {
    fail("block %u: thread %u uses index %lld, outside its array, at %s:%u", blockIdx.x, threadIdx.x,
         (long long)index, at->file, at->line);
    yield();
}
#pragma GCC visibility pop

static unsigned long long draw() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    return random_state ^= random_state << 17;
}

// The order in which blocks, or the ready threads of one round, take their turns.
static void arrange(unsigned *order, long long count) {
    bool descending = !strcmp(now->order, "descending");
    for (long long i = 0; i < count; ++i) order[i] = descending ? count - 1 - i : i;
    if (strcmp(now->order, "shuffled")) return;
    for (long long i = count - 1; i > 0; --i) {
        long long j = draw() % (i + 1);
        unsigned swapped = order[i];
        order[i] = order[j];
        order[j] = swapped;
    }
}

static void start(int thread) {
    unsigned char *stack = stacks + thread * STACK;
    memset(stack, POISON, 64);
    void **top = reinterpret_cast<void **>(stack + STACK);
    top[-2] = reinterpret_cast<void *>(thread_main);
    fibers[thread] = {top - 8, READY, 0, -1, "", 0, 0};
    warps[thread / 32].live |= 1u << thread % 32;
}

static void report_deadlock() {
    int block = 0, warp = 0;
    const char *operation = "";
    for (int i = 0; i < now->threads; ++i) {
        block += fibers[i].state == AT_BLOCK_BARRIER;
        warp += fibers[i].state == AT_WARP_BARRIER;
        if (fibers[i].state == AT_WARP_BARRIER) operation = fibers[i].operation;
    }
    fail("block %u: deadlock: of %lld threads %d wait at __syncthreads, %d at a warp's %s, %d have left", blockIdx.x,
         now->threads, block, warp, operation, done);
}

static bool kept(const unsigned char *first, long long bytes) {
    for (long long i = 0; i < bytes; ++i)
        if (first[i] != POISON) return false;
    return true;
}

static void check_canaries() {
    if (!kept(arena, CANARY) || !kept(emulated_shared_memory() + now->shared, CANARY))
        fail("block %u: wrote outside its %lld bytes of dynamic shared memory", blockIdx.x, now->shared);
    for (int i = 0; i < now->threads; ++i)
        if (!kept(stacks + i * STACK, 64)) fail("block %u: thread %d overran its stack", blockIdx.x, i);
}

static void run_block(unsigned *order) {
    memset(warps, 0, sizeof warps);
    memset(arena, POISON, 2 * CANARY + now->shared);
    at_block_barrier = done = 0;
    ++block_epoch;
    for (int i = 0; i < now->threads; ++i) start(i);
    arrange(order, now->threads);
    while (done < now->threads && !failed) {
        bool moved = false;
        for (int i = 0; i < now->threads && !failed; ++i) {
            if (fibers[order[i]].state != READY) continue;
            moved = true;
            threadIdx.x = order[i];
            emulated_switch(&scheduler, fibers[order[i]].stack_pointer);
        }
        if (!moved) report_deadlock();
    }
    check_canaries();
}

extern "C" void emulated_launch(
    const EmulatedLaunch *launch, long long bytes, long long most_threads, void (*kernel)(const void *),
    unsigned char *first, unsigned char *last) {
    now = launch;
    body = kernel;
    failed = false;
    random_state = launch->seed * 2 + 0x9e3779b97f4a7c15ull;
    static_first = first;
    static_bytes = last - first;
    blockDim = {unsigned(launch->threads), 1, 1};
    gridDim = {unsigned(launch->blocks), 1, 1};
    if (bytes != 8 * launch->count)
        return fail("the kernel takes %lld words, but %lld came", bytes / 8, launch->count);
    if (launch->threads > most_threads)
        return fail("%lld threads are more than the %lld of its __launch_bounds__", launch->threads, most_threads);
    if (launch->blocks < 1 || launch->blocks > 0x7fffffff || launch->threads < 1 || launch->threads > MOST_THREADS || launch->shared < 0 || launch->shared + (last - first) > MOST_SHARED)
        return fail("can't launch %lld blocks of %lld threads with %lld bytes of shared memory", launch->blocks,
                    launch->threads, launch->shared);
    unsigned *blocks = static_cast<unsigned *>(malloc(4 * launch->blocks)), threads[MOST_THREADS];
    arrange(blocks, launch->blocks);
    for (long long i = 0; i < launch->blocks && !failed; ++i) {
        blockIdx.x = blocks[i];
        memset(first, POISON, last - first);
        run_block(threads);
    }
    free(blocks);
}
