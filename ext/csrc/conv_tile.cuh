// What the kernels of the convolution share: the few channels of a thread, their taps, and the activation.
#pragma once
#include "common.cuh"

// Given as macros: K taps, COLUMNS neighbouring channels of a thread (4 or 2), and 0 or 1 for SILU, for WIDE (taps and
// bias are in Real) and for ALIGNED (every row of every tensor can be read in fours, and the taps lie together).
// Loops over the taps are unrolled so far: over more than these they run, and what belongs to a tap lies in memory.
constexpr int UNROLLED = K <= 16 ? K + 1 : 1;

typedef Pack<Element, COLUMNS> Narrow;
typedef Pack<Real, COLUMNS> Wide;
#if WIDE
typedef Real Parameter;
#else
typedef Element Parameter;
#endif

// Wide channels of a row, as many as there are.
__device__ __forceinline__ Narrow fetch(const Element* from, long long apart, int columns) {
  if (ALIGNED) return *(const Narrow*)from;
  Narrow found = {};
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c)
    if (c < columns) found.at[c] = from[c * apart];
  return found;
}

// The same of a row that lies together.
__device__ __forceinline__ void keep(Element* to, const Narrow& given, int columns, long long apart = 1) {
  if (ALIGNED) {
    *(Narrow*)to = given;
    return;
  }
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c)
    if (c < columns) to[c * apart] = given.at[c];
}

__device__ __forceinline__ Real widened(const Parameter& x) {
#if WIDE
  return x;
#else
  return widen(x);
#endif
}

// The filters of a thread's channels: row j holds their j-th taps.
struct Taps {
  Wide weight[K], bias;

  __device__ __forceinline__ void load(const Tensor<const void>& weights, const Tensor<const void>& biases, long long d,
                                       int columns) {
    const Parameter* const first = (const Parameter*)weights.data + d * weights.stride[0];
#pragma unroll UNROLLED
    for (int j = 0; j < K; ++j) {
      if (ALIGNED) {
        const Pack<Parameter, COLUMNS> some = *(const Pack<Parameter, COLUMNS>*)(first + j * COLUMNS);
#pragma unroll
        for (int i = 0; i < COLUMNS; ++i) weight[(j * COLUMNS + i) % K].at[(j * COLUMNS + i) / K] = widened(some.at[i]);
      } else {
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c)
          weight[j].at[c] = c < columns ? widened(first[c * weights.stride[0] + j * weights.stride[1]]) : 0;
      }
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c)
      bias.at[c] =
          biases.data && c < columns ? widened(((const Parameter*)biases.data)[(d + c) * biases.stride[0]]) : 0;
  }
  // The value before the activation of a step whose last K inputs the window holds.
  __device__ __forceinline__ Wide filter(const Wide* window) const {
    Wide sum = bias;
#pragma unroll UNROLLED
    for (int j = 0; j < K; ++j)
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) sum.at[c] += weight[j].at[c] * window[j].at[c];
    return sum;
  }
};

__device__ __forceinline__ Wide activated(Wide x) {
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c)
    if (SILU) x.at[c] *= sigmoid(x.at[c]);
  return x;
}
