// The gradients of the selective scan: each block walks one segment of one sequence backwards, a chunk at a time.
//
// From the state before a chunk, which the forward pass has kept, a thread walks forward and keeps the states between
// parts of PART steps; then, from the last part to the first, it walks that part forward with every decay and state in
// registers, and back.
// With s the gradient of a state coming from later steps, and q_t = exp(Δ_t A) h_{t-1}:
//
//     g_t = C_t dy'_t + s        dC_t = Σ_d dy'_t h_t      dB_t = Σ_d Δ_t u_t g_t        dy' = dy silu(z)
//     s = exp(Δ_t A) g_t         dA = Σ_t Δ_t g_t q_t      dΔ_t = Σ_n A g_t q_t + u_t Σ_n g_t B_t
//     du_t = Δ_t Σ_n g_t B_t + D dy'_t                     dz_t = dy_t (C_t·h_t + D u_t) silu'(z_t)
//
// Sums over n are finished by all warps together, a part at a time; sums over d by each warp for its own states, and
// left to scan_sum.cu for each block of channels; sums over l likewise for each segment.
#include "scan_backward.cuh"

// Sums over n become the gradients of u, Δ and z, for those of a thread's fours that lie in the FINISH steps from `from` on
// in the chunk that begins t steps behind the segment.
__device__ __forceinline__ void finish(const Arguments& a, const Tile& tile, Shared& shared, int columns, Step t,
                                       int from, int left) {
  using Channels = Dealt<CHANNELS>;
  const int column = Channels::column();
  columns -= column;
#pragma unroll
  for (int r = 0; r < Channels::COUNT; ++r) {
    const int step = Channels::step(r);
    if (!Channels::mine(r) || step < from || step >= from + FINISH || step >= left || columns <= 0) continue;
    Four sum[SUMS] = {};
#pragma unroll
    for (int k = 0; k < SUMS; ++k)
#pragma unroll
      for (int g = 0; g < GROUPS; ++g) sum[k] = plus(sum[k], *(const Four*)&shared.sum[k][g][step - from][column]);
    const Four D = *(const Four*)&shared.D[column], u = widen(shared.u[r][threadIdx.x]);
    const Four dy = *(const Four*)&tile.dy[step][column], delta = *(const Four*)&tile.step[step][column];
    Four du = plus(times(delta, sum[0]), times(D, dy)), ddelta;
    const Four raw = plus(widen(shared.delta[r][threadIdx.x]), *(const Four*)&shared.bias[column]);
#pragma unroll
    for (int j = 0; j < VECTOR; ++j) {
      ddelta.at[j] = sum[1].at[j] * (Real)(1 / LOG2_E) + u.at[j] * sum[ZOH ? 3 : 0].at[j];
      if (SOFTPLUS) ddelta.at[j] *= sigmoid(raw.at[j]);
    }
    shared.dD[threadIdx.x] = plus(shared.dD[threadIdx.x], times(dy, u));
    shared.dbias[threadIdx.x] = plus(shared.dbias[threadIdx.x], ddelta);
    const long long to = shared.origin.results + column + steps_of(t + step, a.in.channels);
    put(a.du + to, du, columns);
    put(a.ddelta + to, ddelta, columns);
    if (GATED) {
      const Four z = widen(shared.z[GATED ? r : 0][threadIdx.x]), y = plus(sum[2], times(D, u));
      Four dz = times(widen(shared.dy[r][threadIdx.x]), y);
#pragma unroll
      for (int j = 0; j < VECTOR; ++j) {
        const Real open = sigmoid(z.at[j]);
        dz.at[j] *= open * (1 + z.at[j] * (1 - open));
      }
      put(a.dz + to, dz, columns);
    }
  }
}

