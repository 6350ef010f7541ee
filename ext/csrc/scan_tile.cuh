// How the scan's kernels cut their work: sequences into segments, segments into tiles of STEPS by CHANNELS, and what a tile holds.
//
// A block walks one segment of one sequence for CHANNELS channels. Warp g of its GROUPS warps keeps states
// g·STATES ... g·STATES + STATES - 1 of each channel in registers, so B and C are the same for a whole warp and one
// broadcast reads them; what depends on (l, d) alone is computed once per tile, by all threads together.
#pragma once
#include "common.cuh"

// Given as macros: STATES of a thread, GROUPS warps, STEPS of a tile, UNROLL steps in flight, LANES channels of a thread,
// BLOCKS that share a multiprocessor. 0 or 1 are ZOH, SOFTPLUS, GATED (there is a z), STATIC_B, STATIC_C and ALIGNED:
// every row of every tensor can be read in fours.
constexpr int CHANNELS = WARP * LANES;
constexpr int THREADS = WARP * GROUPS;
constexpr int VECTOR = 4;
// Segments begin at multiples of it, whatever the tile of the kernel at hand, so that all kernels cut alike.
constexpr int GRAIN = 32;
static_assert(GRAIN % STEPS == 0, "a segment is whole tiles");
constexpr int PADDED = (STATES * GROUPS + VECTOR - 1) / VECTOR * VECTOR;

// Counts steps. Where rows can be read in fours the host has made sure that sequences are shorter than 2^31
// steps, and a step less than 2^31 elements, which spares 64-bit products.
#if ALIGNED
typedef int Step;
#else
typedef long long Step;
#endif
__device__ __forceinline__ long long steps_of(Step count, long long elements) {
  return ALIGNED ? (long long)((unsigned long long)(unsigned)count * (unsigned)elements) : count * elements;
}

// What a scan is given, in the order in which the host lays it out; absent tensors have no data.
struct Inputs {
  Tensor<const Element> u, delta, z;
  Tensor<const void> A, B, C, D, bias, initial;
  Tensor<const int> bounds;
  long long sequences, length, channels, n, segments;
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
  // Steps from t to the end of the segment, none where t lies outside; a few tiles' worth at most, which is all that is asked.
  __device__ __forceinline__ int left(long long t) const {
    const long long steps = t < part.begin ? 0 : part.end - t;
    return steps < 4 * STEPS ? (int)(steps > 0 ? steps : 0) : 4 * STEPS;
  }
  __device__ __forceinline__ int columns(const Inputs& in) const {
    return in.channels - channel < CHANNELS ? (int)(in.channels - channel) : CHANNELS;
  }
};

// Where the state before step t is kept for the backward pass, every CHECKPOINT steps. Packed sequences have room for one
// more than l / CHECKPOINT each, so that their slots can be told from where they begin.
__device__ __forceinline__ long long checkpoint_slot(const Inputs& in, const Place& place, long long t) {
  const long long first = in.bounds.data ? place.whole.begin / CHECKPOINT + place.sequence
                                         : place.sequence * ((in.length + CHECKPOINT - 1) / CHECKPOINT);
  return first + (t - place.whole.begin) / CHECKPOINT;
}

// The states that were kept: (slots, n / TOGETHER, d, TOGETHER), the last of them zeros where n is no multiple.
constexpr int TOGETHER = 4;

struct Kept {
  Real* data;
  long long along_slots;
  typedef Pack<Real, STATES < TOGETHER ? STATES : TOGETHER> Piece;
  static constexpr int PIECES = (STATES + TOGETHER - 1) / TOGETHER;

  // Piece j of a thread's states of channel d.
  __device__ __forceinline__ Piece* at(long long slot, int n0, int j, long long d, long long channels) const {
    return (Piece*)(data + slot * along_slots + ((n0 / TOGETHER + j) * channels + d) * TOGETHER + n0 % TOGETHER);
  }
};

typedef Pack<Real, VECTOR> Four;

__device__ __forceinline__ Four plus(const Four& x, const Four& y) {
  return {x.at[0] + y.at[0], x.at[1] + y.at[1], x.at[2] + y.at[2], x.at[3] + y.at[3]};
}
__device__ __forceinline__ Four times(const Four& x, const Four& y) {
  return {x.at[0] * y.at[0], x.at[1] * y.at[1], x.at[2] * y.at[2], x.at[3] * y.at[3]};
}

__device__ __forceinline__ Four silu(const Four& x) {
  return {x.at[0] * sigmoid(x.at[0]), x.at[1] * sigmoid(x.at[1]), x.at[2] * sigmoid(x.at[2]),
          x.at[3] * sigmoid(x.at[3])};
}

