// The causal convolution, forward and backward: a warp walks a run of steps, each lane for a few neighbouring channels.
//
// Runs are cut along l whatever is packed there: a run that begins inside a sequence reads the K - 1 inputs before it once
// more, and going back the K - 1 steps behind it. No run waits for another.
// PACKED says whether there are bounds of sequences.
#include "conv_tile.cuh"

constexpr int RUNS = 8;  // of a block, a warp each
constexpr int THREADS = WARP * RUNS;
constexpr int STEPS = ALIGNED && 4 * COLUMNS * sizeof(Element) <= 32 ? 4 : 2;  // of a run that are taken together
constexpr int PAST = K - 1;
// Blocks of the way back that share a multiprocessor: as many as leave a thread the registers that it needs.
#if K > 8
constexpr int BLOCKS = 1;
#elif PACKED || ELEMENT % 3 == 0 || __CUDA_ARCH__ < 900
constexpr int BLOCKS = 2;
#else
constexpr int BLOCKS = 3;
#endif

struct Inputs {
  Tensor<const Element> x;          // (b l d)
  Tensor<const void> weight, bias;  // (d k), (d)
  Tensor<const Element> initial;    // (s k-1 d)
  Tensor<const int> bounds;
  long long sequences, length, channels, run, walks;  // steps of a run, blocks that walk
};

struct ForwardArguments {
  Inputs in;
  Element *y, *final_state;  // (b l d), (s k-1 d)
};

struct BackwardArguments {
  Inputs in;
  Tensor<const Element> dy, dfinal;
  Element *dx, *dinitial;
  Real* partial;  // (walks / blocks across, k+1, d): the gradients of the taps and of the bias, a row every RUNS runs
};

struct Sequence {
  long long index, begin, end;
};

// What the warp is to do: blocks vary fastest along d, then along l.
struct Place {
  long long row, part, begin, end, channel;
  int columns;

  __device__ Place(const Inputs& in) {
    const long long across = (in.channels + WARP * COLUMNS - 1) / (WARP * COLUMNS);
    const long long along = (in.length + RUNS * in.run - 1) / (RUNS * in.run);
    part = blockIdx.x / across;
    row = part / along;
    begin = (part % along * RUNS + threadIdx.x / WARP) * in.run;
    begin = begin < in.length ? begin : in.length;
    end = begin + in.run < in.length ? begin + in.run : in.length;
    channel = (blockIdx.x % across * WARP + threadIdx.x % WARP) * COLUMNS;
    columns = in.channels - channel < COLUMNS ? (int)(in.channels - channel) : COLUMNS;
  }
};

__device__ __forceinline__ Sequence sequence(const Inputs& in, long long index) {
  if (!PACKED) return {index, 0, in.length};
  return {index, *in.bounds.row(index), *in.bounds.row(index + 1)};
}

// The sequence that step t lies in: the last one that begins there or before, which is not empty.
__device__ __forceinline__ Sequence sequence_at(const Inputs& in, long long row, long long t) {
  if (!PACKED) return sequence(in, row);
  long long low = 0, high = in.sequences - 1;
  while (low < high) {
    const long long middle = (low + high + 1) / 2;
    if (*in.bounds.row(middle) <= t)
      low = middle;
    else
      high = middle - 1;
  }
  return sequence(in, low);
}

// Input t of a sequence; the state holds those before its first, and zeros are there without one.
__device__ __forceinline__ Narrow input(const Inputs& in, const Sequence& s, long long row, long long t, long long d,
                                        int columns) {
  if (t >= s.begin) return fetch(in.x.at(row, t, d), in.x.stride[2], columns);
  if (!in.initial.data) return {};
  return fetch(in.initial.at(s.index, PAST + t - s.begin, d), in.initial.stride[2], columns);
}

// STEPS steps of a tensor (b l d) on their way from memory: all of them where WHOLE, else zeros past the last one.
struct Chunk {
  Narrow step[STEPS];

  template <bool WHOLE>
  __device__ __forceinline__ void load(const Element*& from, const long long* stride, int steps, int columns) {
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
      if (WHOLE || i < steps)
        step[i] = fetch(from, stride[2], columns);
      else
        step[i] = {};
      from += stride[1];
    }
  }
};

// The last K numbers of something at each of STEPS steps; the first PAST are those before the chunk.
struct Window {
  Wide at[PAST + STEPS];

  __device__ __forceinline__ void shift() {
#pragma unroll UNROLLED
    for (int j = 0; j < PAST; ++j) at[j] = at[j + STEPS];
  }
};

__device__ __forceinline__ void before(Window& x, const Inputs& in, const Place& place, const Sequence& s,
                                       long long t) {
#pragma unroll UNROLLED
  for (int j = 0; j < PAST; ++j) x.at[j] = widen(input(in, s, place.row, t - PAST + j, place.channel, place.columns));
}

