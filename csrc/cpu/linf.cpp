// linf_step_ and apgd_linf_step_ on the CPU.
#include <algorithm>
#include <cstdint>

#include "cpu/blocks.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "math/linf.h"
#include "ops.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    (RF_HAS_CLONES || (defined(__AVX512BW__) && defined(__AVX512DQ__)))
#define RF_BF16_LANES 1
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12, of its own header
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#define RF_BF16_LANES 0
#endif

namespace rf {

#if RF_BF16_LANES
// bf16 by AVX-512 instructions, 32 numbers at a time, for the arithmetic that the Linf rules share.
// The scalar rules in math/ say what is computed; this is the same in half the instructions:
// - a word of two bf16 numbers is two floats: the upper one as it stands (the lower half cleared),
//   the lower one shifted up, so nothing is unpacked;
// - the limits of the ball are rounded inward by the instruction itself;
// - rounding to bf16 adds a bias and cuts the lower half off. Cutting is monotone, so clamping comes
//   first and one cut serves the value and all its limits.
// Large and non-finite numbers would overflow the bias: blocks that hold one go to the scalar rule.
#define RF_V4 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define RF_V4_INLINE static inline __attribute__((always_inline)) RF_V4

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
#endif

namespace {

RF_CLONES void step_fp32(float* __restrict x_adv, const float* __restrict grad,
                         const float* __restrict x, int64_t n, LinfScalars s) {
  for (int64_t i = 0; i < n; ++i) x_adv[i] = linf_step<Fp32Grid>(x_adv[i], grad[i], x[i], s);
}

RF_CLONES void step_bf16(uint16_t* __restrict x_adv, const uint16_t* __restrict grad,
                         const uint16_t* __restrict x, int64_t n, LinfScalars s) {
  for (int64_t i = 0; i < n; ++i) {
    const float out =
        linf_step<Bf16Grid>(widen_bf16(x_adv[i]), widen_bf16(grad[i]), widen_bf16(x[i]), s);
    x_adv[i] = narrow_bf16(out);
  }
}

#if RF_BF16_LANES
RF_V4 void step_bf16_lanes(uint16_t* x_adv, const uint16_t* grad, const uint16_t* x, int64_t n,
                           LinfScalars s) {
  const LinfLanes lanes = lanes_of(s);
  for (int64_t i = 0; i < n; i += 32) {
    const __mmask32 mask = first(n - i);
    const __m512i from = load_bf16(x_adv + i, mask), g = load_bf16(grad + i, mask);
    const __m512i centre = load_bf16(x + i, mask);
    if (!tame(from, centre)) {
      step_bf16(x_adv + i, grad + i, x + i, std::min<int64_t>(32, n - i), s);
      continue;
    }
    const __m512i low = confined(stepped(lower(from), lower(g), lanes), lower(centre), lanes);
    const __m512i high = confined(stepped(upper(from), upper(g), lanes), upper(centre), lanes);
    _mm512_mask_storeu_epi16(x_adv + i, mask, joined(low, high));
  }
}
#endif

void step_bf16_best(uint16_t* x_adv, const uint16_t* grad, const uint16_t* x, int64_t n,
                    LinfScalars s) {
#if RF_BF16_LANES
  if (has_bf16_lanes() && is_tame(s)) return step_bf16_lanes(x_adv, grad, x, n, s);
#endif
  step_bf16(x_adv, grad, x, n, s);
}

RF_CLONES void step_fp16_widened(float* __restrict x_adv, const float* __restrict grad,
                                 const float* __restrict x, int64_t n, LinfScalars s) {
  for (int64_t i = 0; i < n; ++i) x_adv[i] = linf_step<Fp16Grid>(x_adv[i], grad[i], x[i], s);
}

void step_fp16(uint16_t* x_adv, const uint16_t* grad, const uint16_t* x, int64_t n, LinfScalars s) {
  constexpr int64_t kBlock = 512;  // three blocks of floats stay in the first-level cache
  alignas(64) float wide_x_adv[kBlock], wide_grad[kBlock], wide_x[kBlock];
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t count = std::min(kBlock, n - begin);
    half_to_float(x_adv + begin, wide_x_adv, count);
    half_to_float(grad + begin, wide_grad, count);
    half_to_float(x + begin, wide_x, count);
    step_fp16_widened(wide_x_adv, wide_grad, wide_x, count, s);
    float_to_half(wide_x_adv, x_adv + begin, count);
  }
}

// Cuts [begin, end) at the borders of samples and gives each piece its own eps and step size.
template <class T, class Step>
void run(const StepCall& call, int threads, Step step) {
  T* x_adv = static_cast<T*>(call.x_adv);
  const T* grad = static_cast<const T*>(call.grad);
  const T* x = static_cast<const T*>(call.x);
  const bool uniform = is_uniform(call.eps) && is_uniform(call.step_size);
  const int64_t n = call.samples * call.per_sample;
  const int64_t length = uniform ? n : call.per_sample;
  parallel_for(n, threads, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t sample = begin / length;
      const int64_t stop = std::min(end, (sample + 1) * length);
      const LinfScalars scalars = scalars_of(call, sample);
      step(x_adv + begin, grad + begin, x + begin, stop - begin, scalars);
      begin = stop;
    }
  });
}

}  // namespace

