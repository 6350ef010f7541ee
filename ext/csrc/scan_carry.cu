// What each segment of a split scan starts from, out of what every segment leaves behind: one thread a state.
#include "common.cuh"

struct Arguments {
  Tensor<const void> A;  // (d n)
  const Real* sums;      // (sequences, segments, d): ΣΔ
  Real* ends;            // (sequences, segments, d, n); what a segment leaves becomes what it starts from
  long long sequences, segments, channels, n, reverse;
};

extern "C" __global__ void scan_carry(const Arguments a) {
  const long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x, states = a.channels * a.n;
  if (index >= a.sequences * states) return;
  const long long sequence = index / states, state = index % states, d = state / a.n;
  const Real A = ((const Real*)a.A.data)[d * a.A.stride[0] + state % a.n * a.A.stride[1]] * (Real)LOG2_E;
  Real carried = 0;
  for (long long k = 0; k < a.segments; ++k) {
    const long long segment = sequence * a.segments + (a.reverse ? a.segments - 1 - k : k);
    const Real left = k < a.segments - 1 ? a.ends[segment * states + state] : 0;
    const Real decay = k && k < a.segments - 1 ? exp2_of(A * a.sums[segment * a.channels + d]) : 0;
    a.ends[segment * states + state] = carried;
    // The first to be walked started from the given state, so what it left is whole.
    carried = k ? left + decay * carried : left;
  }
}
