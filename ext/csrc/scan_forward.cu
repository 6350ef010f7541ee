// The selective scan, forward: each block one segment of one sequence for a warp's width of channels.
#define LANES 1
#define CHECKPOINT 0
#include "scan_tile.cuh"

struct Arguments {
  Inputs in;
  Tensor<const void> carried;  // (sequences, segments, d, n): the state each segment but the first starts from
  Element* y;                  // (b l d)
  Real* final_state;           // (sequences, d, n)
};

struct Tile {
  Pack<Real, 2> step[STEPS][CHANNELS];  // Δ and Δu
  Real B[STATIC_B ? 1 : STEPS][PADDED], C[STATIC_C ? 1 : STEPS][PADDED];
};

struct Shared {
  Tile tile[2];
  Real partial[2][GROUPS][STEPS][CHANNELS];  // C·h over the states of one warp
};

// What a tile is made of, on its way from memory while the tile before it is walked.
struct Raw {
  Fetched<CHANNELS> u, delta;
  Fetched<PADDED> B, C;

  __device__ __forceinline__ void load(const Inputs& in, const Place& place, long long t) {
    const int steps = place.steps_from(t), columns = place.columns(in);
    u.load(in.u.at(place.row, t, place.channel), in.u.stride, steps, columns);
    delta.load(in.delta.at(place.row, t, place.channel), in.delta.stride, steps, columns);
    if (!STATIC_B) B.load(elements(in.B, place.row, t), in.B.stride, steps, in.n);
    if (!STATIC_C) C.load(elements(in.C, place.row, t), in.C.stride, steps, in.n);
  }
  __device__ __forceinline__ void write(Tile& tile, const Pack<Real, VECTOR>& bias, int steps, bool with_softplus) const {
#pragma unroll
    for (int r = 0; r < u.COUNT; ++r) {
      if (!u.mine(r)) continue;
      const Pack<Real, VECTOR> step = time_steps(delta.four[r], bias, with_softplus, u.step(r) < steps), wide = widen(u.four[r]);
      Pack<Pack<Real, 2>, VECTOR> both;
#pragma unroll
      for (int j = 0; j < VECTOR; ++j) both.at[j] = {step.at[j], step.at[j] * wide.at[j]};
      *(Pack<Pack<Real, 2>, VECTOR>*)&tile.step[u.step(r)][u.column(r)] = both;
    }
    if (!STATIC_B) B.store(tile.B);
    if (!STATIC_C) C.store(tile.C);
  }
};

// STEPS steps of the recurrence for the states of one thread; y's share of them goes to `partial`.
__device__ __forceinline__ void walk(const Tile& tile, Real (*partial)[CHANNELS], const States& A, const States& B, const States& C, States& h) {
  const int lane = threadIdx.x % WARP, n0 = threadIdx.x / WARP * STATES;
#pragma unroll 1
  for (int first = 0; first < STEPS; first += UNROLL) {
    Pack<Real, 2> step[UNROLL];
    Pack<Real, STATES> in[UNROLL], out[UNROLL];
    Real y[UNROLL];
#pragma unroll
    for (int t = 0; t < UNROLL; ++t) {
      step[t] = tile.step[first + t][lane];
      in[t] = STATIC_B ? B : *(const Pack<Real, STATES>*)&tile.B[first + t][n0];
      out[t] = STATIC_C ? C : *(const Pack<Real, STATES>*)&tile.C[first + t][n0];
    }
#pragma unroll
    for (int t = 0; t < UNROLL; ++t) {
      y[t] = 0;
#pragma unroll
      for (int i = 0; i < STATES; ++i) {
        const Real exponent = step[t].at[0] * A.at[i];
        h.at[i] = exp2_of(exponent) * h.at[i] + step[t].at[1] * in[t].at[i] * gain(exponent);
        y[t] += out[t].at[i] * h.at[i];
      }
    }
#pragma unroll
    for (int t = 0; t < UNROLL; ++t) partial[first + t][lane] = y[t];
  }
}

