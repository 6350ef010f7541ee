// The states of a scan without its outputs: what each segment leaves behind.
//
// Forward (REVERSE 0) it is h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t. In REVERSE it is the adjoint
// s_t = exp(Δ_t A) (C_t dy'_t + s_{t+1}), where dy' = dy silu(z) and s is the gradient of the state before step t. A
// segment that is not the first to be walked starts from zero: the sum of its Δ is kept too, for exp(A ΣΔ) is how much of
// the state it is given later comes through.
#include "scan_tile.cuh"

struct Arguments {
  Inputs in;
  Tensor<const Element> dy;
  Tensor<const void> dfinal;  // (sequences, d, n)
  Real* ends;                 // (sequences, segments, d, n)
  Real* sums;                 // (sequences, segments, d)
};

constexpr bool STATIC_INPUT = REVERSE ? STATIC_C : STATIC_B;

struct Tile {
  Pair step[STEPS][CHANNELS];  // Δ, and Δu or dy'
  Real input[STATIC_INPUT ? 1 : STEPS][PADDED];
};

struct Shared {
  Tile tile[2];
};
static_assert(sizeof(Shared) <= SHARED, "the host counts as this does");

// What a thread moves: fours of the tile after the one that is walked.
struct Mover {
  using Channels = Dealt<CHANNELS>;
  using Matrices = Dealt<PADDED>;
  static constexpr int PIECES = Channels::COUNT + 1;
  static constexpr int ALONG = REVERSE ? -STEPS : STEPS;

  const Four bias;
  Rows x, delta, z;
  Columns input;
  Raw raw_x[Channels::COUNT], raw_delta[Channels::COUNT], raw_z[Channels::COUNT], raw_input[Matrices::COUNT];

  __device__ __forceinline__ Mover(const Arguments& a, const Place& place, long long t)
      : bias(per_channel(a.in.bias, place.channel + Channels::column(), a.in.channels)),
        x(rows_of(REVERSE ? a.dy : a.in.u, a.in, place, t)),
        delta(rows_of(a.in.delta, a.in, place, t)),
        z(rows_of(a.in.z, a.in, place, t)),
        input(columns_of(REVERSE ? a.in.C : a.in.B, a.in, place, t)) {}

  __device__ __forceinline__ void load_rows(int r, int left) {
    raw_delta[r] = delta.load(r, left);
    raw_x[r] = x.load(r, left);
    if (REVERSE && GATED) raw_z[r] = z.load(r, left);
  }
  __device__ __forceinline__ void load_matrix(int r, int left) {
    if (!STATIC_INPUT) raw_input[r] = input.load(r, left);
  }
  __device__ __forceinline__ void write_rows(int r, Tile& tile, int left) const {
    const Four step = time_steps(raw_delta[r], bias, Channels::step(r) < left);
    Four wide = widen(raw_x[r]);
    if (!REVERSE) wide = times(step, wide);
    if (REVERSE && GATED) wide = times(wide, silu(widen(raw_z[r])));
    if (Channels::mine(r)) store_pairs(tile.step[Channels::step(r)], Channels::column(), step, wide);
  }
  // Piece `piece` of making `tile` ready, of which `left` steps are there; then the one that comes next is asked for.
  __device__ __forceinline__ void move(int piece, Tile& tile, int left, int left_next) {
    if (piece < Channels::COUNT) {
      write_rows(piece, tile, left);
      return;
    }
#pragma unroll
    for (int r = 0; r < Matrices::COUNT; ++r)
      if (!STATIC_INPUT) Matrices::store(r, tile.input, widen(raw_input[r]));
    load(left_next);
  }
  __device__ __forceinline__ void load(int left) {
#pragma unroll
    for (int r = 0; r < Channels::COUNT; ++r) load_rows(r, left);
#pragma unroll
    for (int r = 0; r < Matrices::COUNT; ++r) load_matrix(r, left);
    advance();
  }
  __device__ __forceinline__ void advance() {
    x.advance(ALONG);
    delta.advance(ALONG);
    if (REVERSE && GATED) z.advance(ALONG);
    if (!STATIC_INPUT) input.advance(ALONG);
  }
};

