// What the kernels of the convolution share: the four channels of a thread, their taps, and the activation.
#pragma once
#include "common.cuh"

// Given as macros: K taps, and 0 or 1 for SILU, for WIDE (taps and bias are in Real) and for ALIGNED (every row of every
// tensor can be read in fours, and the taps of four channels lie together).
constexpr int FOUR = 4;
// Loops over the taps are unrolled so far: over more than these they run, and what belongs to a tap lies in memory.
constexpr int UNROLLED = K <= 16 ? K + 1 : 1;

typedef Pack<Element, FOUR> Short;
typedef Pack<Real, FOUR> Four;
#if WIDE
typedef Real Parameter;
#else
typedef Element Parameter;
#endif

// Four channels of a row, as many as there are.
__device__ __forceinline__ Short fetch(const Element* from, long long apart, int columns) {
  if (ALIGNED) return *(const Short*)from;
  Short four = {};
#pragma unroll
  for (int c = 0; c < FOUR; ++c)
    if (c < columns) four.at[c] = from[c * apart];
  return four;
}

// The same of a row that lies together.
__device__ __forceinline__ void keep(Element* to, const Short& four, int columns, long long apart = 1) {
  if (ALIGNED) {
    *(Short*)to = four;
    return;
  }
#pragma unroll
  for (int c = 0; c < FOUR; ++c)
    if (c < columns) to[c * apart] = four.at[c];
}

__device__ __forceinline__ Real widened(const Parameter& x) {
#if WIDE
  return x;
#else
  return widen(x);
#endif
}

// The filters of four channels: row j holds their j-th taps.
struct Taps {
  Four weight[K], bias;

  __device__ __forceinline__ void load(const Tensor<const void>& weights, const Tensor<const void>& biases, long long d, int columns) {
    const Parameter* const first = (const Parameter*)weights.data + d * weights.stride[0];
#pragma unroll UNROLLED
    for (int j = 0; j < K; ++j) {
      if (ALIGNED) {
        const Pack<Parameter, FOUR> four = *(const Pack<Parameter, FOUR>*)(first + j * FOUR);
#pragma unroll
        for (int i = 0; i < FOUR; ++i) weight[(j * FOUR + i) % K].at[(j * FOUR + i) / K] = widened(four.at[i]);
      } else {
#pragma unroll
        for (int c = 0; c < FOUR; ++c)
          weight[j].at[c] = c < columns ? widened(first[c * weights.stride[0] + j * weights.stride[1]]) : 0;
      }
    }
#pragma unroll
    for (int c = 0; c < FOUR; ++c)
      bias.at[c] = biases.data && c < columns ? widened(((const Parameter*)biases.data)[(d + c) * biases.stride[0]]) : 0;
  }
  // The value before the activation of a step whose last K inputs the window holds.
  __device__ __forceinline__ Four filter(const Four* window) const {
    Four sum = bias;
#pragma unroll UNROLLED
    for (int j = 0; j < K; ++j)
#pragma unroll
      for (int c = 0; c < FOUR; ++c) sum.at[c] += weight[j].at[c] * window[j].at[c];
    return sum;
  }
};

__device__ __forceinline__ Four activated(Four x) {
#pragma unroll
  for (int c = 0; c < FOUR; ++c)
    if (SILU) x.at[c] *= sigmoid(x.at[c]);
  return x;
}