// A run of steps of one sequence, forward.
struct Walk {
  Window x;
  Chunk next;
  const Element* from;
  Element* to;

  // The next STEPS steps, of which there are `left`; twice as many and more where WHOLE.
  template <bool WHOLE>
  __device__ __forceinline__ void advance(const Inputs& in, const Taps& taps, int left, int columns) {
#pragma unroll
    for (int i = 0; i < STEPS; ++i) x.at[PAST + i] = widen(next.step[i]);
    next.load<WHOLE>(from, in.x.stride, left - STEPS, columns);
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
      if (WHOLE || i < left) keep(to, narrow(activated(taps.filter(x.at + i))), columns);
      to += in.channels;
    }
    x.shift();
  }
};

// Steps t to stop, all of one sequence.
__device__ __forceinline__ void walk(const ForwardArguments& a, const Place& place, const Sequence& s, const Taps& taps,
                                     long long t, long long stop) {
  Walk walk;
  int left = (int)(stop - t);
  before(walk.x, a.in, place, s, t);
  walk.from = a.in.x.at(place.row, t, place.channel);
  walk.to = a.y + (place.row * a.in.length + t) * a.in.channels + place.channel;
  walk.next.load<false>(walk.from, a.in.x.stride, left, place.columns);
#pragma unroll 1
  for (; left >= 2 * STEPS; left -= STEPS) walk.advance<true>(a.in, taps, left, place.columns);
#pragma unroll 1
  for (; left > 0; left -= STEPS) walk.advance<false>(a.in, taps, left, place.columns);
}

// The last K - 1 inputs of each sequence, a thread for a few channels.
__device__ __forceinline__ void keep_last(const ForwardArguments& a, long long index) {
  const Inputs& in = a.in;
  const long long groups = (in.channels + COLUMNS - 1) / COLUMNS, d = index % groups * COLUMNS;
  if (index / groups >= in.sequences) return;
  const Sequence s = sequence(in, index / groups);
  const int columns = in.channels - d < COLUMNS ? (int)(in.channels - d) : COLUMNS;
  for (int j = 0; j < PAST; ++j)
    keep(a.final_state + (s.index * PAST + j) * in.channels + d,
         input(in, s, PACKED ? 0 : s.index, s.end - PAST + j, d, columns), columns);
}

extern "C" __global__ void __launch_bounds__(THREADS) conv_forward(const ForwardArguments a) {
  if (blockIdx.x >= a.in.walks) return keep_last(a, (blockIdx.x - a.in.walks) * THREADS + threadIdx.x);
  const Place place(a.in);
  if (place.columns <= 0) return;
  Taps taps;
  taps.load(a.in.weight, a.in.bias, place.channel, place.columns);
  for (long long t = place.begin, stop; t < place.end; t = stop) {
    const Sequence s = sequence_at(a.in, place.row, t);
    stop = PACKED && s.end < place.end ? s.end : place.end;
    walk(a, place, s, taps, t, stop);
  }
}

// What a thread adds up of the gradients of its taps and bias.
struct Sums {
  Wide tap[K + 1];
};

// The gradient before the activation, from that of y and the value there.
__device__ __forceinline__ Wide before_activation(const Narrow& dy, const Wide& value) {
  Wide grad = widen(dy);
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) {
    const Real gate = sigmoid(value.at[c]);
    if (SILU) grad.at[c] *= gate * (1 + value.at[c] * (1 - gate));
  }
  return grad;
}

__device__ __forceinline__ void add(Sums& sums, const Wide& grad, const Wide* window) {
#pragma unroll
  for (int c = 0; c < COLUMNS; ++c) {
    sums.tap[K].at[c] += grad.at[c];
#pragma unroll UNROLLED
    for (int j = 0; j < K; ++j) sums.tap[j].at[c] += grad.at[c] * window[j].at[c];
  }
}

// A run of steps of one sequence, and back: step e decides on the gradient of the input PAST before it. So PAST steps more
// are taken, of which those behind the sequence's last give nothing but the final state's gradient.
struct Retreat {
  Window x, grads;
  const Element *x_from, *dy_from;
  Element* to;            // of the step's target
  int count, inside;      // of the run; steps from its first that there are in the sequence
  const Element* dfinal;  // of the sequence
  Element* dinitial;      // 0 where it is not wanted, or the run is not the sequence's first

