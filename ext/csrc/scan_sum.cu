// The last sums of the scan's gradients: of B and C over blocks of channels, of the parameters over sequences and segments.
//
// Every sum is taken in an order that depends on nothing but how many terms there are.
#include "common.cuh"

constexpr int SLICES = 8;

struct Result {
  void* data;       // 0 where it is not wanted
  long long count;  // of its numbers
};

struct Arguments {
  const Real* matrices;  // (blocks, b·l, selective, padded)
  Element *dB, *dC;      // (b l n) where selective
  long long blocks, rows, n, padded;
  const Real* parameters;  // (segments, [dA dB dC dD dbias])
  Real *dA, *dB_static, *dC_static, *dD, *dbias;
  long long segments, channels;
};

// Many terms of few results: the slices share them out.
__device__ __forceinline__ Real total(const Real* terms, long long count, long long apart, bool mine,
                                      Real (*share)[WARP]) {
  const int slice = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  Real sum = 0;
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

// Few terms of many results: a thread takes all the terms of its own.
__device__ __forceinline__ void sum_matrices(const Arguments& a, long long selective, long long index) {
  const long long matrix = a.rows * selective * a.padded;
  if (index >= matrix) return;
  Real sum = 0;
#pragma unroll 8
  for (long long k = 0; k < a.blocks; ++k) sum += a.matrices[k * matrix + index];
  const long long n = index % a.padded, kind = index / a.padded % selective, row = index / a.padded / selective;
  if (n < a.n) (a.dB && kind == 0 ? a.dB : a.dC)[row * a.n + n] = narrow(sum);
}

extern "C" __global__ void __launch_bounds__(WARP* SLICES) scan_sum(const Arguments a) {
  __shared__ Real share[SLICES][WARP];
  const long long selective = (a.dB ? 1 : 0) + (a.dC ? 1 : 0), threads = WARP * SLICES;
  const long long matrix_blocks = (a.rows * selective * a.padded + threads - 1) / threads;
  if (blockIdx.x < matrix_blocks) {
    sum_matrices(a, selective, blockIdx.x * threads + threadIdx.x);
    return;
  }
  const long long count = a.channels * a.n;
  const Result results[] = {{a.dA, count},
                            {a.dB_static, a.dB_static ? count : 0},
                            {a.dC_static, a.dC_static ? count : 0},
                            {a.dD, a.channels},
                            {a.dbias, a.channels}};
  long long all = 0;
  for (const Result& result : results) all += result.count;
  long long index = (blockIdx.x - matrix_blocks) * WARP + threadIdx.x % WARP;
  const Real sum = total(a.parameters + index, a.segments, all, index < all, share);
  for (const Result& result : results) {
    if (threadIdx.x < WARP && index >= 0 && index < result.count && result.data) ((Real*)result.data)[index] = sum;
    index -= result.count;
  }
}
