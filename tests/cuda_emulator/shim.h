// What CUDA C++ gives a kernel beyond C++, for g++: the keywords, the vector types, the intrinsics and the barriers.
#pragma once
#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(bytes) __attribute__((aligned(bytes)))
// One block runs at a time, so that static storage is as private to it; nothing else lies in .bss.
#define __shared__ static

extern "C" {
float expf(float) noexcept; float exp2f(float) noexcept; float expm1f(float) noexcept;
float logf(float) noexcept; float log2f(float) noexcept; float log1pf(float) noexcept;
float sqrtf(float) noexcept; float fabsf(float) noexcept; float fmaf(float, float, float) noexcept;
float fminf(float, float) noexcept; float fmaxf(float, float) noexcept; float tanhf(float) noexcept;
float floorf(float) noexcept; float ceilf(float) noexcept; float rintf(float) noexcept; float truncf(float) noexcept;
float ldexpf(float, int) noexcept; float copysignf(float, float) noexcept; float powf(float, float) noexcept;
float sinf(float) noexcept; float cosf(float) noexcept;
double exp(double) noexcept; double exp2(double) noexcept; double expm1(double) noexcept;
double log(double) noexcept; double log2(double) noexcept; double log1p(double) noexcept;
double sqrt(double) noexcept; double fabs(double) noexcept; double fma(double, double, double) noexcept;
double fmin(double, double) noexcept; double fmax(double, double) noexcept; double tanh(double) noexcept;
double floor(double) noexcept; double ceil(double) noexcept; double rint(double) noexcept; double trunc(double) noexcept;
double ldexp(double, int) noexcept; double copysign(double, double) noexcept; double pow(double, double) noexcept;
double sin(double) noexcept; double cos(double) noexcept;
int abs(int) noexcept;
}

static const int warpSize = 32;

#define EMULATED_VECTORS(T, name, bytes)                                                                     \
    struct __align__(2 * bytes) name##2 { T x, y; };                                                         \
    struct __align__(bytes < 8 ? 4 * bytes : 16) name##4 { T x, y, z, w; };                                  \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                               \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATED_VECTORS(float, float, 4)
EMULATED_VECTORS(double, double, 8)
EMULATED_VECTORS(int, int, 4)
EMULATED_VECTORS(unsigned, uint, 4)
EMULATED_VECTORS(short, short, 2)
EMULATED_VECTORS(unsigned short, ushort, 2)
EMULATED_VECTORS(long long, longlong, 8)
EMULATED_VECTORS(unsigned long long, ulonglong, 8)
#undef EMULATED_VECTORS

template <class To, class From>
inline To emulated_bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "a cast of bits keeps the size");
    To bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline unsigned __float_as_uint(float value) { return emulated_bits<unsigned>(value); }
inline int __float_as_int(float value) { return emulated_bits<int>(value); }
inline float __uint_as_float(unsigned value) { return emulated_bits<float>(value); }
inline float __int_as_float(int value) { return emulated_bits<float>(value); }
inline long long __double_as_longlong(double value) { return emulated_bits<long long>(value); }
inline double __longlong_as_double(long long value) { return emulated_bits<double>(value); }

