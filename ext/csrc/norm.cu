// The root-mean-square norm, forward and backward: TEAM threads hold a row in registers, and a block has several rows.
#include "common.cuh"

// Given as macros: WEIGHT, the type of weight and y, counted as ELEMENT counts that of x; THREADS of a block; TEAM threads
// of a row and PACKS of VECTOR neighbours that each of them holds; ALIGNED (0 or 1): every row can be read in packs;
// BLOCKS of the backward kernel that share a multiprocessor.
constexpr int VECTOR = ELEMENT % 3 && WEIGHT % 3 ? 8 : 4;
constexpr int ROWS = THREADS / TEAM;
constexpr int LANES = TEAM < WARP ? TEAM : WARP;  // of a warp that share a row
constexpr int WARPS = TEAM / LANES;               // of a row
// A row that fills more registers than there are lies in memory, and is looped over.
constexpr int UNROLLED = PACKS <= 8 ? PACKS : 1;

template <int KIND>
struct Number;
template <>
struct Number<0> {
  static constexpr bool PAIRED = false;
  typedef float Kept;
  __device__ __forceinline__ static Real widen(Kept x) { return x; }
  __device__ __forceinline__ static Kept narrow(Real x) { return (Kept)x; }
};
template <>
struct Number<1> {
  static constexpr bool PAIRED = true;
  typedef unsigned short Kept;
  __device__ __forceinline__ static Real widen(Kept x) { return __uint_as_float((unsigned)x << 16); }
  __device__ __forceinline__ static Kept narrow(Real x) { return bfloat_bits((float)x); }
};
template <>
struct Number<2> {
  static constexpr bool PAIRED = false;
  typedef unsigned short Kept;
  __device__ __forceinline__ static Real widen(Kept x) { return half_value(x); }
  __device__ __forceinline__ static Kept narrow(Real x) { return half_bits((float)x); }
};
template <>
struct Number<3> {
  static constexpr bool PAIRED = false;
  typedef double Kept;
  __device__ __forceinline__ static Real widen(Kept x) { return (Real)x; }
  __device__ __forceinline__ static Kept narrow(Real x) { return x; }
};
typedef Number<ELEMENT> Input;
typedef Number<WEIGHT> Output;

struct ForwardArguments {
  Tensor<const Input::Kept> x;        // (p m)
  Tensor<const Output::Kept> weight;  // (m)
  Output::Kept* y;
  long long rows, columns;
  double epsilon;
};

struct BackwardArguments {
  Tensor<const Output::Kept> dy;
  Tensor<const Input::Kept> x;
  Tensor<const Output::Kept> weight;
  Input::Kept* dx;
  Real* partial;                   // (blocks, m): each block's share of the gradient of the weight
  long long rows, columns, share;  // rows of a block
  double epsilon;
};

// Where pack k of this thread begins.
__device__ __forceinline__ long long column(int k) { return ((long long)k * TEAM + threadIdx.x % TEAM) * VECTOR; }

// A thread's part of a row.
template <class T>
struct Row {
  Pack<typename T::Kept, VECTOR> pack[PACKS];

  // Zeros past the end, and where there is no such row.
  __device__ __forceinline__ void load(const typename T::Kept* from, long long apart, long long columns) {
#pragma unroll UNROLLED
    for (int k = 0; k < PACKS; ++k) {
      pack[k] = {};
      const long long first = column(k);
      if (ALIGNED) {
        if (first < columns) pack[k] = *(const Pack<typename T::Kept, VECTOR>*)(from + first);
      } else {
#pragma unroll
        for (int i = 0; i < VECTOR; ++i)
          if (first + i < columns) pack[k].at[i] = from[(first + i) * apart];
      }
    }
  }
  __device__ __forceinline__ Real at(int k, int i) const {
    // Two bfloat16 in a register are told apart by an instruction each, where to take one of them out first costs two.
    if (T::PAIRED) {
      const unsigned both = ((const unsigned*)&pack[k])[i / 2];
      return __uint_as_float(i % 2 ? both & 0xffff0000u : both << 16);
    }
    return T::widen(pack[k].at[i]);
  }
  __device__ __forceinline__ void set(int k, int i, Real x) { pack[k].at[i] = T::narrow(x); }
  __device__ __forceinline__ void store(typename T::Kept* to, long long columns) const {
#pragma unroll UNROLLED
    for (int k = 0; k < PACKS; ++k) {
      const long long first = column(k);
      if (ALIGNED) {
        if (first < columns) *(Pack<typename T::Kept, VECTOR>*)(to + first) = pack[k];
      } else {
#pragma unroll
        for (int i = 0; i < VECTOR; ++i)
          if (first + i < columns) to[first + i] = pack[k].at[i];
      }
    }
  }
};

