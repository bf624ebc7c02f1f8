#include <algorithm>
#include <type_traits>

#include "cpu/blocks.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/sums.h"
#include "math/fab.h"
#include "ops.h"

namespace rf {
namespace {

template <Norm kNorm>
using NormTag = std::integral_constant<Norm, kNorm>;

// Two sums by lanes, over a whole sample: their order depends on its length alone.
struct TwoSums {
  double first[kLanes] = {}, second[kLanes] = {};
};

// add(i, lane) for i in [0, n), lane = i % 16; a plain loop over the lanes inside.
template <class Add>
RF_HD void by_lanes(int64_t n, const Add& add) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
  }
  for (int lane = 0; i + lane < n; ++lane) add(i + lane, lane);
}

RF_CLONES void add_products(const float* __restrict point, const float* __restrict grad,
                            const float* __restrict x, int64_t n, TwoSums* __restrict lanes) {
  TwoSums sums = *lanes;
  by_lanes(n, [&](int64_t i, int lane) {
    const double g = finite_or_zero(grad[i]);
    sums.first[lane] += g * (static_cast<double>(x[i]) - static_cast<double>(point[i]));
    sums.second[lane] += g * g;
  });
  *lanes = sums;
}

template <Norm kNorm>
RF_HD void add_shares(const float* __restrict from, const float* __restrict grad, int64_t n,
                      FabMove move, FabBox box, TwoSums* __restrict lanes) {
  alignas(64) float reach[kBlock], gain[kBlock], size[kBlock];
  for (int64_t i = 0; i < n; ++i) {
    const float normal = finite_or_zero(grad[i]);
    size[i] = magnitude(normal);
    const FabShare share = fab_share<kNorm>(size[i], fab_room(from[i], normal, move, box), move);
    reach[i] = share.reach;
    gain[i] = share.gain;
  }
  TwoSums sums = *lanes;
  by_lanes(n, [&](int64_t i, int lane) {
    const double wide = static_cast<double>(size[i]);
    sums.first[lane] += wide * static_cast<double>(reach[i]);
    sums.second[lane] += wide * static_cast<double>(gain[i]);
  });
  *lanes = sums;
}

template <Norm kNorm>
RF_HD void add_terms(const float* __restrict from, const float* __restrict grad, int64_t n,
                     FabMove move, FabBox box, double* __restrict lanes) {
  alignas(64) float distance[kBlock];
  for (int64_t i = 0; i < n; ++i) {
    const float normal = finite_or_zero(grad[i]);
    const float room = fab_room(from[i], normal, move, box);
    distance[i] = fab_distance<kNorm>(magnitude(normal), room, move);
  }
  double totals[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) totals[lane] = lanes[lane];
  by_lanes(n, [&](int64_t i, int lane) {
    totals[lane] = fab_join<kNorm>(totals[lane], fab_term<kNorm>(distance[i]));
  });
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = totals[lane];
}

#define RF_SUMS(norm)                                                                            \
  RF_CLONES void shares(NormTag<norm>, const float* from, const float* grad, int64_t n,          \
                        FabMove move, FabBox box, TwoSums* lanes) {                              \
    add_shares<norm>(from, grad, n, move, box, lanes);                                           \
  }                                                                                              \
  RF_CLONES void terms(NormTag<norm>, const float* from, const float* grad, int64_t n,           \
                       FabMove move, FabBox box, double* lanes) {                                \
    add_terms<norm>(from, grad, n, move, box, lanes);                                            \
  }
RF_SUMS(Norm::linf)
RF_SUMS(Norm::l2)
RF_SUMS(Norm::l1)
#undef RF_SUMS

// `out` may be the point itself: an element is read before it is written.
#define RF_STEP(norm, Grid)                                                                      \
  RF_CLONES void step(NormTag<norm>, Grid, const float* point, const float* grad,                \
                      const float* x, float* out, int64_t n, FabPlan plan, FabBox box) {         \
    _Pragma("GCC ivdep") for (int64_t i = 0; i < n; ++i) {                                       \
      out[i] = fab_step<norm, Grid>(point[i], grad[i], x[i], plan, box);                         \
    }                                                                                            \
  }
