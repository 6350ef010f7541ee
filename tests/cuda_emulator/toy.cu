// Small kernels, right and wrong, that show what the emulator computes and what it catches.
#include "common.cuh"

struct Args {
  const float* x;
  float* y;
  long long count;
  double scale;
};

#ifndef WARPS
#define WARPS 2
#endif

// y[block] = scale times the sum of the block's elements, by shuffles and then shared memory.
extern "C" __global__ void __launch_bounds__(WARP* WARPS) block_sum(const Args args) {
  __shared__ float partial[WARPS];
  long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  float sum = at < args.count ? args.x[at] : 0;
#pragma unroll
  for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(ALL, sum, by);
  if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < WARPS; ++i) sum += partial[i];
  args.y[blockIdx.x] = sum * (float)args.scale;
}

// What each lane of one warp reads, count being the distance; eight kinds, a row of y each.
extern "C" __global__ void shuffles(const Args args) {
  int lane = threadIdx.x, by = (int)args.count;
  double x = args.x[lane];
  float* y = args.y + lane;
  y[0 * WARP] = __shfl_sync(ALL, (float)x, by);
  y[1 * WARP] = __shfl_sync(ALL, x, by, 8);
  y[2 * WARP] = __shfl_xor_sync(ALL, (long long)x, by);
  y[3 * WARP] = __shfl_xor_sync(ALL, (int)x, by, 8);
  y[4 * WARP] = __shfl_up_sync(ALL, (unsigned)x, by);
  y[5 * WARP] = __shfl_up_sync(ALL, (float)x, by, 8);
  y[6 * WARP] = __shfl_down_sync(ALL, (float)x, by);
  y[7 * WARP] = __shfl_down_sync(ALL, (float)x, by, 8);
}

// Each half of a warp meets on its own, and the threads that have left hold nobody up: y[lane] = lanes voting.
extern "C" __global__ void halves(const Args args) {
  if (threadIdx.x == 5) return;
  unsigned mine = threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u;
  if (threadIdx.x >= 16) __syncwarp(mine);
  args.y[threadIdx.x] = __popc(__ballot_sync(mine, threadIdx.x % 4 == 0));
  __syncthreads();
}

// Each thread reads its neighbour's x through shared memory; BARRIER says what stands between: 0 nothing, 1 a shuffle,
// 2 the barrier of a warp, 3 that of the block. AGAIN lets each write once more after it has read.
extern "C" __global__ void neighbour(const Args args) {
  DYNAMIC_SHARED(memory);
  float* tile = (float*)memory;
  tile[threadIdx.x] = args.x[threadIdx.x];
#if BARRIER == 1
  __shfl_sync(ALL, 0, 0);
#elif BARRIER == 2
  __syncwarp();
#elif BARRIER == 3
  __syncthreads();
#endif
  args.y[threadIdx.x] = tile[threadIdx.x == 0 ? blockDim.x - 1 : threadIdx.x - 1];
#ifdef AGAIN
  tile[threadIdx.x] = 0;
#endif
}

// The same through global memory, with nothing between.
extern "C" __global__ void relay(const Args args) {
  args.y[threadIdx.x] = args.x[threadIdx.x];
  args.y[blockDim.x + threadIdx.x] = args.y[threadIdx.x == 0 ? blockDim.x - 1 : threadIdx.x - 1];
}

// Adds to what shared memory, its own and the launch's, held before anything was written there.
extern "C" __global__ void unwritten(const Args args) {
  DYNAMIC_SHARED(memory);
  __shared__ float tile[WARP];
  args.y[2 * blockIdx.x] = tile[0] + 1;
  args.y[2 * blockIdx.x + 1] = ((float*)memory)[0] + 1;
  tile[0] = ((float*)memory)[0] = 0;
}

// Writes `count` elements away from the start of its dynamic shared memory.
extern "C" __global__ void outside(const Args args) {
  DYNAMIC_SHARED(memory);
  ((float*)memory)[args.count] = 1;
}

// Thread 0 waits for its warp, which waits for the block.
extern "C" __global__ void deadlock(const Args args) {
  if (threadIdx.x == 0) __syncwarp();
  __syncthreads();
}

// The lanes of a warp call two different shuffles.
extern "C" __global__ void diverged(const Args args) {
  float x = threadIdx.x % 2 ? __shfl_up_sync(ALL, 1.0f, 1) : __shfl_down_sync(ALL, 1.0f, 1);
  args.y[threadIdx.x] = x;
}

// Every thread names a mask without itself.
extern "C" __global__ void strangers(const Args args) { __syncwarp(~(1u << threadIdx.x)); }

// Reads two neighbours at once from the element `count`.
extern "C" __global__ void pair(const Args args) {
  const Pack<float, 2> two = *(const Pack<float, 2>*)(args.x + args.count);
  args.y[0] = two.at[0] + two.at[1];
}

// Reads the element `count` of an array of four.
extern "C" __global__ void indexed(const Args args) {
  const Pack<float, 4> four = *(const Pack<float, 4>*)args.x;
  args.y[0] = four.at[args.count];
}