// What common.cuh asks for where the device has an instruction: float16, rounded to the nearest, ties to even.
inline unsigned short emulated_half_bits(float x) {
    unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (x != x) return 0x7fff;
    if (magnitude >= 0x477ff000) return sign | 0x7c00;
    if (magnitude < 0x38800000) return sign | (unsigned)rintf(fabsf(x) * 16777216.0f);
    return sign | ((magnitude + 0xfff + (magnitude >> 13 & 1)) >> 13) - (112 << 10);
}
inline float emulated_half_value(unsigned short bits) {
    unsigned exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
    float magnitude = exponent == 31 ? __uint_as_float(0x7f800000 | fraction << 13)
        : exponent ? __uint_as_float((exponent + 112) << 23 | fraction << 13) : fraction / 16777216.0f;
    return copysignf(magnitude, bits & 0x8000 ? -1.0f : 1.0f);
}

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline bool isnan(float x) { return x != x; }
inline bool isnan(double x) { return x != x; }
inline bool isinf(float x) { return fabsf(x) == __builtin_inff(); }
inline bool isinf(double x) { return fabs(x) == __builtin_inf(); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float exp(float x) { return expf(x); }
inline float log(float x) { return logf(x); }
inline float sqrt(float x) { return sqrtf(x); }
inline float fabs(float x) { return fabsf(x); }
inline long long abs(long long x) { return x < 0 ? -x : x; }

#define EMULATED_EXTREMES(T)                                                                                  \
    inline T min(T a, T b) { return b < a ? b : a; }                                                          \
    inline T max(T a, T b) { return a < b ? b : a; }
EMULATED_EXTREMES(int)
EMULATED_EXTREMES(unsigned)
EMULATED_EXTREMES(long)
EMULATED_EXTREMES(unsigned long)
EMULATED_EXTREMES(long long)
EMULATED_EXTREMES(unsigned long long)
#undef EMULATED_EXTREMES
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

template <class T>
inline T __ldg(const T *at) { return *at; }
template <class T>
inline T __ldcg(const T *at) { return *at; }
template <class T>
inline T __ldcs(const T *at) { return *at; }
template <class T>
inline void __stcs(T *at, T value) { *at = value; }
template <class T>
inline void __stcg(T *at, T value) { *at = value; }

inline void __syncthreads() { emulated_syncthreads(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulated_exchange(mask, 0, -1, "__syncwarp"); }
inline void __threadfence() { }
inline void __threadfence_block() { }
inline unsigned __ballot_sync(unsigned mask, int predicate) { return emulated_ballot(mask, predicate); }
inline int __any_sync(unsigned mask, int predicate) { return emulated_ballot(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return emulated_ballot(mask, !predicate) == 0; }

// Where a shuffle reads, by the rules of the CUDA C++ Programming Guide: past the end of a segment, its own lane.
inline int emulated_lane() { return threadIdx.x % 32; }
inline int emulated_from(int lane, int width) { return (emulated_lane() & ~(width - 1)) | (lane & (width - 1)); }
inline int emulated_within(int lane, int width) {
    int first = emulated_lane() & ~(width - 1);
    return lane < first || lane >= first + width ? emulated_lane() : lane;
}
inline int emulated_xor(int mask, int width) {
    int lane = emulated_lane() ^ mask, end = (emulated_lane() & ~(width - 1)) + width;
    return lane >= end ? emulated_lane() : lane;
}

#define EMULATED_SHUFFLE(T, name, source)                                                                     \
    inline T name(unsigned mask, T value, int by, int width = 32) {                                           \
        unsigned long long bits = 0;                                                                          \
        __builtin_memcpy(&bits, &value, sizeof value);                                                        \
        bits = emulated_exchange(mask, bits, source, #name);                                                  \
        __builtin_memcpy(&value, &bits, sizeof value);                                                        \
        return value;                                                                                         \
    }
#define EMULATED_SHUFFLES(T)                                                                                  \
    EMULATED_SHUFFLE(T, __shfl_sync, emulated_from(by, width))                                                \
    EMULATED_SHUFFLE(T, __shfl_xor_sync, emulated_xor(by, width))                                             \
    EMULATED_SHUFFLE(T, __shfl_up_sync, emulated_within(emulated_lane() - by, width))                         \
    EMULATED_SHUFFLE(T, __shfl_down_sync, emulated_within(emulated_lane() + by, width))
EMULATED_SHUFFLES(int)
EMULATED_SHUFFLES(unsigned)
EMULATED_SHUFFLES(long)
EMULATED_SHUFFLES(unsigned long)
EMULATED_SHUFFLES(long long)
EMULATED_SHUFFLES(unsigned long long)
EMULATED_SHUFFLES(float)
EMULATED_SHUFFLES(double)
#undef EMULATED_SHUFFLES
#undef EMULATED_SHUFFLE

// The linker puts these round .bss, which is filled with NaN before each block.
extern "C" __attribute__((visibility("hidden"))) unsigned char __bss_start[], _end[];

template <class Arguments, void (*kernel)(const Arguments)>
inline void emulated_body(const void *words) { kernel(*static_cast<const Arguments *>(words)); }

template <class Arguments>
Arguments emulated_arguments(void (*)(Arguments));

// The entry that Python calls; `most`, the arguments of __launch_bounds__, begins with the most threads of a block.
#define EMULATED_ENTRY(kernel, most, ...)                                                                     \
    extern "C" __attribute__((visibility("default"))) void kernel##_emulated(const EmulatedLaunch *launch) {  \
        using Arguments = decltype(emulated_arguments(&kernel));                                              \
        emulated_launch(launch, sizeof(Arguments), most, emulated_body<Arguments, &kernel>, __bss_start,      \
                        _end);                                                                                \
    }
