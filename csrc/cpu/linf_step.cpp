#include "math/linf_step.h"

#include <algorithm>

#include "cpu/bf16_lanes.h"
#include "cpu/dispatch.h"
#include "cpu/half.h"
#include "cpu/parallel.h"
#include "ops.h"

namespace rf {
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
void run(const LinfStepCall& call, int threads, Step step) {
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

void linf_step_cpu(const LinfStepCall& call, int threads) {
  switch (call.dtype) {
    case DType::fp32:
      return run<float>(call, threads, step_fp32);
    case DType::bf16:
      return run<uint16_t>(call, threads, step_bf16_best);
    case DType::fp16:
      return run<uint16_t>(call, threads, step_fp16);
  }
}

}  // namespace rf
