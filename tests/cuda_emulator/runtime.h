// What stands between the runtime, which is loaded once, and the kernels, each in a library of its own.
#pragma once

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };

// How Python launches a kernel: the words are its one argument, a struct of 64-bit members.
struct EmulatedLaunch {
    const long long *words;
    long long count, blocks, threads, shared;
    const char *order;
    unsigned long long seed;
    char *message;
    long long capacity;
};

#pragma GCC visibility push(default)
extern "C" {
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
unsigned char *emulated_shared_memory();
void emulated_syncthreads();
unsigned long long emulated_exchange(unsigned mask, unsigned long long bits, int source, const char *operation);
unsigned emulated_ballot(unsigned mask, int predicate);
void emulated_launch(
    const EmulatedLaunch *launch, long long bytes, long long most_threads, void (*body)(const void *),
    unsigned char *first, unsigned char *last);
}
#pragma GCC visibility pop
