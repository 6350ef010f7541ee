// The gradients of the selective scan: each block walks one segment of one sequence backwards, a chunk at a time.
//
// From the state before a chunk (a checkpoint) a thread walks forward and keeps the states between parts of PART steps;
// then, from the last part to the first, it walks that part forward with every decay and state in registers, and back.
// With s the gradient of a state coming from later steps, and q_t = exp(Δ_t A) h_{t-1}:
//
//     g_t = C_t dy'_t + s        dC_t = Σ_d dy'_t h_t      dB_t = Σ_d Δ_t u_t g_t        dy' = dy silu(z)
//     s = exp(Δ_t A) g_t         dA = Σ_t Δ_t g_t q_t      dΔ_t = Σ_n A g_t q_t + u_t Σ_n g_t B_t
//     du_t = Δ_t Σ_n g_t B_t + D dy'_t                     dz_t = dy_t (C_t·h_t + D u_t) silu'(z_t)
//
// Sums over n are finished by all warps together, a part at a time; sums over d by each warp for its own states, and
// left to scan_sum.cu for each block of channels; sums over l likewise for each segment.
#include "scan_tile.cuh"

struct Arguments {
  Inputs in;
  Tensor<const Element> dy;
  Tensor<const void> carried;       // (sequences, segments, d, n): the state that a segment but the first starts from
  Tensor<const void> carried_back;  // the same: the adjoint that a segment but the last starts from
  Tensor<const void> dfinal;        // (sequences, d, n)
  const Real* checkpoints;
  const Real* checkpoint_sums;
  Element *du, *ddelta, *dz;  // (b l d)
  Real* dstate;               // (sequences, d, n)
  Real* dmatrices;            // (channel blocks, b, l, [dB] [dC], PADDED)
  Real* dparameters;          // (sequences, segments, [dA dB dC] (d n), [dD dbias] (d)): see parameters()
};

constexpr int SELECTIVE = !STATIC_B + !STATIC_C;
constexpr int VALUES = PART * SELECTIVE * STATES;  // of a thread in one part: its terms of dB and dC
constexpr int PITCH = VALUES + VECTOR;              // keeps the lanes' fours in different banks
constexpr int SUMS = 3 + ZOH;                       // over n: g·B, A·gq, C·h, and u g·B exp(ΔA)

constexpr int ROW_FOURS = Dealt<CHANNELS>::COUNT, MATRIX_FOURS = Dealt<PADDED>::COUNT;

typedef Pack<Real, LANES> Lanes;

struct Tile {
  Real step[STEPS][CHANNELS], input[STEPS][CHANNELS], dy[STEPS][CHANNELS];  // Δ, Δu, dy'
  Real B[STATIC_B ? 1 : STEPS][PADDED], C[STATIC_C ? 1 : STEPS][PADDED];
};

// What is written while a part is walked. The tile, which is read meanwhile, lies in memory of its own: the compiler then
// knows that no write changes it, and reads ahead.
struct Shared {
  Real sum[SUMS][GROUPS][FINISH][CHANNELS];
  Real across[GROUPS][SELECTIVE ? WARP : 1][SELECTIVE ? PITCH : VECTOR];
  // A chunk as it lies in memory; a thread's fours and states lie in its own places.
  Raw u[ROW_FOURS][THREADS], delta[ROW_FOURS][THREADS], dy[ROW_FOURS][THREADS], z[GATED ? ROW_FOURS : 1][THREADS];
  Raw B[MATRIX_FOURS][THREADS], C[MATRIX_FOURS][THREADS];
  Pack<Real, STATES> checkpoint[LANES][THREADS];
  // What would only take up registers during a walk: the channels' parameters, and what threads have summed up over l.
  Real bias[CHANNELS], D[CHANNELS];
  Four dD[THREADS], dbias[THREADS];
};
static_assert(sizeof(Shared) <= SHARED, "the host counts as this does");

// What a thread holds of its LANES channels.
struct Lines {
  States at[LANES];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int c = 0; c < LANES; ++c) at[c].clear();
  }
};

struct Thread {
  Lines A, s, dA;
  Lines B, C, dB, dC;  // of static matrices alone
  int lane, group, n0;
  long long d;