// Ask for the chunk that begins t steps behind the segment, of which `left` are there: its inputs and the state before it.
__device__ __forceinline__ void ask(const Arguments& a, int columns, Shared& shared, const Thread& thread, Step t,
                                    int left) {
  const Inputs& in = a.in;
  const Origin& origin = shared.origin;
  Rows(origin.u, in.u.stride, columns, t).copy(shared.u, left);
  Rows(origin.delta, in.delta.stride, columns, t).copy(shared.delta, left);
  Rows(origin.dy, a.dy.stride, columns, t).copy(shared.dy, left);
  if (GATED) Rows(origin.z, in.z.stride, columns, t).copy(shared.z, left);
  if (!STATIC_B) Columns(origin.B, in.B.stride, (int)in.n, t).copy(shared.B, left);
  if (!STATIC_C) Columns(origin.C, in.C.stride, (int)in.n, t).copy(shared.C, left);
#pragma unroll
  for (int c = 0; c < LANES; ++c)
#pragma unroll
    for (int j = 0; j < Kept::PIECES; ++j) {
      copy_async((Kept::Piece*)&shared.checkpoint[c][threadIdx.x].at[j * TOGETHER],
                 a.kept.at(origin.slot + t / CHECKPOINT, thread.n0, j, thread.d + c, in.channels),
                 thread.d + c < in.channels && thread.n0 + j * TOGETHER < in.n);
    }
}

// The chunk that has come, as the walk needs it.
__device__ __forceinline__ void fill(Tile& tile, Shared& shared, int left) {
  using Channels = Dealt<CHANNELS>;
  using Matrices = Dealt<PADDED>;
  const Four bias = *(const Four*)&shared.bias[Channels::column()];
#pragma unroll
  for (int r = 0; r < Matrices::COUNT; ++r) {
    if (!STATIC_B) Matrices::store(r, tile.B, widen(shared.B[r][threadIdx.x]));
    if (!STATIC_C) Matrices::store(r, tile.C, widen(shared.C[r][threadIdx.x]));
  }
#pragma unroll
  for (int r = 0; r < Channels::COUNT; ++r) {
    const Four step = time_steps(shared.delta[r][threadIdx.x], bias, Channels::step(r) < left),
               dy = widen(shared.dy[r][threadIdx.x]);
    Channels::store(r, tile.step, step);
    Channels::store(r, tile.input, times(step, widen(shared.u[r][threadIdx.x])));
    Channels::store(r, tile.dy, GATED ? times(dy, silu(widen(shared.z[GATED ? r : 0][threadIdx.x]))) : dy);
  }
}

// PART steps from `first` on, forward from what was kept, then back; the terms of dB and dC leave for memory.
__device__ __forceinline__ void walk(const Tile& tile, Shared& shared, Thread& thread, const Lines& before, Step t,
                                     int first, int left) {
  Lines decay[PART], h[PART + 1];
  h[0] = before;
#pragma unroll
  for (int k = 0; k < PART; ++k) {
    h[k + 1] = h[k];
    thread.advance(tile, first + k, h[k + 1], decay[k]);
  }
  // Two channels a thread leave no registers to hold what the way forward has read: it is read again.
  if (LANES > 1) forget_memory();
#pragma unroll
  for (int k = PART - 1; k >= 0; --k) thread.retreat(tile, shared, first + k, decay[k], h[k], h[k + 1]);
#if !STATIC_B || !STATIC_C
  __syncwarp();
  across_channels(shared.across[thread.group], thread.lane, [&](int value, Real sum) {
    const int step = first + value / (SELECTIVE * STATES), kind = value / STATES % SELECTIVE;
    Real* const row = shared.origin.dmatrices + steps_of(t + step, SELECTIVE * PADDED);
    if (step < left) row[kind * PADDED + thread.n0 + value % STATES] = sum;
  });
  __syncwarp();
#endif
}

