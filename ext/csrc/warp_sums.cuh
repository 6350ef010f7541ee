// Sums over the lanes of a warp, of several numbers at once: the tensor cores add up what shuffles would take steps for.
#pragma once
#include "common.cuh"

// Up to MOST numbers of every thread. Numbers 2j and 2j + 1 are given together as add(j, x, y), or where there is one at
// a time number j as add(j, x), of which there are half as many.
//
// In float32 x and y are rows k and k + 4 of an 8 x 8 matrix whose column is lane / 4 (k = lane % 4); a product with a
// matrix of zeros and ones adds four lanes up and puts the sums into rows j and j + 8 of a 16 x 8 one, where the products
// of other numbers leave their rows alone. The tensor cores take the leading 11 bits of a number: enough beside elements
// of 16 bits, else the next 11 are added in a second product, which leaves an error of 2^-22.
struct WarpSums {
  static constexpr int MOST = 16;
  Real row[4] = {};

#if ELEMENT == 3 || defined(MAMBALAB_EMULATED)
  __device__ __forceinline__ static Real over_warp(Real x) {
#pragma unroll
    for (int apart = WARP / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(ALL, x, apart);
    return x;
  }
  __device__ __forceinline__ void add(int j, Real x, Real y = 0) {
    const Real sum_x = over_warp(x), sum_y = over_warp(y);
    const int lane = threadIdx.x % WARP;
    if (lane / 4 == j) row[0] = lane & 1 ? sum_y : sum_x;
  }
  __device__ __forceinline__ Real total() { return row[0]; }
#else
  __device__ __forceinline__ void multiply(float one, float x, float y) {
    const unsigned a = __float_as_uint(one), zero = 0;
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %5, %4}, {%6, %7}, {%0, %1, %2, %3};"
        : "+f"(row[0]), "+f"(row[1]), "+f"(row[2]), "+f"(row[3])
        : "r"(a), "r"(zero), "r"(__float_as_uint(x)), "r"(__float_as_uint(y)));
  }
  __device__ __forceinline__ static float leading(float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000u); }

  __device__ __forceinline__ void add(int j, float x, float y = 0) {
    const float one = threadIdx.x % WARP / 4 == j ? 1.0f : 0.0f;
    multiply(one, x, y);
    if (ELEMENT == 0) multiply(one, x - leading(x), y - leading(y));
  }
  // Eight columns of the rows lane / 4 and lane / 4 + 8 lie with four lanes, two with each.
  __device__ __forceinline__ float total() {
    const bool odd = threadIdx.x & 1;
    const float x = row[0] + row[1], y = row[2] + row[3];
    float sum = (odd ? y : x) + __shfl_xor_sync(ALL, odd ? x : y, 1);
    return sum + __shfl_xor_sync(ALL, sum, 2);
  }
#endif

  // The sum that this lane has come to hold, and which number it is of (MOST for none); then all begins again.
  __device__ __forceinline__ Real take(bool one_at_a_time, int& index) {
    const int lane = threadIdx.x % WARP;
    const Real sum = total();
    index = one_at_a_time ? lane / 4 : lane / 4 * 2 + (lane & 1);
    if (lane & (one_at_a_time ? 3 : 2)) index = MOST;
    row[0] = row[1] = row[2] = row[3] = 0;
    return sum;
  }
};
