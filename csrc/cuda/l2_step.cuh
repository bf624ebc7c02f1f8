// l2_step_ and l2_project_: sums.cuh's kernel, then this one. Also compiled by g++ in tests.
#pragma once

#include "cuda/sums.cuh"
#include "ops.h"

namespace rf {
namespace cuda {

template <class T, bool kVectors>
__global__ void __launch_bounds__(kThreads, kBlocksPerUnit) l2_step_kernel(L2StepCall call) {
  using Grid = typename T::Grid;
  const int64_t parts = parts_of(call.per_sample);
  for (int64_t sample = blockIdx.y; sample < call.samples; sample += gridDim.y) {
    const L2Limits limits = limits_of(call, sample);
    const L2Sums sums = sums_of(call.workspace, sample, parts);
    const L2Scale scale = from_one<L2Scale>([&] { return scale_of(call, sums, sample); });
    const int64_t base = sample * call.per_sample;
    each_pack<T, kVectors>(call.per_sample, [&](auto count, int64_t first) {
      constexpr int kWords = decltype(count)::value;
      float x_adv[kWords], grad[kWords] = {}, x[kWords];
      load<T>(call.x_adv, base + first, x_adv);
      load<T>(call.x, base + first, x);
      if (call.grad) load<T>(call.grad, base + first, grad);
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        x_adv[i] = l2_move<Grid>(x_adv[i], grad[i], x[i], scale, limits);
      }
      store<T>(call.x_adv, base + first, x_adv);
    });
  }
}

inline SumCall sums_for(const L2StepCall& call) {
  return {call.x_adv, call.grad, call.x, call.samples, call.per_sample, call.workspace};
}

inline bool by_vectors(const L2StepCall& call, int64_t word_bytes) {
  return aligned_rows(call.samples, call.per_sample * word_bytes, call.x_adv, call.grad, call.x);
}

}  // namespace cuda
}  // namespace rf
