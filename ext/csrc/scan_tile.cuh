// How the scan's kernels cut their work: sequences into segments, segments into tiles of STEPS by CHANNELS, and what a tile holds.
//
// A block walks one segment of one sequence for CHANNELS channels. Warp g of its GROUPS warps keeps states
// g·STATES ... g·STATES + STATES - 1 of each channel in registers, so B and C are the same for a whole warp and one
// broadcast reads them; what depends on (l, d) alone is computed once per tile, by all threads together.
#pragma once
#include "common.cuh"

// Given as macros: STATES of a thread, GROUPS warps, HELPERS more warps, STEPS of a tile, UNROLL steps in flight, LANES
// channels of a thread, BLOCKS that share a multiprocessor. ZOH, STATIC_B, STATIC_C are 0 or 1, and so is ALIGNED: every
// row of every tensor can be read in fours.
constexpr int CHANNELS = WARP * LANES;
constexpr int WALKERS = WARP * GROUPS;
constexpr int THREADS = WALKERS + WARP * HELPERS;
// Who moves the tiles: the helpers, which work on the tiles before and after while one is walked, or else everybody.
constexpr int MOVERS = HELPERS ? WARP * HELPERS : THREADS;
constexpr int FIRST_MOVER = HELPERS ? WALKERS : 0;
constexpr int VECTOR = 4;
// Segments begin at multiples of it, whatever the tile of the kernel at hand, so that all kernels cut alike.
constexpr int GRAIN = 32;
static_assert(GRAIN % STEPS == 0, "a segment is whole tiles");
constexpr int PADDED = (STATES * GROUPS + VECTOR - 1) / VECTOR * VECTOR;

// What a scan is given, in the order in which the host lays it out; absent tensors have no data.
struct Inputs {
  Tensor<const Element> u, delta, z;
  Tensor<const void> A, B, C, D, bias, initial;
  Tensor<const int> bounds;
  long long sequences, length, channels, n, with_softplus, segments;
};

struct Range {
  long long begin, end;
};

// What block `index` is to do: channel blocks vary fastest, because they share B and C, then segments, then sequences.
struct Place {
  long long sequence, segment;
  int channel;
  Range whole, part;

  long long row;  // of the batch: packed sequences all lie in the first

  __device__ Place(const Inputs& in, long long index) {
    const long long across = (in.channels + CHANNELS - 1) / CHANNELS;
    channel = (int)(index % across) * CHANNELS;
    segment = index / across % in.segments;
    sequence = index / across / in.segments;
    row = in.bounds.data ? 0 : sequence;
    whole = in.bounds.data ? Range{*in.bounds.row(sequence), *in.bounds.row(sequence + 1)} : Range{0, in.length};
    const long long grains = (whole.end - whole.begin + GRAIN - 1) / GRAIN;
    const long long steps = (grains + in.segments - 1) / in.segments * GRAIN;
    part.begin = whole.begin + segment * steps;
    part.begin = part.begin < whole.end ? part.begin : whole.end;
    part.end = part.begin + steps < whole.end ? part.begin + steps : whole.end;
  }
  // How much of the tile that begins at step t there is, and how many channels.
  __device__ __forceinline__ int steps_from(long long t) const { return part.end - t < STEPS ? (int)(part.end - t) : STEPS; }
  __device__ __forceinline__ int columns(const Inputs& in) const {
    return in.channels - channel < CHANNELS ? (int)(in.channels - channel) : CHANNELS;
  }
};

#if CHECKPOINT
// Where the state before step t is kept: every sequence has room for one more than l / CHECKPOINT, so that the
// slots of packed sequences can be told from where they begin.
__device__ __forceinline__ long long checkpoint_slot(const Inputs& in, const Place& place, long long t) {
  const long long first = in.bounds.data ? place.whole.begin / CHECKPOINT + place.sequence
                                         : place.sequence * ((in.length + CHECKPOINT - 1) / CHECKPOINT);
  return first + (t - place.whole.begin) / CHECKPOINT;
}
#endif

// A tile of a tensor (b l columns) on its way from memory: mover i holds every MOVERS-th four from the i-th on.
template <int COLUMNS, int ROWS = STEPS>
struct Fetched {
  static constexpr int ALONG = COLUMNS / VECTOR;
  static constexpr int FOURS = ROWS * ALONG;
  static constexpr int COUNT = (FOURS + MOVERS - 1) / MOVERS;
  Pack<Element, VECTOR> four[COUNT];

  __device__ __forceinline__ static int index(int r) { return (int)threadIdx.x - FIRST_MOVER + r * MOVERS; }
  __device__ __forceinline__ static int step(int r) { return index(r) / ALONG; }
  __device__ __forceinline__ static int column(int r) { return index(r) % ALONG * VECTOR; }
  __device__ __forceinline__ static bool mine(int r) { return FOURS % MOVERS == 0 || index(r) < FOURS; }

