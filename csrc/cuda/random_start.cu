#include "cuda/random_start.cuh"

#include <cuda_runtime.h>

#include "cuda/guard.h"
#include "ops.h"

namespace rf {
namespace cuda {
namespace {

template <class T>
void launch(const RandomStartCall& call, int64_t* totals, cudaStream_t stream) {
  const StartGrid shape = start_grid(call);
  const dim3 grid(shape.blocks, shape.samples);
  if (call.norm != Norm::linf) start_totals<<<grid, kThreads, 0, stream>>>(call, totals);
  if (shape.vectors) {
    start_kernel<T, true><<<grid, kThreads, 0, stream>>>(call, totals);
  } else {
    start_kernel<T, false><<<grid, kThreads, 0, stream>>>(call, totals);
  }
}

template <class T>
cudaError_t load_typed() {
  cudaFuncAttributes attributes;
  const cudaError_t code = cudaFuncGetAttributes(&attributes, start_kernel<T, true>);
  return code ? code : cudaFuncGetAttributes(&attributes, start_kernel<T, false>);
}

}  // namespace
}  // namespace cuda

int random_start_cuda_load(int device) {
  const DeviceGuard guard(device);
  if (guard.code()) return guard.code();
  cudaFuncAttributes attributes;
  if (const cudaError_t code = cudaFuncGetAttributes(&attributes, cuda::start_totals)) return code;
  for (auto load_one :
       {cuda::load_typed<cuda::Fp32>, cuda::load_typed<cuda::Bf16>, cuda::load_typed<cuda::Fp16>}) {
    if (const cudaError_t code = load_one()) return code;
  }
  return cudaSuccess;
}

int random_start_cuda(const RandomStartCall& call, int64_t* totals, int device, void* stream) {
  const DeviceGuard guard(device);
  if (guard.code()) return guard.code();
  const auto target = static_cast<cudaStream_t>(stream);
  switch (call.dtype) {
    case DType::fp32:
      cuda::launch<cuda::Fp32>(call, totals, target);
      break;
    case DType::bf16:
      cuda::launch<cuda::Bf16>(call, totals, target);
      break;
    case DType::fp16:
      cuda::launch<cuda::Fp16>(call, totals, target);
      break;
  }
  return cudaGetLastError();
}

}  // namespace rf
