#include "cuda/random_start.cuh"

#include "cuda/launch.cuh"

namespace rf {

using namespace cuda;

int random_start_cuda_load(int device) {
  return load_on(device, start_totals, RF_EACH_TYPE(start_kernel));
}

int random_start_cuda(const RandomStartCall& call, int device, void* stream) {
  if (call.norm != Norm::linf && !call.totals) return cudaErrorInvalidValue;
  const dim3 grid = blocks_of(start_grid(call));
  return launch_on(device, stream, call.dtype, call, [&](auto type, auto vectors, auto target) {
    if (call.norm != Norm::linf) start_totals<<<grid, kThreads, 0, target>>>(call);
    start_kernel<decltype(type), vectors()><<<grid, kThreads, 0, target>>>(call);
  });
}

}  // namespace rf
