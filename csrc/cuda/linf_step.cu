#include "cuda/linf_step.cuh"

#include <cuda_runtime.h>

#include "cuda/guard.h"
#include "ops.h"

namespace rf {
namespace cuda {
namespace {

template <class T>
void launch(const LinfStepCall& call, cudaStream_t stream) {
  const Geometry geometry = geometry_of(call, sizeof(typename T::Word));
  const dim3 grid(geometry.blocks, geometry.samples);
  if (geometry.vectors) {
    step_kernel<T, true><<<grid, kThreads, 0, stream>>>(geometry.call);
  } else {
    step_kernel<T, false><<<grid, kThreads, 0, stream>>>(geometry.call);
  }
}

template <class T>
cudaError_t load() {
  cudaFuncAttributes attributes;
  const cudaError_t code = cudaFuncGetAttributes(&attributes, step_kernel<T, true>);
  return code ? code : cudaFuncGetAttributes(&attributes, step_kernel<T, false>);
}

}  // namespace
}  // namespace cuda

int linf_step_cuda_load(int device) {
  const DeviceGuard guard(device);
  if (guard.code()) return guard.code();
  for (auto load_one : {cuda::load<cuda::Fp32>, cuda::load<cuda::Bf16>, cuda::load<cuda::Fp16>}) {
    if (const cudaError_t code = load_one()) return code;
  }
  return cudaSuccess;
}

int linf_step_cuda(const LinfStepCall& call, int device, void* stream) {
  if (call.samples == 0 || call.per_sample == 0) return cudaSuccess;
  const DeviceGuard guard(device);
  if (guard.code()) return guard.code();
  const auto target = static_cast<cudaStream_t>(stream);
  switch (call.dtype) {
    case DType::fp32:
      cuda::launch<cuda::Fp32>(call, target);
      break;
    case DType::bf16:
      cuda::launch<cuda::Bf16>(call, target);
      break;
    case DType::fp16:
      cuda::launch<cuda::Fp16>(call, target);
      break;
  }
  return cudaGetLastError();
}

}  // namespace rf
