#include "cuda/l2_step.cuh"

#include "cuda/launch.cuh"

namespace rf {

using namespace cuda;

int64_t reduction_workspace(int64_t samples, int64_t per_sample) {
  return samples * parts_of(per_sample) * 4;
}

int l2_step_cuda_load(int device) {
  return load_on(device, RF_EACH_TYPE(sum_kernel), RF_EACH_TYPE(l2_step_kernel));
}

int l2_step_cuda(const L2StepCall& call, int device, void* stream) {
  if (!call.workspace) return cudaErrorInvalidValue;
  const dim3 sums = blocks_of(sum_grid(call.samples, call.per_sample));
  return launch_on(device, stream, call.dtype, call, [&](auto type, auto vectors, auto target) {
    using T = decltype(type);
    constexpr bool kVectors = vectors();
    const dim3 grid = blocks_of(elements_grid<T, kVectors>(call));
    sum_kernel<T, kVectors><<<sums, kThreads, 0, target>>>(sums_for(call));
    l2_step_kernel<T, kVectors><<<grid, kThreads, 0, target>>>(call);
  });
}

}  // namespace rf
