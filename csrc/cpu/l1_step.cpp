#include "math/l1_step.h"

#include "cpu/dispatch.h"
#include "cpu/l1_project.h"
#include "cpu/storage.h"
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

template <class Storage>
Selection select(const typename Storage::Word* grad, int64_t n, int64_t rank) {
  alignas(64) float wide[kBlock];
  Selection selection(rank);
  for (int digit = 0; digit < kDigits; ++digit) {
    Histogram histogram = {};
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int64_t block = std::min(kBlock, n - begin);
      count(floats<Storage>(grad + begin, wide, block), block, digit, selection.prefix, histogram);
    }
    take(histogram, digit, selection);
  }
  return selection;
}

RF_CLONES void move(Fp32Grid, float* __restrict x_adv, const float* __restrict grad, int64_t n,
                    uint32_t smallest, float size) {
  for (int64_t i = 0; i < n; ++i) {
    x_adv[i] = sparse_step<Fp32Grid>(x_adv[i], grad[i], smallest, size);
  }
}

RF_CLONES void move(Bf16Grid, float* __restrict x_adv, const float* __restrict grad, int64_t n,
                    uint32_t smallest, float size) {
  for (int64_t i = 0; i < n; ++i) {
    x_adv[i] = sparse_step<Bf16Grid>(x_adv[i], grad[i], smallest, size);
  }
}

RF_CLONES void move(Fp16Grid, float* __restrict x_adv, const float* __restrict grad, int64_t n,
                    uint32_t smallest, float size) {
  for (int64_t i = 0; i < n; ++i) {
    x_adv[i] = sparse_step<Fp16Grid>(x_adv[i], grad[i], smallest, size);
  }
}

template <class Storage>
void step(typename Storage::Word* x_adv, const typename Storage::Word* grad, int64_t n,
          float density, float step_size) {
  const Selection selection = select<Storage>(grad, n, kept_rank(density, n));
  const int64_t moving = selection.moving(n);
  if (moving == 0) return;
  const float size = step_size / static_cast<float>(moving);
  alignas(64) float moved[kBlock], wide[kBlock];
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t block = std::min(kBlock, n - begin);
    Storage::load(x_adv + begin, moved, block);
    move(typename Storage::Grid{}, moved, floats<Storage>(grad + begin, wide, block), block,
         selection.prefix, size);
    Storage::store(moved, x_adv + begin, block);
  }
}

template <class Storage>
void run(const L1StepCall& call, int threads) {
  using Word = typename Storage::Word;
  const L1ProjectCall& project = call.project;
  const int64_t n = project.per_sample;
  parallel_samples(project.samples, n, threads, [&](int64_t sample) {
    Word* x_adv = static_cast<Word*>(project.x_adv) + sample * n;
    step<Storage>(x_adv, static_cast<const Word*>(call.grad) + sample * n, n,
                  amount_of(call.density, sample), amount_of(call.step_size, sample));
    l1_project_sample<Storage>(x_adv, static_cast<const Word*>(project.x) + sample * n, n,
                               {amount_of(project.eps, sample), project.low, project.high});
  });
}

}  // namespace

void l1_step_cpu(const L1StepCall& call, int threads) {
  switch (call.project.dtype) {
    case DType::fp32:
      return run<Fp32Storage>(call, threads);
    case DType::bf16:
      return run<Bf16Storage>(call, threads);
    case DType::fp16:
      return run<Fp16Storage>(call, threads);
  }
}

}  // namespace rf