// The sums over the threads of a row, the same whichever is ready first. All threads of the block come here together.
template <int COUNT>
__device__ __forceinline__ Pack<Real, COUNT> total(Pack<Real, COUNT> sum, Pack<Real, COUNT>* share) {
#pragma unroll
  for (int by = LANES / 2; by > 0; by /= 2)
#pragma unroll
    for (int i = 0; i < COUNT; ++i) sum.at[i] += __shfl_xor_sync(ALL, sum.at[i], by);
  if (WARPS == 1) return sum;
  const int warp = threadIdx.x / WARP;
  if (threadIdx.x % WARP == 0) share[warp] = sum;
  __syncthreads();
  sum = share[warp / WARPS * WARPS];
#pragma unroll
  for (int w = 1; w < WARPS; ++w)
#pragma unroll
    for (int i = 0; i < COUNT; ++i) sum.at[i] += share[warp / WARPS * WARPS + w].at[i];
  // The next row's sums go to the same place.
  __syncthreads();
  return sum;
}

__device__ __forceinline__ Real inverse_root(Real squares, long long columns, double epsilon) {
  return 1 / sqrt(squares / columns + (Real)epsilon);
}

extern "C" __global__ void __launch_bounds__(THREADS) norm_forward(const ForwardArguments a) {
  __shared__ Pack<Real, 1> share[THREADS / WARP];
  const long long row = (long long)blockIdx.x * ROWS + threadIdx.x / TEAM;
  const bool inside = row < a.rows;
  Row<Input> x;
  Row<Output> weight, y;
  x.load(a.x.row(row), a.x.stride[1], inside ? a.columns : 0);
  weight.load(a.weight.data, a.weight.stride[0], a.columns);
  Pack<Real, 1> squares = {};
#pragma unroll UNROLLED
  for (int k = 0; k < PACKS; ++k)
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) squares.at[0] += x.at(k, i) * x.at(k, i);
  const Real scale = inverse_root(total(squares, share).at[0], a.columns, a.epsilon);
#pragma unroll UNROLLED
  for (int k = 0; k < PACKS; ++k)
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) y.set(k, i, x.at(k, i) * scale * weight.at(k, i));
  if (inside) y.store(a.y + row * a.columns, a.columns);
}

// What a thread adds up of the gradient of the weight.
struct Sums {
  Pack<Real, VECTOR> pack[PACKS];
};

// With w dy = g and 1 / rms(x) = s, dx = s g - s^3 x Σ(g x) / m, and dweight = Σ s dy x.
__device__ __forceinline__ void back(const BackwardArguments& a, long long row, bool inside, Pack<Real, 2>* share,
                                     Sums& sums) {
  Row<Input> x, dx;
  Row<Output> dy, weight;
  x.load(a.x.row(row), a.x.stride[1], inside ? a.columns : 0);
  dy.load(a.dy.row(row), a.dy.stride[1], inside ? a.columns : 0);
  weight.load(a.weight.data, a.weight.stride[0], a.columns);
  Pack<Real, 2> both = {};
#pragma unroll UNROLLED
  for (int k = 0; k < PACKS; ++k)
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
      both.at[0] += x.at(k, i) * x.at(k, i);
      both.at[1] += weight.at(k, i) * dy.at(k, i) * x.at(k, i);
    }
  both = total(both, share);
  if (!inside) return;
  const Real scale = inverse_root(both.at[0], a.columns, a.epsilon);
  const Real slope = scale * scale * scale * (both.at[1] / a.columns);
#pragma unroll UNROLLED
  for (int k = 0; k < PACKS; ++k)
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
      sums.pack[k].at[i] += scale * x.at(k, i) * dy.at(k, i);
      dx.set(k, i, scale * weight.at(k, i) * dy.at(k, i) - slope * x.at(k, i));
    }
  dx.store(a.dx + row * a.columns, a.columns);
}

extern "C" __global__ void __launch_bounds__(THREADS, THREADS > 256 ? 1 : BLOCKS) norm_backward(const BackwardArguments a) {
  __shared__ Pack<Real, 2> share[THREADS / WARP];
  __shared__ Pack<Real, VECTOR> shares[THREADS];
  const int team = threadIdx.x / TEAM, lane = threadIdx.x % TEAM;
  const long long first = blockIdx.x * a.share, last = first + a.share < a.rows ? first + a.share : a.rows;
  Sums sums = {};
  for (long long row = first; row < last; row += ROWS) back(a, row + team, row + team < last, share, sums);
#pragma unroll UNROLLED
  for (int k = 0; k < PACKS; ++k) {
    shares[threadIdx.x] = sums.pack[k];
    __syncthreads();
    // The rows' teams take turns, and each adds up in the order of the teams.
    if (team == k % ROWS) {
      Pack<Real, VECTOR> sum = shares[lane];
      for (int r = 1; r < ROWS; ++r)
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) sum.at[i] += shares[r * TEAM + lane].at[i];
#pragma unroll
      for (int i = 0; i < VECTOR; ++i)
        if (column(k) + i < a.columns) a.partial[blockIdx.x * a.columns + column(k) + i] = sum.at[i];
    }
    __syncthreads();
  }
}