// What UNROLL steps need, read while the steps before them are computed; in REVERSE the last step comes first.
struct Operands {
  Pair step[UNROLL];
  Pack<Real, STATES> input[UNROLL];

  __device__ __forceinline__ void load(const Tile& tile, int first, const States& fixed) {
    const int slot = pair_slot(threadIdx.x % WARP), n0 = threadIdx.x / WARP * STATES;
#pragma unroll
    for (int k = 0; k < UNROLL; ++k) {
      const int t = REVERSE ? STEPS - 1 - first - k : first + k;
      step[k] = tile.step[t][slot];
      input[k] = STATIC_INPUT ? fixed : *(const Pack<Real, STATES>*)&tile.input[t][n0];
    }
  }
};

__device__ __forceinline__ void walk(const Operands& given, const States& A, States& h, Real& sum) {
#pragma unroll
  for (int k = 0; k < UNROLL; ++k) {
    sum += given.step[k].at[0];
#pragma unroll
    for (int i = 0; i < STATES; ++i) {
      const Real delta = given.step[k].at[0], x = given.step[k].at[1] * given.input[k].at[i];
      const Real decay = decay_of(delta, A.at[i]);
      h.at[i] = REVERSE ? decay * (x + h.at[i]) : decay * h.at[i] + x * gain(delta, A.at[i]);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) scan_states(const Arguments a) {
  DYNAMIC_SHARED(bytes);
  Shared& shared = *(Shared*)bytes;
  const Inputs& in = a.in;
  const Place place(in, blockIdx.x);
  const long long last = REVERSE ? 0 : in.segments - 1, first = in.segments - 1 - last;
  // Nobody asks what the last segment to be walked leaves behind.
  if (place.segment == last) return;
  const long long tiles = (place.part.end - place.part.begin + STEPS - 1) / STEPS;
  const long long d = place.channel + threadIdx.x % WARP;
  const int group = threadIdx.x / WARP, n0 = group * STATES;
  States A, fixed, h;
  A.load_rates(in.A, d, n0, in);
  if (STATIC_INPUT) fixed.load(REVERSE ? in.C : in.B, d, n0, in);
  h.clear();
  const Tensor<const void>& start = REVERSE ? a.dfinal : in.initial;
  if (place.segment == first && start.data) h.load_row(start, place.sequence, d, n0, in);
  Real sum = 0;

  // Where the tile that is walked m-th begins; beyond the last nothing is left.
  const auto tile_begin = [&](long long m) { return place.part.begin + (REVERSE ? tiles - 1 - m : m) * STEPS; };
  Mover mover(a, place, tile_begin(0));
  mover.load(place.left(tile_begin(0)));
#pragma unroll
  for (int piece = 0; piece < mover.PIECES; ++piece)
    mover.move(piece, shared.tile[0], place.left(tile_begin(0)), place.left(tile_begin(1)));
  for (long long m = 0; m < tiles; ++m) {
    __syncthreads();
    constexpr int WALKS = STEPS / UNROLL;
    const int left = place.left(tile_begin(m + 1)), left_next = place.left(tile_begin(m + 2));
    Operands operands, next;
    next.load(shared.tile[m & 1], 0, fixed);
#pragma unroll
    for (int w = 0; w < WALKS; ++w) {
      const int at = w * UNROLL;
      operands = next;
      if (w + 1 < WALKS) next.load(shared.tile[m & 1], at + UNROLL, fixed);
      walk(operands, A, h, sum);
#pragma unroll
      for (int piece = w * mover.PIECES / WALKS; piece < (w + 1) * mover.PIECES / WALKS; ++piece)
        mover.move(piece, shared.tile[~m & 1], left, left_next);
    }
  }
  const long long index = place.sequence * in.segments + place.segment;
  h.store(a.ends, index, d, n0, in);
  if (group == 0 && d < in.channels) a.sums[index * in.channels + d] = sum;
}
