// Small kernels, right and wrong, that show what the emulator catches.

struct Args {
    const float *x;
    float *y;
    long long count;
    double scale;
};

#ifndef WARPS
#define WARPS 4
#endif

// The sum of each block's threads' elements times scale, by shuffles and then shared memory.
extern "C" __global__ void __launch_bounds__(32 * WARPS) block_sum(const Args args) {
    __shared__ float partial[WARPS];
    long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    float sum = at < args.count ? args.x[at] : 0.0f;
#pragma unroll
    for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, by);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int i = 1; i < WARPS; ++i) sum += partial[i];
    args.y[blockIdx.x] = sum * (float)args.scale;
}