// What was summed over l goes to the row of dparameters that belongs to the segment.
__device__ __forceinline__ void parameters(const Arguments& a, const Place& place, const Shared& shared,
                                           const Thread& thread) {
  const Inputs& in = a.in;
  const long long matrix = in.channels * in.n;
  Real* to = a.dparameters +
             (place.sequence * in.segments + place.segment) * ((1 + STATIC_B + STATIC_C) * matrix + 2 * in.channels);
#pragma unroll
  for (int c = 0; c < LANES; ++c) {
    thread.dA.at[c].store(to, 0, thread.d + c, thread.n0, in);
    if (STATIC_B) thread.dB.at[c].store(to + matrix, 0, thread.d + c, thread.n0, in);
    if (STATIC_C) thread.dC.at[c].store(to + (1 + STATIC_B) * matrix, 0, thread.d + c, thread.n0, in);
  }
  // Threads whose fours lie in the same columns add theirs up, in order.
  to += (1 + STATIC_B + STATIC_C) * matrix;
  constexpr int ALONG = Dealt<CHANNELS>::ALONG;
  for (int index = threadIdx.x; index < 2 * CHANNELS; index += THREADS) {
    const int kind = index / CHANNELS, column = index % CHANNELS;
    Real sum = 0;
    for (int other = column / VECTOR; other < THREADS; other += ALONG)
      sum += (kind ? shared.dbias : shared.dD)[other].at[column % VECTOR];
    if (place.channel + column < in.channels) to[kind * in.channels + place.channel + column] = sum;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) scan_backward(const Arguments a) {
  DYNAMIC_SHARED(bytes);
  __shared__ Tile tile;
  Shared& shared = *(Shared*)bytes;
  const Inputs& in = a.in;
  const Place place(in, blockIdx.x);
  Thread thread(in, place);
  const bool last = place.segment == in.segments - 1;
  const Tensor<const void>& start = last ? a.dfinal : a.carried;
  if (start.data)
#pragma unroll
    for (int c = 0; c < LANES; ++c)
      thread.s.at[c].load_row(start, last ? place.sequence : place.sequence * in.segments + place.segment, thread.d + c,
                              thread.n0, in);

  shared.dD[threadIdx.x] = shared.dbias[threadIdx.x] = {};
  for (int column = threadIdx.x; column < CHANNELS; column += THREADS) {
    const bool there = place.channel + column < in.channels;
    shared.bias[column] =
        there && in.bias.data ? ((const Real*)in.bias.data)[(place.channel + column) * in.bias.stride[0]] : 0;
    shared.D[column] = there && in.D.data ? ((const Real*)in.D.data)[(place.channel + column) * in.D.stride[0]] : 0;
  }
  if (threadIdx.x == 0) shared.origin.set(a, place);
  __syncthreads();
  const int columns = place.columns(in);
  const Step length = (Step)(place.part.end - place.part.begin);
  Step t = length ? (length - 1) / STEPS * STEPS : -STEPS;
  if (length) ask(a, columns, shared, thread, t, (int)(length - t));
  for (int left = (int)(length - t); t >= 0; t -= STEPS, left = STEPS) {
    Lines h, decay, kept[STEPS / PART];
    wait_for_copies();
#pragma unroll
    for (int c = 0; c < LANES; ++c) (Pack<Real, STATES>&)h.at[c] = shared.checkpoint[c][threadIdx.x];
    fill(tile, shared, left);
    __syncthreads();
#pragma unroll 1
    for (int first = 0; first < STEPS; first += PART) {
      kept[first / PART] = h;
      if (first + PART == STEPS) break;
#pragma unroll
      for (int k = 0; k < PART; ++k) thread.advance(tile, first + k, h, decay);
    }
#pragma unroll 1
    for (int from = STEPS - FINISH; from >= 0; from -= FINISH) {
#pragma unroll 1
      for (int first = from + FINISH - PART; first >= from; first -= PART)
        walk(tile, shared, thread, kept[first / PART], t, first, left);
      __syncthreads();
      finish(a, tile, shared, columns, t, from, left);
      // The chunk before has the other blocks' walks to come.
      if (from == 0 && t) ask(a, columns, shared, thread, t - STEPS, STEPS);
      __syncthreads();
    }
  }
  if (place.segment == 0)
#pragma unroll
    for (int c = 0; c < LANES; ++c) thread.s.at[c].store(a.dstate, place.sequence, thread.d + c, thread.n0, in);
  parameters(a, place, shared, thread);
}
