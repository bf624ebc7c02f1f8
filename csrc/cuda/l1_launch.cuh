// Launches l1_kernel, for l1_project.cu and l1_step.cu.
#pragma once

#include <cuda_runtime.h>

#include "cuda/guard.h"
#include "cuda/l1.cuh"

namespace rf {
namespace cuda {

template <class T, bool kStep>
void launch_l1_typed(const L1StepCall& call, cudaStream_t stream) {
  const unsigned blocks = l1_blocks(call);
  if (l1_vectors(call, sizeof(typename T::Word))) {
    l1_kernel<T, true, kStep><<<blocks, kL1Threads, 0, stream>>>(call);
  } else {
    l1_kernel<T, false, kStep><<<blocks, kL1Threads, 0, stream>>>(call);
  }
}

template <bool kStep>
int launch_l1(const L1StepCall& call, int device, void* stream) {
  if (call.project.per_sample > UINT32_MAX) return cudaErrorInvalidValue;  // 32-bit counts
  const DeviceGuard guard(device);
  if (guard.code()) return guard.code();
  const auto target = static_cast<cudaStream_t>(stream);
  switch (call.project.dtype) {
    case DType::fp32:
      launch_l1_typed<Fp32, kStep>(call, target);
      break;
    case DType::bf16:
      launch_l1_typed<Bf16, kStep>(call, target);
      break;
    case DType::fp16:
      launch_l1_typed<Fp16, kStep>(call, target);
      break;
  }
  return cudaGetLastError();
}

template <class T, bool kStep>
cudaError_t load_l1_typed() {
  cudaFuncAttributes attributes;
  const cudaError_t code = cudaFuncGetAttributes(&attributes, l1_kernel<T, true, kStep>);
  return code ? code : cudaFuncGetAttributes(&attributes, l1_kernel<T, false, kStep>);
}

template <bool kStep>
int load_l1(int device) {
  const DeviceGuard guard(device);
  if (guard.code()) return guard.code();
  for (auto load : {load_l1_typed<Fp32, kStep>, load_l1_typed<Bf16, kStep>,
                    load_l1_typed<Fp16, kStep>}) {
    if (const cudaError_t code = load()) return code;
  }
  return cudaSuccess;
}

}  // namespace cuda
}  // namespace rf
