// linf_step_ and apgd_linf_step_ in one pass each.
// Also compiled by g++ in tests, block by block, without the launchers.
#include "cuda/packs.cuh"
#include "math/linf.h"
#include "ops.h"

namespace rf {
namespace cuda {

template <class T, bool kVectors>
__global__ void __launch_bounds__(kThreads) step_kernel(StepCall call) {
  for (int64_t sample = blockIdx.y; sample < call.samples; sample += gridDim.y) {
    const LinfScalars s = scalars_of(call, sample);
    each_pack<T, kVectors, 1>(
        call.per_sample, sample * call.per_sample, {call.x_adv, call.grad, call.x},
        [&](int64_t at, auto& v) {
          constexpr int kWords = sizeof(v[0]) / sizeof(float);
#pragma unroll
          for (int i = 0; i < kWords; ++i) {
            v[0][i] = linf_step<typename T::Grid>(v[0][i], v[1][i], v[2][i], s);
          }
          store<T>(call.x_adv, at, v[0]);
        });
  }
}

// The call as one long sample where eps and step size are the same for all.
inline StepCall joined(StepCall call) {
  if (is_uniform(call.eps) && is_uniform(call.step_size)) {
    call.per_sample *= call.samples;
    call.samples = 1;
  }
  return call;
}

template <class T, bool kVectors>
__global__ void __launch_bounds__(kThreads, 4) apgd_linf_step_kernel(ApgdStepCall call) {
  for (int64_t sample = blockIdx.y; sample < call.samples; sample += gridDim.y) {
    const LinfScalars scalars = {amount_of(call.eps, sample), amount_of(call.step_size, sample),
                                 call.low, call.high};
    const float momentum = amount_of(call.momentum, sample);
    each_point<T, kVectors, 1>(
        call, sample,
        [&](float x_adv, float x_prev, float grad, float x) {
          return apgd_linf_step<typename T::Grid>(x_adv, x_prev, grad, x, momentum, scalars);
        },
        [&](int64_t at, const auto&, const auto& points) { store<T>(call.x_prev, at, points); });
  }
}

}  // namespace cuda
}  // namespace rf

#ifdef __CUDACC__
#include "cuda/launch.cuh"

namespace rf {

using namespace cuda;

int linf_cuda_load(int device) {
  return load_on(device, RF_EACH_TYPE(step_kernel), RF_EACH_TYPE(apgd_linf_step_kernel));
}

int linf_step_cuda(const StepCall& given, int device, void* stream) {
  const StepCall call = joined(given);
  return launch_on(device, stream, call.dtype, call, [&](auto type, auto vectors, auto target) {
    using T = decltype(type);
    constexpr bool kVectors = vectors();
    const dim3 grid = blocks_of(elements_grid<T, kVectors>(call));
    step_kernel<T, kVectors><<<grid, kThreads, 0, target>>>(call);
  });
}

int apgd_linf_step_cuda(const ApgdStepCall& call, int device, void* stream) {
  return launch_on(device, stream, call.dtype, call, [&](auto type, auto vectors, auto target) {
    using T = decltype(type);
    constexpr bool kVectors = vectors();
    const dim3 grid = blocks_of(elements_grid<T, kVectors>(call));
    apgd_linf_step_kernel<T, kVectors><<<grid, kThreads, 0, target>>>(call);
  });
}

}  // namespace rf
#endif
