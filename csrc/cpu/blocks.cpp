#include "cpu/blocks.h"

#include "cpu/dispatch.h"
#include "math/bits.h"
#include "math/philox.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__)) && !defined(RF_NO_DISPATCH)
#define RF_F16C 1
#include <immintrin.h>
#else
#define RF_F16C 0
#endif

namespace rf {
namespace {

float widen(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t rest = static_cast<uint32_t>(half & 0x7fffu) << 13;
  if (rest >= (0x7c00u << 13)) return float_of(sign | rest | 0x7f800000u);
  // The exponents differ by 112; multiplying also normalises fp16's subnormals.
  return float_of(sign | bits_of(float_of(rest) * 0x1p112f));
}

uint16_t narrow(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  if (!is_finite(value)) {
    return static_cast<uint16_t>(sign | 0x7c00u | (value == value ? 0u : 0x200u));
  }
  return static_cast<uint16_t>(sign | (bits_of(magnitude(value) * 0x1p-112f) >> 13));
}

#if RF_F16C
__attribute__((target("avx,f16c"))) int64_t half_to_float_f16c(const uint16_t* from, float* to,
                                                               int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(half));
  }
  return i;
}

__attribute__((target("avx,f16c"))) int64_t float_to_half_f16c(const float* from, uint16_t* to,
                                                               int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), half);
  }
  return i;
}

const bool has_f16c = [] {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
}();
#endif

}  // namespace

RF_CLONES void bf16_to_float(const uint16_t* __restrict from, float* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = widen_bf16(from[i]);
}

RF_CLONES void float_to_bf16(const float* __restrict from, uint16_t* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = narrow_bf16(from[i]);
}

void half_to_float(const uint16_t* from, float* to, int64_t n) {
  int64_t i = 0;
#if RF_F16C
  if (has_f16c) i = half_to_float_f16c(from, to, n);
#endif
  for (; i < n; ++i) to[i] = widen(from[i]);
}

void float_to_half(const float* from, uint16_t* to, int64_t n) {
  int64_t i = 0;
#if RF_F16C
  if (has_f16c) i = float_to_half_f16c(from, to, n);
#endif
  for (; i < n; ++i) to[i] = narrow(from[i]);
}

RF_CLONES void fill_words(uint32_t* __restrict words, int64_t count, uint64_t key, uint64_t first,
                          uint64_t id) {
  for (int64_t i = 0; i < count; ++i) {
    const Words drawn = philox(key, first + static_cast<uint64_t>(i), id);
    words[4 * i] = drawn.v[0];
    words[4 * i + 1] = drawn.v[1];
    words[4 * i + 2] = drawn.v[2];
    words[4 * i + 3] = drawn.v[3];
  }
}

}  // namespace rf
