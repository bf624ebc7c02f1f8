#include <algorithm>

#include "cpu/bf16_lanes.h"
#include "cpu/blocks.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "math/apgd.h"
#include "ops.h"

namespace rf {
namespace {

// `out` may be x_prev itself: an element is read before it is written.
#define RF_STEP(name, Grid)                                                                     \
  RF_CLONES void step_##name(const float* x_adv, const float* x_prev, const float* grad,        \
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

RF_V4 void step_bf16_lanes(const uint16_t* x_adv, const uint16_t* x_prev, const uint16_t* grad,
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
      step_bf16(wide[0], wide[1], wide[2], wide[3], result, count, momentum, s);
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
      return run<Fp32Blocks>(call, threads, step_fp32);
    case DType::bf16:
#if RF_BF16_LANES
      if (has_bf16_lanes()) return run<Bf16Words>(call, threads, step_bf16_lanes);
#endif
      return run<Bf16Blocks>(call, threads, step_bf16);
    case DType::fp16:
      return run<Fp16Blocks>(call, threads, step_fp16);
  }
}

}  // namespace rf
