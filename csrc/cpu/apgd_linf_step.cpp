#include <algorithm>

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
      return run<Bf16Blocks>(call, threads, step_bf16);
    case DType::fp16:
      return run<Fp16Blocks>(call, threads, step_fp16);
  }
}

}  // namespace rf
