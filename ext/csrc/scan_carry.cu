// What each segment of a split scan starts from, out of what every segment leaves behind: one thread a state.
#include "common.cuh"

struct Arguments {
  Tensor<const void> A;  // (d n)
  const Real* sums;      // (sequences, segments, d): ΣΔ
  Real* ends;            // (sequences, segments, d, n); what a segment leaves becomes what it starts from
  long long sequences, segments, channels, n, reverse;
};

constexpr int BATCH = 8;

extern "C" __global__ void scan_carry(const Arguments a) {
  const long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x, states = a.channels * a.n;
  if (index >= a.sequences * states) return;
  const long long sequence = index / states, state = index % states, d = state / a.n;
  const Real A = in_base_two(((const Real*)a.A.data)[d * a.A.stride[0] + state % a.n * a.A.stride[1]]);
  const auto segment_of = [&](long long k) { return sequence * a.segments + (a.reverse ? a.segments - 1 - k : k); };
  Real carried = 0;
  for (long long first = 0; first < a.segments; first += BATCH) {
    // What some segments left is read at once: one by one, each read would wait for the write before it.
    Real left[BATCH], sum[BATCH];
#pragma unroll
    for (int j = 0; j < BATCH; ++j) {
      const bool there = first + j < a.segments - 1;
      left[j] = there ? a.ends[segment_of(first + j) * states + state] : 0;
      sum[j] = there ? a.sums[segment_of(first + j) * a.channels + d] : 0;
    }
#pragma unroll
    for (int j = 0; j < BATCH; ++j) {
      if (first + j >= a.segments) break;
      a.ends[segment_of(first + j) * states + state] = carried;
      // The first to be walked started from the given state, so what it left is whole.
      carried = first + j ? left[j] + exp2_of(A * sum[j]) * carried : left[j];
    }
  }
}