void linf_step_cpu(const StepCall& call, int threads) {
  switch (call.dtype) {
    case DType::fp32:
      return run<float>(call, threads, step_fp32);
    case DType::bf16:
      return run<uint16_t>(call, threads, step_bf16_best);
    case DType::fp16:
      return run<uint16_t>(call, threads, step_fp16);
  }
}

namespace {

// `out` may be x_prev itself: an element is read before it is written.
#define RF_STEP(name, Grid)                                                                     \
  RF_CLONES void apgd_##name(const float* x_adv, const float* x_prev, const float* grad,        \
                             const float* x, float* out, int64_t n, float momentum,             \
                             LinfScalars s) {                                                   \
    _Pragma("GCC ivdep") for (int64_t i = 0; i < n; ++i) {                                      \
      out[i] = apgd_linf_step<Grid>(x_adv[i], x_prev[i], grad[i], x[i], momentum, s);           \
    }                                                                                           \
  }
RF_STEP(fp32, Fp32Grid)
RF_STEP(bf16, Bf16Grid)
RF_STEP(fp16, Fp16Grid)
#undef RF_STEP

#if RF_BF16_LANES
bool is_tame(float momentum, const LinfScalars& s) {
  return is_tame(s) && magnitude(momentum) < 0x1p20f;
}

// apgd_linf_step<Bf16Grid> up to the last projection.
RF_V4_INLINE __m512 point(__m512 x_adv, __m512 x_prev, __m512 grad, __m512 x, float momentum,
                          const LinfLanes& s) {
  const __m512 low = _mm512_sub_ps(x, s.eps), high = _mm512_add_ps(x, s.eps);
  const __m512 inside = _mm512_min_ps(_mm512_max_ps(stepped(x_adv, grad, s), low), high);
  const __m512 u = _mm512_min_ps(_mm512_max_ps(inside, s.low), s.high);
  if (momentum == 1.0f) return u;
  const __m512 forward = _mm512_mul_ps(_mm512_set1_ps(momentum), _mm512_sub_ps(u, x_adv));
  const __m512 onward =
      _mm512_mul_ps(_mm512_set1_ps(1.0f - momentum), _mm512_sub_ps(x_adv, x_prev));
  return _mm512_add_ps(_mm512_add_ps(x_adv, forward), onward);
}

RF_V4 void apgd_bf16_lanes(const uint16_t* x_adv, const uint16_t* x_prev, const uint16_t* grad,
                           const uint16_t* x, uint16_t* out, int64_t n, float momentum,
                           LinfScalars s) {
  const LinfLanes lanes = lanes_of(s);
  const bool known = is_tame(momentum, s);
  for (int64_t i = 0; i < n; i += 32) {
    const __mmask32 mask = first(n - i);
    const __m512i from = load_bf16(x_adv + i, mask), before = load_bf16(x_prev + i, mask);
    const __m512i g = load_bf16(grad + i, mask), centre = load_bf16(x + i, mask);
    if (!(known && tame(from, centre) && tame(before, before))) {
      float wide[4][32], result[32];
      const int64_t count = std::min<int64_t>(32, n - i);
      const uint16_t* words[4] = {x_adv + i, x_prev + i, grad + i, x + i};
      for (int part = 0; part < 4; ++part) bf16_to_float(words[part], wide[part], count);
      apgd_bf16(wide[0], wide[1], wide[2], wide[3], result, count, momentum, s);
      float_to_bf16(result, out + i, count);
      continue;
    }
    const __m512 low = point(lower(from), lower(before), lower(g), lower(centre), momentum, lanes);
    const __m512 high = point(upper(from), upper(before), upper(g), upper(centre), momentum, lanes);
    _mm512_mask_storeu_epi16(
        out + i, mask,
        joined(confined(low, lower(centre), lanes), confined(high, upper(centre), lanes)));
  }
}
#endif

template <class Blocks, class Step>
void run(const ApgdStepCall& call, int threads, Step step) {
  using Word = typename Blocks::Word;
  const int64_t length = call.per_sample;
  parallel_for(call.samples * length, threads, [&](int64_t begin, int64_t end) {
    typename Blocks::Reader x_adv, x_prev, grad, x;
    typename Blocks::Writer result;
    while (begin < end) {
      const int64_t sample = begin / length;
      const int64_t n = std::min({kBlock, end - begin, (sample + 1) * length - begin});
      const LinfScalars scalars = {amount_of(call.eps, sample), amount_of(call.step_size, sample),
                                   call.low, call.high};
      Word* target = static_cast<Word*>(call.x_prev) + begin;
      step(x_adv.read(static_cast<const Word*>(call.x_adv) + begin, n), x_prev.read(target, n),
           grad.read(static_cast<const Word*>(call.grad) + begin, n),
           x.read(static_cast<const Word*>(call.x) + begin, n), result.place(target), n,
           amount_of(call.momentum, sample), scalars);
      result.write(target, n);
      begin += n;
    }
  });
}

}  // namespace

void apgd_linf_step_cpu(const ApgdStepCall& call, int threads) {
  switch (call.dtype) {
    case DType::fp32:
      return run<Fp32Blocks>(call, threads, apgd_fp32);
    case DType::bf16:
#if RF_BF16_LANES
      if (has_bf16_lanes()) return run<Bf16Words>(call, threads, apgd_bf16_lanes);
#endif
      return run<Bf16Blocks>(call, threads, apgd_bf16);
    case DType::fp16:
      return run<Fp16Blocks>(call, threads, apgd_fp16);
  }
}

}  // namespace rf
