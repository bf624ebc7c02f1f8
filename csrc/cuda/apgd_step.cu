#include "cuda/apgd_step.cuh"

#include <cuda_runtime.h>

#include "cuda/launch.cuh"

namespace rf {
namespace cuda {
namespace {

template <class T, bool kVectors>
void launch_linf(const ApgdStepCall& call, cudaStream_t stream) {
  const Grid2 grid = elementwise_grid(call.samples, call.per_sample, kVectors ? kPack<T> : 1);
  apgd_linf_step_kernel<T, kVectors>
      <<<dim3(grid.blocks, grid.samples), kThreads, 0, stream>>>(call);
}

template <class T, bool kVectors>
void launch_l2(const ApgdStepCall& call, cudaStream_t stream) {
  const Grid2 sums = sum_grid(call.samples, call.per_sample);
  const dim3 sum_blocks(sums.blocks, sums.samples);
  sum_kernel<T, kVectors><<<sum_blocks, kThreads, 0, stream>>>(sums_for(call));
  apgd_l2_length_kernel<T, kVectors><<<sum_blocks, kThreads, 0, stream>>>(call);
  const Grid2 grid = elementwise_grid(call.samples, call.per_sample, kVectors ? kPack<T> : 1);
  apgd_l2_step_kernel<T, kVectors>
      <<<dim3(grid.blocks, grid.samples), kThreads, 0, stream>>>(call);
}

template <class T>
cudaError_t load_type() {
  return load_kernels(apgd_linf_step_kernel<T, true>, apgd_linf_step_kernel<T, false>,
                      sum_kernel<T, true>, sum_kernel<T, false>, apgd_l2_length_kernel<T, true>,
                      apgd_l2_length_kernel<T, false>, apgd_l2_step_kernel<T, true>,
                      apgd_l2_step_kernel<T, false>);
}

}  // namespace
}  // namespace cuda

int apgd_step_cuda_load(int device) {
  const DeviceGuard guard(device);
  if (guard.code()) return guard.code();
  for (auto load : {cuda::load_type<cuda::Fp32>, cuda::load_type<cuda::Bf16>,
                    cuda::load_type<cuda::Fp16>}) {
    if (const cudaError_t code = load()) return code;
  }
  return cudaSuccess;
}

int apgd_linf_step_cuda(const ApgdStepCall& call, int device, void* stream) {
  const DeviceGuard guard(device);
  if (guard.code()) return guard.code();
  const auto target = static_cast<cudaStream_t>(stream);
  cuda::with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    if (cuda::by_vectors(call, sizeof(typename T::Word))) {
      cuda::launch_linf<T, true>(call, target);
    } else {
      cuda::launch_linf<T, false>(call, target);
    }
  });
  return cudaGetLastError();
}

int apgd_l2_step_cuda(const ApgdStepCall& call, int device, void* stream) {
  if (!call.workspace) return cudaErrorInvalidValue;
  const DeviceGuard guard(device);
  if (guard.code()) return guard.code();
  const auto target = static_cast<cudaStream_t>(stream);
  cuda::with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    if (cuda::by_vectors(call, sizeof(typename T::Word))) {
      cuda::launch_l2<T, true>(call, target);
    } else {
      cuda::launch_l2<T, false>(call, target);
    }
  });
  return cudaGetLastError();
}

}  // namespace rf