  __device__ __forceinline__ Thread(const Inputs& in, const Place& place) {
    lane = threadIdx.x % WARP;
    group = threadIdx.x / WARP;
    n0 = group * STATES;
    d = place.channel + lane * LANES;
#pragma unroll
    for (int c = 0; c < LANES; ++c) {
      A.at[c].load(in.A, d + c, n0, in);
      A.at[c].scale((Real)LOG2_E);
      if (STATIC_B) B.at[c].load(in.B, d + c, n0, in);
      if (STATIC_C) C.at[c].load(in.C, d + c, n0, in);
    }
    s.clear();
    dA.clear();
    dB.clear();
    dC.clear();
  }
  __device__ __forceinline__ Pack<Real, STATES> row_B(const Tile& tile, int t, int c) const {
    return STATIC_B ? B.at[c] : *(const Pack<Real, STATES>*)&tile.B[t][n0];
  }
  __device__ __forceinline__ Pack<Real, STATES> row_C(const Tile& tile, int t, int c) const {
    return STATIC_C ? C.at[c] : *(const Pack<Real, STATES>*)&tile.C[t][n0];
  }
  __device__ __forceinline__ Lanes lanes(const Real (*plane)[CHANNELS], int t) const {
    return *(const Lanes*)&plane[t][lane * LANES];
  }
  // One step forward; `decay` gets exp(ΔA).
  __device__ __forceinline__ void advance(const Tile& tile, int t, Lines& h, Lines& decay) const {
    const Lanes step = lanes(tile.step, t), input = lanes(tile.input, t);
#pragma unroll
    for (int c = 0; c < LANES; ++c) {
      const Pack<Real, STATES> b = row_B(tile, t, c);
#pragma unroll
      for (int i = 0; i < STATES; ++i) {
        const Real exponent = step.at[c] * A.at[c].at[i];
        decay.at[c].at[i] = exp2_of(exponent);
        h.at[c].at[i] = decay.at[c].at[i] * h.at[c].at[i] + input.at[c] * b.at[i] * gain(exponent);
      }
    }
  }
  // One step back over step t, which led from `before` to `after`.
  __device__ __forceinline__ void retreat(const Tile& tile, Shared& shared, int t, const Lines& decay, const Lines& before, const Lines& after) {
    const Lanes step = lanes(tile.step, t), input = lanes(tile.input, t), dy = lanes(tile.dy, t);
    Lanes sum[SUMS] = {};
    Pack<Real, STATES> terms_B = {}, terms_C = {};
#pragma unroll
    for (int c = 0; c < LANES; ++c) {
      const Pack<Real, STATES> b = row_B(tile, t, c), out = row_C(tile, t, c);
#pragma unroll
      for (int i = 0; i < STATES; ++i) {
        const Real a = A.at[c].at[i], factor = gain(step.at[c] * a);
        const Real g = out.at[i] * dy.at[c] + s.at[c].at[i];
        const Real gq = g * (decay.at[c].at[i] * before.at[c].at[i]);
        (STATIC_B ? dB.at[c].at[i] : terms_B.at[i]) += input.at[c] * factor * g;
        (STATIC_C ? dC.at[c].at[i] : terms_C.at[i]) += dy.at[c] * after.at[c].at[i];
        sum[0].at[c] += b.at[i] * factor * g;
        sum[1].at[c] += a * gq;
        sum[2].at[c] += out.at[i] * after.at[c].at[i];
        dA.at[c].at[i] += step.at[c] * gq;
#if ZOH
        sum[3].at[c] += g * b.at[i] * decay.at[c].at[i];
        dA.at[c].at[i] += g * b.at[i] * input.at[c] * step.at[c] * phi_slope(step.at[c] * a * (Real)(1 / LOG2_E));
#endif
        s.at[c].at[i] = decay.at[c].at[i] * g;
      }
    }
#pragma unroll
    for (int k = 0; k < SUMS; ++k) *(Lanes*)&shared.sum[k][group][t % FINISH][lane * LANES] = sum[k];
    Real* const terms = &shared.across[group][SELECTIVE ? lane : 0][t % PART * SELECTIVE * STATES];
    if (!STATIC_B) *(Pack<Real, STATES>*)terms = terms_B;
    if (!STATIC_C) *(Pack<Real, STATES>*)(terms + !STATIC_B * STATES) = terms_C;
  }
};

