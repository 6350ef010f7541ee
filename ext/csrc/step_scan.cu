// One token of the scan, its state written in place: by itself, or with the projections' last steps and the conv's state.
//
// A block takes CHANNELS channels of one row, PARTS threads each, which share out the states in fours.
#include "common.cuh"

// Given as macros: ZOH, STATIC_B and STATIC_C, ALIGNED (states and A can be read in fours), and TOGETHER (so can the rows
// of dt_proj), all 0 or 1.
constexpr int FOUR = 4;
constexpr int PARTS = 4;
constexpr int CHANNELS = 32;
constexpr int THREADS = CHANNELS * PARTS;
typedef Pack<Real, FOUR> Four;
typedef Pack<Element, FOUR> Short;

struct Inputs {
  Tensor<const Element> u, z;     // (b d)
  Tensor<const Real> A, D, bias;  // (d n), (d), (d)
  Tensor<Real> state;             // (b d n)
  Element* y;                     // (b d)
  long long rows, channels, n, with_softplus;
};

struct ScanArguments {
  Inputs in;
  Tensor<const Element> delta;  // (b d)
  Tensor<const void> B, C;      // (b n), or (d n) where static
};

struct FinishArguments {
  Inputs in;
  Tensor<const Element> x, matrix;  // (b d), dt_proj (d r)
  Tensor<Element> conv_state;       // (b k-1 d)
  const Real* partial;              // (b slices r+n+n): what step_project left of its output
  long long slices, rank, past;
};

// What the thread is to do, and of its channel what is loaded before anything is waited for.
struct Place {
  long long row, d;
  int part;
  bool inside;
  Real u, z, D, bias;

  __device__ __forceinline__ explicit Place(const Inputs& in) {
    const long long across = (in.channels + CHANNELS - 1) / CHANNELS;
    row = blockIdx.x / across;
    d = blockIdx.x % across * CHANNELS + threadIdx.x / PARTS;
    part = threadIdx.x % PARTS;
    inside = d < in.channels;
    u = z = D = bias = 0;
    if (!inside) return;
    u = widen(*in.u.at(row, d, 0));
    if (in.z.data) z = widen(*in.z.at(row, d, 0));
    if (in.D.data) D = *in.D.row(d);
    if (in.bias.data) bias = *in.bias.row(d);
  }
};

// Four states and their A.
struct States {
  Four h, A;

  __device__ __forceinline__ void load(const Inputs& in, const Place& place, long long n) {
    h = A = {};
    if (!place.inside || n >= in.n) return;
    const Real *state = in.state.at(place.row, place.d, n), *rate = in.A.at(place.d, n, 0);
    if (ALIGNED) {
      h = *(const Four*)state;
      A = *(const Four*)rate;
      return;
    }
#pragma unroll
    for (int i = 0; i < FOUR; ++i)
      if (n + i < in.n) h.at[i] = state[i * in.state.stride[2]], A.at[i] = rate[i * in.A.stride[1]];
  }
  __device__ __forceinline__ void store(const Inputs& in, const Place& place, long long n) const {
    Real* const state = in.state.at(place.row, place.d, n);
    if (ALIGNED) {
      *(Four*)state = h;
      return;
    }
#pragma unroll
    for (int i = 0; i < FOUR; ++i)
      if (n + i < in.n) state[i * in.state.stride[2]] = h.at[i];
  }
};

// The step itself: delta is what the projection gave, B(n) and C(n) are numbers of this row or channel. All threads of the
// warp come here together.
template <class InFunction, class OutFunction>
__device__ __forceinline__ void advance(const Inputs& in, const Place& place, States states, Real delta,
                                        const InFunction& B, const OutFunction& C) {
  const Real step = in.with_softplus ? softplus(delta + place.bias) : delta + place.bias;
  Real y = 0;
  for (long long n = place.part * FOUR; n < in.n && place.inside; n += PARTS * FOUR) {
    if (n >= PARTS * FOUR) states.load(in, place, n);
#pragma unroll
    for (int i = 0; i < FOUR; ++i) {
      if (n + i >= in.n) continue;
      const Real A = states.A.at[i], gain = ZOH ? phi(step * A) : (Real)1;
      states.h.at[i] = decay_of(step, A * (Real)LOG2_E) * states.h.at[i] + step * gain * B(n + i) * place.u;
      y += C(n + i) * states.h.at[i];
    }
    states.store(in, place, n);
  }
#pragma unroll
  for (int by = PARTS / 2; by > 0; by /= 2) y += __shfl_xor_sync(ALL, y, by);
  if (!place.inside || place.part) return;
  y += place.D * place.u;
  if (in.z.data) y *= place.z * sigmoid(place.z);
  in.y[place.row * in.channels + place.d] = narrow(y);
}

