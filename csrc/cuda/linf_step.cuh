// linf_step_ in one pass. Also compiled by g++ in tests, block by block and thread by thread, so
// that indices and tails are checked without a GPU; launching is left to linf_step.cu.
#pragma once

#include "cuda/packs.cuh"
#include "math/linf_step.h"
#include "ops.h"

namespace rf {
namespace cuda {

template <class T, bool kVectors>
__global__ void __launch_bounds__(kThreads) step_kernel(LinfStepCall call) {
  for (int64_t sample = blockIdx.y; sample < call.samples; sample += gridDim.y) {
    const LinfScalars s = scalars_of(call, sample);
    const int64_t base = sample * call.per_sample;
    each_pack<T, kVectors>(call.per_sample, [&](auto count, int64_t first) {
      constexpr int kWords = decltype(count)::value;
      float x_adv[kWords], grad[kWords], x[kWords];
      load<T>(call.x_adv, base + first, x_adv);
      load<T>(call.grad, base + first, grad);
      load<T>(call.x, base + first, x);
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        x_adv[i] = linf_step<typename T::Grid>(x_adv[i], grad[i], x[i], s);
      }
      store<T>(call.x_adv, base + first, x_adv);
    });
  }
}

// The call as one long sample where eps and step size are the same for all.
inline LinfStepCall joined(LinfStepCall call) {
  if (is_uniform(call.eps) && is_uniform(call.step_size)) {
    call.per_sample *= call.samples;
    call.samples = 1;
  }
  return call;
}

inline bool by_vectors(const LinfStepCall& call, int64_t word_bytes) {
  return aligned_rows(call.samples, call.per_sample * word_bytes, call.x_adv, call.grad, call.x);
}

}  // namespace cuda
}  // namespace rf
