// The selective scan, forward: each block one segment of one sequence for a warp's width of channels.
//
// While a tile is walked, the sums of the tile before become outputs and the tile after is made ready, a piece between
// every UNROLL steps: exponentials, multiplications and memory then keep each other company in every warp at any time.
// Where KEEP is 1, the state before every CHECKPOINT-th step is kept for the backward pass.
#include "scan_tile.cuh"

struct Arguments {
  Inputs in;
  Tensor<const void> carried;  // (sequences, segments, d, n): the state each segment but the first starts from
  Element* y;                  // (b l d)
  Real* final_state;           // (sequences, d, n)
  Kept kept;
};

struct Tile {
  Pair step[STEPS][CHANNELS];  // Δ and Δu
  Real B[STATIC_B ? 1 : STEPS][PADDED], C[STATIC_C ? 1 : STEPS][PADDED];
};

struct Shared {
  Tile tile[2];
  Real partial[2][GROUPS][STEPS][CHANNELS];  // C·h over the states of one warp
};
static_assert(sizeof(Shared) <= SHARED, "the host counts as this does");

// What a thread moves: fours of the tile after the one that is walked, and of the one before.
struct Mover {
  using Channels = Dealt<CHANNELS>;
  using Matrices = Dealt<PADDED>;
  static constexpr int PIECES = 2 * Channels::COUNT + 1;

  const int columns;
  const long long width;
  const Four bias, D;
  Rows u, delta, u_before, z_before;
  Columns B, C;
  Raw raw_u[Channels::COUNT], raw_delta[Channels::COUNT], raw_u_before[Channels::COUNT], raw_z_before[Channels::COUNT];
  Raw raw_B[Matrices::COUNT], raw_C[Matrices::COUNT];
  Element* y;  // the thread's first four of the tile before the one that is walked

  __device__ __forceinline__ Mover(const Arguments& a, const Place& place)
      : columns(place.columns(a.in) - Channels::column()),
        width(a.in.channels),
        bias(per_channel(a.in.bias, place.channel + Channels::column(), width)),
        D(per_channel(a.in.D, place.channel + Channels::column(), width)),
        u(rows_of(a.in.u, a.in, place, place.part.begin)),
        delta(rows_of(a.in.delta, a.in, place, place.part.begin)),
        u_before(u),
        z_before(rows_of(a.in.z, a.in, place, place.part.begin)),
        B(columns_of(a.in.B, a.in, place, place.part.begin)),
        C(columns_of(a.in.C, a.in, place, place.part.begin)) {
    y = a.y + (place.row * a.in.length + place.part.begin - STEPS + Channels::step(0)) * width + place.channel +
        Channels::column();
  }
  __device__ __forceinline__ void load_rows(int r, int left) {
    raw_u[r] = u.load(r, left);
    raw_delta[r] = delta.load(r, left);
  }
  __device__ __forceinline__ void load_matrices(int r, int left) {
    if (!STATIC_B) raw_B[r] = B.load(r, left);
    if (!STATIC_C) raw_C[r] = C.load(r, left);
  }
  __device__ __forceinline__ void load_before(int r, int left) {
    raw_u_before[r] = u_before.load(r, left);
    if (GATED) raw_z_before[r] = z_before.load(r, left);
  }
  __device__ __forceinline__ void write_rows(int r, Tile& tile, int left) const {
    const Four step = time_steps(raw_delta[r], bias, Channels::step(r) < left), input = times(step, widen(raw_u[r]));
    if (Channels::mine(r)) store_pairs(tile.step[Channels::step(r)], Channels::column(), step, input);
  }
  __device__ __forceinline__ void write_matrices(int r, Tile& tile) const {
    if (!STATIC_B) Matrices::store(r, tile.B, widen(raw_B[r]));
    if (!STATIC_C) Matrices::store(r, tile.C, widen(raw_C[r]));
  }
  // The sum over the warps, the skip connection and the gate, for the tile before, of which `left` steps are there.
  __device__ __forceinline__ void finish(int r, const Real (*partial)[STEPS][CHANNELS], int left) const {
    const int step = Channels::step(r);
    if (!Channels::mine(r)) return;
    Four sum = times(D, widen(raw_u_before[r]));
#pragma unroll
    for (int g = 0; g < GROUPS; ++g) sum = plus(sum, *(const Four*)&partial[g][step][Channels::column()]);
    if (GATED) sum = times(sum, silu(widen(raw_z_before[r])));
    if (step < left && columns > 0) put(y + r * Channels::APART * width, sum, columns);
  }
  // Piece `piece` of what goes on while tile[k], of which and behind which `left` steps are there, is walked. What is
  // loaded is asked for at once, behind its predecessors' last use, and has until the next tile to come.
  __device__ __forceinline__ void move(int piece, Shared& shared, int k, int left, bool first) {
    if (piece < Channels::COUNT) {
      write_rows(piece, shared.tile[k ^ 1], left - STEPS);
    } else if (piece < 2 * Channels::COUNT) {
      finish(piece - Channels::COUNT, shared.partial[k ^ 1], first ? 0 : STEPS);
    } else {
#pragma unroll
      for (int r = 0; r < Matrices::COUNT; ++r) write_matrices(r, shared.tile[k ^ 1]);
#pragma unroll
      for (int r = 0; r < Channels::COUNT; ++r) load_rows(r, left - 2 * STEPS);
#pragma unroll
      for (int r = 0; r < Matrices::COUNT; ++r) load_matrices(r, left - 2 * STEPS);
#pragma unroll
      for (int r = 0; r < Channels::COUNT; ++r) load_before(r, left);
    }
  }
  // The streams stand where the next load will be: two tiles behind the one that is walked, and in this one.
  __device__ __forceinline__ void begin(Tile& tile, int left) {
#pragma unroll
    for (int again = 0; again < 2; ++again) {
#pragma unroll
      for (int r = 0; r < Channels::COUNT; ++r) {
        if (again) write_rows(r, tile, left);
        load_rows(r, left - again * STEPS);
      }
#pragma unroll
      for (int r = 0; r < Matrices::COUNT; ++r) {
        if (again) write_matrices(r, tile);
        load_matrices(r, left - again * STEPS);
      }
      advance_next();
    }
  }
  __device__ __forceinline__ void advance_next() {
    u.advance(STEPS);
    delta.advance(STEPS);
    if (!STATIC_B) B.advance(STEPS);
    if (!STATIC_C) C.advance(STEPS);
  }
  __device__ __forceinline__ void advance() {
    advance_next();
    u_before.advance(STEPS);
    if (GATED) z_before.advance(STEPS);
    y += STEPS * width;
  }
};