#if !STATIC_B || !STATIC_C
// The sums over the warp's channels of its terms of dB and dC in one part, each by lanes that share out the channels,
// then over these lanes; `keep(value, sum)` gets each.
template <class Keep>
__device__ __forceinline__ void across_channels(const Real (*terms)[PITCH], int lane, const Keep& keep) {
  constexpr int FOURS = VALUES / VECTOR, SHARES = WARP / FOURS;
  static_assert(VALUES % VECTOR == 0 && WARP % FOURS == 0, "a warp reads the terms in fours");
  const int four = lane % FOURS, share = lane / FOURS;
  Four sum = {};
#pragma unroll
  for (int r = 0; r < FOURS; ++r) sum = plus(sum, *(const Four*)&terms[share * FOURS + r][four * VECTOR]);
  // Halve what each lane holds while there is more than one number, and add the halves of lanes far apart.
  int value = four * VECTOR;
#pragma unroll
  for (int held = VECTOR, apart = SHARES / 2; apart > 0; apart /= 2) {
    const bool upper = share & apart;
    if (held > 1) {
      held /= 2;
#pragma unroll
      for (int j = 0; j < held; ++j) {
        const Real mine = upper ? sum.at[held + j] : sum.at[j], other = upper ? sum.at[j] : sum.at[held + j];
        sum.at[j] = mine + __shfl_xor_sync(ALL, other, apart * FOURS);
      }
      value += upper ? held : 0;
    } else {
      sum.at[0] += __shfl_xor_sync(ALL, sum.at[0], apart * FOURS);
    }
  }
  constexpr int HELD = SHARES >= VECTOR ? 1 : VECTOR / SHARES;
  // Lanes that differ only in the stages after one number was left hold the same.
  if (share % (SHARES > VECTOR ? SHARES / VECTOR : 1) == 0) {
#pragma unroll
    for (int j = 0; j < HELD; ++j) keep(value + j, sum.at[j]);
  }
}
#endif

// Where a thread's fours of a chunk go: the place of step 0 in the results (b l d).
struct Target {
  using Channels = Dealt<CHANNELS>;
  long long first;
  int columns;

  __device__ __forceinline__ Target(const Inputs& in, const Place& place) : columns(place.columns(in) - Channels::column()) {
    first = (place.row * in.length + Channels::step(0)) * in.channels + place.channel + Channels::column();
  }
};

// Sums over n become the gradients of u, Δ and z, for those of a thread's fours that lie in the FINISH steps from `from` on
// in the chunk that begins at t.
__device__ __forceinline__ void finish(const Arguments& a, const Tile& tile, Shared& shared, const Target& target, long long t, int from, int left) {
  using Channels = Dealt<CHANNELS>;
  const int column = Channels::column();
#pragma unroll
  for (int r = 0; r < Channels::COUNT; ++r) {
    const int step = Channels::step(r);
    if (!Channels::mine(r) || step < from || step >= from + FINISH || step >= left || target.columns <= 0) continue;
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
    const long long to = target.first + (t + r * Channels::APART) * a.in.channels;
    put(a.du + to, du, target.columns);
    put(a.ddelta + to, ddelta, target.columns);
    if (GATED) {
      const Four z = widen(shared.z[GATED ? r : 0][threadIdx.x]), y = plus(sum[2], times(D, u));
      Four dz = times(widen(shared.dy[r][threadIdx.x]), y);
#pragma unroll
      for (int j = 0; j < VECTOR; ++j) {
        const Real open = sigmoid(z.at[j]);
        dz.at[j] *= open * (1 + z.at[j] * (1 - open));
      }
      put(a.dz + to, dz, target.columns);
    }
  }
}

// Ask for the chunk that begins at t: its inputs and the state before it.
__device__ __forceinline__ void ask(const Arguments& a, const Place& place, Shared& shared, const Thread& thread, long long t) {
  const Inputs& in = a.in;
  const int left = place.left(t);
  rows_of(in.u, in, place, t).copy(shared.u, left);
  rows_of(in.delta, in, place, t).copy(shared.delta, left);
  rows_of(a.dy, in, place, t).copy(shared.dy, left);
  if (GATED) rows_of(in.z, in, place, t).copy(shared.z, left);
  if (!STATIC_B) columns_of(in.B, in, place, t).copy(shared.B, left);
  if (!STATIC_C) columns_of(in.C, in, place, t).copy(shared.C, left);
  const Pack<Real, STATES>* const kept = (const Pack<Real, STATES>*)a.checkpoints + (checkpoint_slot(in, place, t) * GROUPS + thread.group) * in.channels;
#pragma unroll
  for (int c = 0; c < LANES; ++c) {
    if (thread.d + c < in.channels)
      copy_async(&shared.checkpoint[c][threadIdx.x], &kept[thread.d + c]);
    else
      shared.checkpoint[c][threadIdx.x] = {};
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
    const Four step = time_steps(shared.delta[r][threadIdx.x], bias, Channels::step(r) < left), dy = widen(shared.dy[r][threadIdx.x]);
    Channels::store(r, tile.step, step);
    Channels::store(r, tile.input, times(step, widen(shared.u[r][threadIdx.x])));
    Channels::store(r, tile.dy, GATED ? times(dy, silu(widen(shared.z[GATED ? r : 0][threadIdx.x]))) : dy);
  }
}