// A four as it lies in memory. Elements of 16 bits are held in two words: by halves they would cost an instruction each.
#if ELEMENT == 1 || ELEMENT == 2
struct alignas(8) Raw {
  uint2 word;

  __device__ __forceinline__ void set(int j, const Element& x) {
    (j < 2 ? word.x : word.y) |= (unsigned)x.bits << (j % 2 * 16);
  }
  __device__ __forceinline__ Element get(int j) const {
    return {(unsigned short)((j < 2 ? word.x : word.y) >> (j % 2 * 16))};
  }
  // As one number: the compiler takes a pair of words apart.
  __device__ __forceinline__ void store(Element* to) const {
    *(unsigned long long*)to = (unsigned long long)word.y << 32 | word.x;
  }
};
__device__ __forceinline__ Four widen(const Raw& raw) {
#if ELEMENT == 1
  return {__uint_as_float(raw.word.x << 16), __uint_as_float(raw.word.x & 0xffff0000u),
          __uint_as_float(raw.word.y << 16), __uint_as_float(raw.word.y & 0xffff0000u)};
#else
  return {half_value(raw.word.x & 0xffff), half_value(raw.word.x >> 16), half_value(raw.word.y & 0xffff),
          half_value(raw.word.y >> 16)};
#endif
}
__device__ __forceinline__ Raw raw_of(const Four& four) {
  return {{two_elements(four.at[0], four.at[1]), two_elements(four.at[2], four.at[3])}};
}
#else
struct Raw : Pack<Element, VECTOR> {
  __device__ __forceinline__ void set(int j, const Element& x) { this->at[j] = x; }
  __device__ __forceinline__ Element get(int j) const { return this->at[j]; }
  __device__ __forceinline__ void store(Element* to) const { *(Pack<Element, VECTOR>*)to = *this; }
};
__device__ __forceinline__ Raw raw_of(const Four& four) { return {four}; }
#endif

// Two numbers of every channel, as the tiles of one channel a thread hold them: the second half of each four lies half a
// row further on and four fours aside, so that neither a warp that writes fours nor one that reads channels meets itself
// in a bank.
typedef Pack<Real, 2> Pair;

__device__ __forceinline__ int pair_slot(int channel) {
  const int four = channel / VECTOR, half = channel % VECTOR / 2;
  return 2 * (half ? 8 + (four + 4) % 8 : four) + channel % 2;
}

__device__ __forceinline__ void store_pairs(Pair (&row)[CHANNELS], int column, const Four& x, const Four& y) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int j = 2 * half;
    *(Pack<Pair, 2>*)&row[pair_slot(column + j)] = {Pair{x.at[j], y.at[j]}, Pair{x.at[j + 1], y.at[j + 1]}};
  }
}

// How a tile of STEPS steps and COLUMNS columns is dealt out in fours: a thread's all lie in the same columns.
template <int COLUMNS>
struct Dealt {
  static constexpr int ALONG = COLUMNS / VECTOR, APART = THREADS / ALONG, COUNT = (STEPS + APART - 1) / APART;
  static_assert(THREADS % ALONG == 0, "rows are dealt out whole");

  __device__ __forceinline__ static int column() { return threadIdx.x % ALONG * VECTOR; }
  __device__ __forceinline__ static int step(int r) { return threadIdx.x / ALONG + r * APART; }
  __device__ __forceinline__ static bool mine(int r) { return STEPS % APART == 0 || step(r) < STEPS; }
  __device__ __forceinline__ static void store(int r, Real (*tile)[COLUMNS], const Four& four) {
    if (mine(r)) *(Four*)&tile[step(r)][column()] = four;
  }
};

// A thread's fours of a tensor (b l columns), in the tile where the stream stands.
template <int COLUMNS>
struct Stream : Dealt<COLUMNS> {
  using Dealt<COLUMNS>::APART;
  const Element* from;
  long long along_l, along_columns;
  int columns;  // from the thread's first on

  // The tile begins `t` steps behind the first column of `data`; there are `width` columns.
  __device__ __forceinline__ Stream(const Element* data, const long long* stride, int width, Step t = 0)
      : along_l(stride[1]), along_columns(ALIGNED ? 1 : stride[2]), columns(width - this->column()) {
    from = data + this->column() * along_columns + steps(t + this->step(0));
  }
  __device__ __forceinline__ long long steps(Step count) const { return steps_of(count, along_l); }
  __device__ __forceinline__ void advance(int count) { from += count * along_l; }
  __device__ __forceinline__ bool inside(int r, int left) const {
    return this->mine(r) && this->step(r) < left && columns > 0;
  }

