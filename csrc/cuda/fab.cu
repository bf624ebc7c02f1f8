// FAB's step: one block a sample, which reads it as often as the searches need. Every thread walks
// the searches on its own, from the same sums.
// Also compiled by g++ in tests, block by block, without the launchers.
#include "cuda/sums.cuh"
#include "math/fab.h"
#include "ops.h"

namespace rf {
namespace cuda {

// One sample, for one thread of its block.
template <class T, bool kVectors, Norm kNorm>
struct FabSample {
  using Grid = typename T::Grid;

  const FabStepCall& call;
  int64_t base;
  FabBox box;

  // use(value of a, normal, value of b) for this thread's share of two streams and the normals.
  template <class Use>
  __device__ void each(const void* a, const void* b, const Use& use) const {
    each_pack<T, kVectors>(call.per_sample, threadIdx.x, kThreads, [&](auto count, int64_t first) {
      constexpr int kWords = decltype(count)::value;
      float from[kWords], grad[kWords], to[kWords];
      load<T>(a, base + first, from);
      load<T>(call.grad, base + first, grad);
      if (b) load<T>(b, base + first, to);
#pragma unroll
      for (int i = 0; i < kWords; ++i) use(from[i], finite_or_zero(grad[i]), b ? to[i] : 0.0f);
    });
  }

  __device__ FabProducts products() const {
    FabProducts sums = {0.0, 0.0};
    each(call.x_adv, call.x, [&](float point, float normal, float x) {
      const double g = normal;
      sums.way += g * (static_cast<double>(x) - static_cast<double>(point));
      sums.squares += g * g;
    });
    const double way = block_sum(sums.way);
    return {way, block_sum(sums.squares)};
  }

  __device__ void search(const void* from, FabSearch<kNorm, Grid>& search) const {
    while (!search.found) {
      FabSums sums = {0.0, 0.0};
      each(from, nullptr, [&](float value, float normal, float) {
        const float room = fab_room(value, normal, search.move, box);
        const FabShare share = fab_share<kNorm>(magnitude(normal), room, search.move);
        const double size = magnitude(normal);
        sums.reach += size * static_cast<double>(share.reach);
        sums.gain += size * static_cast<double>(share.gain);
      });
      const double reach = block_sum(sums.reach);
      search.update({reach, block_sum(sums.gain)});
    }
  }

  __device__ double total(const void* from, const FabSearch<kNorm, Grid>& search) const {
    if (search.measured()) return static_cast<double>(search.move.level);
    double total = 0.0;
    each(from, nullptr, [&](float value, float normal, float) {
      const float room = fab_room(value, normal, search.move, box);
      const float distance = fab_distance<kNorm>(magnitude(normal), room, search.move);
      total = fab_join<kNorm>(total, fab_term<kNorm>(distance));
    });
    return block_join(total, [](double a, double b) { return fab_join<kNorm>(a, b); });
  }

  // A thread reads back only what it wrote itself.
  __device__ void write(const FabPlan& plan) const {
    each_pack<T, kVectors>(call.per_sample, threadIdx.x, kThreads, [&](auto count, int64_t first) {
      constexpr int kWords = decltype(count)::value;
      float point[kWords], grad[kWords], x[kWords];
      load<T>(call.x_adv, base + first, point);
      load<T>(call.grad, base + first, grad);
      load<T>(call.x, base + first, x);
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        point[i] = fab_step<kNorm, Grid>(point[i], grad[i], x[i], plan, box);
      }
      store<T>(call.x_adv, base + first, point);
    });
  }
};

template <class T, bool kVectors, Norm kNorm>
__global__ void __launch_bounds__(kThreads, kBlocksPerUnit) fab_step_kernel(FabStepCall call) {
  for (int64_t sample = blockIdx.x; sample < call.samples; sample += gridDim.x) {
    const FabSample<T, kVectors, kNorm> own = {call, sample * call.per_sample,
                                               {call.low, call.high}};
    FabCourse<kNorm, typename T::Grid> course(static_cast<double>(amount_of(call.value, sample)),
                                              own.products());
    own.search(call.x_adv, course.point);
    own.search(call.x, course.x);
    const double here = own.total(call.x_adv, course.point);
    const double there = own.total(call.x, course.x);
    own.write(course.plan(here, there, amount_of(call.alpha_max, sample),
                          amount_of(call.eta, sample)));
  }
}

inline bool by_vectors(const FabStepCall& call, int64_t word_bytes) {
  return aligned_rows(call.samples, call.per_sample * word_bytes, call.x_adv, call.grad, call.x);
}

inline unsigned fab_blocks(const FabStepCall& call) {
  return static_cast<unsigned>(std::min(call.samples, kMaxBlocks));
}

}  // namespace cuda
}  // namespace rf

#ifdef __CUDACC__
#include "cuda/launch.cuh"

namespace rf {

using namespace cuda;

namespace {

template <Norm kNorm>
int launch_fab(const FabStepCall& call, int device, void* stream) {
  return launch_on(device, stream, call.dtype, call, [&](auto type, auto vectors, auto target) {
    fab_step_kernel<decltype(type), vectors(), kNorm>
        <<<fab_blocks(call), kThreads, 0, target>>>(call);
  });
}

}  // namespace

int fab_cuda_load(int device) {
  return load_on(device, RF_EACH_TYPE(fab_step_kernel, Norm::linf),
                 RF_EACH_TYPE(fab_step_kernel, Norm::l2), RF_EACH_TYPE(fab_step_kernel, Norm::l1));
}

int fab_step_cuda(const FabStepCall& call, int device, void* stream) {
  switch (call.norm) {
    case Norm::linf:
      return launch_fab<Norm::linf>(call, device, stream);
    case Norm::l2:
      return launch_fab<Norm::l2>(call, device, stream);
    case Norm::l1:
      return launch_fab<Norm::l1>(call, device, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace rf
#endif