// The state before step t: its checkpoint, and what came through of the state that the segment started from.
__device__ __forceinline__ void restore(const Arguments& a, const Place& place, const Shared& shared, const Thread& thread, long long t, Lines& h) {
  const Inputs& in = a.in;
#pragma unroll
  for (int c = 0; c < LANES; ++c) {
    const long long d = thread.d + c;
    (Pack<Real, STATES>&)h.at[c] = shared.checkpoint[c][threadIdx.x];
    if (place.segment == 0 || d >= in.channels) continue;
    States start;
    start.load_row(a.carried, place.sequence * in.segments + place.segment, d, thread.n0, in);
    const Real sum = a.checkpoint_sums[checkpoint_slot(in, place, t) * in.channels + d];
#pragma unroll
    for (int i = 0; i < STATES; ++i) h.at[c].at[i] += exp2_of(thread.A.at[c].at[i] * sum) * start.at[i];
  }
}

// PART steps from `first` on, forward from what was kept, then back; the terms of dB and dC leave for memory.
__device__ __forceinline__ void walk(const Arguments& a, const Place& place, const Tile& tile, Shared& shared, Thread& thread, const Lines& before, long long t, int first) {
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
  const long long rows = a.in.bounds.data ? 1 : a.in.sequences;
  const long long row = ((place.channel / CHANNELS) * rows + place.row) * a.in.length + t + first;
  across_channels(shared.across[thread.group], thread.lane, [&](int value, Real sum) {
    const int step = value / (SELECTIVE * STATES), kind = value / STATES % SELECTIVE, n = thread.n0 + value % STATES;
    if (t + first + step < place.part.end) a.dmatrices[((row + step) * SELECTIVE + kind) * PADDED + n] = sum;
  });
  __syncwarp();
#endif
}

// What was summed over l goes to the row of dparameters that belongs to the segment.
__device__ __forceinline__ void parameters(const Arguments& a, const Place& place, const Shared& shared, const Thread& thread) {
  const Inputs& in = a.in;
  const long long matrix = in.channels * in.n;
  Real* to = a.dparameters + (place.sequence * in.segments + place.segment) * ((1 + STATIC_B + STATIC_C) * matrix + 2 * in.channels);
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
    for (int other = column / VECTOR; other < THREADS; other += ALONG) sum += (kind ? shared.dbias : shared.dD)[other].at[column % VECTOR];
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
  const Tensor<const void>& start = last ? a.dfinal : a.carried_back;
  if (start.data)
#pragma unroll
    for (int c = 0; c < LANES; ++c)
      thread.s.at[c].load_row(start, last ? place.sequence : place.sequence * in.segments + place.segment, thread.d + c, thread.n0, in);

  shared.dD[threadIdx.x] = shared.dbias[threadIdx.x] = {};
  for (int column = threadIdx.x; column < CHANNELS; column += THREADS) {
    const bool there = place.channel + column < in.channels;
    shared.bias[column] = there && in.bias.data ? ((const Real*)in.bias.data)[(place.channel + column) * in.bias.stride[0]] : 0;
    shared.D[column] = there && in.D.data ? ((const Real*)in.D.data)[(place.channel + column) * in.D.stride[0]] : 0;
  }
  __syncthreads();
  const Target target(in, place);
  const long long chunks = (place.part.end - place.part.begin + STEPS - 1) / STEPS;
  if (chunks) ask(a, place, shared, thread, place.part.begin + (chunks - 1) * STEPS);
  for (long long chunk = chunks - 1; chunk >= 0; --chunk) {
    const long long t = place.part.begin + chunk * STEPS;
    Lines h, decay, kept[STEPS / PART];
    wait_for_copies();
    restore(a, place, shared, thread, t, h);
    fill(tile, shared, place.left(t));
    __syncthreads();
#pragma unroll 1
    for (int first = 0; first < STEPS; first += PART) {
      kept[first / PART] = h;
      if (first + PART == STEPS) break;
#pragma unroll
      for (int k = 0; k < PART; ++k) thread.advance(tile, first + k, h, decay);
    }
    const int left = place.left(t);
#pragma unroll 1
    for (int from = STEPS - FINISH; from >= 0; from -= FINISH) {
#pragma unroll 1
      for (int first = from + FINISH - PART; first >= from; first -= PART) walk(a, place, tile, shared, thread, kept[first / PART], t, first);
      __syncthreads();
      finish(a, tile, shared, target, t, from, left);
      // The chunk before has the other blocks' walks to come.
      if (from == 0 && chunk) ask(a, place, shared, thread, t - STEPS);
      __syncthreads();
    }
  }
  if (place.segment == 0)
#pragma unroll
    for (int c = 0; c < LANES; ++c) thread.s.at[c].store(a.dstate, place.sequence, thread.d + c, thread.n0, in);
  parameters(a, place, shared, thread);
}
