#include <algorithm>

#include "cpu/blocks.h"
#include "cpu/dispatch.h"
#include "cpu/l2_pull.h"
#include "cpu/products.h"
#include "cpu/sums.h"
#include "math/l2.h"
#include "ops.h"

namespace rf {
namespace {

// `out` may be x_adv itself: an element is read before it is written.
#define RF_MOVE(Grid)                                                                            \
  RF_CLONES void move(Grid, const float* x_adv, const float* grad, const float* x, float* out,   \
                      int64_t n, L2Scale scale, L2Limits limits) {                               \
    _Pragma("GCC ivdep") for (int64_t i = 0; i < n; ++i) {                                       \
      out[i] = l2_move<Grid>(x_adv[i], grad[i], x[i], scale, limits);                            \
    }                                                                                            \
  }
RF_MOVE(Fp32Grid)
RF_MOVE(Bf16Grid)
RF_MOVE(Fp16Grid)
#undef RF_MOVE

template <class Blocks>
void run(const L2StepCall& call, int threads) {
  using Word = typename Blocks::Word;
  using Grid = typename Blocks::Grid;
  const int64_t length = call.per_sample;
  const auto sum_chunk = [&](int64_t sample, int64_t begin, int64_t end) {
    return sum_products<Blocks>(call.x_adv, call.grad, call.x, sample * length + begin,
                                sample * length + end);
  };
  const auto apply = [&](int64_t sample, const L2Sums& sums, int64_t begin, int64_t end) {
    const L2Limits limits = limits_of(call, sample);
    const L2Scale scale = scale_of(call, sums, sample);
    typename Blocks::Reader x_adv, grad, x;
    typename Blocks::Writer result;
    for (int64_t i = begin; i < end; i += kBlock) {
      const int64_t n = std::min(kBlock, end - i), at = sample * length + i;
      Word* target = static_cast<Word*>(call.x_adv) + at;
      const float* from = x_adv.read(target, n);
      const float* origin = x.read(static_cast<const Word*>(call.x) + at, n);
      float* out = result.place(target);
      if (call.grad) {
        const float* slope = grad.read(static_cast<const Word*>(call.grad) + at, n);
        move(Grid{}, from, slope, origin, out, n, scale, limits);
      } else {
        pull(Grid{}, from, origin, out, n, scale, limits);
      }
      result.write(target, n);
    }
  };
  sum_then_apply<L2Sums>(call.samples, length, threads, sum_chunk, apply);
}

}  // namespace

void l2_step_cpu(const L2StepCall& call, int threads) {
  with_blocks(call.dtype, [&](auto blocks) { run<decltype(blocks)>(call, threads); });
}

}  // namespace rf
