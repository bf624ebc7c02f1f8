#include "cuda/l2_step.cuh"

#include <cuda_runtime.h>

#include "cuda/launch.cuh"

namespace rf {
namespace cuda {
namespace {

template <class T, bool kVectors>
void launch(const L2StepCall& call, cudaStream_t stream) {
  const Grid2 sums = sum_grid(call.samples, call.per_sample);
  sum_kernel<T, kVectors>
      <<<dim3(sums.blocks, sums.samples), kThreads, 0, stream>>>(sums_for(call));
  const Grid2 grid = elementwise_grid(call.samples, call.per_sample, kVectors ? kPack<T> : 1);
  l2_step_kernel<T, kVectors><<<dim3(grid.blocks, grid.samples), kThreads, 0, stream>>>(call);
}

template <class T>
cudaError_t load_type() {
  return load_kernels(sum_kernel<T, true>, sum_kernel<T, false>, l2_step_kernel<T, true>,
                      l2_step_kernel<T, false>);
}

}  // namespace
}  // namespace cuda

int64_t reduction_workspace(int64_t samples, int64_t per_sample) {
  return samples * cuda::parts_of(per_sample) * 4;
}

int l2_step_cuda_load(int device) {
  const DeviceGuard guard(device);
  if (guard.code()) return guard.code();
  for (auto load : {cuda::load_type<cuda::Fp32>, cuda::load_type<cuda::Bf16>,
                    cuda::load_type<cuda::Fp16>}) {
    if (const cudaError_t code = load()) return code;
  }
  return cudaSuccess;
}

int l2_step_cuda(const L2StepCall& call, int device, void* stream) {
  if (!call.workspace) return cudaErrorInvalidValue;
  const DeviceGuard guard(device);
  if (guard.code()) return guard.code();
  const auto target = static_cast<cudaStream_t>(stream);
  cuda::with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    if (cuda::by_vectors(call, sizeof(typename T::Word))) {
      cuda::launch<T, true>(call, target);
    } else {
      cuda::launch<T, false>(call, target);
    }
  });
  return cudaGetLastError();
}

}  // namespace rf
