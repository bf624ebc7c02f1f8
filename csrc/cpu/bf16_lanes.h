// bf16 by AVX-512 instructions, 32 numbers at a time, for the arithmetic that the Linf rules share.
// The scalar rules in math/ say what is computed; this is the same in half the instructions:
// - a word of two bf16 numbers is two floats: the upper one as it stands (the lower half cleared),
//   the lower one shifted up, so nothing is unpacked;
// - the limits of the ball are rounded inward by the instruction itself;
// - rounding to bf16 adds a bias and cuts the lower half off. Cutting is monotone, so clamping comes
//   first and one cut serves the value and all its limits.
// Large and non-finite numbers would overflow the bias: blocks that hold one go to the scalar rule.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    (RF_HAS_CLONES || (defined(__AVX512BW__) && defined(__AVX512DQ__)))
#define RF_BF16_LANES 1
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12, of its own header
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "math/linf_step.h"

#define RF_V4 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define RF_V4_INLINE static inline __attribute__((always_inline)) RF_V4

namespace rf {

inline bool has_bf16_lanes() {
#if RF_HAS_CLONES
  return __builtin_cpu_supports("x86-64-v4");
#else
  return true;
#endif
}

struct LinfLanes {
  __m512 eps, step_size, low, high;
};

// Whether the bias cannot overflow; for a tensor's numbers see `tame`.
inline bool is_tame(const LinfScalars& s) {
  return magnitude(s.eps) < 0x1p100f && magnitude(s.step_size) < 0x1p100f;
}

RF_V4_INLINE LinfLanes lanes_of(const LinfScalars& s) {
  return {_mm512_set1_ps(s.eps), _mm512_set1_ps(s.step_size), _mm512_set1_ps(s.low),
          _mm512_set1_ps(s.high)};
}

RF_V4_INLINE __mmask32 first(int64_t n) { return n >= 32 ? ~0u : (1u << n) - 1u; }

// Numbers from memory, and word to it that those half a page on are next: the hardware's own
// prefetching stops at every page, and there are twice as many numbers in a page as of floats.
RF_V4_INLINE __m512i load_bf16(const uint16_t* from, __mmask32 mask) {
  const uintptr_t ahead = reinterpret_cast<uintptr_t>(from) + 2048;
  _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T0);
  return _mm512_maskz_loadu_epi16(mask, from);
}

// Magnitudes below 2^100, no NaN.
RF_V4_INLINE bool tame(__m512i a, __m512i b) {
  const __m512i sign = _mm512_set1_epi16(static_cast<int16_t>(0x8000));
  const __m512i larger = _mm512_max_epu16(_mm512_andnot_si512(sign, a), _mm512_andnot_si512(sign, b));
  return !_mm512_cmpgt_epu16_mask(larger, _mm512_set1_epi16((127 + 100) << 7));
}

RF_V4_INLINE __m512 lower(__m512i words) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}

RF_V4_INLINE __m512 upper(__m512i words) {
  return _mm512_castsi512_ps(
      _mm512_and_si512(words, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u))));
}

// x_adv + signed_step(grad, step_size)
RF_V4_INLINE __m512 stepped(__m512 x_adv, __m512 grad, const LinfLanes& s) {
  constexpr int kNan = 0x81, kZeros = 0x06, kInfinities = 0x18, kXorOfAnd = 0x78;
  const __mmask16 still = _mm512_fpclass_ps_mask(grad, kNan | kZeros | kInfinities);
  const __m512i sign = _mm512_set1_epi32(static_cast<int32_t>(0x80000000u));
  const __m512i step = _mm512_ternarylogic_epi32(_mm512_castps_si512(s.step_size),
                                                 _mm512_castps_si512(grad), sign, kXorOfAnd);
  return _mm512_mask_add_ps(x_adv, _knot_mask16(still), x_adv, _mm512_castsi512_ps(step));
}

// `value` in the ball round x, then in the box; its upper half is the result, its lower half is not
// to be used.
RF_V4_INLINE __m512i confined(__m512 value, __m512 x, const LinfLanes& s) {
  const __m512i zero = _mm512_setzero_si512(), rest = _mm512_set1_epi32(0xffff);
  const __m512i lsb = _mm512_set1_epi32(0x10000), half = _mm512_set1_epi32(0x7fff);
  const __m512i bits = _mm512_castps_si512(value);
  const __mmask16 odd = _mm512_test_epi32_mask(bits, lsb);
  const __m512i nearest = _mm512_mask_add_epi32(_mm512_add_epi32(bits, half), odd, bits,
                                                _mm512_set1_epi32(0x8000));
  constexpr int kUp = _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC;
  constexpr int kDown = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
  const __m512i floor = _mm512_castps_si512(_mm512_sub_round_ps(x, s.eps, kUp));
  const __m512i ceiling = _mm512_castps_si512(_mm512_add_round_ps(x, s.eps, kDown));
  const __m512i up = _mm512_mask_add_epi32(floor, _mm512_cmpge_epi32_mask(floor, zero), floor, rest);
  const __m512i down =
      _mm512_mask_add_epi32(ceiling, _mm512_cmplt_epi32_mask(ceiling, zero), ceiling, rest);
  const __m512 raised = _mm512_max_ps(_mm512_castsi512_ps(nearest), _mm512_castsi512_ps(up));
  const __m512 inside = _mm512_min_ps(raised, _mm512_castsi512_ps(down));
  return _mm512_castps_si512(_mm512_min_ps(_mm512_max_ps(inside, s.low), s.high));
}

// The words of two results; zero is always +0.
RF_V4_INLINE __m512i joined(__m512i low, __m512i high) {
  constexpr int kChoose = 0xca;  // the second operand where the first has ones, else the third
  const __m512i words = _mm512_ternarylogic_epi32(
      _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u)), high, _mm512_srli_epi32(low, 16), kChoose);
  const __m512i minus = _mm512_set1_epi16(static_cast<int16_t>(0x8000));
  return _mm512_maskz_mov_epi16(_mm512_cmpneq_epi16_mask(words, minus), words);
}

}  // namespace rf
#else
#define RF_BF16_LANES 0
#endif