// What UNROLL steps of the recurrence need, read while the steps before them are computed.
struct Operands {
  Pair step[UNROLL];
  Pack<Real, STATES> in[UNROLL], out[UNROLL];

  __device__ __forceinline__ void load(const Tile& tile, int first, const States& B, const States& C) {
    const int slot = pair_slot(threadIdx.x % WARP), n0 = threadIdx.x / WARP * STATES;
#pragma unroll
    for (int t = 0; t < UNROLL; ++t) {
      step[t] = tile.step[first + t][slot];
      in[t] = STATIC_B ? B : *(const Pack<Real, STATES>*)&tile.B[first + t][n0];
      out[t] = STATIC_C ? C : *(const Pack<Real, STATES>*)&tile.C[first + t][n0];
    }
  }
};

// UNROLL steps of the recurrence for the states of one thread; y's share of them goes to `partial`.
__device__ __forceinline__ void walk(const Operands& given, Real (*partial)[CHANNELS], const States& A, States& h) {
#pragma unroll
  for (int t = 0; t < UNROLL; ++t) {
    Real y = 0;
#pragma unroll
    for (int i = 0; i < STATES; ++i) {
      const Real delta = given.step[t].at[0], x = given.step[t].at[1] * given.in[t].at[i];
      h.at[i] = decay_of(delta, A.at[i]) * h.at[i] + x * gain(delta, A.at[i]);
      y += given.out[t].at[i] * h.at[i];
    }
    partial[t][threadIdx.x % WARP] = y;
  }
}

__device__ __forceinline__ void keep(const Arguments& a, long long slot, int n0, long long d, const States& h) {
#pragma unroll
  for (int j = 0; j < Kept::PIECES; ++j)
    if (n0 + j * TOGETHER < a.in.n && d < a.in.channels)
      *a.kept.at(slot, n0, j, d, a.in.channels) = *(const Kept::Piece*)&h.at[j * TOGETHER];
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) scan_forward(const Arguments a) {
  DYNAMIC_SHARED(bytes);
  Shared& shared = *(Shared*)bytes;
  const Inputs& in = a.in;
  const Place place(in, blockIdx.x);
  const long long d = place.channel + threadIdx.x % WARP, begin = place.part.begin, end = place.part.end;
  const int group = threadIdx.x / WARP, n0 = group * STATES;
  States A, B, C, h;
  A.load_rates(in.A, d, n0, in);
  if (STATIC_B) B.load(in.B, d, n0, in);
  if (STATIC_C) C.load(in.C, d, n0, in);
  h.clear();
  if (place.segment)
    h.load_row(a.carried, place.sequence * in.segments + place.segment, d, n0, in);
  else if (in.initial.data)
    h.load_row(in.initial, place.sequence, d, n0, in);

  Mover mover(a, place);
  mover.begin(shared.tile[0], place.left(begin));
  __syncthreads();
  int k = 0;
  long long t = begin;
  for (; t < end; t += STEPS, k ^= 1) {
    constexpr int WALKS = STEPS / UNROLL;
    const int left = place.left(t);
    Operands operands, next;
    next.load(shared.tile[k], 0, B, C);
#pragma unroll
    for (int w = 0; w < WALKS; ++w) {
      const int at = w * UNROLL;
      if (KEEP && at % CHECKPOINT == 0 && at < left && (STEPS >= CHECKPOINT || (t - begin) % CHECKPOINT == 0))
        keep(a, checkpoint_slot(in, place, t + at), n0, d, h);
      operands = next;
      if (w + 1 < WALKS) next.load(shared.tile[k], at + UNROLL, B, C);
      walk(operands, &shared.partial[k][group][at], A, h);
#pragma unroll
      for (int piece = w * mover.PIECES / WALKS; piece < (w + 1) * mover.PIECES / WALKS; ++piece)
        mover.move(piece, shared, k, left, t == begin);
    }
    mover.advance();
    // Behind the one barrier of a tile its sums are whole, and the next tile is ready to be walked.
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < Dealt<CHANNELS>::COUNT; ++r)
    if (t > begin) mover.finish(r, shared.partial[k ^ 1], place.left(t - STEPS));
  if (place.segment == in.segments - 1) h.store(a.final_state, place.sequence, d, n0, in);
}