// The sum over the warps, the skip connection and the gate, for the fours of one thread.
__device__ __forceinline__ void finish(const Arguments& a, const Place& place, const Real (*partial)[STEPS][CHANNELS], long long t, const Fetched<CHANNELS>& u, const Fetched<CHANNELS>& z, const Pack<Real, VECTOR>& D) {
  const int steps = place.steps_from(t), columns = place.columns(a.in);
  Element* const y = a.y + (place.row * a.in.length + t) * a.in.channels + place.channel;
#pragma unroll
  for (int r = 0; r < u.COUNT; ++r) {
    if (!u.mine(r) || u.step(r) >= steps || u.column(r) >= columns) continue;
    Pack<Real, VECTOR> sum = *(const Pack<Real, VECTOR>*)&partial[0][u.step(r)][u.column(r)];
#pragma unroll
    for (int g = 1; g < GROUPS; ++g) sum = plus(sum, *(const Pack<Real, VECTOR>*)&partial[g][u.step(r)][u.column(r)]);
    sum = plus(sum, times(D, widen(u.four[r])));
    if (a.in.z.data) sum = times(sum, silu(widen(z.four[r])));
    put(y + u.step(r) * a.in.channels + u.column(r), sum, columns - u.column(r));
  }
}

// The helpers' side: while a tile is walked, the sums of the one before become outputs and the one after is made ready.
__device__ __forceinline__ void serve(const Arguments& a, const Place& place, Shared& shared) {
  const Inputs& in = a.in;
  const int column = place.channel + Fetched<CHANNELS>::column(0);
  const Pack<Real, VECTOR> bias = per_channel(in.bias, column, in.channels), D = per_channel(in.D, column, in.channels);
  Raw raw;
  Fetched<CHANNELS> u, z;
  raw.load(in, place, place.part.begin);
  raw.write(shared.tile[0], bias, place.steps_from(place.part.begin), in.with_softplus);
  if (place.part.begin + STEPS < place.part.end) raw.load(in, place, place.part.begin + STEPS);
  __syncthreads();
  int k = 0;
  for (long long t = place.part.begin; t < place.part.end; t += STEPS, k ^= 1) {
    const long long before = t - STEPS, next = t + STEPS;
    if (before >= place.part.begin) finish(a, place, shared.partial[k ^ 1], before, u, z, D);
    const int columns = place.columns(in);
    u.load(in.u.at(place.row, t, place.channel), in.u.stride, place.steps_from(t), columns);
    if (in.z.data) z.load(in.z.at(place.row, t, place.channel), in.z.stride, place.steps_from(t), columns);
    if (next < place.part.end) raw.write(shared.tile[k ^ 1], bias, place.steps_from(next), in.with_softplus);
    if (next + STEPS < place.part.end) raw.load(in, place, next + STEPS);
    __syncthreads();
    if (next >= place.part.end) finish(a, place, shared.partial[k], t, u, z, D);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) scan_forward(const Arguments a) {
  DYNAMIC_SHARED(bytes);
  Shared& shared = *(Shared*)bytes;
  const Inputs& in = a.in;
  const Place place(in, blockIdx.x);
  if (threadIdx.x >= WALKERS) {
    serve(a, place, shared);
    return;
  }
  const long long d = place.channel + threadIdx.x % WARP;
  const int group = threadIdx.x / WARP, n0 = group * STATES;
  States A, B, C, h;
  A.load(in.A, d, n0, in);
  A.scale((Real)LOG2_E);
  if (STATIC_B) B.load(in.B, d, n0, in);
  if (STATIC_C) C.load(in.C, d, n0, in);
  h.clear();
  if (place.segment)
    h.load_row(a.carried, place.sequence * in.segments + place.segment, d, n0, in);
  else if (in.initial.data)
    h.load_row(in.initial, place.sequence, d, n0, in);
  // One barrier a tile: behind it this tile's sums are whole, and the next tile is ready to be walked.
  __syncthreads();
  int k = 0;
  for (long long t = place.part.begin; t < place.part.end; t += STEPS, k ^= 1) {
    walk(shared.tile[k], shared.partial[k][group], A, B, C, h);
    __syncthreads();
  }
  if (place.segment == in.segments - 1) h.store(a.final_state, place.sequence, d, n0, in);
}
