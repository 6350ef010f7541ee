// What every kernel shares: element types, packs of neighbours, tensors as pointer and strides, and the functions of Δ and the gates.
//
// ELEMENT says what the activations are: 0 float32, 1 bfloat16, 2 float16, 3 float64. Everything is computed in Real,
// float64 for float64 and float32 for the rest. No header of a toolkit is needed: NVRTC's own built-ins are enough.
#pragma once

#ifndef ELEMENT
#define ELEMENT 0
#endif

#ifdef MAMBALAB_EMULATED
#define DYNAMIC_SHARED(name) unsigned char* const name = emulated_shared_memory()
#else
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

#if ELEMENT == 3
typedef double Real;
#else
typedef float Real;
#endif

#if ELEMENT == 1 || ELEMENT == 2
struct Element {
  unsigned short bits;
};
#else
typedef Real Element;
#endif

constexpr int WARP = 32;
constexpr unsigned ALL = 0xffffffffu;

// COUNT neighbours that are loaded and stored at once, 16 bytes at a time at most.
template <class T, int COUNT>
struct alignas(sizeof(T) * COUNT < 16 ? sizeof(T) * COUNT : 16) Pack {
  T at[COUNT];
};

// A tensor of three axes; a two-axis one leaves the first stride 0. Strides are in elements.
template <class T>
struct Tensor {
  T* data;
  long long stride[3];

  __device__ __forceinline__ T* row(long long i) const { return data + i * stride[0]; }
  __device__ __forceinline__ T* at(long long i, long long j, long long k) const {
    return data + i * stride[0] + j * stride[1] + k * stride[2];
  }
};

