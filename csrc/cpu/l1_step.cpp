#include "math/l1_step.h"

#include <algorithm>

#include "cpu/blocks.h"
#include "cpu/dispatch.h"
#include "cpu/l1_project.h"
#include "cpu/parallel.h"
#include "ops.h"

namespace rf {
namespace {

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
RF_MOVE(Fp32Grid)
RF_MOVE(Bf16Grid)
RF_MOVE(Fp16Grid)
#undef RF_MOVE

template <class Blocks>
void step(typename Blocks::Word* x_adv, const typename Blocks::Word* grad, int64_t n,
          float density, float step_size) {
  const Selection selection = select<Blocks>(grad, n, kept_rank(density, n));
  const int64_t moving = selection.moving(n);
  if (moving == 0) return;
  const float size = step_size / static_cast<float>(moving);
  typename Blocks::Reader moved, slope;
  typename Blocks::Writer result;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t block = std::min(kBlock, n - begin);
    typename Blocks::Word* target = x_adv + begin;
    move(typename Blocks::Grid{}, moved.read(target, block), slope.read(grad + begin, block),
         result.place(target), block, selection.prefix, size);
    result.write(target, block);
  }
}

template <class Blocks>
void run(const L1StepCall& call, int threads) {
  using Word = typename Blocks::Word;
  const L1ProjectCall& project = call.project;
  const int64_t n = project.per_sample;
  parallel_samples(project.samples, n, threads, [&](int64_t sample) {
    Word* x_adv = static_cast<Word*>(project.x_adv) + sample * n;
    step<Blocks>(x_adv, static_cast<const Word*>(call.grad) + sample * n, n,
                  amount_of(call.density, sample), amount_of(call.step_size, sample));
    l1_project_sample<Blocks>(x_adv, static_cast<const Word*>(project.x) + sample * n, n,
                               {amount_of(project.eps, sample), project.low, project.high});
  });
}

}  // namespace

void l1_step_cpu(const L1StepCall& call, int threads) {
  with_blocks(call.project.dtype, [&](auto blocks) { run<decltype(blocks)>(call, threads); });
}

}  // namespace rf
