// l1_project_ and l1_step_ on the CPU.

#include <algorithm>

#include "cpu/blocks.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/sums.h"
#include "math/l1.h"
#include "ops.h"

namespace rf {

namespace {

// What is measured of a sample, the distance by lanes as in sums.h.
struct Measure {
  double lanes[kLanes] = {};
  int64_t free = 0;

  double distance() const { return add_lanes(lanes); }
};

template <class Grid>
RF_HD void add_distances(const float* __restrict x_adv, const float* __restrict x, int64_t n,
                         float threshold, L1Scalars s, Measure& measure) {
  alignas(64) float value[kBlock];
  int32_t free = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Shrunk shrunk = l1_shrunk<Grid>(x_adv[i], x[i], threshold, s);
    value[i] = x_adv[i] == x_adv[i] ? shrunk.value : x[i];
    free += shrunk.free;
  }
  double local[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) local[lane] = measure.lanes[lane];
  for (int64_t i = 0; i < n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      local[lane] += l1_distance(value[i + lane], x[i + lane]);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) measure.lanes[lane] = local[lane];
  measure.free += free;
}

// `out` may be x_adv itself: an element is read before it is written.
#define RF_CLONES_FOR(Grid)                                                                       \
  RF_CLONES void add(Grid, const float* x_adv, const float* x, int64_t n, float threshold,        \
                     L1Scalars s, Measure& measure) {                                             \
    add_distances<Grid>(x_adv, x, n, threshold, s, measure);                                      \
  }                                                                                               \
  RF_CLONES void shrink(Grid, const float* x_adv, const float* x, float* out, int64_t n,          \
                        float threshold, L1Scalars s) {                                           \
    _Pragma("GCC ivdep") for (int64_t i = 0; i < n; ++i) {                                        \
      out[i] = l1_result<Grid>(x_adv[i], x[i], threshold, s);                                     \
    }                                                                                             \
  }
RF_EACH_GRID(RF_CLONES_FOR)
#undef RF_CLONES_FOR

// A whole sample, shrunk by one threshold.
template <class Blocks>
Measure measured(const typename Blocks::Word* x_adv, const typename Blocks::Word* x, int64_t n,
                 float threshold, const L1Scalars& s) {
  using Grid = typename Blocks::Grid;
  typename Blocks::Reader moved, origin;
  Measure measure;
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t begin = 0; begin < whole; begin += kBlock) {
    const int64_t count = std::min(kBlock, whole - begin);
    add(Grid{}, moved.read(x_adv + begin, count), origin.read(x + begin, count), count, threshold,
        s, measure);
  }
  if (whole < n) {  // the rest beside zeros that are nowhere near the ball
    float last_x_adv[kLanes], last_x[kLanes];
    std::fill_n(last_x_adv, kLanes, s.low);
    std::fill_n(last_x, kLanes, s.low);
    std::copy_n(moved.read(x_adv + whole, n - whole), n - whole, last_x_adv);
    std::copy_n(origin.read(x + whole, n - whole), n - whole, last_x);
    add(Grid{}, last_x_adv, last_x, kLanes, threshold, s, measure);
  }
  return measure;
}

template <class Blocks>
float threshold_of(const typename Blocks::Word* x_adv, const typename Blocks::Word* x, int64_t n,
                   const L1Scalars& s) {
  const Measure start = measured<Blocks>(x_adv, x, n, 0.0f, s);
  if (start.distance() <= static_cast<double>(s.eps)) return 0.0f;
  ThresholdSearch<typename Blocks::Grid> search(s.eps, start.distance(), start.free);
  while (!search.found()) {
    const Measure shrunk = measured<Blocks>(x_adv, x, n, search.candidate(), s);
    search.update(shrunk.distance(), shrunk.free);
  }
  return search.threshold();
}

// rule(block of x_adv, block of other, where the result goes, length) for a whole sample.
template <class Blocks, class Rule>
void rewrite(typename Blocks::Word* x_adv, const typename Blocks::Word* other, int64_t n,
             const Rule& rule) {
  typename Blocks::Reader moved, beside;
  typename Blocks::Writer result;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t count = std::min(kBlock, n - begin);
    typename Blocks::Word* target = x_adv + begin;
    rule(moved.read(target, count), beside.read(other + begin, count), result.place(target), count);
    result.write(target, count);
  }
}

