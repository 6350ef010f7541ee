// Sums of many terms for few results: the warps of a block share out the terms of WARP neighbouring results.
#pragma once
#include "common.cuh"

constexpr int SLICES = 8;

// The sum over k < count of terms[k · apart], for every thread of the result's lane; a warp takes every SLICES-th term, and
// their sums are added in order. All threads of the block come here together, those with no result of their own too.
template <class Sum>
__device__ __forceinline__ Sum over_slices(const Real* terms, long long count, long long apart, bool mine,
                                           Sum (*share)[WARP]) {
  const int slice = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  Sum sum = 0;
  if (mine)
#pragma unroll 8
    for (long long k = slice; k < count; k += SLICES) sum += terms[k * apart];
  share[slice][lane] = sum;
  __syncthreads();
  sum = 0;
#pragma unroll
  for (int k = 0; k < SLICES; ++k) sum += share[k][lane];
  return sum;
}
