#include "cuda/select_best.cuh"

#include "cuda/launch.cuh"

namespace rf {

using namespace cuda;

int select_best_cuda_load(int device) {
  return load_on(device, decide_kernel, copy_kernel<uint4>, copy_kernel<uint16_t>);
}

int select_best_cuda(const SelectBestCall& call, int device, void* stream) {
  const DeviceGuard guard(device);
  if (guard.code()) return guard.code();
  const auto target = static_cast<cudaStream_t>(stream);
  const bool vectors = by_vectors(call);
  const int unit = vectors ? sizeof(uint4) : sizeof(uint16_t);
  const dim3 grid = blocks_of(elementwise_grid(call.samples, call.row_bytes, unit));
  decide_kernel<<<blocks_of(elementwise_grid(1, call.samples, 1)), kThreads, 0, target>>>(call);
  (vectors ? copy_kernel<uint4> : copy_kernel<uint16_t>)<<<grid, kThreads, 0, target>>>(call);
  return cudaGetLastError();
}

}  // namespace rf
