// The last sums of the scan's gradients: of B and C over blocks of channels, of the parameters over sequences and segments.
//
// Every sum is taken in an order that depends on nothing but how many terms there are.
#include "slices.cuh"

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

typedef Pack<Real, 4> Four;

// Few terms of many results: a thread takes all the terms of four.
__device__ __forceinline__ void sum_matrices(const Arguments& a, long long selective, long long index) {
  const long long matrix = a.rows * selective * a.padded;
  if (index >= matrix) return;
  Four sum = {};
#pragma unroll 8
  for (long long k = 0; k < a.blocks; ++k) {
    const Four terms = *(const Four*)&a.matrices[k * matrix + index];
#pragma unroll
    for (int j = 0; j < 4; ++j) sum.at[j] += terms.at[j];
  }
  const long long n = index % a.padded, kind = index / a.padded % selective, row = index / a.padded / selective;
  if (n >= a.n) return;
  Element* const to = (a.dB && kind == 0 ? a.dB : a.dC) + row * a.n + n;
  if (a.n % 4 == 0) {
    *(Pack<Element, 4>*)to = narrow(sum);
    return;
  }
  for (int j = 0; j < 4; ++j)
    if (n + j < a.n) to[j] = narrow(sum.at[j]);
}

extern "C" __global__ void __launch_bounds__(WARP* SLICES) scan_sum(const Arguments a) {
  __shared__ Real share[SLICES][WARP];
  const long long selective = (a.dB ? 1 : 0) + (a.dC ? 1 : 0), threads = WARP * SLICES;
  const long long matrix_blocks = (a.rows * selective * a.padded / 4 + threads - 1) / threads;
  if (blockIdx.x < matrix_blocks) {
    sum_matrices(a, selective, (blockIdx.x * threads + threadIdx.x) * 4);
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
  const Real sum = over_slices<Real>(a.parameters + index, a.segments, all, index < all, share);
  for (const Result& result : results) {
    if (threadIdx.x < WARP && index >= 0 && index < result.count && result.data) ((Real*)result.data)[index] = sum;
    index -= result.count;
  }
}
