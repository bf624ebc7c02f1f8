#include "cpu/l1_project.h"

#include "cpu/dispatch.h"
#include "cpu/storage.h"
#include "ops.h"

namespace rf {
namespace {

constexpr int kLanes = 16;

// Sums in a fixed order, whatever the width of the vectors: lane i holds elements i, i + 16, ...
struct Lanes {
  double distance[kLanes] = {};
  int64_t free = 0;

  double sum() const {
    double total = 0.0;
    for (double lane : distance) total += lane;
    return total;
  }
};

template <class Grid>
RF_HD void add_distances(const float* __restrict x_adv, const float* __restrict x, int64_t n,
                         float threshold, L1Scalars s, Lanes& lanes) {
  alignas(64) float value[kBlock];
  int32_t free = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Shrunk shrunk = l1_shrunk<Grid>(x_adv[i], x[i], threshold, s);
    value[i] = x_adv[i] == x_adv[i] ? shrunk.value : x[i];
    free += shrunk.free;
  }
  double local[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) local[lane] = lanes.distance[lane];
  for (int64_t i = 0; i < n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      local[lane] += l1_distance(value[i + lane], x[i + lane]);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) lanes.distance[lane] = local[lane];
  lanes.free += free;
}

RF_CLONES void add(Fp32Grid, const float* x_adv, const float* x, int64_t n, float threshold,
                   L1Scalars s, Lanes& lanes) {
  add_distances<Fp32Grid>(x_adv, x, n, threshold, s, lanes);
}

RF_CLONES void add(Bf16Grid, const float* x_adv, const float* x, int64_t n, float threshold,
                   L1Scalars s, Lanes& lanes) {
  add_distances<Bf16Grid>(x_adv, x, n, threshold, s, lanes);
}

RF_CLONES void add(Fp16Grid, const float* x_adv, const float* x, int64_t n, float threshold,
                   L1Scalars s, Lanes& lanes) {
  add_distances<Fp16Grid>(x_adv, x, n, threshold, s, lanes);
}

template <class Grid>
RF_HD void shrink_all(float* __restrict x_adv, const float* __restrict x, int64_t n,
                      float threshold, L1Scalars s) {
  for (int64_t i = 0; i < n; ++i) x_adv[i] = l1_result<Grid>(x_adv[i], x[i], threshold, s);
}

RF_CLONES void shrink(Fp32Grid, float* x_adv, const float* x, int64_t n, float threshold,
                      L1Scalars s) {
  shrink_all<Fp32Grid>(x_adv, x, n, threshold, s);
}

RF_CLONES void shrink(Bf16Grid, float* x_adv, const float* x, int64_t n, float threshold,
                      L1Scalars s) {
  shrink_all<Bf16Grid>(x_adv, x, n, threshold, s);
}

RF_CLONES void shrink(Fp16Grid, float* x_adv, const float* x, int64_t n, float threshold,
                      L1Scalars s) {
  shrink_all<Fp16Grid>(x_adv, x, n, threshold, s);
}

// The sum of distances of a whole sample at one threshold.
template <class Storage>
Lanes distances(const typename Storage::Word* x_adv, const typename Storage::Word* x, int64_t n,
                float threshold, const L1Scalars& s) {
  using Grid = typename Storage::Grid;
  alignas(64) float wide_x_adv[kBlock], wide_x[kBlock];
  Lanes lanes;
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t begin = 0; begin < whole; begin += kBlock) {
    const int64_t count = std::min(kBlock, whole - begin);
    add(Grid{}, floats<Storage>(x_adv + begin, wide_x_adv, count),
        floats<Storage>(x + begin, wide_x, count), count, threshold, s, lanes);
  }
  if (whole < n) {  // the rest beside zeros that are nowhere near the ball
    std::fill(wide_x_adv, wide_x_adv + kLanes, s.low);
    std::fill(wide_x, wide_x + kLanes, s.low);
    Storage::load(x_adv + whole, wide_x_adv, n - whole);
    Storage::load(x + whole, wide_x, n - whole);
    add(Grid{}, wide_x_adv, wide_x, kLanes, threshold, s, lanes);
  }
  return lanes;
}

template <class Storage>
float threshold_of(const typename Storage::Word* x_adv, const typename Storage::Word* x, int64_t n,
                   const L1Scalars& s) {
  const Lanes start = distances<Storage>(x_adv, x, n, 0.0f, s);
  if (start.sum() <= static_cast<double>(s.eps)) return 0.0f;
  ThresholdSearch<typename Storage::Grid> search(s.eps, start.sum(), start.free);
  while (!search.found()) {
    const Lanes lanes = distances<Storage>(x_adv, x, n, search.candidate(), s);
    search.update(lanes.sum(), lanes.free);
  }
  return search.threshold();
}

template <class Storage>
void run(const L1ProjectCall& call, int threads) {
  using Word = typename Storage::Word;
  parallel_samples(call.samples, call.per_sample, threads, [&](int64_t sample) {
    const int64_t begin = sample * call.per_sample;
    l1_project_sample<Storage>(static_cast<Word*>(call.x_adv) + begin,
                               static_cast<const Word*>(call.x) + begin, call.per_sample,
                               {amount_of(call.eps, sample), call.low, call.high});
  });
}

}  // namespace

template <class Storage>
void l1_project_sample(typename Storage::Word* x_adv, const typename Storage::Word* x, int64_t n,
                       const L1Scalars& scalars) {
  const float threshold = threshold_of<Storage>(x_adv, x, n, scalars);
  alignas(64) float moved[kBlock], wide_x[kBlock];
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t count = std::min(kBlock, n - begin);
    Storage::load(x_adv + begin, moved, count);
    shrink(typename Storage::Grid{}, moved, floats<Storage>(x + begin, wide_x, count), count,
           threshold, scalars);
    Storage::store(moved, x_adv + begin, count);
  }
}

template void l1_project_sample<Fp32Storage>(float*, const float*, int64_t, const L1Scalars&);
template void l1_project_sample<Bf16Storage>(uint16_t*, const uint16_t*, int64_t,
                                             const L1Scalars&);
template void l1_project_sample<Fp16Storage>(uint16_t*, const uint16_t*, int64_t,
                                             const L1Scalars&);

void l1_project_cpu(const L1ProjectCall& call, int threads) {
  switch (call.dtype) {
    case DType::fp32:
      return run<Fp32Storage>(call, threads);
    case DType::bf16:
      return run<Bf16Storage>(call, threads);
    case DType::fp16:
      return run<Fp16Storage>(call, threads);
  }
}

}  // namespace rf
