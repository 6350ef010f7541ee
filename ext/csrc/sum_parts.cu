// The last sums of the gradients of the convolution's and the norm's parameters, over the parts in which they were taken.
//
// They are taken in double: there may be many parts, and there are few sums.
#include "slices.cuh"

// WIDE is 1 where the results are in Real, 0 where they are Elements.
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
  const long long width = (a.taps + 1) * a.channels, index = (long long)blockIdx.x * WARP + threadIdx.x % WARP;
  const double sum = over_slices<double>(a.parts + index, a.count, width, index < width, share);
  if (threadIdx.x >= WARP || index >= width) return;
  const long long tap = index / a.channels, channel = index % a.channels;
  if (tap < a.taps)
    a.matrix[channel * a.taps + tap] = rounded(sum);
  else if (a.vector)
    a.vector[channel] = rounded(sum);
}
