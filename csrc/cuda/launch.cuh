// What launchers share: a choice of storage type, and the loading of kernels.
#pragma once

#include <cuda_runtime.h>

#include "cuda/guard.h"
#include "cuda/storage.cuh"
#include "ops.h"

namespace rf {
namespace cuda {

// use(T{}) with the storage type of a dtype.
template <class Use>
void with_type(DType dtype, const Use& use) {
  switch (dtype) {
    case DType::fp32:
      return use(Fp32{});
    case DType::bf16:
      return use(Bf16{});
    case DType::fp16:
      return use(Fp16{});
  }
}

// Loads kernels on the current device.
template <class... Kernels>
cudaError_t load_kernels(Kernels... kernels) {
  cudaFuncAttributes attributes;
  cudaError_t code = cudaSuccess;
  ((code = code ? code : cudaFuncGetAttributes(&attributes, kernels)), ...);
  return code;
}

}  // namespace cuda
}  // namespace rf