  // The tile whose first step lies at `from`; zeros from step `steps` and from column `columns` on.
  __device__ __forceinline__ void load(const Element* from, const long long* stride, int steps, int columns) {
#pragma unroll
    for (int r = 0; r < COUNT; ++r) {
      four[r] = {};
      if (!mine(r) || step(r) >= steps || column(r) >= columns) continue;
      const Element* at = from + step(r) * stride[1] + column(r) * stride[2];
      if (ALIGNED) {
        four[r] = *(const Pack<Element, VECTOR>*)at;
      } else {
#pragma unroll
        for (int j = 0; j < VECTOR; ++j)
          if (column(r) + j < columns) four[r].at[j] = at[j * stride[2]];
      }
    }
  }
  __device__ __forceinline__ void store(Real (*tile)[COLUMNS]) const {
#pragma unroll
    for (int r = 0; r < COUNT; ++r)
      if (mine(r)) *(Pack<Real, VECTOR>*)&tile[step(r)][column(r)] = widen(four[r]);
  }
};

// Selective B or C at one step: as elements, for only a static one is in Real.
__device__ __forceinline__ const Element* elements(const Tensor<const void>& matrix, long long row, long long t) {
  return (const Element*)matrix.data + row * matrix.stride[0] + t * matrix.stride[1];
}

__device__ __forceinline__ Pack<Real, VECTOR> plus(const Pack<Real, VECTOR>& x, const Pack<Real, VECTOR>& y) {
  return {x.at[0] + y.at[0], x.at[1] + y.at[1], x.at[2] + y.at[2], x.at[3] + y.at[3]};
}
__device__ __forceinline__ Pack<Real, VECTOR> times(const Pack<Real, VECTOR>& x, const Pack<Real, VECTOR>& y) {
  return {x.at[0] * y.at[0], x.at[1] * y.at[1], x.at[2] * y.at[2], x.at[3] * y.at[3]};
}

__device__ __forceinline__ Pack<Real, VECTOR> silu(const Pack<Real, VECTOR>& x) {
  return {x.at[0] * sigmoid(x.at[0]), x.at[1] * sigmoid(x.at[1]), x.at[2] * sigmoid(x.at[2]), x.at[3] * sigmoid(x.at[3])};
}

// Four numbers of a row of a contiguous (b l d) result.
__device__ __forceinline__ void put(Element* to, const Pack<Real, VECTOR>& four, int columns) {
  const Pack<Element, VECTOR> narrowed = narrow(four);
  if (ALIGNED) {
    *(Pack<Element, VECTOR>*)to = narrowed;
  } else {
#pragma unroll
    for (int j = 0; j < VECTOR; ++j)
      if (j < columns) to[j] = narrowed.at[j];
  }
}

// The numbers of one channel that a thread keeps: A, a static B or C, a state. Zeros where the tile is padded.
struct States : Pack<Real, STATES> {
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < STATES; ++i) at[i] = 0;
  }
  // From a tensor (rows d n); a (d n) one has rows of stride 0 behind its other two.
  __device__ __forceinline__ void load(const void* data, long long step_d, long long step_n, long long d, int n0, const Inputs& in) {
#pragma unroll
    for (int i = 0; i < STATES; ++i)
      at[i] = d < in.channels && n0 + i < in.n ? ((const Real*)data)[d * step_d + (n0 + i) * step_n] : (Real)0;
  }
  __device__ __forceinline__ void load(const Tensor<const void>& matrix, long long d, int n0, const Inputs& in) {
    load(matrix.data, matrix.stride[0], matrix.stride[1], d, n0, in);
  }
  __device__ __forceinline__ void load_row(const Tensor<const void>& state, long long row, long long d, int n0, const Inputs& in) {
    load((const Real*)state.data + row * state.stride[0], state.stride[1], state.stride[2], d, n0, in);
  }
  // To a contiguous (… d n) tensor, at its row `row`.
  __device__ __forceinline__ void store(Real* data, long long row, long long d, int n0, const Inputs& in) const {
#pragma unroll
    for (int i = 0; i < STATES; ++i)
      if (d < in.channels && n0 + i < in.n) data[(row * in.channels + d) * in.n + n0 + i] = at[i];
  }
  __device__ __forceinline__ void scale(Real factor) {
#pragma unroll
    for (int i = 0; i < STATES; ++i) at[i] *= factor;
  }
};

// Four channels' worth of a per-channel vector (d), zeros where there is none.
__device__ __forceinline__ Pack<Real, VECTOR> per_channel(const Tensor<const void>& tensor, long long d, long long channels) {
  Pack<Real, VECTOR> four = {};
#pragma unroll
  for (int j = 0; j < VECTOR; ++j)
    if (tensor.data && d + j < channels) four.at[j] = ((const Real*)tensor.data)[(d + j) * tensor.stride[0]];
  return four;
}

// Δ of four channels from what the projection gave; zeros (a decay of one and no input) past the end of a segment.
__device__ __forceinline__ Pack<Real, VECTOR> time_steps(const Pack<Element, VECTOR>& delta, const Pack<Real, VECTOR>& bias, bool with_softplus, bool inside) {
  Pack<Real, VECTOR> step = widen(delta);
#pragma unroll
  for (int j = 0; j < VECTOR; ++j) step.at[j] += bias.at[j];
  if (with_softplus) {
#pragma unroll
    for (int j = 0; j < VECTOR; ++j) step.at[j] = softplus(step.at[j]);
  }
#pragma unroll
  for (int j = 0; j < VECTOR; ++j) step.at[j] = inside ? step.at[j] : (Real)0;
  return step;
}

// What multiplies B u beside Δ: one under Euler, φ(ΔA) under zero-order hold. The exponent is that of 2.
__device__ __forceinline__ Real gain(Real exponent) {
#if ZOH
  return phi(exponent * (Real)(1 / LOG2_E));
#else
  return 1;
#endif
}