__device__ __forceinline__ Real element(const Tensor<const void>& matrix, bool is_static, const Place& place,
                                        long long n) {
  if (is_static) return ((const Real*)matrix.data)[place.d * matrix.stride[0] + n * matrix.stride[1]];
  return widen(((const Element*)matrix.data)[place.row * matrix.stride[0] + n * matrix.stride[1]]);
}

extern "C" __global__ void __launch_bounds__(THREADS) step_scan(const ScanArguments a) {
  const Place place(a.in);
  States states;
  states.load(a.in, place, place.part * FOUR);
  const Real delta = place.inside && a.delta.data ? widen(*a.delta.at(place.row, place.d, 0)) : (Real)0;
  advance(
      a.in, place, states, delta, [&](long long n) { return element(a.B, STATIC_B, place, n); },
      [&](long long n) { return element(a.C, STATIC_C, place, n); });
}

// The block's rows of dt_proj, as many as there are, on their way to shared memory.
__device__ __forceinline__ void stage(const FinishArguments& a, long long first, Element* rows) {
  const int rank = (int)a.rank, most = a.in.channels - first < CHANNELS ? (int)(a.in.channels - first) : CHANNELS;
  if (TOGETHER) {
    const int fours = rank / FOUR;
#pragma unroll 4
    for (int i = threadIdx.x; i < most * fours; i += THREADS)
      *(Short*)&rows[i * FOUR] = *(const Short*)a.matrix.at(first + i / fours, i % fours * FOUR, 0);
  } else {
    for (int i = threadIdx.x; i < most * rank; i += THREADS) rows[i] = *a.matrix.at(first + i / rank, i % rank, 0);
  }
}

// Δ of the channel before its bias: its row of dt_proj times the low rank, rounded as a product of its own would be.
__device__ __forceinline__ Real projected(const Place& place, const Element* row, const Real* low, int rank) {
  Real sum = 0;
  if (TOGETHER) {
    for (int j = place.part * FOUR; j < rank && place.inside; j += PARTS * FOUR) {
      const Four four = widen(*(const Short*)(row + j));
#pragma unroll
      for (int c = 0; c < FOUR; ++c) sum += four.at[c] * low[j + c];
    }
  } else {
    for (int j = place.part; j < rank && place.inside; j += PARTS) sum += widen(row[j]) * low[j];
  }
#pragma unroll
  for (int by = PARTS / 2; by > 0; by /= 2) sum += __shfl_xor_sync(ALL, sum, by);
  return widen(narrow(sum));
}

extern "C" __global__ void __launch_bounds__(THREADS) step_finish(const FinishArguments a) {
  DYNAMIC_SHARED(bytes);
  const Inputs& in = a.in;
  const long long outputs = a.rank + 2 * in.n;
  Real* const low = (Real*)bytes;                                              // (r + n + n)
  Element* const rows = (Element*)(low + (outputs + FOUR - 1) / FOUR * FOUR);  // (CHANNELS, r)
  const Place place(in);
  const long long first = place.d - threadIdx.x / PARTS;
  States states;
  states.load(in, place, place.part * FOUR);
  stage(a, first, rows);
  // The conv's state moves on by one: every thread takes one number along, and puts it down when all have theirs.
  const long long back = threadIdx.x / CHANNELS, channel = first + threadIdx.x % CHANNELS;
  const bool moves = back < a.past && channel < in.channels;
  Element moved = {};
  if (moves)
    moved = back + 1 < a.past ? *a.conv_state.at(place.row, back + 1, channel) : *a.x.at(place.row, channel, 0);
  for (long long j = threadIdx.x; j < outputs; j += THREADS) {
    const Real* const parts = a.partial + place.row * a.slices * outputs + j;
    Real sum = 0;
#pragma unroll 8
    for (long long s = 0; s < a.slices; ++s) sum += parts[s * outputs];
    low[j] = widen(narrow(sum));
  }
  __syncthreads();
  if (moves) *a.conv_state.at(place.row, back, channel) = moved;
  const Real delta = projected(place, rows + threadIdx.x / PARTS * a.rank, low, (int)a.rank);
  const Real *B = low + a.rank, *C = B + in.n;
  advance(in, place, states, delta, [&](long long n) { return B[n]; }, [&](long long n) { return C[n]; });
}
