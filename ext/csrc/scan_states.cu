// The states of a scan without its outputs: what a segment leaves behind, and checkpoints along the way.
//
// Forward (REVERSE 0) it is h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t; where CHECKPOINT is not 0, h is kept before every
// CHECKPOINT-th step. In REVERSE it is the adjoint s_t = exp(Δ_t A) (C_t dy'_t + s_{t+1}), where dy' = dy silu(z) and
// s is the gradient of the state before step t. A segment that is not the first to be walked starts from zero: the sum
// of its Δ is kept too, for exp(A ΣΔ) is how much of the state it is given later comes through.
#define LANES 1
#include "scan_tile.cuh"

struct Arguments {
  Inputs in;
  Tensor<const Element> dy;
  Tensor<const void> dfinal;  // (sequences, d, n)
  Real* ends;                 // (sequences, segments, d, n)
  Real* sums;                 // (sequences, segments, d)
  Real* checkpoints;          // (slots, GROUPS, d, STATES): see checkpoint_slot
  Real* checkpoint_sums;      // (slots, d)
};

constexpr bool STATIC_INPUT = REVERSE ? STATIC_C : STATIC_B;

struct Tile {
  Pack<Real, 2> step[STEPS][CHANNELS];  // Δ, and Δu or dy'
  Real input[STATIC_INPUT ? 1 : STEPS][PADDED];
};

struct Shared {
  Tile tile[2];
};

struct Raw {
  Fetched<CHANNELS> x, delta, z;
  Fetched<PADDED> input;

  __device__ __forceinline__ void load(const Arguments& a, const Place& place, long long t) {
    const Inputs& in = a.in;
    const Tensor<const Element>& source = REVERSE ? a.dy : in.u;
    const Tensor<const void>& matrix = REVERSE ? in.C : in.B;
    const int steps = place.steps_from(t), columns = place.columns(in);
    delta.load(in.delta.at(place.row, t, place.channel), in.delta.stride, steps, columns);
    x.load(source.at(place.row, t, place.channel), source.stride, steps, columns);
    if (REVERSE && in.z.data) z.load(in.z.at(place.row, t, place.channel), in.z.stride, steps, columns);
    if (!STATIC_INPUT) input.load(elements(matrix, place.row, t), matrix.stride, steps, in.n);
  }
  __device__ __forceinline__ void write(const Inputs& in, Tile& tile, const Pack<Real, VECTOR>& bias, int steps) const {
#pragma unroll
    for (int r = 0; r < x.COUNT; ++r) {
      if (!x.mine(r)) continue;
      const Pack<Real, VECTOR> step = time_steps(delta.four[r], bias, in.with_softplus, x.step(r) < steps);
      Pack<Real, VECTOR> wide = widen(x.four[r]);
      if (!REVERSE) wide = times(step, wide);
      if (REVERSE && in.z.data) wide = times(wide, silu(widen(z.four[r])));
      Pack<Pack<Real, 2>, VECTOR> both;
#pragma unroll
      for (int j = 0; j < VECTOR; ++j) both.at[j] = {step.at[j], wide.at[j]};
      *(Pack<Pack<Real, 2>, VECTOR>*)&tile.step[x.step(r)][x.column(r)] = both;
    }
    if (!STATIC_INPUT) input.store(tile.input);
  }
};

// UNROLL steps from `first` on, or back from the last of them.
__device__ __forceinline__ void walk(const Tile& tile, int first, const States& A, const States& fixed, States& h, Real& sum) {
  const int lane = threadIdx.x % WARP, n0 = threadIdx.x / WARP * STATES;
  Pack<Real, 2> step[UNROLL];
  Pack<Real, STATES> input[UNROLL];
#pragma unroll
  for (int t = 0; t < UNROLL; ++t) {
    step[t] = tile.step[first + t][lane];
    input[t] = STATIC_INPUT ? fixed : *(const Pack<Real, STATES>*)&tile.input[first + t][n0];
  }
#pragma unroll
  for (int k = 0; k < UNROLL; ++k) {
    const int t = REVERSE ? UNROLL - 1 - k : k;
    sum += step[t].at[0];
#pragma unroll
    for (int i = 0; i < STATES; ++i) {
      const Real exponent = step[t].at[0] * A.at[i], x = step[t].at[1] * input[t].at[i];
      if (REVERSE)
        h.at[i] = exp2_of(exponent) * (x + h.at[i]);
      else
        h.at[i] = exp2_of(exponent) * h.at[i] + x * gain(exponent);
    }
  }
}

