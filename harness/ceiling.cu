// The most exponentials that a GPU can do: its exp2 instruction on values in registers, and nothing else.
//
// Every chain is x = 2^-x, which goes to 0.6411857; a thread has CHAINS of them, so that none waits for itself.
constexpr int CHAINS = 8, TURNS = 16;

__device__ __forceinline__ float exp2_of_minus(float x) {
#ifdef MAMBALAB_EMULATED
  return exp2f(-x);
#else
  float y;
  asm volatile("{.reg .f32 t; neg.f32 t, %1; ex2.approx.ftz.f32 %0, t;}" : "=f"(y) : "f"(x));
  return y;
#endif
}

struct Arguments {
  float* means;  // one a thread
  long long rounds;  // of TURNS evaluations a chain
};

extern "C" __global__ void __launch_bounds__(256) exp2_in_registers(const Arguments a) {
  float x[CHAINS];
  for (int chain = 0; chain < CHAINS; ++chain) x[chain] = (threadIdx.x % 32 + chain) / 64.0f;
  const int rounds = (int)a.rounds;
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
#pragma unroll
      for (int chain = 0; chain < CHAINS; ++chain) x[chain] = exp2_of_minus(x[chain]);
    }
  }
  float sum = 0;
  for (int chain = 0; chain < CHAINS; ++chain) sum += x[chain];
  a.means[(long long)blockIdx.x * blockDim.x + threadIdx.x] = sum / CHAINS;
}