  // Four r of a tile of which `left` steps are there; zeros elsewhere.
  __device__ __forceinline__ Raw load(int r, int left) const {
    Raw four = {};
    if (!inside(r, left)) return four;
    const Element* at = from + steps(r * APART);
    if (ALIGNED) return *(const Raw*)at;
#pragma unroll
    for (int j = 0; j < VECTOR; ++j)
      if (j < columns) four.set(j, at[j * along_columns]);
    return four;
  }
  // The thread's fours to its own places in shared memory: there, for this thread, after wait_for_copies().
  __device__ __forceinline__ void copy(Raw (*to)[THREADS], int left) const {
#pragma unroll
    for (int r = 0; r < this->COUNT; ++r) {
      if (ALIGNED)
        copy_async(&to[r][threadIdx.x], (const Raw*)(from + steps(r * APART)), inside(r, left));
      else
        to[r][threadIdx.x] = load(r, left);
    }
  }
};

typedef Stream<CHANNELS> Rows;
typedef Stream<PADDED> Columns;

__device__ __forceinline__ Rows rows_of(const Tensor<const Element>& tensor, const Inputs& in, const Place& place,
                                        long long t) {
  return Rows(tensor.at(place.row, t, place.channel), tensor.stride, place.columns(in));
}
// Selective B or C: elements, for only a static one is in Real.
__device__ __forceinline__ Columns columns_of(const Tensor<const void>& matrix, const Inputs& in, const Place& place,
                                              long long t) {
  return Columns((const Element*)matrix.data + place.row * matrix.stride[0] + t * matrix.stride[1], matrix.stride,
                 (int)in.n);
}

// Four numbers of a row of a contiguous (b l d) result.
__device__ __forceinline__ void put(Element* to, const Four& four, int columns) {
  const Raw raw = raw_of(four);
  if (ALIGNED) {
    raw.store(to);
  } else {
#pragma unroll
    for (int j = 0; j < VECTOR; ++j)
      if (j < columns) to[j] = raw.get(j);
  }
}

// The numbers of one channel that a thread keeps: A, a static B or C, a state. Zeros where the tile is padded.
struct States : Pack<Real, STATES> {
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < STATES; ++i) at[i] = 0;
  }
  // From a tensor (rows d n); a (d n) one has rows of stride 0 behind its other two.
  __device__ __forceinline__ void load(const void* data, long long step_d, long long step_n, long long d, int n0,
                                       const Inputs& in) {
#pragma unroll
    for (int i = 0; i < STATES; ++i)
      at[i] = d < in.channels && n0 + i < in.n ? ((const Real*)data)[d * step_d + (n0 + i) * step_n] : (Real)0;
  }
  __device__ __forceinline__ void load(const Tensor<const void>& matrix, long long d, int n0, const Inputs& in) {
    load(matrix.data, matrix.stride[0], matrix.stride[1], d, n0, in);
  }
  __device__ __forceinline__ void load_row(const Tensor<const void>& state, long long row, long long d, int n0,
                                           const Inputs& in) {
    load((const Real*)state.data + row * state.stride[0], state.stride[1], state.stride[2], d, n0, in);
  }
  // To a contiguous (… d n) tensor, at its row `row`.
  __device__ __forceinline__ void store(Real* data, long long row, long long d, int n0, const Inputs& in) const {
#pragma unroll
    for (int i = 0; i < STATES; ++i)
      if (d < in.channels && n0 + i < in.n) data[(row * in.channels + d) * in.n + n0 + i] = at[i];
  }
  // A, as an exponent of 2.
  __device__ __forceinline__ void load_rates(const Tensor<const void>& A, long long d, int n0, const Inputs& in) {
    load(A, d, n0, in);
#pragma unroll
    for (int i = 0; i < STATES; ++i) at[i] = in_base_two(at[i]);
  }
};

// Four channels' worth of a per-channel vector (d), zeros where there is none.
__device__ __forceinline__ Four per_channel(const Tensor<const void>& tensor, long long d, long long channels) {
  Four four = {};
#pragma unroll
  for (int j = 0; j < VECTOR; ++j)
    if (tensor.data && d + j < channels) four.at[j] = ((const Real*)tensor.data)[(d + j) * tensor.stride[0]];
  return four;
}

// Δ of four channels from what the projection gave; zeros (a decay of one and no input) past the end of a segment.
__device__ __forceinline__ Four time_steps(const Raw& delta, const Four& bias, bool inside) {
  Four step = plus(widen(delta), bias);
#pragma unroll
  for (int j = 0; j < VECTOR; ++j) {
    if (SOFTPLUS) step.at[j] = softplus(step.at[j]);
    step.at[j] = inside ? step.at[j] : (Real)0;
  }
  return step;
}

// What multiplies B u beside Δ: one under Euler, φ(ΔA) under zero-order hold; A is an exponent of 2.
__device__ __forceinline__ Real gain(Real delta, Real A) {
  return ZOH ? phi(delta * A * (Real)(1 / LOG2_E)) : (Real)1;
}
