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

// Sums by lanes, over a whole sample: their order depends on its length alone.
struct Lanes {
  double sums[kLanes] = {};
};

// A block of floats, and zeros up to the next multiple of the lanes, which change no sum.
struct Terms {
  alignas(64) float values[kBlock];

  RF_HD void end(int64_t n) {
    for (int64_t i = n; i % kLanes; ++i) values[i] = 0.0f;
  }
};

// lanes = join(lanes, term(i)) for whole lanes of a block.
template <class Join, class Term>
RF_HD void into_lanes(int64_t n, Lanes& lanes, const Join& join, const Term& term) {
  double sums[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) sums[lane] = lanes.sums[lane];
  for (int64_t i = 0; i < n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] = join(sums[lane], term(i + lane));
  }
  for (int lane = 0; lane < kLanes; ++lane) lanes.sums[lane] = sums[lane];
}

RF_HD double product(const Terms& a, const Terms& b, int64_t i) {
  return static_cast<double>(a.values[i]) * static_cast<double>(b.values[i]);
}

struct TwoLanes {
  Lanes first, second;
};

RF_CLONES void products(const float* __restrict point, const float* __restrict grad,
                        const float* __restrict x, int64_t n, TwoLanes* lanes) {
  Terms normal, from, to;
  for (int64_t i = 0; i < n; ++i) {
    normal.values[i] = finite_or_zero(grad[i]);
    from.values[i] = point[i];
    to.values[i] = x[i];
  }
  for (Terms* terms : {&normal, &from, &to}) terms->end(n);
  into_lanes(
      n, lanes->first, [](double sum, double term) { return sum + term; },
      [&](int64_t i) {
        return static_cast<double>(normal.values[i]) *
               (static_cast<double>(to.values[i]) - static_cast<double>(from.values[i]));
      });
  into_lanes(
      n, lanes->second, [](double sum, double term) { return sum + term; },
      [&](int64_t i) { return product(normal, normal, i); });
}

template <Norm kNorm>
RF_HD void add_shares(const float* __restrict from, const float* __restrict grad, int64_t n,
                      FabMove move, FabBox box, TwoLanes* lanes) {
  Terms size, reach, gain;
  for (int64_t i = 0; i < n; ++i) {
    const float normal = finite_or_zero(grad[i]);
    const float room = fab_room(from[i], normal, move, box);
    const FabShare share = fab_share<kNorm>(magnitude(normal), room, move);
    size.values[i] = magnitude(normal);
    reach.values[i] = share.reach;
    gain.values[i] = share.gain;
  }
  for (Terms* terms : {&size, &reach, &gain}) terms->end(n);
  double first[kLanes], second[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) first[lane] = lanes->first.sums[lane];
  for (int lane = 0; lane < kLanes; ++lane) second[lane] = lanes->second.sums[lane];
  for (int64_t i = 0; i < n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) first[lane] += product(size, reach, i + lane);
    for (int lane = 0; lane < kLanes; ++lane) second[lane] += product(size, gain, i + lane);
  }
  for (int lane = 0; lane < kLanes; ++lane) lanes->first.sums[lane] = first[lane];
  for (int lane = 0; lane < kLanes; ++lane) lanes->second.sums[lane] = second[lane];
}

template <Norm kNorm>
RF_HD void add_terms(const float* __restrict from, const float* __restrict grad, int64_t n,
                     FabMove move, FabBox box, Lanes* lanes) {
  Terms distance;
  for (int64_t i = 0; i < n; ++i) {
    const float normal = finite_or_zero(grad[i]);
    const float room = fab_room(from[i], normal, move, box);
    distance.values[i] = fab_distance<kNorm>(magnitude(normal), room, move);
  }
  distance.end(n);
  into_lanes(n, *lanes, fab_join<kNorm>,
            [&](int64_t i) { return fab_term<kNorm>(distance.values[i]); });
}

#define RF_SUMS(norm)                                                                            \
  RF_CLONES void shares(NormTag<norm>, const float* from, const float* grad, int64_t n,          \
                        FabMove move, FabBox box, TwoLanes* lanes) {                             \
    add_shares<norm>(from, grad, n, move, box, lanes);                                           \
  }                                                                                              \
  RF_CLONES void terms(NormTag<norm>, const float* from, const float* grad, int64_t n,           \
                       FabMove move, FabBox box, Lanes* lanes) {                                 \
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
#define RF_STEPS(Grid) RF_STEP(Norm::linf, Grid) RF_STEP(Norm::l2, Grid) RF_STEP(Norm::l1, Grid)
RF_EACH_GRID(RF_STEPS)
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
    const double here = total(point_, course.point), there = total(x_, course.x);
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
    TwoLanes lanes;
    each_block([&](const float* grad, int64_t i, int64_t n) {
      rf::products(point.read(point_ + i, n), grad, x.read(x_ + i, n), n, &lanes);
    });
    return {add_lanes(lanes.first.sums), add_lanes(lanes.second.sums)};
  }

  void search(const Word* from, FabSearch<kNorm, Grid>& search) const {
    typename Blocks::Reader reader;
    while (!search.found) {
      TwoLanes lanes;
      each_block([&](const float* grad, int64_t i, int64_t n) {
        shares(NormTag<kNorm>{}, reader.read(from + i, n), grad, n, search.move, box_, &lanes);
      });
      search.update({add_lanes(lanes.first.sums), add_lanes(lanes.second.sums)});
    }
  }

  double total(const Word* from, const FabSearch<kNorm, Grid>& search) const {
    if (search.measured()) return static_cast<double>(search.move.level);
    typename Blocks::Reader reader;
    Lanes lanes;
    each_block([&](const float* grad, int64_t i, int64_t n) {
      terms(NormTag<kNorm>{}, reader.read(from + i, n), grad, n, search.move, box_, &lanes);
    });
    double total = 0.0;
    for (double lane : lanes.sums) total = fab_join<kNorm>(total, lane);
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