#define RF_STEPS(norm) RF_STEP(norm, Fp32Grid) RF_STEP(norm, Bf16Grid) RF_STEP(norm, Fp16Grid)
RF_STEPS(Norm::linf)
RF_STEPS(Norm::l2)
RF_STEPS(Norm::l1)
#undef RF_STEPS
#undef RF_STEP

// One sample, read block by block as often as the searches need.
template <Norm kNorm, class Blocks>
class Sample {
 public:
  using Word = typename Blocks::Word;
  using Grid = typename Blocks::Grid;

  Sample(const FabStepCall& call, int64_t sample)
      : point_(static_cast<Word*>(call.x_adv) + sample * call.per_sample),
        grad_(static_cast<const Word*>(call.grad) + sample * call.per_sample),
        x_(static_cast<const Word*>(call.x) + sample * call.per_sample),
        n_(call.per_sample), box_{call.low, call.high} {}

  void move(float value, float alpha_max, float eta) const {
    FabCourse<kNorm, Grid> course(static_cast<double>(value), products());
    search(point_, course.point);
    search(x_, course.x);
    const double here = total(point_, course.point.move), there = total(x_, course.x.move);
    write(course.plan(here, there, alpha_max, eta));
  }

 private:
  // use(block of grad, begin, n)
  template <class Use>
  void each_block(const Use& use) const {
    typename Blocks::Reader grad;
    for (int64_t i = 0; i < n_; i += kBlock) {
      const int64_t n = std::min(kBlock, n_ - i);
      use(grad.read(grad_ + i, n), i, n);
    }
  }

  FabProducts products() const {
    typename Blocks::Reader point, x;
    TwoSums lanes;
    each_block([&](const float* grad, int64_t i, int64_t n) {
      add_products(point.read(point_ + i, n), grad, x.read(x_ + i, n), n, &lanes);
    });
    return {add_lanes(lanes.first), add_lanes(lanes.second)};
  }

  void search(const Word* from, FabSearch<kNorm, Grid>& search) const {
    typename Blocks::Reader reader;
    while (!search.found) {
      TwoSums lanes;
      each_block([&](const float* grad, int64_t i, int64_t n) {
        shares(NormTag<kNorm>{}, reader.read(from + i, n), grad, n, search.move, box_, &lanes);
      });
      search.update({add_lanes(lanes.first), add_lanes(lanes.second)});
    }
  }

  double total(const Word* from, const FabMove& move) const {
    typename Blocks::Reader reader;
    double lanes[kLanes] = {}, total = 0.0;
    each_block([&](const float* grad, int64_t i, int64_t n) {
      terms(NormTag<kNorm>{}, reader.read(from + i, n), grad, n, move, box_, lanes);
    });
    for (double lane : lanes) total = fab_join<kNorm>(total, lane);
    return total;
  }

  void write(const FabPlan& plan) const {
    typename Blocks::Reader point, x;
    typename Blocks::Writer result;
    each_block([&](const float* grad, int64_t i, int64_t n) {
      Word* target = point_ + i;
      step(NormTag<kNorm>{}, Grid{}, point.read(target, n), grad, x.read(x_ + i, n),
           result.place(target), n, plan, box_);
      result.write(target, n);
    });
  }

  Word* point_;
  const Word* grad_;
  const Word* x_;
  int64_t n_;
  FabBox box_;
};

template <Norm kNorm>
void run(const FabStepCall& call, int threads) {
  with_blocks(call.dtype, [&](auto blocks) {
    parallel_samples(call.samples, call.per_sample, threads, [&](int64_t sample) {
      Sample<kNorm, decltype(blocks)>(call, sample)
          .move(amount_of(call.value, sample), amount_of(call.alpha_max, sample),
                amount_of(call.eta, sample));
    });
  });
}

}  // namespace

void fab_step_cpu(const FabStepCall& call, int threads) {
  switch (call.norm) {
    case Norm::linf:
      return run<Norm::linf>(call, threads);
    case Norm::l2:
      return run<Norm::l2>(call, threads);
    case Norm::l1:
      return run<Norm::l1>(call, threads);
  }
}

}  // namespace rf
