// What the backward scan is given and holds, and how a thread walks the states of its channels forward and back.
#pragma once
#include "scan_tile.cuh"

struct Arguments {
  Inputs in;
  Tensor<const Element> dy;
  Tensor<const void> carried;  // (sequences, segments, d, n): the adjoint that a segment but the last starts from
  Tensor<const void> dfinal;   // (sequences, d, n)
  Kept kept;
  Element *du, *ddelta, *dz;  // (b l d)
  Real* dstate;               // (sequences, d, n)
  Real* dmatrices;            // (channel blocks, b, l, [dB] [dC], PADDED)
  Real* dparameters;          // (sequences, segments, [dA dB dC] (d n), [dD dbias] (d)): see parameters()
};

constexpr int SELECTIVE = !STATIC_B + !STATIC_C;
constexpr int VALUES = PART * SELECTIVE * STATES;  // of a thread in one part: its terms of dB and dC
constexpr int PITCH = VALUES + VECTOR;             // keeps the lanes' fours in different banks
constexpr int SUMS = 3 + ZOH;                      // over n: g·B, A·gq, C·h, and u g·B exp(ΔA)

constexpr int ROW_FOURS = Dealt<CHANNELS>::COUNT, MATRIX_FOURS = Dealt<PADDED>::COUNT;

typedef Pack<Real, LANES> Lanes;

struct Tile {
  Real step[STEPS][CHANNELS], input[STEPS][CHANNELS], dy[STEPS][CHANNELS];  // Δ, Δu, dy'
  Real B[STATIC_B ? 1 : STEPS][PADDED], C[STATIC_C ? 1 : STEPS][PADDED];
};

// Where the segment begins, in what is read and in what is written, for the block's first channel. As what every chunk
// starts from it would take up registers, and 64-bit products if it were computed again.
struct Origin {
  const Element *u, *delta, *dy, *z, *B, *C;
  long long results;  // in du, ddelta and dz
  long long slot;     // of kept states
  Real* dmatrices;

  __device__ void set(const Arguments& a, const Place& place) {
    const Inputs& in = a.in;
    const long long begin = place.part.begin, rows = in.bounds.data ? 1 : in.sequences;
    u = in.u.at(place.row, begin, place.channel);
    delta = in.delta.at(place.row, begin, place.channel);
    dy = a.dy.at(place.row, begin, place.channel);
    if (GATED) z = in.z.at(place.row, begin, place.channel);
    if (!STATIC_B) B = (const Element*)in.B.data + place.row * in.B.stride[0] + begin * in.B.stride[1];
    if (!STATIC_C) C = (const Element*)in.C.data + place.row * in.C.stride[0] + begin * in.C.stride[1];
    results = (place.row * in.length + begin) * in.channels + place.channel;
    slot = checkpoint_slot(in, place, begin);
    const long long row = ((place.channel / CHANNELS) * rows + place.row) * in.length + begin;
    dmatrices = a.dmatrices + row * SELECTIVE * PADDED;
  }
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
  Origin origin;
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
      A.at[c].load_rates(in.A, d + c, n0, in);
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
        const Real a = A.at[c].at[i];
        decay.at[c].at[i] = decay_of(step.at[c], a);
        h.at[c].at[i] = decay.at[c].at[i] * h.at[c].at[i] + input.at[c] * b.at[i] * gain(step.at[c], a);
      }
    }
  }
  // One step back over step t, which led from `before` to `after`.
  __device__ __forceinline__ void retreat(const Tile& tile, Shared& shared, int t, const Lines& decay,
                                          const Lines& before, const Lines& after) {
    const Lanes step = lanes(tile.step, t), input = lanes(tile.input, t), dy = lanes(tile.dy, t);
    Lanes sum[SUMS] = {};
    Pack<Real, STATES> terms_B = {}, terms_C = {};
#pragma unroll
    for (int c = 0; c < LANES; ++c) {
      const Pack<Real, STATES> b = row_B(tile, t, c), out = row_C(tile, t, c);
#pragma unroll
      for (int i = 0; i < STATES; ++i) {
        const Real a = A.at[c].at[i], factor = gain(step.at[c], a);
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
