// The last sums of the gradients of the convolution's and the norm's parameters, over the parts in which they were taken.
//
// A block takes WARP neighbouring results; its SLICES warps share out the parts, every SLICES-th one, and their sums are
// added in order. They are taken in double: there may be many parts, and there are few sums.
#include "common.cuh"

// WIDE is 1 where the results are in Real, 0 where they are Elements.
constexpr int SLICES = 8;

#if WIDE
typedef Real Result;
__device__ __forceinline__ Result rounded(double x) { return (Real)x; }
#else
typedef Element Result;
__device__ __forceinline__ Result rounded(double x) { return narrow((Real)x); }
#endif

struct Arguments {
  const Real* parts;        // (parts, taps+1, channels)
  Result *matrix, *vector;  // (channels, taps), (channels): what row `taps` is; absent where not wanted
  long long count, taps, channels;
};

extern "C" __global__ void __launch_bounds__(WARP* SLICES) sum_parts(const Arguments a) {
  __shared__ double share[SLICES][WARP];
  const int slice = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const long long width = (a.taps + 1) * a.channels, index = (long long)blockIdx.x * WARP + lane;
  double sum = 0;
  if (index < width)
#pragma unroll 8
    for (long long k = slice; k < a.count; k += SLICES) sum += a.parts[k * width + index];
  share[slice][lane] = sum;
  __syncthreads();
  if (slice || index >= width) return;
  for (int k = 1; k < SLICES; ++k) sum += share[k][lane];
  const long long tap = index / a.channels, channel = index % a.channels;
  if (tap < a.taps)
    a.matrix[channel * a.taps + tap] = rounded(sum);
  else if (a.vector)
    a.vector[channel] = rounded(sum);
}
