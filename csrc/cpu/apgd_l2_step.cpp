#include <algorithm>

#include "cpu/blocks.h"
#include "cpu/dispatch.h"
#include "cpu/l2_pull.h"
#include "cpu/products.h"
#include "cpu/sums.h"
#include "math/apgd.h"
#include "ops.h"

namespace rf {
namespace {

RF_CLONES void point(const float* __restrict x_adv, const float* __restrict x_prev,
                     const float* __restrict grad, const float* __restrict x,
                     float* __restrict out, int64_t n, float momentum, L2Scale scale,
                     L2Limits limits) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = apgd_l2_point(x_adv[i], x_prev[i], grad[i], x[i], momentum, scale, limits);
  }
}

// Calls use(block of points, block of x, begin, n) for the elements [begin, end) of a sample.
template <class Blocks, class Use>
void each_block(const ApgdStepCall& call, int64_t sample, const L2Scale& scale, int64_t begin,
                int64_t end, const Use& use) {
  using Word = typename Blocks::Word;
  alignas(64) float points[kBlock];
  typename Blocks::Reader x_adv, x_prev, grad, x;
  const L2Limits limits = limits_of(call, sample);
  const float momentum = amount_of(call.momentum, sample);
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t n = std::min(kBlock, end - i), at = sample * call.per_sample + i;
    const float* origin = x.read(static_cast<const Word*>(call.x) + at, n);
    point(x_adv.read(static_cast<const Word*>(call.x_adv) + at, n),
          x_prev.read(static_cast<const Word*>(call.x_prev) + at, n),
          grad.read(static_cast<const Word*>(call.grad) + at, n), origin, points, n, momentum,
          scale, limits);
    use(points, origin, at, n);
  }
}

// Three passes over a sample: its sums, the length of its new distance, the result.
template <class Blocks>
void run(const ApgdStepCall& call, int threads) {
  using Word = typename Blocks::Word;
  const int64_t length = call.per_sample;
  const auto sum_step = [&](int64_t sample, int64_t begin, int64_t end) {
    return sum_products<Blocks>(call.x_adv, call.grad, call.x, sample * length + begin,
                                sample * length + end);
  };
  const auto sum_point = [&](int64_t sample, const L2Sums& sums, int64_t begin, int64_t end) {
    Lanes lanes = {};
    each_block<Blocks>(call, sample, scale_of(call, sums, sample), begin, end,
                       [&](const float* points, const float* x, int64_t, int64_t n) {
                         add_squares(points, x, n, lanes.dd);
                       });
    return L2Sums{add_lanes(lanes.dd), 0.0, 0.0};
  };
  const auto apply = [&](int64_t sample, const L2Sums& sums, const L2Sums& squares, int64_t begin,
                         int64_t end) {
    const L2Limits limits = limits_of(call, sample);
    const L2Scale last = l2_projection(squares.dd, limits);
    typename Blocks::Writer result;
    each_block<Blocks>(call, sample, scale_of(call, sums, sample), begin, end,
                       [&](const float* points, const float* x, int64_t at, int64_t n) {
                         Word* target = static_cast<Word*>(call.x_prev) + at;
                         pull(typename Blocks::Grid{}, points, x, result.place(target), n, last, limits);
                         result.write(target, n);
                       });
  };
  sum_twice_then_apply<L2Sums>(call.samples, length, threads, sum_step, sum_point, apply);
}

}  // namespace

void apgd_l2_step_cpu(const ApgdStepCall& call, int threads) {
  with_blocks(call.dtype, [&](auto blocks) { run<decltype(blocks)>(call, threads); });
}

}  // namespace rf