template <class Blocks>
void project(typename Blocks::Word* x_adv, const typename Blocks::Word* x, int64_t n,
             const L1Scalars& scalars) {
  const float threshold = threshold_of<Blocks>(x_adv, x, n, scalars);
  rewrite<Blocks>(x_adv, x, n, [&](const float* moved, const float* origin, float* out, int64_t m) {
    shrink(typename Blocks::Grid{}, moved, origin, out, m, threshold, scalars);
  });
}

// Two histograms side by side: equal neighbours need not wait for each other's count.
struct Histogram {
  int64_t bins[2][kBins];
};

void count(const float* grad, int64_t n, int digit, uint32_t prefix, Histogram& histogram) {
  for (int64_t i = 0; i < n; ++i) {
    const int bin = bin_of(magnitude_key(grad[i]), digit, prefix);
    if (bin >= 0) ++histogram.bins[i & 1][bin];
  }
}

void take(const Histogram& histogram, int digit, Selection& selection) {
  int64_t before = 0;
  for (int bin = 0; bin < kBins; ++bin) {
    const int64_t held = histogram.bins[0][bin] + histogram.bins[1][bin];
    if (before + held > selection.rank) return selection.take(digit, bin, before, held);
    before += held;
  }
}

template <class Blocks>
Selection select(const typename Blocks::Word* grad, int64_t n, int64_t rank) {
  typename Blocks::Reader wide;
  Selection selection(rank);
  for (int digit = 0; digit < kDigits; ++digit) {
    Histogram histogram = {};
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int64_t block = std::min(kBlock, n - begin);
      count(wide.read(grad + begin, block), block, digit, selection.prefix, histogram);
    }
    take(histogram, digit, selection);
  }
  return selection;
}

// `out` may be x_adv itself: an element is read before it is written.
#define RF_MOVE(Grid)                                                                             \
  RF_CLONES void move(Grid, const float* x_adv, const float* grad, float* out, int64_t n,         \
                      uint32_t smallest, float size) {                                            \
    _Pragma("GCC ivdep") for (int64_t i = 0; i < n; ++i) {                                        \
      out[i] = sparse_step<Grid>(x_adv[i], grad[i], smallest, size);                              \
    }                                                                                             \
  }
RF_EACH_GRID(RF_MOVE)
#undef RF_MOVE

template <class Blocks>
void step(typename Blocks::Word* x_adv, const typename Blocks::Word* grad, int64_t n,
          float density, float step_size) {
  const Selection selection = select<Blocks>(grad, n, kept_rank(density, n));
  const int64_t moving = selection.moving(n);
  if (moving == 0) return;
  const float size = step_size / static_cast<float>(moving);
  rewrite<Blocks>(x_adv, grad, n, [&](const float* moved, const float* slope, float* out, int64_t m) {
    move(typename Blocks::Grid{}, moved, slope, out, m, selection.prefix, size);
  });
}

template <class Blocks>
void run(const L1StepCall& call, int threads) {
  using Word = typename Blocks::Word;
  const int64_t n = call.per_sample;
  parallel_samples(call.samples, n, threads, [&](int64_t sample) {
    Word* x_adv = static_cast<Word*>(call.x_adv) + sample * n;
    if (call.grad) {
      step<Blocks>(x_adv, static_cast<const Word*>(call.grad) + sample * n, n,
                   amount_of(call.density, sample), amount_of(call.step_size, sample));
    }
    project<Blocks>(x_adv, static_cast<const Word*>(call.x) + sample * n, n,
                    {amount_of(call.eps, sample), call.low, call.high});
  });
}

}  // namespace

void l1_step_cpu(const L1StepCall& call, int threads) {
  with_blocks(call.dtype, [&](auto blocks) { run<decltype(blocks)>(call, threads); });
}

}  // namespace rf
