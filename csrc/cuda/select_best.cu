#include "cuda/select_best.cuh"

#include <cuda_runtime.h>

#include "cuda/launch.cuh"

namespace rf {
namespace cuda {
namespace {

template <class Unit>
void copy_rows(const SelectBestCall& call, cudaStream_t stream) {
  const Grid2 grid = elementwise_grid(call.samples, call.row_bytes, sizeof(Unit));
  copy_kernel<Unit><<<dim3(grid.blocks, grid.samples), kThreads, 0, stream>>>(call);
}

}  // namespace
}  // namespace cuda

int select_best_cuda_load(int device) {
  const DeviceGuard guard(device);
  if (guard.code()) return guard.code();
  return cuda::load_kernels(cuda::decide_kernel, cuda::copy_kernel<uint4>,
                            cuda::copy_kernel<uint16_t>);
}

int select_best_cuda(const SelectBestCall& call, int device, void* stream) {
  const DeviceGuard guard(device);
  if (guard.code()) return guard.code();
  const auto target = static_cast<cudaStream_t>(stream);
  const cuda::Grid2 grid = cuda::elementwise_grid(1, call.samples, 1);
  cuda::decide_kernel<<<grid.blocks, cuda::kThreads, 0, target>>>(call);
  if (cuda::by_vectors(call)) {
    cuda::copy_rows<uint4>(call, target);
  } else {
    cuda::copy_rows<uint16_t>(call, target);
  }
  return cudaGetLastError();
}

}  // namespace rf