#if CHECKPOINT
// The state before step t, and the sum of Δ since the segment began.
__device__ __forceinline__ void keep(const Arguments& a, const Place& place, long long t, long long d, int group, const States& h, Real sum) {
  if (t >= place.part.end || d >= a.in.channels) return;
  const long long slot = checkpoint_slot(a.in, place, t);
  *(Pack<Real, STATES>*)&a.checkpoints[((slot * GROUPS + group) * a.in.channels + d) * STATES] = h;
  if (group == 0) a.checkpoint_sums[slot * a.in.channels + d] = sum;
}
#endif

// The tile that is the m-th to be walked begins here.
__device__ __forceinline__ long long tile_begin(const Place& place, long long tiles, long long m) {
  return place.part.begin + (REVERSE ? tiles - 1 - m : m) * STEPS;
}

// The helpers' side: while a tile is walked, the next is made ready.
__device__ __forceinline__ void serve(const Arguments& a, const Place& place, Shared& shared, long long tiles) {
  const Pack<Real, VECTOR> bias = per_channel(a.in.bias, place.channel + Fetched<CHANNELS>::column(0), a.in.channels);
  Raw raw;
  if (tiles) raw.load(a, place, tile_begin(place, tiles, 0));
  for (long long m = 0; m < tiles; ++m) {
    raw.write(a.in, shared.tile[m & 1], bias, place.steps_from(tile_begin(place, tiles, m)));
    if (m + 1 < tiles) raw.load(a, place, tile_begin(place, tiles, m + 1));
    __syncthreads();
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) scan_states(const Arguments a) {
  DYNAMIC_SHARED(bytes);
  Shared& shared = *(Shared*)bytes;
  const Inputs& in = a.in;
  const Place place(in, blockIdx.x);
  const long long last = REVERSE ? 0 : in.segments - 1, first = in.segments - 1 - last;
  // Nobody asks what the last segment to be walked leaves behind.
  if (place.segment == last && !CHECKPOINT) return;
  const long long tiles = (place.part.end - place.part.begin + STEPS - 1) / STEPS;
  if (threadIdx.x >= WALKERS) {
    serve(a, place, shared, tiles);
    return;
  }
  const long long d = place.channel + threadIdx.x % WARP;
  const int group = threadIdx.x / WARP, n0 = group * STATES;
  States A, fixed, h;
  A.load(in.A, d, n0, in);
  A.scale((Real)LOG2_E);
  if (STATIC_INPUT) fixed.load(REVERSE ? in.C : in.B, d, n0, in);
  h.clear();
  const Tensor<const void>& start = REVERSE ? a.dfinal : in.initial;
  if (place.segment == first && start.data) h.load_row(start, place.sequence, d, n0, in);
  Real sum = 0;
  for (long long m = 0; m < tiles; ++m) {
    // The helpers fill the other tile once everybody has come by here, which is when that one has been walked.
    __syncthreads();
#pragma unroll 1
    for (int at = 0; at < STEPS; at += UNROLL) {
#if CHECKPOINT
      if (at % CHECKPOINT == 0) keep(a, place, tile_begin(place, tiles, m) + at, d, group, h, sum);
#endif
      walk(shared.tile[m & 1], REVERSE ? STEPS - UNROLL - at : at, A, fixed, h, sum);
    }
  }
  if (place.segment == last) return;
  const long long index = place.sequence * in.segments + place.segment;
  h.store(a.ends, index, d, n0, in);
  if (group == 0 && d < in.channels) a.sums[index * in.channels + d] = sum;
}