#ifdef MAMBALAB_EMULATED
constexpr float SHORT_OF_EXP2 = 0;
__device__ inline float narrow_exp2(float x) { return exp2f(x); }
__device__ inline float reciprocal(float x) { return 1 / x; }
__device__ inline unsigned short half_bits(float x) { return emulated_half_bits(x); }
__device__ inline float half_value(unsigned short bits) { return emulated_half_value(bits); }
__device__ inline unsigned short bfloat_bits(float x) {
  unsigned bits = __float_as_uint(x);
  if (x != x) return 0x7fff;
  return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
#else
constexpr float SHORT_OF_EXP2 = 2.9e-8f;
__device__ __forceinline__ float narrow_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ unsigned short half_bits(float x) {
  unsigned short y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float half_value(unsigned short bits) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
  return y;
}
__device__ __forceinline__ unsigned short bfloat_bits(float x) {
  unsigned short y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
#endif

// A pack on its way from global to shared memory past the registers, or zeros in its place where it is not `inside`; there
// once the thread has waited for its copies.
template <class T>
__device__ __forceinline__ void copy_async(T* shared, const T* global, bool inside) {
#ifdef MAMBALAB_EMULATED
  if (inside)
    *shared = *global;
  else
    *shared = {};
#else
  constexpr int BYTES = sizeof(T) < 16 ? sizeof(T) : 16;
#pragma unroll
  for (int at = 0; at < sizeof(T); at += BYTES)
    asm volatile(
        "cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"((unsigned)__cvta_generic_to_shared((char*)shared + at)),
        "l"((const char*)global + at), "n"(BYTES), "r"(inside ? BYTES : 0)
        : "memory");
#endif
}
// What was read before is read anew behind it, instead of being held in registers.
__device__ __forceinline__ void forget_memory() { asm volatile("" ::: "memory"); }

__device__ __forceinline__ void wait_for_copies() {
#ifndef MAMBALAB_EMULATED
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

#if ELEMENT == 1 || ELEMENT == 2
// Two elements in a word, the first one in its low half.
__device__ __forceinline__ unsigned two_elements(float low, float high) {
#if ELEMENT == 2
  return half_bits(low) | (unsigned)half_bits(high) << 16;
#elif defined(MAMBALAB_EMULATED)
  return bfloat_bits(low) | (unsigned)bfloat_bits(high) << 16;
#else
  unsigned word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#endif
}
#endif

#if ELEMENT == 1
__device__ __forceinline__ Real widen(Element x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ __forceinline__ Element narrow(Real x) { return {bfloat_bits(x)}; }
#elif ELEMENT == 2
__device__ __forceinline__ Real widen(Element x) { return half_value(x.bits); }
__device__ __forceinline__ Element narrow(Real x) { return {half_bits(x)}; }
#else
__device__ __forceinline__ Real widen(Element x) { return x; }
__device__ __forceinline__ Element narrow(Real x) { return x; }
#endif

// Four neighbours at once, which for bfloat16 is an instruction each way where one at a time takes two.
__device__ __forceinline__ Pack<Real, 4> widen(const Pack<Element, 4>& narrow) {
#if ELEMENT == 1
  const uint2 bits = *(const uint2*)&narrow;
  return {__uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xffff0000u), __uint_as_float(bits.y << 16),
          __uint_as_float(bits.y & 0xffff0000u)};
#else
  return {widen(narrow.at[0]), widen(narrow.at[1]), widen(narrow.at[2]), widen(narrow.at[3])};
#endif
}
__device__ __forceinline__ Pack<Element, 4> narrow(const Pack<Real, 4>& wide) {
#if ELEMENT == 1
  const uint2 bits = {two_elements(wide.at[0], wide.at[1]), two_elements(wide.at[2], wide.at[3])};
  return *(const Pack<Element, 4>*)&bits;
#else
  return {narrow(wide.at[0]), narrow(wide.at[1]), narrow(wide.at[2]), narrow(wide.at[3])};
#endif
}
// The same for two.
__device__ __forceinline__ Pack<Real, 2> widen(const Pack<Element, 2>& narrow) {
#if ELEMENT == 1
  const unsigned bits = *(const unsigned*)&narrow;
  return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
#else
  return {widen(narrow.at[0]), widen(narrow.at[1])};
#endif
}
__device__ __forceinline__ Pack<Element, 2> narrow(const Pack<Real, 2>& wide) {
#if ELEMENT == 1
  const unsigned bits = two_elements(wide.at[0], wide.at[1]);
  return *(const Pack<Element, 2>*)&bits;
#else
  return {narrow(wide.at[0]), narrow(wide.at[1])};
#endif
}

constexpr double LOG2_E = 1.4426950408889634;

// A as an exponent of 2, kept finite: times the Δ = 0 of padding it has to be 0.
__device__ __forceinline__ float in_base_two(float A) {
  const float x = A * (float)LOG2_E, most = 3.402823466e38f;
  return x < -most ? -most : x > most ? most : x;
}
__device__ __forceinline__ double in_base_two(double A) {
  const double x = A * LOG2_E, most = 1.7976931348623157e308;
  return x < -most ? -most : x > most ? most : x;
}

// 2^x, within two units in the last place of float32 (results below 2^-126 become zero there).
__device__ __forceinline__ float exp2_of(float x) { return narrow_exp2(x); }
__device__ __forceinline__ double exp2_of(double x) { return exp2(x); }

// 2^(ΔA), what a step of Δ leaves of a state; A is an exponent of 2. The hardware's power is low by 2.6e-8 of its value, on
// average, between 2^-0.03 and 2^-0.01, and a slow state is multiplied by thousands of them: the summand makes up for it.
// It leaves the one of Δ = 0 as it is.
__device__ __forceinline__ float decay_of(float delta, float A) { return narrow_exp2(fmaf(delta, A, SHORT_OF_EXP2)); }
__device__ __forceinline__ double decay_of(double delta, double A) { return exp2(delta * A); }

// 1 / (1 + e^-x); where e^-x overflows the quotient is zero, as it should be.
__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1 + narrow_exp2(-(float)LOG2_E * x)); }
__device__ __forceinline__ double sigmoid(double x) { return 1 / (1 + exp(-x)); }

// log(1 + e^x) = max(x, 0) + log1p(e^-|x|). The polynomial is log1p(e)/e on [0, 1]: the fast logarithm loses the small
// values of e, which Δ is mostly made of, and the exact one costs four times as much. Beside inputs of 16 bits, which
// are rounded to 5e-4 and more, 8e-6 of its value is close enough; else it is 3e-8.
__device__ __forceinline__ float softplus(float x) {
  const float e = narrow_exp2(-(float)LOG2_E * fabsf(x));
#if ELEMENT == 1 || ELEMENT == 2
  const float c[] = {0.9999915957450867f,   -0.4993613660335541f, 0.3252066671848297f,
                     -0.21004866063594818f, 0.10122225433588028f, -0.023869140073657036f};
  constexpr int DEGREE = 5;
#else
  const float c[] = {0.9999999403953552f,  -0.4999949336051941f,   0.3331909775733948f,
                     -0.2484298199415207f, 0.19106005132198334f,   -0.13663242757320404f,
                     0.07822591066360474f, -0.029505213722586632f, 0.0052326880395412445f};
  constexpr int DEGREE = 8;
#endif
  float p = c[DEGREE];
#pragma unroll
  for (int k = DEGREE - 1; k >= 0; --k) p = fmaf(p, e, c[k]);
  return fmaf(p, e, fmaxf(x, 0.0f));
}
__device__ __forceinline__ double softplus(double x) { return fmax(x, 0.0) + log1p(exp(-fabs(x))); }

// φ(x) = (e^x - 1) / x and its derivative, by their series where the quotients cancel (zero-order hold).
__device__ __forceinline__ Real phi(Real x) {
  if (fabs(x) < (Real)0.015625) return 1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7)))));
  return (Real)expm1(x) / x;
}
__device__ __forceinline__ Real phi_slope(Real x) {
  if (fabs(x) < (Real)0.015625) {
    Real sum = 0, term = 1;
    for (int k = 1; k <= 7; ++k) {
      term /= k + 1;
      sum += k * term;
      term *= x;
    }
    return sum;
  }
  return ((Real)exp(x) - phi(x)) / x;
}