  // Steps e to e + STEPS; where WHOLE, these and their targets all lie inside the run.
  template <bool WHOLE>
  __device__ __forceinline__ void advance(const BackwardArguments& a, const Taps& taps, Sums& sums, int e,
                                          int columns) {
    Chunk inputs, dy;
    inputs.load<WHOLE>(x_from, a.in.x.stride, inside - e, columns);
    dy.load<WHOLE>(dy_from, a.dy.stride, inside - e, columns);
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
      x.at[PAST + i] = widen(inputs.step[i]);
      grads.at[PAST + i] = {};
      if (WHOLE || e + i < inside) grads.at[PAST + i] = before_activation(dy.step[i], taps.filter(x.at + i));
      if (WHOLE || e + i < count) add(sums, grads.at[PAST + i], x.at + i);
    }
#pragma unroll
    for (int i = 0; i < STEPS; ++i, to += a.in.channels) {
      const int target = e + i - PAST;
      if (!WHOLE && (target >= count || (target < 0 && !dinitial))) continue;
      Wide sum = {};
      if (!WHOLE && e + i >= inside)
        sum = widen(fetch(dfinal + (e + i - inside) * a.dfinal.stride[1], a.dfinal.stride[2], columns));
#pragma unroll UNROLLED
      for (int j = 0; j < K; ++j)
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) sum.at[c] += taps.weight[j].at[c] * grads.at[PAST + i - j].at[c];
      keep(!WHOLE && target < 0 ? dinitial + (target + PAST) * a.in.channels : to, narrow(sum), columns);
    }
    x.shift();
    grads.shift();
  }
};

// Steps t to stop, all of one sequence.
__device__ __forceinline__ void retreat(const BackwardArguments& a, const Place& place, const Sequence& s,
                                        const Taps& taps, long long t, long long stop, Sums& sums) {
  const Inputs& in = a.in;
  Retreat back;
  before(back.x, in, place, s, t);
  back.grads = {};
  back.x_from = in.x.at(place.row, t, place.channel);
  back.dy_from = a.dy.at(place.row, t, place.channel);
  back.to = a.dx + (place.row * in.length + t - PAST) * in.channels + place.channel;
  back.count = (int)(stop - t);
  back.inside = s.end - t < back.count + PAST ? (int)(s.end - t) : back.count + PAST;
  back.dfinal = a.dfinal.at(s.index, 0, place.channel);
  back.dinitial = a.dinitial && t == s.begin ? a.dinitial + s.index * PAST * in.channels + place.channel : 0;
  int e = 0;
#pragma unroll 1
  for (; e < PAST; e += STEPS) back.advance<false>(a, taps, sums, e, place.columns);
#pragma unroll 1
  for (; e + STEPS <= back.count; e += STEPS) back.advance<true>(a, taps, sums, e, place.columns);
#pragma unroll 1
  for (; e < back.count + PAST; e += STEPS) back.advance<false>(a, taps, sums, e, place.columns);
}

// An empty sequence hands its state on, and so its gradient.
__device__ __forceinline__ void hand_back(const BackwardArguments& a, long long index) {
  const Inputs& in = a.in;
  const long long groups = (in.channels + COLUMNS - 1) / COLUMNS, d = index % groups * COLUMNS;
  if (index / groups >= in.sequences) return;
  const Sequence s = sequence(in, index / groups);
  const int columns = in.channels - d < COLUMNS ? (int)(in.channels - d) : COLUMNS;
  for (int j = 0; j < PAST && s.begin == s.end; ++j)
    keep(a.dinitial + (s.index * PAST + j) * in.channels + d,
         fetch(a.dfinal.at(s.index, j, d), a.dfinal.stride[2], columns), columns);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) conv_backward(const BackwardArguments a) {
  __shared__ Wide share[RUNS][WARP];
  if (blockIdx.x >= a.in.walks) return hand_back(a, (blockIdx.x - a.in.walks) * THREADS + threadIdx.x);
  const Place place(a.in);
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  Sums sums = {};
  if (place.columns > 0) {
    Taps taps;
    taps.load(a.in.weight, a.in.bias, place.channel, place.columns);
    for (long long t = place.begin, stop; t < place.end; t = stop) {
      const Sequence s = sequence_at(a.in, place.row, t);
      stop = PACKED && s.end < place.end ? s.end : place.end;
      retreat(a, place, s, taps, t, stop, sums);
    }
  }
#pragma unroll UNROLLED
  for (int j = 0; j <= K; ++j) {
    share[warp][lane] = sums.tap[j];
    __syncthreads();
    // The warps take turns, and each adds up in the order of the runs.
    if (warp == j % RUNS && place.columns > 0) {
      Wide sum = {};
      for (int w = 0; w < RUNS; ++w)
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c) sum.at[c] += share[w][lane].at[c];
      Real* const to = a.partial + (place.part * (K + 1) + j) * a.in.channels + place.channel;
#pragma unroll
      for (int c = 0; c < COLUMNS; ++c)
        if (c < place.columns) to[c] = sum.at[c];
    }
    __syncthreads();
  }
}
