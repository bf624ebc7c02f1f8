#include "cuda/apgd_step.cuh"

#include "cuda/launch.cuh"

namespace rf {

using namespace cuda;

int apgd_step_cuda_load(int device) {
  return load_on(device, RF_EACH_TYPE(apgd_linf_step_kernel), RF_EACH_TYPE(sum_kernel),
                 RF_EACH_TYPE(apgd_l2_length_kernel), RF_EACH_TYPE(apgd_l2_step_kernel));
}

int apgd_linf_step_cuda(const ApgdStepCall& call, int device, void* stream) {
  return launch_on(device, stream, call.dtype, call, [&](auto type, auto vectors, auto target) {
    using T = decltype(type);
    constexpr bool kVectors = vectors();
    const dim3 grid = blocks_of(elements_grid<T, kVectors>(call));
    apgd_linf_step_kernel<T, kVectors><<<grid, kThreads, 0, target>>>(call);
  });
}

int apgd_l2_step_cuda(const ApgdStepCall& call, int device, void* stream) {
  if (!call.workspace) return cudaErrorInvalidValue;
  const dim3 sums = blocks_of(sum_grid(call.samples, call.per_sample));
  return launch_on(device, stream, call.dtype, call, [&](auto type, auto vectors, auto target) {
    using T = decltype(type);
    constexpr bool kVectors = vectors();
    const dim3 grid = blocks_of(elements_grid<T, kVectors>(call));
    sum_kernel<T, kVectors><<<sums, kThreads, 0, target>>>(sums_for(call));
    apgd_l2_length_kernel<T, kVectors><<<sums, kThreads, 0, target>>>(call);
    apgd_l2_step_kernel<T, kVectors><<<grid, kThreads, 0, target>>>(call);
  });
}

}  // namespace rf
