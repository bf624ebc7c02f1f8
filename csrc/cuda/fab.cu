// FAB's step: a team of blocks a sample, which reads it as often as the searches need. Every thread
// walks the searches on its own, from the same sums.
// Also compiled by g++ in tests, block by block, without the launchers.
#include "cuda/sums.cuh"
#include "math/fab.h"
#include "ops.h"

namespace rf {
namespace cuda {

constexpr int kFabPacks = 2;  // read at once

// One sample, for one thread of its team.
template <class T, bool kVectors, Norm kNorm>
struct FabSample {
  using Grid = typename T::Grid;

  const FabStepCall& call;
  int64_t base;
  FabBox box;
  Team& team;

  // use(value, normal) for this thread's share of a tensor and the normals.
  template <class Use>
  __device__ void each(const void* from, const Use& use) const {
    each_pack<T, kVectors, kFabPacks>(call.per_sample, base, {from, call.grad},
                                      [&](int64_t, const auto& v) {
                                        constexpr int kWords = sizeof(v[0]) / sizeof(float);
#pragma unroll
                                        for (int i = 0; i < kWords; ++i) {
                                          use(v[0][i], finite_or_zero(v[1][i]));
                                        }
                                      });
  }

  // use(place, values) of all three.
  template <class Use>
  __device__ void each_of_all(const Use& use) const {
    each_pack<T, kVectors, 1>(call.per_sample, base, {call.x_adv, call.grad, call.x}, use);
  }

  __device__ FabProducts products() const {
    FabProducts sums = {0.0, 0.0};
    each_of_all([&](int64_t, const auto& v) {
      constexpr int kWords = sizeof(v[0]) / sizeof(float);
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        const double g = finite_or_zero(v[1][i]);
        sums.way += g * (static_cast<double>(v[2][i]) - static_cast<double>(v[0][i]));
        sums.squares += g * g;
      }
    });
    const double way = team.sum(sums.way);
    return {way, team.sum(sums.squares)};
  }

  __device__ void search(const void* from, FabSearch<kNorm, Grid>& search) const {
    while (!search.found) {
      FabSums sums = {0.0, 0.0};
      each(from, [&](float value, float normal) {
        const float room = fab_room(value, normal, search.move, box);
        const FabShare share = fab_share<kNorm>(magnitude(normal), room, search.move);
        const double size = magnitude(normal);
        sums.reach += size * static_cast<double>(share.reach);
        sums.gain += size * static_cast<double>(share.gain);
      });
      const double reach = team.sum(sums.reach);
      search.update({reach, team.sum(sums.gain)});
    }
  }

  __device__ double total(const void* from, const FabSearch<kNorm, Grid>& search) const {
    if (search.measured()) return static_cast<double>(search.move.level);
    double total = 0.0;
    each(from, [&](float value, float normal) {
      const float room = fab_room(value, normal, search.move, box);
      const float distance = fab_distance<kNorm>(magnitude(normal), room, search.move);
      total = fab_join<kNorm>(total, fab_term<kNorm>(distance));
    });
    return team.join(total, [](double a, double b) { return fab_join<kNorm>(a, b); });
  }

  // A thread reads back only what it wrote itself.
  __device__ void write(const FabPlan& plan) const {
    each_of_all([&](int64_t at, auto& v) {
      constexpr int kWords = sizeof(v[0]) / sizeof(float);
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        v[0][i] = fab_step<kNorm, Grid>(v[0][i], v[1][i], v[2][i], plan, box);
      }
      store<T>(call.x_adv, at, v[0]);
    });
  }
};

template <class T, bool kVectors, Norm kNorm>
__global__ void __launch_bounds__(kThreads, kFewPerUnit) fab_step_kernel(FabStepCall call) {
  Team team;
  for (int64_t sample = blockIdx.y; sample < call.samples; sample += gridDim.y) {
    const FabSample<T, kVectors, kNorm> own = {
        call, sample * call.per_sample, {call.low, call.high}, team};
    FabCourse<kNorm, typename T::Grid> course(static_cast<double>(amount_of(call.value, sample)),
                                              own.products());
    own.search(call.x_adv, course.point);
    own.search(call.x, course.x);
    const double here = own.total(call.x_adv, course.point);
    const double there = own.total(call.x, course.x);
    own.write(course.plan(here, there, amount_of(call.alpha_max, sample),
                          amount_of(call.eta, sample)));
  }
  team_sync();  // a block's memory may still be read
}

inline bool by_vectors(const FabStepCall& call, int64_t word_bytes) {
  return aligned_rows(call.samples, call.per_sample * word_bytes, call.x_adv, call.grad, call.x);
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
    launch_team(fab_step_kernel<decltype(type), vectors(), kNorm>, call, target);
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
