#include "cuda/linf_step.cuh"

#include "cuda/launch.cuh"

namespace rf {

using namespace cuda;

int linf_step_cuda_load(int device) { return load_on(device, RF_EACH_TYPE(step_kernel)); }

int linf_step_cuda(const LinfStepCall& given, int device, void* stream) {
  const LinfStepCall call = joined(given);
  return launch_on(device, stream, call.dtype, call, [&](auto type, auto vectors, auto target) {
    using T = decltype(type);
    constexpr bool kVectors = vectors();
    const dim3 grid = blocks_of(elements_grid<T, kVectors>(call));
    step_kernel<T, kVectors><<<grid, kThreads, 0, target>>>(call);
  });
}

}  // namespace rf
