// l2_step_, l2_project_ and apgd_l2_step_ on the CPU.

#include <algorithm>

#include "cpu/blocks.h"
#include "cpu/dispatch.h"
#include "cpu/sums.h"
#include "math/l2.h"
#include "ops.h"

namespace rf {

namespace {

struct Lanes {
  double dd[kLanes], dg[kLanes], gg[kLanes];
};

// Adds the products of n elements to the lanes, d = x_adv - x.
RF_CLONES void add_products(const float* __restrict x_adv, const float* __restrict grad,
                            const float* __restrict x, int64_t n, Lanes* __restrict lanes) {
  Lanes sums = *lanes;
  const auto add = [&](int64_t i, int lane) {
    const double d = static_cast<double>(x_adv[i]) - static_cast<double>(x[i]);
    const double g = finite_or_zero(grad[i]);
    sums.dd[lane] += d * d;
    sums.dg[lane] += d * g;
    sums.gg[lane] += g * g;
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
  }
  for (int lane = 0; i + lane < n; ++lane) add(i + lane, lane);
  *lanes = sums;
}

// The same for d alone.
RF_CLONES void add_squares(const float* __restrict x_adv, const float* __restrict x, int64_t n,
                           double* __restrict lanes) {
  double sums[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) sums[lane] = lanes[lane];
  const auto add = [&](int64_t i, int lane) {
    const double d = static_cast<double>(x_adv[i]) - static_cast<double>(x[i]);
    sums[lane] += d * d;
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
  }
  for (int lane = 0; i + lane < n; ++lane) add(i + lane, lane);
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = sums[lane];
}

// The sums of elements [begin, end); without grad only <d, d>.
template <class Blocks>
L2Sums sum_products(const void* x_adv, const void* grad, const void* x, int64_t begin,
                    int64_t end) {
  using Word = typename Blocks::Word;
  typename Blocks::Reader from, slope, origin;
  Lanes lanes = {};
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t n = std::min(kBlock, end - i);
    const float* a = from.read(static_cast<const Word*>(x_adv) + i, n);
    const float* c = origin.read(static_cast<const Word*>(x) + i, n);
    if (grad) {
      add_products(a, slope.read(static_cast<const Word*>(grad) + i, n), c, n, &lanes);
    } else {
      add_squares(a, c, n, lanes.dd);
    }
  }
  return {add_lanes(lanes.dd), add_lanes(lanes.dg), add_lanes(lanes.gg)};
}

// l2_pull of n elements. `out` may be `points` itself.
#define RF_PULL(Grid)                                                                            \
  RF_CLONES void pull(Grid, const float* points, const float* x, float* out, int64_t n,          \
                      L2Scale scale, L2Limits limits) {                                          \
    _Pragma("GCC ivdep") for (int64_t i = 0; i < n; ++i) {                                       \
      out[i] = l2_pull<Grid>(points[i], x[i], scale, limits);                                    \
    }                                                                                            \
  }
RF_EACH_GRID(RF_PULL)
#undef RF_PULL

// `out` may be x_adv itself: an element is read before it is written.
#define RF_MOVE(Grid)                                                                            \
  RF_CLONES void move(Grid, const float* x_adv, const float* grad, const float* x, float* out,   \
                      int64_t n, L2Scale scale, L2Limits limits) {                               \
    _Pragma("GCC ivdep") for (int64_t i = 0; i < n; ++i) {                                       \
      out[i] = l2_move<Grid>(x_adv[i], grad[i], x[i], scale, limits);                            \
    }                                                                                            \
  }
RF_EACH_GRID(RF_MOVE)
#undef RF_MOVE

template <class Blocks>
void run(const StepCall& call, int threads) {
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

void l2_step_cpu(const StepCall& call, int threads) {
  with_blocks(call.dtype, [&](auto blocks) { run<decltype(blocks)>(call, threads); });
}

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
