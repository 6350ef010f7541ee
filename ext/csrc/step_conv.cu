// One token of the convolution: by itself, with its state moved on, or with its part of the projection that follows.
#define COLUMNS 4
#include "conv_tile.cuh"

// FOURS fours of a lane are the channels that a block of the projection takes; only step_project reads it.
#ifndef FOURS
#define FOURS 1
#endif

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / WARP;
constexpr int PAST = K - 1;
constexpr int SLICE = FOURS * WARP * COLUMNS;

struct ConvArguments {
  Tensor<const Element> x;          // (b d)
  Tensor<const void> weight, bias;  // (d k), (d)
  Tensor<Element> state;            // (b k-1 d)
  Element* u;                       // (b d)
  long long rows, channels;
};

struct ProjectArguments {
  ConvArguments conv;
  Tensor<const Element> matrix;  // x_proj (p d)
  Real* partial;                 // (b slices p)
  long long outputs, slices;
};

__device__ __forceinline__ int columns_from(const ConvArguments& a, long long d) {
  return a.channels - d < COLUMNS ? (int)(a.channels - d) : COLUMNS;
}

// The last K inputs of four channels.
struct Window {
  Narrow at[K];

  __device__ __forceinline__ void load(const ConvArguments& a, long long row, long long d) {
#pragma unroll UNROLLED
    for (int j = 0; j < PAST; ++j) at[j] = fetch(a.state.at(row, j, d), a.state.stride[2], columns_from(a, d));
    at[PAST] = fetch(a.x.at(row, d, 0), a.x.stride[1], columns_from(a, d));
  }
};

__device__ __forceinline__ Narrow output(const ConvArguments& a, const Window& given, long long d) {
  Taps taps;
  Wide x[K];
  taps.load(a.weight, a.bias, d, columns_from(a, d));
#pragma unroll UNROLLED
  for (int j = 0; j < K; ++j) x[j] = widen(given.at[j]);
  return narrow(activated(taps.filter(x)));
}

// A thread for four channels of a row.
extern "C" __global__ void __launch_bounds__(THREADS) step_conv(const ConvArguments a) {
  const long long index = (long long)blockIdx.x * THREADS + threadIdx.x;
  const long long fours = (a.channels + COLUMNS - 1) / COLUMNS, row = index / fours, d = index % fours * COLUMNS;
  if (row >= a.rows) return;
  Window x;
  x.load(a, row, d);
  keep(a.u + row * a.channels + d, output(a, x, d), columns_from(a, d));
#pragma unroll UNROLLED
  for (int j = 0; j < PAST; ++j) keep(a.state.at(row, j, d), x.at[j + 1], columns_from(a, d), a.state.stride[2]);
}

// A block takes SLICE channels of every row, and their part of WARPS outputs of the projection, a warp each. The state
// stays, for other blocks read it too; the blocks of the first outputs keep what the convolution gave.
extern "C" __global__ void __launch_bounds__(THREADS) step_project(const ProjectArguments a) {
  DYNAMIC_SHARED(bytes);
  Real* const shared = (Real*)bytes;  // (rows, SLICE)
  const ConvArguments& conv = a.conv;
  const long long slice = blockIdx.x % a.slices, group = blockIdx.x / a.slices, first = slice * SLICE;
  const long long target = group * WARPS + threadIdx.x / WARP;
  const int lane = threadIdx.x % WARP;
  // On their way while the convolution is computed.
  Narrow matrix[FOURS];
#pragma unroll
  for (int f = 0; f < FOURS; ++f) {
    const long long d = first + (f * WARP + lane) * COLUMNS;
    matrix[f] = {};
    if (target < a.outputs && d < conv.channels)
      matrix[f] = fetch(a.matrix.at(target, d, 0), a.matrix.stride[1], columns_from(conv, d));
  }
  for (int index = threadIdx.x; index < conv.rows * (SLICE / COLUMNS); index += THREADS) {
    const long long row = index / (SLICE / COLUMNS), d = first + index % (SLICE / COLUMNS) * COLUMNS;
    Narrow u = {};
    if (d < conv.channels) {
      Window x;
      x.load(conv, row, d);
      u = output(conv, x, d);
      if (group == 0) keep(conv.u + row * conv.channels + d, u, columns_from(conv, d));
    }
    Wide wide = widen(u);
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c)
      if (d + c >= conv.channels) wide.at[c] = 0;
    *(Wide*)&shared[index * COLUMNS] = wide;
  }
  __syncthreads();
  for (int row = 0; row < conv.rows; ++row) {
    Real sum = 0;
#pragma unroll
    for (int f = 0; f < FOURS; ++f) {
      const Wide weight = widen(matrix[f]), u = *(const Wide*)&shared[row * SLICE + (f * WARP + lane) * COLUMNS];
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c) sum += weight.at[c] * u.at[c];
    }
#pragma unroll
    for (int by = WARP / 2; by > 0; by /= 2) sum += __shfl_xor_sync(ALL, sum, by);
    if (lane == 0 && target < a.outputs) a.partial[(row * a.slices + slice) * a.outputs + target] = sum;
  }
}
